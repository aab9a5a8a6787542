"""MAP_DROPPABLE: memory that the kernel may drop, whatever lock calls it was given."""

import os

import pytest

from helpers import libc, lru
from helpers.libc import PAGE
from helpers.memory import Region
from helpers.observe import account, maps, pagemap, presence, status
from helpers.pressure import drive
from helpers.process import Child
from helpers.report.verdicts import inconclusive

N = 16
HOW = libc.MAP_DROPPABLE | libc.MAP_ANONYMOUS

pytestmark = [
    pytest.mark.needs("droppable", "lock:32"),
    pytest.mark.source("mmap(2) MAP_DROPPABLE", "mm/mlock.c mlock_fixup"),
]


def droppable(pages=N):
    """A droppable mapping, for as long as this process lives."""
    return Region(libc.mmap(0, pages * PAGE, libc.PROT_RW, HOW), pages * PAGE, "droppable")


@pytest.mark.needs("kpageflags")
def test_lock_of_droppable_memory_populates_and_marks_nothing():
    """mlock of droppable memory succeeds and brings its pages in; none is mlocked or
    unevictable, nothing is lo or counted."""
    lru.pin()
    region = droppable()
    assert libc.outcome(libc.mlock, region.addr, region.size) == "ok", "mlock"
    assert presence.mapped(region) == "1" * N, "populated"
    region.touch()
    lru.drain()
    seen = pagemap.snapshot(region.addr, N)
    assert seen.having(pagemap.MLOCKED) == 0, "none is mlocked"
    assert seen.having(pagemap.UNEVICTABLE) == 0, "none is unevictable"
    assert account.of(region) == account.balanced("-" * N, 0), "nothing is counted"


def test_lock_across_droppable_memory_takes_what_is_around_it():
    """mlock and munlock over locked, droppable, locked memory act on both sides and pass over
    the middle."""
    base = libc.mmap(0, 12 * PAGE)
    libc.mmap(base + 4 * PAGE, 4 * PAGE, libc.PROT_RW, HOW | libc.MAP_FIXED)
    region = Region(base, 12 * PAGE)
    assert libc.outcome(libc.mlock, region.addr, region.size) == "ok", "mlock"
    assert account.pages(region) == "LLLL----LLLL", "both sides"
    assert status.vmlck_pages() == 8, "VmLck"
    assert presence.mapped(region) == "1" * 12, "all populated"
    libc.munlock(region.at(1), 10 * PAGE)
    assert account.pages(region) == "L----------L", "munlock across it"
    assert status.vmlck_pages() == 2, "VmLck"


def test_child_gets_droppable_memory_empty():
    """A child finds its parent's droppable memory wiped, and may lock it no more than it could."""
    region = droppable()
    region.write(0x66)
    with Child() as child:
        assert child.call(region.peek) == b"\0" * N, "wiped"
        child.call(libc.mlock, region.addr, region.size)
        plain = child.call(libc.mmap, 0, PAGE)
        child.call(libc.mlock, plain, PAGE)
        assert child.call(status.vmlck_pages) == 1, "VmLck of the child: the plain page alone"
        assert not maps.at(region.addr, child.pid).locked, "not lo"
    assert region.peek() == b"\x66" * N, "the parent's contents"


@pytest.mark.needs("lock-all")
@pytest.mark.parametrize("flags", [libc.MCL_CURRENT, libc.MCL_CURRENT | libc.MCL_ONFAULT])
def test_mlockall_passes_over_droppable_memory(flags):
    """mlockall(MCL_CURRENT) leaves droppable memory unlocked and uncounted, munlockall too."""
    with Child() as child:
        region = child.call(droppable)
        plain = child.call(libc.mmap, 0, PAGE)
        child.call(libc.mlockall, flags)
        assert maps.at(plain, child.pid).locked, "control: plain memory is lo"
        assert not maps.at(region.addr, child.pid).locked, "not lo"
        assert maps.locked_kb(child.pid) == status.vmlck_kb(child.pid), "VmLck: sum of lo"
        child.call(libc.munlockall)
        assert status.vmlck_kb(child.pid) == 0, "munlockall"


def hold(pages):
    """In the child: droppable memory, given to mlock, and locked plain memory."""
    loose = droppable(pages)
    loose.touch()
    libc.mlock(loose.addr, loose.size)
    firm = Region(libc.mmap(0, pages * PAGE), pages * PAGE)
    libc.write(firm.addr, os.urandom(firm.size))
    libc.mlock(firm.addr, firm.size)
    return loose, firm


@pytest.mark.needs("cgroup", "lock:128", "budget:128")
@pytest.mark.claim("W1")
def test_droppable_memory_is_dropped_under_pressure_in_spite_of_mlock(pressure):
    """Reclaim drops droppable memory that was given to mlock, without swap; the locked memory
    beside it stays."""
    pages = 128
    with pressure.cgroup() as group, Child() as child:
        group.add(child.pid)
        loose, firm = child.call(hold, pages)
        for _ in range(drive.PASSES):
            group.reclaim()
        gone = pages - pagemap.present_count(loose.addr, pages, child.pid)
        if gone <= pages // 2:
            inconclusive(f"reclaim dropped only {gone} of {pages} droppable pages")
        assert pagemap.swapped_count(loose.addr, pages, child.pid) == 0, "none of them to swap"
        assert pagemap.present_count(firm.addr, pages, child.pid) == pages, "the others stay"
        assert child.call(loose.peek).count(b"\0") >= gone, "read again they are zero"
