# SPDX-License-Identifier: MIT
"""mremap(2) of locked memory: growth is counted, what goes is not, moves change nothing."""

import pytest

from helpers import syscalls
from helpers.memory import adopt_mapping, mapping
from helpers.memory.layouts import unmap_pages
from helpers.observe import lock_accounting, pagemap
from helpers.observe.lock_accounting import expect
from helpers.syscalls import PAGE

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("lock:16", "smaps-flags"),
    pytest.mark.source("mremap(2)"),
]

MAYMOVE = syscalls.MREMAP_MAYMOVE
FIXED = syscalls.MREMAP_MAYMOVE | syscalls.MREMAP_FIXED
DONTUNMAP = syscalls.MREMAP_MAYMOVE | syscalls.MREMAP_DONTUNMAP

LOCKS = pytest.mark.parametrize("letter", ["L", "F"], ids=["full", "onfault"])
MOVABLE = pytest.mark.parametrize("kind", ["private", "shared", "file-shared", "file-private"])


def lock(region, letter="L"):
    """Lock the region; of one locked on fault, the first two pages become resident."""
    syscalls.mlock2(region.addr, region.size, syscalls.MLOCK_ONFAULT if letter == "F" else 0)
    if letter == "F":
        region.sub(0, min(2, region.pages)).touch()
        return min(2, region.pages)
    return region.pages


@LOCKS
def test_mremap_growth_in_place_is_counted(letter):
    """A locked mapping that grows in place counts, and populates, the growth."""
    with mapping("private", 12) as region:
        resident = lock(region.sub(0, 8), letter)
        unmap_pages(region, 8, 4)
        grown = syscalls.mremap(region.addr, 8 * PAGE, 11 * PAGE, 0)
        assert grown == region.addr, "it grew in place"
        resident = 11 if letter == "L" else resident
        assert lock_accounting.read(region) == expect(letter * 11 + "-", resident), (
            "VmLck grows by 3"
        )


@LOCKS
def test_mremap_growth_of_tail_in_place_is_counted(letter):
    """Only the last page of a locked mapping named, mremap counts just what it adds."""
    with mapping("private", 12) as region:
        resident = lock(region.sub(0, 8), letter)
        unmap_pages(region, 8, 4)
        syscalls.mremap(region.at(7), PAGE, 3 * PAGE, 0)
        resident = 10 if letter == "L" else resident
        assert lock_accounting.read(region) == expect(letter * 10 + "--", resident), (
            "VmLck grows by 2"
        )


@LOCKS
@pytest.mark.detects("vmlck-mremap-grow-uncounted")
def test_mremap_growth_is_locked_and_counted(letter):
    """A locked mapping that must move to grow counts the new length once, all of it lo."""
    with mapping("private", 8) as region:
        resident = lock(region, letter)
        new = syscalls.mremap(region.addr, region.size, 12 * PAGE, MAYMOVE)
        with adopt_mapping(new, 12 * PAGE) as target:
            resident = 12 if letter == "L" else resident
            assert lock_accounting.read(target) == expect(letter * 12, resident), (
                "the new range counts 12 pages, the old one none"
            )
            assert lock_accounting.page_letters(region) == "--------", (
                "nothing of the old range is lo"
            )


@pytest.mark.parametrize(
    ("first", "count", "grown", "letter"), [(2, 3, 5, "L"), (0, 2, 3, "F"), (5, 3, 7, "L")]
)
def test_mremap_growth_of_part_is_counted(first, count, grown, letter):
    """A part of a locked mapping that moves and grows adds the growth to VmLck."""
    with mapping("private", 8) as region:
        resident = lock(region, letter)
        new = syscalls.mremap(region.at(first), count * PAGE, grown * PAGE, MAYMOVE)
        with adopt_mapping(new, grown * PAGE) as target:
            rest = letter * first + "-" * count + letter * (8 - first - count)
            resident = 8 + grown - count if letter == "L" else resident
            assert lock_accounting.read(region) == expect(rest, resident, elsewhere=grown), (
                "the rest and the moved part count"
            )
            assert lock_accounting.page_letters(target) == letter * grown, (
                "all of the moved part is locked"
            )


@MOVABLE
def test_mremap_growth_of_other_kinds_is_counted(kind):
    """Growth beyond the end of a file or a shared object counts too, though not populated."""
    with mapping(kind, 8) as region:
        lock(region)
        new = syscalls.mremap(region.addr, region.size, 10 * PAGE, MAYMOVE)
        with adopt_mapping(new, 10 * PAGE) as target:
            resident = 10 if kind == "private" else 8
            assert lock_accounting.read(target) == expect("L" * 10, resident), "10 pages count"


