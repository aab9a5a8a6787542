# SPDX-License-Identifier: MIT
"""Transparent huge pages for a case: switched on again in its process, and ranges that get them.

The runner switches them off for every case
(:func:`helpers.pytest_plugin.case_process.quiesce_process`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from helpers import syscalls
from helpers.memory import files, mappings
from helpers.memory.mappings import watched
from helpers.memory.region import Region
from helpers.syscalls import PAGE, numa

_FOLDER = Path("/sys/kernel/mm/transparent_hugepage")


def _size() -> int:
    try:
        return int((_FOLDER / "hpage_pmd_size").read_text())
    except OSError:
        return 512 * PAGE


HPAGE_PMD_SIZE = _size()
"""Bytes mapped by one page middle directory entry; a guess where the kernel has no THP."""
HPAGE_PMD_NR = HPAGE_PMD_SIZE // PAGE


def enable_thp() -> None:
    """Let this process have huge pages (prctl(2) PR_SET_THP_DISABLE).

    And keep NUMA balancing off: smaps passes over a huge page that it has made inaccessible
    (6.1, follow_trans_huge_pmd() in mm/huge_memory.c).
    """
    numa.no_hinting_faults()
    syscalls.prctl(syscalls.PR_SET_THP_DISABLE, 0, 0, 0, 0)


def keep_huge_pages() -> None:
    """Give this process no more huge pages; those that it has stay.

    And keep khugepaged away from it: every few seconds that collapses again what was split, fills
    a hole, or unmaps the small pages of a tmpfs file (collapse_pte_mapped_thp(),
    retract_page_tables() in mm/khugepaged.c), in locked memory too.
    """
    syscalls.prctl(syscalls.PR_SET_THP_DISABLE, 1, 0, 0, 0)


@contextmanager
def thp_aligned_mapping(
    count: int = 1, *, fd: int = -1, prot: int = syscalls.PROT_RW, advise: bool = True
) -> Iterator[Region]:
    """A fenced mapping of ``count`` huge pages' size and alignment, untouched.

    Private anonymous, or shared over ``fd``; advised MADV_HUGEPAGE unless told otherwise.
    OSError EINVAL where the kernel has no THP.
    """
    size = count * HPAGE_PMD_SIZE
    base = mappings.reserve(size + 2 * HPAGE_PMD_SIZE)
    addr = (base + HPAGE_PMD_SIZE) & -HPAGE_PMD_SIZE
    try:
        how = syscalls.MAP_FIXED | (
            syscalls.MAP_SHARED if fd >= 0 else syscalls.MAP_PRIVATE | syscalls.MAP_ANONYMOUS
        )
        syscalls.mmap(addr, size, prot, how, fd)
        region = Region(addr, size, "huge", fd)
        if advise:
            syscalls.madvise(addr, size, syscalls.MADV_HUGEPAGE)
        with watched(addr, size, "huge"):
            yield region
    finally:
        syscalls.munmap(base, size + 2 * HPAGE_PMD_SIZE)


def mthp_sizes() -> dict[int, Path]:
    """Pages in a large folio smaller than a huge page → the setting that allows it (6.8)."""
    found = {}
    for folder in _FOLDER.glob("hugepages-*kB"):
        size = int(folder.name.removeprefix("hugepages-").removesuffix("kB")) * 1024
        if PAGE < size < HPAGE_PMD_SIZE and (folder / "enabled").exists():
            found[size // PAGE] = folder / "enabled"
    return found


def default_mthp_pages() -> int:
    """The size in pages that cases use: 16, or what comes next below of which four are less
    than a huge page (4 at least, for they are quartered)."""
    fitting = [n for n in mthp_sizes() if 4 <= n <= 16 and 4 * n < HPAGE_PMD_NR]
    return max(fitting, default=4)


_SPLIT = Path("/sys/kernel/debug/split_huge_pages")


def split_huge_pages(region: Region) -> None:
    """Have the kernel split this process's huge pages in the region (debugfs, since 5.13).

    Where debugfs is not mounted, this process mounts it for itself alone, for good. OSError
    where that is refused. That it worked is for :mod:`helpers.observe.folios` to tell.
    """
    if not _SPLIT.exists():
        syscalls.unshare_mounts()
        syscalls.mount("debugfs", str(_SPLIT.parent), "debugfs")
    fd = os.open(_SPLIT, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, f"{os.getpid()},{region.addr:#x},{region.end:#x}".encode())
    finally:
        os.close(fd)


def huge_memfd() -> int:
    """Descriptor of a memfd of one huge page's size (its pages are small until collapsed)."""
    return files.memfd(HPAGE_PMD_SIZE)
