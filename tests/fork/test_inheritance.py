# SPDX-License-Identifier: MIT
"""What a fork child gets: the mappings, without the locks. What the parent keeps: everything."""

import os
from typing import NamedTuple

import pytest

from helpers import syscalls
from helpers.memory import MAPPING_KINDS, Region, mapping
from helpers.observe import maps, pagemap, status
from helpers.processes import Child, run
from helpers.syscalls import MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT, PAGE

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.source("mlock(2) NOTES: Linux notes"),
    pytest.mark.claim("W19"),
]

N = 6
# MCL_FUTURE alone locks only what the interpreter maps from then on.
ALL_OF_IT = pytest.mark.needs("lock-all")
WHAT_COMES = pytest.mark.needs(f"lock:{(4 << 20) // PAGE}")


class View(NamedTuple):
    """A process's account of its locks, and of one range."""

    vmlck: int
    layout: list
    flags: list
    busy: str


def view(region: Region) -> View:
    vmlck = status.vmlck_pages()
    return View(
        vmlck,
        maps.layout(region),
        [v.flags for v in maps.smaps(low=region.addr, high=region.end)],
        syscalls.outcome(
            syscalls.msync, region.addr, region.size, syscalls.MS_ASYNC | syscalls.MS_INVALIDATE
        ),
    )


def lock_by(route: str, region: Region) -> None:
    if route == "mlock":
        syscalls.mlock(region.addr, region.size)
    elif route == "onfault":
        syscalls.mlock2(region.addr, region.size, syscalls.MLOCK_ONFAULT)
        region.sub(0, 2).touch()


@pytest.mark.needs(f"lock:{N}")
@pytest.mark.parametrize("kind", MAPPING_KINDS)
@pytest.mark.parametrize("route", ["mlock", "onfault", "MAP_LOCKED"])
@pytest.mark.detects(
    "fork-child-locked",
    "fork-child-locked-on-fault",
    "fork-child-keeps-shared-lock",
    "fork-child-keeps-lf",
    "fork-child-vmlck",
    "fork-parent-unlocked",
    "fork-parent-vmlck-zero",
)
def test_fork_child_has_no_lock_and_parent_keeps_its_own(kind, route):
    """A fork child has VmLck 0 and neither lo nor lf on any mapping; the parent's lock, VmLck
    and present pages stay as they were, while the child lives and after it ended."""
    flags = syscalls.MAP_LOCKED if route == "MAP_LOCKED" else 0
    lock = "lo lf" if route == "onfault" else "lo"
    with mapping(kind, N, flags=flags) as region:
        lock_by(route, region)
        before = view(region)
        present = pagemap.present(region.addr, N)
        assert before.layout == [(0, N, lock)], f"locked by {route} before the fork"
        with Child() as child:
            seen = child.call(view, region)
            anywhere = child.call(maps.locked_kb)
            during = view(region)
            there = pagemap.present(region.addr, N)
            child.exit()
        after = view(region)
        expected = [f - {"lo"} - ({"lf", "??"} if route == "onfault" else set())
                    for f in before.flags]  # fmt: skip
        assert seen.vmlck == 0, "VmLck of the child is 0"
        assert anywhere == 0, "no mapping of the child is lo"
        assert seen.flags == expected, "the child's VmFlags are the parent's without the lock"
        assert seen.layout == [(0, N, "")], "the child's mapping is not locked"
        assert seen.busy == "ok", "MS_INVALIDATE finds no lock in the child"
        assert during == before, "the parent's locks are as before while the child lives"
        assert there == present, "the parent's pages stay present over fork"
        assert after == before, "the parent's locks are as before when the child has ended"


