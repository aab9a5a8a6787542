# SPDX-License-Identifier: MIT
"""PG_mlocked and PG_unevictable, page by page, over the life of a lock."""

import os

import pytest

from helpers import syscalls
from helpers.machine import kernel_version
from helpers.memory import mapping, scratch_file
from helpers.observe import lru_batches, page_flags
from helpers.processes import Child
from helpers.reclaim import control_pairs, drivers, range_state
from helpers.requirements.inconclusive import inconclusive
from helpers.syscalls import PAGE

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("kpageflags", "lock:64"),
    pytest.mark.source("unevictable-lru.rst"),
    pytest.mark.claim("W14"),
]

ANONYMOUS = ["private", "shared", "memfd-private", "memfd-shared"]
ON_DISK = [
    pytest.param(kind, marks=pytest.mark.needs("disk-file"))
    for kind in ("file-private", "file-shared")
]
KINDS = pytest.mark.parametrize("kind", ANONYMOUS + ON_DISK)
PAGES = 48
"""More than the 31 pages that may wait in a CPU's batch."""

BEFORE_5_18 = kernel_version.version() < (5, 18, 0)
"""The pages of a file that is not private are marked by mlock or reclaim, not by faults."""


def seen(region, pid="self"):
    """Per page "M" for PG_mlocked, "U" for PG_unevictable, after the CPU's batch is drained."""
    lru_batches.mlock_drain_local()
    snapshot = page_flags.snapshot(region.addr, region.pages, pid)
    names = {(False, False): "-", (True, False): "M", (False, True): "U", (True, True): "MU"}
    return [names[bits] for bits in zip(snapshot.mlocked, snapshot.unevictable)]


@KINDS
@pytest.mark.usefixtures("one_cpu")
@pytest.mark.detects(
    "mlocked-never-set",
    "unevictable-never-set",
    "file-not-mlocked",
    "mlock-last-unmarked",
    "munlock-stays-unevictable",
)
def test_present_pages_are_marked_by_mlock_and_unmarked_by_munlock(kind):
    """mlock marks every page that was present, the last one too, and munlock unmarks every one."""
    with mapping(kind, PAGES) as region:
        region.touch()
        lru_batches.mlock_drain_local()
        assert seen(region) == ["-"] * PAGES, "before: neither mlocked nor unevictable"
        syscalls.mlock(region.addr, region.size)
        assert seen(region) == ["MU"] * PAGES, "locked: mlocked and unevictable"
        syscalls.munlock(region.addr, region.size)
        assert seen(region) == ["-"] * PAGES, "unlocked: neither"


@KINDS
@pytest.mark.parametrize("write", [True, False], ids=["written", "read"])
@pytest.mark.usefixtures("one_cpu")
def test_pages_faulted_in_by_the_lock_are_marked(kind, write):
    """mlock of a range that was never touched brings every page in and marks it."""
    if not write and kind == "private":
        prot = syscalls.PROT_RW  # a read-only one would map the zero page
    else:
        prot = syscalls.PROT_RW if write else syscalls.PROT_READ
    with mapping(kind, PAGES, prot=prot) as region:
        syscalls.mlock(region.addr, region.size)
        assert seen(region) == ["MU"] * PAGES, "locked: mlocked and unevictable"
        syscalls.munlock(region.addr, region.size)
        assert seen(region) == ["-"] * PAGES, "unlocked: neither"


@KINDS
@pytest.mark.parametrize("way", ["onfault", "inaccessible"])
@pytest.mark.usefixtures("one_cpu")
@pytest.mark.detects("onfault-not-mlocked")
def test_pages_faulted_in_later_are_marked(kind, way):
    """A page that is first touched when its range is locked already is marked as it comes in."""
    if BEFORE_5_18 and kind in {"shared", "memfd-shared", "file-shared"}:
        pytest.skip("needs 5.18: before, file faults leave the marking to reclaim")
    prot = syscalls.PROT_NONE if way == "inaccessible" else syscalls.PROT_RW
    flags = syscalls.MAP_LOCKED if way == "inaccessible" else 0
    with mapping(kind, PAGES, prot=prot, flags=flags) as region:
        if way == "onfault":
            syscalls.mlock2(region.addr, region.size, syscalls.MLOCK_ONFAULT)
        else:
            syscalls.mprotect(region.addr, region.size, syscalls.PROT_RW)
        region.touch()
        assert seen(region) == ["MU"] * PAGES, "locked: mlocked and unevictable"
        syscalls.munlock(region.addr, region.size)
        assert seen(region) == ["-"] * PAGES, "unlocked: neither"


