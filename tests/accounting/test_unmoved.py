# SPDX-License-Identifier: MIT
"""What does not change the account: protection, advice, truncation, forks, other processes."""

import os

import pytest

from helpers import syscalls
from helpers.memory import mapping, memfd
from helpers.observe import lock_accounting, status
from helpers.observe.lock_accounting import expect
from helpers.processes import Child
from helpers.syscalls import PAGE

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("lock:16", "smaps-flags"),
    pytest.mark.source("mlock(2) NOTES"),
]


@pytest.mark.parametrize(
    ("kind", "letter"), [("private", "L"), ("private", "F"), ("memfd-shared", "L")]
)
@pytest.mark.parametrize(
    "prot",
    [syscalls.PROT_NONE, syscalls.PROT_READ, syscalls.PROT_WRITE],
    ids=["none", "read", "write"],
)
@pytest.mark.detects("vmlck-mprotect-lowers")
def test_mprotect_leaves_the_account(prot, kind, letter):
    """mprotect of a part, of all, and back leaves every locked page locked and counted."""
    with mapping(kind, 8) as region:
        region.sub(0, 4).touch()
        syscalls.mlock2(region.addr, region.size, syscalls.MLOCK_ONFAULT if letter == "F" else 0)
        expected = expect(letter * 8, resident=4 if letter == "F" else 8)
        syscalls.mprotect(region.at(2), 4 * PAGE, prot)
        assert lock_accounting.read(region) == expected, "a part with other rights counts as before"
        syscalls.mprotect(region.addr, region.size, prot)
        assert lock_accounting.read(region) == expected, "all of it too"
        syscalls.mprotect(region.addr, region.size, syscalls.PROT_RW)
        assert lock_accounting.read(region) == expected, "and back"
        syscalls.munlock(region.addr, region.size)
        assert lock_accounting.read(region) == expect("--------", 0), (
            "and all of it can be unlocked"
        )


def test_mprotect_of_unlocked_memory_counts_nothing():
    """Unlocked memory made inaccessible and accessible again is not counted."""
    with mapping("private", 8) as region:
        syscalls.mlock(region.at(4), 4 * PAGE)
        syscalls.mprotect(region.addr, region.size, syscalls.PROT_NONE)
        syscalls.mprotect(region.addr, region.size, syscalls.PROT_RW)
        assert lock_accounting.read(region) == expect("----LLLL", resident=4), (
            "four pages as before"
        )


def test_inaccessible_mapping_made_writable_counts_once():
    """A MAP_LOCKED PROT_NONE mapping made writable is populated then; its count stays."""
    with mapping("private", 8, prot=syscalls.PROT_NONE, flags=syscalls.MAP_LOCKED) as region:
        syscalls.mprotect(region.addr, region.size, syscalls.PROT_RW)
        assert lock_accounting.read(region) == expect("LLLLLLLL", resident=8), "8 pages count once"


@pytest.mark.needs("dontneed-locked")
@pytest.mark.source("madvise(2) MADV_DONTNEED_LOCKED")
@pytest.mark.parametrize("letter", ["L", "F"], ids=["full", "onfault"])
def test_dropped_pages_still_count(letter):
    """MADV_DONTNEED_LOCKED drops pages of locked memory; they count as before."""
    with mapping("private", 8) as region:
        syscalls.mlock2(region.addr, region.size, syscalls.MLOCK_ONFAULT if letter == "F" else 0)
        region.touch()
        syscalls.madvise(region.at(2), 3 * PAGE, syscalls.MADV_DONTNEED_LOCKED)
        assert lock_accounting.read(region) == expect(letter * 8, resident=5), (
            "VmLck stays, Locked falls by three"
        )


@pytest.mark.source("madvise(2)")
@pytest.mark.detects("vmlck-advice-lowers")
def test_refused_advice_leaves_the_account():
    """MADV_DONTNEED of locked memory fails and changes neither count nor residency."""
    with mapping("private", 8) as region:
        syscalls.mlock(region.addr, region.size)
        seen = syscalls.outcome(syscalls.madvise, region.addr, region.size, syscalls.MADV_DONTNEED)
        assert seen == "EINVAL", "locked memory cannot be dropped"
        syscalls.madvise(region.at(2), 2 * PAGE, syscalls.MADV_DONTFORK)
        syscalls.madvise(region.at(5), 2 * PAGE, syscalls.MADV_DONTDUMP)
        assert lock_accounting.read(region) == expect("LLLLLLLL", resident=8), "8 pages as before"


@pytest.mark.claim("W17")
@pytest.mark.parametrize("kind", ["memfd-shared", "memfd-private"])
def test_truncated_file_still_counts(kind):
    """Locked pages of a file that is cut off below them go; they count as before."""
    fd = memfd(8 * PAGE)
    with mapping(kind, 8, fd=fd) as region:
        syscalls.mlock(region.addr, region.size)
        os.ftruncate(fd, 3 * PAGE)
        assert lock_accounting.read(region) == expect("LLLLLLLL", resident=3), (
            "VmLck stays, Locked falls by five"
        )
    os.close(fd)


