"""Nodes of memory, and the calls that move pages between them (move_pages(2), mbind(2))."""

from __future__ import annotations

import ctypes
from pathlib import Path

from helpers import libc
from helpers.libc import PAGE
from helpers.memory import Region

MPOL_DEFAULT, MPOL_BIND = 0, 2
MOVE, MOVE_ALL, STRICT = 2, 4, 1


def nodes() -> list[int]:
    """Numbers of the nodes that have memory; ``[0]`` where the kernel knows of none."""
    try:
        text = Path("/sys/devices/system/node/has_memory").read_text().strip()
    except OSError:
        return [0]
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def mask(node: int) -> ctypes.Array[ctypes.c_ulong]:
    """A node mask with that one node."""
    words = (ctypes.c_ulong * 16)()
    words[node // libc.WORD_BITS] = 1 << node % libc.WORD_BITS
    return words


_BITS = 16 * libc.WORD_BITS


def where(region: Region, pid: int = 0) -> list[int]:
    """Node of each page; a negative errno for one that is absent."""
    return _move(region, None, pid)


def move(region: Region, node: int, pid: int = 0) -> list[int]:
    """move_pages(2) to the node: status of each page, its node or a negative errno."""
    return _move(region, node, pid)


def _move(region: Region, node: int | None, pid: int) -> list[int]:
    count = region.pages
    pages = (ctypes.c_void_p * count)(*range(region.addr, region.end, PAGE))
    status = (ctypes.c_int * count)()
    targets = None if node is None else (ctypes.c_int * count)(*[node] * count)
    libc.syscall("move_pages", pid, count, pages, targets, status, MOVE)
    return list(status)


def bind(region: Region, node: int, flags: int = MOVE | STRICT) -> None:
    """mbind(2) MPOL_BIND to the node, moving what is elsewhere. OSError as the kernel says."""
    libc.syscall("mbind", region.addr, region.size, MPOL_BIND, mask(node), _BITS, flags)


def migrate(pid: int, old: int, new: int) -> int:
    """migrate_pages(2), a process's pages from one node to another: how many stayed behind."""
    return libc.syscall("migrate_pages", pid, _BITS, mask(old), mask(new))
