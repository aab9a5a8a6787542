# SPDX-License-Identifier: MIT
"""Memory of every kind that a reading may be about, in units of its own page."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from helpers import syscalls
from helpers.memory import files, huge_pages, mappings, sysv_segment
from helpers.memory.kinds import MAPPING_KINDS
from helpers.memory.region import Region
from helpers.syscalls import PAGE


def _hugetlb_size() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("Hugepagesize:"):
            return int(line.split()[1]) * 1024
    return 512 * PAGE


@dataclass(frozen=True)
class MemoryKind:
    """A kind, and what readings may expect of it."""

    id: str
    needs: tuple[str, ...] = ()
    """Requirements of a case that uses it."""
    unit: int = PAGE
    """Bytes of a page of it: what is faulted in at once."""
    anonymous: bool = False
    """Its written pages are anonymous, and the process's own."""
    lock: str = "lo"
    """What a lock leaves in VmFlags: ``lo``, or nothing where the kernel does not mark it."""
    in_rss: bool = True
    """Its pages count in Rss (hugetlb has lines of its own)."""
    backing: str = "shmem"
    """Which of RssAnon, RssFile, RssShmem counts its pages: ``anon``, ``file``, ``shmem``."""


_BACKING = {"private": "anon", "file": "file"}
KINDS = {
    kind.id: kind
    for kind in (
        *(
            MemoryKind(
                name,
                ("disk-file",) if name.startswith("file") else (),
                anonymous=name.endswith("private"),
                backing="anon"
                if name.endswith("private")
                else "file"
                if name.startswith("file")
                else "shmem",
            )
            for name in MAPPING_KINDS
        ),
        MemoryKind("sysv", ("sysv-shm",)),
        MemoryKind("secret", ("secretmem",), backing="file"),
        MemoryKind("droppable", ("droppable",), anonymous=True, lock="", backing="anon"),
        MemoryKind("thp", ("thp",), huge_pages.HPAGE_PMD_SIZE, anonymous=True, backing="anon"),
        MemoryKind(
            "hugetlb", ("hugetlb",), _hugetlb_size(), lock="", in_rss=False, backing="hugetlb"
        ),
    )
}
"""Kind by its name."""


@contextmanager
def mapping_of(kind: MemoryKind, units: int) -> Iterator[Region]:
    """A fenced mapping of ``units`` of the kind's own pages, readable and writable, untouched.

    OSError as the kernel says.
    """
    size = units * kind.unit
    if kind.id in MAPPING_KINDS:
        with mappings.mapping(kind.id, units) as region:
            yield region
    elif kind.id == "thp":
        huge_pages.enable_thp()
        try:
            with huge_pages.thp_aligned_mapping(units) as region:
                yield region
        finally:
            huge_pages.keep_huge_pages()
    elif kind.id == "sysv":
        with sysv_segment.segment(units) as made:
            yield made.region
    else:
        how, fd = syscalls.MAP_PRIVATE | syscalls.MAP_ANONYMOUS, -1
        if kind.id == "secret":
            fd = files.secret(size)
            how = syscalls.MAP_SHARED
        elif kind.id == "droppable":
            how = syscalls.MAP_DROPPABLE | syscalls.MAP_ANONYMOUS
        else:
            how |= syscalls.MAP_HUGETLB
        base = mappings.reserve(size + 2 * kind.unit)
        addr = -(-(base + 1) // kind.unit) * kind.unit
        try:
            syscalls.mmap(addr, size, syscalls.PROT_RW, how | syscalls.MAP_FIXED, fd)
            with mappings.watched(addr, size, kind.id):
                yield Region(addr, size, kind.id, fd)
        finally:
            syscalls.munmap(base, size + 2 * kind.unit)
            if fd >= 0:
                os.close(fd)
