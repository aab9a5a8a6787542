# SPDX-License-Identifier: MIT
"""Nodes of memory, and the calls that move pages between them (move_pages(2), mbind(2))."""

from __future__ import annotations

import ctypes
from pathlib import Path

from helpers.syscalls import call, constants
from helpers.syscalls.call import AddressRange
from helpers.syscalls.constants import PAGE

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
    words[node // constants.WORD_BITS] = 1 << node % constants.WORD_BITS
    return words


_BITS = 16 * constants.WORD_BITS


def page_nodes(region: AddressRange, pid: int = 0) -> list[int]:
    """Node of each page; a negative errno for one that is absent."""
    return _move(region, None, pid)


def move_pages(region: AddressRange, node: int, pid: int = 0) -> list[int]:
    """move_pages(2) to the node: status of each page, its node or a negative errno."""
    return _move(region, node, pid)


def _move(region: AddressRange, node: int | None, pid: int) -> list[int]:
    count = region.size // PAGE
    pages = (ctypes.c_void_p * count)(*range(region.addr, region.addr + region.size, PAGE))
    status = (ctypes.c_int * count)()
    targets = None if node is None else (ctypes.c_int * count)(*[node] * count)
    call.syscall("move_pages", pid, count, pages, targets, status, MOVE)
    return list(status)


def mbind(region: AddressRange, node: int, flags: int = MOVE | STRICT) -> None:
    """mbind(2) MPOL_BIND to the node, moving what is elsewhere. OSError as the kernel says."""
    call.syscall("mbind", region.addr, region.size, MPOL_BIND, mask(node), _BITS, flags)


def migrate_pages(pid: int, old: int, new: int) -> int:
    """migrate_pages(2), a process's pages from one node to another: how many stayed behind."""
    return call.syscall("migrate_pages", pid, _BITS, mask(old), mask(new))


_MPOL_PREFERRED = 1


def no_hinting_faults() -> None:
    """Keep NUMA balancing from making this process's pages inaccessible, for good."""
    # NUMA hinting faults count as minor faults; a task policy without
    # MPOL_F_NUMA_BALANCING keeps them off (vma_policy_mof() in mm/mempolicy.c).
    mask = (ctypes.c_ulong * 16)(1)
    call.outcome(call.syscall, "set_mempolicy", _MPOL_PREFERRED, mask, 16 * constants.WORD_BITS)
