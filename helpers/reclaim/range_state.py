# SPDX-License-Identifier: MIT
"""What became of a locked range and of its control."""

from __future__ import annotations

import ctypes
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from helpers.memory import Region
from helpers.observe import maps, pagemap, timeline, vmstat


def checksum(region: Region) -> int:
    """In the child: CRC of the region's bytes, read in place."""
    return zlib.crc32((ctypes.c_char * region.size).from_address(region.addr))


@dataclass(frozen=True)
class RangeState:
    """A range of another process: page by page and in its VMAs' own words."""

    present: int
    pfns: Sequence[int]
    lo: bool
    swap_kb: int
    rss_kb: int
    migrated: int


def range_states(pid: int, regions: Sequence[Region]) -> list[RangeState]:
    """What /proc says of each range. Raises OSError if the process is gone."""
    low, high = min(r.addr for r in regions), max(r.end for r in regions)
    vmas = maps.smaps(pid, low, high)
    migrated = vmstat.read().get("pgmigrate_success", 0)
    found = []
    for region in regions:
        seen = pagemap.entries(region.addr, region.pages, pid)
        inside = [v for v in vmas if v.start < region.end and v.end > region.addr]
        lo = all(v.locked for v in inside)
        timeline.page_states(f"{region.kind}, {'lo' if lo else 'not lo'}", _letters(seen))
        found.append(
            RangeState(
                sum(1 for e in seen if e & pagemap.PRESENT),
                [e & pagemap.PFN_MASK if e & pagemap.PRESENT else 0 for e in seen],
                lo,
                sum(v.field_kb("Swap") for v in inside),
                sum(v.field_kb("Rss") for v in inside),
                migrated,
            )
        )
    return found


def _letters(entries: Sequence[int]) -> str:
    return "".join(
        "p" if e & pagemap.PRESENT else "s" if e & pagemap.SWAPPED else "a" for e in entries
    )


def record_page_states(pid: int, controls: Sequence[Region]) -> None:
    """Keep the state of unlocked controls, page by page, for a report's picture."""
    for region in controls if timeline.enabled else ():
        entries = pagemap.entries(region.addr, region.pages, pid)
        timeline.page_states(f"{region.kind}, control", _letters(entries))


def moved_frames(before: RangeState, after: RangeState) -> int:
    """Pages that have another frame than before, beyond what the kernel migrated meanwhile.

    Compaction may move a locked page (vm.compact_unevictable_allowed) without reclaiming it,
    and counts each in pgmigrate_success, on the whole machine.
    """
    changed = sum(1 for a, b in zip(before.pfns, after.pfns) if a != b)
    return max(0, changed - (after.migrated - before.migrated))


def range_state(pid: int, region: Region) -> RangeState:
    """:func:`states` of one range."""
    [found] = range_states(pid, [region])
    return found


def absent_pages(region: Region, pid: int) -> int:
    """Pages that are not mapped to memory (any more)."""
    return region.pages - pagemap.present_count(region.addr, region.pages, pid)
