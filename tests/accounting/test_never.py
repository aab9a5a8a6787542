# SPDX-License-Identifier: MIT
"""What is never locked and never counted, and what counts elsewhere."""

import errno
import os
from contextlib import ExitStack

import pytest

from helpers import syscalls
from helpers.memory import Region, adopt_mapping, mapping
from helpers.observe import lock_accounting, maps, pagemap, special_mappings, status, vmstat
from helpers.observe.lock_accounting import expect
from helpers.processes import Child, rlimits
from helpers.requirements.inconclusive import inconclusive
from helpers.syscalls import PAGE, io_uring

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("lock:16", "smaps-flags"),
    pytest.mark.source("mlock(2)"),
]

SPECIAL = frozenset({"io", "de", "pf", "mm"})  # VM_SPECIAL


@pytest.mark.needs("lock-all")
def test_special_mappings_are_never_counted():
    """mlock of [vdso] and its data succeeds, and neither marks nor counts them."""
    special = [v for v in maps.smaps() if v.flags & SPECIAL and v.name != "[vsyscall]"]
    if not special:
        inconclusive("this process has no special mapping (vdso=0?)")
    for vma in special:
        seen = syscalls.outcome(syscalls.mlock, vma.start, vma.size)
        assert seen == "ok", f"mlock of {vma.name} succeeds"
        region = Region(vma.start, vma.size)
        assert lock_accounting.read(region) == expect("-" * region.pages, 0), (
            f"{vma.name} is not counted"
        )
        seen = syscalls.outcome(syscalls.munlock, vma.start, vma.size)
        assert seen == "ok", f"munlock of {vma.name} succeeds"
        assert status.vmlck_kb() == 0, "and takes nothing away"


@pytest.mark.needs("lock-all", "map-vdso")
@pytest.mark.deviation("special-mapping-locked")
def test_special_mapping_made_under_future_is_not_counted():
    """Special mappings that the kernel makes under MCL_FUTURE are neither lo nor counted."""
    with Child() as child:
        child.call(syscalls.mlockall, syscalls.MCL_FUTURE)
        low, high = child.call(special_mappings.remap_special_mappings)
        region = Region(low, high - low)
        seen = lock_accounting.read(region, child.pid)
        assert seen.pages == "-" * region.pages, "the vdso is not lo"
        assert seen.vmlck == seen.lo, "VmLck counts exactly the lo pages"


DROPPABLE = syscalls.MAP_DROPPABLE | syscalls.MAP_ANONYMOUS


@pytest.mark.needs("droppable")
@pytest.mark.source("commit 9651fcedf7b9 (MAP_DROPPABLE, 6.11)")
@pytest.mark.parametrize("flags", [0, syscalls.MLOCK_ONFAULT], ids=["mlock", "onfault"])
def test_droppable_is_never_locked(flags):
    """mlock of droppable memory succeeds, and neither marks nor counts it."""
    addr = syscalls.mmap(0, 8 * PAGE, syscalls.PROT_RW, DROPPABLE)
    with adopt_mapping(addr, 8 * PAGE) as region:
        seen = syscalls.outcome(syscalls.mlock2, region.addr, region.size, flags)
        assert seen == "ok", "mlock succeeds"
        assert lock_accounting.read(region) == expect("--------", 0), "nothing is locked"
        syscalls.munlock(region.addr, region.size)
        assert lock_accounting.read(region) == expect("--------", 0), "nor taken away by munlock"


def unmap(addr, size):
    return syscalls.munmap(addr, size)


@pytest.mark.needs("droppable", "lock-all")
@pytest.mark.deviation("droppable-locked")
def test_droppable_made_under_future_is_not_locked():
    """Droppable memory mapped under MCL_FUTURE is neither lo nor counted."""
    with Child() as child:
        child.call(syscalls.mlockall, syscalls.MCL_FUTURE)
        addr = child.call(syscalls.mmap, 0, 8 * PAGE, syscalls.PROT_RW, DROPPABLE)
        seen = lock_accounting.read(Region(addr, 8 * PAGE), child.pid)
        assert seen.pages == "--------", "the new mapping is not lo"
        assert seen.vmlck == seen.lo, "VmLck counts exactly the lo pages"
        child.call(unmap, addr, 8 * PAGE)
        left = lock_accounting.read(Region(addr, 8 * PAGE), child.pid)
        assert left.vmlck == left.lo, "unmapping it takes nothing out of VmLck"


@pytest.mark.needs("droppable")
@pytest.mark.detects("vmlck-one-page-more")
def test_droppable_cannot_be_map_locked():
    """mmap refuses MAP_LOCKED for droppable memory, and counts nothing."""
    with mapping("private", 2, flags=syscalls.MAP_LOCKED) as region:
        how = DROPPABLE | syscalls.MAP_LOCKED
        seen = syscalls.outcome(syscalls.mmap, 0, 8 * PAGE, syscalls.PROT_RW, how)
        assert seen == "EINVAL", "droppable and locked exclude each other"
        assert lock_accounting.read(region) == expect("LL", resident=2), "two pages as before"


