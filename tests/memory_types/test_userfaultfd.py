# SPDX-License-Identifier: MIT
"""userfaultfd on locked ranges: whoever fills the page, the lock holds it."""

import threading

import pytest

from helpers import memory, syscalls
from helpers.machine import kernel_version
from helpers.memory import huge_pages, mapping
from helpers.observe import (
    folios,
    huge_mappings,
    lock_accounting,
    lru_batches,
    maps,
    page_faults,
    page_flags,
    pagemap,
    residency,
    status,
)
from helpers.requirements.inconclusive import inconclusive
from helpers.syscalls import PAGE, userfaultfd

N = 8

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("lock:16"),
    pytest.mark.source("userfaultfd(2)", "ioctl_userfaultfd(2)"),
]
UFFD = pytest.mark.needs("userfaultfd")
FLAGS = pytest.mark.needs("kpageflags")
BEFORE_5_18 = kernel_version.version() < (5, 18, 0)
"""Pages of shared memory are marked by mlock or reclaim, not by what fills them."""
KINDS = pytest.mark.parametrize("kind", ["private", "memfd-shared"])


def serve(fd, source, faults, seen):
    """Answer so many faults with copies of the source page, and note where they were."""
    for _ in range(faults):
        addr = userfaultfd.wait_fault(fd)
        seen.append(addr)
        userfaultfd.copy(fd, addr, source.addr, PAGE)


@UFFD
@KINDS
def test_lock_of_a_registered_range_asks_the_handler_for_every_page(kind):
    """mlock of a range with missing faults registered waits for its handler, page by page, and
    succeeds with the handler's contents present and locked."""
    with mapping(kind, N) as region, mapping("private", 1) as source, userfaultfd.open_fd() as fd:
        source.write(0x77)
        userfaultfd.register(fd, region)
        seen = []
        handler = threading.Thread(target=serve, args=(fd, source, N, seen))
        handler.start()
        assert syscalls.outcome(syscalls.mlock, region.addr, region.size) == "ok", "mlock"
        handler.join()
        assert seen == [region.at(page) for page in range(N)], "a fault for each page, in order"
        assert region.first_bytes() == b"\x77" * N, "contents"
        assert lock_accounting.read(region) == lock_accounting.expect("L" * N, N), (
            "locked, counted, resident"
        )


@UFFD
def test_lock_populates_what_the_handler_was_not_asked_for():
    """mlock asks the handler only for pages that are absent."""
    with (
        mapping("private", N) as region,
        mapping("private", 1) as source,
        userfaultfd.open_fd() as fd,
    ):
        source.write(0x77)
        region.sub(0, N - 2).write(0x11)
        userfaultfd.register(fd, region)
        seen = []
        handler = threading.Thread(target=serve, args=(fd, source, 2, seen))
        handler.start()
        syscalls.mlock(region.addr, region.size)
        handler.join()
        assert seen == [region.at(N - 2), region.at(N - 1)], "two were absent"
        assert region.first_bytes() == b"\x11" * (N - 2) + b"\x77" * 2, "contents"


@pytest.mark.needs("uffd-user-mode")
def test_handler_that_takes_no_kernel_faults_fails_the_lock():
    """Where the handler takes faults of user mode only, mlock cannot populate: ENOMEM, and the
    range stays locked and counted."""
    with (
        mapping("private", N) as region,
        userfaultfd.open_fd(flags=userfaultfd.USER_MODE_ONLY) as fd,
    ):
        region.sub(0, 2).touch()
        userfaultfd.register(fd, region)
        assert syscalls.outcome(syscalls.mlock, region.addr, region.size) == "ENOMEM", "mlock"
        assert lock_accounting.read(region) == lock_accounting.expect("L" * N, 2), "locked, counted"
        assert residency.mapped_bits(region) == "11" + "0" * (N - 2), "not populated"
        userfaultfd.unregister(fd, region)
        assert syscalls.outcome(syscalls.mlock, region.addr, region.size) == "ok", (
            "unregistered: ok"
        )
        assert residency.mapped_bits(region) == "1" * N, "populated"


