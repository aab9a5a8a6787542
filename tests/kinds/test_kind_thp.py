"""Transparent huge pages: one folio, one mark, many pages."""

import statistics
from contextlib import contextmanager

import pytest

from helpers import kernel, libc, lru, thp
from helpers.libc import PAGE
from helpers.memory import Region
from helpers.observe import account, folios, maps, node, pagemap, rusage, status
from helpers.pressure import drive, swap
from helpers.process import Child
from helpers.report.verdicts import inconclusive

N = thp.PAGES
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
    lru.drain()
    found = []
    for folio in folios.of(region, pid):
        assert folio.tails_follow, "tail pages show the mark of their head"
        if not found or found[-1] != folio.marks:
            found.append(folio.marks)
    return " ".join(found)


def fill(region):
    for page in range(region.pages):
        libc.write(region.at(page), page.to_bytes(4, "little"))


def numbers(region):
    return [int.from_bytes(libc.read(region.at(p), 4), "little") for p in range(region.pages)]


COUNTING = list(range(N))


def need_huge(region):
    if not thp.is_huge(region):
        inconclusive("the kernel gave no huge page")


@contextmanager
def huge_page(locked=False):
    """A huge page that holds the numbers of its pages, in a process that stays on one CPU."""
    lru.pin()
    thp.allow()
    with thp.aligned() as region:
        fill(region)
        if locked:
            libc.mlock(region.addr, region.size)
        need_huge(region)
        yield region


def seal(region):
    """What must not change: presence, contents, VmLck, faults on writing."""
    assert pagemap.present_count(region.addr, region.pages) == region.pages, "all present"
    assert maps.locked_kb() == status.vmlck_kb(), "VmLck is the sum of the lo VMAs"


@FLAGS
@pytest.mark.parametrize("way", ["present", "empty", "onfault"])
def test_huge_page_locked_whole_is_marked_and_unmarked(way):
    """A huge page is mlocked and unevictable as a whole from its lock, or its fault into a locked
    range, to its munlock; one touch locks all of it."""
    lru.pin()
    thp.allow()
    with thp.aligned() as region:
        if way == "present":
            fill(region)
            assert marks(region) == "-", "not locked"
        if way == "onfault":
            libc.mlock2(region.addr, region.size, libc.MLOCK_ONFAULT)
            assert pagemap.present_count(region.addr, N) == 0, "nothing is populated"
            libc.write(region.at(PART), b"x")
        else:
            libc.mlock(region.addr, region.size)
        need_huge(region)
        assert marks(region) == "MU", "mlocked and unevictable"
        assert status.vmlck_pages() == N, "VmLck"
        assert maps.rollup_kb() == region.kb, "Locked in smaps_rollup"
        libc.munlock(region.addr, region.size)
        assert marks(region) == "-", "neither after munlock"
        assert thp.is_huge(region), "still one huge page"
        libc.mlock(region.addr, region.size)
        assert marks(region) == "MU", "locked again"
        seal(region)


@FLAGS
def test_lock_of_one_huge_page_leaves_its_neighbour():
    """Locking and unlocking one of two neighbouring huge pages marks it alone, and splits none."""
    lru.pin()
    thp.allow()
    with thp.aligned(2) as region:
        region.touch()
        need_huge(region)
        first, second = region.sub(0, N), region.sub(N, N)
        libc.mlock(second.addr, second.size)
        assert (marks(first), marks(second)) == ("-", "MU"), "the second is locked"
        libc.mlock(first.addr, first.size)
        libc.munlock(second.addr, second.size)
        assert (marks(first), marks(second)) == ("MU", "-"), "the first is locked"
        assert thp.is_huge(region), "both are huge pages still"
        assert status.vmlck_pages() == N, "one counts"


