# SPDX-License-Identifier: MIT
"""Files on one file system after another: the lock is the page cache's and the mapping's."""

import os
import tempfile

import pytest

from helpers import memory, syscalls
from helpers.machine import mounts
from helpers.memory import huge_pages, mapping
from helpers.observe import (
    folios,
    huge_mappings,
    lock_accounting,
    lru_batches,
    mincore,
    page_faults,
    page_flags,
    pagemap,
    residency,
    status,
)
from helpers.requirements.inconclusive import inconclusive
from helpers.syscalls import PAGE

N = 16

pytestmark = [
    pytest.mark.needs("lock:16", "mount"),
    pytest.mark.source("mlock(2)", "unevictable-lru.rst"),
]
FLAGS = pytest.mark.needs("kpageflags")
OVERLAY = pytest.mark.needs("CAP_DAC_OVERRIDE")  # into its work folder, of mode 0
ALL = ["tmpfs", "ramfs", "overlay", "ext4", "xfs", "btrfs"]
MARKS = {"overlay": OVERLAY} | {k: pytest.mark.needs(f"mkfs-{k}") for k in ("ext4", "xfs", "btrfs")}


def kinds(*names):
    return pytest.mark.parametrize("kind", [pytest.param(n, marks=MARKS.get(n, ())) for n in names])


def mounted(kind):
    """A new file system for this process alone; what its tools or the kernel refuse is said."""
    try:
        return mounts.mount_new(kind)
    except OSError as error:
        return inconclusive(f"no {kind} could be mounted: {error}")


def file_of(folder, pages, at_once):
    """Descriptor of a file whose page n holds byte n, written page by page or in one go."""
    if not at_once:
        return memory.scratch_file(pages, folder)
    fd, path = tempfile.mkstemp(dir=folder)
    os.unlink(path)
    memory.write_file(fd, b"".join(bytes([page & 0xFF]) * PAGE for page in range(pages)))
    os.fsync(fd)
    return fd


def marked(region):
    """Marks of the pages, or None where a large folio's mark is not a page's."""
    lru_batches.mlock_drain_local()
    return residency.bits(folios.mlocked(region)) if folios.sizes(region) == {1: N} else None


@FLAGS
@kinds(*ALL)
@pytest.mark.parametrize("at_once", [False, True], ids=["by-page", "at-once"])
@pytest.mark.usefixtures("one_cpu")
def test_file_on_this_file_system_is_locked(kind, at_once):
    """mlock of a file, shared or private, on this file system brings every page in, mlocked and
    counted, and keeps it; a private one gets copies; munlock leaves no mark."""
    fd = file_of(mounted(kind), N, at_once)
    for how in ("file-shared", "file-private"):
        with mapping(how, N, fd=fd) as region:
            lru_batches.mlock_drain_local()
            syscalls.mlock(region.addr, region.size)
            assert lock_accounting.read(region) == lock_accounting.expect("L" * N, N), (
                f"{how}: locked"
            )
            copies = ("1" if how == "file-private" else "0") * N
            assert residency.anon_bits(region) == copies, f"{how}: copies"
            assert marked(region) in {"1" * N, None}, f"{how}: mlocked"
            assert page_faults.faults_reading(region.addr, region.size).minor == 0, (
                f"{how}: no faults"
            )
            assert region.first_bytes() == bytes(range(N)), f"{how}: contents"
            region.sub(3, 1).touch(0x99)
            assert marked(region) in {"1" * N, None}, f"{how}: written: mlocked"
            syscalls.munlock(region.at(4), 4 * PAGE)
            assert lock_accounting.read(region).pages == "L" * 4 + "-" * 4 + "L" * 8, (
                f"{how}: in part"
            )
            syscalls.munlock(region.addr, region.size)
            lru_batches.mlock_drain_local()
            assert not any(folios.mlocked(region)), f"{how}: unlocked: none is marked"
            syscalls.store(region.at(3), bytes([3]))
    with mapping("file-shared", N, fd=fd) as region:
        syscalls.mlock2(region.addr, region.size, syscalls.MLOCK_ONFAULT)
        region.first_bytes()
        assert status.vmlck_pages() == N, "locked on fault"
        assert residency.mapped_bits(region) == "1" * N, "touched: present"
    assert status.vmlck_pages() == 0, "unmapped"


@FLAGS
@kinds("ext4", "xfs", "btrfs")
@pytest.mark.usefixtures("one_cpu")
def test_locked_pages_of_this_file_system_are_not_dropped(kind):
    """posix_fadvise(DONTNEED) and sync drop what is cached beside a locked range, and no page of
    it."""
    fd = file_of(mounted(kind), 4 * N, False)
    with mapping("file-shared", N, fd=fd) as region:
        syscalls.mlock(region.addr, region.size)
        before = pagemap.pfns(region.addr, N)
        syscalls.store(region.at(1), b"dirty")
        os.pread(fd, 4 * N * PAGE, 0)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        assert residency.mapped_bits(region) == "1" * N, "locked: there"
        assert pagemap.pfns(region.addr, N) == before, "in their frames"
        assert region.first_bytes() == b"\0d" + bytes(range(2, N)), "contents"
        with mapping("file-shared", N, fd=fd, offset=3 * N * PAGE) as rest:
            if mincore.resident_count(rest.addr, N) == N:
                inconclusive("nothing of the file was dropped")


