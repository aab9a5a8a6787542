# SPDX-License-Identifier: MIT
"""Every way to lock counts the range in VmLck, at once and in full."""

import os

import pytest

from helpers import syscalls
from helpers.memory import MAPPING_KINDS, mapping, memfd
from helpers.memory.layouts import unmap_pages
from helpers.observe import lock_accounting, mincore, pagemap
from helpers.observe.lock_accounting import expect
from helpers.syscalls import PAGE

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("lock:16", "smaps-flags"),
    pytest.mark.source("mlock(2)"),
]

SHARED_ANONYMOUS = syscalls.MAP_SHARED | syscalls.MAP_ANONYMOUS


def lock_full(addr, length):
    return syscalls.mlock2(addr, length, 0)


def lock_on_fault(addr, length):
    return syscalls.mlock2(addr, length, syscalls.MLOCK_ONFAULT)


POPULATING = pytest.mark.parametrize("lock", [syscalls.mlock, lock_full], ids=["mlock", "mlock2"])


@POPULATING
@pytest.mark.parametrize("kind", MAPPING_KINDS)
@pytest.mark.detects("vmlck-one-page-less", "vmlck-always-zero", "vmlck-shared-uncounted")
def test_vmlck_grows_by_locked_length(kind, lock):
    """Locking a mapping of any kind counts and populates every page of it."""
    with mapping(kind, 8) as region:
        assert lock_accounting.read(region) == expect("--------", resident=0), (
            "nothing locked before"
        )
        lock(region.addr, region.size)
        assert lock_accounting.read(region) == expect("LLLLLLLL", resident=8), (
            "VmLck, the lo VMAs and Locked count 8 pages"
        )


@pytest.mark.claim("W17")
@pytest.mark.parametrize("kind", MAPPING_KINDS)
def test_onfault_lock_counts_at_once(kind):
    """mlock2(MLOCK_ONFAULT) counts every page before any is touched; a touch adds that page to
    Locked and nothing to VmLck."""
    with mapping(kind, 8) as region:
        unlocked = syscalls.outcome(
            syscalls.msync, region.addr, region.size, syscalls.MS_INVALIDATE
        )
        assert unlocked == "ok", "msync(MS_INVALIDATE) finds nothing locked before"
        lock_on_fault(region.addr, region.size)
        assert lock_accounting.read(region) == expect("FFFFFFFF", resident=0), (
            "8 pages count, none is resident"
        )
        locked = syscalls.outcome(syscalls.msync, region.addr, region.size, syscalls.MS_INVALIDATE)
        assert locked == "EBUSY", "msync(MS_INVALIDATE) meets a locked VMA"
        for page in (0, 3, 7):
            syscalls.memset(region.at(page), 1, 1)
        assert lock_accounting.read(region) == expect("FFFFFFFF", resident=3), (
            "three touched pages are in Locked, VmLck stays"
        )


@pytest.mark.source("mmap(2) MAP_LOCKED")
@pytest.mark.parametrize("flags", [0, syscalls.MAP_NONBLOCK], ids=["blocking", "nonblock"])
@pytest.mark.parametrize("kind", MAPPING_KINDS)
@pytest.mark.detects("vmlck-mmap-uncounted", "vmlck-mmap-one-short")
def test_vmlck_grows_by_mapped_length(kind, flags):
    """mmap(MAP_LOCKED) counts and populates the whole mapping, MAP_NONBLOCK or not."""
    with mapping(kind, 8, flags=syscalls.MAP_LOCKED | flags) as region:
        assert lock_accounting.read(region) == expect("LLLLLLLL", resident=8), (
            "a MAP_LOCKED mapping of 8 pages counts 8 pages"
        )


@pytest.mark.source("mmap(2) MAP_LOCKED")
def test_map_locked_of_unaligned_length_counts_whole_pages():
    """mmap(MAP_LOCKED) of two pages and a byte counts three pages."""
    with mapping("private", 8) as region:
        how = (
            syscalls.MAP_PRIVATE | syscalls.MAP_ANONYMOUS | syscalls.MAP_FIXED | syscalls.MAP_LOCKED
        )
        syscalls.mmap(region.addr, 2 * PAGE + 1, syscalls.PROT_RW, how)
        assert lock_accounting.read(region) == expect("LLL-----", resident=3), "three pages count"


