# SPDX-License-Identifier: MIT
"""Fault-locked memory: MLOCK_ONFAULT and MCL_ONFAULT populate nothing, a touch one page."""

import pytest

from helpers import syscalls
from helpers.memory import MAPPING_KINDS, mapping
from helpers.observe import maps, page_faults, residency, status
from helpers.syscalls import PAGE

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("lock:8", "smaps-flags", "mincore"),
    pytest.mark.source("mlock2(2) MLOCK_ONFAULT"),
]

PAGES = 8
NONE, ALL = "0" * PAGES, "1" * PAGES


def mincore_of(kind, pages):
    """What mincore says of a file's pages is what the page cache holds: all of our file."""
    return ALL if kind.startswith("file") else pages


@pytest.mark.parametrize("kind", MAPPING_KINDS)
@pytest.mark.claim("W17")
@pytest.mark.detects("mlock2-onfault-lost", "onfault-populates", "pagemap-all-present")
def test_fault_lock_populates_nothing(kind):
    """mlock2(MLOCK_ONFAULT) counts all of an untouched range and brings in no page of it."""
    before = status.vmlck_pages()
    with mapping(kind, PAGES) as region:
        syscalls.mlock2(region.addr, region.size, syscalls.MLOCK_ONFAULT)
        assert residency.of(region) == {"pagemap": NONE, "mincore": mincore_of(kind, NONE)}, (
            "no page is present"
        )
        assert status.vmlck_pages() - before == PAGES, "VmLck counts the whole range"
        assert maps.layout(region) == [(0, PAGES, "lo lf")], "lo lf"
        vma = maps.at(region.addr)
        assert (vma.field_kb("Rss"), vma.field_kb("Locked")) == (0, 0), "nothing is resident"


@pytest.mark.parametrize("kind", MAPPING_KINDS)
@pytest.mark.claim("W17")
def test_write_to_fault_locked_memory_populates_that_page_only(kind):
    """A write to fault-locked memory brings in the page written, and VmLck does not move."""
    with mapping(kind, PAGES) as region:
        syscalls.mlock2(region.addr, region.size, syscalls.MLOCK_ONFAULT)
        before = status.vmlck_pages()
        region.sub(4, 1).touch()
        assert residency.of(region) == {
            "pagemap": "00001000",
            "mincore": mincore_of(kind, "00001000"),
        }, "page 4 is present, no other"
        region.sub(7, 1).touch()
        assert residency.mapped_bits(region) == "00001001", "and page 7"
        assert status.vmlck_pages() == before, "VmLck is as before"
        assert maps.layout(region) == [(0, PAGES, "lo lf")], "lo lf"


@pytest.mark.parametrize("kind", ["private", "shared", "memfd-private", "memfd-shared"])
def test_read_of_fault_locked_memory_populates_that_page_only(kind):
    """A read of fault-locked memory that is nowhere cached brings in the page read."""
    with mapping(kind, PAGES) as region:
        syscalls.mlock2(region.addr, region.size, syscalls.MLOCK_ONFAULT)
        assert syscalls.load(region.at(2), 1) == b"\0", "new memory reads zero"
        assert residency.of(region) == residency.all_say("00100000"), "page 2 is present, no other"


@pytest.mark.parametrize("kind", MAPPING_KINDS)
def test_fault_lock_keeps_present_pages_and_adds_none(kind):
    """mlock2(MLOCK_ONFAULT) of partly present memory keeps those pages and brings in no other."""
    with mapping(kind, PAGES) as region:
        region.sub(0, 1).touch()
        region.sub(3, 2).touch()
        syscalls.mlock2(region.addr, region.size, syscalls.MLOCK_ONFAULT)
        assert residency.mapped_bits(region) == "10011000", "as before the lock"
        syscalls.mlock2(region.addr, region.size, syscalls.MLOCK_ONFAULT)
        assert residency.mapped_bits(region) == "10011000", "and after another one"
        assert region.sub(3, 2).first_bytes() == b"\xa5\xa5", "contents are kept"


@pytest.mark.claim("W3")
def test_fault_locked_memory_faults_once_a_page():
    """The first write to each page of fault-locked memory faults, the second does not: such a
    lock does not spare the first fault."""
    with mapping("private", PAGES) as region:
        syscalls.mlock2(region.addr, region.size, syscalls.MLOCK_ONFAULT)
        first = page_faults.faults_writing(region.addr, region.size)
        again = page_faults.faults_writing(region.addr, region.size)
        assert first == page_faults.Faults(PAGES, 0), "one minor fault a page"
        assert again == page_faults.Faults(0, 0), "no fault afterwards"


@pytest.mark.parametrize("kind", ["private", "memfd-private"])
def test_mprotect_of_fault_locked_memory_populates_nothing(kind):
    """mprotect that makes fault-locked memory writable brings in nothing."""
    with mapping(kind, PAGES, prot=syscalls.PROT_NONE) as region:
        syscalls.outcome(syscalls.mlock2, region.addr, region.size, syscalls.MLOCK_ONFAULT)
        syscalls.mprotect(region.addr, region.size, syscalls.PROT_RW)
        assert residency.of(region) == residency.all_say(NONE), "no page is present"
        assert maps.layout(region) == [(0, PAGES, "lo lf")], "lo lf"
        region.sub(6, 1).touch()
        assert residency.of(region) == residency.all_say("00000010"), "the touched page is"


