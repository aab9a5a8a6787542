# SPDX-License-Identifier: MIT
"""madvise(2) on locked memory: what would take pages away is refused, the rest is as ever."""

import ctypes
import os
from contextlib import ExitStack

import pytest

from helpers import memory, syscalls
from helpers.memory import MAPPING_KINDS, layouts, mapping
from helpers.observe import maps, residency, status
from helpers.syscalls import PAGE

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("lock:8", "smaps-flags", "mincore"),
    pytest.mark.source("madvise(2)"),
]

PAGES = 8
NONE, ALL = "0" * PAGES, "1" * PAGES
WRITTEN = b"\x5a" * PAGES
LOCKS = pytest.mark.parametrize("lf", [0, syscalls.MLOCK_ONFAULT], ids=["full", "on-fault"])

TAKING = [
    *(("MADV_DONTNEED", kind) for kind in MAPPING_KINDS),
    ("MADV_FREE", "private"),
    *((a, k) for a in ("MADV_COLD", "MADV_PAGEOUT") for k in ("private", "memfd-shared")),
    ("MADV_REMOVE", "shared"),
    ("MADV_REMOVE", "memfd-shared"),
]


@pytest.mark.needs("pageout")
@pytest.mark.parametrize(("advice", "kind"), TAKING)
@pytest.mark.detects("dontneed-drops-locked", "madvise-locked-accepted")
def test_advice_that_takes_pages_is_refused(advice, kind):
    """MADV_DONTNEED, FREE, COLD, PAGEOUT and REMOVE of locked or fault-locked memory give EINVAL
    and leave pages and contents as they are; without the lock the same advice is taken."""
    number = getattr(syscalls, advice)
    with mapping(kind, PAGES) as region:
        for lock in (syscalls.MLOCK_ONFAULT, 0):
            region.write(0x5A)
            syscalls.mlock2(region.addr, region.size, lock)
            before = status.vmlck_pages()
            locked = syscalls.outcome(syscalls.madvise, region.addr, region.size, number)
            assert locked == "EINVAL", "refused for locked memory"
            assert residency.mapped_bits(region) == ALL, "every page is present"
            assert region.first_bytes() == WRITTEN, "contents are as before"
            assert status.vmlck_pages() == before, "VmLck is as before"
            syscalls.munlock(region.addr, region.size)
            unlocked = syscalls.outcome(syscalls.madvise, region.addr, region.size, number)
            assert unlocked == "ok", "taken once the memory is unlocked"
            if advice in {"MADV_DONTNEED", "MADV_REMOVE"}:
                assert residency.mapped_bits(region) == NONE, "and its pages are gone"


@LOCKS
@pytest.mark.parametrize("kind", ["private", "memfd-shared"])
def test_dontneed_stops_at_the_locked_mapping(kind, lf):
    """MADV_DONTNEED over unlocked, locked and unlocked memory gives EINVAL with the first part
    dropped and the other two untouched."""
    with mapping(kind, PAGES) as region:
        region.write(0x5A)
        syscalls.mlock2(region.at(3), 2 * PAGE, lf)
        got = syscalls.outcome(syscalls.madvise, region.addr, region.size, syscalls.MADV_DONTNEED)
        assert got == "EINVAL", "refused"
        assert residency.mapped_bits(region) == "00011111", "the pages before the lock are dropped"
        assert region.sub(3, 5).first_bytes() == WRITTEN[:5], "the others are as before"


