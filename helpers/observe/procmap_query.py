# SPDX-License-Identifier: MIT
"""PROCMAPQUERY, the ioctl(2) of /proc/PID/maps: one VMA at a time, without text (6.11).

Source: include/uapi/linux/fs.h.
"""

from __future__ import annotations

import fcntl
import os
import struct
from dataclasses import dataclass

from helpers.memory import Region
from helpers.syscalls import ioctls

_LAYOUT = "=9Q4I2Q"
QUERY = ioctls.request(ord("f"), 17, struct.calcsize(_LAYOUT))
_COVERING_OR_NEXT = 0x10


@dataclass(frozen=True)
class QueriedVma:
    """A VMA as the call describes it; sizes in bytes."""

    start: int
    end: int
    perms: str
    page_size: int
    offset: int
    inode: int
    device: str


def vmas(region: Region, pid: int | str = "self") -> list[QueriedVma]:
    """The VMAs that overlap the region, by asking for the next one until it lies behind.

    OSError ENOTTY on a kernel without it.
    """
    found: list[QueriedVma] = []
    addr = region.addr
    fd = os.open(f"/proc/{pid}/maps", os.O_RDONLY | os.O_CLOEXEC)
    try:
        while addr < region.end:
            query = bytearray(struct.calcsize(_LAYOUT))
            struct.pack_into("=3Q", query, 0, len(query), _COVERING_OR_NEXT, addr)
            try:
                fcntl.ioctl(fd, QUERY, query)
            except FileNotFoundError:
                break
            _, _, _, start, addr, flags, page, offset, inode, major, minor, *_ = struct.unpack(
                _LAYOUT, query
            )
            if start >= region.end:
                break
            perms = "".join(c if flags >> n & 1 else "-" for n, c in enumerate("rwx"))
            perms += "s" if flags & 8 else "p"
            device = f"{major:02x}:{minor:02x}"
            found.append(QueriedVma(start, addr, perms, page, offset, inode, device))
    finally:
        os.close(fd)
    return found