@FLAGS
@pytest.mark.usefixtures("one_cpu")
def test_pages_of_ramfs_are_unevictable_with_and_without_a_lock():
    """Pages of ramfs are unevictable by nature; mlock marks and counts them, munlock unmarks them
    and leaves them unevictable."""
    fd = file_of(mounted("ramfs"), N, False)
    with mapping("file-shared", N, fd=fd) as region:
        region.touch()
        for _ in range(2):
            syscalls.mlock(region.addr, region.size)
            lru_batches.mlock_drain_local()
            seen = page_flags.snapshot(region.addr, N)
            both = page_flags.MLOCKED | page_flags.UNEVICTABLE
            assert seen.count_with(both) == N, "locked: both"
            assert status.vmlck_pages() == N, "VmLck"
            syscalls.munlock(region.addr, region.size)
            lru_batches.mlock_drain_local()
            seen = page_flags.snapshot(region.addr, N)
            assert seen.count_with(page_flags.MLOCKED) == 0, "unlocked: not mlocked"
            assert seen.count_with(page_flags.UNEVICTABLE) == N, "but unevictable"


@OVERLAY
def test_copy_up_leaves_the_locked_lower_file():
    """A file of an overlay's lower layer that is locked stays so when a writer has it copied up:
    the mapping keeps its pages."""
    folder = mounted("overlay")
    lower = folder.parent / "lower" / "file"
    lower.write_bytes(b"".join(bytes([page]) * PAGE for page in range(N)))
    fd = os.open(folder / "file", os.O_RDONLY)
    with mapping("file-shared", N, fd=fd, prot=syscalls.PROT_READ) as region:
        syscalls.mlock(region.addr, region.size)
        with (folder / "file").open("r+b") as upper:
            upper.write(b"upper")
        assert lock_accounting.read(region) == lock_accounting.expect("L" * N, N), "locked"
        assert residency.mapped_bits(region) == "1" * N, "present"
        assert region.first_bytes() == bytes(range(N)), "the lower file's contents"
    os.close(fd)


@FLAGS
@pytest.mark.needs("thp", f"lock:{huge_pages.HPAGE_PMD_NR}", f"budget:{huge_pages.HPAGE_PMD_NR}")
@pytest.mark.usefixtures("one_cpu")
def test_huge_page_of_tmpfs_is_locked_whole_and_in_part():
    """A huge page of tmpfs is mlocked when it lies in a lock as a whole, not when only a part
    does; a hole punched into the file takes that part alone; munlock leaves no mark."""
    huge_pages.enable_thp()
    fd = os.open(mounted("tmpfs-huge") / "file", os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, huge_pages.HPAGE_PMD_SIZE)
    with huge_pages.thp_aligned_mapping(fd=fd, advise=False) as region:
        region.touch(0x31)
        if not huge_mappings.is_huge(region):
            inconclusive("tmpfs gave no huge page")
        huge_pages.keep_huge_pages()
        lru_batches.mlock_drain_local()
        syscalls.mlock(region.addr, region.size)
        lru_batches.mlock_drain_local()
        assert status.vmlck_pages() == huge_pages.HPAGE_PMD_NR, "VmLck"
        assert all(folios.mlocked(region)), "mlocked"
        syscalls.munlock(region.at(5), PAGE)
        lru_batches.mlock_drain_local()
        assert status.vmlck_pages() == huge_pages.HPAGE_PMD_NR - 1, "one page less"
        # Splitting the entry that maps a file's huge page unmaps it (__split_huge_pmd_locked() in
        # mm/huge_memory.c): locked or not, its pages wait in the page cache for the next touch.
        assert (
            mincore.resident_count(region.addr, huge_pages.HPAGE_PMD_NR) == huge_pages.HPAGE_PMD_NR
        ), "in the page cache"
        assert region.first_bytes() == b"\x31" * huge_pages.HPAGE_PMD_NR, "contents"
        lru_batches.mlock_drain_local()
        assert not any(folios.mlocked(region)), "a folio with an unlocked page is not mlocked"
        syscalls.mlock(region.addr, region.size)
        syscalls.punch_hole(fd, 8 * PAGE, 4 * PAGE)
        expected = [not 8 <= page < 12 for page in range(huge_pages.HPAGE_PMD_NR)]
        syscalls.mlock2(region.addr, region.size, syscalls.MLOCK_ONFAULT)
        region.sub(0, 8).first_bytes()
        region.sub(12, huge_pages.HPAGE_PMD_NR - 12).first_bytes()
        assert pagemap.present(region.addr, huge_pages.HPAGE_PMD_NR) == expected, (
            "the hole alone is gone"
        )
        assert region.first_bytes().count(b"\x31") == huge_pages.HPAGE_PMD_NR - 4, "contents"
        syscalls.munlock(region.addr, region.size)
        lru_batches.mlock_drain_local()
        assert not any(folios.mlocked(region)), "unlocked"
    os.close(fd)
