# SPDX-License-Identifier: MIT
"""Locked file pages: read in by the lock, kept in the page cache, lost when the file is truncated.

What else takes them is in test_invalidated_files.py and test_served_files.py.
"""

import os
from contextlib import ExitStack, contextmanager

import pytest

from helpers import memory, processes, syscalls
from helpers.memory import mapping
from helpers.observe import maps, page_faults, residency, status
from helpers.requirements.inconclusive import inconclusive
from helpers.syscalls import PAGE

pytestmark = [pytest.mark.share_process, pytest.mark.needs("lock:8", "smaps-flags", "mincore")]

PAGES = 8
NONE, ALL = "0" * PAGES, "1" * PAGES
NO_FAULT = page_faults.Faults(0, 0)


@contextmanager
def owned(fd):
    """The descriptor, closed afterwards."""
    try:
        yield fd
    finally:
        os.close(fd)


def evict(fd):
    """Drop a clean file's pages that nobody maps; inconclusive if they do not go."""
    os.fdatasync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    with mapping("file-shared", PAGES, fd=fd) as look:
        left = residency.mincore_bits(look)
    if left != NONE:
        inconclusive(f"the file's pages stayed in the page cache after eviction: {left}")


@pytest.mark.needs("disk-file")
@pytest.mark.claim("W3")
@pytest.mark.parametrize("kind", ["file-shared", "file-private"])
@pytest.mark.detects("mlock-file-not-populated")
@pytest.mark.source("mlock(2) DESCRIPTION")
def test_lock_reads_file_in_from_disk(kind):
    """mlock of a file mapping whose pages are on disk only takes the faults itself: every page is
    present, and reading it causes none, major or minor; unlocked, the first read waits."""
    with owned(memory.scratch_file(PAGES)) as fd:
        evict(fd)
        with mapping(kind, PAGES, fd=fd) as control:
            unlocked = page_faults.faults_reading(control.addr, control.size)
        evict(fd)
        with mapping(kind, PAGES, fd=fd) as region:
            page_faults.warm_up()
            at_lock = page_faults.faults_during(syscalls.mlock, region.addr, region.size)
            assert residency.of(region) == residency.all_say(ALL), "every page is present"
            assert page_faults.faults_reading(region.addr, region.size) == NO_FAULT, (
                "no fault afterwards"
            )
            assert region.first_bytes() == bytes(range(PAGES)), "the file's contents"
        # Population does not mark its second try FAULT_FLAG_TRIED (mm/gup.c __mm_populate), so
        # its wait for the disk counts as a minor fault.
        assert at_lock != NO_FAULT, "the lock took the faults"
        assert unlocked.major >= 1, "a read of unlocked memory waited for the disk"


@pytest.mark.needs("disk-file")
@pytest.mark.parametrize("kind", ["file-shared", "file-private"])
@pytest.mark.source("mmap(2) MAP_LOCKED")
def test_map_locked_reads_file_in_from_disk(kind):
    """mmap(MAP_LOCKED) of a file whose pages are on disk only brings them all in."""
    with owned(memory.scratch_file(PAGES)) as fd:
        evict(fd)
        with mapping(kind, PAGES, fd=fd, flags=syscalls.MAP_LOCKED) as region:
            assert residency.of(region) == residency.all_say(ALL), "every page is present"
            assert page_faults.faults_reading(region.addr, region.size) == NO_FAULT, (
                "no fault afterwards"
            )


@pytest.mark.needs("disk-file")
@pytest.mark.claim("W3", "W17")
@pytest.mark.source("mlock2(2) MLOCK_ONFAULT")
def test_fault_lock_reads_nothing_from_disk():
    """mlock2(MLOCK_ONFAULT) of a file whose pages are on disk only leaves them there: the first
    touch waits for the disk."""
    with owned(memory.scratch_file(PAGES)) as fd:
        evict(fd)
        with mapping("file-shared", PAGES, fd=fd) as region:
            syscalls.mlock2(region.addr, region.size, syscalls.MLOCK_ONFAULT)
            seen = residency.of(region)
            touch = page_faults.faults_reading(region.addr, region.size)
        assert seen == residency.all_say(NONE), "neither mapped nor in the page cache"
        assert touch.major >= 1, "a read of it waits for the disk"


