# SPDX-License-Identifier: MIT
"""Every way memory can be taken away, tried on locked pages beside unlocked ones."""

import ctypes
import os

import pytest

from helpers import syscalls
from helpers.memory import Region
from helpers.observe import mincore
from helpers.processes import Child
from helpers.reclaim import control_pairs, drivers, range_state
from helpers.requirements.inconclusive import inconclusive
from helpers.syscalls import PAGE

SIZE = control_pairs.SIZE
KINDS = ("private", "shared", "memfd-shared")

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("cgroup", "lock:512", "budget:1024"),
    pytest.mark.source("mlock(2) DESCRIPTION", "unevictable-lru.rst"),
    pytest.mark.claim("W1"),
]


def check(pid, pairs, drives):
    """Drive until the controls have gone, then compare what was locked with what it was."""
    ranges = [p.locked for p in pairs.values()]
    before = range_state.range_states(pid, ranges)
    drivers.reclaim_until_evicted(drives, pid, *(p.control for p in pairs.values()))
    after = range_state.range_states(pid, ranges)
    present = dict(zip(pairs, (s.present for s in after)))
    assert present == dict.fromkeys(pairs, SIZE), "every locked page is in memory"
    swapped = dict(zip(pairs, (s.swap_kb for s in after)))
    assert swapped == dict.fromkeys(pairs, 0), "none of it is in swap"
    moved = dict(zip(pairs, map(range_state.moved_frames, before, after)))
    assert moved == dict.fromkeys(pairs, 0), "each page is in the frame it had"


@pytest.mark.needs("swap")
@pytest.mark.source("cgroup-v1/memory.rst", "cgroup-v2.rst")
@pytest.mark.parametrize("route", ["mlock", "mlock2-onfault"])
def test_exceeding_the_limit_takes_unlocked_memory_only(reclaim, route):
    """A process that writes beyond its cgroup's limit pushes out what others have not locked."""
    with reclaim.cgroup() as group, Child() as child:
        group.add(child.pid)
        pairs = child.call(control_pairs.make_pairs, KINDS, route, SIZE)
        with drivers.hog(group, 4 * len(KINDS) * SIZE * PAGE) as eat:
            check(child.pid, pairs, eat)


@pytest.mark.needs("swap", "mglru", "allow-sysctl")
@pytest.mark.source("multigen_lru.rst")
@pytest.mark.exclusive
@pytest.mark.parametrize("enabled", ["n", "y"], ids=["classic", "multi-gen"])
@pytest.mark.parametrize("way", ["reclaim", "hog"])
def test_both_generations_of_reclaim_leave_locked_memory(reclaim, enabled, way):
    """The classic LRU and the multi-gen LRU alike take what is not locked and nothing else."""
    with (
        reclaim.setting(LRU_GEN, enabled),
        reclaim.cgroup() as group,
        Child() as child,
    ):
        group.add(child.pid)
        pairs = child.call(control_pairs.make_pairs, KINDS, "mlock", SIZE)
        if way == "reclaim":
            check(child.pid, pairs, group.reclaim)
        else:
            with drivers.hog(group, 4 * len(KINDS) * SIZE * PAGE) as eat:
                check(child.pid, pairs, eat)


LRU_GEN = "/sys/kernel/mm/lru_gen/enabled"


def advise(region, advice):
    return syscalls.outcome(syscalls.madvise, region.addr, region.size, advice)


@pytest.mark.needs("swap", "pageout")
@pytest.mark.source("madvise(2) MADV_PAGEOUT")
def test_pageout_of_ones_own_memory_spares_what_is_locked(reclaim):
    """MADV_PAGEOUT takes an unlocked range at once, and refuses a locked one with EINVAL."""
    kinds = ("private", "memfd-shared")
    with reclaim.cgroup() as group, Child() as child:
        group.add(child.pid)
        pairs = child.call(control_pairs.make_pairs, kinds, "mlock", SIZE)
        answers = {}

        def both():
            for kind, pair in pairs.items():
                child.call(advise, pair.control, syscalls.MADV_PAGEOUT)
                answers[kind] = child.call(advise, pair.locked, syscalls.MADV_PAGEOUT)

        check(child.pid, pairs, both)
        assert answers == dict.fromkeys(kinds, "EINVAL"), "the locked ranges are refused"


def advise_other(fd, region, advice):
    vector = (ctypes.c_size_t * 2)(region.addr, region.size)
    return syscalls.outcome(syscalls.syscall, "process_madvise", fd, vector, 1, advice, 0)


@pytest.mark.own_process
@pytest.mark.needs("swap", "pageout", "process-madvise", "CAP_SYS_NICE")
@pytest.mark.source("process_madvise(2)")
def test_pageout_by_another_process_spares_what_is_locked(reclaim):
    """process_madvise(MADV_PAGEOUT) from outside takes unlocked memory, never locked memory."""
    with reclaim.cgroup() as group, Child() as child:
        group.add(child.pid)
        pairs = child.call(control_pairs.make_pairs, ("private",), "mlock", SIZE)
        locked, control = pairs["private"].locked, pairs["private"].control
        fd = os.pidfd_open(child.pid)
        answers = []

        def both():
            advise_other(fd, control, syscalls.MADV_PAGEOUT)
            answers.append(advise_other(fd, locked, syscalls.MADV_PAGEOUT))

        check(child.pid, pairs, both)
        assert set(answers) == {"EINVAL"}, "the locked range is refused"


def half_locked_file(pages):
    """In the child: a file's pages in the page cache, the first half mapped and locked."""
    fd = control_pairs.disk_file(pages)
    half = pages // 2 * PAGE
    addr = syscalls.mmap(0, pages * PAGE, syscalls.PROT_RW, syscalls.MAP_SHARED, fd)
    syscalls.mlock(addr, half)
    # Pages that were mapped are kept by these two calls: the control is cached, not mapped.
    os.pread(fd, half, half)
    return addr, fd


def cached(addr, pages):
    return mincore.resident(addr, pages)


def forget(fd):
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


@pytest.mark.needs("disk-file", "mincore")
@pytest.mark.parametrize(
    "way",
    [
        pytest.param("fadvise", marks=pytest.mark.source("posix_fadvise(2)")),
        pytest.param(
            "drop_caches",
            marks=[
                pytest.mark.needs("allow-sysctl"),
                pytest.mark.exclusive,
                pytest.mark.source("sysctl/vm.rst drop_caches"),
            ],
        ),
    ],
)
def test_dropping_page_cache_keeps_locked_file_pages(reclaim, way):
    """POSIX_FADV_DONTNEED and drop_caches drop a file's unused pages, and none that is locked."""
    with reclaim.cgroup() as group, Child() as child:
        group.add(child.pid)
        addr, fd = child.call(half_locked_file, 2 * SIZE)
        before = child.call(cached, addr, 2 * SIZE)
        mapped = Region(addr, SIZE * PAGE)
        held = range_state.range_state(child.pid, mapped)
        if way == "fadvise":
            child.call(forget, fd)
        else:
            drivers.drop_caches()
        after = child.call(cached, addr, 2 * SIZE)
        if sum(before[SIZE:]) < SIZE or sum(after[SIZE:]) > SIZE // 4:
            inconclusive(f"{sum(after[SIZE:])} of {SIZE} unlocked pages stayed in the page cache")
        assert sum(after[:SIZE]) == SIZE, "every locked page is in the page cache"
        now = range_state.range_state(child.pid, mapped)
        assert now.present == SIZE, "and still mapped"
        assert range_state.moved_frames(held, now) == 0, "in the frame it had"