@pytest.mark.needs(f"lock:{N}")
def test_fork_copies_every_mapping_of_a_partly_locked_range():
    """A child of a parent with [unlocked][lo][lo lf] has the same three mappings at the same
    addresses with the same rights and contents, none of them locked."""
    with mapping("private", N) as region:
        region.write(0x31)
        syscalls.mprotect(region.at(4), PAGE, syscalls.PROT_READ)
        syscalls.mlock(region.at(1), 2 * PAGE)
        syscalls.mlock2(region.at(3), PAGE, syscalls.MLOCK_ONFAULT)
        parent = maps.vmas(low=region.addr, high=region.end)
        shape = maps.layout(region)
        locked = [(0, 1, ""), (1, 3, "lo"), (3, 4, "lo lf"), (4, 5, ""), (5, 6, "")]
        assert shape == locked, "five mappings in the parent before the fork"
        with Child() as child:
            copies = child.call(maps.vmas, "self", region.addr, region.end)
            seen = child.call(maps.layout_between, region.addr, region.end, PAGE)
            held = child.call(region.read)
        assert [v.line for v in copies] == [v.line for v in parent], "mappings are copied"
        assert seen == [(a, b, "") for a, b, _ in locked], "none is locked in the child"
        assert held == b"\x31" * region.size, "contents are copied"
        assert maps.layout(region) == locked, "the parent's are as before"


def grandchild(region: Region) -> tuple[View, tuple[int, int], int]:
    """Lock in this child and fork: own view, and the grandchild's VmLck and lo mappings."""
    syscalls.mlock(region.at(1), 2 * PAGE)
    before = view(region)
    with Child() as child:
        seen = child.call(status.vmlck_pages), child.call(maps.locked_kb)
    assert view(region) == before, "a fork leaves the forking child's locks alone"
    return before, seen, os.getpid()


@pytest.mark.needs(f"lock:{N}")
def test_fork_of_a_child_that_locked_drops_the_lock_again():
    """Each generation has only the locks it took itself: parent all, child two pages,
    grandchild none."""
    with mapping("private", N, flags=syscalls.MAP_LOCKED) as region:
        mine = view(region)
        with Child() as child:
            own, below, pid = child.call(grandchild, region)
            assert pid == child.pid, "the child itself locked and forked"
        assert (mine.vmlck, mine.layout) == (N, [(0, N, "lo")]), "the parent locked all pages"
        assert own.vmlck == 2, "the child's VmLck counts its own two pages"
        assert own.layout == [(0, 1, ""), (1, 3, "lo"), (3, N, "")], "the child locked two"
        assert below == (0, 0), "the grandchild has VmLck 0 and no lo"
        assert view(region) == mine, "the parent's locks are as before"


def fork_after_mlockall(flags: int) -> tuple[int, int, int, int]:
    syscalls.mlockall(flags)
    with Child() as child:
        vmlck = child.call(status.vmlck_pages)
        locked = child.call(maps.locked_kb)
    # VmLck first: reading smaps may grow the heap, which MCL_FUTURE would lock.
    return vmlck, locked, status.vmlck_kb(), maps.total_kb(lambda v: v.locked)


@pytest.mark.needs("lock-all")
@pytest.mark.parametrize("flags", [MCL_CURRENT, MCL_CURRENT | MCL_ONFAULT], ids=["now", "onfault"])
def test_fork_child_of_a_wholly_locked_process_has_no_lock(flags):
    """After mlockall(MCL_CURRENT) no mapping of a child is lo, the heap and stack included;
    every one of the parent's still is."""
    with Child() as parent:
        vmlck, locked, mine, summed = parent.call(fork_after_mlockall, flags)
    assert vmlck == 0, "VmLck of the child is 0"
    assert locked == 0, "no mapping of the child is lo"
    assert mine > 0, "the parent is locked"
    assert mine == summed, "VmLck of the parent is the sum of its lo mappings"


def new_mapping(flags: int = 0) -> tuple[list, int, int]:
    """Lock state, present pages and VmLck change of a mapping made now."""
    with mapping("private", N, flags=flags) as region:
        shape = maps.layout(region)
        present = pagemap.present_count(region.addr, N)
    return shape, present


def fork_under_future(flags: int) -> tuple:
    syscalls.mlockall(flags)
    before = new_mapping()
    with Child() as child:
        plain = child.call(new_mapping)
        vmlck = child.call(status.vmlck_pages)
        onfault = child.call(new_mapping, syscalls.MAP_LOCKED)
        during = new_mapping()
    return before, plain, vmlck, onfault, during, new_mapping()


