# SPDX-License-Identifier: MIT
"""Whose page a lock leaves mapped: a private copy, the file's own, or the zero page."""

import os

import pytest

from helpers import syscalls
from helpers.memory import mapping
from helpers.observe import lru_batches, maps, page_faults, page_flags, pagemap, residency
from helpers.syscalls import PAGE

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("lock:8"),
    pytest.mark.claim("W6"),
    pytest.mark.source("mm/gup.c populate_vma_page_range"),
]

PAGES = 8
NONE, ALL = "0" * PAGES, "1" * PAGES
NO_FAULT = page_faults.Faults(0, 0)
R, RW = syscalls.PROT_READ, syscalls.PROT_RW
ONFAULT = syscalls.MLOCK_ONFAULT


def overwrite(region):
    """Change every page of the file behind a mapping."""
    for page in range(region.pages):
        os.pwrite(region.fd, b"\xee", page * PAGE)


CHANGED = b"\xee" * PAGES
ROUTES = {
    "mlock": (0, lambda r: syscalls.mlock(r.addr, r.size)),
    "mlock2": (0, lambda r: syscalls.mlock2(r.addr, r.size, 0)),
    "MAP_LOCKED": (syscalls.MAP_LOCKED, lambda r: None),
    "MAP_POPULATE": (syscalls.MAP_POPULATE, lambda r: None),
}


@pytest.mark.parametrize("kind", ["file-private", "memfd-private"])
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.source("kselftest map_populate")
@pytest.mark.detects("mlock-cow-not-broken")
def test_population_copies_pages_of_private_file(route, kind):
    """Population of a private writable file mapping, locked or not, copies each page at once with
    its contents: a later write to the file does not show."""
    flags, lock = ROUTES[route]
    with mapping(kind, PAGES, flags=flags) as region:
        contents = os.pread(region.fd, 1, 2 * PAGE)
        lock(region)
        assert residency.anon_bits(region) == ALL, "every page is a copy of the process's own"
        overwrite(region)
        assert syscalls.load(region.at(2), 1) == contents, "the contents are the file's of before"
        assert b"\xee" not in region.first_bytes(), "a write to the file does not show in any page"


@pytest.mark.parametrize(
    ("prot", "lock"),
    [(RW, ONFAULT), (RW, None), (R, 0), (R, None)],
    ids=["writable-fault-locked", "writable-unlocked", "read-only-locked", "read-only-unlocked"],
)
@pytest.mark.parametrize("kind", ["file-private", "memfd-private"])
def test_read_of_private_file_copies_nothing(kind, prot, lock):
    """A private file mapping that is only read keeps the file's pages, fault-locked or locked
    read-only too: a later write to the file shows."""
    with mapping(kind, PAGES, prot=prot) as region:
        if lock is not None:
            syscalls.mlock2(region.addr, region.size, lock)
        region.read()
        assert (residency.mapped_bits(region), residency.anon_bits(region)) == (ALL, NONE), (
            "every page is present and the file's"
        )
        overwrite(region)
        assert region.first_bytes() == CHANGED, "a write to the file shows in every page"


@pytest.mark.parametrize("kind", ["file-private", "memfd-private"])
@pytest.mark.source("mm/mprotect.c mprotect_fixup")
@pytest.mark.detects("mprotect-write-no-cow", "pagemap-file-bit-missing")
def test_mprotect_copies_pages_of_locked_read_only_file(kind):
    """mprotect that makes a locked read-only private file mapping writable copies its pages then
    and there: writes do not fault, and leave the file alone."""
    with mapping(kind, PAGES, prot=R) as region:
        syscalls.mlock(region.addr, region.size)
        overwrite(region)
        assert residency.anon_bits(region) == NONE, "the file's pages before mprotect"
        syscalls.mprotect(region.addr, region.size, RW)
        assert residency.anon_bits(region) == ALL, "a copy of each page after it"
        assert region.first_bytes() == CHANGED, "with the file's contents of that moment"
        assert page_faults.faults_writing(region.addr, region.size) == NO_FAULT, (
            "writing does not fault"
        )
        assert os.pread(region.fd, 1, 0) == b"\xee", "the file is as it was"


@pytest.mark.parametrize("kind", ["file-private", "memfd-private", "private"])
def test_mprotect_copies_only_the_part_made_writable(kind):
    """mprotect of some pages of a locked read-only private mapping copies just those."""
    with mapping(kind, PAGES, prot=R) as region:
        syscalls.mlock(region.addr, region.size)
        syscalls.mprotect(region.at(2), 3 * PAGE, RW)
        rss = sum(v.field_kb("Anonymous") for v in maps.smaps(low=region.addr, high=region.end))
        assert rss == 3 * syscalls.PAGE_KB, "three pages are copies"
        assert page_faults.faults_writing(region.at(2), 3 * PAGE) == NO_FAULT, (
            "writing them does not fault"
        )


