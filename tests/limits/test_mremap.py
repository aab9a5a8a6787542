# SPDX-License-Identifier: MIT
"""mremap of locked memory: growth needs quota, moving and shrinking do not."""

import pytest

from helpers import syscalls
from helpers.memory import mapping
from helpers.observe import maps, status
from helpers.processes.rlimits import set_soft_memlock, unprivileged_with_limit
from helpers.syscalls import PAGE

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("limit:8"),
    pytest.mark.source("mremap(2) ERRORS EAGAIN"),
]

MAYMOVE = syscalls.MREMAP_MAYMOVE
FIXED = syscalls.MREMAP_MAYMOVE | syscalls.MREMAP_FIXED


def in_place(region, pages):
    """Grows where it is: the pages behind it are free."""
    syscalls.munmap(region.at(4), 6 * PAGE)
    return syscalls.mremap(region.addr, 4 * PAGE, pages * PAGE)


def moving(region, pages):
    """Must move: the page behind it is mapped."""
    return syscalls.mremap(region.addr, 4 * PAGE, pages * PAGE, MAYMOVE)


def to_address(region, pages):
    """Moves over the second half of the region."""
    return syscalls.mremap(region.addr, 4 * PAGE, pages * PAGE, FIXED, region.at(4))


WAYS = pytest.mark.parametrize("grow", [in_place, moving, to_address], ids=lambda w: w.__name__)
LOCKS = pytest.mark.parametrize("onfault", [0, syscalls.MLOCK_ONFAULT], ids=["mlock", "onfault"])


@WAYS
@LOCKS
@pytest.mark.detects("limit-mremap-unchecked", "limit-mremap-enomem")
def test_mremap_growth_over_the_limit_gives_eagain(grow, onfault):
    """Growing locked memory by one page more than the limit has left gives EAGAIN; the memory
    stays where it is, locked and of its old length.
    """
    with mapping(pages=10) as region, unprivileged_with_limit(6 * PAGE):
        region.write(0x44)
        syscalls.mlock2(region.addr, 4 * PAGE, onfault)
        seen = syscalls.outcome(grow, region, 7)
        assert seen == "EAGAIN", "4 + 3 pages under a limit of six"
        assert status.vmlck_pages() == 4, "four pages are counted"
        source = maps.layout_between(region.addr, region.at(4), PAGE)
        assert source == [(0, 4, "lo lf" if onfault else "lo")], "they are locked as before"
        assert region.sub(0, 4).first_bytes() == b"\x44" * 4, "contents as before"


@WAYS
@LOCKS
@pytest.mark.detects("limit-mremap-equal-refused")
def test_mremap_growth_up_to_the_limit_succeeds(grow, onfault):
    """Locked memory grows up to exactly the limit, by the difference alone, moving or not; a
    further page is refused then.
    """
    with mapping(pages=10) as region, mapping(pages=1) as other, unprivileged_with_limit(6 * PAGE):
        syscalls.mlock2(region.addr, 4 * PAGE, onfault)
        start = grow(region, 6)
        counted, summed = status.vmlck_pages(), maps.locked_kb()
        one_more = syscalls.outcome(syscalls.mlock, other.addr, PAGE)
        further = syscalls.outcome(syscalls.mremap, start, 6 * PAGE, 7 * PAGE, MAYMOVE)
        if grow is moving:
            syscalls.munmap(start, 6 * PAGE)
        assert counted == 6, "six pages are counted"
        assert summed == 6 * syscalls.PAGE_KB, "six pages are lo"
        assert one_more == "ENOMEM", "mlock of a seventh page"
        assert further == "EAGAIN", "growth by a seventh page"


@WAYS
@pytest.mark.parametrize("limit", [0, 2 * PAGE], ids=["0", "2P"])
@pytest.mark.source("gVisor MremapLocked.RlimitMemlockZero")
def test_mremap_growth_under_a_lowered_limit_gives_eagain(grow, limit):
    """Growth of locked memory under a limit lowered since, to 0 even, gives EAGAIN, never
    EPERM, and takes no lock away.
    """
    with mapping(pages=10) as region, unprivileged_with_limit(8 * PAGE):
        syscalls.mlock(region.addr, 4 * PAGE)
        set_soft_memlock(limit)
        seen = syscalls.outcome(grow, region, 5)
        assert seen == "EAGAIN", f"growth under {limit} bytes"
        assert status.vmlck_pages() == 4, "four pages are counted"
        assert maps.layout_between(region.addr, region.at(4), PAGE) == [(0, 4, "lo")], (
            "they are locked"
        )


