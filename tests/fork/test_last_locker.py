# SPDX-License-Identifier: MIT
"""A page locked by several stays PG_mlocked until the last of them lets go, in whatever order."""

from itertools import permutations

import pytest

from helpers import syscalls
from helpers.machine import kernel_version
from helpers.memory import Region, mapping
from helpers.observe import lru_batches, mincore, page_flags, pagemap, status
from helpers.processes import Child
from helpers.syscalls import PAGE

N = 4
pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs(f"lock:{N + 1}", "kpageflags"),
    pytest.mark.claim("W13", "W15", "W18"),
    pytest.mark.source("Documentation/mm/unevictable-lru.rst"),
]
EVERY, NONE = [True] * N, [False] * N
WAYS = ["munlock", "munlockall", "munmap", "MAP_FIXED", "exec", "exit", "SIGKILL"]


def mlocked(region: Region) -> list[bool]:
    lru_batches.mlock_drain_local()
    return page_flags.snapshot(region.addr, region.pages).mlocked


def let_go(child: Child, way: str, region: Region) -> None:
    if way == "munlockall":
        child.call(syscalls.munlockall)
    elif way == "MAP_FIXED":
        how = syscalls.MAP_PRIVATE | syscalls.MAP_ANONYMOUS | syscalls.MAP_FIXED
        child.call(syscalls.mmap, region.addr, region.size, syscalls.PROT_RW, how)
    elif way == "exec":
        child.exec("cat")
    elif way == "exit":
        child.exit()
    elif way == "SIGKILL":
        child.kill()
    else:
        child.call(getattr(syscalls, way), region.addr, region.size)


def lock_in(child: Child, region: Region) -> None:
    """The child maps the pages, so that its lock meets pages that are present, and locks them."""
    child.call(region.first_bytes)
    child.call(syscalls.mlock, region.addr, region.size)
    lru_batches.mlock_drain_local()


def start(region: Region) -> None:
    region.touch()
    lru_batches.mlock_drain_local()
    assert mlocked(region) == NONE, "nobody has locked yet"


