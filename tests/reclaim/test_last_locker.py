# SPDX-License-Identifier: MIT
"""A page that several have mapped and locked stays until the last of them lets go, then it goes."""

import itertools
import os

import pytest

from helpers import syscalls
from helpers.memory import Region, mapping, memfd
from helpers.observe import lru_batches, page_flags
from helpers.processes import Child
from helpers.reclaim import control_pairs, drivers, range_state

SIZE = 64
WAYS = ("munlock", "munmap", "exit", "SIGKILL", "exec")

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.usefixtures("one_cpu"),
    pytest.mark.needs("cgroup", "lock:64", "budget:256", "kpageflags"),
    pytest.mark.source("unevictable-lru.rst"),
    pytest.mark.claim("W13", "W15", "W18"),
]


def marks(region, pid):
    """In how many pages PG_mlocked is set, and PG_unevictable."""
    lru_batches.mlock_drain_local()
    seen = page_flags.snapshot(region.addr, region.pages, pid)
    return seen.count_with(page_flags.MLOCKED), seen.count_with(page_flags.UNEVICTABLE)


def let_go(child, region, way):
    if way == "munlock":
        child.call(syscalls.munlock, region.addr, region.size)
    elif way == "munmap":
        child.call(syscalls.munmap, region.addr, region.size)
    elif way == "exit":
        child.start(os._exit, 0)  # the later child holds the pipe of requests open
        child.wait()
    elif way == "SIGKILL":
        child.kill()
    else:
        child.exec("cat")
    if way in {"munlock", "munmap"}:
        child.call(lru_batches.mlock_drain_local)


def check_last_locker(reclaim, region, control, fill, first, last):
    """Two processes lock the region, a third only maps it; the two let go one after the other."""
    with reclaim.cgroup() as group, Child() as witness:
        group.add(witness.pid)
        for memory in (region, control):
            witness.call(fill, memory)
        with Child() as one, Child() as other:
            # Off the CPU's batch, so that each locker is counted.
            witness.call(lru_batches.mlock_drain_local)
            for child in (one, other):
                child.call(region.first_bytes)
                child.call(syscalls.mlock, region.addr, region.size)
                child.call(lru_batches.mlock_drain_local)
            assert marks(region, witness.pid) == (SIZE, SIZE), "both lock: mlocked, unevictable"
            let_go(one, region, first)
            assert marks(region, witness.pid) == (SIZE, SIZE), "one still locks: marks stay"
            drivers.reclaim_until_evicted(group.reclaim, witness.pid, control)
            assert range_state.absent_pages(region, witness.pid) == 0, (
                "one still locks: all pages stay"
            )
            let_go(other, region, last)
            assert marks(region, witness.pid) == (0, 0), "nobody locks: no page is marked"
            assert range_state.absent_pages(region, witness.pid) == 0, "unlocking evicts nothing"
            assert drivers.reclaim_evicts(group.reclaim, witness.pid, region), (
                "reclaim takes the pages"
            )


@pytest.mark.needs("swap")
@pytest.mark.parametrize(("first", "last"), list(itertools.product(WAYS, WAYS)))
def test_shared_page_stays_until_its_last_locker_lets_go(reclaim, first, last):
    """A page locked by two processes stays when one lets go, goes when both have, in any way."""
    with mapping("shared", SIZE) as region, mapping("shared", SIZE) as control:
        check_last_locker(reclaim, region, control, control_pairs.fill, first, last)


def read_in(region):
    """In the child: read the file page by page, without large folios, whose marks are shared."""
    syscalls.madvise(region.addr, region.size, syscalls.MADV_RANDOM)
    region.first_bytes()


@pytest.mark.own_process
@pytest.mark.needs("disk-file")
@pytest.mark.parametrize(("first", "last"), list(zip(WAYS, WAYS[1:] + WAYS[:1])))
def test_file_page_stays_until_its_last_locker_lets_go(reclaim, first, last):
    """A file page locked by two processes is dropped when both have let go, and not before."""
    files = [control_pairs.disk_file(SIZE) for _ in range(2)]
    with (
        mapping("file-shared", SIZE, fd=files[0]) as region,
        mapping("file-shared", SIZE, fd=files[1]) as control,
    ):
        check_last_locker(reclaim, region, control, read_in, first, last)


