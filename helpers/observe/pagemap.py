# SPDX-License-Identifier: MIT
"""/proc/PID/pagemap, /proc/kpageflags and /proc/kpagecount, read and judged in bulk.

Sources: Documentation/admin-guide/mm/pagemap.rst, include/uapi/linux/kernel-page-flags.h.
A PFN reads 0 without CAP_SYS_ADMIN. pagemap and kpageflags show one moment each: pages may
be migrated between two reads (compaction may move even mlocked pages), so :func:`snapshot`
reads pagemap again behind the flags and takes only what stood still.
"""

from __future__ import annotations

import os
import sys
from array import array

from helpers.syscalls import PAGE

PRESENT, SWAPPED, FILE_OR_SHARED = 1 << 63, 1 << 62, 1 << 61
EXCLUSIVE, SOFT_DIRTY, GUARD = 1 << 56, 1 << 55, 1 << 58
WRITE_PROTECTED = 1 << 57
PFN_MASK = (1 << 55) - 1


def _pread(path: str, first: int, count: int) -> array[int]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _entries(fd, first, count)
    finally:
        os.close(fd)


def _entries(fd: int, first: int, count: int) -> array[int]:
    data = array("Q")
    while count:
        got = os.pread(fd, count * 8, first * 8)
        if not got:
            break  # behind the last PFN or the end of the address space
        data.frombytes(got)
        first += len(got) // 8
        count -= len(got) // 8
    return data


def entries(addr: int, pages: int, pid: int | str = "self") -> array[int]:
    """pagemap entries of ``pages`` pages from ``addr``: 64-bit words, in page order.

    Raises OSError without access to the process's pagemap.
    """
    return _pread(f"/proc/{pid}/pagemap", addr // PAGE, pages)


def present(addr: int, pages: int, pid: int | str = "self") -> list[bool]:
    """For each page: mapped to memory (bit 63)."""
    return [e >= PRESENT for e in entries(addr, pages, pid)]


def present_count(addr: int, pages: int, pid: int | str = "self") -> int:
    """How many pages are mapped to memory."""
    return sum(present(addr, pages, pid))


def swapped_count(addr: int, pages: int, pid: int | str = "self") -> int:
    """How many pages are swap entries (bit 62; for shared memory see mincore)."""
    return sum(1 for e in entries(addr, pages, pid) if e & SWAPPED and not e & PRESENT)


def anonymous(addr: int, pages: int, pid: int | str = "self") -> list[bool]:
    """For each page: present and neither a file's nor shared anonymous (bit 61 clear)."""
    return [bool(e & PRESENT) and not e & FILE_OR_SHARED for e in entries(addr, pages, pid)]


def pfns(addr: int, pages: int, pid: int | str = "self") -> list[int]:
    """PFN of each page; 0 where absent, or hidden from a reader without CAP_SYS_ADMIN."""
    return _numbers(entries(addr, pages, pid)).tolist()


def _numbers(words: array[int]) -> array[int]:
    # All words at once, as lanes of 64 bits of one int: no product reaches the next lane.
    size = len(words) * 8
    joined = int.from_bytes(words.tobytes(), sys.byteorder)
    ones = int.from_bytes((1).to_bytes(8, sys.byteorder) * len(words), sys.byteorder)
    present = joined >> PRESENT.bit_length() - 1 & ones
    return array("Q", (joined & present * PFN_MASK).to_bytes(size, sys.byteorder))
