# SPDX-License-Identifier: MIT
"""mincore(2)'s own contract: what it calls resident, of whose pages, and to whom it tells."""

import ctypes
import os
import stat

import pytest

from helpers import memory, processes, syscalls
from helpers.memory import MAPPING_KINDS, mapping
from helpers.observe import mincore, residency
from helpers.processes import credentials
from helpers.syscalls import PAGE

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("mincore"),
    pytest.mark.source("mincore(2)"),
]

PAGES = 8
NONE, ALL = "0" * PAGES, "1" * PAGES
CANARY = 0xC3


def vector(addr, length, entries):
    """The bytes mincore writes for ``length`` bytes, in a vector of canaries; and its answer."""
    vec = (ctypes.c_ubyte * entries)(*[CANARY] * entries)
    got = syscalls.outcome(syscalls.mincore, addr, length, vec)
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
        assert residency.mapped_bits(region) == "10001001", "and pagemap says the same"


def test_mincore_of_inaccessible_memory_tells_too():
    """mincore of PROT_NONE memory returns 0 and tells which pages are there."""
    with mapping("private", PAGES) as region:
        region.sub(2, 2).touch()
        syscalls.mprotect(region.addr, region.size, syscalls.PROT_NONE)
        assert residency.of(region) == residency.all_say("00110000"), "two pages"


@pytest.mark.needs("lock:8")
@pytest.mark.claim("W17")
def test_mincore_tells_residency_not_locks():
    """mincore of fault-locked memory calls its untouched pages absent: a lock is not residency."""
    with mapping("private", PAGES) as region:
        region.sub(1, 1).touch()
        syscalls.mlock2(region.addr, region.size, syscalls.MLOCK_ONFAULT)
        assert residency.mincore_bits(region) == "01000000", "the touched page alone"
        syscalls.mlock(region.addr, region.size)
        assert residency.mincore_bits(region) == ALL, "all of it after a full lock"


@pytest.mark.parametrize("kind", ["memfd-private", "memfd-shared"])
def test_mincore_of_a_file_tells_of_the_page_cache(kind):
    """mincore of a file mapping tells which pages are in the page cache, whoever brought them in;
    pagemap which of them this mapping has."""
    fd = memory.memfd(PAGES * PAGE)
    with mapping(kind, PAGES, fd=fd) as region:
        os.pwrite(fd, b"x" * PAGE, 2 * PAGE)
        with mapping("memfd-shared", PAGES, fd=fd) as other:
            other.sub(5, 1).touch()
        assert residency.of(region) == {"pagemap": NONE, "mincore": "00100100"}, (
            "pages 2 and 5 are cached, none is mapped here"
        )
    os.close(fd)


@pytest.mark.needs("lock:8")
@pytest.mark.parametrize("kind", MAPPING_KINDS)
@pytest.mark.detects("mincore-all-resident")
def test_mincore_reports_locked_pages_once_dropped(kind):
    """mincore calls locked pages resident; after munlock and MADV_DONTNEED an anonymous mapping's
    are gone, while a file's stay in the page cache."""
    with mapping(kind, PAGES) as region:
        syscalls.mlock(region.addr, region.size)
        locked = residency.of(region)
        syscalls.munlock(region.addr, region.size)
        unlocked = residency.of(region)
        syscalls.madvise(region.addr, region.size, syscalls.MADV_DONTNEED)
        dropped = {"pagemap": NONE, "mincore": NONE if kind == "private" else ALL}
        assert (locked, unlocked) == (residency.all_say(ALL),) * 2, "resident, and after munlock"
        assert residency.of(region) == dropped, "after MADV_DONTNEED"


@pytest.mark.needs("other-user", "CAP_SETUID", "CAP_SETGID")
@pytest.mark.source("commit 134fca9063ad (5.2)")
def test_mincore_tells_others_nothing_of_a_file():
    """mincore of a file that the caller neither owns nor may write calls every page resident; to
    the owner it tells the truth, and to whoever may write the file."""
    fd = memory.memfd(PAGES * PAGE)
    with mapping("memfd-shared", PAGES, fd=fd) as region:
        os.pwrite(fd, b"x", 0)
        own = residency.mincore_bits(region)
        answers = {}
        for mode in (stat.S_IRUSR | stat.S_IROTH, stat.S_IWOTH):
            os.fchmod(fd, mode)
            with processes.Child() as child:
                child.call(credentials.set_user)
                answers[stat.filemode(mode)] = residency.bits(
                    child.call(mincore.resident, region.addr, PAGES)
                )
        with processes.Child() as child:
            child.call(credentials.set_user)
            anonymous = child.call(_untouched)
    os.close(fd)
    assert own == "10000000", "the owner sees the one page that is there"
    assert answers == {"?r-----r--": ALL, "?-------w-": "10000000"}, (
        "all ones to whoever may not write, the truth to whoever may"
    )
    assert anonymous == NONE, "the truth about memory of one's own"


def _untouched():
    with mapping("private", PAGES) as region:
        return residency.mincore_bits(region)
