# SPDX-License-Identifier: MIT
"""What becomes of lo and lf when the VMA is changed by other calls."""

import pytest

from helpers import memory, syscalls
from helpers.memory import MAPPING_KINDS, layouts, mapping
from helpers.memory.locks import FLAGS, apply
from helpers.observe import maps, pagemap, status
from helpers.syscalls import (
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PAGE,
    PROT_NONE,
    PROT_READ,
    PROT_RW,
)

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("lock:12", "smaps-flags"),
    pytest.mark.source("mm/mprotect.c", "mm/mremap.c", "mm/madvise.c", "mseal(2)"),
]

PLACES = ((2, 5), (0, 3), (5, 8), (0, 8))
by_way = pytest.mark.parametrize("way", ["mlock", "onfault"])
by_kind = pytest.mark.parametrize("kind", MAPPING_KINDS)


def layout(region):
    return maps.layout(region)


def locks(region):
    """The lock of every page (None in a hole), whatever VMAs they are in."""
    by_page = {p: lock for first, end, lock in layout(region) for p in range(first, end)}
    return [by_page.get(page) for page in range(region.pages)]


def split(kind, runs, mark):
    """``maps.pieces`` of a mapping made of (first, end, rwx) runs, each ``mark``."""
    last = "s" if kind.endswith("shared") else "p"
    return [(a, b, rwx + last, 0 if kind == "private" else a, mark) for a, b, rwx in runs]


def seen(region):
    return maps.pieces(region.addr, region.end, PAGE)


@by_kind
@by_way
@pytest.mark.parametrize(("prot", "rwx"), [(PROT_READ, "r--"), (PROT_NONE, "---")], ids="rn")
@pytest.mark.detects("mprotect-none-drops-lock", "mprotect-drops-lf")
def test_mprotect_of_part_keeps_lock_on_every_piece(kind, way, prot, rwx):
    """mprotect of the head, the middle, the tail or all of a locked VMA changes the permissions
    there only; each piece keeps lo, and lf if it had it, VmLck stays, and with its permissions
    restored it is one locked VMA again."""
    with mapping(kind, 8) as region:
        region.touch()
        apply(region, way)
        before = status.vmlck_pages()
        for first, end in PLACES:
            syscalls.mprotect(region.at(first), (end - first) * PAGE, prot)
            runs = [(0, first, "rw-"), (first, end, rwx), (end, 8, "rw-")]
            runs = [run for run in runs if run[0] < run[1]]
            assert seen(region) == split(kind, runs, FLAGS[way]), f"pages {first} to {end}"
            assert status.vmlck_pages() == before, f"VmLck with pages {first} to {end} changed"
            syscalls.mprotect(region.at(first), (end - first) * PAGE, PROT_RW)
            whole = split(kind, [(0, 8, "rw-")], FLAGS[way])
            assert seen(region) == whole, f"pages {first} to {end} restored"
            assert status.vmlck_pages() == before, f"VmLck with pages {first} to {end} restored"
        apply(region, "munlock")
        assert layout(region) == [(0, 8, "")], "one unlocked VMA"


def test_mprotect_across_locks_keeps_each_as_it_is():
    """mprotect over neighbouring VMAs of different locks gives all of them the permissions and
    none of them another's lock; equal permissions do not merge them."""
    with mapping("private", 9) as region:
        region.touch()
        apply(region.sub(0, 3), "mlock")
        apply(region.sub(3, 3), "onfault")
        before = status.vmlck_pages()
        syscalls.mprotect(region.at(1), 7 * PAGE, PROT_READ)
        assert seen(region) == [
            (0, 1, "rw-p", 0, "lo"),
            (1, 3, "r--p", 0, "lo"),
            (3, 6, "r--p", 0, "lo lf"),
            (6, 8, "r--p", 0, ""),
            (8, 9, "rw-p", 0, ""),
        ], "read-only across three locks"
        syscalls.mprotect(region.addr, region.size, PROT_RW)
        assert layout(region) == [(0, 3, "lo"), (3, 6, "lo lf"), (6, 9, "")], "restored"
        assert status.vmlck_pages() == before, "VmLck as before"


