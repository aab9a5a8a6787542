# SPDX-License-Identifier: MIT
"""Which neighbours become one VMA: those whose locks, permissions and offsets are equal."""

from itertools import permutations

import pytest

from helpers import memory, syscalls
from helpers.memory import layouts, mapping
from helpers.memory.locks import FLAGS, apply
from helpers.observe import maps, status
from helpers.syscalls import (
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_LOCKED,
    MAP_PRIVATE,
    MAP_SHARED,
    PAGE,
    PROT_RW,
)

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("lock:8", "smaps-flags"),
    pytest.mark.source("mm/mlock.c mlock_fixup", "mm/vma.c"),
    pytest.mark.claim("W12"),
]

by_way = pytest.mark.parametrize("way", ["mlock", "onfault"])
by_kind = pytest.mark.parametrize("kind", ["private", "shared", "memfd-private", "file-shared"])


def layout(region):
    return maps.layout(region)


def number(region):
    """Lines of maps for the region."""
    return len(maps.vmas(low=region.addr, high=region.end))


@by_kind
@by_way
def test_lock_next_to_a_locked_part_extends_it(kind, way):
    """A lock that adjoins an equal one, behind or before it, overlaps it, or fills the gap
    between two, makes one VMA with it; the unlocked rest is never in it."""
    with mapping(kind, 8) as region:
        region.touch()
        mark = FLAGS[way]
        for first, end, shape in (
            (2, 3, [(0, 2, ""), (2, 3, mark), (3, 8, "")]),
            (3, 4, [(0, 2, ""), (2, 4, mark), (4, 8, "")]),
            (1, 2, [(0, 1, ""), (1, 4, mark), (4, 8, "")]),
            (3, 5, [(0, 1, ""), (1, 5, mark), (5, 8, "")]),
            (2, 3, [(0, 1, ""), (1, 5, mark), (5, 8, "")]),
            (7, 8, [(0, 1, ""), (1, 5, mark), (5, 7, ""), (7, 8, mark)]),
            (5, 7, [(0, 1, ""), (1, 8, mark)]),
            (0, 1, [(0, 8, mark)]),
        ):
            apply(region.sub(first, end - first), way)
            assert layout(region) == shape, f"pages {first} to {end} locked in addition"
            assert number(region) == len(shape), f"lines of maps after pages {first} to {end}"


@by_kind
def test_unlock_next_to_an_unlocked_part_extends_it(kind):
    """An unlock that adjoins an unlocked part makes one VMA with it, before, behind and
    between, and leaves the locked rest locked."""
    with mapping(kind, 8) as region:
        region.touch()
        apply(region, "mlock")
        for first, end, shape in (
            (2, 3, [(0, 2, "lo"), (2, 3, ""), (3, 8, "lo")]),
            (3, 4, [(0, 2, "lo"), (2, 4, ""), (4, 8, "lo")]),
            (1, 2, [(0, 1, "lo"), (1, 4, ""), (4, 8, "lo")]),
            (2, 4, [(0, 1, "lo"), (1, 4, ""), (4, 8, "lo")]),
            (6, 8, [(0, 1, "lo"), (1, 4, ""), (4, 6, "lo"), (6, 8, "")]),
            (4, 6, [(0, 1, "lo"), (1, 8, "")]),
            (0, 1, [(0, 8, "")]),
        ):
            apply(region.sub(first, end - first), "munlock")
            assert layout(region) == shape, f"pages {first} to {end} unlocked in addition"
            assert number(region) == len(shape), f"lines of maps after pages {first} to {end}"


@by_kind
@pytest.mark.parametrize("order", list(permutations(["mlock", "onfault", "munlock"])), ids="-".join)
def test_different_locks_never_merge(kind, order):
    """Neighbours that are locked at once, locked on fault and unlocked stay three VMAs, in
    whatever order they lie or were locked."""
    with mapping(kind, 6) as region:
        region.touch()
        want = [(2 * i, 2 * i + 2, FLAGS[way]) for i, way in enumerate(order)]
        for turns in ((0, 1, 2), (2, 1, 0), (1, 0, 2)):
            for i in turns:
                apply(region.sub(2 * i, 2), order[i])
            assert layout(region) == want, f"three VMAs, made in the order {turns}"
            assert number(region) == 3, f"three lines of maps, made in the order {turns}"
            apply(region, "munlock")
            assert layout(region) == [(0, 6, "")], "one VMA when all is unlocked"


