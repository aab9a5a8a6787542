# SPDX-License-Identifier: MIT
"""Every way to give up locked memory takes exactly its pages out of VmLck."""

import os

import pytest

from helpers import syscalls
from helpers.memory import mapping
from helpers.memory.layouts import unmap_pages
from helpers.observe import lock_accounting
from helpers.observe.lock_accounting import expect
from helpers.syscalls import PAGE

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("lock:16", "smaps-flags"),
    pytest.mark.source("munlock(2)"),
]

FIXED = syscalls.MAP_PRIVATE | syscalls.MAP_ANONYMOUS | syscalls.MAP_FIXED


def map_over(addr, length):
    return syscalls.mmap(addr, length, syscalls.PROT_RW, FIXED)


def lock_as(region, letters):
    """Bring each page of the region into the state of its letter."""
    for page, letter in enumerate(letters):
        if letter != "-":
            syscalls.mlock2(region.at(page), PAGE, syscalls.MLOCK_ONFAULT if letter == "F" else 0)


RELEASES = pytest.mark.parametrize(
    "release",
    [syscalls.munlock, syscalls.munmap, map_over],
    ids=["munlock", "munmap", "MAP_FIXED"],
)


@RELEASES
@pytest.mark.parametrize(
    ("before", "first", "count", "after"),
    [
        ("LLLLLLLL", 0, 8, "--------"),
        ("LLLLLLLL", 0, 3, "---LLLLL"),
        ("LLLLLLLL", 2, 4, "LL----LL"),
        ("LLLLLLLL", 5, 3, "LLLLL---"),
        ("LLLLLLLL", 7, 1, "LLLLLLL-"),
        ("LL-LLL-L", 0, 8, "--------"),  # three islands
        ("LL-LLL-L", 1, 6, "L------L"),  # from inside one to behind the next
        ("-LLL-FF-", 2, 4, "-L----F-"),
        ("FFFFFFFF", 2, 3, "FF---FFF"),
        ("--LL--FF", 4, 2, "--LL--FF"),  # nothing locked in it
    ],
)
@pytest.mark.detects("vmlck-munmap-kept", "vmlck-munmap-one-short", "vmlck-mapfixed-kept")
def test_release_takes_exactly_its_pages(release, before, first, count, after):
    """munlock, munmap and mmap(MAP_FIXED) of a part take that part's locked pages, and no
    others, out of VmLck."""
    with mapping("private", 8) as region:
        lock_as(region, before)
        release(region.at(first), count * PAGE)
        assert lock_accounting.read(region) == expect(after, resident=after.count("L")), (
            "only the locked pages of the part are no longer counted"
        )


@RELEASES
@pytest.mark.parametrize("kind", ["shared", "memfd-private", "file-shared", "file-private"])
def test_release_of_other_kinds(release, kind):
    """File and shared memory leave VmLck like anonymous memory: head, middle, tail, rest."""
    with mapping(kind, 8, flags=syscalls.MAP_LOCKED) as region:
        for first, count, after in (
            (3, 2, "LLL--LLL"),
            (0, 1, "-LL--LLL"),
            (6, 2, "-LL--L--"),
            (0, 8, "--------"),
        ):
            release(region.at(first), count * PAGE)
            assert lock_accounting.read(region) == expect(after, resident=after.count("L")), (
                "only the pages released are no longer counted"
            )


def test_munlock_rounds_outward_in_the_account():
    """munlock of two bytes across a page boundary takes both pages out of VmLck."""
    with mapping("private", 8) as region:
        syscalls.mlock(region.addr, region.size)
        syscalls.munlock(region.at(4) - 1, 2)
        assert lock_accounting.read(region) == expect("LLL--LLL", resident=6), "two pages leave"


@pytest.mark.detects("vmlck-never-falls", "vmlck-munlock-kept", "vmlck-munlock-one-short")
def test_munlock_restores_vmlck_and_flags():
    """mlock and munlock in turn leave the account as it was, time after time, and the second
    munlock takes nothing away."""
    with mapping("private", 8) as region:
        syscalls.mlock(region.addr, PAGE)
        for _ in range(2):
            syscalls.mlock(region.at(2), 5 * PAGE)
            assert lock_accounting.read(region) == expect("L-LLLLL-", resident=6), "locked"
            syscalls.munlock(region.at(2), 5 * PAGE)
            syscalls.munlock(region.at(2), 5 * PAGE)
            assert lock_accounting.read(region) == expect("L-------", resident=1), "unlocked once"


def test_munlock_undoes_map_locked():
    """munlock of a MAP_LOCKED mapping takes it out of VmLck."""
    with mapping("private", 8, flags=syscalls.MAP_LOCKED) as region:
        syscalls.munlock(region.addr, region.size)
        assert lock_accounting.read(region) == expect("--------", resident=0), "nothing is locked"


def test_munlock_clears_onfault_flag():
    """munlock of a lock on fault clears lf with lo: a later mlock is a full one."""
    with mapping("private", 8) as region:
        syscalls.mlock2(region.addr, region.size, syscalls.MLOCK_ONFAULT)
        syscalls.memset(region.at(1), 1, 1)
        syscalls.munlock(region.addr, region.size)
        assert lock_accounting.read(region) == expect("--------", resident=0), "nothing is locked"
        syscalls.mlock(region.addr, 4 * PAGE)
        assert lock_accounting.read(region) == expect("LLLL----", resident=4), "no lf is left"