@pytest.mark.parametrize("kind", ["shared", "memfd-shared"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.usefixtures("one_cpu")
@pytest.mark.detects("exit-keeps-mlocked")
def test_page_of_an_only_locker_is_released_whichever_way_it_goes(kind, way):
    """PG_mlocked is set when a child locks shared memory and clear once it lets go, by whatever
    way; the unlocked parent's pages stay resident."""
    with mapping(kind, N) as region:
        start(region)
        with Child() as child:
            lock_in(child, region)
            assert mlocked(region) == EVERY, "pages are PG_mlocked for the child's lock"
            assert status.vmlck_pages() == 0, "VmLck of the parent is 0"
            let_go(child, way, region)
            assert mlocked(region) == NONE, f"no page stays PG_mlocked after {way}"
            assert mincore.resident(region.addr, N) == EVERY, "pages stay resident"


# Each way first, in the middle and last.
ORDERS = [(WAYS[i], WAYS[(i + 2) % len(WAYS)], WAYS[(i + 3) % len(WAYS)]) for i in range(len(WAYS))]


@pytest.mark.parametrize("ways", ORDERS, ids="-".join)
@pytest.mark.usefixtures("one_cpu")
@pytest.mark.detects("exit-clears-others")
def test_page_of_three_lockers_is_released_by_the_last(ways):
    """A page that three processes locked stays PG_mlocked when the first and the second let go
    and is released by the third, each going its own way."""
    with mapping("memfd-shared", N) as region:
        start(region)
        with Child() as first, Child() as second, Child() as third:
            for child in (first, second, third):
                lock_in(child, region)
            let_go(first, ways[0], region)
            assert mlocked(region) == EVERY, f"two lockers left after {ways[0]}"
            let_go(second, ways[1], region)
            assert mlocked(region) == EVERY, f"one locker left after {ways[1]}"
            assert third.call(status.vmlck_pages) == N, "VmLck of the last locker"
            let_go(third, ways[2], region)
            assert mlocked(region) == NONE, f"no locker left after {ways[2]}"


@pytest.mark.parametrize("order", list(permutations(range(3))), ids=lambda o: "".join(map(str, o)))
@pytest.mark.usefixtures("one_cpu")
def test_order_of_unlocking_does_not_matter(order):
    """Parent and two children lock the same pages; in every order of munlock the pages stay
    PG_mlocked until the last."""
    with mapping("shared", N) as region:
        start(region)
        syscalls.mlock(region.addr, region.size)
        lru_batches.mlock_drain_local()
        with Child() as one, Child() as two:
            lock_in(one, region)
            lock_in(two, region)
            seen = []
            for who in order:
                if who == 2:
                    syscalls.munlock(region.addr, region.size)
                else:
                    (one, two)[who].call(syscalls.munlock, region.addr, region.size)
                seen.append(mlocked(region))
            assert seen == [EVERY, EVERY, NONE], "PG_mlocked after each of the three unlocks"


@pytest.mark.usefixtures("one_cpu")
def test_lockers_of_overlapping_parts_release_page_by_page():
    """With pages 0 to 2 locked by one child and 1 to 3 by another, each page is released when
    its own last locker goes."""
    with mapping("memfd-shared", N) as region:
        start(region)
        with Child() as one, Child() as two:
            lock_in(one, region.sub(0, 3))
            lock_in(two, region.sub(1, 3))
            assert mlocked(region) == EVERY, "each page has a locker"
            one.kill()
            assert mlocked(region) == [False, True, True, True], "page 0 had only the first"
            two.call(syscalls.munlock, region.at(1), PAGE)
            assert mlocked(region) == [False, False, True, True], "page 1 is unlocked"
            two.exit()
            assert mlocked(region) == NONE, "no locker left"


@pytest.mark.usefixtures("one_cpu")
def test_repeated_locks_of_one_process_count_once():
    """A process that locked three times, at once and on fault, is one locker: one munlock
    releases the page."""
    with mapping("memfd-shared", N) as region:
        start(region)
        with Child() as child:
            lock_in(child, region)
            child.call(syscalls.mlock2, region.addr, region.size, syscalls.MLOCK_ONFAULT)
            lock_in(child, region)
            child.call(syscalls.munlock, region.addr, region.size)
            assert mlocked(region) == NONE, "no page stays PG_mlocked"


@pytest.mark.parametrize("way", ["munlock", "munmap"])
@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.usefixtures("one_cpu")
@pytest.mark.detects("munlock-clears-others")
def test_two_mappings_of_one_process_are_two_lockers(way, first):
    """A page locked through two mappings of one process counts twice in VmLck and stays
    PG_mlocked until both are unlocked or unmapped, whichever first."""
    with mapping("memfd-shared", N) as region:
        start(region)
        with (
            mapping("memfd-shared", N // 2, fd=region.fd) as one,
            mapping("memfd-shared", N // 2, fd=region.fd) as two,
        ):
            for place in (one, two):
                place.first_bytes()
                syscalls.mlock(place.addr, place.size)
                lru_batches.mlock_drain_local()
            half = [True] * (N // 2) + [False] * (N - N // 2)
            assert status.vmlck_pages() == 2 * (N // 2), "VmLck counts each mapping"
            assert mlocked(region) == half, "the pages locked are PG_mlocked"
            places = (one, two) if first == 0 else (two, one)
            getattr(syscalls, way)(places[0].addr, places[0].size)
            assert status.vmlck_pages() == N // 2, "VmLck after the first"
            assert mlocked(region) == half, "PG_mlocked for the mapping left"
            getattr(syscalls, way)(places[1].addr, places[1].size)
            assert status.vmlck_pages() == 0, "VmLck after the second"
            assert mlocked(region) == NONE, "no page stays PG_mlocked"


@pytest.mark.usefixtures("one_cpu")
def test_lock_of_a_page_another_released_sets_the_flag_again():
    """Locked and released by one process, then locked by another: PG_mlocked each time."""
    with mapping("memfd-shared", N) as region:
        start(region)
        with Child() as one, Child() as two:
            seen = []
            for child in (one, two, one):
                lock_in(child, region)
                seen.append(mlocked(region))
                child.call(syscalls.munlock, region.addr, region.size)
                seen.append(mlocked(region))
            assert seen == [EVERY, NONE] * 3, "PG_mlocked after each lock and unlock"


@pytest.mark.usefixtures("one_cpu")
def test_pages_mapped_around_a_fault_are_locked():
    """A read of one page of a fault-locked file mapping may map its neighbours too: every page it
    mapped, and no other, is PG_mlocked from 5.18 on (before: when reclaim meets it)."""
    with mapping("memfd-shared", N) as file:
        start(file)
        with mapping("memfd-shared", N, prot=syscalls.PROT_READ, fd=file.fd) as region:
            syscalls.mlock2(region.addr, region.size, syscalls.MLOCK_ONFAULT)
            assert mlocked(file) == NONE, "nothing is mapped by the fault-lock itself"
            syscalls.load(region.at(1), 1)
            lru_batches.mlock_drain_local()
            present = pagemap.present(region.addr, N)
            assert present[1], "the page read is mapped"
            # cea86fe246b6 (5.18): mlock_vma_page() when a page is mapped, not in the fault path.
            if kernel_version.version() >= (5, 18, 0):
                assert mlocked(file) == present, "pages mapped are PG_mlocked, others not"
            syscalls.munlock(region.addr, region.size)
            assert mlocked(file) == NONE, "none stays PG_mlocked"
