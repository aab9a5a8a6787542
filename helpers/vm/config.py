# SPDX-License-Identifier: MIT
"""What every guest of a run shall have."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from helpers.processes import credentials
from helpers.vm.errors import VmError


@dataclass(frozen=True)
class GuestConfig:
    """The guests of a run. ``disk`` is MiB; timeouts are seconds; ``drop`` capability numbers."""

    suite: Path
    pytest: tuple[str, ...]
    userland: str = "bookworm"
    cgroup: str = "v2"
    swap: str = "zram"
    disk: int = 256
    cpus: int = 1
    numa: bool = False
    hugepages: int | None = None
    append: str = ""
    memory: str | None = None
    timeout: float = 1800
    boot_timeout: float = 180
    user: str = ""
    drop: tuple[int, ...] = ()
    accel: str = "auto"


DEFAULT_KERNEL_PARAMETERS = "secretmem.enable=y proc_mem.force_override=always"
"""What kernels can do and some do only if asked: memfd_secret (5.14 to 6.4), writing read-only
memory by /proc/PID/mem (CONFIG_PROC_MEM_*, 6.12 on). Others pass over it."""


def parameters(config: GuestConfig) -> str:
    """Kernel parameters of every guest, however it is booted; the caller's come last, and win."""
    pages = "" if config.hugepages is None else f"hugepages={config.hugepages}"
    return " ".join(filter(None, (DEFAULT_KERNEL_PARAMETERS, pages, config.append)))


def parse_size(size: str) -> int:
    """Read a size such as 1G or 768M. Raises :class:`Problem` on nonsense."""
    match = re.fullmatch(r"(\d+)([MG])i?B?", size.strip(), re.IGNORECASE)
    amount = int(match[1]) * (1024 if match[2] in "gG" else 1) if match else 0
    if not 128 <= amount <= 1 << 20:
        raise VmError(f"--memory {size}: say for example 1G or 1536M (at least 128M)")
    return amount


def capability_numbers(names: Iterable[str]) -> tuple[int, ...]:
    """Turn names such as cap_sys_resource into numbers. Raises :class:`Problem`."""
    known = credentials.CAPABILITIES
    numbers = []
    for name in names:
        plain = f"CAP_{name.strip().upper().removeprefix('CAP_')}"
        if plain not in known:
            raise VmError(f"--drop-cap {name}: say one of {', '.join(known).lower()}")
        numbers.append(known[plain])
    return tuple(numbers)