@pytest.mark.parametrize("limit", [4 * PAGE, 0], ids=["equal", "0"])
def test_mremap_move_needs_no_quota(limit):
    """Locked memory moves at the limit, and above a lowered one: it is never counted twice."""
    with mapping(pages=10) as region, unprivileged_with_limit(8 * PAGE):
        syscalls.mlock(region.addr, 4 * PAGE)
        syscalls.store(region.at(3), b"\x77")
        set_soft_memlock(limit)
        seen = syscalls.outcome(to_address, region, 4)
        assert seen == "ok", "the same size moved"
        assert status.vmlck_pages() == 4, "four pages are counted"
        assert maps.layout_between(region.at(4), region.end, PAGE) == [
            (0, 4, "lo"),
            (4, 6, ""),
        ], "the moved pages are lo"
        assert syscalls.load(region.at(7), 1) == b"\x77", "contents moved"


@pytest.mark.parametrize("limit", [4 * PAGE, 0], ids=["equal", "0"])
def test_mremap_same_size_and_shrinking_need_no_quota(limit):
    """mremap to the same size is 0, and shrinking gives quota back, at and above the limit."""
    with mapping(pages=10) as region, unprivileged_with_limit(8 * PAGE):
        syscalls.mlock(region.addr, 4 * PAGE)
        set_soft_memlock(limit)
        same = syscalls.outcome(syscalls.mremap, region.addr, 4 * PAGE, 4 * PAGE, 0)
        may = syscalls.outcome(syscalls.mremap, region.addr, 4 * PAGE, 4 * PAGE, MAYMOVE)
        shrunk = syscalls.outcome(syscalls.mremap, region.addr, 4 * PAGE, PAGE, 0)
        assert (same, may) == ("ok", "ok"), "the same size"
        assert shrunk == "ok", "shrinking"
        assert status.vmlck_pages() == 1, "one page is counted"


@pytest.mark.own_process
@pytest.mark.parametrize("limit", [4 * PAGE, 0], ids=["equal", "0"])
@pytest.mark.source("mremap(2) MREMAP_DONTUNMAP")
def test_mremap_dontunmap_needs_no_quota(limit):
    """MREMAP_DONTUNMAP of locked memory succeeds at and above the limit: the lock moves."""
    with mapping(pages=10) as region, unprivileged_with_limit(8 * PAGE):
        syscalls.mlock(region.addr, 4 * PAGE)
        set_soft_memlock(limit)
        how = FIXED | syscalls.MREMAP_DONTUNMAP
        seen = syscalls.outcome(syscalls.mremap, region.addr, 4 * PAGE, 4 * PAGE, how, region.at(4))
        assert seen == "ok", "moved, and the source kept"
        assert maps.layout(region) == [
            (0, 4, ""),
            (4, 8, "lo"),
            (8, 10, ""),
        ], "the target is lo, the source is not"


def test_mremap_duplicate_of_locked_memory_needs_quota():
    """A second mapping of locked shared memory (mremap of old length 0) counts against the
    limit: EAGAIN over it.
    """
    with (
        mapping("memfd-shared", 3) as region,
        mapping(pages=4) as room,
        unprivileged_with_limit(5 * PAGE),
    ):
        syscalls.mlock(region.addr, region.size)
        over = syscalls.outcome(syscalls.mremap, region.addr, 0, 3 * PAGE, FIXED, room.addr)
        after = status.vmlck_pages()
        equal = syscalls.outcome(syscalls.mremap, region.addr, 0, 2 * PAGE, FIXED, room.addr)
        assert over == "EAGAIN", "3 + 3 pages under a limit of five"
        assert after == 3, "three pages are counted"
        assert equal == "ok", "3 + 2 pages under a limit of five"
        assert status.vmlck_pages() == 5, "five pages are counted"


def test_mremap_growth_of_unlocked_memory_needs_no_quota():
    """Growth of memory that is not locked asks no limit, at 0 neither."""
    with mapping(pages=10) as region, unprivileged_with_limit(4 * PAGE):
        syscalls.mlock(region.at(6), 4 * PAGE)
        set_soft_memlock(0)
        syscalls.munmap(region.at(2), 4 * PAGE)
        seen = syscalls.outcome(syscalls.mremap, region.addr, 2 * PAGE, 6 * PAGE)
        assert seen == "ok", "two unlocked pages grow to six"


@pytest.mark.own_process
@WAYS
@pytest.mark.needs("CAP_IPC_LOCK")
def test_mremap_growth_with_the_capability_asks_no_limit(grow):
    """With CAP_IPC_LOCK locked memory grows beyond the limit, at 0 too."""
    with mapping(pages=10) as region:
        syscalls.mlock(region.addr, 4 * PAGE)
        set_soft_memlock(0)
        start = grow(region, 6)
        counted = status.vmlck_pages()
        if grow is moving:
            syscalls.munmap(start, 6 * PAGE)
        assert counted == 6, "six pages are counted"