@pytest.mark.source("mmap(2) MAP_LOCKED")
@pytest.mark.parametrize("kind", ["private", "shared"])
def test_map_locked_beside_locked_counts(kind):
    """A MAP_LOCKED mapping placed right behind, or right before, a locked one, with which it
    may merge, is counted."""
    how = syscalls.MAP_FIXED | syscalls.MAP_LOCKED | syscalls.MAP_ANONYMOUS
    how |= syscalls.MAP_SHARED if kind == "shared" else syscalls.MAP_PRIVATE
    with mapping(kind, 9, prot=syscalls.PROT_NONE) as region:
        syscalls.mmap(region.at(3), 3 * PAGE, syscalls.PROT_RW, how)
        assert lock_accounting.read(region) == expect("---LLL---", resident=3), "the first counts"
        syscalls.mmap(region.at(6), 2 * PAGE, syscalls.PROT_RW, how)
        assert lock_accounting.read(region) == expect("---LLLLL-", resident=5), "the one behind too"
        syscalls.mmap(region.at(2), PAGE, syscalls.PROT_RW, how)
        assert lock_accounting.read(region) == expect("--LLLLLL-", resident=6), "the one before too"


PARTS = [(0, 1), (0, 3), (2, 4), (5, 3), (7, 1), (0, 8)]


@pytest.mark.parametrize(
    ("kind", "first", "count"),
    [
        *(("private", *part) for part in PARTS),
        ("shared", 2, 4),
        ("shared", 5, 3),
        ("file-shared", 0, 3),
        ("file-private", 2, 4),
    ],
)
def test_part_of_mapping_counts_alone(kind, first, count):
    """mlock of one or several pages at the head, middle or tail of a mapping counts those."""
    with mapping(kind, 8) as region:
        syscalls.mlock(region.at(first), count * PAGE)
        expected = "-" * first + "L" * count + "-" * (8 - first - count)
        assert lock_accounting.read(region) == expect(expected, resident=count), (
            "exactly the pages asked for count"
        )


@pytest.mark.claim("W17")
@pytest.mark.parametrize(("first", "count"), PARTS[1:4])
@pytest.mark.detects("vmlck-onfault-uncounted")
def test_part_locked_on_fault_counts_alone(first, count):
    """mlock2(MLOCK_ONFAULT) of a part of a mapping counts that part."""
    with mapping("private", 8) as region:
        lock_on_fault(region.at(first), count * PAGE)
        expected = "-" * first + "F" * count + "-" * (8 - first - count)
        assert lock_accounting.read(region) == expect(expected, resident=0), (
            "exactly the pages asked for count"
        )


@pytest.mark.needs("mincore")
@pytest.mark.parametrize(
    ("offset", "length", "expected"),
    [
        (0, PAGE, "L-------"),
        (0, 8 * PAGE, "LLLLLLLL"),
        (0, 2 * PAGE + 1, "LLL-----"),
        (0, 2 * PAGE - 1, "LL------"),
        (3 * PAGE - 1, 2, "--LL----"),
        (3 * PAGE + 5, 3 * PAGE, "---LLLL-"),
    ],
)
def test_vmlck_equals_pages_touched_by_range(offset, length, expected):
    """The pages that contain any byte of the range count and become resident, no others."""
    with mapping("shared", 8, prot=syscalls.PROT_WRITE) as region:
        lock_full(region.addr + offset, length)
        assert lock_accounting.read(region) == expect(expected, resident=expected.count("L")), (
            "whole pages count"
        )
        inside = [letter == "L" for letter in expected]
        assert pagemap.present(region.addr, 8) == inside, "pagemap: these pages are mapped"
        assert mincore.resident(region.addr, 8) == inside, "mincore: these pages are resident"


