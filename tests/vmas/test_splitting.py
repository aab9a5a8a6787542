# SPDX-License-Identifier: MIT
"""Locking or unlocking part of a VMA splits it; undoing that merges the pieces again."""

import os
import random
from contextlib import contextmanager
from itertools import groupby

import pytest

from helpers import memory, syscalls
from helpers.memory import MAPPING_KINDS, layouts, mapping
from helpers.memory.locks import FLAGS, apply
from helpers.observe import maps, status
from helpers.syscalls import PAGE

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("lock:8", "smaps-flags"),
    pytest.mark.source("mlock(2)", "Documentation/mm/unevictable-lru.rst, mlock_fixup"),
    pytest.mark.claim("W12"),
]

PAGES = 8
FIRST = 3
"""Page of the file at which the mapping begins, so that offset 0 cannot pass for right."""
PLACES = {"head": (0, 3), "tail": (5, 8), "middle": (2, 6), "one page": (4, 5)}

by_kind = pytest.mark.parametrize("kind", MAPPING_KINDS)
by_way = pytest.mark.parametrize("way", ["mlock", "onfault"])


@contextmanager
def backed(kind, pages=PAGES):
    """A mapping from page FIRST of its file on, all of it written to.

    Pieces of private memory merge only if one anon_vma serves them, as after a write to the
    undivided mapping.
    """
    if kind in {"private", "shared"}:
        with mapping(kind, pages) as region:
            region.touch()
            yield region
        return
    size = (FIRST + pages) * PAGE
    fd = memory.memfd(size) if kind.startswith("memfd") else memory.scratch_file(FIRST + pages)
    try:
        with mapping(kind, pages, fd=fd, offset=FIRST * PAGE) as region:
            region.touch()
            yield region
    finally:
        os.close(fd)


def expected(kind, *runs):
    """``maps.pieces`` of (first, end, lock) runs of a mapping made by :func:`backed`."""
    perms = "rw-s" if kind.endswith("shared") else "rw-p"
    start = {"private": None, "shared": 0}.get(kind, FIRST)
    return [(a, b, perms, 0 if start is None else start + a, lock) for a, b, lock in runs]


def seen(region):
    return maps.pieces(region.addr, region.end, PAGE)


def backing(region):
    """Device, inode and name of each VMA, from maps (the other witness of their number)."""
    vmas = maps.vmas(low=region.addr, high=region.end)
    return [(v.device, v.inode, v.name) for v in vmas]


def around(first, end, inner, outer):
    """The runs of a mapping that is ``inner`` in [first, end) and ``outer`` elsewhere."""
    runs = [(0, first, outer), (first, end, inner), (end, PAGES, outer)]
    return [run for run in runs if run[0] < run[1]]


@by_kind
@by_way
@pytest.mark.detects(
    "mlock-from-vma-start", "mlock-to-vma-end", "mlock-last-page-missed", "mlock-first-page-missed"
)
def test_lock_of_part_splits_and_its_unlock_merges(kind, way):
    """A lock of the head, tail or middle of a mapping splits it exactly there, each piece with
    its permissions, file offset and inode, and unlocking that part makes it one VMA again."""
    with backed(kind) as region:
        whole, before = backing(region), status.vmlck_pages()
        assert len(whole) == 1, "one VMA to begin with"
        for place, (first, end) in PLACES.items():
            part = region.sub(first, end - first)
            runs = around(first, end, FLAGS[way], "")
            apply(part, way)
            assert seen(region) == expected(kind, *runs), f"split at the {place}"
            assert backing(region) == whole * len(runs), f"maps counts the pieces of the {place}"
            assert status.vmlck_pages() - before == part.pages, f"VmLck of the {place}"
            apply(part, "munlock")
            assert seen(region) == expected(kind, (0, PAGES, "")), f"{place} unlocked: one VMA"
            assert backing(region) == whole, f"maps has one line again after the {place}"
            assert status.vmlck_pages() == before, f"VmLck after unlocking the {place}"


@by_kind
@by_way
@pytest.mark.detects("munlock-from-vma-start", "munlock-to-vma-end", "munlock-last-page-missed")
def test_unlock_of_part_splits_and_unlock_of_rest_merges(kind, way):
    """Unlocking the head, tail or middle of a locked mapping splits it there and leaves the
    neighbours locked; locking that part again, or unlocking the rest, makes it one VMA."""
    with backed(kind) as region:
        whole, before = backing(region), status.vmlck_pages()
        for place, (first, end) in PLACES.items():
            part = region.sub(first, end - first)
            runs = around(first, end, "", FLAGS[way])
            apply(region, way)
            assert seen(region) == expected(kind, (0, PAGES, FLAGS[way])), f"before the {place}"
            apply(part, "munlock")
            assert seen(region) == expected(kind, *runs), f"unlocked at the {place}"
            assert backing(region) == whole * len(runs), f"maps counts the pieces of the {place}"
            left = PAGES - part.pages
            assert status.vmlck_pages() - before == left, f"VmLck less the {place}"
            apply(part, way)
            assert seen(region) == expected(kind, (0, PAGES, FLAGS[way])), f"{place} locked again"
            assert status.vmlck_pages() - before == PAGES, f"VmLck with the {place} again"
            apply(part, "munlock")
            apply(region, "munlock")
            assert seen(region) == expected(kind, (0, PAGES, "")), f"rest unlocked ({place})"
            assert status.vmlck_pages() == before, f"VmLck with all unlocked ({place})"


