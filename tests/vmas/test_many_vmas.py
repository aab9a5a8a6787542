# SPDX-License-Identifier: MIT
"""One call over many VMAs: every one gets the flag, none is left out, the ends are exact."""

import os
from contextlib import contextmanager

import pytest

from helpers import memory, processes, syscalls
from helpers.memory import mapping
from helpers.memory.locks import FLAGS, apply
from helpers.observe import maps, status
from helpers.syscalls import (
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    MAP_SHARED,
    MCL_CURRENT,
    MCL_ONFAULT,
    PAGE,
    PROT_NONE,
    PROT_READ,
    PROT_RW,
)

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("lock:16", "smaps-flags"),
    pytest.mark.source("mm/mlock.c apply_vma_lock_flags"),
]

by_way = pytest.mark.parametrize("way", ["mlock", "onfault"])


def pieces(region):
    """(first, end, perms, lock) of each VMA."""
    found = maps.pieces(region.addr, region.end, PAGE)
    return [(first, end, perms, lock) for first, end, perms, _, lock in found]


def busy(region):
    """The pages for which msync(MS_INVALIDATE) finds a locked VMA: EBUSY."""
    return [
        page
        for page in range(region.pages)
        if syscalls.outcome(syscalls.msync, region.at(page), PAGE, syscalls.MS_INVALIDATE)
        == "EBUSY"
    ]


def alternating(region, count):
    """Make ``count`` VMAs of two pages each, by turns rw and r: their (first, end, perms)."""
    region.touch()
    for i in range(1, count, 2):
        syscalls.mprotect(region.at(2 * i), 2 * PAGE, PROT_READ)
    return [(2 * i, 2 * i + 2, "r--p" if i % 2 else "rw-p") for i in range(count)]


def cut(vmas, first, end, inner, outer):
    """``pieces`` of VMAs of which the pages [first, end) are locked as ``inner``."""
    want = []
    for a, b, perms in vmas:
        for low, high, lock in ((a, first, outer), (first, end, inner), (end, b, outer)):
            low, high = max(a, low), min(b, high)
            if low < high:
                want.append((low, high, perms, lock))
    return want


@by_way
@pytest.mark.parametrize("count", [2, 3, 4, 8])
@pytest.mark.detects("mlock-skips-middle-vma")
def test_lock_reaches_every_vma_of_its_range(count, way):
    """A lock from within the first to within the last of 2, 3, 4 or 8 VMAs marks each page of
    its range and none beside it, and its unlock likewise; permissions stay."""
    with mapping("private", 2 * count) as region:
        vmas = alternating(region, count)
        before = status.vmlck_pages()
        last = 2 * count
        for first, end in ((1, last - 1), (0, last - 1), (1, last), (0, last), (2, last)):
            apply(region.sub(first, end - first), way)
            want = cut(vmas, first, end, FLAGS[way], "")
            assert pieces(region) == want, f"pages {first} to {end} locked"
            assert busy(region) == list(range(first, end)), "pages that msync finds locked"
            assert status.vmlck_pages() - before == end - first, f"VmLck of {first} to {end}"
            apply(region, way)
            assert pieces(region) == cut(vmas, 0, last, FLAGS[way], ""), "all locked"
            apply(region.sub(first, end - first), "munlock")
            want = cut(vmas, first, end, "", FLAGS[way])
            assert pieces(region) == want, f"pages {first} to {end} unlocked"
            left = last - (end - first)
            assert status.vmlck_pages() - before == left, f"VmLck less {first} to {end}"
            apply(region, "munlock")
            assert pieces(region) == cut(vmas, 0, last, "", ""), "all unlocked: the first VMAs"
        syscalls.mprotect(region.addr, region.size, PROT_RW)
        assert pieces(region) == [(0, last, "rw-p", "")], "one VMA with equal permissions again"


@contextmanager
def assorted(none=False):
    """Seven VMAs of two pages, each of another kind, side by side: a region and its rows.

    With ``none`` the fourth is PROT_NONE.
    """
    fd = memory.memfd(8 * PAGE)
    private, shared = MAP_PRIVATE | MAP_FIXED, MAP_SHARED | MAP_FIXED
    with mapping("private", 14) as region:
        rows = (
            (PROT_RW, private | MAP_ANONYMOUS, -1, 0, "rw-p"),
            (PROT_RW, shared | MAP_ANONYMOUS, -1, 0, "rw-s"),
            (PROT_READ, private | MAP_ANONYMOUS, -1, 0, "r--p"),
            (PROT_NONE, private | MAP_ANONYMOUS, -1, 0, "---p")
            if none
            else (PROT_READ, shared, fd, 6, "r--s"),
            (PROT_RW, shared, fd, 2, "rw-s"),
            (PROT_RW, private, fd, 3, "rw-p"),
            (PROT_READ, private, fd, 5, "r--p"),
        )
        for i, (prot, how, used, page, _) in enumerate(rows):
            syscalls.mmap(region.at(2 * i), 2 * PAGE, prot, how, used, page * PAGE)
        yield (
            region,
            [
                (2 * i, 2 * i + 2, perms, page if used >= 0 or how & MAP_SHARED else 0)
                for i, (_, how, used, page, perms) in enumerate(rows)
            ],
        )
    os.close(fd)


