# SPDX-License-Identifier: MIT
"""Under MCL_FUTURE and on a locked stack: memory that comes by itself meets the limit."""

import os

import pytest

from helpers import memory, processes, syscalls
from helpers.observe import maps, pagemap, status
from helpers.processes.stub import StubProcess
from helpers.syscalls import MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT, PAGE, PAGE_KB, sysv

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("stub-process", "limit:8"),
    pytest.mark.source("mlockall(2) MCL_FUTURE", "mlock_future_ok() in mm/mmap.c"),
]

ANON = syscalls.MAP_PRIVATE | syscalls.MAP_ANONYMOUS
RW = syscalls.PROT_RW
MAPPINGS = {
    "private": (RW, ANON),
    "shared": (RW, syscalls.MAP_SHARED | syscalls.MAP_ANONYMOUS),
    "PROT_NONE": (syscalls.PROT_NONE, ANON),
    "read-only": (syscalls.PROT_READ, ANON),
    "NORESERVE": (RW, ANON | syscalls.MAP_NORESERVE),
    "POPULATE": (RW, ANON | syscalls.MAP_POPULATE),
    "LOCKED": (RW, ANON | syscalls.MAP_LOCKED),
}
BY_MAPPING = pytest.mark.parametrize(("prot", "how"), MAPPINGS.values(), ids=MAPPINGS)
FLAGS = {"F": MCL_FUTURE, "FO": MCL_FUTURE | MCL_ONFAULT}
BY_FLAGS = pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)


def ordinary(limit, before=None):
    """A bare process without CAP_IPC_LOCK under a soft limit of ``limit`` pages."""
    bare = StubProcess(before)
    bare.without("CAP_IPC_LOCK").limit(limit * PAGE)
    return bare


def counted(bare):
    """VmLck in pages; it must equal the lo VMAs."""
    pages, summed = status.vmlck_pages(bare.pid), maps.locked_kb(bare.pid) // PAGE_KB
    assert pages == summed, "VmLck equals the lo VMAs"
    return pages


def lines(bare):
    return [v.line for v in maps.vmas(bare.pid)]


