"""Every route that locks memory brings all of it in at once: mlock to mprotect."""

import ctypes
import os
from contextlib import ExitStack, contextmanager

import pytest

from helpers import libc, memory
from helpers.each import each
from helpers.libc import PAGE
from helpers.memory import KINDS, Region, mapping
from helpers.observe import maps, presence, status

pytestmark = [pytest.mark.needs("lock:8", "smaps-flags", "mincore")]

PAGES = 8
NONE, ALL = "0" * PAGES, "1" * PAGES
WITHOUT_FILES = tuple(k for k in KINDS if not k.startswith("file"))

SYSCALLS = {
    "mlock": lambda r: libc.mlock(r.addr, r.size),
    "mlock2": lambda r: libc.mlock2(r.addr, r.size, 0),
}
MMAP_FLAGS = {"MAP_LOCKED": libc.MAP_LOCKED}


@contextmanager
def locked(route, kind, pages=PAGES, **how):
    """A mapping of ``kind`` locked by ``route``; not touched by this process."""
    with mapping(kind, pages, flags=MMAP_FLAGS.get(route, 0), **how) as region:
        if route in SYSCALLS:
            assert presence.mapped(region) == "0" * pages, "no page is mapped before the lock"
            SYSCALLS[route](region)
        yield region


@each("kind", KINDS)
@each("route", [*SYSCALLS, *MMAP_FLAGS])
@pytest.mark.claim("W6")
@pytest.mark.source("mlock(2) DESCRIPTION", "mmap(2) MAP_LOCKED")
def test_lock_populates_every_page(route, kind):
    """A lock brings in every page of memory that nobody touched, the first and the last too."""
    with locked(route, kind) as region:
        assert presence.seen(region) == presence.agreed(ALL), "every page is present at once"
        assert maps.layout(region.addr, region.end, PAGE) == [(0, PAGES, "lo")], (
            "the mapping is locked, not fault-locked"
        )


@pytest.mark.parametrize("kind", ["private", "memfd-shared"])
@pytest.mark.source("mmap(2) MAP_NONBLOCK")
def test_map_locked_populates_in_spite_of_map_nonblock(kind):
    """MAP_LOCKED with MAP_NONBLOCK brings in every page all the same."""
    flags = libc.MAP_LOCKED | libc.MAP_NONBLOCK
    with mapping(kind, PAGES, flags=flags) as region:
        assert presence.seen(region) == presence.agreed(ALL), "every page is present"


@each("kind", KINDS)
@pytest.mark.needs("lock-all")
@pytest.mark.source("mlockall(2) MCL_FUTURE")
def test_mapping_made_under_mcl_future_is_populated(kind):
    """A mapping made under MCL_FUTURE is locked and present when mmap returns."""
    libc.mlockall(libc.MCL_FUTURE)
    with mapping(kind, PAGES) as region:
        assert presence.seen(region) == presence.agreed(ALL), "every page is present at once"
        assert maps.layout(region.addr, region.end, PAGE) == [(0, PAGES, "lo")], "locked"