@pytest.mark.needs("populate")
@pytest.mark.parametrize("advice", ["MADV_POPULATE_READ", "MADV_POPULATE_WRITE"])
@pytest.mark.parametrize("kind", ["private", "memfd-shared"])
def test_madvise_populates_fault_locked_memory(kind, advice):
    """MADV_POPULATE_READ and MADV_POPULATE_WRITE bring in fault-locked memory where told to."""
    with mapping(kind, PAGES) as region:
        syscalls.mlock2(region.addr, region.size, syscalls.MLOCK_ONFAULT)
        syscalls.madvise(region.at(1), 3 * PAGE, getattr(syscalls, advice))
        assert residency.of(region) == residency.all_say("01110000"), "three pages are present"
        assert maps.layout(region) == [(0, PAGES, "lo lf")], "lo lf"


ONFAULT_ROUTES = {
    "CURRENT,ONFAULT": syscalls.MCL_CURRENT | syscalls.MCL_ONFAULT,
    "CURRENT,FUTURE,ONFAULT": syscalls.MCL_CURRENT | syscalls.MCL_FUTURE | syscalls.MCL_ONFAULT,
}


@pytest.mark.parametrize("kind", ["private", "memfd-shared", "file-private"])
@pytest.mark.parametrize("flags", ONFAULT_ROUTES.values(), ids=ONFAULT_ROUTES)
@pytest.mark.needs("lock-all")
@pytest.mark.source("mlockall(2) MCL_ONFAULT")
def test_mlockall_current_onfault_populates_nothing(flags, kind):
    """mlockall(MCL_CURRENT|MCL_ONFAULT) marks what is mapped lo and lf and brings in nothing."""
    with mapping(kind, PAGES) as region:
        region.sub(5, 1).touch()
        syscalls.mlockall(flags)
        seen = residency.mapped_bits(region)
        layout = maps.layout(region)
        region.sub(0, 1).touch()
        later = residency.mapped_bits(region)
        syscalls.munlockall()
        assert seen == "00000100", "only the page touched before is present"
        assert layout == [(0, PAGES, "lo lf")], "the mapping is fault-locked"
        assert later == "10000100", "a touch brings in its page"


@pytest.mark.parametrize("later", [0, syscalls.MCL_FUTURE], ids=["CURRENT", "CURRENT,FUTURE"])
@pytest.mark.parametrize("kind", ["private", "memfd-shared", "file-private"])
@pytest.mark.needs("lock-all")
@pytest.mark.source("mlockall(2) MCL_ONFAULT")
def test_mlockall_current_populates_what_was_fault_locked(kind, later):
    """mlockall(MCL_CURRENT) after MCL_CURRENT|MCL_ONFAULT takes lf away and brings in all."""
    with mapping(kind, PAGES) as region:
        syscalls.mlockall(syscalls.MCL_CURRENT | syscalls.MCL_ONFAULT)
        absent = residency.mapped_bits(region)
        syscalls.mlockall(syscalls.MCL_CURRENT | later)
        seen = residency.of(region)
        layout = maps.layout(region)
        syscalls.munlockall()
        assert absent == NONE, "fault-locked: no page is present"
        assert seen == residency.all_say(ALL), "every page is present"
        assert layout == [(0, PAGES, "lo")], "no longer lf"


NEW = {
    "plain": 0,
    "MAP_LOCKED": syscalls.MAP_LOCKED,
    "MAP_POPULATE": syscalls.MAP_POPULATE,
    "MAP_LOCKED,POPULATE": syscalls.MAP_LOCKED | syscalls.MAP_POPULATE,
}


@pytest.mark.parametrize("flags", NEW.values(), ids=NEW)
@pytest.mark.parametrize("kind", ["private", "memfd-shared"])
@pytest.mark.needs("lock-all")
@pytest.mark.source("mlockall(2) MCL_FUTURE, MCL_ONFAULT")
def test_mapping_made_under_future_onfault_is_not_populated(kind, flags):
    """A mapping made under MCL_FUTURE|MCL_ONFAULT is lo and lf with nothing present, even by
    MAP_LOCKED or MAP_POPULATE; a touch brings in its page."""
    syscalls.mlockall(syscalls.MCL_FUTURE | syscalls.MCL_ONFAULT)
    with mapping(kind, PAGES, flags=flags) as region:
        seen = residency.mapped_bits(region)
        layout = maps.layout(region)
        region.sub(1, 1).touch()
        later = residency.mapped_bits(region)
        syscalls.munlockall()
        assert seen == NONE, "no page is present"
        assert layout == [(0, PAGES, "lo lf")], "the mapping is fault-locked"
        assert later == "01000000", "a touch brings in its page"


@pytest.mark.needs("lock-all")
@pytest.mark.source("mlockall(2) MCL_ONFAULT")
def test_future_onfault_after_full_mlockall_concerns_new_mappings_only():
    """mlockall(MCL_FUTURE|MCL_ONFAULT) after MCL_CURRENT|MCL_FUTURE leaves what is mapped fully
    locked; a mapping made afterwards is fault-locked, and full again after MCL_FUTURE alone."""
    with mapping("private", PAGES) as old:
        syscalls.mlockall(syscalls.MCL_CURRENT | syscalls.MCL_FUTURE)
        with mapping("private", PAGES) as between:
            syscalls.mlockall(syscalls.MCL_FUTURE | syscalls.MCL_ONFAULT)
            with mapping("private", PAGES) as new:
                syscalls.mlockall(syscalls.MCL_FUTURE)
                with mapping("private", PAGES) as last:
                    regions = [old, between, new, last]
                    seen = [residency.mapped_bits(r) for r in regions]
                    locks = [maps.layout(r) for r in regions]
                    syscalls.munlockall()
    full, lf = [(0, PAGES, "lo")], [(0, PAGES, "lo lf")]
    assert locks == [full, full, lf, full], "only the third mapping is fault-locked"
    assert seen == [ALL, ALL, NONE, ALL], "and it alone has nothing present"
