"""The same verdicts with many VMAs, many processes, much memory (tests/bench has the cost)."""

import pytest

from helpers import libc, lru, race, scale
from helpers.memory import mapping
from helpers.observe import maps, pagemap, status

pytestmark = [
    pytest.mark.needs("smaps-flags"),
    pytest.mark.source("mlock(2); Documentation/mm/unevictable-lru.rst"),
]


@pytest.mark.needs("lock:8000", "budget:8000", "vmas:8000")
def test_thousands_of_vmas_are_each_counted():
    """A lock over 8,000 VMAs of alternating protection locks, counts and populates each, and
    one munlock of it all unlocks each."""
    pages = 8000
    with scale.alternating(pages) as region:
        libc.mlock(region.addr, region.size)
        assert maps.locks(region.addr, region.end, libc.PAGE) == [(0, pages, "lo")], "all are lo"
        assert len(maps.vmas(low=region.addr, high=region.end)) == pages, "a VMA a page"
        assert status.vmlck_pages() == pages, "VmLck counts each"
        assert pagemap.present_count(region.addr, pages) == pages, "each is populated"
        libc.munlock(region.addr, region.size)
        assert maps.locks(region.addr, region.end, libc.PAGE) == [(0, pages, "")], "none is lo"
        assert status.vmlck_pages() == 0, "nothing is counted"


@pytest.mark.needs("lock:16", "kpageflags")
def test_many_processes_lock_one_file():
    """Fifty processes lock the same pages: each counts them as its own, the pages stay mlocked
    until the last of the processes has ended, and not longer."""
    lru.pin()
    with mapping("memfd-shared", 16) as region:
        region.touch()
        lru.drain()
        with scale.lockers(region, 50) as crowd:
            seen = {status.vmlck_pages(pid) for pid in crowd.pids}
            assert seen == {16}, "each process counts every page"
            crowd.leave(49)
            lru.drain()
            assert all(pagemap.snapshot(region.addr, 16).mlocked), "one locker is left"
            crowd.leave(1)
            lru.drain()
            assert not any(pagemap.snapshot(region.addr, 16).mlocked), "the last has gone"


@pytest.mark.needs("lock:16384", "budget:16384", "kpageflags")
@pytest.mark.parametrize("kind", ["private", "memfd-shared"])
def test_large_region_is_locked_to_the_last_page(kind):
    """A lock of 16,384 pages populates and marks each of them, and its munlock clears each."""
    pages = 16384
    with mapping(kind, pages) as region:
        region.touch()
        race.drain_everywhere()
        libc.mlock(region.addr, region.size)
        assert status.vmlck_pages() == pages, "VmLck counts them all"
        race.drain_everywhere()
        seen = pagemap.snapshot(region.addr, pages)
        assert sum(seen.present) == pages, "every page is present"
        assert seen.having(pagemap.MLOCKED) == pages, "every page is mlocked"
        libc.munlock(region.addr, region.size)
        race.drain_everywhere()
        left = pagemap.snapshot(region.addr, pages)
        assert left.having(pagemap.MLOCKED) == 0, "none stays mlocked"
        assert status.vmlck_pages() == 0, "nothing is counted"
