# SPDX-License-Identifier: MIT
"""Pages that reclaim itself puts on the unevictable list, before and after their locks end."""

from contextlib import ExitStack
from pathlib import Path

import pytest

from helpers import syscalls
from helpers.machine import kernel_version
from helpers.memory import mapping
from helpers.observe import lru_batches, page_flags
from helpers.processes import Child, cpus
from helpers.reclaim import control_pairs, drivers, range_state
from helpers.syscalls import SHM_LOCK, SHM_UNLOCK, sysv

WAITING = 7
"""Pages that fit into a CPU's batch."""
SIZE = control_pairs.SIZE
LRU_GEN = "/sys/kernel/mm/lru_gen/enabled"

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("cgroup", "swap", "kpageflags", "lock:128", "budget:512"),
    pytest.mark.source("unevictable-lru.rst VMSCAN'S HANDLING OF UNEVICTABLE PAGES"),
    pytest.mark.claim("W13", "W17", "W18"),
]
SETTING = [
    pytest.mark.needs("mglru", "allow-sysctl"),
    pytest.mark.source("multigen_lru.rst"),
    pytest.mark.exclusive,
]
LRU = pytest.mark.parametrize(
    "lru",
    [
        "as it is",
        pytest.param("n", marks=SETTING, id="classic"),
        pytest.param("y", marks=SETTING, id="multi-gen"),
    ],
)


def setting(reclaim, stack, lru):
    if lru != "as it is":
        stack.enter_context(reclaim.setting(LRU_GEN, lru))


def needs_counted_cull(lru, order):
    """Skip where the multi-gen LRU culls without a count, and the next lock counts on from it."""
    if not order.startswith("SHM_LOCK, reclaim, mlock") or kernel_version.version() >= (6, 12, 0):
        return
    enabled = Path(LRU_GEN)
    if lru == "y" or (lru == "as it is" and enabled.exists() and int(enabled.read_text(), 0) & 1):
        pytest.skip(
            "needs a kernel whose multi-gen LRU culls like the classic one: before 6.12 "
            "sort_folio() in mm/vmscan.c sets PG_unevictable and leaves mlock_count as it is"
        )


def marks(region, pid):
    """In how many pages PG_mlocked is set, and PG_unevictable, once no batch holds any."""
    cpus.mlock_drain_all()
    seen = page_flags.snapshot(region.addr, region.pages, pid)
    return seen.count_with(page_flags.MLOCKED), seen.count_with(page_flags.UNEVICTABLE)


def let_go(child, region, way):
    if way == "exit":
        child.exit()
    else:
        child.call(getattr(syscalls, way), region.addr, region.size)


@LRU
@pytest.mark.needs("two-cpus")
@pytest.mark.parametrize("kind", ["shared", "memfd-shared"])
@pytest.mark.parametrize("last", ["munlock", "munmap", "exit"])
@pytest.mark.detects("culled-stays-unevictable", "reclaim-takes-locked")
def test_page_whose_second_locker_was_not_counted(reclaim, kind, last, lru):
    """Pages locked by two while they wait in another CPU's batch stay when the first unlocks;
    reclaim marks them again, and once the second lets go none is marked and all can go."""
    with (
        ExitStack() as stack,
        mapping(kind, WAITING) as region,
        mapping(kind, SIZE) as control,
        reclaim.cgroup() as group,
        Child() as toucher,
        Child() as one,
        Child() as other,
    ):
        setting(reclaim, stack, lru)
        for child, cpu in ((toucher, 0), (one, 1), (other, 1)):
            group.add(child.pid)
            child.call(cpus.keep_to_cpu, cpu)
        toucher.call(control.write)
        toucher.call(lru_batches.mlock_drain_local)
        toucher.call(region.touch)
        for child in (one, other):
            child.call(region.first_bytes)
            child.call(syscalls.mlock, region.addr, region.size)
        cpus.mlock_drain_all()
        before = range_state.range_state(toucher.pid, region)
        one.call(syscalls.munlock, region.addr, region.size)
        # Whether the pages are marked now is not promised: they wait in no list's count.
        drivers.reclaim_until_evicted(group.reclaim, toucher.pid, control)
        after = range_state.range_state(toucher.pid, region)
        assert after.present == WAITING, "one still locks: every page is in memory"
        assert range_state.moved_frames(before, after) == 0, "in the frame it had"
        assert marks(region, toucher.pid) == (WAITING, WAITING), "mlocked, unevictable by now"
        let_go(other, region, last)
        assert marks(region, toucher.pid) == (0, 0), "nobody locks: no page is marked"

        def drive():
            # Seven active pages are too few to be aged: more that two processes use join them.
            toucher.call(control.write)
            one.call(control.first_bytes)
            group.reclaim()

        assert drivers.reclaim_evicts(drive, toucher.pid, region), "reclaim takes them"


ORDERS = (
    "SHM_LOCK, reclaim, mlock, SHM_UNLOCK, munlock",
    "SHM_LOCK, reclaim, mlock, munlock, SHM_UNLOCK",
    "SHM_LOCK, mlock, reclaim, SHM_UNLOCK, munlock",
    "SHM_LOCK, mlock, munlock, reclaim, SHM_UNLOCK",
    "mlock, SHM_LOCK, munlock, reclaim, SHM_UNLOCK",
    "mlock, reclaim, SHM_LOCK, munlock, reclaim, SHM_UNLOCK",
    "SHM_LOCK, reclaim, SHM_UNLOCK, mlock, reclaim, munlock",
)


def control_of(pages):
    """In the child: a segment that nothing locks."""
    region, _ = control_pairs.segment(pages)
    region.write()
    return region


@LRU
@pytest.mark.needs("sysv-shm")
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.source("shmctl(2) SHM_LOCK", "mm/shmem.c shmem_unlock_mapping")
@pytest.mark.detects("culled-stays-unevictable", "shm-lock-ignored")
def test_segment_culled_by_reclaim(reclaim, order, lru):
    """Pages of a locked segment that reclaim met are unevictable, and mlocked if they are locked
    too; when both locks have ended, in whatever order, none is and reclaim takes them all."""
    needs_counted_cull(lru, order)
    with ExitStack() as stack, reclaim.cgroup() as group, Child() as child:
        setting(reclaim, stack, lru)
        group.add(child.pid)
        region, number = child.call(control_pairs.segment, SIZE)
        child.call(region.write)
        cpus.mlock_drain_all()  # what waits in a batch comes to the list that it belongs to then
        mlocked = segment = culled = False
        for step in order.split(", "):
            if step in {"mlock", "munlock"}:
                child.call(getattr(syscalls, step), region.addr, region.size)
                mlocked = step == "mlock"
                culled = mlocked or (culled and segment)
            elif step == "reclaim":
                control = child.call(control_of, SIZE)
                drivers.reclaim_until_evicted(group.reclaim, child.pid, control)
                assert range_state.absent_pages(region, child.pid) == 0, "every page is in memory"
                culled = mlocked or segment
            else:
                segment = step == "SHM_LOCK"
                child.call(sysv.shmctl, number, SHM_LOCK if segment else SHM_UNLOCK, None)
                culled = mlocked or (culled and segment)
            want = SIZE * mlocked, SIZE * culled
            assert marks(region, child.pid) == want, f"mlocked, unevictable after {step}"
        assert drivers.reclaim_evicts(group.reclaim, child.pid, region), "reclaim takes them"