@pytest.mark.source("mlock(2) NOTES: mlockall() MCL_FUTURE settings are not inherited")
@pytest.mark.parametrize(
    ("flags", "locked"),
    [
        pytest.param(MCL_FUTURE, ([(0, N, "lo")], N), marks=WHAT_COMES),
        pytest.param(MCL_FUTURE | MCL_ONFAULT, ([(0, N, "lo lf")], 0), marks=WHAT_COMES),
        pytest.param(MCL_CURRENT | MCL_FUTURE, ([(0, N, "lo")], N), marks=ALL_OF_IT),
    ],
    ids=["future", "future-onfault", "current-future"],
)
@pytest.mark.detects("fork-child-inherits-future")
def test_fork_child_does_not_inherit_mcl_future(flags, locked):
    """Mappings a child makes are not locked though its parent set MCL_FUTURE, and MAP_LOCKED in
    the child is no fault-lock though the parent set MCL_ONFAULT; the parent's MCL_FUTURE stays."""
    with Child() as parent:
        before, plain, vmlck, explicit, during, after = parent.call(fork_under_future, flags)
    assert before == locked, "MCL_FUTURE acts in the parent before the fork"
    assert plain == ([(0, N, "")], 0), "a mapping of the child is neither locked nor populated"
    assert vmlck == 0, "VmLck of the child is 0"
    assert explicit == ([(0, N, "lo")], N), "MAP_LOCKED in the child locks at once, without lf"
    assert during == locked, "MCL_FUTURE still acts in the parent while the child lives"
    assert after == locked, "and when it has ended"


def brk_grown_by_a_child() -> tuple[int, int]:
    """VmLck in pages and lo mappings in kB of a child whose heap grew."""
    end = syscalls.brk(0)
    syscalls.brk(end + N * PAGE)
    return status.vmlck_pages(), maps.locked_kb()


def heap_of_a_child() -> tuple[int, int]:
    syscalls.mlockall(MCL_CURRENT | MCL_FUTURE)
    return run(brk_grown_by_a_child)


@pytest.mark.needs("lock-all")
def test_fork_child_heap_growth_is_not_locked():
    """brk(2) in a child adds nothing to VmLck, though the heap it grows is locked in the parent
    and MCL_FUTURE is set there."""
    with Child() as parent:
        assert parent.call(heap_of_a_child) == (0, 0), "VmLck and lo mappings of the child"


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param(MCL_FUTURE, marks=WHAT_COMES),
        pytest.param(MCL_CURRENT | MCL_FUTURE, marks=ALL_OF_IT),
    ],
    ids=["future", "current-future"],
)
def test_child_mlockall_does_not_reach_the_parent(flags):
    """mlockall in a child locks nothing in the parent, neither what is mapped nor what comes."""
    with mapping("private", N) as region:
        before = view(region)
        with Child() as child:
            child.call(syscalls.mlockall, flags)
            inside = child.call(new_mapping)
            assert inside == ([(0, N, "lo")], N), "MCL_FUTURE acts in the child that set it"
            outside = new_mapping()
            assert outside == ([(0, N, "")], 0), "a new mapping of the parent is not locked"
            assert view(region) == before, "the parent's mappings are not locked"


def child_clears_future() -> tuple:
    syscalls.mlockall(MCL_FUTURE)
    with Child() as child:
        child.call(syscalls.munlockall)
        first = new_mapping()
        child.call(syscalls.mlockall, MCL_CURRENT)
        return first, new_mapping()


@pytest.mark.needs("lock-all")
def test_child_munlockall_does_not_cancel_the_parents_future():
    """munlockall, and mlockall without MCL_FUTURE, in a child leave the parent's MCL_FUTURE."""
    with Child() as parent:
        seen = parent.call(child_clears_future)
    locked = ([(0, N, "lo")], N)
    assert seen == (locked, locked), "mappings of the parent after the child's two calls"


@pytest.mark.needs(f"lock:{N}")
def test_many_forks_leave_the_parents_lock():
    """Fork after fork, with the children ending or killed, VmLck and lo of the parent stay."""
    with mapping("private", N, flags=syscalls.MAP_LOCKED) as region:
        before = view(region)
        for turn in range(6):
            with Child() as child:
                if turn % 2:
                    child.exit()
        assert view(region) == before, "locks of the parent after six children"
        assert before.vmlck == N, "VmLck is the locked pages"
