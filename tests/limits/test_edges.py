# SPDX-License-Identifier: MIT
"""RLIMIT_MEMLOCK reached and passed, by each call that locks, without CAP_IPC_LOCK."""

import pytest

from helpers import memory, syscalls
from helpers.memory import mapping
from helpers.observe import maps, pagemap, status
from helpers.processes.credentials import without_capabilities
from helpers.processes.rlimits import (
    RLIM_INFINITY,
    memlock_limit,
    soft_memlock_limit,
    unprivileged_with_limit,
)
from helpers.syscalls import PAGE

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.source("mlock(2) ERRORS", "getrlimit(2) RLIMIT_MEMLOCK"),
]


def map_locked(addr, size, flags=syscalls.MAP_PRIVATE):
    flags |= syscalls.MAP_ANONYMOUS | syscalls.MAP_FIXED | syscalls.MAP_LOCKED
    syscalls.mmap(addr, size, syscalls.PROT_RW, flags)


def map_locked_shared(addr, size):
    map_locked(addr, size, syscalls.MAP_SHARED)


def mlock2(addr, size):
    syscalls.mlock2(addr, size, 0)


def onfault(addr, size):
    syscalls.mlock2(addr, size, syscalls.MLOCK_ONFAULT)


# Each call, and what it answers over the limit.
ROUTES = {
    "mlock": (syscalls.mlock, "ENOMEM"),
    "mlock2": (mlock2, "ENOMEM"),
    "onfault": (onfault, "ENOMEM"),
    "MAP_LOCKED": (map_locked, "EAGAIN"),
    "MAP_LOCKED-shared": (map_locked_shared, "EAGAIN"),
}
BY_ROUTE = pytest.mark.parametrize(("lock", "refusal"), ROUTES.values(), ids=ROUTES)


def locked_pages():
    """VmLck and the sum of lo VMAs, in pages: they must agree."""
    counted, summed = status.vmlck_pages(), maps.locked_kb() // syscalls.PAGE_KB
    assert counted == summed, "VmLck equals the lo VMAs"
    return counted


@BY_ROUTE
@pytest.mark.needs("limit:4")
@pytest.mark.claim("W9")
@pytest.mark.detects("limit-mlock-one-over", "setrlimit-one-page-more")
def test_limit_may_be_reached_exactly_in_one_call(lock, refusal):
    """A process without CAP_IPC_LOCK locks exactly as many pages as its soft limit holds,
    and not one more.
    """
    with mapping(pages=8) as region, unprivileged_with_limit(4 * PAGE):
        over = syscalls.outcome(lock, region.addr, 5 * PAGE)
        after_over = locked_pages()
        equal = syscalls.outcome(lock, region.addr, 4 * PAGE)
        assert over == refusal, "five pages under a limit of four are refused"
        assert after_over == 0, "the refused call counts nothing"
        assert equal == "ok", "four pages under a limit of four are locked"
        assert locked_pages() == 4, "they are counted"


@BY_ROUTE
@pytest.mark.needs("limit:4")
def test_limit_holds_for_the_sum_of_locks(lock, refusal):
    """The limit is compared with what is locked already plus what is asked for."""
    with mapping(pages=8) as region, unprivileged_with_limit(4 * PAGE):
        syscalls.mlock(region.addr, 3 * PAGE)
        over = syscalls.outcome(lock, region.at(4), 2 * PAGE)
        equal = syscalls.outcome(lock, region.at(4), PAGE)
        one_more = syscalls.outcome(lock, region.at(6), PAGE)
        assert over == refusal, "3 + 2 pages under a limit of four are refused"
        assert equal == "ok", "3 + 1 pages under a limit of four are locked"
        assert one_more == refusal, "at the limit one page more is refused"
        assert locked_pages() == 4, "four pages are locked in the end"


@BY_ROUTE
@pytest.mark.needs("limit:5")
def test_limit_rounds_down_to_pages(lock, refusal):
    """A limit that is no multiple of the page size holds the whole pages below it."""
    with mapping(pages=8) as region, unprivileged_with_limit(5 * PAGE - 1):
        over = syscalls.outcome(lock, region.addr, 5 * PAGE)
        equal = syscalls.outcome(lock, region.addr, 4 * PAGE)
        one_more = syscalls.outcome(lock, region.at(5), PAGE)
        assert over == refusal, "five pages under a byte less than five pages"
        assert equal == "ok", "four pages under a byte less than five pages"
        assert one_more == refusal, "the bytes beyond the fourth page lock nothing"
        assert locked_pages() == 4, "four pages are locked"


