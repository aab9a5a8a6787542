# SPDX-License-Identifier: MIT
"""Every route that locks memory brings all of it in at once: mlock to mprotect."""

import ctypes
import os
from contextlib import ExitStack, contextmanager

import pytest

from helpers import memory, syscalls
from helpers.memory import MAPPING_KINDS, Region, layouts, mapping
from helpers.observe import maps, residency, status
from helpers.syscalls import PAGE

pytestmark = [pytest.mark.share_process, pytest.mark.needs("lock:8", "smaps-flags", "mincore")]

PAGES = 8
NONE, ALL = "0" * PAGES, "1" * PAGES
WITHOUT_FILES = tuple(k for k in MAPPING_KINDS if not k.startswith("file"))

SYSCALLS = {
    "mlock": lambda r: syscalls.mlock(r.addr, r.size),
    "mlock2": lambda r: syscalls.mlock2(r.addr, r.size, 0),
}
MMAP_FLAGS = {"MAP_LOCKED": syscalls.MAP_LOCKED}


@contextmanager
def locked(route, kind, pages=PAGES, **how):
    """A mapping of ``kind`` locked by ``route``; not touched by this process."""
    with mapping(kind, pages, flags=MMAP_FLAGS.get(route, 0), **how) as region:
        if route in SYSCALLS:
            assert residency.mapped_bits(region) == "0" * pages, "no page is mapped before the lock"
            SYSCALLS[route](region)
        yield region


@pytest.mark.parametrize("kind", MAPPING_KINDS)
@pytest.mark.parametrize("route", [*SYSCALLS, *MMAP_FLAGS])
@pytest.mark.claim("W6")
@pytest.mark.source("mlock(2) DESCRIPTION", "mmap(2) MAP_LOCKED")
@pytest.mark.detects(
    "mlock-not-populated",
    "mlock-last-page-absent",
    "mlock-shared-not-populated",
    "maplocked-not-populated",
    "maplocked-last-page-absent",
    "pagemap-last-page-absent",
)
def test_lock_populates_every_page(route, kind):
    """A lock brings in every page of memory that nobody touched, the first and the last too."""
    with locked(route, kind) as region:
        assert residency.of(region) == residency.all_say(ALL), "every page is present at once"
        assert maps.layout(region) == [(0, PAGES, "lo")], "the mapping is locked, not fault-locked"


@pytest.mark.parametrize("kind", ["private", "memfd-shared"])
@pytest.mark.source("mmap(2) MAP_NONBLOCK")
def test_map_locked_populates_in_spite_of_map_nonblock(kind):
    """MAP_LOCKED with MAP_NONBLOCK brings in every page all the same."""
    flags = syscalls.MAP_LOCKED | syscalls.MAP_NONBLOCK
    with mapping(kind, PAGES, flags=flags) as region:
        assert residency.of(region) == residency.all_say(ALL), "every page is present"


@pytest.mark.parametrize("kind", MAPPING_KINDS)
@pytest.mark.needs("lock-all")
@pytest.mark.source("mlockall(2) MCL_FUTURE")
@pytest.mark.detects("future-not-populated")
def test_mapping_made_under_mcl_future_is_populated(kind):
    """A mapping made under MCL_FUTURE is locked and present when mmap returns."""
    syscalls.mlockall(syscalls.MCL_FUTURE)
    try:
        with mapping(kind, PAGES) as region:
            assert residency.of(region) == residency.all_say(ALL), "every page is present at once"
            assert maps.layout(region) == [(0, PAGES, "lo")], "locked"
    finally:
        syscalls.munlockall()


