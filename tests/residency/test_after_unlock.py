# SPDX-License-Identifier: MIT
"""Unlocking takes the lock away and nothing else: pages, contents and mappings stay."""

import pytest

from helpers import syscalls
from helpers.memory import MAPPING_KINDS, mapping
from helpers.observe import maps, page_faults, residency, status
from helpers.syscalls import PAGE

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("lock:8", "smaps-flags", "mincore"),
    pytest.mark.claim("W16"),
    pytest.mark.source("munlock(2)"),
]

PAGES = 8
NONE, ALL = "0" * PAGES, "1" * PAGES
NO_FAULT = page_faults.Faults(0, 0)


@pytest.mark.parametrize("kind", MAPPING_KINDS)
@pytest.mark.detects("munlock-drops-pages")
def test_munlock_leaves_pages_resident(kind):
    """munlock leaves every page present with its contents; reading them causes no fault."""
    before = status.vmlck_pages()
    with mapping(kind, PAGES) as region:
        syscalls.mlock(region.addr, region.size)
        region.touch()
        syscalls.munlock(region.addr, region.size)
        assert residency.of(region) == residency.all_say(ALL), "every page is present"
        assert page_faults.faults_reading(region.addr, region.size) == NO_FAULT, (
            "reading does not fault"
        )
        assert region.first_bytes() == b"\xa5" * PAGES, "contents are as before"
        assert status.vmlck_pages() == before, "nothing is locked"
        assert maps.layout(region) == [(0, PAGES, "")], "no lo"


@pytest.mark.parametrize("kind", ["private", "memfd-private", "file-private"])
def test_memory_once_locked_is_written_without_faults(kind):
    """Private memory that was locked untouched and unlocked again is written without a fault."""
    with mapping(kind, PAGES) as region:
        syscalls.mlock(region.addr, region.size)
        syscalls.munlock(region.addr, region.size)
        assert page_faults.faults_writing(region.addr, region.size) == NO_FAULT, (
            "writing does not fault"
        )


@pytest.mark.needs("lock-all")
@pytest.mark.parametrize("flags", [1, 3], ids=["CURRENT", "CURRENT,FUTURE"])
@pytest.mark.detects("munlockall-drops-pages")
def test_munlockall_leaves_pages_resident(flags):
    """munlockall leaves what mlockall brought in; a mapping made afterwards has nothing present."""
    known = {1: syscalls.MCL_CURRENT, 3: syscalls.MCL_CURRENT | syscalls.MCL_FUTURE}
    with mapping("private", PAGES) as region, mapping("memfd-shared", PAGES) as shared:
        syscalls.mlockall(known[flags])
        syscalls.munlockall()
        seen = [residency.of(region), residency.of(shared)]
        with mapping("private", PAGES) as later:
            new = residency.of(later)
        assert seen == [residency.all_say(ALL)] * 2, "every page is present"
        assert page_faults.faults_writing(region.addr, region.size) == NO_FAULT, (
            "writing does not fault"
        )
        assert new == residency.all_say(NONE), "and nothing of a new mapping"


def test_munlock_of_part_leaves_all_resident():
    """munlock of the middle leaves all pages present, locked or not."""
    with mapping("private", PAGES, flags=syscalls.MAP_LOCKED) as region:
        syscalls.munlock(region.at(2), 3 * PAGE)
        assert residency.of(region) == residency.all_say(ALL), "every page is present"


def test_munlock_of_fault_locked_memory_keeps_what_was_touched():
    """munlock of fault-locked memory leaves the touched pages present and brings in no other; a
    touch afterwards brings in its page alone."""
    with mapping("private", PAGES) as region:
        syscalls.mlock2(region.addr, region.size, syscalls.MLOCK_ONFAULT)
        region.sub(1, 1).touch()
        syscalls.munlock(region.addr, region.size)
        assert residency.of(region) == residency.all_say("01000000"), "the touched page"
        region.sub(6, 1).touch()
        assert residency.of(region) == residency.all_say("01000010"), "and the next one touched"


@pytest.mark.source("kselftest mincore_selftest")
def test_unlocked_pages_can_be_dropped_again():
    """After munlock MADV_DONTNEED drops pages as if they had never been locked."""
    with mapping("private", PAGES) as region:
        syscalls.mlock(region.addr, region.size)
        region.touch()
        syscalls.munlock(region.at(0), 5 * PAGE)
        syscalls.madvise(region.addr, 5 * PAGE, syscalls.MADV_DONTNEED)
        assert residency.of(region) == residency.all_say("00000111"), "five pages dropped"
        assert region.first_bytes() == b"\0" * 5 + b"\xa5" * 3, "zeros in their place"
