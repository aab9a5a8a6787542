# SPDX-License-Identifier: MIT
"""/proc/kpageflags and /proc/kpagecount: flags and mappings of each page frame."""

from __future__ import annotations

import os
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from operator import sub

from helpers.memory import Region
from helpers.observe import lru_batches
from helpers.observe.pagemap import (
    FILE_OR_SHARED,
    PFN_MASK,
    PRESENT,
    SWAPPED,
    _numbers,
    _pread,
    entries,
)
from helpers.syscalls import PAGE

# include/uapi/linux/kernel-page-flags.h; 32 and up from fs/proc/page.c (kernel hacking)
KPF = {
    "LOCKED": 0, "ERROR": 1, "REFERENCED": 2, "UPTODATE": 3, "DIRTY": 4, "LRU": 5, "ACTIVE": 6,
    "SLAB": 7, "WRITEBACK": 8, "RECLAIM": 9, "BUDDY": 10, "MMAP": 11, "ANON": 12, "SWAPCACHE": 13,
    "SWAPBACKED": 14, "COMPOUND_HEAD": 15, "COMPOUND_TAIL": 16, "HUGE": 17, "UNEVICTABLE": 18,
    "HWPOISON": 19, "NOPAGE": 20, "KSM": 21, "THP": 22, "OFFLINE": 23, "ZERO_PAGE": 24,
    "IDLE": 25, "PGTABLE": 26, "MLOCKED": 33,
}  # fmt: skip
MLOCKED = 1 << KPF["MLOCKED"]
UNEVICTABLE = 1 << KPF["UNEVICTABLE"]
LRU = 1 << KPF["LRU"]
ANON = 1 << KPF["ANON"]
KSM = 1 << KPF["KSM"]
THP = 1 << KPF["THP"]
HUGE = 1 << KPF["HUGE"]
HWPOISON = 1 << KPF["HWPOISON"]
ZERO_PAGE = 1 << KPF["ZERO_PAGE"]
COMPOUND = 1 << KPF["COMPOUND_HEAD"] | 1 << KPF["COMPOUND_TAIL"]

_BRIDGE = 16
"""Reading this many unwanted PFNs costs less than one more system call from Python."""
_ATTEMPTS = 20


def contiguous_pfns(numbers: list[int]) -> list[tuple[int, int, int, int]]:
    """Stretches of PFNs in page order: (first PFN, first index, length, step).

    The step is 1, 0 (absent pages, or one page mapped many times) or -1: the page allocator hands
    out first what was freed last, so new memory runs backwards as often as forwards.
    """
    if not numbers:
        return []
    steps = map(sub, numbers[1:], numbers)
    starts = [0, *(index for index, step in enumerate(steps, 1) if not -2 < step < 2)]
    found = []
    for start, end in zip(starts, [*starts[1:], len(numbers)]):
        first, length = numbers[start], end - start
        step = numbers[start + 1] - first if length > 1 else 1
        if numbers[end - 1] - first == step * (length - 1) and (step or length == 2):
            found.append((first, start, length, step))
        elif not step and numbers[start:end].count(first) == length:
            found.append((first, start, length, 0))
        else:  # a page is mapped twice among its neighbours
            found += [(numbers[index], index, 1, 1) for index in range(start, end)]
    return found


def read_ranges(
    parts: Sequence[tuple[int, int, int, int]], bridge: int = _BRIDGE
) -> list[tuple[int, int]]:
    """The PFN ranges (first, count) to read for these segments, in ascending order.

    Gaps of up to ``bridge`` pages are read over. PFN 0 stands for "absent" and is left out.
    """
    found: list[tuple[int, int]] = []
    first, end = -1, -bridge - 1
    for low, high in sorted(
        sorted((pfn, pfn + step * (length - 1))) for pfn, _, length, step in parts if pfn
    ):
        if low - end > bridge:
            if first >= 0:
                found.append((first, end - first))
            first = low
        end = max(end, high + 1)
    if first >= 0:
        found.append((first, end - first))
    return found


def _by_pfn(path: str, wanted: array[int]) -> array[int]:
    """Entries of a file indexed by PFN, in the order of ``wanted`` (0 for PFN 0).

    Works by segments, not by pages: a gigabyte of pages has far fewer of them, and all that
    is done for each page is done in C.
    """
    parts = contiguous_pfns(wanted.tolist())
    ranges = read_ranges(parts)
    starts = [first for first, _ in ranges]
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        # Short behind the last PFN, where there is nothing to tell.
        data = [
            os.pread(fd, count * 8, first * 8).ljust(count * 8, b"\0") for first, count in ranges
        ]
    finally:
        os.close(fd)
    found = array("Q")
    for pfn, _, length, step in parts:
        if not pfn:
            found.frombytes(bytes(length * 8))
            continue
        low = min(pfn, pfn + step * (length - 1))
        which = bisect_right(starts, low) - 1
        offset = (low - starts[which]) * 8
        size = (length if step else 1) * 8
        # Short behind the last PFN, where there is nothing to tell.
        piece = array("Q", data[which][offset : offset + size].ljust(size, b"\0"))
        found.extend(piece[::step] if step else piece * length)
    return found


