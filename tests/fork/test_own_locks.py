# SPDX-License-Identifier: MIT
"""Locks are an address space's own: parent and child lock and unlock without each other."""

import pytest

from helpers import syscalls
from helpers.memory import MAPPING_KINDS, Region, mapping
from helpers.observe import maps, mincore, pagemap, status
from helpers.processes import Child
from helpers.syscalls import PAGE

N = 6
pytestmark = [pytest.mark.share_process,
    pytest.mark.needs(f"lock:{N}"),
    pytest.mark.source("mlock(2) NOTES", "POSIX munlock(): locks of other processes stay"),
]  # fmt: skip


def locks(region: Region) -> tuple[int, list, str]:
    """VmLck in pages, shape of the range, and what MS_INVALIDATE (EBUSY on lo) says."""
    flags = syscalls.MS_ASYNC | syscalls.MS_INVALIDATE
    return (
        status.vmlck_pages(),
        maps.locks(region.addr, region.end, PAGE),
        syscalls.outcome(syscalls.msync, region.addr, region.size, flags),
    )


ALL = (N, [(0, N, "lo")], "EBUSY")
NONE = (0, [(0, N, "")], "ok")
MIDDLE = (2, [(0, 2, ""), (2, 4, "lo"), (4, N, "")], "EBUSY")


@pytest.mark.parametrize("kind", MAPPING_KINDS)
def test_child_locks_inherited_memory_for_itself(kind):
    """A child may lock what its parent left unlocked, populating it; the parent gets no lock,
    and keeps none when the child unlocks."""
    with mapping(kind, N) as region, Child() as child:
        child.call(syscalls.mlock, region.addr, region.size)
        assert child.call(locks, region) == ALL, "the child's lock counts for the child"
        there = child.call(pagemap.present_count, region.addr, N)
        assert there == N, "the child's lock populates"
        assert locks(region) == NONE, "the parent has no lock"
        if kind in {"private", "memfd-private", "file-private"}:
            seen = pagemap.present_count(region.addr, N)
            assert seen == 0, "the parent's private mapping is not populated"
        child.call(syscalls.munlock, region.addr, region.size)
        assert child.call(locks, region) == NONE, "the child unlocked"


@pytest.mark.parametrize("kind", ["private", "shared", "memfd-shared"])
def test_child_locks_and_unlocks_beside_the_parents_lock(kind):
    """A child's lock and unlock of part of what the parent locked change the child's VmLck and
    mappings alone."""
    with mapping(kind, N, flags=syscalls.MAP_LOCKED) as region, Child() as child:
        child.call(syscalls.mlock, region.at(2), 2 * PAGE)
        assert child.call(locks, region) == MIDDLE, "the child locked two pages for itself"
        assert locks(region) == ALL, "the parent's mapping is one and locked"
        child.call(syscalls.munlock, region.at(2), 2 * PAGE)
        assert child.call(locks, region) == NONE, "the child unlocked them"
        assert locks(region) == ALL, "the parent's lock stays"


@pytest.mark.parametrize("kind", ["private", "shared", "memfd-shared"])
@pytest.mark.parametrize("call", ["munlock", "munlockall", "munmap"])
def test_parents_unlock_leaves_the_childs_lock(kind, call):
    """What the parent unlocks or unmaps stays locked, counted and present in a child that locked
    it too."""
    with mapping(kind, N, flags=syscalls.MAP_LOCKED) as region:
        region.write(0x42)
        with Child() as child:
            child.call(syscalls.mlock, region.addr, region.size)
            if call == "munlockall":
                syscalls.munlockall()
            else:
                getattr(syscalls, call)(region.addr, region.size)
            assert status.vmlck_pages() == 0, f"VmLck of the parent is 0 after {call}"
            assert child.call(locks, region) == ALL, "the child's lock stays"
            there = child.call(pagemap.present_count, region.addr, N)
            assert there == N, "the child's pages stay present"
            assert child.call(region.read) == b"\x42" * region.size, "contents stay"


def unlock_by(call: str, child: Child, region: Region) -> None:
    if call == "munlock":
        child.call(syscalls.munlock, region.addr, region.size)
    elif call == "munlockall":
        child.call(syscalls.munlockall)
    elif call == "munmap":
        child.call(syscalls.munmap, region.addr, region.size)
    elif call == "MAP_FIXED":
        how = syscalls.MAP_PRIVATE | syscalls.MAP_ANONYMOUS | syscalls.MAP_FIXED
        child.call(syscalls.mmap, region.addr, region.size, syscalls.PROT_RW, how)
    elif call == "exec":
        child.exec("cat")
    elif call == "exit":
        child.exit()
    else:
        child.kill()


WAYS = ["munlock", "munlockall", "munmap", "MAP_FIXED", "exec", "exit", "SIGKILL"]


@pytest.mark.claim("W13")
@pytest.mark.parametrize("own", [False, True], ids=["lockless", "locker"])
@pytest.mark.parametrize("kind", ["private", "shared", "memfd-shared"])
@pytest.mark.parametrize("call", WAYS)
def test_childs_unlock_leaves_the_parents_lock(kind, call, own):
    """However a child lets go of memory its parent locked, and whether or not it had locked it
    too: the parent's VmLck, lo, present pages and contents stay."""
    with mapping(kind, N, flags=syscalls.MAP_LOCKED) as region:
        region.write(0x42)
        with Child() as child:
            if own:
                child.call(syscalls.mlock, region.addr, region.size)
            unlock_by(call, child, region)
            assert locks(region) == ALL, f"the parent's lock after the child's {call}"
            seen = pagemap.present(region.addr, N), mincore.resident(region.addr, N)
            assert seen == ([True] * N, [True] * N), "the parent's pages are present, resident"
            assert region.read() == b"\x42" * region.size, "contents stay"


@pytest.mark.parametrize("kind", ["private", "shared"])
def test_child_locks_on_fault_what_the_parent_locked_at_once(kind):
    """The kind of lock is each process's own: lo in the parent, lo lf in the child, and the other
    way round."""
    with mapping(kind, N) as region:
        syscalls.mlock(region.at(0), 3 * PAGE)
        syscalls.mlock2(region.at(3), 3 * PAGE, syscalls.MLOCK_ONFAULT)
        mine = (N, [(0, 3, "lo"), (3, N, "lo lf")], "EBUSY")
        with Child() as child:
            child.call(syscalls.mlock2, region.at(0), 3 * PAGE, syscalls.MLOCK_ONFAULT)
            child.call(syscalls.mlock, region.at(3), 3 * PAGE)
            theirs = (N, [(0, 3, "lo lf"), (3, N, "lo")], "EBUSY")
            assert child.call(locks, region) == theirs, "the child's kinds of lock"
            assert locks(region) == mine, "the parent's kinds of lock"


def lock_everything_and_back(region: Region) -> tuple[int, int, int]:
    syscalls.mlockall(syscalls.MCL_CURRENT)
    most = status.vmlck_pages()
    syscalls.munlockall()
    return most, status.vmlck_pages(), maps.locked_kb()


@pytest.mark.needs("lock-all")
def test_child_mlockall_and_munlockall_leave_the_parents_lock():
    """mlockall(MCL_CURRENT) and munlockall in a child are the child's alone."""
    with mapping("private", N) as region:
        syscalls.mlock(region.at(2), 2 * PAGE)
        with Child() as child:
            most, after, locked = child.call(lock_everything_and_back, region)
        assert most > N, "the child locked its whole address space"
        assert (after, locked) == (0, 0), "and unlocked it"
        assert locks(region) == MIDDLE, "the parent's lock is as before"