def test_lock_that_is_there_already_splits_nothing():
    """Locking part of a locked VMA in the same way, or unlocking part of an unlocked one,
    leaves one VMA."""
    with mapping("private", 8) as region:
        region.touch()
        for way in ("munlock", "mlock", "onfault"):
            apply(region, way)
            apply(region.sub(2, 3), way)
            apply(region.sub(0, 1), way)
            apply(region.sub(7, 1), way)
            assert layout(region) == [(0, 8, FLAGS[way])], f"one VMA after {way} of parts"
            assert number(region) == 1, f"one line of maps after {way} of parts"


@pytest.mark.own_process
def test_file_neighbours_with_a_gap_in_offset_stay_apart():
    """Two locked VMAs of one file that adjoin in memory but not in the file stay two; those
    that adjoin in both become one as soon as their locks are equal."""
    fd = memory.memfd(16 * PAGE)
    how = MAP_SHARED | MAP_FIXED
    with mapping("memfd-shared", 8, fd=fd) as region:
        syscalls.mmap(region.at(3), 3 * PAGE, PROT_RW, how, fd, 10 * PAGE)
        syscalls.mmap(region.at(6), 2 * PAGE, PROT_RW, how | MAP_LOCKED, fd, 13 * PAGE)
        want = [(0, 3, "rw-s", 0, ""), (3, 6, "rw-s", 10, ""), (6, 8, "rw-s", 13, "lo")]
        assert maps.pieces(region.addr, region.end, PAGE) == want, "three VMAs to begin with"
        apply(region, "mlock")
        want = [(0, 3, "rw-s", 0, "lo"), (3, 8, "rw-s", 10, "lo")]
        assert maps.pieces(region.addr, region.end, PAGE) == want, "offsets decide"
        apply(region, "munlock")
        want = [(0, 3, "rw-s", 0, ""), (3, 8, "rw-s", 10, "")]
        assert maps.pieces(region.addr, region.end, PAGE) == want, "offsets decide when unlocked"


@pytest.mark.detects("vma-not-merged-on-lock", "vma-not-merged-on-unlock")
def test_lock_merges_only_pages_of_one_anon_vma():
    """Untouched private memory merges on its unlock with a neighbour that has pages; parts that
    were each faulted in while apart stay apart."""
    with mapping("private", 8) as region:
        apply(region.sub(0, 4), "onfault")
        # The other way round, only since 6.16 (list_is_singular() of an empty chain is false).
        syscalls.memset(region.at(4), 1, PAGE)
        apply(region.sub(0, 4), "munlock")
        assert layout(region) == [(0, 8, "")], "the neighbour had pages: one VMA"
        syscalls.munmap(region.addr, region.size)
        syscalls.mmap(region.addr, region.size, PROT_RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED)
        apply(region.sub(0, 4), "onfault")
        region.touch()
        apply(region.sub(0, 4), "munlock")
        assert layout(region) == [(0, 4, ""), (4, 8, "")], "both had pages: two VMAs"


