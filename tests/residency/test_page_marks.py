# SPDX-License-Identifier: MIT
"""PG_mlocked and PG_unevictable, page by page: who sets them, who takes them away."""

import os
from contextlib import ExitStack

import pytest

from helpers import memory, syscalls
from helpers.machine import kernel_version
from helpers.memory import layouts, mapping
from helpers.observe import lru_batches, page_flags, residency
from helpers.syscalls import PAGE

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("lock:8", "kpageflags"),
    pytest.mark.source("Documentation/mm/unevictable-lru.rst"),
]

PAGES = 8
NONE, ALL = "0" * PAGES, "1" * PAGES
DISK = pytest.mark.needs("disk-file")  # ramfs marks its own pages unevictable


def marks(region):
    """PG_mlocked, PG_unevictable and PG_lru of each page, this CPU's batches drained first."""
    lru_batches.mlock_drain_local()
    pages = page_flags.snapshot(region.addr, region.pages)
    return {
        "mlocked": residency.bits(pages.mlocked),
        "unevictable": residency.bits(pages.unevictable),
        "lru": residency.bits(pages.bits(page_flags.LRU)),
    }


def marked(pages):
    """Of a range that is all present: these pages locked, the others on ordinary lists."""
    return {"mlocked": pages, "unevictable": pages, "lru": ALL}


def mlocked(region):
    """PG_mlocked of each page, as it is now."""
    return residency.bits(page_flags.snapshot(region.addr, region.pages).mlocked)


def needs_marks_at_fault(kind):
    """Skip where a fault does not mark the shared page that it maps."""
    if kind.endswith("shared") and kernel_version.version() < (5, 18, 0):
        pytest.skip(
            "needs a kernel from 5.18 on: before commit cea86fe246b6 a page of a file faulted into "
            "locked memory was marked by reclaim only"
        )


def touch_then_mlock(region):
    region.touch()
    syscalls.mlock(region.addr, region.size)


def onfault_then_touch(region):
    syscalls.mlock2(region.addr, region.size, syscalls.MLOCK_ONFAULT)
    region.touch()


def touch_then_onfault(region):
    region.touch()
    syscalls.mlock2(region.addr, region.size, syscalls.MLOCK_ONFAULT)


def onfault_then_full(region):
    syscalls.mlock2(region.addr, region.size, syscalls.MLOCK_ONFAULT)
    syscalls.mlock2(region.addr, region.size, 0)


ROUTES = {
    "mlock": lambda r: syscalls.mlock(r.addr, r.size),
    "touch,mlock": touch_then_mlock,
    "mlock2": lambda r: syscalls.mlock2(r.addr, r.size, 0),
    "on-fault,touch": onfault_then_touch,
    "touch,on-fault": touch_then_onfault,
    "on-fault,mlock2": onfault_then_full,
    "MAP_LOCKED": None,
}
SOME = ("mlock", "touch,mlock", "on-fault,touch")


@pytest.mark.parametrize(
    ("kind", "route"),
    [
        *((kind, route) for kind in ("private", "memfd-shared") for route in ROUTES),
        *((kind, route) for kind in ("shared", "memfd-private") for route in SOME),
        *(
            pytest.param(kind, route, marks=DISK)
            for kind in ("file-private", "file-shared")
            for route in SOME
        ),
    ],
)
@pytest.mark.usefixtures("one_cpu")
@pytest.mark.detects("munlock-keeps-mlocked")
def test_lock_marks_every_page_until_munlock(kind, route):
    """Every page of locked memory is PG_mlocked and on the unevictable list; after munlock it is
    neither, and back on an ordinary list."""
    if route == "on-fault,touch":
        needs_marks_at_fault(kind)
    lock = ROUTES[route]
    with mapping(kind, PAGES, flags=0 if lock else syscalls.MAP_LOCKED) as region:
        if lock:
            lock(region)
        assert marks(region) == marked(ALL), "locked"
        syscalls.munlock(region.addr, region.size)
        assert marks(region) == marked(NONE), "unlocked"