@pytest.mark.needs("smaps-flags", "mincore")
def test_lock_of_read_only_anonymous_memory_maps_the_zero_page():
    """mlock of read-only anonymous memory maps the zero page everywhere: present and locked, but
    not one page of memory is taken; mprotect then takes them all, and writes do not fault."""
    with mapping("private", PAGES, prot=R) as region:
        syscalls.mlock(region.addr, region.size)
        assert residency.of(region) == residency.all_say(ALL), "every page is present"
        vma = maps.at(region.addr)
        seen = (vma.locked, vma.field_kb("Rss"), vma.field_kb("Locked"))
        assert seen == (True, 0, 0), "lo, and neither Rss nor Locked counts the zero page"
        syscalls.mprotect(region.addr, region.size, RW)
        vma = maps.at(region.addr)
        seen = (vma.field_kb("Anonymous"), vma.field_kb("Locked"))
        assert seen == (vma.kb, vma.kb), "pages of its own, all locked, from mprotect on"
        assert page_faults.faults_writing(region.addr, region.size) == NO_FAULT, (
            "writing does not fault"
        )


@pytest.mark.needs("kpageflags")
def test_zero_page_is_not_mlocked():
    """The zero page that a lock of read-only memory maps is shared by everybody and never gets
    PG_mlocked; the pages that mprotect takes in its place do."""
    with mapping("private", PAGES, prot=R) as region:
        syscalls.mlock(region.addr, region.size)
        pages = page_flags.snapshot(region.addr, PAGES)
        zero = residency.bits(pages.bits(page_flags.ZERO_PAGE))
        assert (zero, residency.bits(pages.mlocked)) == (ALL, NONE), "zero pages, not PG_mlocked"
        syscalls.mprotect(region.addr, region.size, RW)
        pages = page_flags.snapshot(region.addr, PAGES)
        zero = residency.bits(pages.bits(page_flags.ZERO_PAGE))
        assert (zero, residency.bits(pages.mlocked)) == (NONE, ALL), "own pages, PG_mlocked"


@pytest.mark.needs("smaps-flags")
@pytest.mark.parametrize("lock", [0, ONFAULT], ids=["full", "on-fault"])
@pytest.mark.claim("W3")
def test_lock_over_the_zero_page(lock):
    """mlock of writable memory of which only zero pages are mapped takes pages of its own at
    once; mlock2(MLOCK_ONFAULT) leaves the zero pages, and each first write faults."""
    with mapping("private", PAGES) as region:
        region.read()
        assert maps.at(region.addr).field_kb("Anonymous") == 0, "reads map the zero page only"
        syscalls.mlock2(region.addr, region.size, lock)
        own = maps.at(region.addr).field_kb("Anonymous") // syscalls.PAGE_KB
        faults = page_faults.faults_writing(region.addr, region.size)
        expected = (0, page_faults.Faults(PAGES, 0)) if lock else (PAGES, NO_FAULT)
        assert (own, faults) == expected, "own pages after the lock, and faults of the first write"


@pytest.mark.needs("forced-write")
@pytest.mark.parametrize("kind", ["file-private", "memfd-private"])
def test_forced_write_to_locked_read_only_file_copies_that_page(kind):
    """A write through /proc/self/mem to a locked read-only private file mapping copies that page
    alone; it stays present and locked, and the file is left alone."""
    with mapping(kind, PAGES, prot=R) as region:
        syscalls.mlock(region.addr, region.size)
        before = os.pread(region.fd, 1, 3 * PAGE)
        syscalls.write_proc_self_mem(region.at(3), b"\xdd")
        assert residency.mapped_bits(region) == ALL, "every page is present"
        assert residency.anon_bits(region) == "00010000", "page 3 is a copy"
        assert syscalls.load(region.at(3), 1) == b"\xdd", "and holds what was written"
        assert os.pread(region.fd, 1, 3 * PAGE) == before, "the file does not"


@pytest.mark.needs("forced-write", "kpageflags")
@pytest.mark.usefixtures("one_cpu")
def test_forced_write_moves_the_mark_to_the_copy():
    """A write through /proc/self/mem to a locked read-only private page leaves PG_mlocked on the
    copy, and takes it from the file's page, which nobody maps now."""
    # The file's page loses its mark in a batch of this CPU, drained below.
    with mapping("memfd-private", PAGES, prot=R) as region:
        syscalls.mlock(region.addr, region.size)
        old = pagemap.pfns(region.addr, PAGES)
        syscalls.write_proc_self_mem(region.at(3), b"\xdd")
        lru_batches.mlock_drain_local()
        pages = page_flags.snapshot(region.addr, PAGES)
        assert residency.bits(pages.mlocked) == ALL, "every page mapped is PG_mlocked"
        assert residency.bits(a != b for a, b in zip(old, pages.pfns)) == "00010000", (
            "page 3 is another page than before"
        )
        with mapping("memfd-shared", PAGES, fd=region.fd, prot=R) as other:
            other.read()
            pages = page_flags.snapshot(other.addr, PAGES)
            assert residency.bits(pages.mlocked) == "11101111", "the file's page 3 is not marked"
