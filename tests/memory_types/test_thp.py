# SPDX-License-Identifier: MIT
"""Transparent huge pages: one folio, one mark, many pages."""

import statistics
from contextlib import contextmanager

import pytest

from helpers import syscalls
from helpers.machine import block_devices, kernel_version
from helpers.memory import Region, huge_pages
from helpers.observe import (
    folios,
    huge_mappings,
    lock_accounting,
    lru_batches,
    maps,
    mlock_counters,
    page_faults,
    page_flags,
    pagemap,
    status,
)
from helpers.processes import Child, cpus
from helpers.reclaim import control_pairs, drivers
from helpers.requirements.inconclusive import inconclusive
from helpers.syscalls import PAGE

N = huge_pages.HPAGE_PMD_NR
"""Pages in a huge page."""
PART = N // 4

pytestmark = [
    pytest.mark.needs("thp", f"lock:{2 * N}", f"budget:{2 * N}"),
    pytest.mark.source("mm/mlock.c mlock_pte_range", "unevictable-lru.rst"),
]
FLAGS = pytest.mark.needs("kpageflags")
PIECES = [(0, PART), (PART, PART), (N - 1, 1)]
ENDS = ["head", "middle", "last-page"]


def marks(region, pid="self"):
    """Marks of the folios of the region, each once in a row: "MU", "-MU", …"""
    lru_batches.mlock_drain_local()
    found = []
    for folio in folios.of(region, pid):
        assert folio.tails_agree, "tail pages show the mark of their head"
        if not found or found[-1] != folio.marks:
            found.append(folio.marks)
    return " ".join(found)


def fill(region):
    for page in range(region.pages):
        syscalls.store(region.at(page), page.to_bytes(4, "little"))


def numbers(region):
    return [int.from_bytes(syscalls.load(region.at(p), 4), "little") for p in range(region.pages)]


COUNTING = list(range(N))


def need_huge(region):
    if not huge_mappings.is_huge(region):
        inconclusive("the kernel gave no huge page")


@contextmanager
def huge_page(locked=False):
    """A huge page that holds the numbers of its pages, in a process that stays on one CPU."""
    cpus.pin_to_one_cpu()
    huge_pages.enable_thp()
    with huge_pages.thp_aligned_mapping() as region:
        fill(region)
        if locked:
            syscalls.mlock(region.addr, region.size)
        need_huge(region)
        huge_pages.keep_huge_pages()
        yield region


def seal(region):
    """What must not change: presence, contents, VmLck, faults on writing."""
    assert pagemap.present_count(region.addr, region.pages) == region.pages, "all present"
    assert maps.locked_kb() == status.vmlck_kb(), "VmLck is the sum of the lo VMAs"


@FLAGS
@pytest.mark.parametrize("way", ["present", "empty", "onfault"])
@pytest.mark.usefixtures("one_cpu")
def test_huge_page_locked_whole_is_marked_and_unmarked(way):
    """A huge page is mlocked and unevictable as a whole from its lock, or its fault into a locked
    range, to its munlock; one touch locks all of it."""
    huge_pages.enable_thp()
    with huge_pages.thp_aligned_mapping() as region:
        if way == "present":
            fill(region)
            assert marks(region) == "-", "not locked"
        if way == "onfault":
            syscalls.mlock2(region.addr, region.size, syscalls.MLOCK_ONFAULT)
            assert pagemap.present_count(region.addr, N) == 0, "nothing is populated"
            syscalls.store(region.at(PART), b"x")
        else:
            syscalls.mlock(region.addr, region.size)
        need_huge(region)
        assert marks(region) == "MU", "mlocked and unevictable"
        assert status.vmlck_pages() == N, "VmLck"
        assert maps.rollup_kb() == region.kb, "Locked in smaps_rollup"
        syscalls.munlock(region.addr, region.size)
        assert marks(region) == "-", "neither after munlock"
        assert huge_mappings.is_huge(region), "still one huge page"
        syscalls.mlock(region.addr, region.size)
        assert marks(region) == "MU", "locked again"
        seal(region)


