"""Two equal ranges in one child, one locked and one not, and what became of each.

:func:`make` runs in the child (inside its cgroup, so that everything is charged there), the
judging functions anywhere: they read /proc/PID, and touch nothing.
"""

from __future__ import annotations

import ctypes
import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from helpers import libc, memory, series
from helpers.libc import PAGE
from helpers.memory import Region
from helpers.observe import maps, pagemap, vmstat
from helpers.process import Child

# Which the kernel can write to swap, and which it drops and reads again from their file.
SWAPPED_KINDS = (
    "private", "read-only", "inaccessible", "shared", "memfd-private", "memfd-read-only",
    "memfd-shared", "file-private",
)  # fmt: skip
DROPPED_KINDS = ("file-read-only", "file-shared")
KINDS = SWAPPED_KINDS + DROPPED_KINDS

ROUTES = (
    "mlock", "mlock-empty", "mlock2", "mlock2-onfault", "MAP_LOCKED", "MCL_CURRENT",
    "MCL_FUTURE", "MCL_FUTURE-onfault",
)  # fmt: skip
"""How a range gets locked; ``mlock-empty`` locks before anything was touched."""

SIZE = max(16, min(128, (1 << 20) // PAGE))
"""Pages in a range of moderate size: 512 kB, and 1 MiB where pages are large."""
_READ_ONLY = {"file-read-only", "memfd-read-only"}


@dataclass(frozen=True)
class Twins:
    """Addresses in the child that made them; equal sizes and kinds."""

    locked: Region
    control: Region


def contents(pages: int) -> bytes:
    """Random pages (compression and zero detection gain nothing), each with its number."""
    tail = os.urandom(PAGE - 8)
    return b"".join(page.to_bytes(8, "little") + tail for page in range(pages))


def segment(pages: int) -> tuple[Region, int]:
    """In the child: a SysV segment, attached, and its id (gone with the last detach)."""
    number = libc.shmget(0, pages * PAGE, 0o600)  # IPC_PRIVATE
    addr = libc.shmat(number, None, 0)
    libc.shmctl(number, 0, None)  # IPC_RMID
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
    how = libc.MAP_SHARED if kind.endswith("shared") else libc.MAP_PRIVATE
    if fd < 0:
        how |= libc.MAP_ANONYMOUS
    prot = libc.PROT_READ if kind in _READ_ONLY else libc.PROT_RW
    addr = libc.mmap(0, size + 2 * PAGE, libc.PROT_NONE) + PAGE
    libc.mmap(addr, size, prot, how | libc.MAP_FIXED | flags, fd)
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
        region.peek()  # clean pages, so that reclaim need not write them first
    else:
        libc.write(region.addr, contents(region.pages))


def protect(region: Region) -> None:
    """Take away the access that the filled region's kind does not have."""
    if region.kind == "read-only":
        libc.mprotect(region.addr, region.size, libc.PROT_READ)
    elif region.kind == "inaccessible":
        libc.mprotect(region.addr, region.size, libc.PROT_NONE)


def make(kinds: Sequence[str], route: str, pages: int) -> dict[str, Twins]:
    """In the child: of each kind a range locked by ``route``, and a control. All filled.

    Raises OSError where the kernel refuses, KeyError on an unknown route.
    """
    if route not in ROUTES:
        raise KeyError(route)
    controls = {}
    if route.startswith("MCL_FUTURE"):
        controls = {kind: _filled(kind, pages) for kind in kinds}
        libc.mlockall(libc.MCL_FUTURE | (libc.MCL_ONFAULT if route.endswith("onfault") else 0))
    locked = {kind: _locked(kind, route, pages) for kind in kinds}
    if route == "MCL_CURRENT":
        libc.mlockall(libc.MCL_CURRENT)
    if not controls:
        controls = {kind: _filled(kind, pages) for kind in kinds}
    return {kind: Twins(locked[kind], controls[kind]) for kind in kinds}


def _filled(kind: str, pages: int) -> Region:
    made = _map(kind, pages)
    fill(made)
    protect(made)
    return made


def _locked(kind: str, route: str, pages: int) -> Region:
    made = _map(kind, pages, libc.MAP_LOCKED if route == "MAP_LOCKED" else 0)
    if route == "mlock-empty":
        libc.mlock(made.addr, made.size)
    elif route == "mlock2-onfault":
        libc.mlock2(made.addr, made.size, libc.MLOCK_ONFAULT)
    fill(made)
    if kind != "inaccessible":  # whose mlock would fail
        protect(made)
    if route == "mlock":
        libc.mlock(made.addr, made.size)
    elif route == "mlock2":
        libc.mlock2(made.addr, made.size, 0)
    protect(made)
    return made


def checksum(region: Region) -> int:
    """In the child: CRC of the region's bytes, read in place."""
    return zlib.crc32((ctypes.c_char * region.size).from_address(region.addr))


@dataclass(frozen=True)
class State:
    """A range of another process: page by page and in its VMAs' own words."""

    present: int
    pfns: Sequence[int]
    lo: bool
    swap_kb: int
    rss_kb: int
    migrated: int


def states(pid: int, regions: Sequence[Region]) -> list[State]:
    """What /proc says of each range. Raises OSError if the process is gone."""
    low, high = min(r.addr for r in regions), max(r.end for r in regions)
    vmas = maps.smaps(pid, low, high)
    migrated = vmstat.read().get("pgmigrate_success", 0)
    found = []
    for region in regions:
        seen = pagemap.entries(region.addr, region.pages, pid)
        inside = [v for v in vmas if v.start < region.end and v.end > region.addr]
        lo = all(v.locked for v in inside)
        series.states(f"{region.kind}, {'lo' if lo else 'not lo'}", _letters(seen))
        found.append(
            State(
                sum(1 for e in seen if e & pagemap.PRESENT),
                [e & pagemap.PFN_MASK if e & pagemap.PRESENT else 0 for e in seen],
                lo,
                sum(v.field_kb("Swap") for v in inside),
                sum(v.field_kb("Rss") for v in inside),
                migrated,
            )
        )
    return found


def _letters(entries: Sequence[int]) -> str:
    return "".join(
        "p" if e & pagemap.PRESENT else "s" if e & pagemap.SWAPPED else "a" for e in entries
    )


def draw(pid: int, controls: Sequence[Region]) -> None:
    """Keep the state of unlocked controls, page by page, for a report's picture."""
    for region in controls if series.recording else ():
        entries = pagemap.entries(region.addr, region.pages, pid)
        series.states(f"{region.kind}, control", _letters(entries))


def replaced(before: State, after: State) -> int:
    """Pages that have another frame than before, beyond what the kernel migrated meanwhile.

    Compaction may move a locked page (vm.compact_unevictable_allowed) without reclaiming it,
    and counts each in pgmigrate_success, on the whole machine.
    """
    changed = sum(1 for a, b in zip(before.pfns, after.pfns) if a != b)
    return max(0, changed - (after.migrated - before.migrated))


def standing(pid: int, region: Region) -> State:
    """:func:`states` of one range."""
    [found] = states(pid, [region])
    return found


def gone(region: Region, pid: int) -> int:
    """Pages that are not mapped to memory (any more)."""
    return region.pages - pagemap.present_count(region.addr, region.pages, pid)


_offspring: Child | None = None


def spawn() -> int:
    """In the child: fork a child of its own, which asks its parent through :func:`in_offspring`.

    Returns its process id.
    """
    global _offspring
    _offspring = Child()
    return _offspring.pid


def in_offspring(function: Callable[..., Any], *args: object) -> Any:
    """In the child: run a function in the child it has spawned."""
    assert _offspring is not None, "spawn() first"
    return _offspring.call(function, *args)
