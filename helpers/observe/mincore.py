# SPDX-License-Identifier: MIT
"""mincore(2): residency of a range, one byte a page, bit 0.

For a file it reports the page cache, not the mapping, and since 5.2 only to who may write
the file (commit 134fca9063ad); otherwise every page reads resident. Swap-cache pages of
anonymous memory count as resident.
"""

from __future__ import annotations

import ctypes

from helpers import syscalls


def resident(addr: int, pages: int) -> list[bool]:
    """For each page from ``addr``: resident. OSError as mincore(2) has it."""
    vec = (ctypes.c_ubyte * pages)()
    syscalls.mincore(addr, pages * syscalls.PAGE, vec)
    return [bool(byte & 1) for byte in vec]


def resident_count(addr: int, pages: int) -> int:
    """How many pages are resident."""
    return sum(resident(addr, pages))