@UFFD
def test_lock_on_fault_asks_the_handler_for_nothing():
    """mlock2(MLOCK_ONFAULT) of a registered range returns at once, and counts it."""
    with mapping("private", N) as region, userfaultfd.open_fd() as fd:
        userfaultfd.register(fd, region)
        syscalls.mlock2(region.addr, region.size, syscalls.MLOCK_ONFAULT)
        assert lock_accounting.read(region) == lock_accounting.expect("F" * N, 0), "locked on fault"


@UFFD
@FLAGS
@KINDS
@pytest.mark.usefixtures("one_cpu")
def test_page_copied_into_a_locked_range_is_marked(kind):
    """UFFDIO_COPY into a locked range gives pages that are mlocked and need no fault; into an
    unlocked one, pages that are not."""
    with mapping(kind, N) as region, mapping("private", N) as source, userfaultfd.open_fd() as fd:
        source.write(0x42)
        userfaultfd.register(fd, region)
        syscalls.mlock2(region.addr, 6 * PAGE, syscalls.MLOCK_ONFAULT)
        userfaultfd.copy(fd, region.at(1), source.addr, 5 * PAGE)
        userfaultfd.copy(fd, region.at(6), source.addr, 2 * PAGE)
        assert residency.mapped_bits(region) == "01111111", "seven pages are there"
        if kind == "private" or not BEFORE_5_18:
            assert page_flags.mlocked(region) == "01111100", "those of the locked range are mlocked"
        assert status.vmlck_pages() == 6, "VmLck"
        assert maps.rollup_kb() == 5 * syscalls.PAGE_KB, "Locked"
        assert page_faults.faults_writing(region.at(1), 5 * PAGE).minor == 0, "no fault is left"
        syscalls.munlock(region.addr, region.size)
        assert page_flags.mlocked(region) == "0" * N, "unlocked: none is marked"


@UFFD
@FLAGS
@pytest.mark.usefixtures("one_cpu")
def test_zero_page_in_a_locked_range_is_not_marked_its_copy_is():
    """UFFDIO_ZEROPAGE maps the zero page, which is nobody's to lock; the write that follows gives
    a mlocked page."""
    with mapping("private", N) as region, userfaultfd.open_fd() as fd:
        userfaultfd.register(fd, region)
        syscalls.mlock2(region.addr, region.size, syscalls.MLOCK_ONFAULT)
        userfaultfd.zeropage(fd, region.addr, 4 * PAGE)
        assert residency.mapped_bits(region) == "11110000", "present"
        assert page_flags.mlocked(region) == "00000000", "zero pages"
        syscalls.store(region.at(2), b"x")
        assert page_flags.mlocked(region) == "00100000", "a page of its own"
        assert status.vmlck_pages() == N, "VmLck"


@UFFD
@FLAGS
@pytest.mark.needs("uffd-protect")
@pytest.mark.usefixtures("one_cpu")
def test_write_protection_of_locked_pages_keeps_them():
    """UFFDIO_WRITEPROTECT of locked pages leaves them present, mlocked and counted, on and off;
    a reported write goes through to the same frame."""
    with mapping("private", N) as region, userfaultfd.open_fd() as fd:
        region.write(0x21)
        lru_batches.mlock_drain_local()
        syscalls.mlock(region.addr, region.size)
        userfaultfd.register(fd, region, userfaultfd.WP)
        before = pagemap.pfns(region.addr, N)
        userfaultfd.writeprotect(fd, region.addr, region.size, True)
        assert page_flags.mlocked(region) == "1" * N, "protected: mlocked"
        assert status.vmlck_pages() == N, "VmLck"
        writer = threading.Thread(target=syscalls.store, args=(region.at(3), b"\x99"))
        writer.start()
        assert userfaultfd.wait_fault(fd) == region.at(3), "the write is reported"
        userfaultfd.writeprotect(fd, region.addr, region.size, False)
        writer.join()
        assert page_flags.mlocked(region) == "1" * N, "written: mlocked"
        moved = pagemap.pfns(region.addr, N)
        if moved[:3] + moved[4:] == before[:3] + before[4:]:  # else they were migrated
            assert moved[3] == before[3], "the page was not copied"
        assert region.first_bytes() == b"\x21" * 3 + b"\x99" + b"\x21" * 4, "contents"