@FLAGS
@pytest.mark.usefixtures("one_cpu")
def test_lock_of_one_huge_page_leaves_its_neighbour():
    """Locking and unlocking one of two neighbouring huge pages marks it alone, and splits none."""
    huge_pages.enable_thp()
    with huge_pages.thp_aligned_mapping(2) as region:
        region.touch()
        need_huge(region)
        first, second = region.sub(0, N), region.sub(N, N)
        syscalls.mlock(second.addr, second.size)
        assert (marks(first), marks(second)) == ("-", "MU"), "the second is locked"
        syscalls.mlock(first.addr, first.size)
        syscalls.munlock(second.addr, second.size)
        assert (marks(first), marks(second)) == ("MU", "-"), "the first is locked"
        assert huge_mappings.is_huge(region), "both are huge pages still"
        assert status.vmlck_pages() == N, "one counts"


@pytest.mark.parametrize(("first", "count"), PIECES, ids=ENDS)
def test_lock_of_a_part_before_the_touch_populates_that_part_only(first, count):
    """mlock of a part of an empty huge range populates exactly that part, and touching the rest
    page by page leaves its account alone."""
    huge_pages.enable_thp()
    with huge_pages.thp_aligned_mapping() as region:
        syscalls.mlock(region.at(first), count * PAGE)
        expected = [first <= page < first + count for page in range(N)]
        assert pagemap.present(region.addr, N) == expected, "exactly what is locked is present"
        region.touch()
        assert not huge_mappings.is_huge(region), "a huge page cannot cross the edge of a lock"
        assert status.vmlck_pages() == count, "VmLck"
        seal(region)


@FLAGS
@pytest.mark.parametrize(("first", "count"), PIECES, ids=ENDS)
def test_lock_of_a_part_of_a_huge_page(first, count):
    """A lock of a part of a huge page counts that part and leaves the folio whole and unmarked:
    its other pages stay reclaimable."""
    with huge_page() as region:
        frames = pagemap.pfns(region.addr, N)
        syscalls.mlock(region.at(first), count * PAGE)
        expected = [first <= page < first + count for page in range(N)]
        letters = lock_accounting.page_letters(region)
        assert [c == lock_accounting.LOCKED for c in letters] == expected, "that part is lo"
        assert status.vmlck_pages() == count, "and counted"
        assert numbers(region) == COUNTING, "contents"
        assert page_faults.faults_writing(region.at(first), count * PAGE).minor == 0, (
            "its pages are there"
        )
        seal(region)
        if pagemap.pfns(region.addr, N) == frames:  # compaction would have split it
            assert marks(region) == "-", "a folio locked in part is not mlocked"
        syscalls.munlock(region.at(first), count * PAGE)
        assert marks(region) == "-", "nor after munlock"
        assert status.vmlck_pages() == 0, "nothing is counted"


@FLAGS
@pytest.mark.parametrize(("first", "count"), PIECES, ids=ENDS)
def test_unlock_of_a_part_of_a_locked_huge_page(first, count):
    """munlock of a part of a locked huge page takes the mark off the folio; the rest stays locked,
    counted and present."""
    with huge_page(locked=True) as region:
        frames = pagemap.pfns(region.addr, N)
        syscalls.munlock(region.at(first), count * PAGE)
        letters = lock_accounting.page_letters(region)
        expected = [not first <= page < first + count for page in range(N)]
        assert [c == lock_accounting.LOCKED for c in letters] == expected, "the rest is lo"
        assert status.vmlck_pages() == N - count, "and counted"
        assert numbers(region) == COUNTING, "contents"
        seal(region)
        if pagemap.pfns(region.addr, N) == frames:
            assert marks(region) == "-", "a folio with unlocked pages can be reclaimed"