@pytest.mark.parametrize(("first", "count"), PIECES, ids=ENDS)
def test_lock_of_a_part_before_the_touch_populates_that_part_only(first, count):
    """mlock of a part of an empty huge range populates exactly that part, and touching the rest
    page by page leaves its account alone."""
    thp.allow()
    with thp.aligned() as region:
        libc.mlock(region.at(first), count * PAGE)
        expected = [first <= page < first + count for page in range(N)]
        assert pagemap.present(region.addr, N) == expected, "exactly what is locked is present"
        region.touch()
        assert not thp.is_huge(region), "a huge page cannot cross the edge of a lock"
        assert status.vmlck_pages() == count, "VmLck"
        seal(region)


@FLAGS
@pytest.mark.parametrize(("first", "count"), PIECES, ids=ENDS)
def test_lock_of_a_part_of_a_huge_page(first, count):
    """A lock of a part of a huge page counts that part and leaves the folio whole and unmarked:
    its other pages stay reclaimable."""
    with huge_page() as region:
        frames = pagemap.pfns(region.addr, N)
        libc.mlock(region.at(first), count * PAGE)
        expected = [first <= page < first + count for page in range(N)]
        letters = account.pages(region)
        assert [c == account.LOCKED for c in letters] == expected, "that part is lo"
        assert status.vmlck_pages() == count, "and counted"
        assert numbers(region) == COUNTING, "contents"
        assert rusage.writing(region.at(first), count * PAGE).minor == 0, "its pages are there"
        seal(region)
        if pagemap.pfns(region.addr, N) == frames:  # compaction would have split it
            assert marks(region) == "-", "a folio locked in part is not mlocked"
        libc.munlock(region.at(first), count * PAGE)
        assert marks(region) == "-", "nor after munlock"
        assert status.vmlck_pages() == 0, "nothing is counted"


@FLAGS
@pytest.mark.parametrize(("first", "count"), PIECES, ids=ENDS)
def test_unlock_of_a_part_of_a_locked_huge_page(first, count):
    """munlock of a part of a locked huge page takes the mark off the folio; the rest stays locked,
    counted and present."""
    with huge_page(locked=True) as region:
        frames = pagemap.pfns(region.addr, N)
        libc.munlock(region.at(first), count * PAGE)
        letters = account.pages(region)
        expected = [not first <= page < first + count for page in range(N)]
        assert [c == account.LOCKED for c in letters] == expected, "the rest is lo"
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
        libc.munlock(region.at(PART), PAGE)
        libc.munlock(region.addr, region.size)
        assert marks(region) == "-", "unlocked"
        libc.mlock(region.addr, region.size)
        assert status.vmlck_pages() == N, "VmLck"
        seal(region)
        if kernel.version() >= (6, 7, 0) and folios.sizes(region) == {N: N}:
            assert marks(region) == "MU", "the whole folio lies in the lock: marked"
        libc.munlock(region.addr, region.size)
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
            libc.mlock(region.addr, region.size)
            libc.munlock(region.at(first), count * PAGE)
        else:
            libc.mlock(region.addr, first * PAGE)
            libc.mlock(region.at(first + count), (N - first - count) * PAGE)
        lru.drain()  # a page in a batch is referred to, and cannot be split
        libc.madvise(region.at(first), count * PAGE, libc.MADV_COLD)
        lru.drain()
        if folios.sizes(region) != {1: N}:
            inconclusive(f"the folio was not split: {folios.sizes(region)}")
        expected = [not first <= page < first + count for page in range(N)]
        assert folios.mlocked(region) == expected, "the locked pages are mlocked"
        assert numbers(region) == COUNTING, "contents"
        assert status.vmlck_pages() == N - count, "VmLck"
        seal(region)
        libc.munlock(region.addr, region.size)
        assert marks(region) == "-", "unlocked: none is marked"


