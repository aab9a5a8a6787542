# SPDX-License-Identifier: MIT
"""Bytes in, whole pages out: how the calls round address and length."""

import ctypes
import errno

import pytest

from helpers import syscalls
from helpers.memory import locks, mapping
from helpers.observe import maps, pagemap, status
from helpers.pytest_plugin.parametrize import by_call, by_entry_point
from helpers.syscalls import PAGE

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("smaps-flags", "lock:16"),
    pytest.mark.source("mlock(2) NOTES"),
]


WINDOW = 4
"""Pages given to each range, so that a page too many shows up too."""
# (first byte, bytes) → pages of the window that hold one of the bytes
RANGES = {
    (0, 1): {0},
    (PAGE - 1, 1): {0},
    (PAGE - 1, 2): {0, 1},
    (1, PAGE): {0, 1},
    (0, PAGE + 1): {0, 1},
    (0, 2 * PAGE - 1): {0, 1},
    (0, 2 * PAGE): {0, 1},
    (1, 2 * PAGE): {0, 1, 2},
}


def locked_by_range(region):
    """For each of RANGES: the pages of its window that are locked."""
    pages = {
        page
        for first, last, lock in maps.locks(region.addr, region.end, PAGE)
        if lock
        for page in range(first, last)
    }
    return {
        text: {p - i * WINDOW for p in pages if i * WINDOW <= p < (i + 1) * WINDOW}
        for i, text in enumerate(RANGES)
    }


@by_entry_point()
@by_call()
@pytest.mark.claim("W5")
@pytest.mark.detects(
    "mlock-ignored",
    "lock-family-not-implemented",
    "mlock-length-ignores-offset",
    "mlock-start-rounded-up",
    "mlock-length-rounded-down",
    "mlock-unaligned-einval",
)
def test_lock_rounds_outward_to_whole_pages(calls, how):
    """A lock covers exactly the pages that hold one of the bytes asked for: the start is
    rounded down, the end up."""
    with mapping("private", WINDOW * len(RANGES)) as region:
        grown = {}
        for index, (offset, length) in enumerate(RANGES):
            before = status.vmlck_pages()
            locks.issue(calls, how, region.at(index * WINDOW) + offset, length)
            grown[offset, length] = status.vmlck_pages() - before
        assert locked_by_range(region) == RANGES, "lo on every page that holds a byte of the range"
        assert grown == {key: len(pages) for key, pages in RANGES.items()}, "VmLck grows by those"
        full = how != locks.CALLS["onfault"]
        touched = pagemap.present_count(region.addr, region.pages)
        assert touched == (sum(map(len, RANGES.values())) if full else 0), (
            "a full lock populates exactly those pages, a lock on fault none"
        )


@pytest.mark.claim("W5")
@pytest.mark.parametrize(
    ("calls", "how"),
    [(syscalls.RAW, locks.CALLS["mlock"]), (syscalls.GLIBC, locks.CALLS["onfault"])],
    ids=["syscall-lo", "libc-lf"],
)
@pytest.mark.detects(
    "munlock-length-ignores-offset",
    "munlock-start-rounded-up",
    "munlock-one-page-more",
    "munlock-unaligned-einval",
)
def test_munlock_rounds_outward_to_whole_pages(calls, how):
    """munlock unlocks every page that holds one of its bytes, and no other."""
    for (offset, length), pages in RANGES.items():
        with mapping("private", WINDOW) as region:
            locks.issue(calls, how, region.addr, region.size)
            calls.munlock(region.addr + offset, length)
            left = status.vmlck_pages()
            lock = "lo lf" if how == locks.CALLS["onfault"] else "lo"
            wanted = [(0, len(pages), ""), (len(pages), WINDOW, lock)]
            assert maps.locks(region.addr, region.end, PAGE) == wanted, (
                f"munlock of {length} bytes from byte {offset} unlocks pages {sorted(pages)}"
            )
            assert left == WINDOW - len(pages), "VmLck keeps the other pages only"


@pytest.mark.detects("mlock-one-page-more")
def test_range_behind_the_first_page_rounds_to_its_own_pages():
    """Two bytes across a page boundary in the middle lock both pages and nothing beside them;
    unlocking two bytes across their far edges unlocks one page on each side of the edge."""
    with mapping("private", 8) as region:
        syscalls.mlock(region.at(4) - 1, 2)
        assert maps.locks(region.addr, region.end, PAGE) == [
            (0, 3, ""),
            (3, 5, "lo"),
            (5, 8, ""),
        ], "pages 3 and 4 are lo"
        syscalls.munlock(region.at(5) - 1, 2)
        assert maps.locks(region.addr, region.end, PAGE) == [
            (0, 3, ""),
            (3, 4, "lo"),
            (4, 8, ""),
        ], "page 4 is unlocked, page 3 is not"


