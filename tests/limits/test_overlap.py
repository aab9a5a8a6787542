# SPDX-License-Identifier: MIT
"""What is locked already is not counted a second time against RLIMIT_MEMLOCK."""

import pytest

from helpers import syscalls
from helpers.memory import mapping
from helpers.observe import maps, pagemap, status
from helpers.processes.rlimits import soft_memlock_limit, unprivileged_with_limit
from helpers.syscalls import PAGE

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("limit:8"),
    pytest.mark.source("mm/mlock.c do_mlock"),
]


def onfault(addr, size):
    syscalls.mlock2(addr, size, syscalls.MLOCK_ONFAULT)


CALLS = {"mlock": syscalls.mlock, "onfault": onfault}


@pytest.mark.parametrize("again", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("first", CALLS.values(), ids=CALLS)
@pytest.mark.source("LTP mlock203; b155b4fde5bd")
@pytest.mark.detects("limit-relock-counted")
def test_relock_at_the_limit_is_not_counted_twice(first, again):
    """At the limit the same range can be locked again, at once or on fault, any number of
    times, as a whole and in part.
    """
    with mapping(pages=6) as region, unprivileged_with_limit(4 * PAGE):
        first(region.addr, 4 * PAGE)
        whole = [syscalls.outcome(again, region.addr, 4 * PAGE) for _ in range(3)]
        part = syscalls.outcome(again, region.at(1) + 1, PAGE)
        counted = status.vmlck_pages()
        one_more = syscalls.outcome(again, region.at(4), 1)
        assert whole == ["ok", "ok", "ok"], "the whole range again, three times"
        assert part == "ok", "two pages of it again"
        assert counted == 4, "four pages are counted"
        assert one_more == "ENOMEM", "one page beyond is refused"


@pytest.mark.parametrize("again", CALLS.values(), ids=CALLS)
def test_relock_of_map_locked_at_the_limit_is_not_counted_twice(again):
    """Memory locked by mmap(MAP_LOCKED) can be locked again at the limit."""
    with unprivileged_with_limit(4 * PAGE), mapping(pages=4, flags=syscalls.MAP_LOCKED) as region:
        seen = syscalls.outcome(again, region.addr, region.size)
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
    with mapping(pages=8) as region, unprivileged_with_limit(8 * PAGE):
        for start, length in before:
            syscalls.mlock(region.at(start), length * PAGE)
        shape = maps.layout(region)
        present = pagemap.present(region.addr, 8)
        locked = status.vmlck_pages()
        with soft_memlock_limit((union - 1) * PAGE):
            short = [syscalls.outcome(c, region.at(first), count * PAGE) for c in CALLS.values()]
        assert short == ["ENOMEM", "ENOMEM"], f"a limit of {union - 1} pages for {union}"
        assert maps.layout(region) == shape, "refused: VMAs as before"
        assert pagemap.present(region.addr, 8) == present, "refused: present pages as before"
        assert status.vmlck_pages() == locked, "refused: VmLck as before"
        with soft_memlock_limit(union * PAGE):
            enough = [syscalls.outcome(c, region.at(first), count * PAGE) for c in CALLS.values()]
        assert enough == ["ok", "ok"], f"a limit of {union} pages for {union}"
        assert status.vmlck_pages() == union, "the union is counted"


def test_overlap_with_several_mappings_counts_new_pages_only():
    """The locked pages of each of several adjoining VMAs are credited, whatever their kind."""
    with mapping(pages=7) as region, unprivileged_with_limit(8 * PAGE):
        syscalls.mprotect(region.at(2), PAGE, syscalls.PROT_READ)
        syscalls.mmap(
            region.at(3),
            PAGE,
            flags=syscalls.MAP_SHARED | syscalls.MAP_ANONYMOUS | syscalls.MAP_FIXED,
        )
        syscalls.mlock(region.at(1), 3 * PAGE)
        onfault(region.at(5), PAGE)
        assert len(maps.vmas(low=region.addr, high=region.end)) >= 6, "at least six VMAs"
        with soft_memlock_limit(6 * PAGE):
            short = [syscalls.outcome(c, region.addr, region.size) for c in CALLS.values()]
        with soft_memlock_limit(7 * PAGE):
            enough = [syscalls.outcome(c, region.addr, region.size) for c in CALLS.values()]
        assert short == ["ENOMEM", "ENOMEM"], "a limit of six pages for seven"
        assert enough == ["ok", "ok"], "a limit of seven pages for seven"
        assert status.vmlck_pages() == 7, "seven pages are counted"


@pytest.mark.parametrize(
    "shared", [syscalls.MAP_PRIVATE, syscalls.MAP_SHARED], ids=["private", "shared"]
)
@pytest.mark.detects("limit-mmap-fixed-unchecked")
def test_overlap_is_not_credited_to_map_fixed(shared):
    """mmap(MAP_FIXED|MAP_LOCKED) over a locked page at the limit gives EAGAIN, though it would
    replace what it counts; the page stays as it was.
    """
    how = shared | syscalls.MAP_ANONYMOUS | syscalls.MAP_FIXED | syscalls.MAP_LOCKED
    with mapping(pages=4) as region, unprivileged_with_limit(4 * PAGE):
        region.write(0x77)
        syscalls.mlock(region.addr, region.size)
        over = syscalls.outcome(syscalls.mmap, region.at(1), PAGE, syscalls.PROT_RW, how)
        assert over == "EAGAIN", "one page over a locked one, at the limit"
        assert maps.layout(region) == [(0, 4, "lo")], "VMAs as before"
        assert status.vmlck_pages() == 4, "VmLck as before"
        assert region.first_bytes() == b"\x77" * 4, "contents as before"
        with soft_memlock_limit(5 * PAGE):
            enough = syscalls.outcome(syscalls.mmap, region.at(1), PAGE, syscalls.PROT_RW, how)
        assert enough == "ok", "with room for one page more it is replaced"
        assert status.vmlck_pages() == 4, "and four pages are counted"
        assert region.first_bytes() == b"\x77\x00\x77\x77", "the page is new"


def test_alias_of_locked_memory_is_counted_again():
    """The limit counts mappings: the same shared pages locked through two of them count twice."""
    with mapping("memfd-shared", 3) as one, unprivileged_with_limit(5 * PAGE):
        with mapping("memfd-shared", 3, fd=one.fd) as two:
            syscalls.mlock(one.addr, one.size)
            over = syscalls.outcome(syscalls.mlock, two.addr, two.size)
            equal = syscalls.outcome(syscalls.mlock, two.addr, 2 * PAGE)
            assert over == "ENOMEM", "3 + 3 pages under a limit of five"
            assert equal == "ok", "3 + 2 pages under a limit of five"
            assert status.vmlck_pages() == 5, "five pages are counted"
