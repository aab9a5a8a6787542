# SPDX-License-Identifier: MIT
"""MADV_DONTFORK and MADV_WIPEONFORK on locked memory."""

import pytest

from helpers import syscalls
from helpers.memory import Region, mapping
from helpers.observe import maps, page_faults, pagemap, status
from helpers.processes import Child, ChildKilled
from helpers.syscalls import PAGE

N = 8
pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs(f"lock:{N}"),
    pytest.mark.source("madvise(2)"),
]
LOCKS = pytest.mark.parametrize("flags", [0, syscalls.MLOCK_ONFAULT], ids=["now", "onfault"])


def shape(region: Region) -> list:
    return maps.layout(region)


def state(region: Region) -> tuple[int, int, list, list]:
    """VmLck in pages, lo mappings in kB, layout of the range, present pages."""
    vmlck = status.vmlck_pages()
    return vmlck, maps.locked_kb(), shape(region), pagemap.present(region.addr, region.pages)


def locked(region: Region, flags: int) -> tuple[int, int, list, list]:
    region.write(0x42)
    syscalls.mlock2(region.addr, region.size, flags)
    return state(region)


@pytest.mark.parametrize("kind", ["private", "shared", "memfd-shared", "memfd-private"])
@LOCKS
@pytest.mark.detects("fork-dontfork-ignored")
def test_dontfork_locked_memory_is_absent_in_the_child(kind, flags):
    """A locked mapping with MADV_DONTFORK is not in the child; the parent's lock, VmLck, pages and
    contents stay, and its writes do not fault for the fork."""
    with mapping(kind, N) as region:
        locked(region, flags)
        syscalls.madvise(region.addr, region.size, syscalls.MADV_DONTFORK)
        before = state(region)
        assert before[0] == N, "MADV_DONTFORK leaves VmLck"
        with Child() as child:
            assert child.call(shape, region) == [], "the child has no mapping there"
            assert child.call(status.vmlck_pages) == 0, "VmLck of the child is 0"
            seen = syscalls.outcome(child.call, syscalls.mlock, region.addr, region.size)
            assert seen == "ENOMEM", "mlock finds nothing to lock in the child"
            assert state(region) == before, "the parent's lock stays while the child lives"
            faults = page_faults.faults_writing(region.addr, region.size, 0x43)
            assert faults == page_faults.Faults(0, 0), "the parent's pages are shared with nobody"
        assert state(region) == before, "and when it has ended"
        assert region.read() == b"\x43" * region.size, "contents of the parent"


def test_dontfork_of_part_of_a_locked_range():
    """MADV_DONTFORK of the middle of a locked mapping: the child lacks the middle and has both
    ends, unlocked; the parent's lock covers all three parts."""
    with mapping("private", N) as region:
        locked(region, 0)
        syscalls.madvise(region.at(3), 2 * PAGE, syscalls.MADV_DONTFORK)
        with Child() as child:
            seen = child.call(shape, region)
            assert seen == [(0, 3, ""), (5, N, "")], "the child has the two ends"
            ends = child.call(region.sub(0, 3).read) + child.call(region.sub(5, 3).read)
            assert ends == b"\x42" * 6 * PAGE, "with their contents"
            assert child.call(status.vmlck_pages) == 0, "VmLck of the child is 0"
            parts = [(0, 3, "lo"), (3, 5, "lo"), (5, N, "lo")]
            assert shape(region) == parts, "the parent's three parts are locked"
            assert status.vmlck_pages() == N, "and counted"


def test_dontfork_memory_faults_in_the_child():
    """Touching memory that MADV_DONTFORK kept from the child kills the child by SIGSEGV."""
    with mapping("private", N) as region:
        locked(region, 0)
        syscalls.madvise(region.addr, region.size, syscalls.MADV_DONTFORK)
        with Child() as child, pytest.raises(ChildKilled) as caught:
            child.call(region.touch)
        assert caught.value.signal == "SIGSEGV", "signal that ends the child"
        assert status.vmlck_pages() == N, "VmLck of the parent"


@pytest.mark.parametrize("kind", ["private", "memfd-shared"])
def test_dofork_undoes_dontfork_on_locked_memory(kind):
    """After MADV_DOFORK a child has the locked mapping again, with its contents, not locked."""
    with mapping(kind, N) as region:
        before = locked(region, 0)
        syscalls.madvise(region.addr, region.size, syscalls.MADV_DONTFORK)
        syscalls.madvise(region.addr, region.size, syscalls.MADV_DOFORK)
        assert state(region) == before, "the two advices leave the lock as it was"
        with Child() as child:
            assert child.call(shape, region) == [(0, N, "")], "the child has it, unlocked"
            assert child.call(region.read) == b"\x42" * region.size, "with its contents"
            assert child.call(status.vmlck_pages) == 0, "VmLck of the child is 0"