@FLAGS
@pytest.mark.needs("split-huge-pages")
@pytest.mark.source("Documentation/admin-guide/mm/transhuge.rst")
@pytest.mark.exclusive
def test_split_of_a_locked_huge_page_marks_every_page():
    """A huge page that is locked whole and split by the kernel leaves every page mlocked."""
    with huge_page(locked=True) as region:
        lru.drain()
        thp.split(region)
        lru.drain()
        if folios.sizes(region) != {1: N}:
            inconclusive(f"the folio was not split: {folios.sizes(region)}")
        assert folios.mlocked(region) == [True] * N, "every page is mlocked"
        assert numbers(region) == COUNTING, "contents"
        assert status.vmlck_pages() == N, "VmLck"
        libc.munlock(region.addr, region.size)
        assert marks(region) == "-", "unlocked: none is marked"


@pytest.mark.parametrize("way", ["munmap", "mprotect", "madvise", "mremap"])
def test_locked_huge_page_mapped_in_parts_stays_locked(way):
    """munmap, mprotect, MADV_DONTFORK or mremap of a part of a locked huge page leaves every other
    page present, locked and writable without a fault."""
    with huge_page(locked=True) as region:
        piece = region.sub(PART, PART)
        expected = N
        if way == "munmap":
            libc.munmap(piece.addr, piece.size)
            expected = N - PART
        elif way == "mprotect":
            libc.mprotect(piece.addr, piece.size, libc.PROT_READ)
        elif way == "madvise":
            libc.madvise(piece.addr, piece.size, libc.MADV_DONTFORK)
        else:
            target = libc.mmap(0, piece.size, libc.PROT_NONE)
            how = libc.MREMAP_MAYMOVE | libc.MREMAP_FIXED
            libc.mremap(piece.addr, piece.size, piece.size, how, target)
            moved = Region(target, piece.size)
            assert account.pages(moved) == account.LOCKED * PART, "the moved part is lo"
            assert rusage.writing(target, piece.size).minor == 0, "and there"
        assert status.vmlck_pages() == expected, "VmLck"
        assert maps.locked_kb() == status.vmlck_kb(), "is the sum of the lo VMAs"
        for rest in (region.sub(0, PART), region.sub(2 * PART, N - 2 * PART)):
            assert account.pages(rest) == account.LOCKED * rest.pages, "the rest is lo"
            assert rusage.writing(rest.addr, rest.size).minor == 0, "the rest is there"


@FLAGS
def test_locked_huge_page_moves_with_its_mark():
    """mremap of a locked huge page to an aligned place keeps its frame, its mark and its count."""
    with huge_page(locked=True) as region, thp.aligned() as place:
        before = marks(region)
        how = libc.MREMAP_MAYMOVE | libc.MREMAP_FIXED
        libc.mremap(region.addr, region.size, region.size, how, place.addr)
        assert marks(place) == before == "MU", "marked as before"
        assert numbers(place) == COUNTING, "contents"
        assert status.vmlck_pages() == N, "VmLck"
        assert rusage.writing(place.addr, place.size).minor == 0, "there"
        libc.munlock(place.addr, place.size)
        assert marks(place) == "-", "unlocked"


@FLAGS
@pytest.mark.needs("collapse")
@pytest.mark.source("madvise(2) MADV_COLLAPSE")
@pytest.mark.parametrize("way", ["mlock", "onfault", "holes"])
def test_collapse_of_locked_pages_gives_a_locked_huge_page(way):
    """MADV_COLLAPSE of locked small pages makes one huge page that is mlocked, counted as before
    and needs no fault."""
    lru.pin()
    thp.allow()
    with thp.aligned(advise=False) as region:
        libc.madvise(region.addr, region.size, libc.MADV_NOHUGEPAGE)
        if way == "holes":
            libc.mlock2(region.addr, region.size, libc.MLOCK_ONFAULT)
            for page in range(0, N, 8):
                libc.write(region.at(page), page.to_bytes(4, "little"))
        else:
            fill(region)
            flags = libc.MLOCK_ONFAULT if way == "onfault" else 0
            libc.mlock2(region.addr, region.size, flags)
        libc.madvise(region.addr, region.size, libc.MADV_HUGEPAGE)
        lru.drain()
        libc.madvise(region.addr, region.size, libc.MADV_COLLAPSE)
        assert thp.is_huge(region), "one huge page"
        assert marks(region) == "MU", "mlocked and unevictable"
        step = 8 if way == "holes" else 1
        assert numbers(region)[::step] == COUNTING[::step], "contents"
        assert status.vmlck_pages() == N, "VmLck"
        assert rusage.writing(region.addr, region.size).minor == 0, "no page faults"
        libc.munlock(region.addr, region.size)
        assert marks(region) == "-", "unlocked"


