# SPDX-License-Identifier: MIT
"""The counters of locked pages: each is moved by its cause, and brought back."""

import pytest

from helpers import syscalls
from helpers.memory import mapping
from helpers.observe import lru_batches
from helpers.processes import Child
from helpers.reclaim import cgroup, control_pairs, counter_rounds

PAGES = 512

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("kpageflags", "lock:512", "budget:512"),
    pytest.mark.source("unevictable-lru.rst", "proc_vmstat(5)"),
    pytest.mark.claim("W14", "W18"),
]


def about(value, least=PAGES * 3 // 4, most=PAGES * 5 // 4):
    return least <= value <= most


def lock_present(region):
    syscalls.mlock(region.addr, region.size)


def lock_by_faults(region):
    syscalls.mlock2(region.addr, region.size, syscalls.MLOCK_ONFAULT)
    region.touch()


def give_up(region):
    """Unlock, then drop the pages, so that the next touch faults them in again."""
    syscalls.munlock(region.addr, region.size)
    lru_batches.mlock_drain_local()
    syscalls.madvise(region.addr, region.size, syscalls.MADV_DONTNEED)


@pytest.mark.exclusive
@pytest.mark.parametrize("way", ["present", "faulted"])
@pytest.mark.usefixtures("one_cpu")
@pytest.mark.detects(
    "nr-mlock-stuck",
    "nr-unevictable-stuck",
    "meminfo-mlocked-stuck",
    "event-mlocked-stuck",
    "event-munlocked-stuck",
    "event-culled-stuck",
    "event-rescued-stuck",
)
def test_machine_counters_follow_lock_and_unlock(way):
    """nr_mlock, nr_unevictable, meminfo and the nodes grow by the pages locked, and fall again."""
    with mapping("private", PAGES) as region:
        region.touch()
        lru_batches.mlock_drain_local()
        if way == "present":
            levels, events = counter_rounds.alternate(
                lambda: syscalls.mlock(region.addr, region.size),
                lambda: syscalls.munlock(region.addr, region.size),
                PAGES,
            )
        else:
            syscalls.madvise(region.addr, region.size, syscalls.MADV_DONTNEED)
            levels, events = counter_rounds.alternate(
                lambda: lock_by_faults(region), lambda: give_up(region), PAGES
            )
        assert all(map(about, levels.values())), f"about {PAGES} pages each: {levels}"
        # An event that only locking causes, or only unlocking, shows the difference's sign.
        assert about(events["mlocked"]), f"mlocked counts locked pages: {events}"
        assert about(-events["munlocked"]), f"munlocked counts unlocked pages: {events}"
        assert about(events["culled"]), f"culled counts pages put on the list: {events}"
        assert about(-events["rescued"]), f"rescued counts pages taken off it: {events}"
        assert abs(events["cleared"]) < PAGES // 4, f"none was freed while mlocked: {events}"
        assert abs(events["stranded"]) < PAGES // 4, f"none was stranded: {events}"


@pytest.mark.exclusive
@pytest.mark.parametrize("way", ["munmap", "exit"])
@pytest.mark.usefixtures("one_cpu")
def test_machine_counters_fall_when_locked_memory_is_given_up(way):
    """Unmapping locked memory, and the death of its owner, take its pages off the counters."""
    held = []

    def take():
        child = Child()
        region = child.call(lock_new, PAGES)
        held.append((child, region))

    def give():
        child, region = held.pop()
        if way == "munmap":
            child.call(syscalls.munmap, region.addr, region.size)
            child.call(lru_batches.mlock_drain_local)
        else:
            child.kill()
        child.__exit__(None, None, None)

    levels, events = counter_rounds.alternate(take, give, PAGES)
    assert all(map(about, levels.values())), f"about {PAGES} pages each: {levels}"
    assert about(events["mlocked"]), f"mlocked counts locked pages: {events}"


def lock_new(pages):
    """In a child: new memory, locked and counted."""
    made = control_pairs.make_pairs(("private",), "mlock", pages)["private"].locked
    lru_batches.mlock_drain_local()
    return made


@pytest.mark.needs("cgroup")
@pytest.mark.source("cgroup-v1/memory.rst", "cgroup-v2.rst memory.stat")
@pytest.mark.parametrize("kind", ["private", "memfd-shared"])
@pytest.mark.usefixtures("one_cpu")
@pytest.mark.detects("memcg-unevictable-stuck")
def test_cgroups_own_counter_is_its_locked_pages(reclaim, kind):
    """memory.stat's unevictable is exactly the locked pages of the cgroup, and 0 without any."""
    slack = cgroup.stat_slack()
    with reclaim.cgroup() as group, Child() as child:
        group.add(child.pid)
        region = child.call(lock_new_of, kind, PAGES)
        # A drain by the child leaves its scratch page where it was: nowhere.
        locked = group.settled("unevictable", PAGES)
        child.call(syscalls.munlock, region.addr, region.size // 2)
        child.call(lru_batches.mlock_drain_local)
        half = group.settled("unevictable", PAGES // 2)
        child.call(syscalls.munlock, region.addr, region.size)
        child.call(lru_batches.mlock_drain_local)
        none = group.settled("unevictable", 0)
        expected = (PAGES, PAGES // 2, 0)
        off = [abs(a - b) for a, b in zip((locked, half, none), expected)]
        assert max(off) <= slack, f"unevictable is {(locked, half, none)} pages, not {expected}"


def lock_new_of(kind, pages):
    made = control_pairs.make_pairs((kind,), "mlock", pages)[kind].locked
    lru_batches.mlock_drain_local()
    return made
