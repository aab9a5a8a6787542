"""A page that several have mapped and locked stays until the last of them lets go, then it goes."""

import itertools
import os

import pytest

from helpers import libc, lru
from helpers.memory import Region, mapping, memfd
from helpers.observe import pagemap
from helpers.pressure import drive, twins
from helpers.process import Child

SIZE = 64
WAYS = ("munlock", "munmap", "exit", "SIGKILL", "exec")

pytestmark = [
    pytest.mark.needs("cgroup", "lock:64", "budget:256", "kpageflags"),
    pytest.mark.source("unevictable-lru.rst"),
    pytest.mark.claim("W13", "W15", "W18"),
]


def marks(region, pid):
    """In how many pages PG_mlocked is set, and PG_unevictable."""
    lru.drain()
    seen = pagemap.snapshot(region.addr, region.pages, pid)
    return seen.having(pagemap.MLOCKED), seen.having(pagemap.UNEVICTABLE)


def let_go(child, region, way):
    if way == "munlock":
        child.call(libc.munlock, region.addr, region.size)
    elif way == "munmap":
        child.call(libc.munmap, region.addr, region.size)
    elif way == "exit":
        child.start(os._exit, 0)  # the later child holds the pipe of requests open
        child.wait()
    elif way == "SIGKILL":
        child.kill()
    else:
        child.become("cat")
    if way in {"munlock", "munmap"}:
        child.call(lru.drain)


def check_last_locker(pressure, region, control, fill, first, last):
    """Two processes lock the region, a third only maps it; the two let go one after the other."""
    lru.pin()
    with pressure.cgroup() as group, Child() as witness:
        group.add(witness.pid)
        for memory in (region, control):
            witness.call(fill, memory)
        with Child() as one, Child() as other:
            # Off the CPU's batch, so that each locker is counted.
            witness.call(lru.drain)
            for child in (one, other):
                child.call(region.peek)
                child.call(libc.mlock, region.addr, region.size)
                child.call(lru.drain)
            assert marks(region, witness.pid) == (SIZE, SIZE), "both lock: mlocked, unevictable"
            let_go(one, region, first)
            assert marks(region, witness.pid) == (SIZE, SIZE), "one still locks: marks stay"
            drive.until_gone(group.reclaim, witness.pid, control)
            assert twins.gone(region, witness.pid) == 0, "one still locks: all pages stay"
            let_go(other, region, last)
            assert marks(region, witness.pid) == (0, 0), "nobody locks: no page is marked"
            assert twins.gone(region, witness.pid) == 0, "unlocking evicts nothing"
            assert drive.taken(group.reclaim, witness.pid, region), "reclaim takes the pages"


@pytest.mark.needs("swap")
@pytest.mark.parametrize(("first", "last"), list(itertools.product(WAYS, WAYS)))
def test_shared_page_stays_until_its_last_locker_lets_go(pressure, first, last):
    """A page locked by two processes stays when one lets go, goes when both have, in any way."""
    with mapping("shared", SIZE) as region, mapping("shared", SIZE) as control:
        check_last_locker(pressure, region, control, twins.fill, first, last)


def read_in(region):
    """In the child: read the file page by page, without large folios, whose marks are shared."""
    libc.madvise(region.addr, region.size, libc.MADV_RANDOM)
    region.peek()


@pytest.mark.needs("disk-file")
@pytest.mark.parametrize(("first", "last"), list(zip(WAYS, WAYS[1:] + WAYS[:1])))
def test_file_page_stays_until_its_last_locker_lets_go(pressure, first, last):
    """A file page locked by two processes is dropped when both have let go, and not before."""
    files = [twins.disk_file(SIZE) for _ in range(2)]
    with (
        mapping("file-shared", SIZE, fd=files[0]) as region,
        mapping("file-shared", SIZE, fd=files[1]) as control,
    ):
        check_last_locker(pressure, region, control, read_in, first, last)


@pytest.mark.needs("swap")
@pytest.mark.parametrize("order", ["first", "second"])
@pytest.mark.parametrize("way", ["munlock", "munmap"])
def test_other_mappings_of_the_same_process_count_too(pressure, order, way):
    """A page locked through two mappings of one process stays until the lock of both is gone."""
    lru.pin()
    with pressure.cgroup() as group, Child() as child:
        group.add(child.pid)
        witness, one, other, control = child.call(map_four, SIZE)
        child.call(lru.drain)
        for region in (one, other):
            child.call(libc.mlock, region.addr, region.size)
        assert marks(witness, child.pid) == (SIZE, SIZE), "locked twice"
        if order == "second":
            one, other = other, one
        let_go(child, one, way)
        assert marks(witness, child.pid) == (SIZE, SIZE), "still locked by the other mapping"
        drive.until_gone(group.reclaim, child.pid, control)
        assert twins.gone(witness, child.pid) == 0, "all pages stay, in the unlocked mapping too"
        let_go(child, other, way)
        assert marks(witness, child.pid) == (0, 0), "no lock, no mark"
        assert drive.taken(group.reclaim, child.pid, witness), "reclaim takes the pages"


def map_four(pages):
    """In the child: three mappings of one memfd, each with all its pages, and a control."""
    found = []
    fd = memfd(pages * libc.PAGE)
    for _ in range(3):
        addr = libc.mmap(0, pages * libc.PAGE, libc.PROT_RW, libc.MAP_SHARED, fd)
        found.append(Region(addr, pages * libc.PAGE, "memfd-shared", fd))
    twins.fill(found[0])
    for region in found[1:]:
        region.peek()
    control = twins.make(("memfd-shared",), "mlock", pages)["memfd-shared"].control
    return (*found, control)


@pytest.mark.needs("swap")
@pytest.mark.parametrize("locker", ["parent", "child"])
def test_inherited_private_page_stays_through_one_lock(pressure, locker):
    """Pages a parent and its child share since fork stay in both while only one locks them."""
    lru.pin()
    with (
        mapping("private", SIZE) as control,
        mapping("private", SIZE) as region,
        pressure.cgroup() as group,
        Child() as parent,
    ):
        group.add(parent.pid)
        parent.call(twins.fill, region)
        parent.call(twins.fill, control)
        # Read-only: mlock then leaves the sharing alone, and does not copy.
        parent.call(libc.mprotect, region.addr, region.size, libc.PROT_READ)
        parent.call(lru.drain)
        if locker == "parent":
            parent.call(libc.mlock, region.addr, region.size)
        pid = parent.call(twins.spawn)
        if locker == "child":
            parent.call(twins.in_offspring, libc.mlock, region.addr, region.size)
        drive.until_gone(group.reclaim, parent.pid, control)
        both = pagemap.together(region.addr, SIZE, parent.pid, pid)
        assert [sum(s.present) for s in both] == [SIZE, SIZE], "the pages stay, in both processes"
        assert both[0].pfns == both[1].pfns, "and are still the same pages"
        if locker == "parent":
            parent.call(libc.munlock, region.addr, region.size)
        else:
            parent.call(twins.in_offspring, libc.munlock, region.addr, region.size)
        assert drive.taken(group.reclaim, parent.pid, region), "unlocked, they go"
        assert twins.gone(region, pid) > SIZE * 3 // 4, "from the child too"
