# SPDX-License-Identifier: MIT
"""What a lock is for: no page fault on a later touch; and the faults that it does not spare."""

import os

import pytest

from helpers import memory, processes, syscalls
from helpers.memory import MAPPING_KINDS, layouts, mapping
from helpers.observe import maps, page_faults, residency
from helpers.observe.page_faults import Faults

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("lock:8"),
    pytest.mark.claim("W3"),
    pytest.mark.source("mlock(2) NOTES"),
]

PAGES = 8
NO_FAULT = Faults(0, 0)
OWN = ("private", "memfd-private", "file-private")
SHMEM = ("shared", "memfd-shared")
ROUTES = {
    "mlock": lambda r: syscalls.mlock(r.addr, r.size),
    "MAP_LOCKED": lambda r: None,
}


def flags_of(route):
    return syscalls.MAP_LOCKED if route == "MAP_LOCKED" else 0


@pytest.mark.parametrize("kind", MAPPING_KINDS)
def test_reading_locked_memory_does_not_fault(kind):
    """Reading locked memory that was never touched causes no fault; unlocked memory does."""
    with mapping(kind, PAGES) as control:
        unlocked = page_faults.faults_reading(control.addr, control.size)
    with mapping(kind, PAGES) as region:
        syscalls.mlock(region.addr, region.size)
        assert page_faults.faults_reading(region.addr, region.size) == NO_FAULT, (
            "no fault in locked memory"
        )
        # A file's cached pages come several at a fault; new memory one by one.
        least = 1 if kind.startswith("file") else PAGES
        assert unlocked.minor >= least, "the same reads of unlocked memory do fault"


@pytest.mark.parametrize("kind", OWN)
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.claim("W6")
def test_writing_locked_private_memory_does_not_fault(route, kind):
    """Writing locked private memory that was never touched causes no fault, be it anonymous or a
    file's; unlocked, each page does."""
    with mapping(kind, PAGES) as control:
        unlocked = page_faults.faults_writing(control.addr, control.size)
    with mapping(kind, PAGES, flags=flags_of(route)) as region:
        ROUTES[route](region)
        assert page_faults.faults_writing(region.addr, region.size) == NO_FAULT, (
            "no fault in locked memory"
        )
    assert unlocked.minor == PAGES, "one fault a page in unlocked memory"


@pytest.mark.parametrize("kind", SHMEM)
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.detects("minor-fault-on-locked", "major-fault-on-locked")
def test_writing_locked_shared_memory_faults_like_memory_in_use(route, kind):
    """The first write to locked shared memory faults no more than one to memory that is mapped
    already: not at all, where the processor notes a write by itself."""
    with mapping(kind, PAGES) as control:
        control.read()  # maps every page, clean
        in_use = page_faults.faults_writing(control.addr, control.size)
    with mapping(kind, PAGES, flags=flags_of(route)) as region:
        ROUTES[route](region)
        assert page_faults.faults_writing(region.addr, region.size) == in_use, "as memory in use"
        assert page_faults.faults_writing(region.addr, region.size) == NO_FAULT, (
            "no fault afterwards"
        )
    # Without hardware management of the dirty bit (some arm64, riscv) a write to a clean
    # page is a fault.
    assert in_use.minor in {0, PAGES}, "none, or one a page"


@pytest.mark.needs("smaps-flags")
@pytest.mark.parametrize(
    "kind", [*SHMEM, pytest.param("file-shared", marks=pytest.mark.needs("disk-file"))]
)
@pytest.mark.detects("mlock-writes-shared")
def test_lock_does_not_dirty_shared_memory(kind):
    """mlock of writable shared memory reads its pages in and leaves them clean."""
    with mapping(kind, PAGES) as region:
        syscalls.mlock(region.addr, region.size)
        vma = maps.at(region.addr)
        assert (vma.field_kb("Rss"), vma.field_kb("Private_Clean")) == (vma.kb, vma.kb), (
            "all pages are resident and clean"
        )
        region.sub(2, 1).touch()
        dirty = maps.at(region.addr).field_kb("Private_Dirty")
        assert dirty == syscalls.PAGE_KB, "a write makes its page dirty"


@pytest.mark.needs("disk-file")
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.source("mm/memory.c do_page_mkwrite")
def test_first_write_to_locked_shared_file_faults_once_a_page(route):
    """The first write to each page of a locked shared file on disk faults, so that the file system
    learns of it, and again after fsync; a second write does not."""
    with mapping("file-shared", PAGES, flags=flags_of(route)) as region:
        ROUTES[route](region)
        first = page_faults.faults_writing(region.addr, region.size)
        second = page_faults.faults_writing(region.addr, region.size)
        os.fsync(region.fd)
        third = page_faults.faults_writing(region.addr, region.size)
        # Before 6.0 such a fault is tried twice and counted as major (d92725256b4f).
        seen = [f.minor + f.major for f in (first, second, third)]
        assert seen == [PAGES, 0, PAGES], "a fault a page: first, not again, again after fsync"


@pytest.mark.parametrize("kind", ["private", "memfd-private"])
def test_writing_locked_memory_after_fork_faults_once_a_page(kind):
    """After fork the parent's first write to each locked private page faults, for it is shared
    with the child; a second write does not."""
    with mapping(kind, PAGES) as region:
        syscalls.mlock(region.addr, region.size)
        with processes.Child():
            first = page_faults.faults_writing(region.addr, region.size)
            second = page_faults.faults_writing(region.addr, region.size)
        assert (first, second) == (Faults(PAGES, 0), NO_FAULT), "a fault a page, then none"


@pytest.mark.claim("W6")
def test_lock_after_fork_spares_the_faults():
    """mlock of private memory shared with a child copies its pages at once: no later write
    faults, and the child keeps the old contents."""
    with mapping("private", PAGES) as region:
        region.touch(0x11)
        with processes.Child() as child:
            syscalls.mlock(region.addr, region.size)
            faults = page_faults.faults_writing(region.addr, region.size, 0x22)
            inherited = child.call(syscalls.load, region.addr, 1)
        assert faults == NO_FAULT, "no fault after the lock"
        assert inherited == b"\x11", "the child has the old page"


@pytest.mark.parametrize("kind", OWN)
@pytest.mark.claim("W6")
def test_lock_of_memory_that_was_only_read_spares_the_faults(kind):
    """mlock of private memory that was read and never written makes pages of its own of the
    shared ones: no later write faults."""
    with mapping(kind, PAGES) as region:
        region.read()
        assert residency.mapped_bits(region) == "1" * PAGES, "every page is mapped by the reads"
        syscalls.mlock(region.addr, region.size)
        assert page_faults.faults_writing(region.addr, region.size) == NO_FAULT, (
            "no fault after the lock"
        )


@pytest.mark.own_process
@pytest.mark.parametrize("kind", OWN)
def test_growth_by_mremap_does_not_fault(kind):
    """Memory added to a locked mapping by mremap is written without a fault."""
    fd = {"memfd-private": memory.memfd, "file-private": lambda n: memory.scratch_file(PAGES)}
    used = fd[kind](PAGES * syscalls.PAGE) if kind in fd else None
    with mapping(kind, PAGES, fd=used) as region:
        layouts.unmap_pages(region, 2, PAGES - 2)
        syscalls.mlock(region.addr, 2 * syscalls.PAGE)
        syscalls.mremap(region.addr, 2 * syscalls.PAGE, region.size)
        assert page_faults.faults_writing(region.addr, region.size) == NO_FAULT, "no fault"