@pytest.mark.parametrize(
    ("kind", "letter"),
    [
        ("private", "L"),
        ("private", "F"),
        ("shared", "F"),
        ("file-shared", "L"),
        ("file-private", "L"),
    ],
)
def test_mremap_move_keeps_the_count(kind, letter):
    """A locked mapping moved to a fixed address counts as before, there and no longer here."""
    with mapping(kind, 8) as region, mapping("private", 8, prot=syscalls.PROT_NONE) as target:
        resident = lock(region, letter)
        syscalls.mremap(region.addr, region.size, region.size, FIXED, target.addr)
        assert lock_accounting.read(target) == expect(letter * 8, resident), "8 pages count there"
        assert lock_accounting.page_letters(region) == "--------", "none is lo here"


@pytest.mark.parametrize(
    ("first", "count", "letter"), [(0, 3, "L"), (2, 4, "L"), (2, 4, "F"), (7, 1, "L")]
)
@pytest.mark.detects("vmlck-mremap-move-double")
def test_mremap_move_of_part_keeps_the_count(first, count, letter):
    """A part of a locked mapping moved elsewhere changes nothing in VmLck."""
    with mapping("private", 8) as region, mapping("private", 8, prot=syscalls.PROT_NONE) as target:
        resident = lock(region, letter)
        syscalls.mremap(region.at(first), count * PAGE, count * PAGE, FIXED, target.at(1))
        rest = letter * first + "-" * count + letter * (8 - first - count)
        assert lock_accounting.read(region) == expect(rest, resident, elsewhere=count), (
            "8 pages count"
        )
        assert lock_accounting.page_letters(target) == "-" + letter * count + "-" * (7 - count), (
            "the moved part is locked where it went"
        )


@pytest.mark.parametrize(
    ("old", "new", "letter"), [(8, 5, "L"), (8, 5, "F"), (8, 1, "L"), (6, 5, "L")]
)
@pytest.mark.detects("vmlck-mremap-shrink-kept")
def test_mremap_shrink_is_counted(old, new, letter):
    """A locked mapping that shrinks takes what it gives up, and no more, out of VmLck."""
    with mapping("private", 8) as region:
        lock(region, letter)
        syscalls.mremap(region.addr, old * PAGE, new * PAGE, 0)
        left = letter * new + "-" * (old - new) + letter * (8 - old)
        resident = left.count("L") if letter == "L" else min(2, new)
        assert lock_accounting.read(region) == expect(left, resident), "only the tail leaves VmLck"


@pytest.mark.parametrize(("old", "new"), [(8, 3), (5, 2), (6, 8)])
def test_mremap_move_with_new_size(old, new):
    """A move to a fixed address with another length counts the new length for the old."""
    with mapping("private", 8) as region, mapping("private", 8, prot=syscalls.PROT_NONE) as target:
        lock(region)
        syscalls.mremap(region.addr, old * PAGE, new * PAGE, FIXED, target.addr)
        resident = 8 - old + new
        rest = "-" * old + "L" * (8 - old)
        assert lock_accounting.read(region) == expect(rest, resident, elsewhere=new), (
            "what stays and the new length count"
        )
        assert lock_accounting.page_letters(target) == "L" * new + "-" * (8 - new), (
            "all of it is lo"
        )


def test_mremap_onto_locked_memory():
    """Moved onto locked memory, a locked mapping replaces its count."""
    with mapping("private", 4) as region, mapping("private", 8) as target:
        lock(region)
        syscalls.mlock2(target.addr, target.size, syscalls.MLOCK_ONFAULT)
        syscalls.mremap(region.addr, region.size, region.size, FIXED, target.at(2))
        assert lock_accounting.read(target) == expect("FFLLLLFF", resident=4), (
            "the destination's own lock is gone, the source's came"
        )


def test_mremap_of_unlocked_onto_locked_memory():
    """Moved onto locked memory, an unlocked mapping stays unlocked and uncounted."""
    with mapping("private", 4) as region, mapping("private", 8) as target:
        region.touch()
        lock(target)
        syscalls.mremap(region.addr, region.size, region.size, FIXED, target.at(4))
        assert lock_accounting.read(target) == expect("LLLL----", resident=4), (
            "four pages were replaced by unlocked ones"
        )


def test_mremap_of_unlocked_memory_counts_nothing():
    """Growing, moving and shrinking unlocked memory leaves the account of its neighbour."""
    with mapping("private", 8) as region:
        syscalls.mlock(region.at(6), 2 * PAGE)
        new = syscalls.mremap(region.addr, 4 * PAGE, 6 * PAGE, MAYMOVE)
        with adopt_mapping(new, 6 * PAGE) as target:
            syscalls.mremap(target.addr, 6 * PAGE, 5 * PAGE, 0)
            assert lock_accounting.read(region) == expect("------LL", resident=2), (
                "two pages as before"
            )
            assert lock_accounting.page_letters(target) == "------", "nothing of it is lo"