@by_way
def test_new_mapping_in_a_hole_of_equal_lock_merges(way):
    """A MAP_FIXED|MAP_LOCKED mapping that fills a hole in a fully locked VMA becomes one with
    both sides; in memory that is locked on fault or unlocked it stays a VMA of its own."""
    how = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED
    with mapping("private", 8) as region:
        region.touch()
        apply(region, way)
        before = status.vmlck_pages()
        layouts.unmap_pages(region, 3, 2)
        mark = FLAGS[way]
        assert layout(region) == [(0, 3, mark), (5, 8, mark)], "the hole"
        syscalls.mmap(region.at(3), 2 * PAGE, PROT_RW, how | MAP_LOCKED)
        filled = [(0, 8, "lo")] if way == "mlock" else [(0, 3, mark), (3, 5, "lo"), (5, 8, mark)]
        assert layout(region) == filled, "the hole filled by MAP_LOCKED"
        assert number(region) == len(filled), "lines of maps"
        assert status.vmlck_pages() == before, "VmLck as before the hole"
        # Mapped anew: what was populated apart has an anon_vma of its own and would not merge.
        syscalls.mmap(region.addr, region.size, PROT_RW, how)
        region.touch()
        assert layout(region) == [(0, 8, "")], "one unlocked VMA"
        layouts.unmap_pages(region, 3, 2)
        syscalls.mmap(region.at(3), 2 * PAGE, PROT_RW, how | MAP_LOCKED)
        assert layout(region) == [(0, 3, ""), (3, 5, "lo"), (5, 8, "")], "unlocked sides"


# No file on a disk: on overlayfs a new mapping is never merged (its vm_file is replaced late).
@pytest.mark.parametrize("kind", ["private", "memfd-shared", "memfd-private"])
@pytest.mark.detects("new-mapping-not-merged")
def test_new_locked_mapping_extends_an_equal_neighbour(kind):
    """A MAP_LOCKED mapping placed right behind a locked VMA that it continues becomes one
    with it, one placed right before it too; behind an unlocked VMA it does not."""
    with mapping(kind, 8) as region:
        how = (MAP_SHARED if kind.endswith("shared") else MAP_PRIVATE) | MAP_FIXED
        if region.fd < 0:
            how |= MAP_ANONYMOUS

        def place(page, pages, flags):
            offset = page * PAGE if region.fd >= 0 else 0
            syscalls.mmap(region.at(page), pages * PAGE, PROT_RW, how | flags, region.fd, offset)

        syscalls.munmap(region.addr, region.size)
        place(3, 2, MAP_LOCKED)
        place(5, 1, MAP_LOCKED)
        assert layout(region) == [(3, 6, "lo")], "extended behind"
        place(2, 1, MAP_LOCKED)
        # Both have pages of private memory by now, but not before this mapping was populated.
        assert layout(region) == [(2, 6, "lo")], "extended before"
        place(6, 2, 0)
        place(0, 2, 0)
        assert layout(region) == [(0, 2, ""), (2, 6, "lo"), (6, 8, "")], "unlocked next to locked"
        perms = "rw-s" if kind.endswith("shared") else "rw-p"
        offset = 2 if region.fd >= 0 else 0
        (middle,) = maps.pieces(region.at(2), region.at(6), PAGE)
        assert middle == (0, 4, perms, offset, "lo"), "the merged VMA"


@pytest.mark.detects("mapfixed-inherits-lock")
def test_plain_mapping_over_locked_memory_is_unlocked():
    """A mapping placed by MAP_FIXED over the middle of locked memory is not locked, splits it
    in three, and takes its pages out of VmLck."""
    how = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED
    with mapping("private", 8) as region:
        for way in ("mlock", "onfault"):
            syscalls.mmap(region.addr, region.size, PROT_RW, how)
            before = status.vmlck_pages()
            apply(region, way)
            syscalls.mmap(region.at(3), 2 * PAGE, PROT_RW, how)
            want = [(0, 3, FLAGS[way]), (3, 5, ""), (5, 8, FLAGS[way])]
            assert layout(region) == want, f"the new mapping after {way}"
            assert status.vmlck_pages() - before == 6, f"VmLck without it after {way}"


@pytest.mark.parametrize("way", ["mlock", "onfault"])
def test_unmapping_the_middle_leaves_two_locked_vmas(way):
    """munmap of the middle of a locked VMA leaves both sides with their lock and offset."""
    with mapping("memfd-shared", 8) as region:
        apply(region, way)
        before = status.vmlck_pages()
        layouts.unmap_pages(region, 2, 3)
        want = [(0, 2, "rw-s", 0, FLAGS[way]), (5, 8, "rw-s", 5, FLAGS[way])]
        assert maps.pieces(region.addr, region.end, PAGE) == want, "both sides"
        assert before - status.vmlck_pages() == 3, "VmLck less three pages"
