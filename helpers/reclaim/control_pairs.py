# SPDX-License-Identifier: MIT
"""Two equal ranges in one child, one locked and one not, and what became of each.

:func:`make` runs in the child (inside its cgroup, so that everything is charged there), the
judging functions anywhere: they read /proc/PID, and touch nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from helpers import memory, syscalls
from helpers.memory import Region
from helpers.processes import Child
from helpers.syscalls import PAGE, sysv

# Which the kernel can write to swap, and which it drops and reads again from their file.
SWAPPED_KINDS = (
    "private", "read-only", "inaccessible", "shared", "memfd-private", "memfd-read-only",
    "memfd-shared", "file-private",
)  # fmt: skip
DROPPED_KINDS = ("file-read-only", "file-shared")
KINDS = SWAPPED_KINDS + DROPPED_KINDS

LOCK_METHODS = (
    "mlock", "mlock-empty", "mlock2", "mlock2-onfault", "MAP_LOCKED", "MCL_CURRENT",
    "MCL_FUTURE", "MCL_FUTURE-onfault",
)  # fmt: skip
"""How a range gets locked; ``mlock-empty`` locks before anything was touched."""

SIZE = max(16, min(128, (1 << 20) // PAGE))
"""Pages in a range of moderate size: 512 kB, and 1 MiB where pages are large."""
_READ_ONLY = {"file-read-only", "memfd-read-only"}


@dataclass(frozen=True)
class ControlPair:
    """Addresses in the child that made them; equal sizes and kinds."""

    locked: Region
    control: Region


def contents(pages: int) -> bytes:
    """Random pages (compression and zero detection gain nothing), each with its number."""
    tail = os.urandom(PAGE - 8)
    return b"".join(page.to_bytes(8, "little") + tail for page in range(pages))


def segment(pages: int) -> tuple[Region, int]:
    """In the child: a SysV segment, attached, and its id (gone with the last detach)."""
    number = sysv.shmget(0, pages * PAGE, 0o600)  # IPC_PRIVATE
    addr = sysv.shmat(number, None, 0)
    sysv.shmctl(number, 0, None)  # IPC_RMID
    return Region(addr, pages * PAGE, "SysV"), number


def _map(kind: str, pages: int, flags: int = 0) -> Region:
    """A mapping of the kind for as long as the process lives, fenced on both sides."""
    size = pages * PAGE
    fd = -1
    if kind.startswith("memfd"):
        fd = memory.memfd(size)
        if kind in _READ_ONLY:
            os.pwrite(fd, contents(pages), 0)
    elif kind.startswith("file"):
        fd = disk_file(pages)
    how = syscalls.MAP_SHARED if kind.endswith("shared") else syscalls.MAP_PRIVATE
    if fd < 0:
        how |= syscalls.MAP_ANONYMOUS
    prot = syscalls.PROT_READ if kind in _READ_ONLY else syscalls.PROT_RW
    addr = syscalls.mmap(0, size + 2 * PAGE, syscalls.PROT_NONE) + PAGE
    syscalls.mmap(addr, size, prot, how | syscalls.MAP_FIXED | flags, fd)
    return Region(addr, size, kind, fd)


def disk_file(pages: int) -> int:
    """Descriptor of an unlinked file with random contents, all of it on disk, none in memory."""
    fd = memory.scratch_file(0)
    memory.write_file(fd, contents(pages))
    os.fdatasync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    return fd


def fill(region: Region) -> None:
    """Make every page of the region present, as its kind allows, with random contents."""
    if region.kind in _READ_ONLY or region.kind == "file-shared":
        region.first_bytes()  # clean pages, so that reclaim need not write them first
    else:
        syscalls.store(region.addr, contents(region.pages))


def protect(region: Region) -> None:
    """Take away the access that the filled region's kind does not have."""
    if region.kind == "read-only":
        syscalls.mprotect(region.addr, region.size, syscalls.PROT_READ)
    elif region.kind == "inaccessible":
        syscalls.mprotect(region.addr, region.size, syscalls.PROT_NONE)


def make_pairs(kinds: Sequence[str], route: str, pages: int) -> dict[str, ControlPair]:
    """In the child: of each kind a range locked by ``route``, and a control. All filled.

    Raises OSError where the kernel refuses, KeyError on an unknown route.
    """
    if route not in LOCK_METHODS:
        raise KeyError(route)
    controls = {}
    if route.startswith("MCL_FUTURE"):
        controls = {kind: _filled(kind, pages) for kind in kinds}
        syscalls.mlockall(
            syscalls.MCL_FUTURE | (syscalls.MCL_ONFAULT if route.endswith("onfault") else 0)
        )
    locked = {kind: _locked(kind, route, pages) for kind in kinds}
    if route == "MCL_CURRENT":
        syscalls.mlockall(syscalls.MCL_CURRENT)
    if not controls:
        controls = {kind: _filled(kind, pages) for kind in kinds}
    return {kind: ControlPair(locked[kind], controls[kind]) for kind in kinds}


def _filled(kind: str, pages: int) -> Region:
    made = _map(kind, pages)
    fill(made)
    protect(made)
    return made


def _locked(kind: str, route: str, pages: int) -> Region:
    made = _map(kind, pages, syscalls.MAP_LOCKED if route == "MAP_LOCKED" else 0)
    if route == "mlock-empty":
        syscalls.mlock(made.addr, made.size)
    elif route == "mlock2-onfault":
        syscalls.mlock2(made.addr, made.size, syscalls.MLOCK_ONFAULT)
    fill(made)
    if kind != "inaccessible":  # whose mlock would fail
        protect(made)
    if route == "mlock":
        syscalls.mlock(made.addr, made.size)
    elif route == "mlock2":
        syscalls.mlock2(made.addr, made.size, 0)
    protect(made)
    return made


_offspring: Child | None = None


def fork_grandchild() -> int:
    """In the child: fork a child of its own, which asks its parent through :func:`in_offspring`.

    Returns its process id.
    """
    global _offspring
    _offspring = Child()
    return _offspring.pid


def call_in_grandchild(function: Callable[..., Any], *args: object) -> Any:
    """In the child: run a function in the child it has spawned."""
    assert _offspring is not None, "spawn() first"
    return _offspring.call(function, *args)
