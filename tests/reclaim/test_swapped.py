# SPDX-License-Identifier: MIT
"""Locking what is in swap already."""

import pytest

from helpers import syscalls
from helpers.observe import maps, page_faults, page_flags, status
from helpers.processes import Child
from helpers.reclaim import control_pairs, drivers, range_state
from helpers.syscalls import PAGE_KB

SIZE = control_pairs.SIZE
PRIVATE = ("private", "read-only", "memfd-private")
SHARED = ("shared", "memfd-shared")

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("cgroup", "swap", "lock:512", "budget:512", "smaps-flags"),
    pytest.mark.source("mlock(2) DESCRIPTION"),
    pytest.mark.claim("W17"),
]


def faults_of(name, *args):
    """In the child: faults of one lock call (what the interpreter adds is minor)."""
    return page_faults.faults_during(getattr(syscalls, name), *args)


def swapped(region, pid):
    return sum(v.field_kb("Swap") for v in maps.smaps(pid, region.addr, region.end)) // PAGE_KB


@pytest.mark.parametrize(
    "route",
    ["mlock", "mlock2", pytest.param("mlockall", marks=pytest.mark.needs("lock-all"))],
)
@pytest.mark.parametrize("kind", PRIVATE + SHARED)
@pytest.mark.detects("mlock-swapped-stays-out")
def test_lock_brings_swapped_pages_back(reclaim, kind, route):
    """Locking swapped-out memory reads it all back, by major faults, and leaves swap."""
    with reclaim.cgroup() as group, Child() as child:
        group.add(child.pid)
        [pair] = child.call(control_pairs.make_pairs, (kind,), "mlock", SIZE).values()
        region = pair.control
        contents = child.call(range_state.checksum, region)
        drivers.reclaim_until_evicted(group.reclaim, child.pid, region)
        absent = range_state.absent_pages(region, child.pid)
        out = swapped(region, child.pid)
        vm_before = child.call(status.kb, "VmSwap")
        if route == "mlockall":
            faults = child.call(faults_of, "mlockall", syscalls.MCL_CURRENT)
        elif route == "mlock2":
            faults = child.call(faults_of, "mlock2", region.addr, region.size, 0)
        else:
            faults = child.call(faults_of, "mlock", region.addr, region.size)
        vm_after = child.call(status.kb, "VmSwap")
        assert out >= absent, "the control: its pages were in swap"
        assert range_state.absent_pages(region, child.pid) == 0, "every page is in memory"
        assert swapped(region, child.pid) == 0, "none is in swap"
        if kind in PRIVATE:
            # VmSwap knows nothing of shared memory.
            assert vm_before - vm_after >= out * PAGE_KB, "VmSwap fell by what came back"
        assert faults.major > 0, "pages were read from the swap area"
        assert faults.major + faults.minor >= absent, "each page took a fault"
        assert child.call(range_state.checksum, region) == contents, "contents are intact"


@pytest.mark.needs("kpageflags")
@pytest.mark.parametrize("kind", PRIVATE + SHARED)
def test_locked_again_swapped_pages_give_their_slots_back_and_are_marked(reclaim, kind):
    """Pages locked out of swap hold no slot; once reclaim met them all are mlocked."""
    with reclaim.cgroup() as group, Child() as child:
        group.add(child.pid)
        [pair] = child.call(control_pairs.make_pairs, (kind,), "mlock", SIZE).values()
        region = pair.control
        drivers.reclaim_until_evicted(group.reclaim, child.pid, region)
        child.call(syscalls.mlock, region.addr, region.size)
        control = child.call(control_pairs.make_pairs, (kind,), "mlock", SIZE)[kind].control
        drivers.reclaim_until_evicted(group.reclaim, child.pid, control)
        now = page_flags.snapshot(region.addr, SIZE, child.pid)
        assert sum(now.present) == SIZE, "every page is in memory"
        assert now.count_with(1 << page_flags.KPF["SWAPCACHE"]) == 0, "no page holds a swap slot"
        # Since 5.18 a page that is still in the swap cache is not marked as it is mapped.
        assert now.count_with(page_flags.MLOCKED) == SIZE, "all are mlocked by now"


@pytest.mark.parametrize("kind", PRIVATE)
def test_onfault_lock_leaves_swapped_pages_until_they_are_touched(reclaim, kind):
    """MLOCK_ONFAULT over swapped pages reads none; those touched later stay; mlock reads all."""
    with reclaim.cgroup() as group, Child() as child:
        group.add(child.pid)
        [pair] = child.call(control_pairs.make_pairs, (kind,), "mlock", SIZE).values()
        region = pair.control
        drivers.reclaim_until_evicted(group.reclaim, child.pid, region)
        out = swapped(region, child.pid)
        child.call(syscalls.mlock2, region.addr, region.size, syscalls.MLOCK_ONFAULT)
        assert swapped(region, child.pid) == out, "nothing came back by locking"
        touched = region.sub(SIZE // 2, 8)
        child.call(touched.first_bytes)
        control = child.call(control_pairs.make_pairs, (kind,), "mlock", SIZE)[kind].control
        drivers.reclaim_until_evicted(group.reclaim, child.pid, control)
        assert range_state.absent_pages(touched, child.pid) == 0, (
            "what was touched is in memory and stays"
        )
        assert child.call(status.vmlck_pages) == 3 * SIZE, "VmLck counts the whole range"
        child.call(syscalls.mlock, region.addr, region.size)
        assert range_state.absent_pages(region, child.pid) == 0, "a full lock brings the rest back"
        assert swapped(region, child.pid) == 0, "out of swap"