@FLAGS
@pytest.mark.needs("collapse")
def test_collapse_does_not_cross_the_edge_of_a_lock():
    """MADV_COLLAPSE of a range that is locked in part is refused, and changes no lock."""
    lru.pin()
    thp.allow()
    with thp.aligned(advise=False) as region:
        libc.madvise(region.addr, region.size, libc.MADV_NOHUGEPAGE)
        fill(region)
        lru.drain()
        libc.mlock(region.at(PART), PART * PAGE)
        libc.madvise(region.addr, region.size, libc.MADV_HUGEPAGE)
        assert libc.outcome(libc.madvise, region.addr, region.size, libc.MADV_COLLAPSE) == "EINVAL"
        expected = [PART <= page < 2 * PART for page in range(N)]
        lru.drain()
        assert folios.mlocked(region) == expected, "marks"
        assert status.vmlck_pages() == PART, "VmLck"
        assert numbers(region) == COUNTING, "contents"


@FLAGS
@pytest.mark.needs("shmem-collapse")
def test_collapse_of_locked_shared_memory_keeps_the_lock():
    """MADV_COLLAPSE of locked shared memory keeps lock, count, contents and presence; munlock
    leaves no mark on the huge page."""
    lru.pin()
    thp.allow()
    fd = thp.memfd()
    with thp.aligned(fd=fd, advise=False) as region:
        fill(region)
        libc.mlock(region.addr, region.size)
        lru.drain()
        libc.madvise(region.addr, region.size, libc.MADV_COLLAPSE)
        assert folios.sizes(region) == {N: N}, "one huge page"
        assert status.vmlck_pages() == N, "VmLck"
        assert numbers(region) == COUNTING, "contents"
        libc.mlock(region.addr, region.size)  # maps it again, if the collapse had not
        seal(region)
        libc.munlock(region.addr, region.size)
        assert marks(region) == "-", "unlocked"


@FLAGS
@pytest.mark.needs("dontneed-locked")
def test_drop_of_a_part_of_a_locked_huge_page():
    """MADV_DONTNEED_LOCKED of a part of a locked huge page drops that part alone; touched again,
    its pages are mlocked."""
    with huge_page(locked=True) as region:
        piece = region.sub(PART, 4)
        libc.madvise(piece.addr, piece.size, libc.MADV_DONTNEED_LOCKED)
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
            libc.write(region.at(PART), b"mine")
            child.call(libc.write, region.at(3), b"hers")
            child.call(lru.drain)
            mine, hers = Region(region.at(PART), PAGE), Region(region.at(3), PAGE)
            assert marks(mine) == "MU", "the parent's copy is mlocked"
            assert marks(hers, child.pid) == "-", "the child's is not"
            assert libc.read(region.at(3), 4) != b"hers", "nor the parent's to see"
            assert status.vmlck_pages() == N, "VmLck of the parent"
            assert status.vmlck_pages(child.pid) == 0, "and of the child"
            seal(region)
        libc.mlock(region.addr, region.size)
        seal(region)