@LOCKS
@pytest.mark.detects("fork-wipeonfork-ignored")
def test_wipeonfork_locked_memory_is_zero_and_unlocked_in_the_child(flags):
    """A child finds a locked mapping with MADV_WIPEONFORK absent, zero and unlocked, and writes
    to it unseen; the parent's lock, pages and contents stay, and its writes do not fault."""
    with mapping("private", N) as region:
        locked(region, flags)
        syscalls.madvise(region.addr, region.size, syscalls.MADV_WIPEONFORK)
        before = state(region)
        assert before[0] == N, "MADV_WIPEONFORK leaves VmLck"
        with Child() as child:
            absent = child.call(state, region)
            assert absent == (0, 0, [(0, N, "")], [False] * N), "unlocked, nothing present"
            flags_there = child.call(maps.at, region.addr).flags
            assert not flags_there & {"lo", "lf"}, "neither lo nor lf in the child"
            assert child.call(region.read) == bytes(region.size), "the child reads zeros"
            child.call(region.write, 0x77)
            assert region.read() == b"\x42" * region.size, "the parent's contents stay"
            assert state(region) == before, "and its lock and pages"
            faults = page_faults.faults_writing(region.addr, region.size, 0x43)
            assert faults == page_faults.Faults(0, 0), "the parent's pages are shared with nobody"
            assert child.call(region.read) == b"\x77" * region.size, "the child's are its own"
        assert state(region) == before, "the parent's lock stays when the child has ended"


def test_wipeonfork_of_part_of_a_locked_range():
    """MADV_WIPEONFORK of the middle of a locked mapping: the child has zeros there and the
    contents on both sides, all unlocked."""
    with mapping("private", N) as region:
        locked(region, 0)
        syscalls.madvise(region.at(3), 2 * PAGE, syscalls.MADV_WIPEONFORK)
        with Child() as child:
            assert child.call(status.vmlck_pages) == 0, "VmLck of the child is 0"
            locks = {lock for _, _, lock in child.call(shape, region)}
            assert locks == {""}, "no part is locked in the child"
            held = child.call(region.first_bytes)
            assert held == b"\x42" * 3 + b"\0" * 2 + b"\x42" * 3, "only the middle is wiped"
        assert region.first_bytes() == b"\x42" * N, "the parent's contents stay"


def test_keeponfork_undoes_wipeonfork_on_locked_memory():
    """After MADV_KEEPONFORK a child has the contents again, not locked."""
    with mapping("private", N) as region:
        before = locked(region, 0)
        syscalls.madvise(region.addr, region.size, syscalls.MADV_WIPEONFORK)
        syscalls.madvise(region.addr, region.size, syscalls.MADV_KEEPONFORK)
        assert state(region) == before, "the two advices leave the lock as it was"
        with Child() as child:
            assert child.call(region.read) == b"\x42" * region.size, "contents in the child"
            assert child.call(state, region)[:3] == (0, 0, [(0, N, "")]), "unlocked"


def test_child_locks_wiped_memory_for_itself():
    """A child may lock memory that was wiped for it: zero pages present at once, VmLck its own."""
    with mapping("private", N) as region:
        locked(region, 0)
        syscalls.madvise(region.addr, region.size, syscalls.MADV_WIPEONFORK)
        with Child() as child:
            child.call(syscalls.mlock, region.addr, region.size)
            kb = N * syscalls.PAGE_KB
            seen = child.call(state, region)
            assert seen == (N, kb, [(0, N, "lo")], [True] * N), "the child's lock populates"
            assert child.call(region.read) == bytes(region.size), "with zeros"
        assert region.first_bytes() == b"\x42" * N, "the parent's contents stay"


def wiped_grandchild(region: Region) -> tuple[bytes, int]:
    region.write(0x55)
    syscalls.mlock(region.addr, region.size)
    with Child() as child:
        return child.call(region.first_bytes), child.call(status.vmlck_pages)


def test_wipeonfork_holds_for_the_next_generation():
    """The advice is inherited: what a child wrote to and locked in wiped memory is wiped and
    unlocked for its own child."""
    with mapping("private", N) as region:
        locked(region, 0)
        syscalls.madvise(region.addr, region.size, syscalls.MADV_WIPEONFORK)
        with Child() as child:
            seen = child.call(wiped_grandchild, region)
        assert seen == (bytes(N), 0), "contents and VmLck of the grandchild"


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("private", "ok"),
        ("shared", "EINVAL"),
        ("memfd-shared", "EINVAL"),
        ("memfd-private", "EINVAL"),
        ("file-private", "EINVAL"),
        ("file-shared", "EINVAL"),
    ],
)
@pytest.mark.parametrize("lock", [True, False], ids=["locked", "unlocked"])
@pytest.mark.detects("wipeonfork-refused")
def test_wipeonfork_accepts_private_anonymous_memory_only(kind, expected, lock):
    """MADV_WIPEONFORK of locked private anonymous memory succeeds, of shared or file memory fails
    with EINVAL: as without a lock."""
    with mapping(kind, N, flags=syscalls.MAP_LOCKED if lock else 0) as region:
        before = state(region)
        seen = syscalls.outcome(
            syscalls.madvise, region.addr, region.size, syscalls.MADV_WIPEONFORK
        )
        assert seen == expected, "MADV_WIPEONFORK"
        assert state(region) == before, "the lock is as before"