@pytest.mark.parametrize(
    ("advice", "undo"),
    [
        (syscalls.MADV_DONTFORK, syscalls.MADV_DOFORK),
        (syscalls.MADV_DONTDUMP, syscalls.MADV_DODUMP),
        (syscalls.MADV_WIPEONFORK, syscalls.MADV_KEEPONFORK),
        (syscalls.MADV_RANDOM, syscalls.MADV_NORMAL),
    ],
    ids=["dontfork", "dontdump", "wipeonfork", "random"],
)
@by_way
@pytest.mark.detects("madvise-drops-lock")
def test_madvise_that_splits_keeps_the_lock(way, advice, undo):
    """Advice that is kept as a VMA flag splits a locked VMA, and every piece stays locked as it
    was; the advice undone, it is one VMA."""
    with mapping("private", 8) as region:
        region.touch()
        apply(region, way)
        before = status.vmlck_pages()
        mark = FLAGS[way]
        syscalls.madvise(region.at(2), 3 * PAGE, advice)
        assert layout(region) == [(0, 2, mark), (2, 5, mark), (5, 8, mark)], "three pieces"
        apply(region.sub(1, 6), "munlock")
        want = [(0, 1, mark), (1, 2, ""), (2, 5, ""), (5, 7, ""), (7, 8, mark)]
        assert layout(region) == want, "unlocked across the advised part"
        apply(region, way)
        syscalls.madvise(region.at(2), 3 * PAGE, undo)
        assert layout(region) == [(0, 8, mark)], "one VMA with the advice undone"
        assert status.vmlck_pages() == before, "VmLck as before"


@by_kind
@by_way
@pytest.mark.detects("mremap-move-loses-lock", "mremap-move-loses-lf")
def test_mremap_takes_the_lock_along(kind, way):
    """mremap that moves a locked VMA leaves nothing at the old place, and at the new one the
    same lock, offset and contents, VmLck unchanged."""
    with mapping(kind, 20) as region:
        source = region.sub(0, 8)
        source.touch(0x77)
        apply(source, way)
        before = status.vmlck_pages()
        layouts.unmap_pages(region, 8, 12)
        syscalls.mremap(source.addr, source.size, source.size, MREMAP_MAYMOVE | MREMAP_FIXED,
                    region.at(11))  # fmt: skip
        perms = "rw-s" if kind.endswith("shared") else "rw-p"
        assert seen(region) == [(11, 19, perms, 0, FLAGS[way])], "moved with its lock"
        assert status.vmlck_pages() == before, "VmLck as before the move"
        assert region.sub(11, 8).first_bytes() == b"\x77" * 8, "contents moved along"
        apply(region.sub(11, 8), "munlock")
        assert layout(region) == [(11, 19, "")], "unlocked at the new place"
        assert before - status.vmlck_pages() == 8, "VmLck less the pages"


