"""mincore(2)'s own contract: what it calls resident, of whose pages, and to whom it tells."""

import ctypes
import os
import stat

import pytest

from helpers import libc, memory, privilege, process
from helpers.libc import PAGE
from helpers.memory import KINDS, mapping
from helpers.observe import mincore, presence

pytestmark = [pytest.mark.needs("mincore"), pytest.mark.source("mincore(2)")]

PAGES = 8
NONE, ALL = "0" * PAGES, "1" * PAGES
CANARY = 0xC3


def vector(addr, length, entries):
    """The bytes mincore writes for ``length`` bytes, in a vector of canaries; and its answer."""
    vec = (ctypes.c_ubyte * entries)(*[CANARY] * entries)
    got = libc.outcome(libc.mincore, addr, length, vec)
    return got, list(vec)


@pytest.mark.parametrize("kind", ["private", "shared", "memfd-private", "memfd-shared"])
def test_mincore_tells_touched_pages(kind):
    """mincore writes exactly 1 for each page touched and 0 for each other, the first and the last
    of a range too, and nothing behind its vector."""
    with mapping(kind, PAGES) as region:
        assert vector(region.addr, region.size, PAGES + 1) == ("ok", [0] * PAGES + [CANARY]), (
            "nothing is resident before"
        )
        for page in (0, 4, 7):
            region.sub(page, 1).touch()
        assert vector(region.addr, region.size, PAGES + 1) == (
            "ok",
            [1, 0, 0, 0, 1, 0, 0, 1, CANARY],
        ), "pages 0, 4 and 7 are resident"
        assert presence.mapped(region) == "10001001", "and pagemap says the same"


def test_mincore_length_counts_whole_pages():
    """mincore tells of every page that its length touches, the incomplete last one too."""
    lengths = {1: 1, PAGE: 1, PAGE + 1: 2, 2 * PAGE - 1: 2, 2 * PAGE: 2, 3 * PAGE + 1: 4}
    with mapping("private", 4) as region:
        region.touch()
        seen = {length: vector(region.addr, length, 5) for length in lengths}
        assert seen == {
            length: ("ok", [1] * pages + [CANARY] * (5 - pages))
            for length, pages in lengths.items()
        }, "an entry a page, not one more"


def test_mincore_stops_at_a_hole():
    """mincore over a hole gives ENOMEM, with the entries of the pages before it written and
    those behind it not."""
    with mapping("private", 6) as region:
        region.sub(1, 5).touch()
        memory.hole(region, 3)
        assert vector(region.addr, region.size, 6) == ("ENOMEM", [0, 1, 1] + [CANARY] * 3), (
            "three entries before the hole"
        )


def test_mincore_of_inaccessible_memory_tells_too():
    """mincore of PROT_NONE memory returns 0 and tells which pages are there."""
    with mapping("private", PAGES) as region:
        region.sub(2, 2).touch()
        libc.mprotect(region.addr, region.size, libc.PROT_NONE)
        assert presence.seen(region) == presence.agreed("00110000"), "two pages"


@pytest.mark.needs("lock:8")
@pytest.mark.claim("W17")
def test_mincore_tells_residency_not_locks():
    """mincore of fault-locked memory calls its untouched pages absent: a lock is not residency."""
    with mapping("private", PAGES) as region:
        region.sub(1, 1).touch()
        libc.mlock2(region.addr, region.size, libc.MLOCK_ONFAULT)
        assert presence.cached(region) == "01000000", "the touched page alone"
        libc.mlock(region.addr, region.size)
        assert presence.cached(region) == ALL, "all of it after a full lock"


def test_mincore_calls_the_zero_page_resident():
    """mincore calls a page that was only read resident: the zero page stands in for it."""
    with mapping("private", PAGES) as region:
        libc.read(region.at(3), 1)
        assert presence.seen(region) == presence.agreed("00010000"), "the page read"


@pytest.mark.parametrize("kind", ["memfd-private", "memfd-shared"])
def test_mincore_of_a_file_tells_of_the_page_cache(kind):
    """mincore of a file mapping tells which pages are in the page cache, whoever brought them in;
    pagemap which of them this mapping has."""
    fd = memory.memfd(PAGES * PAGE)
    with mapping(kind, PAGES, fd=fd) as region:
        os.pwrite(fd, b"x" * PAGE, 2 * PAGE)
        with mapping("memfd-shared", PAGES, fd=fd) as other:
            other.sub(5, 1).touch()
        assert presence.seen(region) == {"pagemap": NONE, "mincore": "00100100"}, (
            "pages 2 and 5 are cached, none is mapped here"
        )
    os.close(fd)


@pytest.mark.needs("lock:8")
@pytest.mark.parametrize("kind", KINDS)
def test_mincore_reports_locked_pages_once_dropped(kind):
    """mincore calls locked pages resident; after munlock and MADV_DONTNEED an anonymous mapping's
    are gone, while a file's stay in the page cache."""
    with mapping(kind, PAGES) as region:
        libc.mlock(region.addr, region.size)
        locked = presence.seen(region)
        libc.munlock(region.addr, region.size)
        unlocked = presence.seen(region)
        libc.madvise(region.addr, region.size, libc.MADV_DONTNEED)
        dropped = {"pagemap": NONE, "mincore": NONE if kind == "private" else ALL}
        assert (locked, unlocked) == (presence.agreed(ALL),) * 2, "resident, and after munlock"
        assert presence.seen(region) == dropped, "after MADV_DONTNEED"


@pytest.mark.needs("other-user", "CAP_SETUID", "CAP_SETGID")
@pytest.mark.source("commit 134fca9063ad (5.2)")
def test_mincore_tells_others_nothing_of_a_file():
    """mincore of a file that the caller neither owns nor may write calls every page resident; to
    the owner it tells the truth, and to whoever may write the file."""
    fd = memory.memfd(PAGES * PAGE)
    with mapping("memfd-shared", PAGES, fd=fd) as region:
        os.pwrite(fd, b"x", 0)
        own = presence.cached(region)
        answers = {}
        for mode in (stat.S_IRUSR | stat.S_IROTH, stat.S_IWOTH):
            os.fchmod(fd, mode)
            with process.Child() as child:
                child.call(privilege.become)
                answers[stat.filemode(mode)] = presence.bits(
                    child.call(mincore.resident, region.addr, PAGES)
                )
        with process.Child() as child:
            child.call(privilege.become)
            anonymous = child.call(_untouched)
    os.close(fd)
    assert own == "10000000", "the owner sees the one page that is there"
    assert answers == {"?r-----r--": ALL, "?-------w-": "10000000"}, (
        "all ones to whoever may not write, the truth to whoever may"
    )
    assert anonymous == NONE, "the truth about memory of one's own"


def _untouched():
    with mapping("private", PAGES) as region:
        return presence.cached(region)