@pytest.mark.needs("remap-file-pages")
@pytest.mark.source("remap_file_pages(2)")
def test_remap_file_pages_keeps_the_count():
    """remap_file_pages within a locked mapping leaves all of it lo and counted."""
    with mapping("memfd-shared", 4) as region:
        syscalls.mlock(region.addr, region.size)
        syscalls.syscall("remap_file_pages", region.addr, PAGE, 0, 2, 0)
        # Page 2 of the file is now mapped twice, page 0 no longer.
        assert lock_accounting.read(region) == expect("LLLL", resident=3), "four pages count"
        syscalls.syscall("remap_file_pages", region.at(1), 2 * PAGE, 0, 2, 0)
        assert lock_accounting.read(region) == expect("LLLL", resident=2), "four pages count"
        syscalls.munmap(region.addr, 2 * PAGE)
        # Both of these show page 3 of the file.
        assert lock_accounting.read(region) == expect("--LL", resident=1), "two are left"


@pytest.mark.claim("W19")
def test_fork_leaves_the_account():
    """A fork changes nothing in the parent's count; Locked, a PSS, is halved while parent and
    child share the pages."""
    with mapping("private", 8) as region, mapping("private", 1) as beside:
        syscalls.mlock(region.addr, region.size)
        syscalls.mlock(beside.addr, PAGE)
        with Child() as child:
            assert lock_accounting.read(region) == expect("LLLLLLLL", resident=4.5, elsewhere=1), (
                "9 pages count in the parent; half of each shared page is its own"
            )
            assert lock_accounting.read(region, child.pid) == expect("--------", 0), (
                "nothing counts in the child"
            )
            region.touch()
            assert lock_accounting.read(region) == expect("LLLLLLLL", resident=8.5, elsewhere=1), (
                "written pages are the parent's alone"
            )


@pytest.mark.claim("W13")
def test_two_processes_count_for_themselves():
    """Two processes that lock the same shared pages count them each; one's unlocking or exit
    leaves the other's count."""
    with mapping("shared", 8) as region:
        syscalls.mlock(region.addr, region.size)
        with Child() as child:
            child.call(syscalls.mlock, region.at(2), 6 * PAGE)
            assert lock_accounting.read(region, child.pid) == expect("--LLLLLL", 3), (
                "6 pages count in the child, half of each is its own"
            )
            assert lock_accounting.read(region) == expect("LLLLLLLL", resident=5), (
                "8 pages count in the parent, half of the six mapped by both"
            )
            child.call(syscalls.munlock, region.at(2), 2 * PAGE)
            assert lock_accounting.read(region, child.pid) == expect("----LLLL", 2), (
                "4 are left there"
            )
            seen = lock_accounting.read(region)
            assert (seen.vmlck, seen.pages) == (8, "LLLLLLLL"), "8 pages count here"
            child.exit()
        seen = lock_accounting.read(region)
        assert (seen.vmlck, seen.lo, seen.pages) == (8, 8, "LLLLLLLL"), "8 pages count here"


def lock_own(size):
    return syscalls.mlock(syscalls.mmap(0, size), size)


def test_exit_leaves_others_alone():
    """A process that ends with locked memory of its own takes nothing from its parent's
    count."""
    with mapping("private", 8) as region:
        syscalls.mlock(region.addr, 6 * PAGE)
        with Child() as child:
            child.call(lock_own, 10 * PAGE)
            assert status.vmlck_pages(child.pid) == 10, "the child counts its own"
            assert status.vmlck_pages() == 6, "the parent its own"
            child.exit()
        seen = lock_accounting.read(region)
        assert (seen.vmlck, seen.lo, seen.pages) == (6, 6, "LLLLLL--"), "six pages as before"


@pytest.mark.source("proc_pid_smaps(5) Locked")
@pytest.mark.detects(
    "smaps-locked-zero", "smaps-locked-one-short", "smaps-locked-is-rss", "rollup-locked-zero"
)
def test_locked_is_a_share_of_shared_pages():
    """Locked counts a page mapped twice by half in each locked mapping, though VmLck counts
    it in full; the half of an unlocked mapping is not in it."""
    with mapping("memfd-shared", 8) as one, mapping("memfd-shared", 8, fd=one.fd) as other:
        syscalls.mlock(one.addr, one.size)
        other.touch()
        assert lock_accounting.read(one) == expect("LLLLLLLL", resident=4), "half of 8 pages"
        syscalls.mlock(other.addr, 4 * PAGE)
        assert lock_accounting.read(one) == expect("LLLLLLLL", resident=6, elsewhere=4), (
            "12 pages count, and half of each"
        )
        syscalls.munlock(one.addr, one.size)
        assert lock_accounting.read(other) == expect("LLLL----", resident=2), "half of four"


def test_unlocked_memory_is_not_in_locked():
    """Resident memory that is not locked is neither in VmLck nor in Locked."""
    with mapping("private", 8) as region:
        region.touch()
        assert lock_accounting.read(region) == expect("--------", resident=0), "nothing is locked"
