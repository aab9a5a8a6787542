"""Transparent huge pages for a case: switched on again in its process, and ranges that get them.

The runner switches them off for every case (:func:`helpers.forked.calm`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from helpers import evidence, libc, memory, mounts
from helpers.libc import PAGE
from helpers.memory import Region
from helpers.observe import maps, rusage

_FOLDER = Path("/sys/kernel/mm/transparent_hugepage")


def _size() -> int:
    try:
        return int((_FOLDER / "hpage_pmd_size").read_text())
    except OSError:
        return 512 * PAGE


SIZE = _size()
"""Bytes mapped by one page middle directory entry; a guess where the kernel has no THP."""
PAGES = SIZE // PAGE


def allow() -> None:
    """Let this process have huge pages (prctl(2) PR_SET_THP_DISABLE).

    And keep NUMA balancing off: smaps passes over a huge page that it has made inaccessible
    (6.1, follow_trans_huge_pmd() in mm/huge_memory.c).
    """
    rusage.no_hinting_faults()
    libc.prctl(libc.PR_SET_THP_DISABLE, 0, 0, 0, 0)


@contextmanager
def aligned(
    count: int = 1, *, fd: int = -1, prot: int = libc.PROT_RW, advise: bool = True
) -> Iterator[Region]:
    """A fenced mapping of ``count`` huge pages' size and alignment, untouched.

    Private anonymous, or shared over ``fd``; advised MADV_HUGEPAGE unless told otherwise.
    OSError EINVAL where the kernel has no THP.
    """
    size = count * SIZE
    base = memory.reserve(size + 2 * SIZE)
    addr = (base + SIZE) & -SIZE
    try:
        how = libc.MAP_FIXED | (
            libc.MAP_SHARED if fd >= 0 else libc.MAP_PRIVATE | libc.MAP_ANONYMOUS
        )
        libc.mmap(addr, size, prot, how, fd)
        region = Region(addr, size, "huge", fd)
        if advise:
            libc.madvise(addr, size, libc.MADV_HUGEPAGE)
        with evidence.watching(addr, size, "huge"):
            yield region
    finally:
        libc.munmap(base, size + 2 * SIZE)


def small_sizes() -> dict[int, Path]:
    """Pages in a large folio smaller than a huge page → the setting that allows it (6.8)."""
    found = {}
    for folder in _FOLDER.glob("hugepages-*kB"):
        size = int(folder.name.removeprefix("hugepages-").removesuffix("kB")) * 1024
        if PAGE < size < SIZE and (folder / "enabled").exists():
            found[size // PAGE] = folder / "enabled"
    return found


def folio_pages() -> int:
    """The size in pages that cases use: 16, or what comes next below of which four are less
    than a huge page (4 at least, for they are quartered)."""
    fitting = [n for n in small_sizes() if 4 <= n <= 16 and 4 * n < PAGES]
    return max(fitting, default=4)


def mapped_kb(region: Region, pid: int | str = "self") -> int:
    """How much of the region is mapped by huge entries, in kB, by smaps (no right needed)."""
    names = ("AnonHugePages", "ShmemPmdMapped", "FilePmdMapped")
    return sum(v.field_kb(name) for v in maps.smaps(pid, region.addr, region.end) for name in names)


def is_huge(region: Region, pid: int | str = "self") -> bool:
    """All of the region is mapped by huge entries."""
    return mapped_kb(region, pid) == region.kb


_SPLIT = Path("/sys/kernel/debug/split_huge_pages")


def split(region: Region) -> None:
    """Have the kernel split this process's huge pages in the region (debugfs, since 5.13).

    Where debugfs is not mounted, this process mounts it for itself alone, for good. OSError
    where that is refused. That it worked is for :mod:`helpers.observe.folios` to tell.
    """
    if not _SPLIT.exists():
        mounts.alone()
        libc.mount("debugfs", str(_SPLIT.parent), "debugfs")
    fd = os.open(_SPLIT, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, f"{os.getpid()},{region.addr:#x},{region.end:#x}".encode())
    finally:
        os.close(fd)


def memfd() -> int:
    """Descriptor of a memfd of one huge page's size (its pages are small until collapsed)."""
    return memory.memfd(SIZE)