@pytest.mark.own_process
@pytest.mark.parametrize("kind", ["private", "shared", "file-private", "memfd-shared"])
def test_file_pages_stay_in_place_when_locks_split(kind):
    """Every page keeps its contents through splits and merges of its VMA by locks, so pages
    that are faulted in afterwards come from the right place of the file."""
    fd = -1
    if kind in {"memfd-shared", "file-private"}:
        fd = memory.memfd((FIRST + PAGES) * PAGE) if kind == "memfd-shared" else (
            memory.scratch_file(FIRST + PAGES)
        )  # fmt: skip
        for page in range(FIRST + PAGES):
            os.pwrite(fd, bytes([page]) * PAGE, page * PAGE)
    with mapping(kind, PAGES, fd=fd if fd >= 0 else None, offset=FIRST * PAGE * (fd >= 0)) as r:
        if fd < 0:
            for page in range(PAGES):
                syscalls.memset(r.at(page), FIRST + page, PAGE)
        # On fault, so that populating cannot fill pages before they have been split off.
        for first, end in ((2, 6), (3, 4), (0, 1), (7, 8)):
            apply(r.sub(first, end - first), "onfault")
        apply(r.sub(4, 1), "munlock")
        want = [(0, 1, "lo lf"), (1, 2, ""), (2, 4, "lo lf"), (4, 5, ""), (5, 6, "lo lf")]
        want += [(6, 7, ""), (7, 8, "lo lf")]
        assert maps.layout(r) == want, "seven pieces"
        numbers = bytes(range(FIRST, FIRST + PAGES))
        assert r.first_bytes() == numbers, "each page holds its own number"
        apply(r, "mlock")
        assert r.first_bytes() == numbers, "each page holds its own number when all is locked"
        apply(r, "munlock")
        assert r.first_bytes() == numbers, "each page holds its own number when all is unlocked"


@by_way
def test_locks_of_single_pages_split_off_one_vma_each(way):
    """Locks of every second page make as many VMAs as pages; unlocking them one by one merges
    each with both its neighbours, until one VMA is left."""
    with backed("private") as region:
        for page in range(1, PAGES, 2):
            apply(region.sub(page, 1), way)
        model = ["", FLAGS[way]] * (PAGES // 2)
        assert seen(region) == expected("private", *runs_of(model)), "a VMA for every page"
        for page in (3, 7, 1, 5):
            apply(region.sub(page, 1), "munlock")
            model[page] = ""
            assert seen(region) == expected("private", *runs_of(model)), f"page {page} unlocked"
        assert backing(region) == [("00:00", 0, "")], "one VMA in the end"


def runs_of(model):
    """A list of locks page by page as (first, end, lock) runs: what merging must lead to."""
    runs, page = [], 0
    for lock, pages in groupby(model):
        length = len(list(pages))
        runs.append((page, page + length, lock))
        page += length
    return runs


@pytest.mark.parametrize("kind", ["private", "memfd-shared", "file-private"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_vmas_follow_model_of_pages_through_random_locks(kind, seed):
    """After each of a random series of locks and unlocks of unaligned ranges, the VMAs are the
    maximal runs of pages with equal locks: nothing left unmerged, nothing merged wrongly."""
    rng = random.Random(seed)
    with backed(kind) as region:
        before = status.vmlck_pages()
        model = [""] * PAGES
        for step in range(60):
            start = rng.randrange(region.size)
            size = rng.randint(1, region.size - start)
            way = rng.choice(list(FLAGS))
            apply(memory.Region(region.addr + start, size), way)
            first, end = start // PAGE, -(-(start + size) // PAGE)
            model[first:end] = [FLAGS[way]] * (end - first)
            did = f"seed {seed} step {step}: {way} of bytes {start} to {start + size}"
            assert seen(region) == expected(kind, *runs_of(model)), f"the VMAs after {did}"
            locked = PAGES - model.count("")
            assert status.vmlck_pages() - before == locked, f"VmLck after {did}"


def test_split_that_ends_in_a_hole_stays_at_the_hole():
    """A lock or unlock of part of a VMA that runs on into a hole fails with ENOMEM, and has
    split that VMA at its start only: the page before it and the VMA behind the hole stay."""
    with backed("private") as region:
        layouts.unmap_pages(region, 4)
        assert syscalls.outcome(syscalls.mlock, region.at(1), 5 * PAGE) == "ENOMEM", (
            "hole in the range"
        )
        assert maps.layout(region) == [
            (0, 1, ""),
            (1, 4, "lo"),
            (5, 8, ""),
        ], "locked up to the hole"
        apply(region.sub(0, 4), "mlock")
        apply(region.sub(5, 3), "mlock")
        assert syscalls.outcome(syscalls.munlock, region.at(2), 5 * PAGE) == "ENOMEM", (
            "hole in the range"
        )
        assert maps.layout(region) == [
            (0, 2, "lo"),
            (2, 4, ""),
            (5, 8, "lo"),
        ], "unlocked up to the hole"