@FLAGS
def test_relock_of_a_huge_page_that_was_mapped_in_parts():
    """A huge page locked, unlocked in part, unlocked and locked whole again counts once and is
    marked again, where the kernel marks folios mapped page by page (6.7)."""
    with huge_page(locked=True) as region:
        syscalls.munlock(region.at(PART), PAGE)
        syscalls.munlock(region.addr, region.size)
        assert marks(region) == "-", "unlocked"
        syscalls.mlock(region.addr, region.size)
        assert status.vmlck_pages() == N, "VmLck"
        seal(region)
        if kernel_version.version() >= (6, 7, 0) and folios.sizes(region) == {N: N}:
            assert marks(region) == "MU", "the whole folio lies in the lock: marked"
        syscalls.munlock(region.addr, region.size)
        assert marks(region) == "-", "unlocked"
        assert status.vmlck_pages() == 0, "nothing is counted"


@FLAGS
@pytest.mark.needs("pageout")
@pytest.mark.parametrize(
    ("order", "first", "count"),
    [
        ("locked-whole-first", 0, PART),
        ("locked-whole-first", N - 1, 1),
        ("locked-in-part", PART, PART),
    ],
)
def test_split_marks_exactly_the_locked_pages(order, first, count):
    """When a huge page of which a part is unlocked is split (MADV_COLD of that part), each locked
    page is mlocked for itself and no other."""
    with huge_page() as region:
        if order == "locked-whole-first":
            syscalls.mlock(region.addr, region.size)
            syscalls.munlock(region.at(first), count * PAGE)
        else:
            syscalls.mlock(region.addr, first * PAGE)
            syscalls.mlock(region.at(first + count), (N - first - count) * PAGE)
        lru_batches.mlock_drain_local()  # a page in a batch is referred to, and cannot be split
        syscalls.madvise(region.at(first), count * PAGE, syscalls.MADV_COLD)
        lru_batches.mlock_drain_local()
        if folios.sizes(region) != {1: N}:
            inconclusive(f"the folio was not split: {folios.sizes(region)}")
        expected = [not first <= page < first + count for page in range(N)]
        assert folios.mlocked(region) == expected, "the locked pages are mlocked"
        assert numbers(region) == COUNTING, "contents"
        assert status.vmlck_pages() == N - count, "VmLck"
        seal(region)
        syscalls.munlock(region.addr, region.size)
        assert marks(region) == "-", "unlocked: none is marked"


@FLAGS
@pytest.mark.needs("split-huge-pages")
@pytest.mark.source("Documentation/admin-guide/mm/transhuge.rst")
@pytest.mark.exclusive
def test_split_of_a_locked_huge_page_marks_every_page():
    """A huge page that is locked whole and split by the kernel leaves every page mlocked."""
    with huge_page(locked=True) as region:
        lru_batches.mlock_drain_local()
        huge_pages.split_huge_pages(region)
        lru_batches.mlock_drain_local()
        if folios.sizes(region) != {1: N}:
            inconclusive(f"the folio was not split: {folios.sizes(region)}")
        assert folios.mlocked(region) == [True] * N, "every page is mlocked"
        assert numbers(region) == COUNTING, "contents"
        assert status.vmlck_pages() == N, "VmLck"
        syscalls.munlock(region.addr, region.size)
        assert marks(region) == "-", "unlocked: none is marked"


@pytest.mark.parametrize("way", ["munmap", "mprotect", "madvise", "mremap"])
def test_locked_huge_page_mapped_in_parts_stays_locked(way):
    """munmap, mprotect, MADV_DONTFORK or mremap of a part of a locked huge page leaves every other
    page present, locked and writable without a fault."""
    with huge_page(locked=True) as region:
        piece = region.sub(PART, PART)
        expected = N
        if way == "munmap":
            syscalls.munmap(piece.addr, piece.size)
            expected = N - PART
        elif way == "mprotect":
            syscalls.mprotect(piece.addr, piece.size, syscalls.PROT_READ)
        elif way == "madvise":
            syscalls.madvise(piece.addr, piece.size, syscalls.MADV_DONTFORK)
        else:
            target = syscalls.mmap(0, piece.size, syscalls.PROT_NONE)
            how = syscalls.MREMAP_MAYMOVE | syscalls.MREMAP_FIXED
            syscalls.mremap(piece.addr, piece.size, piece.size, how, target)
            moved = Region(target, piece.size)
            assert lock_accounting.page_letters(moved) == lock_accounting.LOCKED * PART, (
                "the moved part is lo"
            )
            assert page_faults.faults_writing(target, piece.size).minor == 0, "and there"
        assert status.vmlck_pages() == expected, "VmLck"
        assert maps.locked_kb() == status.vmlck_kb(), "is the sum of the lo VMAs"
        for rest in (region.sub(0, PART), region.sub(2 * PART, N - 2 * PART)):
            assert lock_accounting.page_letters(rest) == lock_accounting.LOCKED * rest.pages, (
                "the rest is lo"
            )
            assert page_faults.faults_writing(rest.addr, rest.size).minor == 0, "the rest is there"


