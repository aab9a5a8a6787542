# SPDX-License-Identifier: MIT
"""hugetlb: memory that is never swapped, so locking it means populating it and no more."""

import os
from contextlib import contextmanager
from pathlib import Path

import pytest

from helpers import memory, syscalls
from helpers.memory import Region, mapping
from helpers.observe import lock_accounting, maps, page_faults, page_flags, pagemap, status, vmstat
from helpers.processes import Child
from helpers.requirements.inconclusive import inconclusive
from helpers.syscalls import PAGE

HUGE = vmstat.huge_page_size()
PAGES = HUGE // PAGE
HOW = syscalls.MAP_PRIVATE | syscalls.MAP_ANONYMOUS | syscalls.MAP_HUGETLB
SETTING = Path("/proc/sys/vm/nr_hugepages")

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.source("mm/mlock.c mlock_fixup", "hugetlbpage.rst"),
]
POOL = pytest.mark.parametrize(
    "pool",
    [
        pytest.param("found", marks=pytest.mark.needs("hugetlb", f"lock:{4 * PAGES}")),
        pytest.param(
            "made",
            marks=[
                pytest.mark.needs("allow-sysctl", "hugetlb-pool", f"lock:{4 * PAGES}"),
                pytest.mark.needs(f"budget:{4 * PAGES}"),
                pytest.mark.exclusive,
            ],
        ),
    ],
)


@contextmanager
def pool_of(pool, request, count):
    """So many free huge pages: the machine's, or added to its pool for the block."""
    if pool == "found":
        if vmstat.meminfo_kb("HugePages_Free") < count:
            pytest.skip(f"needs {count} free huge pages; sysctl vm.nr_hugepages=8")
        yield
        return
    now = int(SETTING.read_text())
    with request.getfixturevalue("reclaim").setting(str(SETTING), str(now + count)):
        if int(SETTING.read_text()) < now + count:
            inconclusive("the kernel found no room for huge pages")
        yield


@contextmanager
def huge(count=1, flags=0, prot=syscalls.PROT_RW):
    size = count * HUGE
    with memory.adopt_mapping(syscalls.mmap(0, size, prot, HOW | flags), size) as region:
        yield region


def free():
    return vmstat.meminfo_kb("HugePages_Free")


def unlocked(region):
    """Nothing of the region is locked, and nothing else."""
    assert all(v.lock == "" for v in maps.smaps(low=region.addr, high=region.end)), "not lo"
    assert maps.rollup_kb() == 0, "Locked"
    assert status.vmlck_kb() == 0, "VmLck"


@POOL
@pytest.mark.parametrize("call", ["mlock", "mlock2", "MAP_LOCKED"])
def test_lock_of_huge_pages_populates_and_marks_nothing(pool, call, request):
    """mlock and MAP_LOCKED of hugetlb memory bring every huge page in and leave no mark, no count
    and no PG_mlocked; munlock changes nothing."""
    with pool_of(pool, request, 2):
        flags = syscalls.MAP_LOCKED if call == "MAP_LOCKED" else 0
        with huge(2, flags) as region:
            if call == "mlock":
                syscalls.mlock(region.addr, region.size)
            elif call == "mlock2":
                syscalls.mlock2(region.addr, region.size, 0)
            present = [pagemap.present_count(region.addr + i * HUGE, 1) for i in range(2)]
            assert present == [1, 1], "both huge pages are there"
            unlocked(region)
            assert page_faults.faults_writing(region.addr, region.size).minor == 0, (
                "no fault is left"
            )
            syscalls.munlock(region.addr, region.size)
            unlocked(region)
            assert region.sub(0, 1).first_bytes() == b"\x3c", "contents"


@POOL
@pytest.mark.needs("kpageflags")
def test_huge_page_is_never_mlocked(pool, request):
    """A locked huge page of hugetlbfs is neither PG_mlocked nor unevictable: it is on no list."""
    with pool_of(pool, request, 1), huge() as region:
        syscalls.mlock(region.addr, region.size)
        seen = page_flags.snapshot(region.addr, 1)
        assert seen.count_with(page_flags.HUGE) == 1, "a huge page"
        assert seen.count_with(page_flags.MLOCKED) == 0, "not mlocked"
        assert seen.count_with(page_flags.UNEVICTABLE) == 0, "not unevictable"


@POOL
def test_lock_on_fault_marks_no_huge_page(pool, request):
    """MLOCK_ONFAULT of hugetlb memory succeeds and marks nothing, neither lo nor lf."""
    # It populates, though: populate_vma_page_range() looks for VM_LOCKONFAULT, which hugetlb
    # never gets (4.4 on).
    with pool_of(pool, request, 2), huge(2) as region:
        answer = syscalls.outcome(syscalls.mlock2, region.addr, region.size, syscalls.MLOCK_ONFAULT)
        assert answer == "ok", "mlock2"
        unlocked(region)
        syscalls.store(region.addr, b"x")
        assert pagemap.present_count(region.addr, 1) == 1, "the page that was touched is there"
        unlocked(region)