def test_order_of_madvise_checks():
    """madvise checks its arguments before the lock, and the lock before it speaks of a hole: length
    0 is nothing, an unaligned start EINVAL, and a locked mapping behind a hole EINVAL."""
    with mapping("private", PAGES) as region:
        region.write(0x5A)
        syscalls.mlock(region.at(2), 2 * PAGE)
        layouts.unmap_pages(region, 0)
        drop = syscalls.MADV_DONTNEED
        seen = {
            "length 0": syscalls.outcome(syscalls.madvise, region.at(2), 0, drop),
            "unaligned": syscalls.outcome(syscalls.madvise, region.at(2) + 1, PAGE, drop),
            "hole, locked": syscalls.outcome(syscalls.madvise, region.addr, 4 * PAGE, drop),
            "locked, unlocked": syscalls.outcome(syscalls.madvise, region.at(2), 4 * PAGE, drop),
            "hole, unlocked": syscalls.outcome(syscalls.madvise, region.addr, 2 * PAGE, drop),
        }
        assert seen == {
            "length 0": "ok",
            "unaligned": "EINVAL",
            "hole, locked": "EINVAL",
            "locked, unlocked": "EINVAL",
            "hole, unlocked": "ENOMEM",
        }, "answers"
        assert residency.mapped_bits(region) == "00111111", "only the unlocked page 1 was dropped"


@LOCKS
@pytest.mark.parametrize("kind", ["private", "memfd-shared"])
@pytest.mark.needs("dontneed-locked")
@pytest.mark.source("madvise(2) MADV_DONTNEED_LOCKED (5.18)")
@pytest.mark.detects("dontneed-locked-refused", "dontneed-locked-ignored")
def test_dontneed_locked_drops_pages_and_keeps_the_lock(kind, lf):
    """MADV_DONTNEED_LOCKED drops pages of locked memory, and of unlocked beside it; lock and VmLck
    stay, and a touch brings in the page touched."""
    with mapping(kind, PAGES) as region:
        region.write(0x5A)
        syscalls.mlock2(region.addr, 6 * PAGE, lf)
        before = status.vmlck_pages()
        syscalls.madvise(region.at(2), 6 * PAGE, syscalls.MADV_DONTNEED_LOCKED)
        assert residency.mapped_bits(region) == "11000000", "six pages are dropped"
        assert status.vmlck_pages() == before, "VmLck is as before"
        lock = "lo lf" if lf else "lo"
        assert maps.layout(region) == [(0, 6, lock), (6, 8, "")], "as locked"
        region.sub(4, 1).touch(0x11)
        assert residency.mapped_bits(region) == "11001000", "a touch brings in its page"
        kept = b"\0\0\x11\0\0\0" if kind == "private" else b"\x5a\x5a\x11\x5a\x5a\x5a"
        assert region.sub(2, 6).first_bytes() == kept, (
            "private memory is zero, shared kept its contents"
        )


@pytest.mark.needs("guard")
@pytest.mark.source("madvise(2) MADV_GUARD_INSTALL (6.13)")
def test_guard_pages_and_locked_memory():
    """MADV_GUARD_INSTALL of locked memory gives EINVAL, MADV_GUARD_REMOVE is fine; mlock over a
    guard gives ENOMEM with the mapping marked, mlock2(MLOCK_ONFAULT) 0."""
    with mapping("private", PAGES) as region:
        region.write(0x5A)
        syscalls.mlock(region.addr, region.size)
        install = syscalls.outcome(
            syscalls.madvise, region.at(2), PAGE, syscalls.MADV_GUARD_INSTALL
        )
        remove = syscalls.outcome(syscalls.madvise, region.at(2), PAGE, syscalls.MADV_GUARD_REMOVE)
        assert (install, remove) == ("EINVAL", "ok"), "install and remove on locked memory"
        assert region.first_bytes() == WRITTEN, "contents are as before"
    with mapping("private", PAGES) as region:
        syscalls.madvise(region.at(2), PAGE, syscalls.MADV_GUARD_INSTALL)
        full = syscalls.outcome(syscalls.mlock, region.addr, region.size)
        layout = maps.layout(region)
        syscalls.munlock(region.addr, region.size)
        lf = syscalls.outcome(syscalls.mlock2, region.addr, region.size, syscalls.MLOCK_ONFAULT)
        assert (full, lf) == ("ENOMEM", "ok"), "mlock and mlock2 over a guard"
        assert layout == [(0, PAGES, "lo")], "marked in spite of the error"


