# SPDX-License-Identifier: MIT
"""MAP_DROPPABLE: memory that the kernel may drop, whatever lock calls it was given."""

import os

import pytest

from helpers import syscalls
from helpers.memory import Region
from helpers.observe import (
    lock_accounting,
    lru_batches,
    maps,
    page_flags,
    pagemap,
    residency,
    status,
)
from helpers.processes import Child
from helpers.reclaim import drivers
from helpers.requirements.inconclusive import inconclusive
from helpers.syscalls import PAGE

N = 16
HOW = syscalls.MAP_DROPPABLE | syscalls.MAP_ANONYMOUS

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("droppable", "lock:32"),
    pytest.mark.source("mmap(2) MAP_DROPPABLE", "mm/mlock.c mlock_fixup"),
]


def droppable(pages=N):
    """A droppable mapping, for as long as this process lives."""
    return Region(syscalls.mmap(0, pages * PAGE, syscalls.PROT_RW, HOW), pages * PAGE, "droppable")


@pytest.mark.needs("kpageflags")
@pytest.mark.usefixtures("one_cpu")
def test_lock_of_droppable_memory_populates_and_marks_nothing():
    """mlock of droppable memory succeeds and brings its pages in; none is mlocked or
    unevictable, nothing is lo or counted."""
    region = droppable()
    assert syscalls.outcome(syscalls.mlock, region.addr, region.size) == "ok", "mlock"
    assert residency.mapped_bits(region) == "1" * N, "populated"
    region.touch()
    lru_batches.mlock_drain_local()
    seen = page_flags.snapshot(region.addr, N)
    assert seen.count_with(page_flags.MLOCKED) == 0, "none is mlocked"
    assert seen.count_with(page_flags.UNEVICTABLE) == 0, "none is unevictable"
    assert lock_accounting.read(region) == lock_accounting.expect("-" * N, 0), "nothing is counted"


@pytest.mark.own_process
def test_lock_across_droppable_memory_takes_what_is_around_it():
    """mlock and munlock over locked, droppable, locked memory act on both sides and pass over
    the middle."""
    base = syscalls.mmap(0, 12 * PAGE)
    syscalls.mmap(base + 4 * PAGE, 4 * PAGE, syscalls.PROT_RW, HOW | syscalls.MAP_FIXED)
    region = Region(base, 12 * PAGE)
    assert syscalls.outcome(syscalls.mlock, region.addr, region.size) == "ok", "mlock"
    assert lock_accounting.page_letters(region) == "LLLL----LLLL", "both sides"
    assert status.vmlck_pages() == 8, "VmLck"
    assert residency.mapped_bits(region) == "1" * 12, "all populated"
    syscalls.munlock(region.at(1), 10 * PAGE)
    assert lock_accounting.page_letters(region) == "L----------L", "munlock across it"
    assert status.vmlck_pages() == 2, "VmLck"


def test_child_gets_droppable_memory_empty():
    """A child finds its parent's droppable memory wiped, and may lock it no more than it could."""
    region = droppable()
    region.write(0x66)
    with Child() as child:
        assert child.call(region.first_bytes) == b"\0" * N, "wiped"
        child.call(syscalls.mlock, region.addr, region.size)
        plain = child.call(syscalls.mmap, 0, PAGE)
        child.call(syscalls.mlock, plain, PAGE)
        assert child.call(status.vmlck_pages) == 1, "VmLck of the child: the plain page alone"
        assert not maps.at(region.addr, child.pid).locked, "not lo"
    assert region.first_bytes() == b"\x66" * N, "the parent's contents"


@pytest.mark.needs("lock-all")
@pytest.mark.parametrize(
    "flags", [syscalls.MCL_CURRENT, syscalls.MCL_CURRENT | syscalls.MCL_ONFAULT]
)
def test_mlockall_passes_over_droppable_memory(flags):
    """mlockall(MCL_CURRENT) leaves droppable memory unlocked and uncounted, munlockall too."""
    with Child() as child:
        region = child.call(droppable)
        plain = child.call(syscalls.mmap, 0, PAGE)
        child.call(syscalls.mlockall, flags)
        assert maps.at(plain, child.pid).locked, "control: plain memory is lo"
        assert not maps.at(region.addr, child.pid).locked, "not lo"
        assert maps.locked_kb(child.pid) == status.vmlck_kb(child.pid), "VmLck: sum of lo"
        child.call(syscalls.munlockall)
        assert status.vmlck_kb(child.pid) == 0, "munlockall"


def hold(pages):
    """In the child: droppable memory, given to mlock, and locked plain memory."""
    loose = droppable(pages)
    loose.touch()
    syscalls.mlock(loose.addr, loose.size)
    firm = Region(syscalls.mmap(0, pages * PAGE), pages * PAGE)
    syscalls.store(firm.addr, os.urandom(firm.size))
    syscalls.mlock(firm.addr, firm.size)
    return loose, firm


@pytest.mark.needs("cgroup", "lock:128", "budget:128")
@pytest.mark.claim("W1")
def test_droppable_memory_is_dropped_under_pressure_in_spite_of_mlock(reclaim):
    """Reclaim drops droppable memory that was given to mlock, without swap; the locked memory
    beside it stays."""
    pages = 128
    with reclaim.cgroup() as group, Child() as child:
        group.add(child.pid)
        loose, firm = child.call(hold, pages)
        for _ in range(drivers.PASSES):
            group.reclaim()
        gone = pages - pagemap.present_count(loose.addr, pages, child.pid)
        if gone <= pages // 2:
            inconclusive(f"reclaim dropped only {gone} of {pages} droppable pages")
        assert pagemap.swapped_count(loose.addr, pages, child.pid) == 0, "none of them to swap"
        assert pagemap.present_count(firm.addr, pages, child.pid) == pages, "the others stay"
        assert child.call(loose.first_bytes).count(b"\0") >= gone, "read again they are zero"
