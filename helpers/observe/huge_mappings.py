# SPDX-License-Identifier: MIT
"""Huge pages mapped by a process, as smaps counts them."""

from __future__ import annotations

from helpers.memory import Region
from helpers.observe import maps


def mapped_kb(region: Region, pid: int | str = "self") -> int:
    """How much of the region is mapped by huge entries, in kB, by smaps (no right needed)."""
    names = ("AnonHugePages", "ShmemPmdMapped", "FilePmdMapped")
    return sum(v.field_kb(name) for v in maps.smaps(pid, region.addr, region.end) for name in names)


def is_huge(region: Region, pid: int | str = "self") -> bool:
    """All of the region is mapped by huge entries."""
    return mapped_kb(region, pid) == region.kb
