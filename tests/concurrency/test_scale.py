# SPDX-License-Identifier: MIT
"""The same verdicts with many VMAs, many processes, much memory (tests/bench has the cost)."""

import pytest

from helpers import syscalls
from helpers.memory import layouts, mapping
from helpers.observe import lru_batches, maps, page_flags, pagemap, status
from helpers.processes import cpus, lockers

pytestmark = [
    pytest.mark.needs("smaps-flags"),
    pytest.mark.source("mlock(2); Documentation/mm/unevictable-lru.rst"),
]


@pytest.mark.needs("lock:8000", "budget:8000", "vmas:8000")
@pytest.mark.detects("mlock-stops-after-1000-vmas")
def test_thousands_of_vmas_are_each_counted():
    """A lock over 8,000 VMAs of alternating protection locks, counts and populates each, and
    one munlock of it all unlocks each."""
    pages = 8000
    with layouts.alternating_protections(pages) as region:
        syscalls.mlock(region.addr, region.size)
        assert maps.locks(region.addr, region.end, syscalls.PAGE) == [(0, pages, "lo")], (
            "all are lo"
        )
        assert len(maps.vmas(low=region.addr, high=region.end)) == pages, "a VMA a page"
        assert status.vmlck_pages() == pages, "VmLck counts each"
        assert pagemap.present_count(region.addr, pages) == pages, "each is populated"
        syscalls.munlock(region.addr, region.size)
        assert maps.locks(region.addr, region.end, syscalls.PAGE) == [(0, pages, "")], "none is lo"
        assert status.vmlck_pages() == 0, "nothing is counted"


@pytest.mark.needs("lock:16", "kpageflags")
@pytest.mark.usefixtures("one_cpu")
def test_many_processes_lock_one_file():
    """Fifty processes lock the same pages: each counts them as its own, the pages stay mlocked
    until the last of the processes has ended, and not longer."""
    with mapping("memfd-shared", 16) as region:
        region.touch()
        lru_batches.mlock_drain_local()
        with lockers.lockers(region, 50) as crowd:
            seen = {status.vmlck_pages(pid) for pid in crowd.pids}
            assert seen == {16}, "each process counts every page"
            crowd.exit(49)
            lru_batches.mlock_drain_local()
            assert all(page_flags.snapshot(region.addr, 16).mlocked), "one locker is left"
            crowd.exit(1)
            lru_batches.mlock_drain_local()
            assert not any(page_flags.snapshot(region.addr, 16).mlocked), "the last has gone"


@pytest.mark.needs("lock:16384", "budget:16384", "kpageflags")
@pytest.mark.parametrize("kind", ["private", "memfd-shared"])
@pytest.mark.detects("mlock-populates-4096")
def test_large_region_is_locked_to_the_last_page(kind):
    """A lock of 16,384 pages populates and marks each of them, and its munlock clears each."""
    pages = 16384
    with mapping(kind, pages) as region:
        region.touch()
        cpus.mlock_drain_all()
        syscalls.mlock(region.addr, region.size)
        assert status.vmlck_pages() == pages, "VmLck counts them all"
        cpus.mlock_drain_all()
        seen = page_flags.snapshot(region.addr, pages)
        assert sum(seen.present) == pages, "every page is present"
        assert seen.count_with(page_flags.MLOCKED) == pages, "every page is mlocked"
        syscalls.munlock(region.addr, region.size)
        cpus.mlock_drain_all()
        left = page_flags.snapshot(region.addr, pages)
        assert left.count_with(page_flags.MLOCKED) == 0, "none stays mlocked"
        assert status.vmlck_pages() == 0, "nothing is counted"