@pytest.mark.parametrize("kind", ["private", "memfd-shared", "file-private"])
@by_way
def test_mremap_of_part_keeps_the_lock_on_both(kind, way):
    """mremap that moves the middle out of a locked VMA leaves head and tail locked, the moved
    part with its lock and offset; moved back, it is one VMA again."""
    with mapping(kind, 16) as region:
        region.touch()
        layouts.unmap_pages(region, 8, 8)
        apply(region.sub(0, 8), way)
        before = status.vmlck_pages()
        how = MREMAP_MAYMOVE | MREMAP_FIXED
        syscalls.mremap(region.at(2), 3 * PAGE, 3 * PAGE, how, region.at(10))
        mark = FLAGS[way]
        found = maps.smaps(low=region.addr, high=region.end)
        where = [((v.start - region.addr) // PAGE, v.size // PAGE, v.lock) for v in found]
        assert where == [(0, 2, mark), (5, 3, mark), (10, 3, mark)], "three locked pieces"
        if kind != "private":
            assert [v.offset // PAGE for v in found] == [0, 5, 2], "their file offsets"
        assert status.vmlck_pages() == before, "VmLck as before the move"
        syscalls.mremap(region.at(10), 3 * PAGE, 3 * PAGE, how, region.at(2))
        assert layout(region) == [(0, 8, mark)], "one VMA after the move back"
        assert status.vmlck_pages() == before, "VmLck as before both moves"


@pytest.mark.own_process
@pytest.mark.parametrize("kind", ["private", "memfd-shared"])
@by_way
def test_mremap_grows_and_shrinks_with_the_lock(kind, way):
    """mremap that grows a locked VMA, in place or on the move, gives the new pages its lock, and
    that shrinks it leaves the rest locked; VmLck follows. A full lock populates what is new,
    a lock on fault does not."""
    fd = memory.memfd(24 * PAGE) if kind == "memfd-shared" else None
    with mapping(kind, 24, fd=fd) as region:
        region.sub(0, 8).touch()
        layouts.unmap_pages(region, 8, 16)
        before = status.vmlck_pages()
        apply(region.sub(0, 8), way)
        mark = FLAGS[way]
        new = 0 if way == "onfault" else 2
        assert syscalls.mremap(region.addr, 8 * PAGE, 10 * PAGE) == region.addr, "grown in place"
        assert layout(region) == [(0, 10, mark)], "the growth is locked"
        assert status.vmlck_pages() - before == 10, "VmLck with the growth"
        assert pagemap.present_count(region.at(8), 2) == new, "new pages present"
        how = MREMAP_MAYMOVE | MREMAP_FIXED
        syscalls.mremap(region.addr, 10 * PAGE, 12 * PAGE, how, region.at(12))
        assert layout(region) == [(12, 24, mark)], "moved and grown"
        assert status.vmlck_pages() - before == 12, "VmLck with the second growth"
        assert pagemap.present_count(region.at(22), 2) == new, "new pages present after the move"
        syscalls.mremap(region.at(12), 12 * PAGE, 5 * PAGE)
        assert layout(region) == [(12, 17, mark)], "shrunk"
        assert status.vmlck_pages() - before == 5, "VmLck of what is left"


@pytest.mark.parametrize("target", ["mlock", "onfault", "munlock"])
@pytest.mark.parametrize("source", ["mlock", "onfault", "munlock"])
def test_mremap_over_a_mapping_brings_the_sources_lock(source, target):
    """mremap onto an existing mapping replaces its lock by that of the source, and takes the
    replaced pages out of VmLck; neighbours of the target keep theirs."""
    with mapping("private", 10) as region:
        region.touch()
        before = status.vmlck_pages()
        apply(region.sub(0, 2), source)
        apply(region.sub(4, 6), target)
        syscalls.mremap(
            region.addr, 2 * PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, region.at(6)
        )
        old, new = FLAGS[target], FLAGS[source]
        want = [None, None, "", "", old, old, new, new, old, old]
        assert locks(region) == want, "lock of every page"
        locked = (2 if new else 0) + (4 if old else 0)
        assert status.vmlck_pages() - before == locked, "VmLck"


@pytest.mark.own_process
@by_way
@pytest.mark.detects("mremap-dontunmap-old-stays-locked")
def test_dontunmap_moves_the_mark(way):
    """MREMAP_DONTUNMAP of a locked VMA gives its lock to the new mapping, and leaves the old
    one mapped with neither lo nor lf."""
    with mapping("private", 16) as region:
        region.touch()
        apply(region.sub(0, 4), way)
        how = MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP
        syscalls.mremap(region.addr, 4 * PAGE, 4 * PAGE, how, region.at(8))
        assert locks(region) == [""] * 8 + [FLAGS[way]] * 4 + [""] * 4, "lock of every page"


@pytest.mark.deviation("dontunmap-strips-lock")
@by_way
def test_dontunmap_of_part_leaves_the_rest_marked(way):
    """MREMAP_DONTUNMAP of the middle of a locked VMA takes the lock from that part only; the
    rest of the old mapping stays locked."""
    with mapping("private", 16) as region:
        region.touch()
        mark = FLAGS[way]
        apply(region.sub(0, 6), way)
        how = MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP
        syscalls.mremap(region.at(2), 2 * PAGE, 2 * PAGE, how, region.at(8))
        want = [mark, mark, "", "", mark, mark, "", "", mark, mark, "", "", "", "", "", ""]
        assert locks(region) == want, "lock of every page"


@pytest.mark.needs("remap-file-pages")
@pytest.mark.detects("remap-file-pages-drops-lock")
def test_remap_file_pages_keeps_the_lock():
    """remap_file_pages of a page of a locked shared mapping makes it a VMA of its own, at
    another offset and still locked; VmLck stays."""
    with mapping("memfd-shared", 6) as region:
        apply(region, "mlock")
        before = status.vmlck_pages()
        syscalls.syscall("remap_file_pages", region.at(1), PAGE, 0, 4, 0)
        assert seen(region) == [
            (0, 1, "rw-s", 0, "lo"),
            (1, 2, "rw-s", 4, "lo"),
            (2, 6, "rw-s", 2, "lo"),
        ], "offsets 0, 4, 2 and all locked"
        assert status.vmlck_pages() == before, "VmLck as before"


@pytest.mark.needs("guard")
def test_guard_pages_take_the_mark_like_others():
    """mlock over guard pages gives ENOMEM and marks the whole range nevertheless, on fault it
    gives 0; munlock unmarks it, and the guards split nothing."""
    with mapping("private", 8) as region:
        region.touch()
        before = status.vmlck_pages()
        syscalls.madvise(region.at(3), 2 * PAGE, syscalls.MADV_GUARD_INSTALL)
        for way, answer in (("mlock", "ENOMEM"), ("munlock", "ok"), ("onfault", "ok")):
            assert syscalls.outcome(apply, region, way) == answer, f"{way} over guard pages"
            assert layout(region) == [(0, 8, FLAGS[way])], f"one VMA after {way}"
            counted = 8 if FLAGS[way] else 0
            assert status.vmlck_pages() - before == counted, f"VmLck after {way}"


@pytest.mark.needs("mseal")
@pytest.mark.detects("mseal-forbids-locks")
def test_sealed_memory_can_be_locked_and_unlocked_in_part():
    """mseal leaves mlock and munlock free, of parts too: sealed VMAs split and merge by their
    locks; munmap, mprotect and mremap of part give EPERM and change nothing."""
    # Sealed memory cannot be unmapped: it goes with this process, fences and all.
    base = syscalls.mmap(0, 10 * PAGE, PROT_NONE)
    how = syscalls.MAP_PRIVATE | syscalls.MAP_ANONYMOUS | syscalls.MAP_FIXED
    region = memory.Region(syscalls.mmap(base + PAGE, 8 * PAGE, PROT_RW, how), 8 * PAGE)
    region.touch()
    syscalls.syscall("mseal", region.addr, region.size, 0)
    before = status.vmlck_pages()
    for way in ("mlock", "onfault"):
        mark = FLAGS[way]
        apply(region.sub(2, 3), way)
        assert layout(region) == [(0, 2, ""), (2, 5, mark), (5, 8, "")], f"split by {way}"
        apply(region, way)
        assert layout(region) == [(0, 8, mark)], f"merged by {way}"
        apply(region.sub(0, 3), "munlock")
        assert layout(region) == [(0, 3, ""), (3, 8, mark)], f"split by munlock after {way}"
        for call, *args in (
            (syscalls.munmap, region.at(4), PAGE),
            (syscalls.mprotect, region.at(4), PAGE, PROT_READ),
            (syscalls.mremap, region.at(4), PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, base),
        ):
            assert syscalls.outcome(call, *args) == "EPERM", "sealed"
        assert layout(region) == [(0, 3, ""), (3, 8, mark)], "as before the refused calls"
        assert status.vmlck_pages() - before == 5, f"VmLck after {way}"
        apply(region, "munlock")
        assert layout(region) == [(0, 8, "")], f"merged by munlock after {way}"
    assert status.vmlck_pages() == before, "VmLck when all is unlocked"
