# SPDX-License-Identifier: MIT
"""Which check comes first when there is no right to lock: flags, then rights, then the range."""

import ctypes

import pytest

from helpers import syscalls
from helpers.memory import mapping
from helpers.memory.layouts import unmap_pages
from helpers.observe import maps, status
from helpers.processes import rlimits
from helpers.pytest_plugin.parametrize import by_entry_point
from helpers.syscalls import MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT, PAGE

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("lock-calls", "smaps-flags"),
    pytest.mark.source("mlock(2) ERRORS", "can_do_mlock() in mm/mlock.c"),
]

ON_FAULT = syscalls.MLOCK_ONFAULT
LOCKED = syscalls.MAP_PRIVATE | syscalls.MAP_ANONYMOUS | syscalls.MAP_LOCKED


def map_locked(addr, length):
    syscalls.mmap(addr, length, syscalls.PROT_RW, LOCKED | syscalls.MAP_FIXED)


def shape(region):
    return maps.locks(region.addr, region.end, PAGE)


@by_entry_point()
def test_locking_without_right_gives_eperm(calls):
    """With a limit of 0 and without CAP_IPC_LOCK every call that locks gives EPERM, before it
    looks at the range."""
    with mapping("private", 4) as region:
        unmap_pages(region, 3)
        with rlimits.unprivileged_with_limit(0):
            seen = {
                "mlock": syscalls.outcome(calls.mlock, region.addr, PAGE),
                "mlock2": syscalls.outcome(calls.mlock2, region.addr, PAGE, 0),
                "mlock2 on fault": syscalls.outcome(calls.mlock2, region.addr, PAGE, ON_FAULT),
                "mlock, length 0": syscalls.outcome(calls.mlock, region.addr, 0),
                "mlock2, length 0": syscalls.outcome(calls.mlock2, region.addr, 0, ON_FAULT),
                "mlock of a hole": syscalls.outcome(calls.mlock, region.at(3), PAGE),
                "mlock, wrapping": syscalls.outcome(calls.mlock, region.addr, syscalls.SIZE_MAX),
                "mlock, overflowing": syscalls.outcome(calls.mlock, syscalls.ULONG_MAX, 1),
                "mlockall(CURRENT)": syscalls.outcome(calls.mlockall, MCL_CURRENT),
                "mlockall(FUTURE)": syscalls.outcome(calls.mlockall, MCL_FUTURE),
                "mlockall(ALL)": syscalls.outcome(
                    calls.mlockall, MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT
                ),
                "mmap(MAP_LOCKED)": syscalls.outcome(map_locked, region.at(1), PAGE),
            }
        assert seen == dict.fromkeys(seen, "EPERM"), "no right to lock a single page"
        assert shape(region) == [(0, 3, "")], "nothing is locked"
        assert status.vmlck_pages() == 0, "VmLck stays 0"
        with mapping("private", 2) as later:
            assert shape(later) == [(0, 2, "")], "what is mapped later is not locked"


@by_entry_point()
@pytest.mark.detects("mlockall-flags-checked-late")
def test_flags_are_checked_before_rights(calls):
    """With a limit of 0 and without CAP_IPC_LOCK invalid arguments still give EINVAL, not
    EPERM."""
    with mapping("private", 2) as region:
        with rlimits.unprivileged_with_limit(0):
            seen = {
                "mlock2, flag 2": syscalls.outcome(calls.mlock2, region.addr, PAGE, 2),
                "mlock2, flags -1": syscalls.outcome(calls.mlock2, region.addr, PAGE, 0xFFFFFFFF),
                "mlockall(0)": syscalls.outcome(calls.mlockall, 0),
                "mlockall(ONFAULT)": syscalls.outcome(calls.mlockall, MCL_ONFAULT),
                "mlockall(unknown)": syscalls.outcome(calls.mlockall, 1 << 20),
                "mlockall(-1)": syscalls.outcome(calls.mlockall, 0xFFFFFFFF),
                "mmap(MAP_LOCKED), length 0": syscalls.outcome(syscalls.mmap, 0, 0, 3, LOCKED),
            }
        assert seen == dict.fromkeys(seen, "EINVAL"), "arguments come before rights"


