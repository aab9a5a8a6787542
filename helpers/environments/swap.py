# SPDX-License-Identifier: MIT
"""Each kind of swap area: where the suite makes its own, or one that is there already."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from helpers import syscalls
from helpers.environments.running import Environment
from helpers.environments.settings import WRITES, neighbour
from helpers.machine import block_devices, journal, mounts
from helpers.reclaim import cgroup, swap_area
from helpers.reclaim.setup import SWAP_SIZE
from helpers.syscalls import PAGE

_NAMES = re.compile("swap|loop")
_FULL = 16 << 20
"""Bytes of a swap area that is to be full."""
_START = 1 << 20
"""Where a partition begins, in bytes."""
_ZRAM = "/sys/class/zram-control"


def environments() -> Iterator[Environment]:
    """Files by file system, loop devices by what is under them, zram, partitions, two, one full."""
    for kind in ("ext4", "xfs", "btrfs"):
        yield _mounted(f"file on {kind}", kind)
    yield _mounted("file on ext4 (rotating)", "ext4", "1")
    yield _mounted("file on ext4 (non-rotating)", "ext4", "0")
    for kind in ("tmpfs", "overlay"):
        yield _mounted(f"loop over {kind}", kind)
    yield _mounted("zram", "tmpfs", "", "/dev/loop-control")
    for name, rotates, flags in (
        ("partition (rotating)", "1", 0),
        ("partition (non-rotating)", "0", 0),
        ("partition (discard)", "0", block_devices.DISCARD),
    ):
        use = partial(_as_partition, rotates, flags)
        yield _mounted(
            name, "tmpfs", "", "/dev/loop-control", _ZRAM,
            around=partial(swap_area.block_device, size=_START + SWAP_SIZE, use=use),
        )  # fmt: skip
    yield Environment(
        "two at once",
        _NAMES,
        around=partial(swap_area.block_device, size=SWAP_SIZE, use=block_devices.swapon),
    )
    yield Environment("full", _NAMES, around=_full)


def _mounted(name: str, kind: str, rotates: str = "", *hidden: str, **more: Any) -> Environment:
    # The suite makes its area on this file system, by what is not hidden from it.
    return Environment(
        name, _NAMES, partial(_enter, kind, rotates, hidden), options=(f"--swap-dir=/mnt/{kind}",),
        **more,
    )  # fmt: skip


def _enter(kind: str, rotates: str, hidden: tuple[str, ...]) -> None:
    folder = mounts.mount_new(kind, 2 * SWAP_SIZE)
    if rotates:
        device = os.stat(folder).st_dev
        _rotate(f"{os.major(device)}:{os.minor(device)}", rotates)
    for path in hidden:
        if Path(path).is_dir():
            syscalls.mount("tmpfs", path, "tmpfs")
        elif Path(path).exists():
            syscalls.mount("/dev/null", path, "", syscalls.MS_BIND)


def _rotate(number: str, rotates: str) -> None:
    Path(f"/sys/dev/block/{number}/queue/rotational").write_text(rotates)


def _as_partition(rotates: str, flags: int, device: str) -> None:
    number = os.stat(device).st_rdev
    _rotate(f"{os.major(number)}:{os.minor(number)}", rotates)
    # util-linux: needs no partition table, which a kernel may not read.
    where = (str(number // 512) for number in (_START, SWAP_SIZE))
    subprocess.run(["addpart", device, "1", *where], check=True)
    partition = f"{device}p1"
    fd = os.open(partition, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.pwrite(fd, block_devices.header(SWAP_SIZE // PAGE), 0)
        os.fsync(fd)
    finally:
        os.close(fd)
    block_devices.swapon(partition, flags)


@contextmanager
def _full(run: journal.ChangeJournal) -> Iterator[None]:
    with (
        swap_area.area(run, _FULL),
        cgroup.make(run, cgroup.find_parent(run), _FULL) as group,
        neighbour(WRITES, 2 * _FULL - (4 << 20), group=group),
    ):
        yield