@FLAGS
def test_locked_huge_page_moves_with_its_mark():
    """mremap of a locked huge page to an aligned place keeps its frame, its mark and its count."""
    with huge_page(locked=True) as region, huge_pages.thp_aligned_mapping() as place:
        before = marks(region)
        how = syscalls.MREMAP_MAYMOVE | syscalls.MREMAP_FIXED
        syscalls.mremap(region.addr, region.size, region.size, how, place.addr)
        assert marks(place) == before == "MU", "marked as before"
        assert numbers(place) == COUNTING, "contents"
        assert status.vmlck_pages() == N, "VmLck"
        assert page_faults.faults_writing(place.addr, place.size).minor == 0, "there"
        syscalls.munlock(place.addr, place.size)
        assert marks(place) == "-", "unlocked"


@FLAGS
@pytest.mark.needs("collapse")
@pytest.mark.source("madvise(2) MADV_COLLAPSE")
@pytest.mark.parametrize("way", ["mlock", "onfault", "holes"])
@pytest.mark.usefixtures("one_cpu")
def test_collapse_of_locked_pages_gives_a_locked_huge_page(way):
    """MADV_COLLAPSE of locked small pages makes one huge page that is mlocked, counted as before
    and needs no fault."""
    huge_pages.enable_thp()
    with huge_pages.thp_aligned_mapping(advise=False) as region:
        syscalls.madvise(region.addr, region.size, syscalls.MADV_NOHUGEPAGE)
        if way == "holes":
            syscalls.mlock2(region.addr, region.size, syscalls.MLOCK_ONFAULT)
            for page in range(0, N, 8):
                syscalls.store(region.at(page), page.to_bytes(4, "little"))
        else:
            fill(region)
            flags = syscalls.MLOCK_ONFAULT if way == "onfault" else 0
            syscalls.mlock2(region.addr, region.size, flags)
        syscalls.madvise(region.addr, region.size, syscalls.MADV_HUGEPAGE)
        lru_batches.mlock_drain_local()
        syscalls.madvise(region.addr, region.size, syscalls.MADV_COLLAPSE)
        assert huge_mappings.is_huge(region), "one huge page"
        assert marks(region) == "MU", "mlocked and unevictable"
        step = 8 if way == "holes" else 1
        assert numbers(region)[::step] == COUNTING[::step], "contents"
        assert status.vmlck_pages() == N, "VmLck"
        assert page_faults.faults_writing(region.addr, region.size).minor == 0, "no page faults"
        syscalls.munlock(region.addr, region.size)
        assert marks(region) == "-", "unlocked"


@FLAGS
@pytest.mark.needs("collapse")
@pytest.mark.usefixtures("one_cpu")
def test_collapse_does_not_cross_the_edge_of_a_lock():
    """MADV_COLLAPSE of a range that is locked in part is refused, and changes no lock."""
    huge_pages.enable_thp()
    with huge_pages.thp_aligned_mapping(advise=False) as region:
        syscalls.madvise(region.addr, region.size, syscalls.MADV_NOHUGEPAGE)
        fill(region)
        lru_batches.mlock_drain_local()
        syscalls.mlock(region.at(PART), PART * PAGE)
        syscalls.madvise(region.addr, region.size, syscalls.MADV_HUGEPAGE)
        assert (
            syscalls.outcome(syscalls.madvise, region.addr, region.size, syscalls.MADV_COLLAPSE)
            == "EINVAL"
        )
        expected = [PART <= page < 2 * PART for page in range(N)]
        lru_batches.mlock_drain_local()
        assert folios.mlocked(region) == expected, "marks"
        assert status.vmlck_pages() == PART, "VmLck"
        assert numbers(region) == COUNTING, "contents"