@by_entry_point()
@pytest.mark.detects("munlock-needs-right", "munlockall-needs-right")
def test_unlocking_needs_no_right(calls):
    """With a limit of 0 and without CAP_IPC_LOCK munlock and munlockall succeed, and what they
    refuse has other reasons than rights."""
    with mapping("private", 4) as region:
        unmap_pages(region, 3)
        with rlimits.unprivileged_with_limit(0):
            seen = {
                "munlock": syscalls.outcome(calls.munlock, region.addr, PAGE),
                "munlock, length 0": syscalls.outcome(calls.munlock, region.addr, 0),
                "munlock of a hole": syscalls.outcome(calls.munlock, region.at(3), PAGE),
                "munlock, overflowing": syscalls.outcome(calls.munlock, syscalls.ULONG_MAX, 1),
                "munlockall": syscalls.outcome(calls.munlockall),
                "mincore": syscalls.outcome(
                    calls.mincore, region.addr, PAGE, (ctypes.c_ubyte * 1)()
                ),
            }
        assert seen == {
            "munlock": "ok",
            "munlock, length 0": "ok",
            "munlock of a hole": "ENOMEM",
            "munlock, overflowing": "EINVAL",
            "munlockall": "ok",
            "mincore": "ok",
        }, "the same answers as with every right"


@by_entry_point()
@pytest.mark.needs("lock:8")
@pytest.mark.claim("W9")
def test_unlocking_without_right_works_on_real_locks(calls):
    """With a limit of 0 and without CAP_IPC_LOCK munlock takes part of a lock back and
    munlockall the rest."""
    with mapping("private", 8) as region:
        syscalls.mlock(region.addr, region.size)
        with rlimits.unprivileged_with_limit(0):
            part = syscalls.outcome(calls.munlock, region.at(2), 3 * PAGE)
            after_part = shape(region)
            left = status.vmlck_pages()
            rest = syscalls.outcome(calls.munlockall)
        assert part == "ok", "munlock succeeds"
        assert after_part == [(0, 2, "lo"), (2, 5, ""), (5, 8, "lo")], "three pages unlocked"
        assert left == 5, "VmLck falls by three pages"
        assert rest == "ok", "munlockall succeeds"
        assert shape(region) == [(0, 8, "")], "nothing is locked any more"
        assert status.vmlck_pages() == 0, "VmLck is 0"


@by_entry_point()
@pytest.mark.needs("limit:4")
@pytest.mark.claim("W9")
def test_ordinary_process_may_lock_within_its_limit(calls):
    """Without CAP_IPC_LOCK every call locks up to the limit, and gives ENOMEM beyond it
    (mmap: EAGAIN)."""
    with mapping("private", 8) as region, rlimits.unprivileged_with_limit(4 * PAGE):
        beyond = {
            "mlock": syscalls.outcome(calls.mlock, region.addr, 5 * PAGE),
            "mlock2": syscalls.outcome(calls.mlock2, region.addr, 5 * PAGE, 0),
            "mlock2 on fault": syscalls.outcome(calls.mlock2, region.addr, 5 * PAGE, ON_FAULT),
            "mlockall(CURRENT)": syscalls.outcome(calls.mlockall, MCL_CURRENT),
            "mmap(MAP_LOCKED)": syscalls.outcome(map_locked, region.addr, 5 * PAGE),
        }
        unlocked = shape(region)
        within = {
            "mlock": syscalls.outcome(calls.mlock, region.addr, PAGE),
            "mlock2": syscalls.outcome(calls.mlock2, region.at(1), PAGE, 0),
            "mlock2 on fault": syscalls.outcome(calls.mlock2, region.at(2), PAGE, ON_FAULT),
            "mmap(MAP_LOCKED)": syscalls.outcome(map_locked, region.at(3), PAGE),
        }
        counted = status.vmlck_pages()
        assert beyond == {**dict.fromkeys(beyond, "ENOMEM"), "mmap(MAP_LOCKED)": "EAGAIN"}, (
            "one page more than the limit"
        )
        assert unlocked == [(0, 8, "")], "a refused call locks nothing"
        assert within == dict.fromkeys(within, "ok"), "four pages are within the limit"
        assert counted == 4, "VmLck is at the limit"
