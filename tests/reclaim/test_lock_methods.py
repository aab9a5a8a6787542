# SPDX-License-Identifier: MIT
"""What is locked stays and what is not goes: every kind of memory, every way to lock it."""

import pytest

from helpers.processes import Child
from helpers.reclaim import control_pairs, drivers, range_state
from helpers.syscalls import PAGE_KB, sysv

SIZE = control_pairs.SIZE
SHM_LOCK = 11  # include/uapi/linux/shm.h
ANONYMOUS = control_pairs.SWAPPED_KINDS[:-1]

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("cgroup", "lock:1024", "budget:1024", "smaps-flags"),
    pytest.mark.source("mlock(2) DESCRIPTION", "unevictable-lru.rst"),
    pytest.mark.claim("W1", "W11"),
]

ROUTES = pytest.mark.parametrize(
    "route",
    [pytest.param(r, marks=pytest.mark.needs("lock-all")) if "MCL" in r else r
     for r in control_pairs.LOCK_METHODS],
)  # fmt: skip


def check_stays(reclaim, kinds, route):
    with reclaim.cgroup() as group, Child() as child:
        group.add(child.pid)
        pairs = child.call(control_pairs.make_pairs, kinds, route, SIZE)
        ranges = [p.locked for p in pairs.values()]
        before = dict(zip(kinds, range_state.range_states(child.pid, ranges)))
        readable = [k for k in kinds if k != "inaccessible"]
        contents = {k: child.call(range_state.checksum, pairs[k].locked) for k in readable}
        drivers.reclaim_until_evicted(
            group.reclaim, child.pid, *(p.control for p in pairs.values())
        )
        after = dict(zip(kinds, range_state.range_states(child.pid, ranges)))
        whole, none = dict.fromkeys(kinds, SIZE), dict.fromkeys(kinds, 0)
        locked = [k for k, s in after.items() if s.lo]
        assert locked == list(kinds), "the VMAs are lo"
        present = {k: s.present for k, s in before.items()}
        assert present == whole, "all pages were in memory once locked"
        present = {k: s.present for k, s in after.items()}
        assert present == whole, "every locked page is in memory after reclaim"
        swapped = {k: s.swap_kb for k, s in after.items()}
        assert swapped == none, "none of it is in swap"
        rss = {k: s.rss_kb // PAGE_KB for k, s in after.items()}
        assert rss == whole, "Rss is the whole range"
        moved = {k: range_state.moved_frames(before[k], after[k]) for k in kinds}
        assert moved == none, "each page is in the frame it had"
        now = {k: child.call(range_state.checksum, pairs[k].locked) for k in readable}
        assert now == contents, "contents are intact"


@pytest.mark.needs("swap")
@ROUTES
@pytest.mark.detects(
    "reclaim-takes-locked",
    "reclaim-takes-onfault",
    "reclaim-takes-locked-anonymous",
    "reclaim-takes-locked-shared",
)
def test_locked_memory_stays_while_its_unlocked_twins_are_swapped(reclaim, route):
    """Reclaim swaps out private, shared and memfd memory, and no page of it that is locked."""
    check_stays(reclaim, ANONYMOUS, route)


@pytest.mark.needs("swap", "disk-file")
@ROUTES
def test_locked_private_copies_of_file_pages_stay(reclaim, route):
    """Reclaim swaps out a private file mapping's own copies, and none that is locked."""
    check_stays(reclaim, ["file-private"], route)


@pytest.mark.needs("disk-file")
@ROUTES
@pytest.mark.detects("reclaim-takes-locked-files")
def test_locked_file_pages_stay_while_their_unlocked_twins_are_dropped(reclaim, route):
    """Reclaim drops mapped page cache, and no page of a file mapping that is locked."""
    check_stays(reclaim, list(control_pairs.DROPPED_KINDS), route)


def lock_segment(pages):
    """In the child: a segment locked when half of it was touched, and one never locked."""
    locked, number = control_pairs.segment(pages)
    control_pairs.fill(locked.sub(0, pages // 2))
    sysv.shmctl(number, SHM_LOCK, None)
    control_pairs.fill(locked.sub(pages // 2, pages // 2))
    control, _ = control_pairs.segment(pages)
    control_pairs.fill(control)
    return control_pairs.ControlPair(locked, control)


@pytest.mark.needs("swap")
@pytest.mark.source("shmctl(2) SHM_LOCK")
def test_locked_segment_stays_while_an_unlocked_one_is_swapped(reclaim):
    """SHM_LOCK keeps a SysV segment's pages in memory, those touched before it and after it."""
    with reclaim.cgroup() as group, Child() as child:
        group.add(child.pid)
        pair = child.call(lock_segment, SIZE)
        before = range_state.range_state(child.pid, pair.locked)
        drivers.reclaim_until_evicted(group.reclaim, child.pid, pair.control)
        after = range_state.range_state(child.pid, pair.locked)
        assert before.present == SIZE, "all pages were in memory once locked"
        assert not after.lo, "the VMA is not lo: the segment is locked, not the mapping"
        assert after.present == SIZE, "every page of the locked segment is in memory"
        assert after.swap_kb == 0, "none of it is in swap"
        assert range_state.moved_frames(before, after) == 0, "each page is in the frame it had"
