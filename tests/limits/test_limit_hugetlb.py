"""Huge pages of hugetlbfs: never counted, yet the limit is asked."""

import pytest

from helpers import libc, memory
from helpers.libc import PAGE
from helpers.observe import status, vmstat
from helpers.privilege import limited

HUGE = vmstat.huge_page_size()
HUGE_PAGES = HUGE // PAGE
HOW = libc.MAP_PRIVATE | libc.MAP_ANONYMOUS | libc.MAP_HUGETLB
# What is never populated takes no page from the few there are.
EMPTY = HOW | libc.MAP_NORESERVE

pytestmark = [pytest.mark.needs("hugetlb"), pytest.mark.source("mm/mlock.c mlock_fixup")]


@pytest.mark.needs("limit:1")
def test_hugetlb_over_the_limit_is_refused():
    """A huge page is too long for a limit below its length: mlock gives ENOMEM, MAP_LOCKED
    EAGAIN.
    """
    with memory.unmapped_after(libc.mmap(0, HUGE, libc.PROT_RW, EMPTY), HUGE) as region:
        with limited(PAGE):
            plain = libc.outcome(libc.mlock, region.addr, HUGE)
            lazily = libc.outcome(libc.mlock2, region.addr, HUGE, libc.MLOCK_ONFAULT)
    with limited(PAGE):
        mapped = libc.outcome(libc.mmap, 0, HUGE, libc.PROT_RW, EMPTY | libc.MAP_LOCKED)
    assert plain == "ENOMEM", "mlock"
    assert lazily == "ENOMEM", "mlock2 on fault"
    assert mapped == "EAGAIN", "MAP_LOCKED"


@pytest.mark.needs(f"limit:{HUGE_PAGES}")
def test_hugetlb_within_the_limit_is_not_counted():
    """mlock of a huge page within the limit is 0 and takes nothing from the limit."""
    with memory.unmapped_after(libc.mmap(0, HUGE, libc.PROT_RW, HOW), HUGE) as region:
        with limited(HUGE), memory.mapping(pages=1) as small:
            seen = libc.outcome(libc.mlock, region.addr, HUGE)
            counted = status.vmlck_pages()
            libc.mlock(small.addr, PAGE)
            again = libc.outcome(libc.mlock, region.addr, HUGE)
        assert seen == "ok", "a limit of exactly its length"
        assert counted == 0, "nothing is counted"
        assert again == "ENOMEM", "a page is locked: one too many for the length of the huge page"


def test_hugetlb_at_limit_zero_is_refused():
    """At limit 0 locking a huge page gives EPERM like any other memory."""
    with memory.unmapped_after(libc.mmap(0, HUGE, libc.PROT_RW, EMPTY), HUGE) as region:
        with limited(0):
            assert libc.outcome(libc.mlock, region.addr, HUGE) == "EPERM", "mlock"
