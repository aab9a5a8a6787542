# SPDX-License-Identifier: MIT
"""Unlocking evicts nothing; what is unlocked is from then on as reclaimable as anything."""

import pytest

from helpers import syscalls
from helpers.observe import lru_batches, page_flags, pagemap
from helpers.processes import Child, cpus
from helpers.reclaim import control_pairs, drivers, range_state
from helpers.syscalls import PAGE

SIZE = control_pairs.SIZE

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("cgroup", "lock:512", "budget:1024"),
    pytest.mark.source("munlock(2) DESCRIPTION", "unevictable-lru.rst"),
    pytest.mark.claim("W16", "W18"),
]

SWAPPED = [
    pytest.param(kind, marks=pytest.mark.needs("swap"))
    for kind in ("private", "shared", "read-only", "memfd-private", "memfd-shared")
]
DROPPED = [
    pytest.param(kind, marks=pytest.mark.needs("disk-file"))
    for kind in ("file-shared", "file-read-only")
]
COPIED = [pytest.param("file-private", marks=pytest.mark.needs("swap", "disk-file"))]


def munlock_all_ways(way, region):
    if way == "munlockall":
        syscalls.munlockall()
    else:
        syscalls.munlock(region.addr, region.size)


@pytest.mark.parametrize("way", ["munlock", "munlockall"])
@pytest.mark.parametrize("kind", SWAPPED + DROPPED + COPIED)
@pytest.mark.detects("munlocked-stays-protected")
def test_unlocking_evicts_nothing_and_the_next_pressure_takes_it(reclaim, kind, way):
    """After munlock every page is where it was; under the next pressure they go."""
    with reclaim.cgroup() as group, Child() as child:
        group.add(child.pid)
        pair = child.call(control_pairs.make_pairs, (kind,), "mlock", SIZE)[kind]
        drivers.reclaim_until_evicted(group.reclaim, child.pid, pair.control)
        before = range_state.range_state(child.pid, pair.locked)
        child.call(munlock_all_ways, way, pair.locked)
        after = range_state.range_state(child.pid, pair.locked)
        assert before.present == SIZE, "locked: all pages stayed"
        assert after.present == SIZE, "unlocked: all pages are still there"
        assert range_state.moved_frames(before, after) == 0, "in the frames they had"
        assert drivers.reclaim_evicts(group.reclaim, child.pid, pair.locked), (
            "reclaim takes them now"
        )


def lock_parts(route, region):
    """Lock all and unlock pages 1, 4 to 7, the second half and the last; or lock the others."""
    pages = region.pages
    # Many: 5.10 puts them on the active list, and does not look there for a few (the cgroup's
    # counters are out by 32 pages a CPU).
    free = [1, 4, 5, 6, 7, *range(pages // 2, pages - 2), pages - 1]
    if route == "lock all, unlock some":
        syscalls.mlock(region.addr, region.size)
        for page in free:
            syscalls.munlock(region.at(page), PAGE)
    else:
        for page in range(pages):
            if page not in free:
                syscalls.mlock(region.at(page), PAGE)
    return free


@pytest.mark.needs("swap", "kpageflags")
@pytest.mark.parametrize("route", ["lock all, unlock some", "lock some"], ids=["unlock", "lock"])
@pytest.mark.parametrize("kind", ["private", "shared", "memfd-shared"])
def test_of_a_partly_locked_range_exactly_the_unlocked_pages_go(reclaim, kind, route):
    """Reclaim takes the unlocked pages of a range, first, inner and last, and no other."""
    with reclaim.cgroup() as group, Child() as child:
        group.add(child.pid)
        child.call(cpus.pin_to_one_cpu)
        [pair] = child.call(control_pairs.make_pairs, (kind,), "mlock", 3 * SIZE).values()
        part = pair.control.sub(0, 2 * SIZE)
        control = pair.control.sub(2 * SIZE, SIZE)
        free = child.call(lock_parts, route, part)
        expected = [page not in free for page in range(part.pages)]
        child.call(lru_batches.mlock_drain_local)
        drivers.reclaim_until_evicted(group.reclaim, child.pid, control)
        present = []
        for _ in range(drivers.PASSES):
            present = pagemap.present(part.addr, part.pages, child.pid)
            if present == expected:
                break
            group.reclaim()
        kept = [page for page in range(part.pages) if page not in free]
        assert [present[page] for page in kept] == [True] * len(kept), "locked pages stay"
        # 5.10 leaves alone an active list too short to halve: a page may stay, evictable.
        seen = page_flags.snapshot(part.addr, part.pages, child.pid)
        marks = page_flags.MLOCKED | page_flags.UNEVICTABLE
        stuck = [page for page in free if present[page] and seen.flags[page] & marks]
        assert stuck == [], "no page that is not locked is held back"
        gone = sum(not present[page] for page in free)
        assert gone > len(free) * 3 // 4, "pages that are not locked go"
        rest = part.sub(0, part.pages)
        child.call(syscalls.munlock, rest.addr, rest.size)
        assert drivers.reclaim_evicts(group.reclaim, child.pid, part), "unlocked, the others go too"
