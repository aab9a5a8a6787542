# SPDX-License-Identifier: MIT
"""SysV shared memory segments, and what the kernel says of them (shmctl(2), shmat(2))."""

from __future__ import annotations

import ctypes
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from helpers import syscalls
from helpers.memory.mappings import watched
from helpers.memory.region import Region
from helpers.syscalls import PAGE, sysv

LOCKED = 0o2000
"""SHM_LOCKED in shm_perm.mode (include/linux/shm.h)."""


@dataclass(frozen=True)
class Segment:
    """A segment by its id, and where it is attached here."""

    id: int
    region: Region


def create_segment(pages: int, flags: int = 0, size: int | None = None) -> Segment:
    """A new segment of ``pages`` pages, or ``size`` bytes: attached, and removed already.

    So it goes with its last detach, at the latest with the processes that have it attached;
    until then shmctl(2) and shmat(2) take its id as before. OSError as the kernel says.
    """
    length = pages * PAGE if size is None else size
    number = sysv.shmget(syscalls.IPC_PRIVATE, length, syscalls.IPC_CREAT | 0o600 | flags)
    try:
        return attach(number, pages)
    finally:
        sysv.shmctl(number, syscalls.IPC_RMID, None)


def attach(number: int, pages: int) -> Segment:
    """The segment attached once more (or in another process)."""
    return Segment(number, Region(sysv.shmat(number, None, 0), pages * PAGE, "SysV"))


def detach(segment: Segment) -> None:
    """shmdt(2)."""
    sysv.shmdt(segment.region.addr)


@contextmanager
def segment(pages: int, flags: int = 0, size: int | None = None) -> Iterator[Segment]:
    """:func:`make`, detached at the end of the block."""
    made = create_segment(pages, flags, size)
    try:
        with watched(made.region.addr, made.region.size, f"segment {made.id}"):
            yield made
    finally:
        detach(made)


def set_owner(number: int, uid: int) -> None:
    """IPC_SET: make a user the owner; the creator stays who it was. OSError as shmctl(2)."""
    # struct shmid_ds begins with struct ipc_perm: key, uid, gid, cuid, cgid, mode.
    stat = ctypes.create_string_buffer(256)
    sysv.shmctl(number, _IPC_STAT, ctypes.addressof(stat))
    ctypes.c_uint32.from_buffer(stat, 4).value = uid
    sysv.shmctl(number, _IPC_SET, ctypes.addressof(stat))


_IPC_SET, _IPC_STAT = 1, 2
HUGETLB, NORESERVE = 0o4000, 0o10000
"""SHM_HUGETLB. SHM_NORESERVE: the size is not accounted, so one larger than memory can be had."""


def lock(number: int) -> None:
    """SHM_LOCK. OSError as the kernel says."""
    sysv.shmctl(number, syscalls.SHM_LOCK, None)


def unlock(number: int) -> None:
    """SHM_UNLOCK. OSError as the kernel says."""
    sysv.shmctl(number, syscalls.SHM_UNLOCK, None)


def proc_rows() -> list[dict[str, int]]:
    """The lines of /proc/sysvipc/shm; ``perms`` with the flags in it."""
    titles, *lines = Path("/proc/sysvipc/shm").read_text().splitlines()
    return [
        {k: int(v, 8 if k == "perms" else 10) for k, v in zip(titles.split(), line.split())}
        for line in lines
    ]


def proc_row(number: int) -> dict[str, int]:
    """The segment's line. LookupError if there is no such segment in this IPC namespace."""
    for row in proc_rows():
        if row["shmid"] == number:
            return row
    raise LookupError(f"no segment {number} in /proc/sysvipc/shm")


def is_locked(number: int) -> bool:
    """SHM_LOCKED is set in the segment's mode."""
    return bool(proc_row(number)["perms"] & LOCKED)


def unused_uid() -> int:
    """A user id that nobody uses, now or lately: quotas are counted by user, and some charges are
    given back a while after their end. The 5000 above it are as free."""
    ranges = [line.split() for line in Path("/proc/self/uid_map").read_text().splitlines()]
    first, count = max(((int(r[0]), int(r[2])) for r in ranges), key=lambda r: r[1])
    count = min(count, 1 << 31)
    low, high = first + count // 2, first + count - 5000
    return _RANDOM.randrange(low, high) if low < high else 60000 + os.getpid() % 5000


_RANDOM = random.SystemRandom()