def grow_heap():
    """PAGES whole pages added to the heap, above all that malloc uses.

    By the C library's sbrk: its malloc must know of the growth.
    """
    start = -(-syscalls.sbrk((PAGES + 1) * PAGE) // PAGE) * PAGE
    return Region(start, PAGES * PAGE)


@pytest.mark.needs("lock-all")
@pytest.mark.source("mlockall(2) MCL_CURRENT")
@pytest.mark.detects("mlockall-not-populated")
def test_mlockall_current_populates_what_is_mapped():
    """mlockall(MCL_CURRENT) brings in every page of every kind of mapping there is, and of the
    heap."""
    with ExitStack() as stack:
        regions = {kind: stack.enter_context(mapping(kind, PAGES)) for kind in MAPPING_KINDS}
        regions["heap"] = grow_heap()
        before = {kind: residency.mapped_bits(r) for kind, r in regions.items()}
        syscalls.mlockall(syscalls.MCL_CURRENT)
        after = {kind: residency.of(r) for kind, r in regions.items()}
        syscalls.munlockall()
    assert before == dict.fromkeys(regions, NONE), "no page is mapped before the lock"
    assert after == dict.fromkeys(regions, residency.all_say(ALL)), "every page is present"


@pytest.mark.needs("lock-all")
@pytest.mark.source("mlockall(2) MCL_FUTURE")
def test_mlockall_future_leaves_existing_mappings_absent():
    """mlockall(MCL_FUTURE) neither locks nor populates what was mapped before."""
    with mapping("private", PAGES) as region:
        syscalls.mlockall(syscalls.MCL_FUTURE)
        layout = maps.layout(region)
        seen = residency.of(region)
        syscalls.munlockall()
        assert seen == residency.all_say(NONE), "no page is present"
        assert layout == [(0, PAGES, "")], "the mapping is not locked"


@pytest.mark.parametrize("kind", MAPPING_KINDS)
@pytest.mark.source("mlock(2) DESCRIPTION")
def test_lock_of_part_populates_that_part_only(kind):
    """mlock of pages 2 to 4 brings in these three and not one beside them."""
    with mapping(kind, PAGES) as region:
        syscalls.mlock(region.at(2), 3 * PAGE)
        assert residency.mapped_bits(region) == "00111000", "pages 2, 3 and 4 are present"
        syscalls.mlock(region.at(7), 1)
        assert residency.mapped_bits(region) == "00111001", (
            "and page 7, of which one byte was named"
        )


@pytest.mark.parametrize("kind", ["private", "memfd-shared"])
@pytest.mark.needs("lock:32")
@pytest.mark.source("mlock(2) DESCRIPTION")
def test_long_lock_populates_from_first_to_last(kind):
    """A lock of 32 pages brings in the first, the last and all between them."""
    with mapping(kind, 32) as region:
        syscalls.mlock(region.addr, region.size)
        assert residency.of(region) == residency.all_say("1" * 32), "32 pages are present"


@pytest.mark.parametrize("call", SYSCALLS)
@pytest.mark.needs("lock:10")
@pytest.mark.source("mlock(2) DESCRIPTION")
def test_lock_over_several_mappings_populates_each(call):
    """A lock over five mappings of different protection brings in the pages of all five."""
    with mapping("private", 10) as region:
        for first in (2, 6):
            syscalls.mprotect(region.at(first), 2 * PAGE, syscalls.PROT_READ)
        assert len(maps.vmas(low=region.addr, high=region.end)) == 5, "five mappings"
        SYSCALLS[call](region)
        assert residency.of(region) == residency.all_say("1" * 10), "all ten pages are present"


@pytest.mark.parametrize("kind", ["private", "shared", "memfd-private", "memfd-shared"])
@pytest.mark.source("mlock(2) DESCRIPTION")
def test_lock_keeps_contents(kind):
    """A lock of partly written memory keeps what was written and brings in the rest as zeros."""
    with mapping(kind, PAGES) as region:
        region.sub(0, 1).touch(0x11)
        region.sub(5, 1).touch(0x55)
        assert residency.mapped_bits(region) == "10000100", "two pages are present before the lock"
        syscalls.mlock(region.addr, region.size)
        assert residency.mapped_bits(region) == ALL, "all pages are present"
        assert region.first_bytes() == b"\x11\0\0\0\0\x55\0\0", "contents are kept"


@pytest.mark.parametrize("call", SYSCALLS)
@pytest.mark.source("mlock(2) DESCRIPTION")
def test_lock_again_populates_again(call):
    """mlock of a mapping that is locked already brings in pages that have gone since."""
    fd = memory.memfd(PAGES * PAGE)
    with mapping("memfd-shared", PAGES, fd=fd) as region:
        SYSCALLS[call](region)
        os.ftruncate(fd, 2 * PAGE)
        os.ftruncate(fd, PAGES * PAGE)
        assert residency.mapped_bits(region) == "11000000", "truncation took six pages away"
        assert maps.layout(region) == [(0, PAGES, "lo")], "locked still"
        SYSCALLS[call](region)
        assert residency.of(region) == residency.all_say(ALL), "the second lock brings them back"
    os.close(fd)


@pytest.mark.needs("dontneed-locked")
@pytest.mark.source("madvise(2) MADV_DONTNEED_LOCKED")
def test_lock_again_populates_dropped_pages():
    """mlock again brings in pages of locked memory that MADV_DONTNEED_LOCKED dropped, and only
    where it is told to."""
    with mapping("private", PAGES) as region:
        syscalls.mlock(region.addr, region.size)
        syscalls.madvise(region.addr, region.size, syscalls.MADV_DONTNEED_LOCKED)
        assert residency.of(region) == residency.all_say(NONE), "all pages dropped"
        syscalls.mlock(region.at(3), 2 * PAGE)
        assert residency.of(region) == residency.all_say("00011000"), "two pages locked again"
        syscalls.mlock(region.addr, region.size)
        assert residency.of(region) == residency.all_say(ALL), "all pages locked again"


@pytest.mark.parametrize("kind", ["private", "memfd-private", "memfd-shared", "file-private"])
@pytest.mark.parametrize("call", SYSCALLS)
@pytest.mark.source("mlock2(2) MLOCK_ONFAULT")
def test_full_lock_populates_fault_locked_memory(call, kind):
    """mlock of fault-locked memory brings in all of it; VmLck does not move, lf goes."""
    with mapping(kind, PAGES) as region:
        syscalls.mlock2(region.addr, region.size, syscalls.MLOCK_ONFAULT)
        region.sub(1, 2).touch()
        before = status.vmlck_pages()
        assert residency.mapped_bits(region) == "01100000", "only the written pages are present"
        SYSCALLS[call](region)
        assert residency.of(region) == residency.all_say(ALL), "all pages are present"
        assert maps.layout(region) == [(0, PAGES, "lo")], "no longer lf"
        assert status.vmlck_pages() == before, "VmLck is as before"


@pytest.mark.parametrize("kind", ["private", "memfd-shared"])
@pytest.mark.source("mlock2(2) MLOCK_ONFAULT")
def test_fault_lock_keeps_populated_memory(kind):
    """mlock2(MLOCK_ONFAULT) of locked memory keeps every page; VmLck does not move, lf comes."""
    with locked("mlock", kind) as region:
        before = status.vmlck_pages()
        syscalls.mlock2(region.addr, region.size, syscalls.MLOCK_ONFAULT)
        assert residency.of(region) == residency.all_say(ALL), "all pages stay present"
        assert maps.layout(region) == [(0, PAGES, "lo lf")], "lf now"
        assert status.vmlck_pages() == before, "VmLck is as before"


@pytest.mark.parametrize("lf", [False, True], ids=["full", "on-fault"])
@pytest.mark.parametrize("moved", [False, True], ids=["in-place", "moved"])
@pytest.mark.parametrize("kind", ["private", "memfd-shared"])
@pytest.mark.source("mremap(2)", "mlock(2) NOTES")
@pytest.mark.detects("mremap-grow-not-populated")
def test_mremap_populates_what_it_adds(kind, moved, lf):
    """mremap that grows locked memory brings in the added pages, in place or moved; of
    fault-locked memory none."""
    fd = memory.memfd(PAGES * PAGE) if kind == "memfd-shared" else None
    with mapping(kind, PAGES, fd=fd) as place, mapping("private", PAGES) as elsewhere:
        layouts.unmap_pages(place, 3, PAGES - 3)
        old = place.sub(0, 3)
        old.touch(0x33)
        syscalls.mlock2(old.addr, old.size, syscalls.MLOCK_ONFAULT if lf else 0)
        how, target = (
            (syscalls.MREMAP_MAYMOVE | syscalls.MREMAP_FIXED, elsewhere.addr) if moved else (0, 0)
        )
        grown = Region(syscalls.mremap(old.addr, old.size, place.size, how, target), place.size)
        assert grown.addr == (elsewhere.addr if moved else place.addr), "grown where asked"
        assert residency.mapped_bits(grown) == ("11100000" if lf else ALL), (
            "the added pages are present, unless fault-locked"
        )
        assert maps.layout(grown) == [(0, PAGES, "lo lf" if lf else "lo")], (
            "the whole is locked as the old part was"
        )
        assert grown.sub(0, 3).first_bytes() == b"\x33" * 3, "contents moved along"
    if fd is not None:
        os.close(fd)


@pytest.mark.parametrize("flag", [0, syscalls.MCL_ONFAULT], ids=["full", "on-fault"])
@pytest.mark.needs("lock-all")
@pytest.mark.source("mlockall(2) MCL_FUTURE, MCL_ONFAULT")
def test_heap_growth_under_mcl_future_is_populated(flag):
    """brk under MCL_FUTURE brings in the pages it adds; under MCL_ONFAULT too, none."""
    syscalls.mlockall(syscalls.MCL_FUTURE | flag)
    heap = grow_heap()
    seen = residency.of(heap)
    layout = maps.layout(heap)
    syscalls.munlockall()
    assert seen == residency.all_say(NONE if flag else ALL), "added pages, present unless on-fault"
    assert layout == [(0, PAGES, "lo lf" if flag else "lo")], "the growth is locked"


@pytest.mark.parametrize("lf", [False, True], ids=["full", "on-fault"])
@pytest.mark.source("mmap(2) MAP_GROWSDOWN")
def test_growing_stack_populates_touched_page_only(lf):
    """A locked mapping that grows downwards counts its growth, but only the touched page comes
    in: not those jumped over."""
    with mapping("private", 16, prot=syscalls.PROT_NONE) as place:
        layouts.unmap_pages(place, 2, 14)
        how = (
            syscalls.MAP_PRIVATE
            | syscalls.MAP_ANONYMOUS
            | syscalls.MAP_FIXED
            | syscalls.MAP_GROWSDOWN
        )
        syscalls.mmap(place.at(14), 2 * PAGE, syscalls.PROT_RW, how)
        syscalls.mlock2(place.at(14), 2 * PAGE, syscalls.MLOCK_ONFAULT if lf else 0)
        before = status.vmlck_pages()
        stack = place.sub(10, 6)
        ctypes.memset(place.at(10), 0x5A, 1)
        assert residency.mapped_bits(stack) == ("100000" if lf else "100011"), (
            "of four added pages the touched one is present"
        )
        assert maps.layout(stack) == [(0, 6, "lo lf" if lf else "lo")], (
            "the stack has grown by four pages, locked like the rest"
        )
        assert status.vmlck_pages() - before == 4, "VmLck grows by the growth of the stack"


@pytest.mark.parametrize("kind", ["private", "memfd-private", "file-private"])
@pytest.mark.parametrize("route", ["mlock", "MAP_LOCKED"])
@pytest.mark.source("mm/mprotect.c mprotect_fixup")
def test_mprotect_populates_locked_inaccessible_memory(route, kind):
    """Locked PROT_NONE memory is counted but absent; mprotect that makes it writable brings in
    all of it."""
    flags = syscalls.MAP_LOCKED if route == "MAP_LOCKED" else 0
    before = status.vmlck_pages()
    with mapping(kind, PAGES, prot=syscalls.PROT_NONE, flags=flags) as region:
        if route == "mlock":
            seen = syscalls.outcome(syscalls.mlock, region.addr, region.size)
            assert seen == "ENOMEM", "mlock says that the pages could not be brought in"
        assert status.vmlck_pages() - before == PAGES, "VmLck counts all pages"
        assert residency.mapped_bits(region) == NONE, "no page is present"
        syscalls.mprotect(region.addr, region.size, syscalls.PROT_RW)
        assert residency.of(region) == residency.all_say(ALL), "mprotect brings in every page"
        assert residency.anon_bits(region) == ALL, "as pages of its own"


@pytest.mark.parametrize("prot", [syscalls.PROT_WRITE, syscalls.PROT_READ], ids=["write", "read"])
@pytest.mark.parametrize("kind", ["private", "shared", "file-private", "file-shared"])
@pytest.mark.detects("mlock-readonly-not-populated")
@pytest.mark.source("mlock(2) DESCRIPTION")
def test_lock_populates_whatever_the_protection(kind, prot):
    """Memory that may only be written, or only be read, is populated by its lock just as well."""
    with locked("mlock", kind, prot=prot) as region:
        assert residency.of(region) == residency.all_say(ALL), "every page is present"


# x86 makes execute-only memory unreadable with a protection key, where it has those (pkeys(7)),
# and arch_vma_access_permitted() in mm/gup.c then refuses population on behalf of this thread.
@pytest.mark.parametrize("kind", ["private", "memfd-shared", "memfd-private"])
@pytest.mark.source("mlock(2) DESCRIPTION")
def test_lock_of_executable_only_memory(kind):
    """mlock of execute-only memory returns 0 with every page present, or, where a protection
    key forbids even the kernel to read it, ENOMEM with none; locked it is in both cases."""
    with mapping(kind, PAGES, prot=syscalls.PROT_EXEC) as region:
        got = syscalls.outcome(syscalls.mlock, region.addr, region.size)
        key = maps.at(region.addr).number("ProtectionKey")
        assert (got, residency.mapped_bits(region)) in (
            [("ok", ALL), ("ENOMEM", NONE)] if key else [("ok", ALL)]
        ), "locked and populated"
        assert maps.layout(region) == [(0, PAGES, "lo")], "lo"


@pytest.mark.needs("disk-file")
@pytest.mark.source("LTP mlock04; commit fdf4c587a793")
def test_lock_of_sparse_shared_file_allocates_no_blocks():
    """mlock of a write-only shared mapping of a sparse file brings in its holes as zeros and
    allocates nothing on disk."""
    fd = memory.scratch_file(0)
    os.ftruncate(fd, PAGES * PAGE)
    with mapping("file-shared", PAGES, fd=fd, prot=syscalls.PROT_WRITE) as region:
        assert os.fstat(fd).st_blocks == 0, "the file is all hole"
        syscalls.mlock(region.addr, region.size)
        assert residency.of(region) == residency.all_say(ALL), "every page is present"
        os.fsync(fd)
        assert os.fstat(fd).st_blocks == 0, "still all hole"
        assert os.pread(fd, PAGES * PAGE + 1, 0) == bytes(PAGES * PAGE), "zeros, length as before"
    os.close(fd)


@pytest.mark.parametrize(
    ("kind", "prot"),
    [
        ("private", syscalls.PROT_RW),
        ("private", syscalls.PROT_WRITE),
        ("memfd-private", syscalls.PROT_RW),
        ("memfd-shared", syscalls.PROT_RW),
        ("file-private", syscalls.PROT_RW),
    ],
)
@pytest.mark.source("proc_pid_smaps(5) Rss")
def test_smaps_shows_locked_memory_resident(kind, prot):
    """smaps shows writable locked memory with Size = Rss = Locked; after munlock Locked is 0 and
    Rss as before."""
    size = {"Size": PAGES * syscalls.PAGE_KB}
    with mapping(kind, PAGES, prot=prot) as region:
        vma = maps.at(region.addr)
        seen = {name: vma.field_kb(name) for name in ("Size", "Rss", "Locked")}
        assert seen == size | {"Rss": 0, "Locked": 0}, "nothing is there before the lock"
        syscalls.mlock(region.addr, region.size)
        vma = maps.at(region.addr)
        seen = {name: vma.field_kb(name) for name in ("Size", "Rss", "Locked")}
        assert seen == dict.fromkeys(("Size", "Rss", "Locked"), vma.kb), "all of it is locked"
        own = 0 if kind.endswith("shared") else vma.kb
        assert vma.field_kb("Anonymous") == own, "private memory is anonymous"
        syscalls.munlock(region.addr, region.size)
        vma = maps.at(region.addr)
        seen = {name: vma.field_kb(name) for name in ("Size", "Rss", "Locked")}
        assert seen == size | {"Rss": vma.kb, "Locked": 0}, "resident and not locked"


@pytest.mark.parametrize("kind", MAPPING_KINDS)
@pytest.mark.source("mmap(2) MAP_POPULATE, MAP_NONBLOCK")
def test_map_populate_populates_without_locking(kind):
    """MAP_POPULATE brings in every page and locks none; with MAP_NONBLOCK it brings in nothing."""
    before = status.vmlck_pages()
    with mapping(kind, PAGES, flags=syscalls.MAP_POPULATE) as region:
        assert residency.of(region) == residency.all_say(ALL), "every page is present"
        assert maps.layout(region) == [(0, PAGES, "")], "none is locked"
        assert status.vmlck_pages() == before, "VmLck is as before"
    with mapping(kind, PAGES, flags=syscalls.MAP_POPULATE | syscalls.MAP_NONBLOCK) as region:
        assert residency.mapped_bits(region) == NONE, "MAP_NONBLOCK takes MAP_POPULATE back"


@pytest.mark.parametrize("kind", WITHOUT_FILES)
@pytest.mark.source("mmap(2) MAP_POPULATE")
def test_unlocked_memory_is_not_populated(kind):
    """The control of this chapter: a mapping that nobody locks or touches has no page, and a
    touch brings in the page touched."""
    with mapping(kind, PAGES) as region:
        assert residency.of(region) == residency.all_say(NONE), "no page is present"
        region.sub(3, 1).touch()
        assert residency.of(region) == residency.all_say("00010000"), "the touched page is"
