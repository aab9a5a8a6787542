"""SysV shared memory segments, and what the kernel says of them (shmctl(2), shmat(2))."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from helpers import evidence, libc
from helpers.libc import PAGE
from helpers.memory import Region

LOCKED = 0o2000
"""SHM_LOCKED in shm_perm.mode (include/linux/shm.h)."""


@contextmanager
def segment(pages: int, flags: int = 0, size: int | None = None) -> Iterator[int]:
    """Id of a new segment for the block; removed after it (gone with the last detach).

    ``pages`` pages, or ``size`` bytes when given. Raises OSError as shmget(2) does.
    """
    length = pages * PAGE if size is None else size
    number = libc.shmget(libc.IPC_PRIVATE, length, libc.IPC_CREAT | 0o600 | flags)
    try:
        yield number
    finally:
        if libc.outcome(libc.shmctl, number, libc.IPC_RMID, None) == "EPERM":
            raise RuntimeError(f"segment {number} is no longer ours to remove")


@contextmanager
def attached(number: int, pages: int) -> Iterator[Region]:
    """The segment attached for the block."""
    addr = libc.shmat(number, None, 0)
    try:
        with evidence.watching(addr, pages * PAGE, f"segment {number}"):
            yield Region(addr, pages * PAGE, "SysV")
    finally:
        libc.shmdt(addr)


def remove(number: int) -> None:
    """IPC_RMID."""
    libc.shmctl(number, libc.IPC_RMID, None)


def lock(number: int) -> None:
    """SHM_LOCK. OSError as the kernel says."""
    libc.shmctl(number, libc.SHM_LOCK, None)


def unlock(number: int) -> None:
    """SHM_UNLOCK. OSError as the kernel says."""
    libc.shmctl(number, libc.SHM_UNLOCK, None)


def row(number: int) -> dict[str, int]:
    """The segment's line of /proc/sysvipc/shm; ``perms`` with the flags in it.

    Raises LookupError if there is no such segment in this IPC namespace.
    """
    titles, *lines = Path("/proc/sysvipc/shm").read_text().splitlines()
    for line in lines:
        values = dict(zip(titles.split(), line.split()))
        if int(values["shmid"]) == number:
            return {k: int(v, 8 if k == "perms" else 10) for k, v in values.items()}
    raise LookupError(f"no segment {number} in /proc/sysvipc/shm")


def is_locked(number: int) -> bool:
    """SHM_LOCKED is set in the segment's mode."""
    return bool(row(number)["perms"] & LOCKED)


def spare_user() -> int:
    """A user id that nobody else uses at the same time: quotas are counted by user."""
    return 60000 + os.getpid() % 5000
