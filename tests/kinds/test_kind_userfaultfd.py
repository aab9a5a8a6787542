"""userfaultfd on locked ranges: whoever fills the page, the lock holds it."""

import threading

import pytest

from helpers import kernel, libc, lru, memory, thp, uffd
from helpers.libc import PAGE
from helpers.memory import mapping
from helpers.observe import account, folios, maps, pagemap, presence, rusage, status
from helpers.report.verdicts import inconclusive

N = 8

pytestmark = [
    pytest.mark.needs("lock:16"),
    pytest.mark.source("userfaultfd(2)", "ioctl_userfaultfd(2)"),
]
UFFD = pytest.mark.needs("userfaultfd")
FLAGS = pytest.mark.needs("kpageflags")
BEFORE_5_18 = kernel.version() < (5, 18, 0)
"""Pages of shared memory are marked by mlock or reclaim, not by what fills them."""
KINDS = pytest.mark.parametrize("kind", ["private", "memfd-shared"])


def mlocked(region):
    lru.drain()
    return presence.bits(pagemap.snapshot(region.addr, region.pages).mlocked)


def serve(fd, source, faults, seen):
    """Answer so many faults with copies of the source page, and note where they were."""
    for _ in range(faults):
        addr = uffd.fault(fd)
        seen.append(addr)
        uffd.copy(fd, addr, source.addr, PAGE)


@UFFD
@KINDS
def test_lock_of_a_registered_range_asks_the_handler_for_every_page(kind):
    """mlock of a range with missing faults registered waits for its handler, page by page, and
    succeeds with the handler's contents present and locked."""
    with mapping(kind, N) as region, mapping("private", 1) as source, uffd.open_fd() as fd:
        source.write(0x77)
        uffd.register(fd, region)
        seen = []
        handler = threading.Thread(target=serve, args=(fd, source, N, seen))
        handler.start()
        assert libc.outcome(libc.mlock, region.addr, region.size) == "ok", "mlock"
        handler.join()
        assert seen == [region.at(page) for page in range(N)], "a fault for each page, in order"
        assert region.peek() == b"\x77" * N, "contents"
        assert account.of(region) == account.balanced("L" * N, N), "locked, counted, resident"


@UFFD
def test_lock_populates_what_the_handler_was_not_asked_for():
    """mlock asks the handler only for pages that are absent."""
    with mapping("private", N) as region, mapping("private", 1) as source, uffd.open_fd() as fd:
        source.write(0x77)
        region.sub(0, N - 2).write(0x11)
        uffd.register(fd, region)
        seen = []
        handler = threading.Thread(target=serve, args=(fd, source, 2, seen))
        handler.start()
        libc.mlock(region.addr, region.size)
        handler.join()
        assert seen == [region.at(N - 2), region.at(N - 1)], "two were absent"
        assert region.peek() == b"\x11" * (N - 2) + b"\x77" * 2, "contents"


@pytest.mark.needs("uffd-user-mode")
def test_handler_that_takes_no_kernel_faults_fails_the_lock():
    """Where the handler takes faults of user mode only, mlock cannot populate: ENOMEM, and the
    range stays locked and counted."""
    with mapping("private", N) as region, uffd.open_fd(flags=uffd.USER_MODE_ONLY) as fd:
        region.sub(0, 2).touch()
        uffd.register(fd, region)
        assert libc.outcome(libc.mlock, region.addr, region.size) == "ENOMEM", "mlock"
        assert account.of(region) == account.balanced("L" * N, 2), "locked, counted"
        assert presence.mapped(region) == "11" + "0" * (N - 2), "not populated"
        uffd.unregister(fd, region)
        assert libc.outcome(libc.mlock, region.addr, region.size) == "ok", "unregistered: ok"
        assert presence.mapped(region) == "1" * N, "populated"


@UFFD
def test_lock_on_fault_asks_the_handler_for_nothing():
    """mlock2(MLOCK_ONFAULT) of a registered range returns at once, and counts it."""
    with mapping("private", N) as region, uffd.open_fd() as fd:
        uffd.register(fd, region)
        libc.mlock2(region.addr, region.size, libc.MLOCK_ONFAULT)
        assert account.of(region) == account.balanced("F" * N, 0), "locked on fault"