@BY_ROUTE
@pytest.mark.needs("limit:1")
@pytest.mark.source("LTP mlock02, mlock202")
@pytest.mark.detects("limit-below-page-eperm")
def test_limit_below_one_page_is_no_privilege_error(lock, refusal):
    """Under a limit of some bytes, but less than a page, one page is too much (ENOMEM,
    EAGAIN); EPERM is for the limit 0 alone.
    """
    with mapping(pages=2) as region:
        with unprivileged_with_limit(1):
            byte = syscalls.outcome(lock, region.addr, 1)
        with unprivileged_with_limit(PAGE - 1):
            below = syscalls.outcome(lock, region.addr, 1)
            after = locked_pages()
            nothing = syscalls.outcome(syscalls.mlock, region.addr, 0)
        with unprivileged_with_limit(PAGE):
            page = syscalls.outcome(lock, region.addr, 1)
        assert byte == refusal, "a page under a limit of one byte"
        assert below == refusal, "a page under a limit of one byte less"
        assert after == 0, "nothing is counted"
        assert nothing == "ok", "mlock of no bytes"
        assert page == "ok", "one page under a limit of one page"


@pytest.mark.parametrize("limit", [1, PAGE - 1], ids=["1", "P-1"])
@pytest.mark.needs("limit:1")
@pytest.mark.source("LTP mlockall02, mlockall03")
def test_limit_below_one_page_refuses_mlockall_with_enomem(limit):
    """mlockall(MCL_CURRENT) under a limit of less than a page gives ENOMEM, not EPERM, and
    locks nothing.
    """
    with unprivileged_with_limit(limit):
        plain = syscalls.outcome(syscalls.mlockall, syscalls.MCL_CURRENT)
        lazily = syscalls.outcome(syscalls.mlockall, syscalls.MCL_CURRENT | syscalls.MCL_ONFAULT)
        assert plain == "ENOMEM", "mlockall(MCL_CURRENT)"
        assert lazily == "ENOMEM", "mlockall(MCL_CURRENT|MCL_ONFAULT)"
        assert locked_pages() == 0, "nothing is locked"


@pytest.mark.parametrize(
    ("offset", "length", "pages"),
    [
        (0, 4 * PAGE - 1, 4),
        (0, 4 * PAGE + 1, 5),
        (1, 4 * PAGE - 1, 4),
        (1, 4 * PAGE, 5),
        (PAGE - 1, 3 * PAGE + 1, 4),
        (PAGE - 1, 3 * PAGE + 2, 5),
        (PAGE - 1, 2, 2),
    ],
)
@pytest.mark.needs("limit:4")
def test_limit_counts_the_pages_a_range_touches(offset, length, pages):
    """What counts against the limit is every page that the range touches, not its length."""
    with mapping(pages=8) as region:
        with unprivileged_with_limit((pages - 1) * PAGE):
            short = syscalls.outcome(syscalls.mlock, region.addr + offset, length)
            lazily = syscalls.outcome(onfault, region.addr + offset, length)
            before = locked_pages()
        if pages <= 4:
            with unprivileged_with_limit(pages * PAGE):
                enough = syscalls.outcome(syscalls.mlock, region.addr + offset, length)
            assert enough == "ok", f"{length} bytes from byte {offset}: {pages} pages are enough"
            assert locked_pages() == pages, "so many are locked"
        assert short == "ENOMEM", f"{length} bytes from byte {offset}: {pages - 1} pages do not do"
        assert lazily == "ENOMEM", "on fault neither"
        assert before == 0, "the refused call counts nothing"


@pytest.mark.needs("limit:4")
@pytest.mark.source("mlock-random-test.c")
@pytest.mark.detects("limit-mlock-equal-refused")
def test_limit_refuses_every_longer_range_and_no_other():
    """Of all page ranges of a mapping exactly those that are longer than the limit are
    refused, with ENOMEM.
    """
    with mapping(pages=7) as region, unprivileged_with_limit(4 * PAGE):
        seen, expected = {}, {}
        for first in range(region.pages):
            for count in range(1, region.pages - first + 1):
                for name, call in (("mlock", syscalls.mlock), ("onfault", onfault)):
                    key = name, first, count
                    seen[key] = syscalls.outcome(call, region.at(first), count * PAGE)
                    expected[key] = "ok" if count <= 4 else "ENOMEM"
                    syscalls.munlock(region.addr, region.size)
        assert seen == expected, "refused exactly beyond four pages"
        assert locked_pages() == 0, "all is given back"


@pytest.mark.parametrize("kind", memory.MAPPING_KINDS)
@pytest.mark.needs("limit:4")
@pytest.mark.detects("limit-onfault-unchecked", "limit-mlock-eagain")
def test_limit_holds_for_mlock_of_each_kind(kind):
    """mlock of anonymous and file memory, private and shared, obeys the limit to the page."""
    with mapping(kind, 6) as region, unprivileged_with_limit(4 * PAGE):
        over = syscalls.outcome(syscalls.mlock, region.addr, 5 * PAGE)
        lazily = syscalls.outcome(onfault, region.addr, 5 * PAGE)
        none = pagemap.present_count(region.addr, region.pages)
        equal = syscalls.outcome(syscalls.mlock, region.addr, 4 * PAGE)
        assert (over, lazily) == ("ENOMEM", "ENOMEM"), "five pages under a limit of four"
        assert none == 0, "the refused calls populate nothing"
        assert equal == "ok", "four pages under a limit of four"
        assert locked_pages() == 4, "four pages are counted"


