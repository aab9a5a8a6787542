# SPDX-License-Identifier: MIT
"""Threads, vfork and CLONE_VM children share one address space, and so its locks."""

import os
import signal
import threading
from collections.abc import Callable

import pytest

from helpers import syscalls
from helpers.memory import Region, mapping
from helpers.observe import maps, page_faults, pagemap, status
from helpers.processes import Child, ChildKilled, call_in_vfork_child
from helpers.syscalls import MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT, PAGE

N = 6
pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs(f"lock:{N}"),
    pytest.mark.source("mlock(2)", "clone(2) CLONE_VM"),
]
KINDS = pytest.mark.parametrize("kind", ["private", "shared", "memfd-shared"])


def locks(region: Region, pid: int | str = "self") -> tuple[int, list]:
    """VmLck in pages and shape of the range."""
    return status.vmlck_pages(pid), maps.locks(region.addr, region.end, PAGE, pid)


NONE = (0, [(0, N, "")])
ALL = (N, [(0, N, "lo")])


def in_thread(function: Callable[[], object]) -> object:
    """Value of ``function()`` run in a thread that has ended when this returns."""
    seen: list[object] = []

    def body() -> None:
        try:
            seen.append(function())
        except OSError as error:
            seen.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    (value,) = seen
    if isinstance(value, OSError):
        raise value
    return value


@KINDS
def test_lock_by_a_thread_is_the_process_s_and_outlives_the_thread(kind):
    """A thread's mlock counts for the whole process, is seen in every thread's status, and stays
    with its populated pages when the thread has ended."""
    with mapping(kind, N) as region:

        def act() -> tuple:
            syscalls.mlock(region.addr, region.size)
            own = f"self/task/{threading.get_native_id()}"
            return locks(region), locks(region, own), status.vmlck_pages(f"self/task/{os.getpid()}")

        seen = in_thread(act)
        assert seen == (ALL, ALL, N), "the lock as the process, thread and leader show it"
        assert locks(region) == ALL, "the lock stays when its thread has ended"
        # Read: a first write to clean shared memory faults where the MMU keeps no dirty bit itself
        # (arm64 before 8.1), for mlock populates what is shared by reading.
        faults = page_faults.faults_reading(region.addr, region.size)
        assert faults == page_faults.Faults(0, 0), "the pages the thread locked are present for all"
        syscalls.munlock(region.addr, region.size)
        assert locks(region) == NONE, "another thread's lock is undone by one munlock"


@pytest.mark.parametrize("call", ["munlock", "munlockall", "munmap"])
def test_unlock_by_a_thread_undoes_the_leaders_lock(call):
    """munlock, munlockall and munmap by a thread that is not the leader undo a lock that the
    leader took."""
    with mapping("private", N, flags=syscalls.MAP_LOCKED) as region:
        assert locks(region) == ALL, "locked by the leader"
        arguments = () if call == "munlockall" else (region.addr, region.size)
        in_thread(lambda: getattr(syscalls, call)(*arguments))
        after = (0, []) if call == "munmap" else NONE
        assert locks(region) == after, f"the leader sees the thread's {call}"


def test_part_locked_by_each_of_two_threads_adds_up():
    """Two threads that lock overlapping parts share one account: each page counts once."""
    with mapping("private", N) as region:
        in_thread(lambda: syscalls.mlock(region.at(0), 4 * PAGE))
        in_thread(lambda: syscalls.mlock2(region.at(2), 4 * PAGE, syscalls.MLOCK_ONFAULT))
        assert locks(region) == (N, [(0, 2, "lo"), (2, N, "lo lf")]), "locks of both threads"


def test_fork_by_a_thread_drops_locks_like_any_fork():
    """A child forked by a thread has none of the process's locks; the process keeps them."""
    with mapping("private", N, flags=syscalls.MAP_LOCKED) as region:

        def act() -> tuple:
            with Child() as child:
                return child.call(locks, region)

        assert in_thread(act) == NONE, "the child of the thread"
        assert locks(region) == ALL, "the process"


def mapping_state() -> tuple[list, int]:
    with mapping("private", N) as region:
        shape = maps.locks(region.addr, region.end, PAGE)
        return shape, pagemap.present_count(region.addr, N)


def future_by_thread(flags: int) -> tuple:
    in_thread(lambda: syscalls.mlockall(flags))
    first = mapping_state()
    in_thread(syscalls.munlockall)
    return first, mapping_state(), status.vmlck_kb()


