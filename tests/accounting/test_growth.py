# SPDX-License-Identifier: MIT
"""Memory that grows by itself: the stack by a touch, the heap by brk(2)."""

import pytest

from helpers import syscalls
from helpers.memory import Region, mapping
from helpers.memory.layouts import unmap_pages
from helpers.observe import lock_accounting, maps, pagemap
from helpers.observe.lock_accounting import expect
from helpers.processes import Child
from helpers.requirements.inconclusive import inconclusive
from helpers.syscalls import PAGE

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("lock:16", "smaps-flags"),
    pytest.mark.source("mlock(2) NOTES"),
]


@pytest.mark.parametrize(
    ("steps", "letter"), [((3,), "L"), ((1,), "L"), ((2, 5), "L"), ((4, 1), "F")], ids=str
)
@pytest.mark.detects("vmlck-stack-one-short")
def test_stack_growth_is_counted(steps, letter):
    """A touch below a locked MAP_GROWSDOWN mapping counts every page of the growth, of which
    only the touched one is populated."""
    down = (
        syscalls.MAP_PRIVATE | syscalls.MAP_ANONYMOUS | syscalls.MAP_FIXED | syscalls.MAP_GROWSDOWN
    )
    with mapping("private", 12, prot=syscalls.PROT_NONE) as region:
        syscalls.mmap(region.at(9), 3 * PAGE, syscalls.PROT_RW, down)
        unmap_pages(region, 1, 8)
        flags = syscalls.MLOCK_ONFAULT if letter == "F" else 0
        syscalls.mlock2(region.at(9), 3 * PAGE, flags)
        populated = 0 if letter == "F" else 3
        low = 9
        for step in steps:
            low -= step
            syscalls.memset(region.at(low), 1, 1)
            populated += 1
        expected = "-" * low + letter * (12 - low)
        assert lock_accounting.read(region) == expect(expected, resident=populated), (
            "VmLck grows by the growth, Locked by a page for each touch"
        )


@pytest.mark.own_process
@pytest.mark.needs("stack-growth")
def test_growth_of_main_stack_is_counted():
    """A touch below a locked page at the end of [stack] counts every page of the growth."""
    (stack,) = [v for v in maps.vmas() if v.name == "[stack]"]
    region = Region(stack.start - 6 * PAGE, 8 * PAGE)
    syscalls.mlock(stack.start, PAGE)
    assert lock_accounting.read(region) == expect("------L-", resident=1), (
        "the lowest page is locked"
    )
    syscalls.memset(region.at(2), 1, 1)
    assert lock_accounting.read(region) == expect("--LLLLL-", resident=2), (
        "four pages more count, one is populated"
    )


def test_growth_of_unlocked_stack_is_not_counted():
    """A touch below an unlocked MAP_GROWSDOWN mapping adds nothing to VmLck."""
    down = (
        syscalls.MAP_PRIVATE | syscalls.MAP_ANONYMOUS | syscalls.MAP_FIXED | syscalls.MAP_GROWSDOWN
    )
    with mapping("private", 12, prot=syscalls.PROT_NONE) as region:
        syscalls.mmap(region.at(9), 3 * PAGE, syscalls.PROT_RW, down)
        unmap_pages(region, 1, 8)
        syscalls.mlock(region.at(11), PAGE)
        syscalls.memset(region.at(5), 1, 1)
        assert pagemap.present(region.at(5), 1) == [True], "it grew"
        assert lock_accounting.read(region) == expect("-----------L", resident=1), (
            "the end that grew was not the locked one"
        )


def page_up(addr):
    return (addr + PAGE - 1) & -PAGE


def set_break(child, low, pages):
    """Move the child's break to ``pages`` pages above ``low``."""
    seen = child.call(syscalls.brk, low + pages * PAGE)
    assert seen == low + pages * PAGE, "brk moved the program break"


def heap(child):
    """The 8 pages above the child's heap, tried out: they can be had, unlocked, uncounted."""
    low = page_up(child.call(syscalls.brk, 0))
    if child.call(syscalls.brk, low + 8 * PAGE) != low + 8 * PAGE:
        inconclusive("the heap has no room to grow by 8 pages (RLIMIT_DATA, or a neighbour)")
    region = Region(low, 8 * PAGE)
    assert lock_accounting.read(region, child.pid) == expect("--------", 0), (
        "a heap that grows without MCL_FUTURE is not counted"
    )
    child.call(syscalls.brk, low)
    return region


@pytest.mark.needs("lock-all")
@pytest.mark.source("mlockall(2) MCL_FUTURE")
@pytest.mark.parametrize("onfault", [0, syscalls.MCL_ONFAULT], ids=["full", "onfault"])
@pytest.mark.detects("vmlck-brk-uncounted")
def test_heap_growth_under_future_is_counted(onfault):
    """Under MCL_FUTURE each page that brk adds to the heap is counted, in one step or in two,
    and each page that it takes back is not."""
    letter = "F" if onfault else "L"
    with Child() as child:
        region = heap(child)
        child.call(syscalls.mlockall, syscalls.MCL_FUTURE | onfault)
        base = lock_accounting.read(region, child.pid)
        assert base.pages == "--------", "nothing there yet"
        for pages in (5, 8, 3, 0):
            set_break(child, region.addr, pages)
            seen = lock_accounting.read(region, child.pid)
            assert seen.pages == letter * pages + "-" * (8 - pages), "the new heap is lo"
            # The child's interpreter may have grown too, but it stands still now.
            assert seen.vmlck == seen.lo, "VmLck counts exactly the lo pages"
            present = pagemap.present_count(region.addr, pages, child.pid) if pages else 0
            assert present == (0 if onfault else pages), "populated, unless locked on fault"


@pytest.mark.needs("lock-all")
@pytest.mark.detects("vmlck-brk-kept")
def test_growth_of_locked_heap_is_not_counted():
    """A heap locked by mlock grows by brk without lock: only MCL_FUTURE locks new pages."""
    with Child() as child:
        region = heap(child)
        set_break(child, region.addr, 4)
        child.call(syscalls.mlock, region.addr, 4 * PAGE)
        set_break(child, region.addr, 8)
        assert lock_accounting.read(region, child.pid) == expect("LLLL----", 4), "four pages count"
        set_break(child, region.addr, 2)
        assert lock_accounting.read(region, child.pid) == expect("LL------", 2), (
            "two pages are left"
        )