def kpageflags(wanted: Sequence[int]) -> array[int]:
    """kpageflags of each PFN, in the order given (0 for PFN 0).

    OSError without CAP_SYS_ADMIN.
    """
    return _by_pfn("/proc/kpageflags", array("Q", wanted))


def kpagecount(wanted: Sequence[int]) -> array[int]:
    """kpagecount (mappings) of each PFN, in the order given (0 for PFN 0).

    OSError without CAP_SYS_ADMIN.
    """
    return _by_pfn("/proc/kpagecount", array("Q", wanted))


@dataclass(frozen=True)
class Snapshot:
    """Pages of a range at one moment: pagemap entries, PFNs (0: absent) and page flags.

    ``counts`` (kpagecount, mappings of each page) is filled by :func:`together` alone.
    """

    entries: Sequence[int]
    pfns: Sequence[int]
    flags: Sequence[int]
    counts: Sequence[int] = ()

    def count_with(self, mask: int) -> int:
        """How many pages carry every flag of ``mask``."""
        return sum(1 for f in self.flags if f & mask == mask)

    def bits(self, mask: int) -> list[bool]:
        """For each page: carries every flag of ``mask``."""
        return [f & mask == mask for f in self.flags]

    @property
    def mlocked(self) -> list[bool]:
        """For each page: PG_mlocked."""
        return self.bits(MLOCKED)

    @property
    def unevictable(self) -> list[bool]:
        """For each page: PG_unevictable."""
        return self.bits(UNEVICTABLE)

    @property
    def present(self) -> list[bool]:
        """For each page: mapped to memory."""
        return [e >= PRESENT for e in self.entries]


def snapshot(addr: int, pages: int, pid: int | str = "self") -> Snapshot:
    """PFNs and page flags of a range that did not move while they were read.

    Raises OSError without CAP_SYS_ADMIN, RuntimeError if pages moved under every attempt.
    """
    path = f"/proc/{pid}/pagemap"
    before = _pread(path, addr // PAGE, pages)
    for _ in range(_ATTEMPTS):
        numbers = _numbers(before)
        seen = kpageflags(numbers)
        after = _pread(path, addr // PAGE, pages)
        if after == before:
            return Snapshot(before, numbers, seen)
        before = after
    raise RuntimeError(f"pages at {addr:#x} moved during each of {_ATTEMPTS} readings")


def snapshot_processes(addr: int, pages: int, *pids: int | str) -> list[Snapshot]:
    """One range in several processes at one moment, with kpagecount: a snapshot for each pid.

    Every pagemap is read, then flags and counts, then every pagemap again, and only what
    stood still in all of them is taken: PFNs of the answer may be compared with each other.
    (PFNs of two answers may not: pages can be migrated in between.)

    Raises OSError without CAP_SYS_ADMIN, RuntimeError if pages moved under every attempt.
    """
    before = [entries(addr, pages, pid) for pid in pids]
    for _ in range(_ATTEMPTS):
        numbers = [_numbers(seen) for seen in before]
        joined = [n for row in numbers for n in row]
        seen_counts, seen_flags = kpagecount(joined), kpageflags(joined)
        after = [entries(addr, pages, pid) for pid in pids]
        # A page that is being migrated is mapped by one process and not yet by the other.
        if after == before and kpagecount(joined) == seen_counts:
            parts = [slice(i * pages, (i + 1) * pages) for i in range(len(pids))]
            return [
                Snapshot(words, row, seen_flags[part], seen_counts[part])
                for words, row, part in zip(before, numbers, parts)
            ]
        before = after
    raise RuntimeError(f"pages at {addr:#x} moved during each of {_ATTEMPTS} readings")


def flag_names(word: int) -> str:
    """The flags of a kpageflags word, by name."""
    return "|".join(n for n, bit in KPF.items() if word >> bit & 1) or "-"


def describe(addr: int, pages: int, pid: int | str = "self") -> list[str]:
    """A line for each page: address, pagemap bits, PFN, flags, mappings. For people."""
    lines = []
    for index, entry in enumerate(entries(addr, pages, pid)):
        pfn = entry & PFN_MASK if entry & PRESENT else 0
        state = "present" if entry & PRESENT else "swapped" if entry & SWAPPED else "absent"
        text = f"page {index} {addr + index * PAGE:#x} {state}"
        if entry & PRESENT:
            text += " file/shared" if entry & FILE_OR_SHARED else " anonymous"
        if pfn:
            try:
                (flags,), (mapped,) = kpageflags([pfn]), kpagecount([pfn])
                text += f" pfn {pfn:#x} {flag_names(flags)} mapped {mapped}x"
            except OSError as error:
                text += f" pfn {pfn:#x} (flags not readable: {error.strerror})"
        lines.append(text)
    return lines


def mlocked(region: Region, pid: int | str = "self") -> str:
    """PG_mlocked of each page of the region, ``"1"`` or ``"0"``, this CPU's batch drained first.

    OSError for whoever may not read page flags.
    """
    lru_batches.mlock_drain_local()
    return "".join("01"[is_set] for is_set in snapshot(region.addr, region.pages, pid).mlocked)
