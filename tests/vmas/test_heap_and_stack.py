# SPDX-License-Identifier: MIT
"""[heap] and [stack], and every other VMA that a process finds itself with."""

import pytest

from helpers import processes, syscalls
from helpers.memory import Region
from helpers.observe import maps, status
from helpers.processes.stub import StubProcess
from helpers.syscalls import MCL_FUTURE, MCL_ONFAULT, PAGE

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("lock:8", "smaps-flags"),
    pytest.mark.source("mlock(2)", "brk(2)", "fs/proc/task_mmu.c show_map_vma"),
]

MARK = {"mlock": "lo", "onfault": "lo lf", "munlock": ""}
by_way = pytest.mark.parametrize("way", ["mlock", "onfault"])


def act(region, way, call=syscalls.syscall):
    if way == "mlock":
        call("mlock", region.addr, region.size)
    elif way == "onfault":
        call("mlock2", region.addr, region.size, syscalls.MLOCK_ONFAULT)
    else:
        call("munlock", region.addr, region.size)


def layout(region, pid="self"):
    return maps.layout(region, pid)


def names(region, pid):
    return {v.name for v in maps.vmas(pid, region.addr, region.end)}


def grow_heap(bare, pages):
    """Whole new pages at the end of the heap. An interpreter's is moved by its malloc."""
    start = -(-bare.call("brk", 0) // PAGE) * PAGE
    end = bare.call("brk", start + pages * PAGE)
    assert end == start + pages * PAGE, "control: the heap grew"
    return Region(start, pages * PAGE)


def lock_parts_of_heap(way):
    with StubProcess() as bare:
        heap = grow_heap(bare, 8)
        for page in range(8):
            bare.store(heap.at(page))
        shapes, labels = [], set()
        for first, end, what in (
            (2, 5, way),
            (5, 8, way),
            (3, 4, "munlock"),
            (0, 8, way),
            (0, 8, "munlock"),
        ):
            act(heap.sub(first, end - first), what, bare.call)
            shapes.append(layout(heap, bare.pid))
            labels |= names(heap, bare.pid)
        return shapes, labels


@pytest.mark.needs("stub-process")
@by_way
def test_heap_splits_and_merges_by_its_locks(way):
    """Locks of parts of the heap split its VMA as they do any other, each piece is named
    [heap], and with all of it unlocked the heap is one VMA again."""
    shapes, labels = lock_parts_of_heap(way)
    mark = MARK[way]
    assert shapes == [
        [(0, 2, ""), (2, 5, mark), (5, 8, "")],
        [(0, 2, ""), (2, 8, mark)],
        [(0, 2, ""), (2, 3, mark), (3, 4, ""), (4, 8, mark)],
        [(0, 8, mark)],
        [(0, 8, "")],
    ], "the heap after each step"
    assert labels == {"[heap]"}, "name of every piece"


def grow_behind_lock(way, flags):
    with StubProcess() as bare:
        heap = grow_heap(bare, 4)
        for page in range(4):
            bare.store(heap.at(page))
        act(heap.sub(2, 2), way, bare.call)
        if flags:
            bare.call("mlockall", flags)
        more = grow_heap(bare, 4)
        whole = Region(heap.addr, more.end - heap.addr)
        return layout(whole, bare.pid), names(whole, bare.pid), heap.end == more.addr


@pytest.mark.needs("stub-process")
@by_way
@pytest.mark.detects("vmflags-heap-lo-missing")
def test_heap_grown_behind_a_lock_is_not_locked(way):
    """brk that extends a heap whose end is locked adds an unlocked VMA behind it."""
    shape, labels, adjoins = grow_behind_lock(way, 0)
    assert adjoins is True, "the heap grew at its end"
    assert shape == [(0, 2, ""), (2, 4, MARK[way]), (4, 8, "")], "the growth is not locked"
    assert labels == {"[heap]"}, "name of every piece"


@pytest.mark.needs("lock-all", "stub-process")
@pytest.mark.parametrize(
    ("way", "flags"),
    [("mlock", MCL_FUTURE), ("onfault", MCL_FUTURE | MCL_ONFAULT)],
    ids=["full", "onfault"],
)
@pytest.mark.detects("future-skips-heap")
def test_heap_grown_under_future_extends_the_locked_end(way, flags):
    """Under MCL_FUTURE brk adds locked memory, which becomes one VMA with a locked end of the
    heap; what of the heap was unlocked stays so."""
    shape, labels, adjoins = grow_behind_lock(way, flags)
    assert adjoins is True, "the heap grew at its end"
    assert shape == [(0, 2, ""), (2, 8, MARK[way])], "one locked VMA"
    assert labels == {"[heap]"}, "name of every piece"


def stack():
    (vma,) = [v for v in maps.vmas() if v.name == "[stack]"]
    return vma


GROWN = 6


def lock_parts_of_stack(way):
    """Layouts and names of the lowest pages of the stack through locks of some of them."""
    top = stack()
    syscalls.memset(top.start - GROWN * PAGE, 1, GROWN * PAGE)
    low = Region(stack().start, GROWN * PAGE)
    grown = top.start - low.addr
    found = [(layout(low), stack().start - low.addr)]
    for first, end, what in (
        (0, 1, way),
        (0, 1, "munlock"),
        (2, 4, way),
        (0, 2, way),
        (0, 6, way),
        (1, 5, "munlock"),
        (0, 6, "munlock"),
    ):
        act(low.sub(first, end - first), what)
        found.append((layout(low), (stack().start - low.addr) // PAGE))
    return grown, found


@pytest.mark.needs("stack-growth")
@by_way
def test_stack_splits_and_merges_by_its_locks(way):
    """Locks of low pages of the stack split its VMA exactly there; the name [stack] stays with
    the part that holds the start of the stack, and when all is unlocked the bounds are what
    they were."""
    grown, found = processes.run(lambda: lock_parts_of_stack(way))
    assert grown == GROWN * PAGE, "the stack grew to the lowest page touched"
    mark = MARK[way]
    assert found == [
        ([(0, 6, "")], 0),
        ([(0, 1, mark), (1, 6, "")], 1),
        ([(0, 6, "")], 0),
        ([(0, 2, ""), (2, 4, mark), (4, 6, "")], 4),
        ([(0, 4, mark), (4, 6, "")], 4),
        ([(0, 6, mark)], 6),
        ([(0, 1, mark), (1, 5, ""), (5, 6, mark)], 6),
        ([(0, 6, "")], 0),
    ], "pieces of the six lowest pages, and first page of the VMA named [stack]"


def grow_locked_stack(first, pages):
    """Layout of six pages when the lower three were touched after a lock among the upper."""
    top = stack()
    syscalls.memset(top.start - 3 * PAGE, 1, 3 * PAGE)
    before = stack().start
    act(Region(before + first * PAGE, pages * PAGE), "mlock")
    syscalls.memset(before - 3 * PAGE, 1, 3 * PAGE)
    return layout(Region(before - 3 * PAGE, 6 * PAGE))


@pytest.mark.needs("stack-growth")
@pytest.mark.parametrize(
    ("first", "pages", "shape"),
    [
        (0, 3, [(0, 6, "lo")]),
        (0, 1, [(0, 4, "lo"), (4, 6, "")]),
        (1, 2, [(0, 4, ""), (4, 6, "lo")]),
    ],
    ids=["all", "lowest", "above"],
)
@pytest.mark.detects("vmflags-stack-lo-missing")
def test_stack_growth_takes_the_lock_of_its_lowest_vma(first, pages, shape):
    """A stack that grows extends its lowest VMA: the growth is locked if that one is, and only
    then, whatever the VMAs above are."""
    assert processes.run(lambda: grow_locked_stack(first, pages)) == shape, "growth and old pages"


SPECIAL = {"io", "pf", "de", "mm", "ht", "dp", "??"}
"""VmFlags of VMAs that take no lock: VM_SPECIAL in include/linux/mm.h, hugetlb, droppable (glibc
since 2.41 keeps its random state in one; its flag has no name before 6.16)."""


def expected_of(vma):
    """(answer of mlock, whether lo is set, answer of munlock) for a VMA found in maps."""
    if vma.name == "[vsyscall]" or "gate" in vma.name:  # not a VMA of the process
        return "ENOMEM", False, "ENOMEM"
    if vma.flags & SPECIAL:
        return "ok", False, "ok"
    if vma.perms.startswith("---"):
        return "ENOMEM", True, "ok"
    return "ok", True, "ok"


def try_every_vma():
    """What differed from expectation, the named VMAs before and after, locks left, how many."""
    before = maps.smaps()
    named = [v.line for v in before if v.name and v.name != "[heap]"]
    wrong = []
    for vma in before:
        answer = syscalls.outcome(syscalls.mlock, vma.start, vma.size)
        # EBUSY says lo; smaps for each of some 200 VMAs would be slow.
        marked = (
            syscalls.outcome(syscalls.msync, vma.start, PAGE, syscalls.MS_INVALIDATE) == "EBUSY"
        )
        undone = syscalls.outcome(syscalls.munlock, vma.start, vma.size)
        seen = (answer, marked, undone)
        if seen != expected_of(vma):
            wrong.append((vma.line, sorted(vma.flags), seen, expected_of(vma)))
    after = maps.smaps()
    left = [v.line for v in after if v.lock]
    names_after = [v.line for v in after if v.name and v.name != "[heap]"]
    return wrong, named, names_after, left, status.vmlck_kb()


@pytest.mark.needs("lock-all")
def test_lock_and_unlock_of_every_vma_leaves_bounds():
    """mlock and munlock of every VMA of the process in turn succeed and set and clear lo,
    except on special mappings (0, no lo), inaccessible ones (ENOMEM, lo) and the gate (ENOMEM);
    the bounds of [stack] and of every other named VMA are afterwards what they were."""
    wrong, before, after, left, vmlck = processes.run(try_every_vma)
    assert wrong == [], "VMAs whose mlock, lo or munlock is not as expected"
    assert after == before, "named VMAs as before"
    assert left == [], "VMAs left locked"
    assert vmlck == 0, "VmLck"