@KINDS
@pytest.mark.usefixtures("one_cpu")
@pytest.mark.detects("mlock-marks-next-page")
def test_lock_marks_its_own_pages_and_no_neighbour(kind):
    """Locking and unlocking parts marks and unmarks exactly their pages."""
    with mapping(kind, PAGES) as region:
        region.touch()
        lru_batches.mlock_drain_local()
        syscalls.mlock(region.at(8), 16 * PAGE)
        expected = ["-"] * 8 + ["MU"] * 16 + ["-"] * (PAGES - 24)
        assert seen(region) == expected, "pages 8 to 23 are locked"
        syscalls.munlock(region.at(12), 4 * PAGE)
        expected[12:16] = ["-"] * 4
        assert seen(region) == expected, "pages 12 to 15 are unlocked again"
        syscalls.mlock(region.addr, region.size)
        syscalls.munlock(region.at(PAGES - 1), PAGE)
        expected = ["MU"] * (PAGES - 1) + ["-"]
        assert seen(region) == expected, "only the last page is unlocked"
        syscalls.munlock(region.addr, PAGE)
        expected[0] = "-"
        assert seen(region) == expected, "and the first"


@pytest.mark.usefixtures("one_cpu")
def test_marks_survive_fork_and_the_childs_exit():
    """fork, a child's writes and its exit leave the marks of the parent's pages as they are."""
    with mapping("private", PAGES) as region:
        region.touch()
        lru_batches.mlock_drain_local()
        syscalls.mlock(region.addr, region.size)
        half = region.sub(0, PAGES // 2)
        with Child() as child:
            assert seen(region) == ["MU"] * PAGES, "after fork"
            child.call(half.touch)
            child.call(lru_batches.mlock_drain_local)
            assert seen(half, child.pid) == ["-"] * half.pages, "the child's copies are unmarked"
            assert seen(region) == ["MU"] * PAGES, "and the parent's pages as they were"
        assert seen(region) == ["MU"] * PAGES, "after the child's exit"


@pytest.mark.claim("W18")
@pytest.mark.parametrize("end", ["munmap", "exit", "SIGKILL", "exec", "munlockall"])
@pytest.mark.usefixtures("one_cpu")
def test_end_of_the_only_lock_unmarks_pages_that_live_on(end):
    """However a lock ends, the pages others still map are neither mlocked nor unevictable."""
    with mapping("shared", PAGES) as region:
        region.touch()
        lru_batches.mlock_drain_local()
        with Child() as child:
            child.call(region.first_bytes)
            child.call(syscalls.mlock, region.addr, region.size)
            assert seen(region) == ["MU"] * PAGES, "locked by the child"
            if end == "munmap":
                child.call(syscalls.munmap, region.addr, region.size)
            elif end == "munlockall":
                child.call(syscalls.munlockall)
            else:
                child.end_by(end)
            assert seen(region) == ["-"] * PAGES, "no lock is left, and no mark"


def busy_elsewhere(region, cpu):
    """In a child: fault the pages in on that CPU, where they wait in its batch."""
    os.sched_setaffinity(0, {cpu})
    region.touch()


@pytest.mark.needs("cgroup", "swap")
@pytest.mark.claim("W11", "W17")
@pytest.mark.parametrize("where", ["same", "other"])
@pytest.mark.parametrize("pages", [4, 15, PAGES])
def test_lock_of_pages_in_a_batch_holds_and_is_repaired(reclaim, where, pages):
    """Pages locked while they wait in a CPU's batch stay, and are marked once reclaim met them."""
    cpus = sorted(os.sched_getaffinity(0))
    here, there = cpus[0], cpus[-1] if where == "other" else cpus[0]
    with (
        mapping("shared", pages) as region,
        mapping("shared", pages) as control,
        reclaim.cgroup() as group,
        Child() as toucher,
        Child() as locker,
    ):
        for child in (toucher, locker):
            group.add(child.pid)
        locker.call(os.sched_setaffinity, 0, {here})
        toucher.call(busy_elsewhere, control, there)
        toucher.call(lru_batches.mlock_drain_local)
        toucher.call(busy_elsewhere, region, there)
        locker.call(syscalls.mlock, region.addr, region.size)
        before = range_state.range_state(locker.pid, region)
        for child in (toucher, locker):
            child.call(lru_batches.mlock_drain_local)
        drivers.reclaim_until_evicted(group.reclaim, toucher.pid, control)
        for child in (toucher, locker):
            child.call(lru_batches.mlock_drain_local)
        now = page_flags.snapshot(region.addr, pages, locker.pid)
        assert sum(now.present) == pages, "every page is in memory"
        after = range_state.range_state(locker.pid, region)
        assert range_state.moved_frames(before, after) == 0, "in the frame it had"
        assert now.count_with(page_flags.MLOCKED) == pages, "and mlocked"
        assert now.count_with(page_flags.UNEVICTABLE) == pages, "and unevictable"


@pytest.mark.needs("cgroup", "disk-file")
@pytest.mark.claim("W17")
@pytest.mark.usefixtures("one_cpu")
def test_page_unmapped_and_locked_again_at_once_is_repaired(reclaim):
    """A locked file page that is unmapped and at once mapped locked again holds under pressure."""
    with reclaim.cgroup() as group, Child() as child:
        group.add(child.pid)
        control = child.call(control_pairs.make_pairs, ("file-shared",), "mlock", PAGES)[
            "file-shared"
        ].control
        addr = child.call(remapped, PAGES)
        drivers.reclaim_until_evicted(group.reclaim, child.pid, control)
        child.call(lru_batches.mlock_drain_local)
        now = page_flags.snapshot(addr, PAGES, child.pid)
        assert sum(now.present) == PAGES, "every page is in memory"
        assert now.count_with(page_flags.MLOCKED) == PAGES, "and mlocked, at the latest by reclaim"


def remapped(pages):
    """In the child: map, lock, unmap and lock again the pages of one file."""

    fd, size = scratch_file(pages), pages * PAGE
    how = syscalls.MAP_SHARED | syscalls.MAP_LOCKED
    syscalls.munmap(syscalls.mmap(0, size, syscalls.PROT_RW, how, fd), size)
    return syscalls.mmap(0, size, syscalls.PROT_RW, how, fd)


@pytest.mark.needs("cgroup", "swap")
@pytest.mark.claim("W2")
def test_idle_locked_memory_outlasts_many_reclaim_passes(reclaim):
    """Locked memory that nobody touches stays through pass after pass, its marks too."""
    with reclaim.cgroup() as group, Child() as child:
        group.add(child.pid)
        pair = child.call(control_pairs.make_pairs, ("private",), "mlock", PAGES)["private"]
        before = range_state.range_state(child.pid, pair.locked)
        drivers.reclaim_until_evicted(group.reclaim, child.pid, pair.control)
        for _ in range(20):
            child.call(control_pairs.fill, pair.control)  # something to reclaim in each pass
            group.reclaim()
        after = page_flags.snapshot(pair.locked.addr, PAGES, child.pid)
        if range_state.absent_pages(pair.control, child.pid) < PAGES // 2:
            inconclusive("the control was not swapped out in the last pass")
        assert sum(after.present) == PAGES, "every locked page is in memory"
        moved = range_state.moved_frames(before, range_state.range_state(child.pid, pair.locked))
        assert moved == 0, "in the frame it had"
        assert after.count_with(page_flags.MLOCKED | page_flags.UNEVICTABLE) == PAGES, "and marked"
        referenced = 1 << page_flags.KPF["REFERENCED"] | 1 << page_flags.KPF["ACTIVE"]
        assert after.count_with(referenced) == 0, "though the kernel did not see it used"