def grow_heap():
    """PAGES whole pages added to the heap, above all that malloc uses.

    By the C library's sbrk: its malloc must know of the growth.
    """
    start = -(-libc.sbrk((PAGES + 1) * PAGE) // PAGE) * PAGE
    return Region(start, PAGES * PAGE)


@pytest.mark.needs("lock-all")
@pytest.mark.source("mlockall(2) MCL_CURRENT")
def test_mlockall_current_populates_what_is_mapped():
    """mlockall(MCL_CURRENT) brings in every page of every kind of mapping there is, and of the
    heap."""
    with ExitStack() as stack:
        regions = {kind: stack.enter_context(mapping(kind, PAGES)) for kind in KINDS}
        regions["heap"] = grow_heap()
        before = {kind: presence.mapped(r) for kind, r in regions.items()}
        libc.mlockall(libc.MCL_CURRENT)
        after = {kind: presence.seen(r) for kind, r in regions.items()}
        libc.munlockall()
    assert before == dict.fromkeys(regions, NONE), "no page is mapped before the lock"
    assert after == dict.fromkeys(regions, presence.agreed(ALL)), "every page is present"


@pytest.mark.needs("lock-all")
@pytest.mark.source("mlockall(2) MCL_FUTURE")
def test_mlockall_future_leaves_existing_mappings_absent():
    """mlockall(MCL_FUTURE) neither locks nor populates what was mapped before."""
    with mapping("private", PAGES) as region:
        libc.mlockall(libc.MCL_FUTURE)
        layout = maps.layout(region.addr, region.end, PAGE)
        seen = presence.seen(region)
        libc.munlockall()
        assert seen == presence.agreed(NONE), "no page is present"
        assert layout == [(0, PAGES, "")], "the mapping is not locked"


@each("kind", KINDS)
def test_lock_of_part_populates_that_part_only(kind):
    """mlock of pages 2 to 4 brings in these three and not one beside them."""
    with mapping(kind, PAGES) as region:
        libc.mlock(region.at(2), 3 * PAGE)
        assert presence.mapped(region) == "00111000", "pages 2, 3 and 4 are present"
        libc.mlock(region.at(7), 1)
        assert presence.mapped(region) == "00111001", "and page 7, of which one byte was named"


@pytest.mark.parametrize("kind", ["private", "memfd-shared"])
@pytest.mark.needs("lock:32")
def test_long_lock_populates_from_first_to_last(kind):
    """A lock of 32 pages brings in the first, the last and all between them."""
    with mapping(kind, 32) as region:
        libc.mlock(region.addr, region.size)
        assert presence.seen(region) == presence.agreed("1" * 32), "32 pages are present"


@pytest.mark.parametrize("call", SYSCALLS)
@pytest.mark.needs("lock:10")
def test_lock_over_several_mappings_populates_each(call):
    """A lock over five mappings of different protection brings in the pages of all five."""
    with mapping("private", 10) as region:
        for first in (2, 6):
            libc.mprotect(region.at(first), 2 * PAGE, libc.PROT_READ)
        assert len(maps.vmas(low=region.addr, high=region.end)) == 5, "five mappings"
        SYSCALLS[call](region)
        assert presence.seen(region) == presence.agreed("1" * 10), "all ten pages are present"


@pytest.mark.parametrize("kind", ["private", "shared", "memfd-private", "memfd-shared"])
def test_lock_keeps_contents(kind):
    """A lock of partly written memory keeps what was written and brings in the rest as zeros."""
    with mapping(kind, PAGES) as region:
        region.sub(0, 1).touch(0x11)
        region.sub(5, 1).touch(0x55)
        assert presence.mapped(region) == "10000100", "two pages are present before the lock"
        libc.mlock(region.addr, region.size)
        assert presence.mapped(region) == ALL, "all pages are present"
        assert region.peek() == b"\x11\0\0\0\0\x55\0\0", "contents are kept"


@pytest.mark.parametrize("call", SYSCALLS)
def test_lock_again_populates_again(call):
    """mlock of a mapping that is locked already brings in pages that have gone since."""
    fd = memory.memfd(PAGES * PAGE)
    with mapping("memfd-shared", PAGES, fd=fd) as region:
        SYSCALLS[call](region)
        os.ftruncate(fd, 2 * PAGE)
        os.ftruncate(fd, PAGES * PAGE)
        assert presence.mapped(region) == "11000000", "truncation took six pages away"
        assert maps.layout(region.addr, region.end, PAGE) == [(0, PAGES, "lo")], "locked still"
        SYSCALLS[call](region)
        assert presence.seen(region) == presence.agreed(ALL), "the second lock brings them back"
    os.close(fd)


@pytest.mark.needs("dontneed-locked")
@pytest.mark.source("madvise(2) MADV_DONTNEED_LOCKED")
def test_lock_again_populates_dropped_pages():
    """mlock again brings in pages of locked memory that MADV_DONTNEED_LOCKED dropped, and only
    where it is told to."""
    with mapping("private", PAGES) as region:
        libc.mlock(region.addr, region.size)
        libc.madvise(region.addr, region.size, libc.MADV_DONTNEED_LOCKED)
        assert presence.seen(region) == presence.agreed(NONE), "all pages dropped"
        libc.mlock(region.at(3), 2 * PAGE)
        assert presence.seen(region) == presence.agreed("00011000"), "two pages locked again"
        libc.mlock(region.addr, region.size)
        assert presence.seen(region) == presence.agreed(ALL), "all pages locked again"


@each("kind", ["private", "memfd-private", "memfd-shared", "file-private"])
@each("call", SYSCALLS)
@pytest.mark.source("mlock2(2) MLOCK_ONFAULT")
def test_full_lock_populates_fault_locked_memory(call, kind):
    """mlock of fault-locked memory brings in all of it; VmLck does not move, lf goes."""
    with mapping(kind, PAGES) as region:
        libc.mlock2(region.addr, region.size, libc.MLOCK_ONFAULT)
        region.sub(1, 2).touch()
        before = status.vmlck_pages()
        assert presence.mapped(region) == "01100000", "only the written pages are present"
        SYSCALLS[call](region)
        assert presence.seen(region) == presence.agreed(ALL), "all pages are present"
        assert maps.layout(region.addr, region.end, PAGE) == [(0, PAGES, "lo")], "no longer lf"
        assert status.vmlck_pages() == before, "VmLck is as before"


@pytest.mark.parametrize("kind", ["private", "memfd-shared"])
@pytest.mark.source("mlock2(2) MLOCK_ONFAULT")
def test_fault_lock_keeps_populated_memory(kind):
    """mlock2(MLOCK_ONFAULT) of locked memory keeps every page; VmLck does not move, lf comes."""
    with locked("mlock", kind) as region:
        before = status.vmlck_pages()
        libc.mlock2(region.addr, region.size, libc.MLOCK_ONFAULT)
        assert presence.seen(region) == presence.agreed(ALL), "all pages stay present"
        assert maps.layout(region.addr, region.end, PAGE) == [(0, PAGES, "lo lf")], "lf now"
        assert status.vmlck_pages() == before, "VmLck is as before"


@each("lf", [False, True], ids=["full", "on-fault"])
@each("moved", [False, True], ids=["in-place", "moved"])
@each("kind", ["private", "memfd-shared"])
@pytest.mark.source("mremap(2)", "mlock(2) NOTES")
def test_mremap_populates_what_it_adds(kind, moved, lf):
    """mremap that grows locked memory brings in the added pages, in place or moved; of
    fault-locked memory none."""
    fd = memory.memfd(PAGES * PAGE) if kind == "memfd-shared" else None
    with mapping(kind, PAGES, fd=fd) as place, mapping("private", PAGES) as elsewhere:
        memory.hole(place, 3, PAGES - 3)
        old = place.sub(0, 3)
        old.touch(0x33)
        libc.mlock2(old.addr, old.size, libc.MLOCK_ONFAULT if lf else 0)
        how, target = (libc.MREMAP_MAYMOVE | libc.MREMAP_FIXED, elsewhere.addr) if moved else (0, 0)
        grown = Region(libc.mremap(old.addr, old.size, place.size, how, target), place.size)
        assert grown.addr == (elsewhere.addr if moved else place.addr), "grown where asked"
        assert presence.mapped(grown) == ("11100000" if lf else ALL), (
            "the added pages are present, unless fault-locked"
        )
        assert maps.layout(grown.addr, grown.end, PAGE) == [(0, PAGES, "lo lf" if lf else "lo")], (
            "the whole is locked as the old part was"
        )
        assert grown.sub(0, 3).peek() == b"\x33" * 3, "contents moved along"
    if fd is not None:
        os.close(fd)


@pytest.mark.parametrize("flag", [0, libc.MCL_ONFAULT], ids=["full", "on-fault"])
@pytest.mark.needs("lock-all")
@pytest.mark.source("mlockall(2) MCL_FUTURE, MCL_ONFAULT")
def test_heap_growth_under_mcl_future_is_populated(flag):
    """brk under MCL_FUTURE brings in the pages it adds; under MCL_ONFAULT too, none."""
    libc.mlockall(libc.MCL_FUTURE | flag)
    heap = grow_heap()
    seen = presence.seen(heap)
    layout = maps.layout(heap.addr, heap.end, PAGE)
    libc.munlockall()
    assert seen == presence.agreed(NONE if flag else ALL), "added pages, present unless on-fault"
    assert layout == [(0, PAGES, "lo lf" if flag else "lo")], "the growth is locked"


@pytest.mark.parametrize("lf", [False, True], ids=["full", "on-fault"])
def test_growing_stack_populates_touched_page_only(lf):
    """A locked mapping that grows downwards counts its growth, but only the touched page comes
    in: not those jumped over."""
    with mapping("private", 16, prot=libc.PROT_NONE) as place:
        memory.hole(place, 2, 14)
        how = libc.MAP_PRIVATE | libc.MAP_ANONYMOUS | libc.MAP_FIXED | libc.MAP_GROWSDOWN
        libc.mmap(place.at(14), 2 * PAGE, libc.PROT_RW, how)
        libc.mlock2(place.at(14), 2 * PAGE, libc.MLOCK_ONFAULT if lf else 0)
        before = status.vmlck_pages()
        stack = place.sub(10, 6)
        ctypes.memset(place.at(10), 0x5A, 1)
        assert presence.mapped(stack) == ("100000" if lf else "100011"), (
            "of four added pages the touched one is present"
        )
        assert maps.layout(stack.addr, stack.end, PAGE) == [(0, 6, "lo lf" if lf else "lo")], (
            "the stack has grown by four pages, locked like the rest"
        )
        assert status.vmlck_pages() - before == 4, "VmLck grows by the growth of the stack"


@each("kind", ["private", "memfd-private", "file-private"])
@each("route", ["mlock", "MAP_LOCKED"])
@pytest.mark.source("mm/mprotect.c mprotect_fixup")
def test_mprotect_populates_locked_inaccessible_memory(route, kind):
    """Locked PROT_NONE memory is counted but absent; mprotect that makes it writable brings in
    all of it."""
    flags = libc.MAP_LOCKED if route == "MAP_LOCKED" else 0
    before = status.vmlck_pages()
    with mapping(kind, PAGES, prot=libc.PROT_NONE, flags=flags) as region:
        if route == "mlock":
            seen = libc.outcome(libc.mlock, region.addr, region.size)
            assert seen == "ENOMEM", "mlock says that the pages could not be brought in"
        assert status.vmlck_pages() - before == PAGES, "VmLck counts all pages"
        assert presence.mapped(region) == NONE, "no page is present"
        libc.mprotect(region.addr, region.size, libc.PROT_RW)
        assert presence.seen(region) == presence.agreed(ALL), "mprotect brings in every page"
        assert presence.private(region) == ALL, "as pages of its own"


@each("prot", [libc.PROT_WRITE, libc.PROT_READ], ids=["write", "read"])
@each("kind", ["private", "shared", "file-private", "file-shared"])
def test_lock_populates_whatever_the_protection(kind, prot):
    """Memory that may only be written, or only be read, is populated by its lock just as well."""
    with locked("mlock", kind, prot=prot) as region:
        assert presence.seen(region) == presence.agreed(ALL), "every page is present"


# x86 makes execute-only memory unreadable with a protection key, where it has those (pkeys(7)),
# and arch_vma_access_permitted() in mm/gup.c then refuses population on behalf of this thread.
@pytest.mark.parametrize("kind", ["private", "memfd-shared", "memfd-private"])
def test_lock_of_executable_only_memory(kind):
    """mlock of execute-only memory returns 0 with every page present, or, where a protection
    key forbids even the kernel to read it, ENOMEM with none; locked it is in both cases."""
    with mapping(kind, PAGES, prot=libc.PROT_EXEC) as region:
        got = libc.outcome(libc.mlock, region.addr, region.size)
        key = maps.at(region.addr).number("ProtectionKey")
        assert (got, presence.mapped(region)) in (
            [("ok", ALL), ("ENOMEM", NONE)] if key else [("ok", ALL)]
        ), "locked and populated"
        assert maps.layout(region.addr, region.end, PAGE) == [(0, PAGES, "lo")], "lo"


@pytest.mark.needs("disk-file")
@pytest.mark.source("LTP mlock04; commit fdf4c587a793")
def test_lock_of_sparse_shared_file_allocates_no_blocks():
    """mlock of a write-only shared mapping of a sparse file brings in its holes as zeros and
    allocates nothing on disk."""
    fd = memory.scratch_file(0)
    os.ftruncate(fd, PAGES * PAGE)
    with mapping("file-shared", PAGES, fd=fd, prot=libc.PROT_WRITE) as region:
        assert os.fstat(fd).st_blocks == 0, "the file is all hole"
        libc.mlock(region.addr, region.size)
        assert presence.seen(region) == presence.agreed(ALL), "every page is present"
        os.fsync(fd)
        assert os.fstat(fd).st_blocks == 0, "still all hole"
        assert os.pread(fd, PAGES * PAGE + 1, 0) == bytes(PAGES * PAGE), "zeros, length as before"
    os.close(fd)


@pytest.mark.parametrize(
    ("kind", "prot"),
    [
        ("private", libc.PROT_RW),
        ("private", libc.PROT_WRITE),
        ("memfd-private", libc.PROT_RW),
        ("memfd-shared", libc.PROT_RW),
        ("file-private", libc.PROT_RW),
    ],
)
def test_smaps_shows_locked_memory_resident(kind, prot):
    """smaps shows writable locked memory with Size = Rss = Locked; after munlock Locked is 0 and
    Rss as before."""
    size = {"Size": PAGES * libc.PAGE_KB}
    with mapping(kind, PAGES, prot=prot) as region:
        vma = maps.at(region.addr)
        seen = {name: vma.field_kb(name) for name in ("Size", "Rss", "Locked")}
        assert seen == size | {"Rss": 0, "Locked": 0}, "nothing is there before the lock"
        libc.mlock(region.addr, region.size)
        vma = maps.at(region.addr)
        seen = {name: vma.field_kb(name) for name in ("Size", "Rss", "Locked")}
        assert seen == dict.fromkeys(("Size", "Rss", "Locked"), vma.kb), "all of it is locked"
        own = 0 if kind.endswith("shared") else vma.kb
        assert vma.field_kb("Anonymous") == own, "private memory is anonymous"
        libc.munlock(region.addr, region.size)
        vma = maps.at(region.addr)
        seen = {name: vma.field_kb(name) for name in ("Size", "Rss", "Locked")}
        assert seen == size | {"Rss": vma.kb, "Locked": 0}, "resident and not locked"


@each("kind", KINDS)
@pytest.mark.source("mmap(2) MAP_POPULATE, MAP_NONBLOCK")
def test_map_populate_populates_without_locking(kind):
    """MAP_POPULATE brings in every page and locks none; with MAP_NONBLOCK it brings in nothing."""
    before = status.vmlck_pages()
    with mapping(kind, PAGES, flags=libc.MAP_POPULATE) as region:
        assert presence.seen(region) == presence.agreed(ALL), "every page is present"
        assert maps.layout(region.addr, region.end, PAGE) == [(0, PAGES, "")], "none is locked"
        assert status.vmlck_pages() == before, "VmLck is as before"
    with mapping(kind, PAGES, flags=libc.MAP_POPULATE | libc.MAP_NONBLOCK) as region:
        assert presence.mapped(region) == NONE, "MAP_NONBLOCK takes MAP_POPULATE back"


@pytest.mark.parametrize("kind", WITHOUT_FILES)
def test_unlocked_memory_is_not_populated(kind):
    """The control of this chapter: a mapping that nobody locks or touches has no page, and a
    touch brings in the page touched."""
    with mapping(kind, PAGES) as region:
        assert presence.seen(region) == presence.agreed(NONE), "no page is present"
        region.sub(3, 1).touch()
        assert presence.seen(region) == presence.agreed("00010000"), "the touched page is"