@FLAGS
@pytest.mark.needs("shmem-collapse")
@pytest.mark.usefixtures("one_cpu")
def test_collapse_of_locked_shared_memory_keeps_the_lock():
    """MADV_COLLAPSE of locked shared memory keeps lock, count, contents and presence; munlock
    leaves no mark on the huge page."""
    huge_pages.enable_thp()
    fd = huge_pages.huge_memfd()
    with huge_pages.thp_aligned_mapping(fd=fd, advise=False) as region:
        fill(region)
        syscalls.mlock(region.addr, region.size)
        lru_batches.mlock_drain_local()
        syscalls.madvise(region.addr, region.size, syscalls.MADV_COLLAPSE)
        assert folios.sizes(region) == {N: N}, "one huge page"
        assert status.vmlck_pages() == N, "VmLck"
        assert numbers(region) == COUNTING, "contents"
        syscalls.mlock(region.addr, region.size)  # maps it again, if the collapse had not
        seal(region)
        syscalls.munlock(region.addr, region.size)
        assert marks(region) == "-", "unlocked"


@FLAGS
@pytest.mark.needs("dontneed-locked")
def test_drop_of_a_part_of_a_locked_huge_page():
    """MADV_DONTNEED_LOCKED of a part of a locked huge page drops that part alone; touched again,
    its pages are mlocked."""
    with huge_page(locked=True) as region:
        piece = region.sub(PART, 4)
        syscalls.madvise(piece.addr, piece.size, syscalls.MADV_DONTNEED_LOCKED)
        expected = [not PART <= page < PART + 4 for page in range(N)]
        assert pagemap.present(region.addr, N) == expected, "four pages are dropped"
        assert status.vmlck_pages() == N, "VmLck as before"
        piece.touch()
        assert marks(piece) == "MU", "new pages of the locked range are mlocked"
        rest = region.sub(PART + 4, N - PART - 4)
        assert numbers(rest) == COUNTING[PART + 4 :], "contents of the rest"


@FLAGS
@pytest.mark.needs("kpagecount")
def test_copy_of_a_page_of_a_locked_huge_page_is_marked():
    """After fork the parent's write into a locked huge page gives it a mlocked copy of the page;
    the child's copies are not locked."""
    with huge_page(locked=True) as region:
        with Child() as child:
            syscalls.store(region.at(PART), b"mine")
            child.call(syscalls.store, region.at(3), b"hers")
            child.call(lru_batches.mlock_drain_local)
            mine, hers = Region(region.at(PART), PAGE), Region(region.at(3), PAGE)
            assert marks(mine) == "MU", "the parent's copy is mlocked"
            assert marks(hers, child.pid) == "-", "the child's is not"
            assert syscalls.load(region.at(3), 4) != b"hers", "nor the parent's to see"
            assert status.vmlck_pages() == N, "VmLck of the parent"
            assert status.vmlck_pages(child.pid) == 0, "and of the child"
            seal(region)
        syscalls.mlock(region.addr, region.size)
        seal(region)


@FLAGS
@pytest.mark.deviation("huge-page-forgets-lockers")
def test_huge_page_with_two_lockers_keeps_its_mark_until_the_last():
    """A huge page locked by two processes stays mlocked when one of them unlocks."""
    with huge_page() as region:
        syscalls.mprotect(region.addr, region.size, syscalls.PROT_READ)
        lru_batches.mlock_drain_local()
        syscalls.mlock(region.addr, region.size)
        with Child() as child:
            child.call(syscalls.mlock, region.addr, region.size)
            assert marks(region) == "MU", "locked by both"
            child.call(syscalls.munlock, region.addr, region.size)
            child.call(lru_batches.mlock_drain_local)
            assert marks(region) == "MU", "the parent still holds it"
            child.call(syscalls.mlock, region.addr, region.size)
            syscalls.munlock(region.addr, region.size)
            assert marks(region) == "MU", "the child holds it"
            child.call(syscalls.munlock, region.addr, region.size)
            child.call(lru_batches.mlock_drain_local)
            assert marks(region) == "-", "nobody"


