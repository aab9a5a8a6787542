# SPDX-License-Identifier: MIT
"""Each capability of the running kernel taken away alone, all of them, and another user."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from helpers import syscalls
from helpers.environments.running import Environment, Unsuitable
from helpers.processes import credentials

_ANY = re.compile(r"CAP_[A-Z_]+|\broot\b|RLIMIT_MEMLOCK|ulimit")


def environments() -> Iterator[Environment]:
    """One for each capability that this process has, without all of them, and nobody."""
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    for name, number in credentials.CAPABILITIES.items():
        if number <= last:
            yield Environment(name, re.compile(rf"\b{name}\b"), partial(_without, name))
    yield Environment("none", _ANY, partial(_without, *_held()))
    yield Environment("nobody", _ANY, _as_nobody)


def _held() -> list[str]:
    return [name for name in credentials.CAPABILITIES if credentials.has_capability(name)]


def _without(*names: str) -> None:
    if not names or not set(names) <= {*_held()}:
        raise Unsuitable("not among the rights that we have")
    credentials.drop(*names)


def _as_nobody() -> None:
    here = Path.cwd()
    needed = {here, Path(__file__).resolve().parents[2], Path(sys.prefix), Path(sys.base_prefix)}
    _open_up(sorted(path for path in needed if not path.is_relative_to("/usr")))
    os.chdir(here)
    credentials.set_user()


def _open_up(paths: Iterable[Path]) -> None:
    """Let every user reach these folders, in this process's mount namespace: root's own is 0700."""
    closed: dict[Path, list[Path]] = {}
    for path in paths:
        for above in reversed(path.parents):
            if not above.stat().st_mode & 0o001:
                closed.setdefault(above, []).append(path)
                break
    if closed:
        syscalls.unshare_mounts()
    for above, inside in closed.items():
        held = [(path, os.open(path, os.O_PATH)) for path in inside]
        syscalls.mount("tmpfs", str(above), "tmpfs", 0, "mode=755")
        for path, fd in held:
            path.mkdir(parents=True, exist_ok=True)
            syscalls.mount(f"/proc/self/fd/{fd}", str(path), "", syscalls.MS_BIND)
            os.close(fd)