HARMLESS = [
    "NORMAL", "RANDOM", "SEQUENTIAL", "WILLNEED", "DONTFORK", "DOFORK", "WIPEONFORK", "KEEPONFORK",
    "DONTDUMP", "DODUMP", "MERGEABLE", "UNMERGEABLE", "HUGEPAGE", "NOHUGEPAGE",
    "POPULATE_READ", "POPULATE_WRITE",
]  # fmt: skip
EVERYWHERE = {
    "NORMAL", "RANDOM", "SEQUENTIAL", "WILLNEED", "DONTFORK", "DOFORK", "WIPEONFORK", "KEEPONFORK",
    "DONTDUMP", "DODUMP",
}  # fmt: skip


@LOCKS
@pytest.mark.detects("harmless-advice-refused")
def test_other_advice_is_taken_as_on_unlocked_memory(lf):
    """Advice that takes no page away is answered for locked memory as for unlocked, and leaves
    pages, lock and VmLck as they are."""
    with ExitStack() as stack:
        region, control = (stack.enter_context(mapping("private", PAGES)) for _ in range(2))
        region.touch()
        control.touch()
        syscalls.mlock2(region.addr, region.size, lf)
        before = status.vmlck_pages()
        answers = [
            {
                name: syscalls.outcome(
                    syscalls.madvise, r.addr, r.size, getattr(syscalls, f"MADV_{name}")
                )
                for name in HARMLESS
            }
            for r in (region, control)
        ]
        assert answers[0] == answers[1], "locked answers as unlocked"
        taken = {name for name, got in answers[0].items() if got == "ok"}
        assert taken >= EVERYWHERE, "all that every kernel knows is taken"
        assert residency.mapped_bits(region) == ALL, "every page is present"
        assert maps.layout(region) == [(0, PAGES, "lo lf" if lf else "lo")], "locked as before"
        assert status.vmlck_pages() == before, "VmLck is as before"


@pytest.mark.needs("populate")
@pytest.mark.parametrize("advice", ["MADV_POPULATE_READ", "MADV_POPULATE_WRITE"])
def test_populate_of_dropped_locked_pages(advice):
    """MADV_POPULATE_READ and WRITE bring in pages that truncation took from a locked mapping."""
    fd = memory.memfd(PAGES * PAGE)
    with mapping("memfd-shared", PAGES, fd=fd) as region:
        syscalls.mlock(region.addr, region.size)
        os.ftruncate(fd, 0)
        os.ftruncate(fd, PAGES * PAGE)
        assert residency.mapped_bits(region) == NONE, "all pages are gone"
        syscalls.madvise(region.addr, region.size, getattr(syscalls, advice))
        assert residency.mapped_bits(region) == ALL, "all pages are back"
    os.close(fd)


@LOCKS
@pytest.mark.parametrize("advice", ["MADV_COLD", "MADV_PAGEOUT"])
@pytest.mark.needs("process-madvise")
@pytest.mark.source("process_madvise(2)")
def test_process_madvise_stops_at_the_locked_range(advice, lf):
    """process_madvise of locked memory gives EINVAL; in a vector it stops there and returns the
    bytes advised before."""
    number = getattr(syscalls, advice)
    fd = os.pidfd_open(os.getpid())
    with mapping("private", PAGES) as region:
        region.write(0x5A)
        syscalls.mlock2(region.at(4), 2 * PAGE, lf)
        parts = [(region.at(4), 2 * PAGE), (region.at(0), 3 * PAGE), (region.at(6), 2 * PAGE)]
        locked, unlocked, behind = ((ctypes.c_size_t * 2)(*part) for part in parts)
        vector = (ctypes.c_size_t * 6)(*unlocked, *locked, *behind)
        alone = syscalls.outcome(syscalls.syscall, "process_madvise", fd, locked, 1, number, 0)
        done = syscalls.syscall("process_madvise", fd, vector, 3, number, 0)
        assert alone == "EINVAL", "refused for a locked range"
        assert done == 3 * PAGE, "in a vector, the bytes before it count as done"
        assert residency.mapped_bits(region)[4:6] == "11", "the locked pages are present"
        assert region.first_bytes() == WRITTEN, "contents are as before"
    os.close(fd)