@FLAGS
@pytest.mark.usefixtures("one_cpu")
def test_huge_zero_page_is_never_marked():
    """A locked read-only range maps zero pages, huge or not, that are not mlocked; made writable
    it gets pages of its own that are."""
    huge_pages.enable_thp()
    with huge_pages.thp_aligned_mapping(prot=syscalls.PROT_READ) as region:
        syscalls.mlock(region.addr, region.size)
        zeros = page_flags.snapshot(region.addr, N)
        assert zeros.count_with(page_flags.MLOCKED) == 0, "zero pages are nobody's to lock"
        assert status.vmlck_pages() == N, "VmLck counts the range"
        assert maps.rollup_kb() == 0, "no page of it is ours"
        syscalls.mprotect(region.addr, region.size, syscalls.PROT_RW)
        seal(region)
        assert marks(region) == "MU", "the new pages are mlocked"
        assert page_faults.faults_writing(region.addr, region.size).minor == 0, "and writable"
        syscalls.munlock(region.addr, region.size)
        assert marks(region) == "-", "unlocked"


@FLAGS
@pytest.mark.usefixtures("one_cpu")
def test_write_over_a_huge_zero_page_gives_a_locked_page():
    """Memory locked on fault that was read first maps zero pages; the write that follows puts a
    mlocked page in their place, huge or not, and contents that were not written stay zero."""
    huge_pages.enable_thp()
    with huge_pages.thp_aligned_mapping() as region:
        syscalls.mlock2(region.addr, region.size, syscalls.MLOCK_ONFAULT)
        assert syscalls.load(region.addr, 1) == b"\0", "read: a zero page"
        assert page_flags.snapshot(region.addr, N).count_with(page_flags.MLOCKED) == 0, (
            "not mlocked"
        )
        syscalls.store(region.at(PART), b"x")
        page = region.sub(PART, 1)
        assert marks(page) == "MU", "written: mlocked"
        assert status.vmlck_pages() == N, "VmLck"
        assert region.first_bytes().count(b"\0") == N - 1, "the rest is zero"
        region.touch()
        assert marks(region) == "MU", "all written: all mlocked"
        syscalls.munlock(region.addr, region.size)
        assert marks(region) == "-", "unlocked"


def steady(name, moves, pages):
    """The median of a counter's moves; inconclusive where neighbours moved it between rounds."""
    low, middle, high = statistics.quantiles(moves, n=4)
    if high - low > pages // 4:
        inconclusive(f"neighbours moved {name} by {high - low:.0f} pages between rounds")
    return middle