@pytest.mark.needs("lock-all")
@pytest.mark.parametrize("kind", ["private", "memfd-shared"])
@pytest.mark.parametrize("flag", ["MCL_CURRENT", "MCL_FUTURE"])
@pytest.mark.usefixtures("one_cpu")
def test_mlockall_marks_every_page_until_munlockall(flag, kind):
    """Every page locked by mlockall is PG_mlocked, and no longer after munlockall."""
    with ExitStack() as stack:
        if flag == "MCL_CURRENT":
            region = stack.enter_context(mapping(kind, PAGES))
            syscalls.mlockall(syscalls.MCL_CURRENT)
        else:
            syscalls.mlockall(syscalls.MCL_FUTURE)
            region = stack.enter_context(mapping(kind, PAGES))
        locked = mlocked(region)
        syscalls.munlockall()
        assert locked == ALL, "locked"
        assert marks(region) == marked(NONE), "unlocked"


@pytest.mark.parametrize("touched", [True, False], ids=["present", "absent"])
@pytest.mark.parametrize("kind", ["private", "memfd-private", "memfd-shared"])
@pytest.mark.usefixtures("one_cpu")
def test_lock_of_part_marks_that_part_only(kind, touched):
    """mlock marks the pages of its range, first and last too, present before or not, and no page
    beside them; munlock of one takes the mark from that one."""
    with mapping(kind, PAGES) as region:
        if touched:
            region.touch()
        syscalls.mlock(region.at(2), 4 * PAGE)
        region.touch()
        assert marks(region) == marked("00111100"), "pages 2 to 5"
        syscalls.munlock(region.at(4), PAGE)
        assert marks(region) == marked("00110100"), "and no longer page 4"
        syscalls.munlock(region.at(2), 4 * PAGE)
        assert marks(region) == marked(NONE), "none"


@pytest.mark.parametrize("kind", ["private", "memfd-private", "memfd-shared"])
@pytest.mark.claim("W17")
@pytest.mark.usefixtures("one_cpu")
def test_fault_lock_marks_present_and_touched_pages(kind):
    """mlock2(MLOCK_ONFAULT) marks the pages that are present, and each further one when it is
    touched."""
    needs_marks_at_fault(kind)
    with mapping(kind, PAGES) as region:
        region.sub(0, 1).touch()
        region.sub(7, 1).touch()
        syscalls.mlock2(region.addr, region.size, syscalls.MLOCK_ONFAULT)
        assert mlocked(region) == "10000001", "the two that are present"
        region.sub(3, 2).touch()
        assert mlocked(region) == "10011001", "and the two touched now, at once"


@pytest.mark.usefixtures("one_cpu")
def test_read_fault_marks_every_page_it_maps():
    """A read of a fault-locked file mapping marks every page that comes in with it."""
    needs_marks_at_fault("memfd-shared")
    fd = memory.memfd(PAGES * PAGE)
    os.pwrite(fd, b"x" * (PAGES * PAGE), 0)
    with mapping("memfd-shared", PAGES, fd=fd) as region:
        syscalls.mlock2(region.addr, region.size, syscalls.MLOCK_ONFAULT)
        syscalls.load(region.at(2), 1)
        pages = page_flags.snapshot(region.addr, PAGES)
        assert pages.present[2] is True, "the page read is present"
        assert residency.bits(pages.mlocked) == residency.bits(pages.present), (
            "all that are, marked"
        )
    os.close(fd)


@pytest.mark.parametrize("first", [0, 1], ids=["first-locker", "second-locker"])
@pytest.mark.usefixtures("one_cpu")
def test_munlock_of_one_mapping_leaves_the_other_locked(first):
    """A page locked through two mappings keeps its mark until both have unlocked it, in either
    order."""
    with ExitStack() as stack:
        fd = memory.memfd(PAGES * PAGE)
        stack.callback(os.close, fd)
        two = [stack.enter_context(mapping("memfd-shared", PAGES, fd=fd)) for _ in range(2)]
        for region in two:
            region.touch()
        # A page that still waits to join its list is not counted for its lockers (5.18).
        lru_batches.mlock_drain_local()
        for region in two:
            syscalls.mlock(region.addr, region.size)
        assert marks(two[0]) == marked(ALL), "locked twice"
        syscalls.munlock(two[first].addr, two[first].size)
        assert marks(two[0]) == marked(ALL), "locked by the other mapping"
        other = two[1 - first]
        syscalls.munlock(other.addr, other.size)
        assert marks(two[0]) == marked(NONE), "locked by none"


