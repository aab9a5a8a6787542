# SPDX-License-Identifier: MIT
"""PAGEMAPSCAN, the ioctl(2) of /proc/PID/pagemap: pages by category (6.7).

Source: Documentation/admin-guide/mm/pagemap.rst.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from array import array

from helpers.memory import Region
from helpers.syscalls import PAGE, ioctls

WPALLOWED, WRITTEN, FILE, PRESENT, SWAPPED, PFNZERO, HUGE, SOFT_DIRTY, GUARD = (
    1 << n for n in range(9)
)
SCAN = ioctls.request(ord("f"), 16, 96)


def scan(
    region: Region, *, any_of: int = 0, all_of: int = 0, told: int, pid: int | str = "self"
) -> list[tuple[int, int, int]]:
    """The ranges that match, as (first page, last page + 1, categories among ``told``).

    A page matches if it has ``all_of`` and at least one of ``any_of``. OSError ENOTTY on a
    kernel without it.
    """
    room = region.pages
    vector = array("Q", bytes(24 * room))
    where = ctypes.addressof((ctypes.c_char * (24 * room)).from_buffer(vector))
    words = (96, 0, region.addr, region.end, 0, where, room, 0, 0, all_of, any_of, told)
    fd = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        found = fcntl.ioctl(fd, SCAN, bytearray(struct.pack("=12Q", *words)))
    finally:
        os.close(fd)
    return [
        ((vector[i] - region.addr) // PAGE, (vector[i + 1] - region.addr) // PAGE, vector[i + 2])
        for i in range(0, 3 * found, 3)
    ]


def categories(region: Region, told: int, pid: int | str = "self") -> list[int]:
    """For each page: its categories among ``told``; 0 for one that is neither present nor
    swapped."""
    found = [0] * region.pages
    for first, last, seen in scan(region, any_of=PRESENT | SWAPPED, told=told, pid=pid):
        found[first:last] = [seen] * (last - first)
    return found
