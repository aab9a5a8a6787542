# SPDX-License-Identifier: MIT
"""Memory that cannot be read in, or not by its owner: PROT_NONE, past the end of a file,
write-only, execute-only.

A lock whose population fails reports ENOMEM, but its mark and its count stay.
"""

import os

import pytest

from helpers import memory, syscalls
from helpers.memory import locks, mapping
from helpers.observe import maps, pagemap, status
from helpers.pytest_plugin.parametrize import by_entry_point
from helpers.syscalls import PAGE, PROT_EXEC, PROT_NONE, PROT_READ, PROT_WRITE

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("smaps-flags", "lock:8"),
    pytest.mark.source("mlock(2) ERRORS"),
]

MIXED = pytest.mark.parametrize(
    ("calls", "how"),
    [(syscalls.GLIBC, ("mlock",)), (syscalls.RAW, ("mlock2", 0))],
    ids=["libc mlock", "syscall mlock2"],
)
ANONYMOUS = pytest.mark.parametrize("kind", ["private", "shared"])


def shape(region):
    return maps.locks(region.addr, region.end, PAGE)


@MIXED
@ANONYMOUS
def test_lock_of_prot_none_reports_enomem_but_locks(calls, how, kind):
    """mlock of PROT_NONE memory gives ENOMEM, and yet the range is locked and counted with
    nothing resident; munlock undoes it."""
    with mapping(kind, 4, prot=PROT_NONE) as region:
        before = status.vmlck_pages()
        seen = syscalls.outcome(locks.issue, calls, how, region.addr, region.size)
        counted = status.vmlck_pages() - before
        assert seen == "ENOMEM", "the pages cannot be populated"
        assert shape(region) == [(0, 4, "lo")], "the range is lo all the same"
        assert counted == 4, "VmLck grows by its length"
        assert pagemap.present_count(region.addr, 4) == 0, "nothing is resident"
        undone = syscalls.outcome(calls.munlock, region.addr, region.size)
        assert undone == "ok", "munlock needs no access"
        assert shape(region) == [(0, 4, "")], "no lo any more"
        assert status.vmlck_pages() == before, "VmLck is back where it was"


@by_entry_point()
@pytest.mark.deviation("onfault-populates-prot-none")
@pytest.mark.detects("mlock-onfault-protnone-enomem")
def test_onfault_lock_of_prot_none_succeeds(calls):
    """mlock2(MLOCK_ONFAULT) of PROT_NONE memory succeeds: there is nothing to populate."""
    with mapping("private", 4, prot=PROT_NONE) as region:
        before = status.vmlck_pages()
        seen = syscalls.outcome(calls.mlock2, region.addr, region.size, syscalls.MLOCK_ONFAULT)
        counted = status.vmlck_pages() - before
        assert shape(region) == [(0, 4, "lo lf")], "the range is locked on fault"
        assert counted == 4, "VmLck grows by its length"
        assert pagemap.present_count(region.addr, 4) == 0, "nothing is resident"
        assert seen == "ok", "nothing is to be populated, so nothing fails"


@pytest.mark.parametrize("inner", [(2, 2), (0, 2), (4, 2)], ids=["middle", "start", "end"])
@pytest.mark.detects("mlock-protnone-succeeds", "mlock-protnone-not-locked")
def test_lock_across_prot_none_stops_populating_there(inner):
    """A lock over accessible and PROT_NONE memory gives ENOMEM and locks all of it; only what
    lies before the inaccessible part is populated."""
    first, pages = inner
    with mapping("private", 6) as region:
        syscalls.mprotect(region.at(first), pages * PAGE, PROT_NONE)
        before = status.vmlck_pages()
        seen = syscalls.outcome(syscalls.mlock, region.addr, region.size)
        counted = status.vmlck_pages() - before
        assert seen == "ENOMEM", "a part cannot be populated"
        assert shape(region) == [(0, 6, "lo")], "every part is lo"
        assert counted == 6, "VmLck grows by the whole length"
        assert pagemap.present(region.addr, 6) == [page < first for page in range(6)], (
            "only the pages before the inaccessible part are resident"
        )


@pytest.mark.parametrize("kind", ["private", "shared", "memfd-private", "file-shared"])
def test_lock_of_write_only_memory_populates(kind):
    """mlock of PROT_WRITE memory, which its owner cannot read, populates it (LTP mlock04)."""
    with mapping(kind, 4, prot=PROT_WRITE) as region:
        before = status.vmlck_pages()
        seen = syscalls.outcome(syscalls.mlock, region.addr, region.size)
        counted = status.vmlck_pages() - before
        assert seen == "ok", "no read permission is needed"
        assert shape(region) == [(0, 4, "lo")], "the range is lo"
        assert counted == 4, "VmLck grows by its length"
        assert pagemap.present_count(region.addr, 4) == 4, "all of it is resident"