def heap(bare):
    """The program break, on a page boundary."""
    start = bare.call("brk", 0)
    return bare.call("brk", (start + PAGE - 1) // PAGE * PAGE)


def locked_stack(bare, flags=0):
    """Locks the lowest page of the stack: its address."""
    start = next(v.start for v in maps.vmas(bare.pid) if v.name == "[stack]")
    bare.call("mlock2", start, PAGE, flags)
    return start


def fate(bare, addr):
    """``"ok"``, or the signal that a write to ``addr`` brings."""
    try:
        bare.store(addr)
    except processes.ChildKilled as killed:
        return killed.signal
    return "ok"


@BY_FLAGS
@BY_MAPPING
@pytest.mark.source("on-fault-limit.c", "Open POSIX mmap 18-1")
@pytest.mark.detects("limit-future-unchecked", "limit-future-silent")
def test_future_mapping_over_the_limit_gives_eagain(flags, prot, how):
    """Under MCL_FUTURE a mapping counts at once with its full length, populated or not, and
    is refused with EAGAIN from the first page over the limit on.
    """
    with ordinary(8) as bare:
        bare.call("mlockall", flags)
        before = lines(bare)
        over = syscalls.outcome(bare.mmap, 9, prot, how)
        refused = counted(bare), lines(bare)
        addr = bare.mmap(8, prot, how)
        full = counted(bare)
        one_more = syscalls.outcome(bare.mmap, 1, prot, how)
        after = counted(bare)
        bare.call("munmap", addr, 2 * PAGE)
        again = syscalls.outcome(bare.mmap, 3, prot, how), syscalls.outcome(bare.mmap, 2, prot, how)
        assert over == "EAGAIN", "nine pages under a limit of eight"
        assert refused == (0, before), "nothing is counted, nothing is mapped"
        assert full == 8, "eight pages under a limit of eight"
        assert (one_more, after) == ("EAGAIN", 8), "one page more at the limit"
        assert again == ("EAGAIN", "ok"), "three, then two pages where two were unmapped"
        assert counted(bare) == 8, "eight pages are counted"


@pytest.mark.parametrize(
    "shared", [syscalls.MAP_SHARED, syscalls.MAP_PRIVATE], ids=["shared", "private"]
)
def test_future_file_mapping_over_the_limit_gives_eagain(shared):
    """Under MCL_FUTURE mappings of files count against the limit like any other."""
    fd = memory.memfd(9 * PAGE)
    with ordinary(8, lambda: os.set_inheritable(fd, True)) as bare:
        os.close(fd)
        bare.call("mlockall", MCL_FUTURE)
        over = syscalls.outcome(bare.mmap, 9, RW, shared, 0, fd)
        equal = syscalls.outcome(bare.mmap, 8, RW, shared, 0, fd)
        assert over == "EAGAIN", "nine pages under a limit of eight"
        assert equal == "ok", "eight pages under a limit of eight"
        assert counted(bare) == 8, "eight pages are counted"


def test_future_onfault_mapping_fills_the_limit_without_a_page():
    """Under MCL_FUTURE|MCL_ONFAULT the limit is reached by mappings of which no page exists."""
    with ordinary(8) as bare:
        bare.call("mlockall", MCL_FUTURE | MCL_ONFAULT)
        addr = bare.mmap(8)
        assert pagemap.present_count(addr, 8, bare.pid) == 0, "no page is present"
        assert syscalls.outcome(bare.mmap, 1) == "EAGAIN", "one page more at the limit"


def test_future_mapping_fixed_over_locked_memory_needs_quota():
    """Under MCL_FUTURE at the limit MAP_FIXED over locked memory gives EAGAIN and replaces
    nothing.
    """
    with ordinary(4) as bare:
        bare.call("mlockall", MCL_FUTURE)
        addr = bare.mmap(4)
        before = lines(bare)
        over = syscalls.outcome(bare.mmap, 1, syscalls.PROT_NONE, ANON | syscalls.MAP_FIXED, addr)
        assert over == "EAGAIN", "a page over a locked one at the limit"
        assert lines(bare) == before, "VMAs as before"
        assert counted(bare) == 4, "four pages are counted"


def test_future_leaves_what_needs_no_new_memory_alone():
    """Under MCL_FUTURE at the limit mprotect, shrinking, moving and unmapping ask for nothing."""
    with ordinary(8) as bare:
        bare.call("mlockall", MCL_FUTURE)
        addr = bare.mmap(8)
        bare.limit(PAGE)
        seen = [
            syscalls.outcome(bare.call, "mprotect", addr + PAGE, PAGE, syscalls.PROT_READ),
            syscalls.outcome(bare.call, "mprotect", addr + PAGE, PAGE, RW),
            syscalls.outcome(bare.call, "mremap", addr, 8 * PAGE, 6 * PAGE, 0),
            syscalls.outcome(bare.call, "munmap", addr, PAGE),
            syscalls.outcome(bare.call, "munlock", addr + PAGE, PAGE),
        ]
        assert seen == ["ok"] * 5, "mprotect, back, mremap, munmap, munlock"
        assert counted(bare) == 4, "four of eight pages are counted"


def test_future_growth_by_mremap_over_the_limit_gives_eagain():
    """Under MCL_FUTURE a mapping grows by mremap up to the limit and not beyond."""
    with ordinary(6) as bare:
        bare.call("mlockall", MCL_FUTURE)
        addr = bare.mmap(4)
        over = syscalls.outcome(
            bare.call, "mremap", addr, 4 * PAGE, 7 * PAGE, syscalls.MREMAP_MAYMOVE
        )
        after = counted(bare)
        equal = syscalls.outcome(
            bare.call, "mremap", addr, 4 * PAGE, 6 * PAGE, syscalls.MREMAP_MAYMOVE
        )
        assert (over, after) == ("EAGAIN", 4), "growth to seven pages under a limit of six"
        assert equal == "ok", "growth to six"
        assert counted(bare) == 6, "six pages are counted"


@BY_FLAGS
@pytest.mark.detects("limit-brk-unchecked")
def test_brk_over_the_limit_leaves_the_break(flags):
    """Under MCL_FUTURE the heap grows up to the limit; brk beyond it leaves the program break
    where it is, in one step and in many.
    """
    with ordinary(8) as bare:
        start = heap(bare)
        bare.call("mlockall", flags)
        over = bare.call("brk", start + 9 * PAGE)
        none = counted(bare)
        three = bare.call("brk", start + 3 * PAGE)
        beyond = bare.call("brk", start + 9 * PAGE)
        full = bare.call("brk", start + 8 * PAGE)
        one_more = bare.call("brk", start + 8 * PAGE + 1)
        assert over == start, "nine pages under a limit of eight"
        assert none == 0, "nothing is counted"
        assert three == start + 3 * PAGE, "three pages"
        assert beyond == start + 3 * PAGE, "six more under a limit of eight"
        assert full == start + 8 * PAGE, "eight pages under a limit of eight"
        assert one_more == start + 8 * PAGE, "one byte more"
        assert counted(bare) == 8, "eight pages are counted"


def test_brk_shares_the_limit_with_other_locks():
    """Heap, mappings and mlock fill one limit; a shrinking heap gives its part back."""
    with ordinary(8) as bare:
        addr = bare.mmap(4)
        start = heap(bare)
        bare.call("mlockall", MCL_FUTURE)
        bare.call("mlock", addr, 2 * PAGE)
        bare.mmap(2)
        over = bare.call("brk", start + 5 * PAGE)
        bare.call("brk", start + 4 * PAGE)
        full = syscalls.outcome(bare.call, "mlock", addr + 2 * PAGE, PAGE)
        bare.call("brk", start + 3 * PAGE)
        free = syscalls.outcome(bare.call, "mlock", addr + 2 * PAGE, PAGE)
        assert over == start, "2 + 2 + 5 pages under a limit of eight"
        assert full == "ENOMEM", "mlock with eight of eight pages locked"
        assert free == "ok", "mlock after the heap gave one page back"
        assert counted(bare) == 8, "eight pages are counted"


@BY_FLAGS
@pytest.mark.detects("limit-stack-unchecked")
def test_stack_growth_over_the_limit_is_a_segfault(flags):
    """A locked stack grows up to the limit; one page beyond, the touch brings SIGSEGV."""
    onfault = syscalls.MLOCK_ONFAULT if flags & MCL_ONFAULT else 0
    with ordinary(4) as bare:
        start = locked_stack(bare, onfault)
        first = fate(bare, start - PAGE)
        second = fate(bare, start - 3 * PAGE)
        full = counted(bare)
        beyond = fate(bare, start - 4 * PAGE)
        assert first == "ok", "growth by one page, two locked under a limit of four"
        assert second == "ok", "growth by two pages, four locked under a limit of four"
        assert full == 4, "four pages are counted"
        assert beyond == "SIGSEGV", "growth beyond the limit"


def test_stack_growth_counts_all_pages_of_one_step():
    """Growth of a locked stack by several pages at once is refused if the last is over."""
    with ordinary(4) as bare:
        start = locked_stack(bare)
        assert fate(bare, start - 4 * PAGE) == "SIGSEGV", "1 + 4 pages under a limit of four"


@pytest.mark.parametrize("limit", [0, 1, PAGE], ids=["0", "1", "P"])
def test_stack_growth_under_a_lowered_limit_is_a_segfault(limit):
    """Under a limit lowered since, to 0 even, a locked stack does not grow: SIGSEGV."""
    with ordinary(4) as bare:
        start = locked_stack(bare)
        bare.limit(limit)
        assert fate(bare, start) == "ok", "the locked page itself"
        assert fate(bare, start - PAGE) == "SIGSEGV", "growth by one page"


@pytest.mark.needs("limit:16")
def test_stack_growth_after_mlockall_is_bound_by_the_limit():
    """After mlockall(MCL_CURRENT|MCL_FUTURE) the stack grows into what the limit has left."""
    with ordinary(16) as bare:
        bare.trim()
        bare.call("mlockall", MCL_CURRENT | MCL_FUTURE)
        start = next(v.start for v in maps.vmas(bare.pid) if v.name == "[stack]")
        bare.limit((counted(bare) + 2) * PAGE)
        before = counted(bare)
        fits = fate(bare, start - 2 * PAGE)
        after = counted(bare)
        assert fits == "ok", "growth by two pages where two are left"
        assert after - before == 2, "two pages more are counted"
        assert fate(bare, start - 3 * PAGE) == "SIGSEGV", "growth by one page more"


def test_stack_growth_not_locked_asks_no_limit():
    """A stack that is not locked grows at limit 0, under MCL_FUTURE alone too."""
    with ordinary(4) as bare:
        start = next(v.start for v in maps.vmas(bare.pid) if v.name == "[stack]")
        bare.call("mlockall", MCL_FUTURE)
        bare.limit(0)
        assert fate(bare, start - 4 * PAGE) == "ok", "growth by four pages"
        assert counted(bare) == 0, "nothing is locked"


def shared_segment(pages):
    return sysv.shmget(0, pages * PAGE, 0o600)  # IPC_PRIVATE


def remove_segment(segment):
    sysv.shmctl(segment, 0, None)  # IPC_RMID


@BY_FLAGS
@pytest.mark.needs("sysv-shm")
@pytest.mark.detects("limit-shmat-unchecked")
def test_shmat_over_the_limit_gives_eagain(flags):
    """Under MCL_FUTURE attaching a SysV segment counts its length; over the limit shmat gives
    EAGAIN.
    """
    small, large = shared_segment(4), shared_segment(5)
    try:
        with ordinary(8) as bare:
            bare.call("mlockall", flags)
            bare.call("shmat", small, 0, 0)
            over = syscalls.outcome(bare.call, "shmat", large, 0, 0)
            after = counted(bare)
            equal = syscalls.outcome(bare.call, "shmat", small, 0, 0)
            assert (over, after) == ("EAGAIN", 4), "4 + 5 pages under a limit of eight"
            assert equal == "ok", "4 + 4 pages under a limit of eight"
            assert counted(bare) == 8, "eight pages are counted"
    finally:
        remove_segment(small)
        remove_segment(large)


@pytest.mark.needs("sysv-shm")
@pytest.mark.parametrize("limit", [0, 1], ids=["0", "1"])
def test_future_under_a_lowered_limit_refuses_each_route(limit):
    """With MCL_FUTURE in force and the limit lowered since, to 0 even, mmap, shmat and mremap
    give EAGAIN and brk leaves the break; MAP_LOCKED alone says EPERM at 0.
    """
    segment = shared_segment(1)
    try:
        with ordinary(8) as bare:
            start = heap(bare)
            bare.call("mlockall", MCL_FUTURE)
            addr = bare.mmap(2)
            bare.limit(limit)
            maymove = syscalls.MREMAP_MAYMOVE
            seen = {
                "mmap": syscalls.outcome(bare.mmap, 1),
                "PROT_NONE": syscalls.outcome(bare.mmap, 1, syscalls.PROT_NONE),
                "MAP_LOCKED": syscalls.outcome(bare.mmap, 1, RW, ANON | syscalls.MAP_LOCKED),
                "shmat": syscalls.outcome(bare.call, "shmat", segment, 0, 0),
                "mremap": syscalls.outcome(bare.call, "mremap", addr, 2 * PAGE, 3 * PAGE, maymove),
                "brk": "ok" if bare.call("brk", start + PAGE) != start else "unchanged",
            }
            assert seen == {
                "mmap": "EAGAIN",
                "PROT_NONE": "EAGAIN",
                "MAP_LOCKED": "EAGAIN" if limit else "EPERM",
                "shmat": "EAGAIN",
                "mremap": "EAGAIN",
                "brk": "unchanged",
            }, "answers of the calls that need new memory"
            assert counted(bare) == 2, "two pages are locked as before"
    finally:
        remove_segment(segment)


@pytest.mark.needs("CAP_IPC_LOCK", "sysv-shm")
@pytest.mark.parametrize("limit", [0, PAGE], ids=["0", "P"])
def test_future_with_the_capability_asks_no_limit(limit):
    """With CAP_IPC_LOCK mmap, brk, shmat, mremap and a locked stack grow beyond the limit."""
    segment = shared_segment(2)
    try:
        with StubProcess() as bare:
            start = heap(bare)
            stack = locked_stack(bare)
            bare.limit(limit)
            bare.call("mlockall", MCL_FUTURE)
            seen = [counted(bare)]
            addr = bare.mmap(2)
            seen.append(counted(bare))
            bare.mmap(2, RW, ANON | syscalls.MAP_LOCKED)
            seen.append(counted(bare))
            bare.call("brk", start + 2 * PAGE)
            seen.append(counted(bare))
            bare.call("shmat", segment, 0, 0)
            seen.append(counted(bare))
            bare.call("mremap", addr, PAGE, 3 * PAGE, syscalls.MREMAP_MAYMOVE)
            seen.append(counted(bare))
            grown = fate(bare, stack - 2 * PAGE)
            seen.append(counted(bare))
            assert grown == "ok", "growth of the stack by two pages"
            assert seen == [1, 3, 5, 7, 9, 11, 13], (
                "VmLck after mmap, MAP_LOCKED, brk, shmat, mremap and stack growth by two each"
            )
    finally:
        remove_segment(segment)


@pytest.mark.needs("CAP_IPC_LOCK")
@BY_FLAGS
def test_future_set_with_the_capability_binds_without_it(flags):
    """MCL_FUTURE set with CAP_IPC_LOCK stays in force when the capability goes, and the limit
    then decides.
    """
    with StubProcess() as bare:
        bare.limit(2 * PAGE)
        bare.call("mlockall", flags)
        bare.mmap(4)
        bare.without("CAP_IPC_LOCK")
        refused = syscalls.outcome(bare.mmap, 1)
        assert refused == "EAGAIN", "a page with four locked under a limit of two"
        assert counted(bare) == 4, "the four pages stay locked"