MIB = 1 << 20
LENGTHS = [
    pytest.param(length, marks=pytest.mark.needs(f"lock:{pages}", f"budget:{pages}"), id=name)
    for name, length in (("8B", 8), ("1KiB", 1024), ("1MiB", MIB), ("10MiB", 10 * MIB))
    for pages in [length // PAGE + 2]
]


@pytest.mark.parametrize("length", LENGTHS)
def test_any_length_locks_and_unlocks(length):
    """mlock of any length from an unaligned start locks, counts and populates the pages it
    touches; munlock of the same bytes unlocks them and leaves them resident."""
    with mapping("private", length // PAGE + 3) as region:
        start = region.at(1) + 24
        touched = -(-(24 + length) // PAGE)
        before = status.vmlck_pages()
        syscalls.mlock(start, length)
        counted = status.vmlck_pages() - before
        assert counted == touched, "VmLck grows by the pages the range touches"
        wanted = [(0, 1, ""), (1, 1 + touched, "lo"), (1 + touched, region.pages, "")]
        wanted = [part for part in wanted if part[0] < part[1]]
        assert maps.locks(region.addr, region.end, PAGE) == wanted, "those pages are lo"
        present = pagemap.present(region.addr, region.pages)
        assert present == [0 < page <= touched for page in range(region.pages)], (
            "those pages are resident"
        )
        syscalls.munlock(start, length)
        assert status.vmlck_pages() == before, "VmLck is back where it was"
        assert maps.locks(region.addr, region.end, PAGE) == [(0, region.pages, "")], "no lo"
        assert pagemap.present(region.addr, region.pages) == present, "still resident"


@pytest.mark.parametrize("length", [8, 1024, 2 * PAGE])
def test_heap_block_locks_like_any_other_memory(length):
    """mlock of a block that malloc returned locks the whole pages around it."""
    block = ctypes.create_string_buffer(length)
    start = ctypes.addressof(block)
    low, high = start & -PAGE, -(-(start + length) // PAGE) * PAGE
    before = status.vmlck_pages()
    syscalls.GLIBC.mlock(start, length)
    counted = status.vmlck_pages() - before
    shape = maps.locks(low, high, PAGE)
    assert counted == (high - low) // PAGE, "VmLck grows by the pages the block touches"
    assert shape == [(0, (high - low) // PAGE, "lo")], "those pages are lo"
    assert all(pagemap.present(low, (high - low) // PAGE)) is True, "and resident"
    syscalls.GLIBC.munlock(start, length)
    assert status.vmlck_pages() == before, "VmLck is back where it was"


ANY_CALL = {**locks.CALLS, "munlock": ("munlock",)}
EVERY_CALL = pytest.mark.parametrize("how", ANY_CALL.values(), ids=ANY_CALL)


@EVERY_CALL
@pytest.mark.detects("mlock-zero-length-einval")
def test_zero_length_does_nothing(how):
    """Length 0 from a page boundary succeeds and does nothing, whether the address is mapped,
    unmapped or NULL."""
    with mapping("private", 4) as region:
        syscalls.mlock(region.at(1), PAGE)
        syscalls.munmap(region.at(3), PAGE)
        before = status.vmlck_pages()
        seen = {
            (name, calls): syscalls.outcome(locks.issue, calls, how, addr, 0)
            for calls in (syscalls.RAW, syscalls.GLIBC)
            for name, addr in (
                ("unlocked", region.addr),
                ("locked", region.at(1)),
                ("end of the mapping", region.at(3)),
                ("NULL", 0),
            )
        }
        assert set(seen.values()) == {"ok"}, f"length 0 is never refused: {seen}"
        assert maps.locks(region.addr, region.end, PAGE) == [
            (0, 1, ""),
            (1, 2, "lo"),
            (2, 3, ""),
        ], "nothing is locked, nothing unlocked"
        assert status.vmlck_pages() == before, "VmLck is unchanged"


@EVERY_CALL
def test_zero_length_inside_a_page_means_that_page(how):
    """Length 0 from inside a page acts on that page: the end is rounded up after the start's
    offset was added."""
    with mapping("private", 3) as region:
        if how == ANY_CALL["munlock"]:
            syscalls.mlock(region.addr, region.size)
        locks.issue(syscalls.RAW, how, region.at(1) + 1, 0)
        others, page = {"munlock": ("lo", ""), "onfault": ("", "lo lf")}.get(
            next(name for name, value in ANY_CALL.items() if value == how), ("", "lo")
        )
        assert maps.locks(region.addr, region.end, PAGE) == [
            (0, 1, others),
            (1, 2, page),
            (2, 3, others),
        ], "the call acts on the middle page alone"


@by_entry_point()
@pytest.mark.detects("success-is-not-zero")
def test_success_returns_zero_and_leaves_errno_alone(calls):
    """Each call returns exactly 0 when it succeeds and does not touch errno."""
    with mapping("private", 2) as region:
        vec = (ctypes.c_ubyte * 2)()
        for how in (
            ("mlock", region.addr, region.size),
            ("mlock2", region.addr, region.size, 0),
            ("mlock2", region.addr, region.size, syscalls.MLOCK_ONFAULT),
            ("mincore", region.addr, region.size, ctypes.addressof(vec)),
            ("munlock", region.addr, region.size),
            ("munlockall",),
        ):
            name, *args = how
            ctypes.set_errno(errno.EXDEV)
            result = getattr(calls, name)(*args)
            left = ctypes.get_errno()
            assert result == 0, f"{name} returns 0"
            assert left == errno.EXDEV, f"{name} leaves errno as it was"