@pytest.mark.needs("swap")
@pytest.mark.parametrize("order", ["first", "second"])
@pytest.mark.parametrize("way", ["munlock", "munmap"])
@pytest.mark.usefixtures("one_cpu")
def test_other_mappings_of_the_same_process_count_too(reclaim, order, way):
    """A page locked through two mappings of one process stays until the lock of both is gone."""
    with reclaim.cgroup() as group, Child() as child:
        group.add(child.pid)
        witness, one, other, control = child.call(map_four, SIZE)
        child.call(lru_batches.mlock_drain_local)
        for region in (one, other):
            child.call(syscalls.mlock, region.addr, region.size)
        assert marks(witness, child.pid) == (SIZE, SIZE), "locked twice"
        if order == "second":
            one, other = other, one
        let_go(child, one, way)
        assert marks(witness, child.pid) == (SIZE, SIZE), "still locked by the other mapping"
        drivers.reclaim_until_evicted(group.reclaim, child.pid, control)
        assert range_state.absent_pages(witness, child.pid) == 0, (
            "all pages stay, in the unlocked mapping too"
        )
        let_go(child, other, way)
        assert marks(witness, child.pid) == (0, 0), "no lock, no mark"
        assert drivers.reclaim_evicts(group.reclaim, child.pid, witness), "reclaim takes the pages"


def map_four(pages):
    """In the child: three mappings of one memfd, each with all its pages, and a control."""
    found = []
    fd = memfd(pages * syscalls.PAGE)
    for _ in range(3):
        addr = syscalls.mmap(0, pages * syscalls.PAGE, syscalls.PROT_RW, syscalls.MAP_SHARED, fd)
        found.append(Region(addr, pages * syscalls.PAGE, "memfd-shared", fd))
    control_pairs.fill(found[0])
    for region in found[1:]:
        region.first_bytes()
    control = control_pairs.make_pairs(("memfd-shared",), "mlock", pages)["memfd-shared"].control
    return (*found, control)


@pytest.mark.needs("swap")
@pytest.mark.parametrize("locker", ["parent", "child"])
@pytest.mark.usefixtures("one_cpu")
def test_inherited_private_page_stays_through_one_lock(reclaim, locker):
    """Pages a parent and its child share since fork stay in both while only one locks them."""
    with (
        mapping("private", SIZE) as control,
        mapping("private", SIZE) as region,
        reclaim.cgroup() as group,
        Child() as parent,
    ):
        group.add(parent.pid)
        parent.call(control_pairs.fill, region)
        parent.call(control_pairs.fill, control)
        # Read-only: mlock then leaves the sharing alone, and does not copy.
        parent.call(syscalls.mprotect, region.addr, region.size, syscalls.PROT_READ)
        parent.call(lru_batches.mlock_drain_local)
        if locker == "parent":
            parent.call(syscalls.mlock, region.addr, region.size)
        pid = parent.call(control_pairs.fork_grandchild)
        if locker == "child":
            parent.call(control_pairs.call_in_grandchild, syscalls.mlock, region.addr, region.size)
        drivers.reclaim_until_evicted(group.reclaim, parent.pid, control)
        both = page_flags.snapshot_processes(region.addr, SIZE, parent.pid, pid)
        assert [sum(s.present) for s in both] == [SIZE, SIZE], "the pages stay, in both processes"
        assert both[0].pfns == both[1].pfns, "and are still the same pages"
        if locker == "parent":
            parent.call(syscalls.munlock, region.addr, region.size)
        else:
            parent.call(
                control_pairs.call_in_grandchild, syscalls.munlock, region.addr, region.size
            )
        assert drivers.reclaim_evicts(group.reclaim, parent.pid, region), "unlocked, they go"
        assert range_state.absent_pages(region, pid) > SIZE * 3 // 4, "from the child too"
