"""What is locked already is not counted a second time against RLIMIT_MEMLOCK."""

import pytest

from helpers import libc
from helpers.libc import PAGE
from helpers.memory import mapping
from helpers.observe import maps, pagemap, status
from helpers.privilege import limited, memlock

pytestmark = [pytest.mark.needs("limit:8"), pytest.mark.source("mm/mlock.c do_mlock")]


def onfault(addr, size):
    libc.mlock2(addr, size, libc.MLOCK_ONFAULT)


CALLS = {"mlock": libc.mlock, "onfault": onfault}


@pytest.mark.parametrize("again", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("first", CALLS.values(), ids=CALLS)
@pytest.mark.source("LTP mlock203; b155b4fde5bd")
def test_relock_at_the_limit_is_not_counted_twice(first, again):
    """At the limit the same range can be locked again, at once or on fault, any number of
    times, as a whole and in part.
    """
    with mapping(pages=6) as region, limited(4 * PAGE):
        first(region.addr, 4 * PAGE)
        whole = [libc.outcome(again, region.addr, 4 * PAGE) for _ in range(3)]
        part = libc.outcome(again, region.at(1) + 1, PAGE)
        counted = status.vmlck_pages()
        one_more = libc.outcome(again, region.at(4), 1)
        assert whole == ["ok", "ok", "ok"], "the whole range again, three times"
        assert part == "ok", "two pages of it again"
        assert counted == 4, "four pages are counted"
        assert one_more == "ENOMEM", "one page beyond is refused"


@pytest.mark.parametrize("again", CALLS.values(), ids=CALLS)
def test_relock_of_map_locked_at_the_limit_is_not_counted_twice(again):
    """Memory locked by mmap(MAP_LOCKED) can be locked again at the limit."""
    with limited(4 * PAGE), mapping(pages=4, flags=libc.MAP_LOCKED) as region:
        seen = libc.outcome(again, region.addr, region.size)
        assert seen == "ok", "the whole range again"
        assert status.vmlck_pages() == 4, "four pages are counted"


# Pages locked before as (first, count), the range locked now, and the pages of the union.
OVERLAPS = {
    "same": ([(0, 4)], (0, 4), 4),
    "inside": ([(0, 4)], (1, 2), 4),
    "first-page": ([(0, 4)], (0, 1), 4),
    "last-page": ([(0, 4)], (3, 1), 4),
    "over-the-end": ([(0, 4)], (3, 3), 6),
    "over-the-start": ([(3, 4)], (1, 3), 6),
    "around": ([(2, 2)], (0, 6), 6),
    "behind": ([(0, 3)], (3, 3), 6),
    "ahead": ([(3, 3)], (0, 3), 6),
    "tail-and-gap": ([(0, 3)], (2, 4), 6),
    "three-islands": ([(1, 1), (3, 1), (5, 1)], (0, 7), 7),
    "between-islands": ([(0, 2), (4, 2)], (1, 4), 6),
    "island-and-half": ([(0, 1), (2, 1), (4, 3)], (1, 4), 7),
    "gap-only": ([(0, 2), (5, 2)], (2, 3), 7),
}


@pytest.mark.parametrize(("before", "now", "union"), OVERLAPS.values(), ids=OVERLAPS)
def test_overlap_counts_new_pages_only(before, now, union):
    """A range that overlaps locked memory is allowed exactly if the union of both fits the
    limit; else it is refused and changes nothing.
    """
    first, count = now
    with mapping(pages=8) as region, limited(8 * PAGE):
        for start, length in before:
            libc.mlock(region.at(start), length * PAGE)
        shape = maps.layout(region.addr, region.end, PAGE)
        present = pagemap.present(region.addr, 8)
        locked = status.vmlck_pages()
        with memlock((union - 1) * PAGE):
            short = [libc.outcome(c, region.at(first), count * PAGE) for c in CALLS.values()]
        assert short == ["ENOMEM", "ENOMEM"], f"a limit of {union - 1} pages for {union}"
        assert maps.layout(region.addr, region.end, PAGE) == shape, "refused: VMAs as before"
        assert pagemap.present(region.addr, 8) == present, "refused: present pages as before"
        assert status.vmlck_pages() == locked, "refused: VmLck as before"
        with memlock(union * PAGE):
            enough = [libc.outcome(c, region.at(first), count * PAGE) for c in CALLS.values()]
        assert enough == ["ok", "ok"], f"a limit of {union} pages for {union}"
        assert status.vmlck_pages() == union, "the union is counted"


def test_overlap_with_several_mappings_counts_new_pages_only():
    """The locked pages of each of several adjoining VMAs are credited, whatever their kind."""
    with mapping(pages=7) as region, limited(8 * PAGE):
        libc.mprotect(region.at(2), PAGE, libc.PROT_READ)
        libc.mmap(region.at(3), PAGE, flags=libc.MAP_SHARED | libc.MAP_ANONYMOUS | libc.MAP_FIXED)
        libc.mlock(region.at(1), 3 * PAGE)
        onfault(region.at(5), PAGE)
        assert len(maps.vmas(low=region.addr, high=region.end)) >= 6, "at least six VMAs"
        with memlock(6 * PAGE):
            short = [libc.outcome(c, region.addr, region.size) for c in CALLS.values()]
        with memlock(7 * PAGE):
            enough = [libc.outcome(c, region.addr, region.size) for c in CALLS.values()]
        assert short == ["ENOMEM", "ENOMEM"], "a limit of six pages for seven"
        assert enough == ["ok", "ok"], "a limit of seven pages for seven"
        assert status.vmlck_pages() == 7, "seven pages are counted"


@pytest.mark.parametrize("shared", [libc.MAP_PRIVATE, libc.MAP_SHARED], ids=["private", "shared"])
def test_overlap_is_not_credited_to_map_fixed(shared):
    """mmap(MAP_FIXED|MAP_LOCKED) over a locked page at the limit gives EAGAIN, though it would
    replace what it counts; the page stays as it was.
    """
    how = shared | libc.MAP_ANONYMOUS | libc.MAP_FIXED | libc.MAP_LOCKED
    with mapping(pages=4) as region, limited(4 * PAGE):
        region.write(0x77)
        libc.mlock(region.addr, region.size)
        over = libc.outcome(libc.mmap, region.at(1), PAGE, libc.PROT_RW, how)
        assert over == "EAGAIN", "one page over a locked one, at the limit"
        assert maps.layout(region.addr, region.end, PAGE) == [(0, 4, "lo")], "VMAs as before"
        assert status.vmlck_pages() == 4, "VmLck as before"
        assert region.peek() == b"\x77" * 4, "contents as before"
        with memlock(5 * PAGE):
            enough = libc.outcome(libc.mmap, region.at(1), PAGE, libc.PROT_RW, how)
        assert enough == "ok", "with room for one page more it is replaced"
        assert status.vmlck_pages() == 4, "and four pages are counted"
        assert region.peek() == b"\x77\x00\x77\x77", "the page is new"


def test_alias_of_locked_memory_is_counted_again():
    """The limit counts mappings: the same shared pages locked through two of them count twice."""
    with mapping("memfd-shared", 3) as one, limited(5 * PAGE):
        with mapping("memfd-shared", 3, fd=one.fd) as two:
            libc.mlock(one.addr, one.size)
            over = libc.outcome(libc.mlock, two.addr, two.size)
            equal = libc.outcome(libc.mlock, two.addr, 2 * PAGE)
            assert over == "ENOMEM", "3 + 3 pages under a limit of five"
            assert equal == "ok", "3 + 2 pages under a limit of five"
            assert status.vmlck_pages() == 5, "five pages are counted"