@pytest.mark.needs("lock-all")
@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (MCL_FUTURE, ([(0, N, "lo")], N)),
        (MCL_FUTURE | MCL_ONFAULT, ([(0, N, "lo lf")], 0)),
        (MCL_CURRENT, ([(0, N, "")], 0)),
    ],
    ids=["future", "future-onfault", "current"],
)
@pytest.mark.detects("thread-mlockall-ignored")
def test_mlockall_and_munlockall_by_a_thread_act_on_the_process(flags, expected):
    """MCL_FUTURE set by a thread that has ended locks the leader's next mapping; munlockall by
    another thread cancels it and all locks."""
    with Child() as child:
        first, second, left = child.call(future_by_thread, flags)
    assert first == expected, "mapping made by the leader after the thread's mlockall"
    assert second == ([(0, N, "")], 0), "mapping made after another thread's munlockall"
    assert left == 0, "VmLck after munlockall by a thread"


@pytest.mark.needs("vfork")
@KINDS
@pytest.mark.detects("vfork-mlock-ignored")
def test_lock_by_a_vfork_child_is_the_parents(kind):
    """mlock and mlock2 by a child that shares the address space lock the parent's memory, count in
    its VmLck, and stay when the child has ended."""
    with mapping(kind, N) as region:
        call_in_vfork_child("mlock", region.addr, 4 * PAGE)
        assert locks(region) == (4, [(0, 4, "lo"), (4, N, "")]), "after the child's mlock"
        present = pagemap.present(region.addr, N)
        assert present == [True] * 4 + [False] * 2, "the child's mlock populated"
        call_in_vfork_child("mlock2", region.at(4), 2 * PAGE, syscalls.MLOCK_ONFAULT)
        assert locks(region) == (N, [(0, 4, "lo"), (4, N, "lo lf")]), "after the child's mlock2"


@pytest.mark.needs("vfork")
@KINDS
@pytest.mark.source("vfork(2)")
@pytest.mark.detects("vfork-munlock-ignored")
def test_unlock_by_a_vfork_child_unlocks_the_parent(kind):
    """munlock of part, then munlockall, by a child that shares the address space take the parent's
    locks away."""
    with mapping(kind, N, flags=syscalls.MAP_LOCKED) as region:
        call_in_vfork_child("munlock", region.at(2), 2 * PAGE)
        expected = (N - 2, [(0, 2, "lo"), (2, 4, ""), (4, N, "lo")])
        assert locks(region) == expected, "after the child's munlock"
        call_in_vfork_child("munlockall")
        assert locks(region) == NONE, "after the child's munlockall"


@pytest.mark.needs("vfork")
def test_unmapping_by_a_vfork_child_uncounts_in_the_parent():
    """munmap by a child that shares the address space takes the pages out of the parent's VmLck."""
    with mapping("private", N, flags=syscalls.MAP_LOCKED) as region:
        call_in_vfork_child("munmap", region.at(4), 2 * PAGE)
        assert locks(region) == (N - 2, [(0, 4, "lo")]), "the parent after the child's munmap"


@pytest.mark.needs("vfork")
@pytest.mark.parametrize("way", ["exit", "SIGKILL"])
@pytest.mark.detects("vfork-end-unlocks")
def test_end_of_a_vfork_child_leaves_the_shared_locks(way):
    """A child that shares the address space and ends, by exit or by a signal, takes no lock along:
    the address space lives on."""
    with mapping("private", N, flags=syscalls.MAP_LOCKED) as region:
        region.write(0x42)
        if way == "exit":
            call_in_vfork_child("getppid")
        else:
            with pytest.raises(ChildKilled):
                call_in_vfork_child("raise", signal.SIGKILL)
        assert locks(region) == ALL, f"the parent's locks after the child's {way}"
        assert pagemap.present(region.addr, N) == [True] * N, "pages stay present"
        assert region.read() == b"\x42" * region.size, "contents stay"


def vfork_future(flags: int) -> tuple:
    call_in_vfork_child("mlockall", flags)
    first = mapping_state()
    call_in_vfork_child("munlockall")
    return first, mapping_state(), status.vmlck_kb()


@pytest.mark.needs("vfork", f"lock:{(4 << 20) // PAGE}")
@pytest.mark.parametrize(
    ("flags", "expected"),
    [(MCL_FUTURE, ([(0, N, "lo")], N)), (MCL_FUTURE | MCL_ONFAULT, ([(0, N, "lo lf")], 0))],
    ids=["future", "future-onfault"],
)
def test_mlockall_by_a_vfork_child_acts_on_the_parent(flags, expected):
    """MCL_FUTURE set by a child that shares the address space locks the parent's next mapping;
    munlockall by another such child cancels it."""
    with Child() as child:
        first, second, left = child.call(vfork_future, flags)
    assert first == expected, "mapping made by the parent after the child's mlockall"
    assert second == ([(0, N, "")], 0), "mapping made after the other child's munlockall"
    assert left == 0, "VmLck after the other child's munlockall"
