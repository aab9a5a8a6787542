# SPDX-License-Identifier: MIT
"""Locks of very many pages: the count must not be cut to fewer bits."""

import pytest

from helpers import syscalls
from helpers.memory import Region
from helpers.observe import lock_accounting, maps, status
from helpers.syscalls import PAGE

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("lock-all", "smaps-flags"),
    pytest.mark.source("mlock(2); mm/mlock.c mlock_fixup"),
]


def reserve(pages):
    how = syscalls.MAP_PRIVATE | syscalls.MAP_ANONYMOUS | syscalls.MAP_NORESERVE
    return Region(syscalls.mmap(0, pages * PAGE, syscalls.PROT_NONE, how), pages * PAGE)


def lock_nothing_resident(region):
    # The errno is the calls chapter's: 5.10 says ENOMEM for PROT_NONE, and locks.
    syscalls.outcome(syscalls.mlock2, region.addr, region.size, syscalls.MLOCK_ONFAULT)


@pytest.mark.own_process
@pytest.mark.parametrize(
    "pages",
    [
        pytest.param(pages, marks=pytest.mark.needs(f"space:{pages}"))
        for pages in ((1 << 16) + 3, (1 << 19) + 5, (1 << 20) + 1)
    ],
)
@pytest.mark.detects("vmlck-cut-to-19-bits")
def test_large_lock_is_counted_in_full(pages):
    """A lock of gigabytes of address space, none of it resident, is counted to the page, and
    so is what is unlocked and unmapped of it."""
    region = reserve(pages)
    lock_nothing_resident(region)
    assert status.vmlck_pages() == pages, "every page counts"
    assert maps.locked_kb() == region.kb, "and is lo"
    syscalls.munlock(region.at(1), PAGE)
    assert status.vmlck_pages() == pages - 1, "one is unlocked"
    syscalls.munmap(region.at(3), region.size - 4 * PAGE)
    assert status.vmlck_pages() == 3, "all but three pages are unmapped"
    assert lock_accounting.page_letters(region.sub(0, 4)) == "F-F-", "two at the head"
    assert lock_accounting.page_letters(Region(region.end - PAGE, PAGE)) == "F", (
        "and one at the tail"
    )


@pytest.mark.needs(f"space:{1 << 32}")
@pytest.mark.deviation("huge-lock-overflows")
def test_lock_of_four_gigapages_is_counted():
    """A lock of 2^32 pages counts them all."""
    # Never unmapped: where the count came out as 0, munmap would take it below.
    region = reserve(1 << 32)
    lock_nothing_resident(region)
    assert maps.at(region.addr).locked, "the range is lo"
    assert status.vmlck_pages() == 1 << 32, "2^32 pages count"
