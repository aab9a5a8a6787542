# SPDX-License-Identifier: MIT
"""msync(2) MS_INVALIDATE on locked memory: EBUSY, an oracle of VM_LOCKED that needs no /proc."""

import pytest

from helpers import memory, syscalls
from helpers.memory import MAPPING_KINDS, layouts, mapping
from helpers.observe import maps
from helpers.syscalls import PAGE

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("lock:8"),
    pytest.mark.source("msync(2) ERRORS EBUSY"),
]

PAGES = 4
ASYNC, INVALIDATE, SYNC = syscalls.MS_ASYNC, syscalls.MS_INVALIDATE, syscalls.MS_SYNC
UNLOCKED = {
    0: "ok",
    ASYNC: "ok",
    SYNC: "ok",
    INVALIDATE: "ok",
    INVALIDATE | ASYNC: "ok",
    INVALIDATE | SYNC: "ok",
    ASYNC | SYNC: "EINVAL",
    ASYNC | SYNC | INVALIDATE: "EINVAL",
    8: "EINVAL",
    8 | INVALIDATE: "EINVAL",
    -1: "EINVAL",
}
LOCKED = UNLOCKED | dict.fromkeys((INVALIDATE, INVALIDATE | ASYNC, INVALIDATE | SYNC), "EBUSY")


def answers(region):
    """msync's answer to each combination of flags."""
    return {
        flags: syscalls.outcome(syscalls.msync, region.addr, region.size, flags)
        for flags in UNLOCKED
    }


def invalidate(addr, size):
    """msync's answer to MS_ASYNC|MS_INVALIDATE."""
    return syscalls.outcome(syscalls.msync, addr, size, ASYNC | INVALIDATE)


LOCKS = (syscalls.MLOCK_ONFAULT, 0)


@pytest.mark.parametrize("kind", MAPPING_KINDS)
@pytest.mark.detects(
    "msync-invalidate-not-busy",
    "msync-invalidate-always-busy",
    "msync-sync-busy",
    "msync-onfault-not-busy",
)
def test_msync_invalidate_of_locked_memory_is_busy(kind):
    """msync with MS_INVALIDATE, alone or with MS_SYNC or MS_ASYNC, gives EBUSY on locked memory of
    every kind, populated or not; without it, or unlocked, it succeeds; bad flags are EINVAL."""
    with mapping(kind, PAGES) as region:
        seen = [answers(region)]
        for lock in LOCKS:
            syscalls.mlock2(region.addr, region.size, lock)
            seen.append(answers(region))
            syscalls.munlock(region.addr, region.size)
            seen.append(answers(region))
        assert seen[0] == UNLOCKED, "never locked"
        assert seen[1] == LOCKED, "fault-locked"
        assert seen[2] == UNLOCKED, "unlocked"
        assert seen[3] == LOCKED, "locked"
        assert seen[4] == UNLOCKED, "unlocked again"


def test_msync_of_map_locked_is_busy():
    """msync with MS_INVALIDATE gives EBUSY on a MAP_LOCKED mapping until munlock."""
    with mapping("memfd-shared", PAGES, flags=syscalls.MAP_LOCKED) as region:
        assert answers(region) == LOCKED, "locked by mmap"
        syscalls.munlock(region.addr, region.size)
        assert answers(region) == UNLOCKED, "unlocked"


@pytest.mark.own_process
def test_msync_of_locked_memory_without_pages_is_busy():
    """msync with MS_INVALIDATE gives EBUSY on locked memory that cannot have pages: PROT_NONE, and
    past the end of a file."""
    with mapping("private", PAGES, prot=syscalls.PROT_NONE) as region:
        assert invalidate(region.addr, region.size) == "ok", "unlocked PROT_NONE"
        syscalls.outcome(syscalls.mlock, region.addr, region.size)
        assert invalidate(region.addr, region.size) == "EBUSY", "locked PROT_NONE"
    fd = memory.memfd(0)
    with mapping("memfd-shared", PAGES, fd=fd) as region:
        assert invalidate(region.addr, region.size) == "ok", "unlocked past end of file"
        syscalls.outcome(syscalls.mlock, region.addr, region.size)
        assert invalidate(region.addr, region.size) == "EBUSY", "locked past end of file"


@pytest.mark.needs("smaps-flags")
def test_msync_agrees_with_the_lock_flags_page_by_page():
    """msync with MS_INVALIDATE is busy for exactly the pages whose mapping is lo, with or without
    lf."""
    with mapping("memfd-shared", 8) as region:
        syscalls.mlock(region.at(1), 2 * PAGE)
        syscalls.mlock2(region.at(4), 3 * PAGE, syscalls.MLOCK_ONFAULT)
        syscalls.munlock(region.at(5), PAGE)
        busy = [invalidate(region.at(n), PAGE) == "EBUSY" for n in range(8)]
        flags = [False] * 8
        for start, end, lock in maps.layout(region):
            flags[start:end] = [bool(lock)] * (end - start)
        assert busy == flags, "the two witnesses agree"
        assert busy == [False, True, True, False, True, False, True, False], "pages 1, 2, 4, 6"


def test_order_of_msync_checks():
    """msync finds a locked mapping anywhere in its range, behind a hole too; a bad address comes
    before that, a hole after."""
    with mapping("memfd-shared", 8) as region:
        syscalls.mlock(region.at(4), PAGE)
        layouts.unmap_pages(region, 2)
        seen = {
            "unaligned": invalidate(region.at(4) + 1, PAGE),
            "length 0": invalidate(region.at(4), 0),
            "length 1": invalidate(region.at(4), 1),
            "one byte into it": invalidate(region.at(3), PAGE + 1),
            "up to it": invalidate(region.at(3), PAGE),
            "behind it": invalidate(region.at(5), PAGE),
            "behind a hole": invalidate(region.addr, region.size),
            "hole, no lock": invalidate(region.addr, 4 * PAGE),
            "hole, only synced": syscalls.outcome(syscalls.msync, region.addr, region.size, SYNC),
            "wrapping": invalidate(region.at(4), -PAGE),
        }
        assert seen == {
            "unaligned": "EINVAL",
            "length 0": "ok",
            "length 1": "EBUSY",
            "one byte into it": "EBUSY",
            "up to it": "ok",
            "behind it": "ok",
            "behind a hole": "EBUSY",
            "hole, no lock": "ENOMEM",
            "hole, only synced": "ENOMEM",
            "wrapping": "ENOMEM",
        }, "answers"