@pytest.mark.needs("hugetlb", "lock-all")
@pytest.mark.parametrize("flags", [0, syscalls.MAP_LOCKED], ids=["mlock", "MAP_LOCKED"])
def test_hugetlb_is_never_counted(flags):
    """hugetlb memory is prefaulted by a lock, but neither lo nor counted."""
    size = vmstat.huge_page_size()
    how = syscalls.MAP_PRIVATE | syscalls.MAP_ANONYMOUS | syscalls.MAP_HUGETLB | flags
    with adopt_mapping(syscalls.mmap(0, size, syscalls.PROT_RW, how), size) as region:
        syscalls.mlock(region.addr, region.size)
        assert lock_accounting.read(region) == expect("-" * region.pages, 0), "nothing is counted"
        assert pagemap.present_count(region.addr, 1) == 1, "the huge page is there"
        syscalls.munlock(region.addr, region.size)
        assert status.vmlck_kb() == 0, "munlock takes nothing away"


@pytest.mark.needs("secretmem", "lock-all")
@pytest.mark.source("memfd_secret(2)")
def test_secret_memory_is_counted_if_marked():
    """Secret memory is lo and counted at mmap for as long as it is mapped, or (since 7.2) never
    lo and never counted: what VmLck says, the VMA says."""
    fd = syscalls.syscall("memfd_secret", 0)
    os.ftruncate(fd, 8 * PAGE)
    addr = syscalls.mmap(0, 8 * PAGE, syscalls.PROT_RW, syscalls.MAP_SHARED, fd)
    with adopt_mapping(addr, 8 * PAGE) as region:
        letters = lock_accounting.page_letters(region)
        assert letters in {"LLLLLLLL", "--------"}, "all of it is lo, or nothing"
        assert lock_accounting.read(region) == expect(letters, 0), "VmLck counts it if it is lo"
        syscalls.outcome(syscalls.mlock, region.addr, region.size)  # ENOMEM where it is lo: no GUP
        syscalls.munlock(region.at(2), 3 * PAGE)
        seen = lock_accounting.read(region)
        assert (seen.vmlck, seen.lo, seen.pages) == (letters.count("L"),) * 2 + (letters,), (
            "mlock and munlock change nothing"
        )
        syscalls.munmap(region.at(5), 3 * PAGE)
        left = letters[:5] + "---"
        seen = lock_accounting.read(region)
        assert (seen.vmlck, seen.lo, seen.pages) == (left.count("L"),) * 2 + (left,), (
            "what is unmapped no longer counts"
        )
    assert status.vmlck_kb() == 0, "nothing is left"
    os.close(fd)


@pytest.mark.needs("io-uring", "limit:16")
@pytest.mark.source("io_uring_register(2) IORING_REGISTER_BUFFERS")
def test_pinned_memory_is_counted_apart():
    """Fixed buffers of io_uring count in VmPin and not in VmLck; a lock of the same pages
    counts in VmLck and not in VmPin."""
    # 7.2 no longer counts, even in VmPin, what a ring made with CAP_IPC_LOCK pins.
    hard = rlimits.memlock_limit()[1]
    with (
        mapping("private", 8) as region,
        rlimits.unprivileged_with_limit(hard),
        ExitStack() as stack,
    ):
        try:
            ring = stack.enter_context(io_uring.io_uring_instance())
            # The ring itself may count, in one of the two (VmLck before 5.12).
            locked, pinned = status.vmlck_pages(), status.kb("VmPin") // syscalls.PAGE_KB
            io_uring.register(ring, region.addr, 6 * PAGE)
        except OSError as error:
            if error.errno != errno.ENOMEM:
                raise
            inconclusive("other rings of this user leave no room under RLIMIT_MEMLOCK")
        assert status.vmlck_pages() == locked, "nothing more is locked"
        assert status.kb("VmPin") // syscalls.PAGE_KB == pinned + 6, "six pages are pinned"
        syscalls.mlock(region.addr, region.size)
        assert status.vmlck_pages() == locked + 8, "eight pages are locked"
        assert status.kb("VmPin") // syscalls.PAGE_KB == pinned + 6, "six pages are pinned"
        io_uring.unregister(ring)
        assert status.vmlck_pages() == locked + 8, "unpinned, they are locked as before"
        assert status.kb("VmPin") // syscalls.PAGE_KB == pinned, "and no longer pinned"


def test_populated_memory_is_not_counted():
    """MAP_POPULATE makes memory resident and counts nothing."""
    with mapping("private", 8, flags=syscalls.MAP_POPULATE) as region:
        assert pagemap.present_count(region.addr, 8) == 8, "it is populated"
        assert lock_accounting.read(region) == expect("--------", 0), "it is not locked"