@UFFD
@FLAGS
@KINDS
def test_page_copied_into_a_locked_range_is_marked(kind):
    """UFFDIO_COPY into a locked range gives pages that are mlocked and need no fault; into an
    unlocked one, pages that are not."""
    lru.pin()
    with mapping(kind, N) as region, mapping("private", N) as source, uffd.open_fd() as fd:
        source.write(0x42)
        uffd.register(fd, region)
        libc.mlock2(region.addr, 6 * PAGE, libc.MLOCK_ONFAULT)
        uffd.copy(fd, region.at(1), source.addr, 5 * PAGE)
        uffd.copy(fd, region.at(6), source.addr, 2 * PAGE)
        assert presence.mapped(region) == "01111111", "seven pages are there"
        if kind == "private" or not BEFORE_5_18:
            assert mlocked(region) == "01111100", "those of the locked range are mlocked"
        assert status.vmlck_pages() == 6, "VmLck"
        assert maps.rollup_kb() == 5 * libc.PAGE_KB, "Locked"
        assert rusage.writing(region.at(1), 5 * PAGE).minor == 0, "no fault is left"
        libc.munlock(region.addr, region.size)
        assert mlocked(region) == "0" * N, "unlocked: none is marked"


@UFFD
@FLAGS
def test_zero_page_in_a_locked_range_is_not_marked_its_copy_is():
    """UFFDIO_ZEROPAGE maps the zero page, which is nobody's to lock; the write that follows gives
    a mlocked page."""
    lru.pin()
    with mapping("private", N) as region, uffd.open_fd() as fd:
        uffd.register(fd, region)
        libc.mlock2(region.addr, region.size, libc.MLOCK_ONFAULT)
        uffd.zeropage(fd, region.addr, 4 * PAGE)
        assert presence.mapped(region) == "11110000", "present"
        assert mlocked(region) == "00000000", "zero pages"
        libc.write(region.at(2), b"x")
        assert mlocked(region) == "00100000", "a page of its own"
        assert status.vmlck_pages() == N, "VmLck"


@UFFD
@FLAGS
@pytest.mark.needs("uffd-protect")
def test_write_protection_of_locked_pages_keeps_them():
    """UFFDIO_WRITEPROTECT of locked pages leaves them present, mlocked and counted, on and off;
    a reported write goes through to the same frame."""
    lru.pin()
    with mapping("private", N) as region, uffd.open_fd() as fd:
        region.write(0x21)
        lru.drain()
        libc.mlock(region.addr, region.size)
        uffd.register(fd, region, uffd.WP)
        before = pagemap.pfns(region.addr, N)
        uffd.protect(fd, region.addr, region.size, True)
        assert mlocked(region) == "1" * N, "protected: mlocked"
        assert status.vmlck_pages() == N, "VmLck"
        writer = threading.Thread(target=libc.write, args=(region.at(3), b"\x99"))
        writer.start()
        assert uffd.fault(fd) == region.at(3), "the write is reported"
        uffd.protect(fd, region.addr, region.size, False)
        writer.join()
        assert mlocked(region) == "1" * N, "written: mlocked"
        moved = pagemap.pfns(region.addr, N)
        if moved[:3] + moved[4:] == before[:3] + before[4:]:  # else they were migrated
            assert moved[3] == before[3], "the page was not copied"
        assert region.peek() == b"\x21" * 3 + b"\x99" + b"\x21" * 4, "contents"


@UFFD
@FLAGS
@pytest.mark.needs("uffd-minor")
def test_page_of_the_cache_mapped_into_a_locked_range_is_marked():
    """UFFDIO_CONTINUE maps a page that the file has already into a locked range: mlocked."""
    if BEFORE_5_18:
        pytest.skip(
            "needs a kernel from 5.18 on: before cea86fe246b6 file faults leave the mark to reclaim"
        )
    lru.pin()
    fd = memory.memfd(N * PAGE)
    with (
        mapping("memfd-shared", N, fd=fd) as other,
        mapping("memfd-shared", N, fd=fd) as region,
        uffd.open_fd(uffd.FEATURE_MINOR_SHMEM) as faults,
    ):
        other.write(0x55)
        lru.drain()
        libc.mlock2(region.addr, 6 * PAGE, libc.MLOCK_ONFAULT)
        uffd.register(faults, region, uffd.MINOR)
        uffd.resume(faults, region.addr, 6 * PAGE)
        uffd.resume(faults, region.at(6), 2 * PAGE)
        assert presence.mapped(region) == "1" * N, "mapped"
        assert mlocked(region) == "11111100", "mlocked where locked"
        assert region.peek() == b"\x55" * N, "contents"
        libc.munlock(region.addr, region.size)
        assert mlocked(region) == "0" * N, "unlocked"