def marked(rows, lock):
    return [(*row, lock) for row in rows]


@by_way
def test_lock_reaches_vmas_of_every_kind(way):
    """One call marks anonymous and file VMAs, shared and private, writable and read-only,
    that lie side by side, and one munlock unmarks them; permissions and offsets stay."""
    with assorted() as (region, rows):
        before = status.vmlck_pages()
        apply(region, way)
        seen = maps.pieces(region.addr, region.end, PAGE)
        assert seen == marked(rows, FLAGS[way]), "all seven locked"
        assert busy(region) == list(range(14)), "pages that msync finds locked"
        assert status.vmlck_pages() - before == 14, "VmLck of all"
        apply(region, "munlock")
        seen = maps.pieces(region.addr, region.end, PAGE)
        assert seen == marked(rows, ""), "all seven unlocked"
        assert busy(region) == [], "no page that msync finds locked"
        assert status.vmlck_pages() == before, "VmLck as before"


def test_lock_marks_vmas_behind_inaccessible_ones():
    """mlock over a PROT_NONE VMA in the middle gives ENOMEM, but marks and counts that one and
    every one behind it; munlock of the range unmarks all and gives 0."""
    with assorted(none=True) as (region, rows):
        before = status.vmlck_pages()
        assert syscalls.outcome(syscalls.mlock, region.addr, region.size) == "ENOMEM", (
            "PROT_NONE inside"
        )
        seen = maps.pieces(region.addr, region.end, PAGE)
        assert seen == marked(rows, "lo"), "all seven locked"
        assert status.vmlck_pages() - before == 14, "VmLck of all"
        assert syscalls.outcome(syscalls.munlock, region.addr, region.size) == "ok", "munlock"
        seen = maps.pieces(region.addr, region.end, PAGE)
        assert seen == marked(rows, ""), "all seven unlocked"
        assert status.vmlck_pages() == before, "VmLck as before"


def all_at_once(flags):
    """Rows before and after mlockall(flags), after munlockall, and the VMAs still locked."""
    with assorted(none=True) as (region, rows):
        syscalls.mlock(region.at(5), PAGE)
        syscalls.mlock2(region.at(9), PAGE, syscalls.MLOCK_ONFAULT)
        syscalls.mlockall(flags)
        locked = maps.pieces(region.addr, region.end, PAGE)
        syscalls.munlockall()
        unlocked = maps.pieces(region.addr, region.end, PAGE)
        left = [v.line for v in maps.smaps() if v.lock]
        return rows, locked, unlocked, left, status.vmlck_kb()


@pytest.mark.needs("lock-all")
@pytest.mark.parametrize(
    ("flags", "mark"),
    [(MCL_CURRENT, "lo"), (MCL_CURRENT | MCL_ONFAULT, "lo lf")],
    ids=["full", "onfault"],
)
def test_mlockall_and_munlockall_reach_every_vma(flags, mark):
    """mlockall(MCL_CURRENT) marks VMAs of every kind, those locked in part before become whole
    again, and munlockall leaves no VMA of the process marked and VmLck 0."""
    rows, locked, unlocked, left, vmlck = processes.run(lambda: all_at_once(flags))
    assert locked == marked(rows, mark), "all seven locked and whole"
    assert unlocked == marked(rows, ""), "all seven unlocked"
    assert left == [], "VMAs that munlockall left marked"
    assert vmlck == 0, "VmLck after munlockall"


@pytest.mark.deviation("merging-range-enomem")
@by_way
def test_range_whose_vmas_merge_under_way_succeeds(way):
    """A lock over VMAs of which some have that lock already, so that VMAs of the range merge
    while the call walks over them, gives 0 and leaves one VMA; an unlock likewise."""
    for pattern in ("-x-x-x-x", "x-x-x-x-", "--xx--xx", "-xx-----", "-----xx-"):
        with mapping("private", 8) as region:
            region.touch()
            for page, letter in enumerate(pattern):
                if letter == "x":
                    apply(region.sub(page, 1), way)
            assert syscalls.outcome(apply, region, way) == "ok", f"{way} over {pattern}"
            assert pieces(region) == [(0, 8, "rw-p", FLAGS[way])], f"one VMA after {pattern}"
            for page, letter in enumerate(pattern):
                if letter == "x":
                    apply(region.sub(page, 1), "munlock")
            assert syscalls.outcome(apply, region, "munlock") == "ok", f"munlock over {pattern}"
            assert pieces(region) == [(0, 8, "rw-p", "")], f"one VMA unlocked after {pattern}"
