# SPDX-License-Identifier: MIT
"""Ways to drive reclaim inside a cgroup until an unlocked control has gone.

A control that does not go ends the case as inconclusive: it has then shown nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from helpers import syscalls
from helpers.memory import Region
from helpers.observe import folios, lru_batches, timeline
from helpers.processes import Child
from helpers.reclaim import range_state
from helpers.reclaim.cgroup import Cgroup
from helpers.requirements.inconclusive import inconclusive
from helpers.syscalls import PAGE

PASSES = 8


def reclaim_until_evicted(drive: Callable[[], object], pid: int, *controls: Region) -> None:
    """Repeat ``drive()`` until most of each control is out of memory; else inconclusive."""
    left = list(controls)
    timeline.sample("before reclaim")
    for number in range(PASSES):
        drive()
        timeline.sample(f"pass {number + 1}")
        left = [c for c in left if range_state.absent_pages(c, pid) <= c.pages * 3 // 4]
        if not left:
            range_state.record_page_states(pid, controls)
            return
    text = ", ".join(
        f"{range_state.absent_pages(c, pid)} of {c.pages} {c.kind} pages" for c in left
    )
    inconclusive(f"reclaim took only {text} that were not locked")


def until_met(drive: Callable[[], object], pid: int, region: Region) -> None:
    """Repeat ``drive()`` until reclaim has met each large folio of the region: it is split, or
    marked, or holds swap slots; else inconclusive.

    The first pass may only clear the marks of use (folio_check_references() in mm/vmscan.c).
    """
    for _ in range(PASSES):
        lru_batches.mlock_drain_local()
        found = folios.of(region, pid)
        if all(f.size == 1 or f.swap_cached or f.marks != "-" for f in found if f.head):
            return
        drive()
    inconclusive(f"reclaim did not come to {folios.sizes(region, pid)} pages that lie in folios")


def reclaim_evicts(drive: Callable[[], object], pid: int, region: Region) -> bool:
    """Repeat ``drive()`` until most of the region is out of memory: whether it came to that."""
    for _ in range(PASSES):
        drive()
        if range_state.absent_pages(region, pid) > region.pages * 3 // 4:
            return True
    return False


@contextmanager
def hog(group: Cgroup, size: int) -> Iterator[Callable[[], None]]:
    """A child in the cgroup that writes ``size`` bytes of its own at each call.

    The hard limit is set to what is charged now and a little more, so that the writing can
    only go on at the expense of what is there. No limit afterwards.
    """
    with Child() as eater:
        group.add(eater.pid)
        addr = eater.call(syscalls.mmap, 0, size)
        eater.call(syscalls.memset, addr, 1, PAGE)
        group.limit(group.current() + max(1 << 20, 64 * PAGE))
        passes = iter(range(2, 256))

        def eat() -> None:
            group.stat()  # folds the counters by which reclaim decides: see Cgroup.reclaim
            eater.call(syscalls.memset, addr, next(passes), size)

        try:
            yield eat
        finally:
            group.limit(-1)


def drop_caches() -> None:
    """Drop clean, unmapped page cache of the whole machine (for ``--allow-sysctl``).

    The file is write-only, or keeps what was written to it last: there is nothing to restore.
    """
    Path("/proc/sys/vm/drop_caches").write_text("1")