@pytest.mark.own_process
@UFFD
@FLAGS
@pytest.mark.needs("uffd-minor")
@pytest.mark.usefixtures("one_cpu")
def test_page_of_the_cache_mapped_into_a_locked_range_is_marked():
    """UFFDIO_CONTINUE maps a page that the file has already into a locked range: mlocked."""
    if BEFORE_5_18:
        pytest.skip(
            "needs a kernel from 5.18 on: before cea86fe246b6 file faults leave the mark to reclaim"
        )
    fd = memory.memfd(N * PAGE)
    with (
        mapping("memfd-shared", N, fd=fd) as other,
        mapping("memfd-shared", N, fd=fd) as region,
        userfaultfd.open_fd(userfaultfd.FEATURE_MINOR_SHMEM) as faults,
    ):
        other.write(0x55)
        lru_batches.mlock_drain_local()
        syscalls.mlock2(region.addr, 6 * PAGE, syscalls.MLOCK_ONFAULT)
        userfaultfd.register(faults, region, userfaultfd.MINOR)
        userfaultfd.uffd_continue(faults, region.addr, 6 * PAGE)
        userfaultfd.uffd_continue(faults, region.at(6), 2 * PAGE)
        assert residency.mapped_bits(region) == "1" * N, "mapped"
        assert page_flags.mlocked(region) == "11111100", "mlocked where locked"
        assert region.first_bytes() == b"\x55" * N, "contents"
        syscalls.munlock(region.addr, region.size)
        assert page_flags.mlocked(region) == "0" * N, "unlocked"


@UFFD
@FLAGS
@pytest.mark.needs("uffd-move")
@pytest.mark.parametrize("locked", [True, False], ids=["locked", "unlocked"])
@pytest.mark.usefixtures("one_cpu")
def test_page_moved_between_equal_ranges_keeps_its_mark(locked):
    """UFFDIO_MOVE between two locked ranges takes frame, contents and mark along; the place it
    leaves is empty, both counts stand; between unlocked ranges nothing is marked."""
    with mapping("private", N) as source, mapping("private", N) as target:
        source.write(0x61)
        lru_batches.mlock_drain_local()
        if locked:
            syscalls.mlock(source.addr, source.size)
            syscalls.mlock2(target.addr, target.size, syscalls.MLOCK_ONFAULT)
        with userfaultfd.open_fd(userfaultfd.FEATURE_MOVE) as fd:
            userfaultfd.register(fd, target)
            lru_batches.mlock_drain_local()
            userfaultfd.move(fd, target.at(2), source.at(1), 3 * PAGE)
        assert residency.mapped_bits(source) == "10001111", "three pages have left"
        assert residency.mapped_bits(target) == "00111000", "and arrived"
        mark = "1" if locked else "0"
        assert page_flags.mlocked(target) == f"00{mark * 3}000", "marked as the range is locked"
        assert page_flags.mlocked(source) == f"{mark}000{mark * 4}", "the others as before"
        assert status.vmlck_pages() == (2 * N if locked else 0), "VmLck"
        assert target.sub(2, 3).first_bytes() == b"\x61" * 3, "contents"
        syscalls.munlock(target.addr, target.size)
        assert page_flags.mlocked(target) == "0" * N, "unlocked: none is marked"


