# SPDX-License-Identifier: MIT
"""Ranges with a hole: what the calls report, and what they did before they noticed.

POSIX and mlock(2) promise that a failed call changes no lock. Linux changes everything in
front of the hole, and populates nothing (apply_vma_lock_flags() in mm/mlock.c).
"""

from contextlib import contextmanager

import pytest

from helpers import syscalls
from helpers.machine import kernel_version
from helpers.memory import locks, mapping
from helpers.memory.layouts import unmap_pages
from helpers.observe import maps, page_flags, pagemap, status
from helpers.pytest_plugin.parametrize import by_call, by_entry_point
from helpers.syscalls import PAGE

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("smaps-flags", "lock:8"),
    pytest.mark.source("mlock(2) ERRORS", "POSIX mlock(): on failure no lock is changed"),
]

PAGES = 8
# Holes of one page each (a larger one might be taken by malloc), the range asked for in
# bytes, and the pages in front of the hole.
HOLES = {
    "middle": ([4], (2 * PAGE, 5 * PAGE), (2, 4)),
    "second page": ([1], (0, PAGES * PAGE), (0, 1)),
    "last page": ([7], (3 * PAGE, 5 * PAGE), (3, 7)),
    "last byte": ([5], (2 * PAGE, 3 * PAGE + 1), (2, 5)),
    "rounded into": ([3], (3 * PAGE - 1, 2), (2, 3)),
    "several": ([3, 5], (PAGE, 6 * PAGE), (1, 3)),
    "start": ([2], (2 * PAGE, 3 * PAGE), (2, 2)),
    "start, inside the page": ([2], (3 * PAGE - 1, 2), (2, 2)),
}
EVERY_HOLE = pytest.mark.parametrize("where", HOLES.values(), ids=HOLES)


def mark(how):
    return "lo lf" if how == locks.CALLS["onfault"] else "lo"


def shape(region):
    return maps.locks(region.addr, region.end, PAGE)


def expected(holes, changed, mark_inside, mark_outside):
    """The layout of PAGES pages with these holes, the ``changed`` pages in their own mark."""
    first, last = changed
    parts = []
    for page in range(PAGES):
        if page in holes:
            continue
        lock = mark_inside if first <= page < last else mark_outside
        if parts and parts[-1][1] == page and parts[-1][2] == lock:
            parts[-1] = (parts[-1][0], page + 1, lock)
        else:
            parts.append((page, page + 1, lock))
    return parts


@EVERY_HOLE
@pytest.mark.detects("mlock-hole-eagain", "mlock-hole-locks-nothing", "mlock-hole-locks-beyond")
def test_lock_over_hole_locks_what_lies_before_it(where):
    """A lock over a hole gives ENOMEM; the pages before the hole are locked and counted but
    not populated, those behind it are untouched."""
    holes, (offset, length), before_hole = where
    for name, how in locks.CALLS.items():
        with mapping("private", PAGES) as region:
            region.sub(2, 1).touch()
            for page in holes:
                unmap_pages(region, page)
            present = pagemap.present(region.addr, PAGES)
            before = status.vmlck_pages()
            seen = syscalls.outcome(locks.issue, syscalls.RAW, how, region.addr + offset, length)
            counted = status.vmlck_pages() - before
            assert seen == "ENOMEM", f"{name}: part of the range is not mapped"
            assert shape(region) == expected(holes, before_hole, mark(how), ""), (
                f"{name}: locks pages {before_hole[0]} up to the hole, and no other"
            )
            assert counted == before_hole[1] - before_hole[0], f"{name}: VmLck grows by those"
            assert pagemap.present(region.addr, PAGES) == present, f"{name}: populates nothing"


@EVERY_HOLE
@pytest.mark.detects("munlock-hole-unlocks-nothing")
def test_munlock_over_hole_unlocks_what_lies_before_it(where):
    """munlock over a hole gives ENOMEM; the pages before the hole are unlocked, those behind
    it stay locked, and all stay resident."""
    holes, (offset, length), before_hole = where
    for lock in (locks.CALLS["mlock"], locks.CALLS["onfault"]):
        with mapping("private", PAGES) as region:
            region.touch()
            locks.issue(syscalls.RAW, lock, region.addr, region.size)
            for page in holes:
                unmap_pages(region, page)
            before = status.vmlck_pages()
            seen = syscalls.outcome(syscalls.munlock, region.addr + offset, length)
            taken = before - status.vmlck_pages()
            assert seen == "ENOMEM", "part of the range is not mapped"
            assert shape(region) == expected(holes, before_hole, "", mark(lock)), (
                f"pages {before_hole[0]} up to the hole are unlocked, and no other"
            )
            assert taken == before_hole[1] - before_hole[0], "VmLck falls by those pages"
            assert pagemap.present(region.addr, PAGES) == [p not in holes for p in range(PAGES)], (
                "every page stays resident"
            )


@by_entry_point()
def test_unmapped_range_gives_enomem(calls):
    """Every call on a range that is not mapped at all gives ENOMEM and changes nothing around
    it."""
    with mapping("private", PAGES) as region:
        calls.mlock(region.addr, region.size)
        unmap_pages(region, 4)
        before = status.vmlck_pages()
        seen = {
            name: syscalls.outcome(locks.issue, calls, how, region.at(4), PAGE)
            for name, how in {**locks.CALLS, "munlock": ("munlock",)}.items()
        }
        assert seen == dict.fromkeys(seen, "ENOMEM"), "the page is not mapped"
        assert shape(region) == [(0, 4, "lo"), (5, 8, "lo")], "the neighbours are as before"
        assert status.vmlck_pages() == before, "VmLck is unchanged"