@pytest.mark.parametrize("lf", [0, syscalls.MLOCK_ONFAULT], ids=["full", "on-fault"])
@pytest.mark.usefixtures("one_cpu")
def test_munmap_of_locked_memory_unmarks_pages_that_live_on(lf):
    """munmap of locked memory takes the mark from shared pages that live on; those of its other
    pages stay."""
    needs_marks_at_fault("shared")
    with ExitStack() as stack:
        fd = memory.memfd(PAGES * PAGE)
        stack.callback(os.close, fd)
        region = stack.enter_context(mapping("memfd-shared", PAGES, fd=fd))
        other = stack.enter_context(mapping("memfd-shared", PAGES, fd=fd))
        other.touch()
        lru_batches.mlock_drain_local()
        syscalls.mlock2(region.addr, region.size, lf)
        region.touch()
        assert marks(other) == marked(ALL), "locked through one of two mappings"
        layouts.unmap_pages(region, 2, 3)
        assert marks(other) == marked("11000111"), "three pages unmapped there"


@pytest.mark.parametrize("kind", ["private", "memfd-private", "memfd-shared"])
@pytest.mark.usefixtures("one_cpu")
def test_marks_stay_when_the_mapping_changes(kind):
    """mprotect and mremap of locked memory leave the marks on its pages, and mark what they add."""
    with mapping(kind, PAGES) as region, mapping("private", PAGES) as elsewhere:
        layouts.unmap_pages(region, 5, 3)
        syscalls.mlock(region.addr, 5 * PAGE)
        syscalls.mprotect(region.addr, 5 * PAGE, syscalls.PROT_READ)
        syscalls.mprotect(region.addr, 5 * PAGE, syscalls.PROT_RW)
        assert mlocked(region.sub(0, 5)) == "11111", "after mprotect to read-only and back"
        how = syscalls.MREMAP_MAYMOVE | syscalls.MREMAP_FIXED
        syscalls.mremap(region.addr, 5 * PAGE, region.size, how, elsewhere.addr)
        assert mlocked(elsewhere) == ALL, "moved by mremap and grown"


@pytest.mark.usefixtures("one_cpu")
def test_marks_of_pages_that_replace_truncated_ones():
    """Pages of a locked mapping that truncation took are marked when they come in again."""
    fd = memory.memfd(PAGES * PAGE)
    with mapping("memfd-private", PAGES, fd=fd) as region:
        syscalls.mlock(region.addr, region.size)
        os.ftruncate(fd, 2 * PAGE)
        os.ftruncate(fd, PAGES * PAGE)
        assert mlocked(region) == "11000000", "six pages are gone"
        region.touch()
        assert marks(region) == marked(ALL), "all are back and marked"
    os.close(fd)


@pytest.mark.needs("dontneed-locked")
@pytest.mark.usefixtures("one_cpu")
def test_marks_of_pages_that_replace_dropped_ones():
    """After MADV_DONTNEED_LOCKED a read maps the zero page, unmarked; a write brings in a marked
    page."""
    with mapping("private", PAGES) as region:
        syscalls.mlock(region.addr, region.size)
        syscalls.madvise(region.addr, region.size, syscalls.MADV_DONTNEED_LOCKED)
        region.read()
        pages = page_flags.snapshot(region.addr, PAGES)
        seen = (residency.bits(pages.bits(page_flags.ZERO_PAGE)), residency.bits(pages.mlocked))
        assert seen == (ALL, NONE), "zero pages, not marked"
        region.sub(2, 3).touch()
        assert mlocked(region) == "00111000", "the pages written"