@UFFD
@FLAGS
@pytest.mark.needs(
    "uffd-move",
    "thp",
    f"lock:{2 * huge_pages.HPAGE_PMD_NR}",
    f"budget:{2 * huge_pages.HPAGE_PMD_NR}",
)
@pytest.mark.parametrize(
    "pages", [huge_pages.HPAGE_PMD_NR, huge_pages.HPAGE_PMD_NR // 4], ids=["whole", "part"]
)
@pytest.mark.usefixtures("one_cpu")
def test_huge_page_moved_between_locked_ranges_stays_locked(pages):
    """UFFDIO_MOVE of a locked huge page, or of a part of it, keeps every page present and counted;
    a whole one keeps its mark, of one that was split each page has it."""
    huge_pages.enable_thp()
    with huge_pages.thp_aligned_mapping() as source, huge_pages.thp_aligned_mapping() as target:
        source.touch(0x61)
        syscalls.mlock(source.addr, source.size)
        syscalls.mlock2(target.addr, target.size, syscalls.MLOCK_ONFAULT)
        if not huge_mappings.is_huge(source):
            inconclusive("the kernel gave no huge page")
        huge_pages.keep_huge_pages()
        with userfaultfd.open_fd(userfaultfd.FEATURE_MOVE) as fd:
            userfaultfd.register(fd, target)
            lru_batches.mlock_drain_local()
            userfaultfd.move(fd, target.addr, source.addr, pages * PAGE)
        moved, rest = target.sub(0, pages), source.sub(pages, huge_pages.HPAGE_PMD_NR - pages)
        lru_batches.mlock_drain_local()
        for region in (moved, rest):
            if region.pages:
                seen = pagemap.present_count(region.addr, region.pages)
                assert seen == region.pages, "present"
                assert all(folios.mlocked(region)), "mlocked"
                assert region.first_bytes() == b"\x61" * region.pages, "contents"
        assert residency.mapped_bits(source.sub(0, pages)) == "0" * pages, "the place it left"
        assert status.vmlck_pages() == 2 * huge_pages.HPAGE_PMD_NR, "VmLck"


@pytest.mark.needs("uffd-move")
@pytest.mark.parametrize("which", ["source", "target"])
def test_page_is_not_moved_between_locked_and_unlocked(which):
    """UFFDIO_MOVE between a locked and an unlocked range gives EINVAL and moves nothing."""
    with mapping("private", N) as source, mapping("private", N) as target:
        source.write(0x61)
        locked = source if which == "source" else target
        syscalls.mlock2(locked.addr, locked.size, syscalls.MLOCK_ONFAULT)
        with userfaultfd.open_fd(userfaultfd.FEATURE_MOVE) as fd:
            userfaultfd.register(fd, target)
            answer = syscalls.outcome(userfaultfd.move, fd, target.addr, source.addr, PAGE)
        assert answer == "EINVAL", "one is locked, one is not"
        assert residency.mapped_bits(source) == "1" * N, "nothing has left"
        assert residency.mapped_bits(target) == "0" * N, "or arrived"


@UFFD
def test_registration_leaves_lock_and_count():
    """Registering, closing and unregistering splits and merges VMAs, and keeps lo and VmLck."""
    with mapping("private", N) as region, userfaultfd.open_fd() as fd:
        region.touch()
        syscalls.mlock(region.addr, region.size)
        userfaultfd.register(fd, region.sub(2, 3))
        assert maps.layout(region) == [
            (0, 2, "lo"), (2, 5, "lo"), (5, 8, "lo")
        ], "split, all of it lo"  # fmt: skip
        assert status.vmlck_pages() == N, "VmLck"
        userfaultfd.unregister(fd, region)
        assert maps.locks(region.addr, region.end, PAGE) == [(0, N, "lo")], "lo"
        assert status.vmlck_pages() == N, "VmLck"
        userfaultfd.register(fd, region.sub(0, 4))
        syscalls.munlock(region.at(2), 4 * PAGE)
        assert lock_accounting.page_letters(region) == "LL----LL", (
            "munlock across registered and not"
        )
        assert status.vmlck_pages() == 4, "VmLck"
    assert status.vmlck_pages() == 0, "unmapped"
