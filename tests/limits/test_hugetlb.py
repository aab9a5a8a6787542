# SPDX-License-Identifier: MIT
"""Huge pages of hugetlbfs: never counted, yet the limit is asked."""

import pytest

from helpers import memory, syscalls
from helpers.observe import status, vmstat
from helpers.processes.rlimits import unprivileged_with_limit
from helpers.syscalls import PAGE

HUGE = vmstat.huge_page_size()
HUGE_PAGES = HUGE // PAGE
HOW = syscalls.MAP_PRIVATE | syscalls.MAP_ANONYMOUS | syscalls.MAP_HUGETLB
# What is never populated takes no page from the few there are.
EMPTY = HOW | syscalls.MAP_NORESERVE

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("hugetlb"),
    pytest.mark.source("mm/mlock.c mlock_fixup"),
]


@pytest.mark.needs("limit:1")
def test_hugetlb_over_the_limit_is_refused():
    """A huge page is too long for a limit below its length: mlock gives ENOMEM, MAP_LOCKED
    EAGAIN.
    """
    with memory.adopt_mapping(syscalls.mmap(0, HUGE, syscalls.PROT_RW, EMPTY), HUGE) as region:
        with unprivileged_with_limit(PAGE):
            plain = syscalls.outcome(syscalls.mlock, region.addr, HUGE)
            lazily = syscalls.outcome(syscalls.mlock2, region.addr, HUGE, syscalls.MLOCK_ONFAULT)
    with unprivileged_with_limit(PAGE):
        mapped = syscalls.outcome(
            syscalls.mmap, 0, HUGE, syscalls.PROT_RW, EMPTY | syscalls.MAP_LOCKED
        )
    assert plain == "ENOMEM", "mlock"
    assert lazily == "ENOMEM", "mlock2 on fault"
    assert mapped == "EAGAIN", "MAP_LOCKED"


@pytest.mark.needs(f"limit:{HUGE_PAGES}")
def test_hugetlb_within_the_limit_is_not_counted():
    """mlock of a huge page within the limit is 0 and takes nothing from the limit."""
    with memory.adopt_mapping(syscalls.mmap(0, HUGE, syscalls.PROT_RW, HOW), HUGE) as region:
        with unprivileged_with_limit(HUGE), memory.mapping(pages=1) as small:
            seen = syscalls.outcome(syscalls.mlock, region.addr, HUGE)
            counted = status.vmlck_pages()
            syscalls.mlock(small.addr, PAGE)
            again = syscalls.outcome(syscalls.mlock, region.addr, HUGE)
        assert seen == "ok", "a limit of exactly its length"
        assert counted == 0, "nothing is counted"
        assert again == "ENOMEM", "a page is locked: one too many for the length of the huge page"


def test_hugetlb_at_limit_zero_is_refused():
    """At limit 0 locking a huge page gives EPERM like any other memory."""
    with memory.adopt_mapping(syscalls.mmap(0, HUGE, syscalls.PROT_RW, EMPTY), HUGE) as region:
        with unprivileged_with_limit(0):
            assert syscalls.outcome(syscalls.mlock, region.addr, HUGE) == "EPERM", "mlock"