@pytest.mark.parametrize("flags", [0, syscalls.MLOCK_ONFAULT], ids=["full", "onfault"])
def test_inaccessible_memory_counts(flags):
    """PROT_NONE memory counts in full, though no page of it can be populated."""
    with mapping("private", 8, prot=syscalls.PROT_NONE) as region:
        # The errno is the calls chapter's: ENOMEM, but 0 for on-fault locks since 6.1.
        syscalls.outcome(syscalls.mlock2, region.addr, region.size, flags)
        letters = "FFFFFFFF" if flags else "LLLLLLLL"
        assert lock_accounting.read(region) == expect(letters, resident=0), (
            "8 pages count, none resident"
        )


@pytest.mark.source("mmap(2) MAP_LOCKED")
@pytest.mark.detects("vmlck-protnone-uncounted")
def test_map_locked_inaccessible_memory_counts():
    """mmap(MAP_LOCKED) of PROT_NONE memory succeeds and counts in full."""
    with mapping("private", 8, prot=syscalls.PROT_NONE, flags=syscalls.MAP_LOCKED) as region:
        assert lock_accounting.read(region) == expect("LLLLLLLL", resident=0), "8 pages count"


@pytest.mark.detects("vmlck-counts-resident", "vmlck-readonly-uncounted")
def test_read_only_memory_counts():
    """Read-only anonymous memory counts in full; its zero pages are not in Locked."""
    with mapping("private", 8, prot=syscalls.PROT_READ) as region:
        syscalls.mlock(region.addr, region.size)
        assert lock_accounting.read(region) == expect("LLLLLLLL", resident=0), (
            "8 pages count, the zero page is nobody's"
        )


@pytest.mark.parametrize("kind", ["memfd-private", "memfd-shared"])
def test_range_past_end_of_file_counts(kind):
    """A file mapping locked beyond the end of its file counts in full; what lies in the file
    is resident."""
    fd = memfd(3 * PAGE)
    with mapping(kind, 8, fd=fd) as region:
        seen = syscalls.outcome(syscalls.mlock, region.addr, region.size)
        assert seen == "ENOMEM", "the pages past the end of the file cannot be populated"
        assert lock_accounting.read(region) == expect("LLLLLLLL", resident=3), (
            "8 pages count, the three of the file are resident"
        )
    os.close(fd)


@pytest.mark.detects("vmlck-mlock-one-short")
def test_several_mappings_in_one_call_count():
    """One mlock over five VMAs counts each of them in full."""
    with mapping("private", 10) as region:
        for page in (2, 6):
            syscalls.mprotect(region.at(page), 2 * PAGE, syscalls.PROT_READ)
        syscalls.mlock(region.addr, region.size)
        assert lock_accounting.read(region) == expect("L" * 10, resident=6), (
            "5 VMAs of 2 pages; two of them map the zero page"
        )


@pytest.mark.parametrize("flags", [0, syscalls.MLOCK_ONFAULT], ids=["full", "onfault"])
def test_lock_stopped_by_hole_counts_what_it_locked(flags):
    """A lock that fails at a hole counts what it locked before the hole, and no more."""
    letter = "F" if flags else "L"
    with mapping("private", 10) as region:
        unmap_pages(region, 5)
        syscalls.mprotect(region.at(2), PAGE, syscalls.PROT_READ)
        seen = syscalls.outcome(syscalls.mlock2, region.at(1), 8 * PAGE, flags)
        assert seen == "ENOMEM", "page 5 is not mapped"
        assert lock_accounting.read(region) == expect("-" + 4 * letter + "-----", resident=0), (
            "pages 1 to 4 are lo and counted"
        )


def test_lock_of_nothing_counts_nothing():
    """Locking no bytes, or a range that starts in a hole, leaves VmLck alone."""
    with mapping("private", 8) as region:
        unmap_pages(region, 2)
        syscalls.mlock(region.at(5), PAGE)
        syscalls.mlock(region.at(1), 0)
        seen = syscalls.outcome(syscalls.mlock, region.at(2), 3 * PAGE)
        assert seen == "ENOMEM", "the range starts in a hole"
        assert lock_accounting.read(region) == expect("-----L--", resident=1), "only page 5 counts"