@FLAGS
def test_huge_page_with_two_lockers_keeps_its_mark_until_the_last():
    """A huge page locked by two processes stays mlocked when one of them unlocks."""
    if kernel.version() < (5, 18, 0):
        pytest.skip(
            "needs a kernel from 5.18 on: before cea86fe246b6 a huge page mapped twice has no mark"
        )
    with huge_page() as region:
        libc.mprotect(region.addr, region.size, libc.PROT_READ)
        lru.drain()
        libc.mlock(region.addr, region.size)
        with Child() as child:
            child.call(libc.mlock, region.addr, region.size)
            assert marks(region) == "MU", "locked by both"
            child.call(libc.munlock, region.addr, region.size)
            child.call(lru.drain)
            assert marks(region) == "MU", "the parent still holds it"
            child.call(libc.mlock, region.addr, region.size)
            libc.munlock(region.addr, region.size)
            assert marks(region) == "MU", "the child holds it"
            child.call(libc.munlock, region.addr, region.size)
            child.call(lru.drain)
            assert marks(region) == "-", "nobody"


@FLAGS
def test_huge_zero_page_is_never_marked():
    """A locked read-only range maps zero pages, huge or not, that are not mlocked; made writable
    it gets pages of its own that are."""
    lru.pin()
    thp.allow()
    with thp.aligned(prot=libc.PROT_READ) as region:
        libc.mlock(region.addr, region.size)
        zeros = pagemap.snapshot(region.addr, N)
        assert zeros.having(pagemap.MLOCKED) == 0, "zero pages are nobody's to lock"
        assert status.vmlck_pages() == N, "VmLck counts the range"
        assert maps.rollup_kb() == 0, "no page of it is ours"
        libc.mprotect(region.addr, region.size, libc.PROT_RW)
        seal(region)
        assert marks(region) == "MU", "the new pages are mlocked"
        assert rusage.writing(region.addr, region.size).minor == 0, "and writable"
        libc.munlock(region.addr, region.size)
        assert marks(region) == "-", "unlocked"