def test_refused_mremap_leaves_the_account():
    """An mremap that cannot grow in place, overlaps itself or names no size changes nothing."""
    with mapping("private", 8) as region:
        lock(region)
        seen = {
            "no room to grow": syscalls.outcome(
                syscalls.mremap, region.addr, region.size, 9 * PAGE, 0
            ),
            "onto itself": syscalls.outcome(
                syscalls.mremap, region.addr, 4 * PAGE, 4 * PAGE, FIXED, region.at(2)
            ),
            "to nothing": syscalls.outcome(syscalls.mremap, region.addr, region.size, 0, MAYMOVE),
            "private, twice": syscalls.outcome(syscalls.mremap, region.addr, 0, PAGE, MAYMOVE),
        }
        assert seen == {
            "no room to grow": "ENOMEM",
            "onto itself": "EINVAL",
            "to nothing": "EINVAL",
            "private, twice": "EINVAL",
        }, "each is refused"
        assert lock_accounting.read(region) == expect("LLLLLLLL", resident=8), (
            "8 pages count as before"
        )


@pytest.mark.parametrize(
    ("kind", "letter"), [("shared", "L"), ("shared", "F"), ("file-shared", "L")]
)
@pytest.mark.detects("vmlck-mremap-dup-uncounted")
def test_mremap_of_nothing_doubles_shared_memory(kind, letter):
    """mremap with old length 0 maps locked shared memory a second time, locked and counted
    too; Locked, a PSS, holds each page once."""
    with mapping(kind, 8) as region:
        lock(region, letter)
        new = syscalls.mremap(region.addr, 0, region.size, MAYMOVE)
        with adopt_mapping(new, region.size) as twin:
            twice = pagemap.present_count(twin.addr, 8)
            once = pagemap.present_count(region.addr, 8)
            if letter == "L":
                assert twice == 8, "the second mapping is populated"
            seen = lock_accounting.read(region)
            assert seen == expect(letter * 8, max(once, twice), elsewhere=8), (
                "16 pages count, and each resident page once"
            )
            assert lock_accounting.page_letters(twin) == letter * 8, (
                "all of the second mapping is lo"
            )


@LOCKS
@pytest.mark.deviation("dontunmap-leaks-vmlck")
def test_dontunmap_keeps_the_count(letter):
    """MREMAP_DONTUNMAP takes the lock along: the new range is lo, the old one is not, VmLck
    stays."""
    with mapping("private", 8) as region:
        resident = lock(region, letter)
        new = syscalls.mremap(region.addr, region.size, region.size, DONTUNMAP)
        with adopt_mapping(new, region.size) as target:
            assert lock_accounting.page_letters(region) == "--------", (
                "the old range is no longer lo"
            )
            assert lock_accounting.read(target) == expect(letter * 8, resident), "8 pages count"


@pytest.mark.deviation("dontunmap-leaks-vmlck")
def test_dontunmap_leaves_nothing_behind():
    """Once both ranges of an MREMAP_DONTUNMAP are unmapped, VmLck is what it was before."""
    with mapping("private", 8) as region, mapping("private", 2, flags=syscalls.MAP_LOCKED) as other:
        lock(region)
        new = syscalls.mremap(region.addr, region.size, region.size, DONTUNMAP)
        syscalls.munmap(new, region.size)
        syscalls.munmap(region.addr, region.size)
        assert lock_accounting.read(other) == expect("LL", resident=2), (
            "only the other mapping counts"
        )


@pytest.mark.deviation("dontunmap-leaks-vmlck")
@pytest.mark.deviation("dontunmap-strips-lock")
@pytest.mark.parametrize(("first", "count", "letter"), [(0, 3, "F"), (2, 4, "L"), (5, 3, "L")])
def test_dontunmap_of_part_keeps_the_rest_locked(first, count, letter):
    """MREMAP_DONTUNMAP of a part of a locked mapping takes that part's lock, the rest stays
    lo."""
    with mapping("private", 8) as region:
        resident = lock(region, letter)
        new = syscalls.mremap(region.at(first), count * PAGE, count * PAGE, DONTUNMAP)
        with adopt_mapping(new, count * PAGE):
            rest = letter * first + "-" * count + letter * (8 - first - count)
            assert lock_accounting.read(region) == expect(rest, resident, elsewhere=count), (
                "the rest and the moved part count: 8 pages"
            )