def test_munlock_stopped_by_hole_takes_what_it_unlocked():
    """A munlock that fails at a hole takes what it unlocked before the hole out of VmLck."""
    with mapping("private", 8) as region:
        unmap_pages(region, 4)
        syscalls.outcome(syscalls.mlock, region.addr, 4 * PAGE)
        syscalls.mlock(region.at(5), 3 * PAGE)
        seen = syscalls.outcome(syscalls.munlock, region.at(2), 6 * PAGE)
        assert seen == "ENOMEM", "page 4 is not mapped"
        assert lock_accounting.read(region) == expect("LL---LLL", resident=5), "pages 2 and 3 leave"


def test_munmap_over_several_mappings():
    """One munmap over locked memory of different kinds takes all of it out of VmLck."""
    with mapping("private", 12) as region:
        how = syscalls.MAP_ANONYMOUS | syscalls.MAP_FIXED
        syscalls.mmap(region.at(3), 2 * PAGE, syscalls.PROT_RW, how | syscalls.MAP_SHARED)
        syscalls.mmap(region.at(5), 2 * PAGE, syscalls.PROT_READ, how | syscalls.MAP_PRIVATE)
        syscalls.mlock(region.addr, 7 * PAGE)
        syscalls.mlock2(region.at(8), 4 * PAGE, syscalls.MLOCK_ONFAULT)
        assert lock_accounting.read(region) == expect("LLLLLLL-FFFF", resident=5), "as set up"
        syscalls.munmap(region.at(1), 9 * PAGE)
        assert lock_accounting.read(region) == expect("L---------FF", resident=1), (
            "one page and two are left"
        )


@pytest.mark.parametrize("covers", [(0, 8), (2, 4), (6, 2)])
def test_map_locked_over_locked_counts_once(covers):
    """mmap(MAP_FIXED|MAP_LOCKED) over locked memory replaces its count."""
    first, count = covers
    with mapping("private", 8) as region:
        syscalls.mlock(region.addr, region.size)
        syscalls.mmap(region.at(first), count * PAGE, syscalls.PROT_RW, FIXED | syscalls.MAP_LOCKED)
        assert lock_accounting.read(region) == expect("LLLLLLLL", resident=8), (
            "8 pages count as before"
        )


def test_map_locked_over_partly_locked():
    """mmap(MAP_FIXED|MAP_LOCKED) over the end of a locked range and beyond counts the union."""
    with mapping("private", 8) as region:
        syscalls.mlock2(region.addr, 4 * PAGE, syscalls.MLOCK_ONFAULT)
        syscalls.mmap(region.at(2), 4 * PAGE, syscalls.PROT_RW, FIXED | syscalls.MAP_LOCKED)
        assert lock_accounting.read(region) == expect("FFLLLL--", resident=4), "six pages count"


def test_file_mapped_over_locked_memory_is_not_locked():
    """mmap(MAP_FIXED) of a file over locked anonymous memory takes it out of VmLck."""
    with mapping("file-shared", 2) as file, mapping("private", 8) as region:
        syscalls.mlock(region.addr, region.size)
        how = syscalls.MAP_SHARED | syscalls.MAP_FIXED
        syscalls.mmap(region.at(3), 2 * PAGE, syscalls.PROT_RW, how, file.fd)
        assert lock_accounting.read(region) == expect("LLL--LLL", resident=6), (
            "the file is not locked"
        )


def test_refused_calls_leave_the_account():
    """munmap, mmap and munlock that are refused for their arguments change no count."""
    with mapping("private", 8) as region:
        syscalls.mlock(region.addr, region.size)
        bad_fd = os.dup(0)
        os.close(bad_fd)
        noreplace = syscalls.MAP_PRIVATE | syscalls.MAP_ANONYMOUS | syscalls.MAP_FIXED_NOREPLACE
        seen = {
            "munmap of half a page": syscalls.outcome(syscalls.munmap, region.addr + 1, PAGE),
            "munmap of nothing": syscalls.outcome(syscalls.munmap, region.addr, 0),
            "mmap of no file": syscalls.outcome(
                syscalls.mmap,
                region.addr,
                PAGE,
                syscalls.PROT_RW,
                syscalls.MAP_PRIVATE | syscalls.MAP_FIXED,
                bad_fd,
            ),
            "mmap over something": syscalls.outcome(
                syscalls.mmap, region.addr, PAGE, syscalls.PROT_RW, noreplace | syscalls.MAP_LOCKED
            ),
            "munlock that overflows": syscalls.outcome(syscalls.munlock, region.addr, -PAGE),
        }
        assert seen == {
            "munmap of half a page": "EINVAL",
            "munmap of nothing": "EINVAL",
            "mmap of no file": "EBADF",
            "mmap over something": "EEXIST",
            "munlock that overflows": "EINVAL",
        }, "each is refused"
        assert lock_accounting.read(region) == expect("LLLLLLLL", resident=8), (
            "8 pages count as before"
        )