@ANONYMOUS
def test_lock_of_execute_only_memory(kind):
    """mlock of PROT_EXEC memory populates it, unless the processor keeps it from being read by
    a protection key: then ENOMEM, and the lock stays."""
    with mapping(kind, 4, prot=PROT_EXEC) as region:
        # x86 with pkeys and powerpc with hash MMU give execute-only memory a key without
        # read access, which population respects (arch_vma_access_permitted()).
        keyed = maps.at(region.addr).field_kb("ProtectionKey") != 0
        before = status.vmlck_pages()
        seen = syscalls.outcome(syscalls.mlock, region.addr, region.size)
        counted = status.vmlck_pages() - before
        assert seen == ("ENOMEM" if keyed else "ok"), "no read permission is needed"
        assert shape(region) == [(0, 4, "lo")], "the range is lo"
        assert counted == 4, "VmLck grows by its length"
        assert pagemap.present_count(region.addr, 4) == (0 if keyed else 4), "all is resident"


@ANONYMOUS
def test_lock_of_read_only_memory_populates(kind):
    """mlock of PROT_READ memory that was never touched maps every page of it."""
    with mapping(kind, 4, prot=PROT_READ) as region:
        seen = syscalls.outcome(syscalls.mlock, region.addr, region.size)
        assert seen == "ok", "no write permission is needed"
        assert shape(region) == [(0, 4, "lo")], "the range is lo"
        assert pagemap.present_count(region.addr, 4) == 4, "all of it is mapped to memory"


FILE_PAGES = 3


@pytest.fixture
def short_file():
    """A memfd that ends one byte into its third page."""
    fd = memory.memfd(2 * PAGE + 1)
    yield fd
    os.close(fd)


BEYOND = pytest.mark.parametrize("kind", ["memfd-private", "memfd-shared"])


@MIXED
@BEYOND
@pytest.mark.detects("mlock-past-eof-succeeds", "mlock-populate-efault")
def test_lock_past_end_of_file_reports_enomem_but_locks(calls, how, kind, short_file):
    """mlock of a file mapping that reaches past the end of the file gives ENOMEM; all of it is
    locked and counted, and the part in the file, its last page included, is resident."""
    with mapping(kind, 6, fd=short_file) as region:
        before = status.vmlck_pages()
        seen = syscalls.outcome(locks.issue, calls, how, region.addr, region.size)
        counted = status.vmlck_pages() - before
        assert seen == "ENOMEM", "there is nothing to read in past the end"
        assert shape(region) == [(0, 6, "lo")], "all of it is lo"
        assert counted == 6, "VmLck grows by the whole length"
        assert pagemap.present(region.addr, 6) == [p < FILE_PAGES for p in range(6)], (
            "the pages of the file are resident"
        )


@BEYOND
def test_lock_up_to_end_of_file_succeeds(kind, short_file):
    """mlock of exactly the pages a file reaches into succeeds."""
    with mapping(kind, 6, fd=short_file) as region:
        seen = syscalls.outcome(syscalls.mlock, region.addr, 2 * PAGE + 1)
        assert seen == "ok", "every page holds a byte of the file"
        assert shape(region) == [(0, 3, "lo"), (3, 6, "")], "those pages are lo"
        assert pagemap.present(region.addr, 6) == [p < FILE_PAGES for p in range(6)], "and resident"


@BEYOND
def test_onfault_lock_past_end_of_file_succeeds(kind, short_file):
    """mlock2(MLOCK_ONFAULT) past the end of a file succeeds and populates nothing."""
    with mapping(kind, 6, fd=short_file) as region:
        seen = syscalls.outcome(syscalls.mlock2, region.addr, region.size, syscalls.MLOCK_ONFAULT)
        assert seen == "ok", "nothing is to be populated, so nothing fails"
        assert shape(region) == [(0, 6, "lo lf")], "all of it is locked on fault"
        assert pagemap.present_count(region.addr, 6) == 0, "nothing is resident"


@BEYOND
def test_map_locked_past_end_of_file_succeeds(kind, short_file):
    """mmap(MAP_LOCKED) past the end of a file succeeds: it does not report what could not be
    populated."""
    before = status.vmlck_pages()
    with mapping(kind, 6, fd=short_file, flags=syscalls.MAP_LOCKED) as region:
        counted = status.vmlck_pages() - before
        assert shape(region) == [(0, 6, "lo")], "all of it is lo"
        assert counted == 6, "VmLck grows by the whole length"
        assert pagemap.present(region.addr, 6) == [p < FILE_PAGES for p in range(6)], (
            "the pages of the file are resident"
        )


@pytest.mark.detects("maplocked-fails-unpopulated")
def test_map_locked_prot_none_succeeds():
    """mmap(MAP_LOCKED) of PROT_NONE memory succeeds, locks and counts it; making it accessible
    populates it."""
    before = status.vmlck_pages()
    with mapping("private", 4, prot=PROT_NONE, flags=syscalls.MAP_LOCKED) as region:
        counted = status.vmlck_pages() - before
        absent = pagemap.present_count(region.addr, 4)
        assert shape(region) == [(0, 4, "lo")], "the range is lo"
        assert counted == 4, "VmLck grows by its length"
        assert absent == 0, "nothing is resident"
        syscalls.mprotect(region.addr, region.size, syscalls.PROT_RW)
        assert pagemap.present_count(region.addr, 4) == 4, "mprotect populates it"
        assert status.vmlck_pages() - before == 4, "and counts nothing anew"
