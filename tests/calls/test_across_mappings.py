# SPDX-License-Identifier: MIT
"""One call over many mappings: all of them, from the first page to the last."""

from contextlib import contextmanager

import pytest

from helpers import syscalls
from helpers.memory import locks, mapping
from helpers.observe import maps, pagemap, status
from helpers.pytest_plugin.parametrize import by_call, by_entry_point
from helpers.syscalls import PAGE

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("smaps-flags", "lock:16"),
    pytest.mark.source("mlock(2)"),
]

PAGES = 10


def shape(region):
    return maps.locks(region.addr, region.end, PAGE)


@contextmanager
def five_mappings():
    """Ten pages in five mappings of two pages, readable and writable in turn."""
    with mapping("private", PAGES) as region:
        for page in (2, 6):
            syscalls.mprotect(region.at(page), 2 * PAGE, syscalls.PROT_READ)
        yield region


@by_call()
def test_lock_reaches_from_inside_the_first_to_inside_the_last(how):
    """A lock from the middle of one mapping to the middle of another locks, and a full one
    populates, every page between, and no other."""
    with five_mappings() as region:
        locks.issue(syscalls.RAW, how, region.at(1), 8 * PAGE)
        lock = "lo lf" if how == locks.CALLS["onfault"] else "lo"
        wanted = [(0, 1, ""), (1, 9, lock), (9, 10, "")]
        assert shape(region) == wanted, "every mapping between is locked"
        assert status.vmlck_pages() == 8, "VmLck counts the eight pages"
        assert pagemap.present(region.addr, PAGES) == [
            lock == "lo" and 0 < page < 9 for page in range(PAGES)
        ], "a full lock populates those pages, a lock on fault none"


@pytest.mark.parametrize("how", [locks.CALLS["mlock"], locks.CALLS["onfault"]], ids=["lo", "lf"])
def test_munlock_reaches_from_inside_the_first_to_inside_the_last(how):
    """munlock from the middle of one mapping to the middle of another unlocks every page
    between, and no other."""
    with five_mappings() as region:
        locks.issue(syscalls.RAW, how, region.addr, region.size)
        syscalls.munlock(region.at(1), 8 * PAGE)
        lock = "lo lf" if how == locks.CALLS["onfault"] else "lo"
        wanted = [(0, 1, lock), (1, 9, ""), (9, 10, lock)]
        assert shape(region) == wanted, "every mapping between is unlocked"
        assert status.vmlck_pages() == 2, "VmLck keeps the first page and the last"


@by_entry_point()
def test_whole_range_of_mappings_locks_and_unlocks(calls):
    """A lock of exactly five mappings locks and populates each to its end; one munlock
    unlocks each."""
    with five_mappings() as region:
        calls.mlock(region.addr, region.size)
        locked, counted = shape(region), status.vmlck_pages()
        resident = pagemap.present_count(region.addr, PAGES)
        calls.munlock(region.addr, region.size)
        assert locked == [(0, PAGES, "lo")], "every mapping is lo"
        assert counted == PAGES, "VmLck counts every page"
        assert resident == PAGES, "every page is resident"
        assert shape(region) == [(0, PAGES, "")], "and none after"
        assert status.vmlck_pages() == 0, "VmLck is 0"