@pytest.mark.parametrize("kind", memory.MAPPING_KINDS)
@pytest.mark.needs("limit:4")
@pytest.mark.detects("limit-mmap-unchecked", "limit-mmap-equal-refused", "limit-mmap-enomem")
def test_limit_holds_for_map_locked_of_each_kind(kind):
    """mmap(MAP_LOCKED) of anonymous and file memory, private and shared, obeys the limit to
    the page.
    """

    def locked(pages):
        with mapping(kind, pages, flags=syscalls.MAP_LOCKED):
            return locked_pages()

    with unprivileged_with_limit(4 * PAGE):
        over = syscalls.outcome(locked, 5)
        assert over == "EAGAIN", "five pages under a limit of four"
        assert locked_pages() == 0, "the refused call counts nothing"
        assert locked(4) == 4, "four pages under a limit of four are counted"


@pytest.mark.parametrize("prot", [syscalls.PROT_NONE, syscalls.PROT_READ, syscalls.PROT_WRITE])
@pytest.mark.needs("limit:4")
def test_limit_holds_whatever_the_protection(prot):
    """MAP_LOCKED counts against the limit whatever the protection, PROT_NONE included."""
    with unprivileged_with_limit(4 * PAGE):
        with mapping(pages=3, prot=prot, flags=syscalls.MAP_LOCKED):
            over = syscalls.outcome(
                mapping(pages=2, prot=prot, flags=syscalls.MAP_LOCKED).__enter__
            )
            with mapping(pages=1, prot=prot, flags=syscalls.MAP_LOCKED):
                full = locked_pages()
        assert over == "EAGAIN", "3 + 2 pages under a limit of four"
        assert full == 4, "3 + 1 pages are counted"


@pytest.mark.needs("limit:4")
def test_limit_counts_mappings_not_resident_pages():
    """Memory locked on fault fills the limit though none of its pages exists."""
    with mapping(pages=8) as region, unprivileged_with_limit(4 * PAGE):
        onfault(region.addr, 4 * PAGE)
        one_more = syscalls.outcome(syscalls.mlock, region.at(4), PAGE)
        assert pagemap.present_count(region.addr, 8) == 0, "no page is present"
        assert one_more == "ENOMEM", "the limit is reached all the same"


@pytest.mark.needs("limit:4")
def test_limit_does_not_count_memory_that_is_not_locked():
    """Resident memory that is not locked takes nothing from the limit."""
    with mapping(pages=32) as region, unprivileged_with_limit(4 * PAGE):
        region.touch()
        seen = syscalls.outcome(syscalls.mlock, region.at(8), 4 * PAGE)
        assert seen == "ok", "four of thirty-two resident pages under a limit of four"


@pytest.mark.needs("limit:8")
@pytest.mark.detects("limit-mlock-unchecked", "setrlimit-ignored")
def test_soft_limit_decides():
    """The soft limit refuses, however high the hard one; raised again, it allows at once."""
    with mapping(pages=8) as region, unprivileged_with_limit(2 * PAGE):
        hard = memlock_limit()[1]
        assert hard == RLIM_INFINITY or hard >= 8 * PAGE, "the hard limit is above"
        low = [syscalls.outcome(call, region.addr, 3 * PAGE) for call, _ in ROUTES.values()]
        with soft_memlock_limit(4 * PAGE):
            raised = syscalls.outcome(syscalls.mlock, region.addr, 4 * PAGE)
            beyond = syscalls.outcome(syscalls.mlock, region.at(4), PAGE)
        assert low == [refusal for _, refusal in ROUTES.values()], "three pages, soft limit two"
        assert raised == "ok", "four pages once the soft limit is four"
        assert beyond == "ENOMEM", "and not the fifth"


@BY_ROUTE
@pytest.mark.needs("limit-infinite", "budget:64")
@pytest.mark.detects("limit-infinite-still-binds")
def test_infinite_limit_allows_any_amount(lock, refusal):
    """Under an infinite soft limit a process without CAP_IPC_LOCK locks what it likes."""
    with (
        mapping(pages=64) as region,
        without_capabilities("CAP_IPC_LOCK"),
        soft_memlock_limit(RLIM_INFINITY),
    ):
        seen = syscalls.outcome(lock, region.addr, region.size)
        assert seen == "ok", "64 pages"
        assert locked_pages() == 64, "they are counted"


@pytest.mark.needs("limit-infinite")
def test_infinite_limit_allows_a_large_range():
    """Under an infinite limit a range of 65,536 pages can be locked on fault."""
    pages = 1 << 16
    with mapping(pages=pages, prot=syscalls.PROT_READ) as region:
        with without_capabilities("CAP_IPC_LOCK"), soft_memlock_limit(RLIM_INFINITY):
            seen = syscalls.outcome(onfault, region.addr, region.size)
            counted = locked_pages()
        assert seen == "ok", f"{pages} pages locked on fault"
        assert counted == pages, "all are counted"