@pytest.mark.needs("disk-file")
@pytest.mark.source("posix_fadvise(2) POSIX_FADV_DONTNEED")
@pytest.mark.parametrize("kind", ["file-shared", "memfd-shared"])
def test_fadvise_keeps_locked_file_pages(kind):
    """posix_fadvise(POSIX_FADV_DONTNEED) leaves locked pages of a file where they are, as it does
    a memfd's; the rest of the file goes."""
    on_disk = kind == "file-shared"
    with owned((memory.scratch_file(PAGES)) if on_disk else memory.memfd(PAGES * PAGE)) as fd:
        with mapping(kind, PAGES, fd=fd) as look, mapping(kind, 4, fd=fd) as region:
            if not on_disk:
                os.pwrite(fd, b"x" * (PAGES * PAGE), 0)
            syscalls.mlock(region.addr, region.size)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            kept, cache = residency.mapped_bits(region), residency.mincore_bits(look)
            again = page_faults.faults_reading(region.addr, region.size)
        if on_disk and "1" in cache[4:]:
            inconclusive(f"the pages that nobody locks stayed in the page cache: {cache}")
        assert kept == "1111", "the locked pages are mapped still"
        assert cache == ("11110000" if on_disk else ALL), "and they alone are left of a file"
        assert again == NO_FAULT, "reading them does not fault"