@FLAGS
def test_write_over_a_huge_zero_page_gives_a_locked_page():
    """Memory locked on fault that was read first maps zero pages; the write that follows puts a
    mlocked page in their place, huge or not, and contents that were not written stay zero."""
    lru.pin()
    thp.allow()
    with thp.aligned() as region:
        libc.mlock2(region.addr, region.size, libc.MLOCK_ONFAULT)
        assert libc.read(region.addr, 1) == b"\0", "read: a zero page"
        assert pagemap.snapshot(region.addr, N).having(pagemap.MLOCKED) == 0, "not mlocked"
        libc.write(region.at(PART), b"x")
        page = region.sub(PART, 1)
        assert marks(page) == "MU", "written: mlocked"
        assert status.vmlck_pages() == N, "VmLck"
        assert region.peek().count(b"\0") == N - 1, "the rest is zero"
        region.touch()
        assert marks(region) == "MU", "all written: all mlocked"
        libc.munlock(region.addr, region.size)
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
def test_huge_page_counts_with_all_its_pages():
    """nr_mlock, nr_unevictable and the events move by a huge page's pages, not by one."""
    lru.pin()
    thp.allow()
    count = max(1, 512 // N)  # far more pages than neighbours move
    pages = count * N
    with thp.aligned(count) as region:
        region.touch()
        need_huge(region)
        lru.drain()
        ways = []
        for _ in range(7):
            start = node.counters()
            libc.mlock(region.addr, region.size)
            lru.drain()
            middle = node.counters()
            libc.munlock(region.addr, region.size)
            lru.drain()
            end = node.counters()
            ways.append({k: (middle[k] - start[k], end[k] - middle[k]) for k in start})
        if not thp.is_huge(region):
            inconclusive("the huge page was split")
        for name in ("nr_mlock", "nr_unevictable", "meminfo Mlocked", "node Mlocked"):
            up, down = (steady(name, [w[name][i] for w in ways], pages) for i in (0, 1))
            assert pages * 3 // 4 <= up <= pages * 5 // 4, f"{name} when locked"
            assert pages * 3 // 4 <= -down <= pages * 5 // 4, f"{name} when unlocked"
        for name, when in (("mlocked", 0), ("munlocked", 1), ("culled", 0), ("rescued", 1)):
            moved = steady(name, [w[name][when] for w in ways], pages)
            assert pages * 3 // 4 <= moved <= pages * 5 // 4, f"unevictable_pgs_{name}"


def lay_out(half):
    """In the child: a huge page locked in part, and a neighbour not locked at all."""
    thp.allow()
    fill(half)


@FLAGS
@pytest.mark.needs("cgroup", "swap")
@pytest.mark.source("mm/vmscan.c shrink_folio_list", "mm/rmap.c try_to_unmap_one")
@pytest.mark.claim("W1", "W14", "W17")
@pytest.mark.parametrize("order", ["locked-in-part", "unlocked-in-part", "unmapped-in-part"])
def test_reclaim_splits_a_huge_page_and_takes_only_what_is_not_locked(pressure, order):
    """Under pressure a huge page that is locked in part loses its unlocked pages and no other: it
    is split, and every locked page is mlocked, unless a swap area takes huge pages whole."""
    lru.pin()
    with thp.aligned() as region, pressure.cgroup() as group, Child() as child:
        group.add(child.pid)
        child.call(lay_out, region)
        if not thp.is_huge(region, child.pid):
            inconclusive("the kernel gave no huge page")
        loose, held = region.sub(0, PART), region.sub(PART, N - PART)
        if order == "locked-in-part":
            child.call(libc.mlock, held.addr, held.size)
        else:
            child.call(libc.mlock, region.addr, region.size)
            if order == "unlocked-in-part":
                child.call(libc.munlock, loose.addr, loose.size)
            else:
                child.call(libc.munmap, loose.addr, loose.size)
        child.call(lru.drain)
        if order == "unmapped-in-part":
            for _ in range(2):
                group.reclaim()
        else:
            drive.until_gone(group.reclaim, child.pid, loose)
        child.call(lru.drain)
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
            assert swap.takes_large_folios(), "no area takes huge pages: it is split"
            assert all(folio.swap_cached for folio in found), "not split: it has its slots"
            assert child.call(numbers, loose) == COUNTING[:PART], "contents of the unlocked pages"
        assert [folio.mlocked for folio in found] == [not c for c in crossing], "mlocked if split"
        child.call(libc.munlock, held.addr, held.size)
        assert drive.taken(group.reclaim, child.pid, held), "unlocked, the rest goes too"


@FLAGS
@pytest.mark.needs("cgroup", "swap")
@pytest.mark.source("mm/vmscan.c shrink_folio_list", "mm/rmap.c try_to_unmap_one")
@pytest.mark.claim("W1", "W14")
def test_reclaim_of_a_huge_page_whose_first_page_is_locked(pressure):
    """Under pressure a huge page of which the first page is locked is split and loses the others,
    or, where a swap area takes huge pages whole, it stays whole."""
    lru.pin()
    with thp.aligned(2) as region, pressure.cgroup() as group, Child() as child:
        group.add(child.pid)
        child.call(lay_out, region)
        if not thp.is_huge(region, child.pid):
            inconclusive("the kernel gave no huge page")
        subject, control = region.sub(0, N), region.sub(N, N)
        held, loose = subject.sub(0, 1), subject.sub(1, N - 1)
        child.call(libc.mlock, held.addr, held.size)
        child.call(lru.drain)
        drive.until_gone(group.reclaim, child.pid, control)
        drive.until_met(group.reclaim, child.pid, held)
        child.call(lru.drain)
        [first] = folios.of(held, child.pid)
        assert first.head, "the locked page is present"
        if first.size > 1:  # unmapped up to the locked page: see above
            assert swap.takes_large_folios(), "no area takes huge pages: it is split"
            assert first.size == N, "it is whole"
            assert first.swap_cached, "not split: it has its slots"
            assert not first.mlocked, "a folio locked in part is not mlocked"
            assert pagemap.present_count(loose.addr, loose.pages, child.pid) == N - 1, "all stay"
            child.call(libc.munlock, held.addr, held.size)
        else:
            assert first.mlocked, "split off: mlocked"
        assert drive.taken(group.reclaim, child.pid, loose), "without the lock in the way they go"