@by_entry_point()
@pytest.mark.detects("mlock-hole-not-reported")
def test_hole_in_the_middle_is_reported_by_each_call(calls):
    """Each call, by the C library as by number, reports a hole as ENOMEM."""
    seen = {}
    for name, how in {**locks.CALLS, "munlock": ("munlock",)}.items():
        with mapping("private", PAGES) as region:
            unmap_pages(region, 5)
            seen[name] = syscalls.outcome(locks.issue, calls, how, region.addr, region.size)
    assert seen == dict.fromkeys(seen, "ENOMEM"), "part of the range is not mapped"


@contextmanager
def many_vmas():
    """Eight pages as eight VMAs: the protections alternate, so that none merge."""
    with mapping("private", PAGES) as region:
        region.touch()
        for page in range(0, PAGES, 2):
            syscalls.mprotect(region.at(page), PAGE, syscalls.PROT_READ)
        yield region


@by_call()
def test_lock_over_many_mappings_stops_at_the_hole(how):
    """A lock over several mappings locks each one before the hole, and none behind it."""
    with many_vmas() as region:
        unmap_pages(region, 6)
        before = status.vmlck_pages()
        seen = syscalls.outcome(locks.issue, syscalls.RAW, how, region.addr, region.size)
        assert seen == "ENOMEM", "the seventh page is not mapped"
        wanted = [(0, 6, mark(how)), (7, 8, "")]
        assert shape(region) == wanted, "all six mappings before the hole are lo, the last is not"
        assert status.vmlck_pages() - before == 6, "VmLck grows by six pages"


@pytest.mark.detects("munlock-hole-not-reported")
def test_munlock_over_many_mappings_stops_at_the_hole():
    """munlock over several mappings unlocks each one before the hole, and none behind it."""
    with many_vmas() as region:
        syscalls.mlock(region.addr, region.size)
        unmap_pages(region, 6)
        before = status.vmlck_pages()
        seen = syscalls.outcome(syscalls.munlock, region.addr, region.size)
        assert seen == "ENOMEM", "the seventh page is not mapped"
        wanted = [(0, 6, ""), (7, 8, "lo")]
        assert shape(region) == wanted, "all six mappings before the hole are unlocked"
        assert before - status.vmlck_pages() == 6, "VmLck falls by six pages"


@by_call()
def test_failed_lock_converts_what_lies_before_the_hole(how):
    """A failed lock also changes the kind of the locks before the hole, without counting
    them again."""
    other = locks.CALLS["mlock"] if mark(how) == "lo lf" else locks.CALLS["onfault"]
    with mapping("private", PAGES) as region:
        locks.issue(syscalls.RAW, other, region.addr, region.size)
        unmap_pages(region, 4)
        before = status.vmlck_pages()
        seen = syscalls.outcome(locks.issue, syscalls.RAW, how, region.at(1), 6 * PAGE)
        assert seen == "ENOMEM", "part of the range is not mapped"
        assert shape(region) == [
            (0, 1, mark(other)),
            (1, 4, mark(how)),
            (5, 8, mark(other)),
        ], "pages 1 to 3 carry the new kind of lock, the others the old one"
        assert status.vmlck_pages() == before, "VmLck is unchanged"


@by_call()
def test_range_beside_a_hole_succeeds(how):
    """A range that ends where a hole begins, or begins where it ends, is wholly mapped: it is
    locked, and a full lock populates it."""
    with mapping("private", PAGES) as region:
        unmap_pages(region, 4)
        locks.issue(syscalls.RAW, how, region.at(2), 2 * PAGE)
        locks.issue(syscalls.RAW, how, region.at(5), PAGE)
        assert shape(region) == [
            (0, 2, ""),
            (2, 4, mark(how)),
            (5, 6, mark(how)),
            (6, 8, ""),
        ], "both ranges are lo"
        full = mark(how) == "lo"
        assert pagemap.present(region.addr, PAGES) == [
            full and page in {2, 3, 5} for page in range(PAGES)
        ], "a full lock populates both ranges, a lock on fault neither"


def test_relock_populates_what_a_failed_lock_left_absent():
    """A lock of memory that is marked as locked already, but absent after a failed call,
    populates it."""
    with mapping("private", PAGES) as region:
        unmap_pages(region, 4)
        syscalls.outcome(syscalls.mlock, region.addr, region.size)
        absent = pagemap.present_count(region.addr, 4)
        before = status.vmlck_pages()
        syscalls.mlock(region.addr, 4 * PAGE)
        assert absent == 0, "the failed lock populated nothing"
        assert pagemap.present_count(region.addr, 4) == 4, "the second lock populates all"
        assert status.vmlck_pages() == before, "and counts nothing twice"


@pytest.mark.needs("kpageflags")
def test_failed_lock_marks_the_pages_present_before_the_hole():
    """Pages that were resident before a failed lock become mlocked if they lie before the
    hole; those behind it do not."""
    with mapping("private", PAGES) as region:
        region.sub(1, 1).touch()
        region.sub(6, 1).touch()
        unmap_pages(region, 4)
        seen = syscalls.outcome(syscalls.mlock, region.addr, region.size)
        marked = page_flags.snapshot(region.addr, PAGES).mlocked
        assert seen == "ENOMEM", "part of the range is not mapped"
        # Before 5.18 pages were marked while populating, which a hole prevents.
        at_once = kernel_version.version() >= (5, 18, 0)
        assert marked == [at_once and page == 1 for page in range(PAGES)], (
            "PG_mlocked on the resident page before the hole only"
        )