@POOL
def test_lock_across_huge_pages_takes_what_is_around_them(pool, request):
    """mlock and munlock over plain memory, huge pages and plain memory act on both sides."""
    with pool_of(pool, request, 1):
        base = syscalls.mmap(0, 3 * HUGE, syscalls.PROT_NONE)
        middle = (base + HUGE) & -HUGE
        syscalls.mmap(
            middle - 2 * PAGE,
            2 * PAGE,
            syscalls.PROT_RW,
            HOW & ~syscalls.MAP_HUGETLB | syscalls.MAP_FIXED,
        )
        syscalls.mmap(middle, HUGE, syscalls.PROT_RW, HOW | syscalls.MAP_FIXED)
        syscalls.mmap(
            middle + HUGE,
            2 * PAGE,
            syscalls.PROT_RW,
            HOW & ~syscalls.MAP_HUGETLB | syscalls.MAP_FIXED,
        )
        whole = Region(middle - 2 * PAGE, HUGE + 4 * PAGE)
        sides = Region(whole.addr, 2 * PAGE), Region(middle + HUGE, 2 * PAGE)
        assert syscalls.outcome(syscalls.mlock, whole.addr, whole.size) == "ok", "mlock"
        assert [lock_accounting.page_letters(s) for s in sides] == ["LL", "LL"], "both sides"
        assert maps.at(middle).lock == "", "not the huge page"
        assert status.vmlck_pages() == 4, "VmLck"
        syscalls.munlock(whole.at(1), whole.size - 2 * PAGE)
        assert [lock_accounting.page_letters(s) for s in sides] == ["L-", "-L"], "munlock across it"
        assert status.vmlck_pages() == 2, "VmLck"
        syscalls.munmap(base, 3 * HUGE)
        assert status.vmlck_pages() == 0, "unmapped"


def map_huge(count, flags=0):
    return syscalls.mmap(0, count * HUGE, syscalls.PROT_RW, HOW | flags)


@POOL
@pytest.mark.needs("lock-all")
def test_future_populates_huge_pages_and_counts_none(pool, request):
    """Huge pages mapped under MCL_FUTURE are brought in, and neither marked nor counted; their
    unmapping takes nothing out of VmLck; mlockall(MCL_CURRENT) passes over them."""
    with pool_of(pool, request, 2), Child() as child:
        child.call(syscalls.mlockall, syscalls.MCL_FUTURE)
        addr = child.call(map_huge, 1)
        assert pagemap.present_count(addr, 1, child.pid) == 1, "populated"
        assert maps.at(addr, child.pid).lock == "", "not lo"
        assert maps.locked_kb(child.pid) == status.vmlck_kb(child.pid), "VmLck: sum of lo"
        child.call(syscalls.mlockall, syscalls.MCL_CURRENT | syscalls.MCL_FUTURE)
        assert maps.at(addr, child.pid).lock == "", "not lo"
        assert maps.locked_kb(child.pid) == status.vmlck_kb(child.pid), "VmLck: sum of lo"
        child.call(syscalls.munmap, addr, HUGE)
        assert maps.locked_kb(child.pid) == status.vmlck_kb(child.pid), "after munmap"


@POOL
def test_lock_without_enough_huge_pages_fails_and_leaves_no_mark(pool, request):
    """mlock of hugetlb memory for which there is no page left (MAP_NORESERVE) gives an error, not
    a SIGBUS, and marks nothing."""
    with pool_of(pool, request, 1):
        count = free() + 1
        size = count * HUGE
        addr = syscalls.mmap(0, size, syscalls.PROT_RW, HOW | syscalls.MAP_NORESERVE)
        with memory.adopt_mapping(addr, size) as region:
            answer = syscalls.outcome(syscalls.mlock, region.addr, region.size)
            assert answer in {"ENOMEM", "EAGAIN"}, "one huge page too many"
            unlocked(region)


@POOL
def test_locked_huge_page_survives_fork_and_copy(pool, request):
    """A child's write takes a huge page of its own; parent and child count and mark nothing."""
    with pool_of(pool, request, 2), huge() as region:
        syscalls.mlock(region.addr, region.size)
        syscalls.memset(region.addr, 0x31, HUGE)
        with Child() as child:
            child.call(syscalls.memset, region.addr, 0x32, HUGE)
            assert child.call(status.vmlck_kb) == 0, "VmLck of the child"
            assert region.sub(0, 1).first_bytes() == b"\x31", "the parent's contents"
            unlocked(region)


@POOL
def test_shared_huge_pages_are_never_counted(pool, request):
    """A shared hugetlb mapping over memfd is populated by its lock, in part too, and uncounted."""
    with pool_of(pool, request, 2):
        fd = os.memfd_create("huge", os.MFD_HUGETLB)
        size = 2 * HUGE
        os.ftruncate(fd, size)
        addr = syscalls.mmap(0, size, syscalls.PROT_RW, syscalls.MAP_SHARED, fd)
        with memory.adopt_mapping(addr, size) as region, mapping("private", 1) as plain:
            syscalls.mlock(region.addr + HUGE, HUGE)
            assert pagemap.present_count(region.addr, 1) == 0, "the first is not locked"
            assert pagemap.present_count(region.addr + HUGE, 1) == 1, "the second is there"
            unlocked(region)
            syscalls.mlock(plain.addr, PAGE)
            syscalls.munlock(region.addr, region.size)
            assert status.vmlck_pages() == 1, "the plain page alone"