def short(kind, size):
    """A descriptor for a mapping of PAGES pages, with ``size`` bytes of contents."""
    if kind.startswith("memfd"):
        return memory.memfd(size)
    fd = memory.scratch_file(-(-size // PAGE))
    os.ftruncate(fd, size)
    return fd


PAST_END = pytest.mark.parametrize(
    "kind", ["memfd-private", "memfd-shared", "file-private", "file-shared"]
)


@PAST_END
@pytest.mark.source("mlock(2) ERRORS ENOMEM")
def test_lock_past_end_of_file(kind):
    """mlock of a mapping that reaches past the end of its file gives ENOMEM, with everything marked
    and counted, and the pages of the file present, the incomplete last one too."""
    before = status.vmlck_pages()
    with owned(short(kind, 4 * PAGE + 1)) as fd, mapping(kind, PAGES, fd=fd) as region:
        assert syscalls.outcome(syscalls.mlock, region.addr, region.size) == "ENOMEM", (
            "mlock's answer"
        )
        assert residency.mapped_bits(region) == "11111000", "five pages are the file's"
        assert maps.layout(region) == [(0, PAGES, "lo")], "all marked"
        assert status.vmlck_pages() - before == PAGES, "all counted"


@PAST_END
@pytest.mark.source("mmap(2) MAP_LOCKED")
def test_map_locked_past_end_of_file(kind):
    """mmap(MAP_LOCKED) past the end of a file succeeds, with the pages of the file present."""
    with owned(short(kind, 3 * PAGE)) as fd:
        with mapping(kind, PAGES, fd=fd, flags=syscalls.MAP_LOCKED) as region:
            assert residency.mapped_bits(region) == "11100000", "three pages are the file's"
            assert maps.layout(region) == [(0, PAGES, "lo")], "all marked"


@PAST_END
@pytest.mark.claim("W17")
@pytest.mark.source("mlock2(2) MLOCK_ONFAULT")
def test_fault_lock_past_end_of_file(kind):
    """mlock2(MLOCK_ONFAULT) past the end of a file succeeds and brings in nothing."""
    with owned(short(kind, 3 * PAGE)) as fd, mapping(kind, PAGES, fd=fd) as region:
        got = syscalls.outcome(syscalls.mlock2, region.addr, region.size, syscalls.MLOCK_ONFAULT)
        assert got == "ok", "a fault lock needs no page"
        assert residency.mapped_bits(region) == NONE, "no page is present"
        assert maps.layout(region) == [(0, PAGES, "lo lf")], "all marked"


@pytest.mark.needs("lock-all")
@pytest.mark.source("Open POSIX mlockall 3-7")
def test_mlockall_ignores_ranges_past_end_of_file():
    """mlockall(MCL_CURRENT) of a mapping wholly past the end of its file returns 0 and marks it,
    where mlock gives ENOMEM."""
    with owned(memory.memfd(0)) as fd, mapping("memfd-shared", PAGES, fd=fd) as region:
        got = syscalls.outcome(syscalls.mlockall, syscalls.MCL_CURRENT)
        layout = maps.layout(region)
        syscalls.munlockall()
        assert got == "ok", "mlockall hides that there is nothing to bring in"
        assert layout == [(0, PAGES, "lo")], "the mapping is marked"
        assert residency.mapped_bits(region) == NONE, "no page is present"
        assert syscalls.outcome(syscalls.mlock, region.addr, region.size) == "ENOMEM", (
            "mlock's answer"
        )


@PAST_END
@pytest.mark.parametrize("lf", [0, syscalls.MLOCK_ONFAULT], ids=["full", "on-fault"])
@pytest.mark.source("Documentation/mm/unevictable-lru.rst: Truncating MLOCKED Folios")
def test_truncation_takes_locked_pages(kind, lf):
    """Truncating a file takes its pages out of a locked mapping, private copies too; lock and VmLck
    stay, and pages of the file grown again come in when touched."""
    with owned(short(kind, PAGES * PAGE)) as fd, mapping(kind, PAGES, fd=fd) as region:
        syscalls.mlock2(region.addr, region.size, lf)
        region.touch()
        before = status.vmlck_pages()
        assert residency.mapped_bits(region) == ALL, "every page is present before"
        os.ftruncate(fd, 3 * PAGE)
        assert residency.mapped_bits(region) == "11100000", "five pages are gone"
        os.ftruncate(fd, PAGES * PAGE)
        assert residency.mapped_bits(region) == "11100000", "growing the file brings in none"
        region.sub(5, 1).touch()
        assert residency.mapped_bits(region) == "11100100", "a touch brings in its page"
        assert status.vmlck_pages() == before, "VmLck is as before"
        lock = "lo lf" if lf else "lo"
        assert maps.layout(region) == [(0, PAGES, lock)], "locked still"
        assert region.sub(0, 6).first_bytes() == b"\xa5\xa5\xa5\0\0\xa5", "zeros where it was cut"


@pytest.mark.parametrize("kind", ["memfd-private", "memfd-shared"])
@pytest.mark.source("fallocate(2) FALLOC_FL_PUNCH_HOLE")
def test_punched_hole_takes_locked_shared_pages(kind):
    """A hole punched in a file takes its pages out of a locked shared mapping; private copies of
    them stay. Lock and VmLck stay in both."""
    with owned(memory.memfd(PAGES * PAGE)) as fd, mapping(kind, PAGES, fd=fd) as region:
        syscalls.mlock(region.addr, region.size)
        region.touch()
        before = status.vmlck_pages()
        syscalls.punch_hole(fd, 2 * PAGE, 3 * PAGE)
        copies = kind == "memfd-private"
        assert residency.mapped_bits(region) == (ALL if copies else "11000111"), "after the hole"
        assert status.vmlck_pages() == before, "VmLck is as before"
        assert maps.layout(region) == [(0, PAGES, "lo")], "locked still"
        kept = b"\xa5" * PAGES if copies else b"\xa5\xa5\0\0\0\xa5\xa5\xa5"
        assert region.first_bytes() == kept, "zeros in the hole of a shared mapping only"


@pytest.mark.source("madvise(2) MADV_REMOVE")
def test_remove_through_another_mapping_takes_locked_pages():
    """MADV_REMOVE is refused for a locked mapping, but not for an unlocked one of the same memory:
    it takes the locked pages too."""
    with owned(memory.memfd(PAGES * PAGE)) as fd, ExitStack() as stack:
        region, other = (
            stack.enter_context(mapping("memfd-shared", PAGES, fd=fd)) for _ in range(2)
        )
        syscalls.mlock(region.addr, region.size)
        region.touch()
        got = syscalls.outcome(syscalls.madvise, region.at(2), 2 * PAGE, syscalls.MADV_REMOVE)
        assert (got, residency.mapped_bits(region)) == ("EINVAL", ALL), (
            "refused through the locked one"
        )
        syscalls.madvise(other.at(2), 2 * PAGE, syscalls.MADV_REMOVE)
        assert residency.mapped_bits(region) == "11001111", "two locked pages are gone"


@pytest.mark.parametrize("lf", [0, syscalls.MLOCK_ONFAULT], ids=["full", "on-fault"])
@pytest.mark.source("mlock(2) DESCRIPTION")
def test_lock_by_another_process_fills_the_page_cache(lf):
    """A child that locks a private file mapping fills the page cache: the parent's mincore shows
    it, while its page tables, its VmLck and its mapping's flags stay as they were."""
    with mapping("memfd-private", PAGES) as region:
        before = status.vmlck_pages()
        assert residency.of(region) == residency.all_say(NONE), "nothing is there before"
        with processes.Child() as child:
            child.call(syscalls.mlock2, region.addr, region.size, lf)
            theirs = child.call(residency.mapped_bits, region)
            seen = residency.of(region)
        filled = NONE if lf else ALL
        assert theirs == filled, "the child's lock brings in its pages, unless fault-locked"
        assert seen == {"pagemap": NONE, "mincore": filled}, "in the page cache, not mapped here"
        assert status.vmlck_pages() == before, "VmLck is as before"
        assert maps.layout(region) == [(0, PAGES, "")], "not locked here"


@pytest.mark.source("mlock2(2) MLOCK_ONFAULT")
def test_read_fault_in_fault_locked_file_maps_its_neighbours_or_not():
    """A read of a fault-locked file mapping brings in the page read; cached neighbours may come
    with it, but pages that nobody cached do not."""
    with owned(memory.memfd(PAGES * PAGE)) as fd:
        os.pwrite(fd, b"x" * (4 * PAGE), 0)
        with mapping("memfd-shared", PAGES, fd=fd) as region:
            syscalls.mlock2(region.addr, region.size, syscalls.MLOCK_ONFAULT)
            assert syscalls.load(region.at(2), 1) == b"x", "the file's contents"
            there = residency.mapped_bits(region)
            assert there[2] == "1", "the page read is present"
            assert there[4:] == "0000", "pages that were in no cache are absent"
