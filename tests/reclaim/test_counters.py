# SPDX-License-Identifier: MIT
"""The counters of locked pages: each is moved by its cause, and brought back."""

import itertools
import statistics
import time

import pytest

from helpers import syscalls
from helpers.machine import kernel_version, timeouts
from helpers.memory import mapping
from helpers.observe import lru_batches, mlock_counters
from helpers.processes import Child
from helpers.reclaim import control_pairs
from helpers.requirements.inconclusive import inconclusive

PAGES = 512
ROUNDS = 15
LEVELS = (
    "nr_mlock", "nr_unevictable", "meminfo Mlocked", "meminfo Unevictable", "node Mlocked",
    "node Unevictable",
)  # fmt: skip

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("kpageflags", "lock:512", "budget:512"),
    pytest.mark.source("unevictable-lru.rst", "proc_vmstat(5)"),
    pytest.mark.claim("W14", "W18"),
]


def alternate(take, give):
    """Median effect of ``take()`` on each counter, with what the neighbours do taken out.

    Each round compares the counter's way over ``take`` with its way over ``give``, which
    cancels what others add at a steady rate; the median leaves out the rounds they disturbed,
    and where they disturbed more than that, the case is inconclusive.
    A level moves by +N and -N, half the difference being N; an event by +N in one of them,
    so both halves are given for it.
    """
    seen = [mlock_counters.read()]
    for _ in range(ROUNDS):
        for act in (take, give):
            act()
            lru_batches.mlock_drain_local()
            seen.append(mlock_counters.read())
    ways = [{k: b[k] - a[k] for k in a} for a, b in itertools.pairwise(seen)]
    taking, giving = ways[0::2], ways[1::2]
    levels, events = {}, {}
    for name in seen[0]:
        differences = [t[name] - g[name] for t, g in zip(taking, giving)]
        low, difference, high = statistics.quantiles(differences, n=4)
        # A kernel that counts wrongly does so in every round; a neighbour's burst does not.
        if high - low > PAGES // 4:
            inconclusive(f"neighbours moved {name} by {high - low:.0f} pages between rounds")
        if name in mlock_counters.EVENTS:
            events[name] = difference
        else:
            levels[name] = difference / 2
    return levels, events


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
            levels, events = alternate(
                lambda: syscalls.mlock(region.addr, region.size),
                lambda: syscalls.munlock(region.addr, region.size),
            )
        else:
            syscalls.madvise(region.addr, region.size, syscalls.MADV_DONTNEED)
            levels, events = alternate(lambda: lock_by_faults(region), lambda: give_up(region))
        moved = {name: about(levels[name]) for name in LEVELS}
        assert moved == dict.fromkeys(LEVELS, True), f"about {PAGES} pages each: {levels}"
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

    levels, events = alternate(take, give)
    moved = {name: about(levels[name]) for name in LEVELS}
    assert moved == dict.fromkeys(LEVELS, True), f"about {PAGES} pages each: {levels}"
    assert about(events["mlocked"]), f"mlocked counts locked pages: {events}"


def lock_new(pages):
    """In a child: new memory, locked and counted."""
    made = control_pairs.make_pairs(("private",), "mlock", pages)["private"].locked
    lru_batches.mlock_drain_local()
    return made


def unevictable(group):
    return group.stat()["unevictable"] // syscalls.PAGE


@pytest.mark.needs("cgroup")
@pytest.mark.source("cgroup-v1/memory.rst", "cgroup-v2.rst memory.stat")
@pytest.mark.parametrize("kind", ["private", "memfd-shared"])
@pytest.mark.usefixtures("one_cpu")
@pytest.mark.detects("memcg-unevictable-stuck")
def test_cgroups_own_counter_is_its_locked_pages(reclaim, kind):
    """memory.stat's unevictable is exactly the locked pages of the cgroup, and 0 without any."""
    # Before 5.15 each CPU keeps up to 32 pages of a change to itself; since then the sum is
    # folded at once for a large change, and within two seconds for any.
    slack = 64 if kernel_version.version() < (5, 15, 0) else 0
    with reclaim.cgroup() as group, Child() as child:
        group.add(child.pid)
        region = child.call(lock_new_of, kind, PAGES)
        # A drain by the child leaves its scratch page where it was: nowhere.
        locked = settle(group, PAGES, slack)
        child.call(syscalls.munlock, region.addr, region.size // 2)
        child.call(lru_batches.mlock_drain_local)
        half = settle(group, PAGES // 2, slack)
        child.call(syscalls.munlock, region.addr, region.size)
        child.call(lru_batches.mlock_drain_local)
        none = settle(group, 0, slack)
        expected = (PAGES, PAGES // 2, 0)
        off = [abs(a - b) for a, b in zip((locked, half, none), expected)]
        assert max(off) <= slack, f"unevictable is {(locked, half, none)} pages, not {expected}"


def lock_new_of(kind, pages):
    made = control_pairs.make_pairs((kind,), "mlock", pages)[kind].locked
    lru_batches.mlock_drain_local()
    return made


def settle(group, expected, slack):
    """The counter once it is as expected, or after the kernel's own interval for folding it."""
    until = timeouts.until(3)
    while abs((now := unevictable(group)) - expected) > slack and time.monotonic() < until:
        time.sleep(0.05)
    return now