@UFFD
@FLAGS
@pytest.mark.needs("uffd-move")
@pytest.mark.parametrize("locked", [True, False], ids=["locked", "unlocked"])
def test_page_moved_between_equal_ranges_keeps_its_mark(locked):
    """UFFDIO_MOVE between two locked ranges takes frame, contents and mark along; the place it
    leaves is empty, both counts stand; between unlocked ranges nothing is marked."""
    lru.pin()
    with mapping("private", N) as source, mapping("private", N) as target:
        source.write(0x61)
        lru.drain()
        if locked:
            libc.mlock(source.addr, source.size)
            libc.mlock2(target.addr, target.size, libc.MLOCK_ONFAULT)
        with uffd.open_fd(uffd.FEATURE_MOVE) as fd:
            uffd.register(fd, target)
            lru.drain()
            uffd.move(fd, target.at(2), source.at(1), 3 * PAGE)
        assert presence.mapped(source) == "10001111", "three pages have left"
        assert presence.mapped(target) == "00111000", "and arrived"
        mark = "1" if locked else "0"
        assert mlocked(target) == f"00{mark * 3}000", "marked as the range is locked"
        assert mlocked(source) == f"{mark}000{mark * 4}", "the others as before"
        assert status.vmlck_pages() == (2 * N if locked else 0), "VmLck"
        assert target.sub(2, 3).peek() == b"\x61" * 3, "contents"
        libc.munlock(target.addr, target.size)
        assert mlocked(target) == "0" * N, "unlocked: none is marked"


@UFFD
@FLAGS
@pytest.mark.needs("uffd-move", "thp", f"lock:{2 * thp.PAGES}", f"budget:{2 * thp.PAGES}")
@pytest.mark.parametrize("pages", [thp.PAGES, thp.PAGES // 4], ids=["whole", "part"])
def test_huge_page_moved_between_locked_ranges_stays_locked(pages):
    """UFFDIO_MOVE of a locked huge page, or of a part of it, keeps every page present and counted;
    a whole one keeps its mark, of one that was split each page has it."""
    lru.pin()
    thp.allow()
    with thp.aligned() as source, thp.aligned() as target:
        source.touch(0x61)
        libc.mlock(source.addr, source.size)
        libc.mlock2(target.addr, target.size, libc.MLOCK_ONFAULT)
        if not thp.is_huge(source):
            inconclusive("the kernel gave no huge page")
        with uffd.open_fd(uffd.FEATURE_MOVE) as fd:
            uffd.register(fd, target)
            lru.drain()
            uffd.move(fd, target.addr, source.addr, pages * PAGE)
        moved, rest = target.sub(0, pages), source.sub(pages, thp.PAGES - pages)
        lru.drain()
        for region in (moved, rest):
            if region.pages:
                seen = pagemap.present_count(region.addr, region.pages)
                assert seen == region.pages, "present"
                assert all(folios.mlocked(region)), "mlocked"
                assert region.peek() == b"\x61" * region.pages, "contents"
        assert presence.mapped(source.sub(0, pages)) == "0" * pages, "the place it left"
        assert status.vmlck_pages() == 2 * thp.PAGES, "VmLck"


@pytest.mark.needs("uffd-move")
@pytest.mark.parametrize("which", ["source", "target"])
def test_page_is_not_moved_between_locked_and_unlocked(which):
    """UFFDIO_MOVE between a locked and an unlocked range gives EINVAL and moves nothing."""
    with mapping("private", N) as source, mapping("private", N) as target:
        source.write(0x61)
        locked = source if which == "source" else target
        libc.mlock2(locked.addr, locked.size, libc.MLOCK_ONFAULT)
        with uffd.open_fd(uffd.FEATURE_MOVE) as fd:
            uffd.register(fd, target)
            answer = libc.outcome(uffd.move, fd, target.addr, source.addr, PAGE)
        assert answer == "EINVAL", "one is locked, one is not"
        assert presence.mapped(source) == "1" * N, "nothing has left"
        assert presence.mapped(target) == "0" * N, "or arrived"


@UFFD
def test_registration_leaves_lock_and_count():
    """Registering, closing and unregistering splits and merges VMAs, and keeps lo and VmLck."""
    with mapping("private", N) as region, uffd.open_fd() as fd:
        region.touch()
        libc.mlock(region.addr, region.size)
        uffd.register(fd, region.sub(2, 3))
        assert maps.layout(region.addr, region.end, PAGE) == [
            (0, 2, "lo"), (2, 5, "lo"), (5, 8, "lo")
        ], "split, all of it lo"  # fmt: skip
        assert status.vmlck_pages() == N, "VmLck"
        uffd.unregister(fd, region)
        assert maps.locks(region.addr, region.end, PAGE) == [(0, N, "lo")], "lo"
        assert status.vmlck_pages() == N, "VmLck"
        uffd.register(fd, region.sub(0, 4))
        libc.munlock(region.at(2), 4 * PAGE)
        assert account.pages(region) == "LL----LL", "munlock across registered and not"
        assert status.vmlck_pages() == 4, "VmLck"
    assert status.vmlck_pages() == 0, "unmapped"