@FLAGS
@pytest.mark.needs(f"lock:{max(N, 512)}", f"budget:{max(N, 512)}")
@pytest.mark.exclusive
@pytest.mark.usefixtures("one_cpu")
def test_huge_page_counts_with_all_its_pages():
    """nr_mlock, nr_unevictable and the events move by a huge page's pages, not by one."""
    huge_pages.enable_thp()
    count = max(1, 512 // N)  # far more pages than neighbours move
    pages = count * N
    with huge_pages.thp_aligned_mapping(count) as region:
        region.touch()
        need_huge(region)
        lru_batches.mlock_drain_local()
        ways = []
        for _ in range(7):
            start = mlock_counters.read()
            syscalls.mlock(region.addr, region.size)
            lru_batches.mlock_drain_local()
            middle = mlock_counters.read()
            syscalls.munlock(region.addr, region.size)
            lru_batches.mlock_drain_local()
            end = mlock_counters.read()
            ways.append({k: (middle[k] - start[k], end[k] - middle[k]) for k in start})
        if not huge_mappings.is_huge(region):
            inconclusive("the huge page was split")
        levels = ("nr_mlock", "nr_unevictable", "meminfo Mlocked", "node Mlocked")
        for name in filter(ways[0].__contains__, levels):
            up, down = (steady(name, [w[name][i] for w in ways], pages) for i in (0, 1))
            assert pages * 3 // 4 <= up <= pages * 5 // 4, f"{name} when locked"
            assert pages * 3 // 4 <= -down <= pages * 5 // 4, f"{name} when unlocked"
        for name, when in (("mlocked", 0), ("munlocked", 1), ("culled", 0), ("rescued", 1)):
            moved = steady(name, [w[name][when] for w in ways], pages)
            assert pages * 3 // 4 <= moved <= pages * 5 // 4, f"unevictable_pgs_{name}"


def lay_out(half):
    """In the child: a huge page locked in part, and a neighbour not locked at all."""
    huge_pages.enable_thp()
    fill(half)
    huge_pages.keep_huge_pages()


@FLAGS
@pytest.mark.needs("cgroup", "swap")
@pytest.mark.source("mm/vmscan.c shrink_folio_list", "mm/rmap.c try_to_unmap_one")
@pytest.mark.claim("W1", "W14", "W17")
@pytest.mark.parametrize("order", ["locked-in-part", "unlocked-in-part", "unmapped-in-part"])
@pytest.mark.usefixtures("one_cpu")
def test_reclaim_splits_a_huge_page_and_takes_only_what_is_not_locked(reclaim, order):
    """Under pressure a huge page that is locked in part loses its unlocked pages and no other: it
    is split, and every locked page is mlocked, unless a swap area takes huge pages whole."""
    with huge_pages.thp_aligned_mapping() as region, reclaim.cgroup() as group, Child() as child:
        group.add(child.pid)
        child.call(lay_out, region)
        if not huge_mappings.is_huge(region, child.pid):
            inconclusive("the kernel gave no huge page")
        loose, held = region.sub(0, PART), region.sub(PART, N - PART)
        if order == "locked-in-part":
            child.call(syscalls.mlock, held.addr, held.size)
        else:
            child.call(syscalls.mlock, region.addr, region.size)
            if order == "unlocked-in-part":
                child.call(syscalls.munlock, loose.addr, loose.size)
            else:
                child.call(syscalls.munmap, loose.addr, loose.size)
        child.call(lru_batches.mlock_drain_local)
        if order == "unmapped-in-part":
            for _ in range(2):
                group.reclaim()
        else:
            drivers.reclaim_until_evicted(group.reclaim, child.pid, loose)
        child.call(lru_batches.mlock_drain_local)
        assert pagemap.present_count(held.addr, held.pages, child.pid) == held.pages, "present"
        assert child.call(status.vmlck_pages) == held.pages, "VmLck"
        assert child.call(numbers, held) == COUNTING[PART:], "contents"
        found = folios.of(held, child.pid)
        if any(crossing := folios.crossing(found)):
            # Since 6.10 (5ed890ce5147) reclaim does not split it beforehand, but asks for slots
            # for all of it, which a block device gives and a file does not. It is unmapped page by
            # page to the first that is locked, and is left so: in memory, in the swap cache and
            # whole, its unlocked pages with it, never written; and without a mark, which
            # try_to_unmap_one() restores to small folios only. No later pass splits it.
            assert order != "unmapped-in-part", "a folio not all mapped is split beforehand"
            assert block_devices.takes_large_folios(), "no area takes huge pages: it is split"
            assert all(folio.swap_cached for folio in found), "not split: it has its slots"
            assert child.call(numbers, loose) == COUNTING[:PART], "contents of the unlocked pages"
        assert [folio.mlocked for folio in found] == [not c for c in crossing], "mlocked if split"
        child.call(syscalls.munlock, held.addr, held.size)
        assert drivers.reclaim_evicts(group.reclaim, child.pid, held), "unlocked, the rest goes too"


@FLAGS
@pytest.mark.needs("cgroup", "swap")
@pytest.mark.source("mm/vmscan.c shrink_folio_list", "mm/rmap.c try_to_unmap_one")
@pytest.mark.claim("W1", "W14")
@pytest.mark.usefixtures("one_cpu")
def test_reclaim_of_a_huge_page_whose_first_page_is_locked(reclaim):
    """Under pressure a huge page of which the first page is locked is split and loses the others,
    or, where a swap area takes huge pages whole, it stays whole."""
    with huge_pages.thp_aligned_mapping(2) as region, reclaim.cgroup() as group, Child() as child:
        group.add(child.pid)
        child.call(lay_out, region)
        if not huge_mappings.is_huge(region, child.pid):
            inconclusive("the kernel gave no huge page")
        subject, control = region.sub(0, N), region.sub(N, N)
        held, loose = subject.sub(0, 1), subject.sub(1, N - 1)
        child.call(syscalls.mlock, held.addr, held.size)
        child.call(lru_batches.mlock_drain_local)
        drivers.reclaim_until_evicted(group.reclaim, child.pid, control)
        drivers.until_met(group.reclaim, child.pid, held)
        child.call(lru_batches.mlock_drain_local)
        [first] = folios.of(held, child.pid)
        assert first.head, "the locked page is present"
        if first.size > 1:  # unmapped up to the locked page: see above
            assert block_devices.takes_large_folios(), "no area takes huge pages: it is split"
            assert first.size == N, "it is whole"
            assert first.swap_cached, "not split: it has its slots"
            assert not first.mlocked, "a folio locked in part is not mlocked"
            assert pagemap.present_count(loose.addr, loose.pages, child.pid) == N - 1, "all stay"
            child.call(syscalls.munlock, held.addr, held.size)
        else:
            assert first.mlocked, "split off: mlocked"
        assert drivers.reclaim_evicts(group.reclaim, child.pid, loose), (
            "without the lock in the way they go"
        )


@pytest.mark.needs("cgroup", "swap")
@pytest.mark.claim("W1", "W13")
@pytest.mark.parametrize("last", ["parent", "child"])
@pytest.mark.usefixtures("one_cpu")
@pytest.mark.detects("reclaim-takes-locked")
def test_huge_page_with_two_lockers_stays_until_the_last_lets_go(reclaim, last):
    """Under pressure a huge page that two processes have locked stays in memory when one of them
    has unlocked it, and goes when both have."""
    with huge_pages.thp_aligned_mapping(2) as region, reclaim.cgroup() as group, Child() as child:
        group.add(child.pid)
        subject, control = region.sub(0, N), region.sub(N, N)
        of_subject = (subject.addr, subject.size)
        child.call(lay_out, subject)
        if not huge_mappings.is_huge(subject, child.pid):
            inconclusive("the kernel gave no huge page")
        child.call(syscalls.mprotect, *of_subject, syscalls.PROT_READ)  # or mlock would copy it
        child.call(syscalls.mlock, *of_subject)
        other = child.call(control_pairs.fork_grandchild)
        child.call(control_pairs.call_in_grandchild, syscalls.mlock, *of_subject)
        child.call(lay_out, control)
        calls = [
            (syscalls.munlock, *of_subject),
            (control_pairs.call_in_grandchild, syscalls.munlock, *of_subject),
        ]
        if last == "parent":
            calls.reverse()
        child.call(*calls[0])
        child.call(lru_batches.mlock_drain_local)
        drivers.reclaim_until_evicted(group.reclaim, child.pid, control)
        # Only it: before 5.18 reclaim may take the page from who has unlocked, and then meet it.
        locker = child.pid if last == "parent" else other
        assert pagemap.present_count(subject.addr, N, locker) == N, "one still locks: all stay"
        assert child.call(numbers, subject) == COUNTING, "contents"
        child.call(*calls[1])
        child.call(lru_batches.mlock_drain_local)
        assert drivers.reclaim_evicts(group.reclaim, child.pid, subject), "then it goes"
