# SPDX-License-Identifier: MIT
"""Taking locks back: locks do not stack, and unlocking what is not locked is no error."""

import threading

import pytest

from helpers import syscalls
from helpers.memory import mapping
from helpers.memory.locks import issue
from helpers.observe import maps, pagemap, status
from helpers.pytest_plugin.parametrize import by_entry_point
from helpers.syscalls import MCL_CURRENT, PAGE

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("smaps-flags", "lock:8"),
    pytest.mark.source("mlock(2) NOTES: memory locks do not stack"),
]

LOCK, LOCK2 = ("mlock",), ("mlock2", 0)
ON_FAULT = ("mlock2", syscalls.MLOCK_ONFAULT)


def shape(region):
    return maps.locks(region.addr, region.end, PAGE)


@pytest.mark.parametrize(
    "locks",
    [
        (LOCK, LOCK, LOCK),
        (LOCK, LOCK2, ON_FAULT),
        (ON_FAULT, ON_FAULT),
        (ON_FAULT, LOCK),
    ],
    ids=lambda locks: "+".join("".join(map(str, how)) for how in locks),
)
@pytest.mark.parametrize("flags", [0, syscalls.MAP_LOCKED], ids=["mapped", "MAP_LOCKED"])
def test_locks_do_not_stack(locks, flags):
    """However often and by whichever call a page was locked, it is counted once, and one
    munlock takes all of it back."""
    with mapping("private", 4, flags=flags) as region:
        counted = []
        for how in locks:
            issue(syscalls.GLIBC, how, region.addr, region.size)
            counted.append(status.vmlck_pages())
        last = "lo lf" if locks[-1] == ON_FAULT else "lo"
        assert counted == [4] * len(locks), "VmLck counts each page once"
        assert shape(region) == [(0, 4, last)], "the last lock decides its kind"
        syscalls.GLIBC.munlock(region.addr, region.size)
        assert shape(region) == [(0, 4, "")], "one munlock takes every lock off"
        assert status.vmlck_pages() == 0, "VmLck is 0"


@pytest.mark.own_process
@pytest.mark.needs("lock-all")
def test_mlockall_does_not_stack_either():
    """After mlockall twice and mlock twice, one munlock unlocks the range."""
    with mapping("private", 4) as region:
        syscalls.mlockall(MCL_CURRENT | syscalls.MCL_ONFAULT)
        syscalls.mlockall(MCL_CURRENT | syscalls.MCL_ONFAULT)
        syscalls.mlock(region.addr, region.size)
        syscalls.mlock(region.addr, region.size)
        locked = shape(region)
        syscalls.munlock(region.addr, region.size)
        assert locked == [(0, 4, "lo")], "the range was locked"
        assert shape(region) == [(0, 4, "")], "one munlock takes every lock off"


@pytest.mark.parametrize("touched", [False, True], ids=["untouched", "touched"])
@pytest.mark.source("POSIX munlock()")
def test_munlock_of_never_locked_range_is_noop(touched):
    """munlock of memory that was never locked succeeds and changes nothing."""
    with mapping("private", 8) as region:
        syscalls.mlock(region.addr, 2 * PAGE)
        if touched:
            region.sub(4, 2).touch()
        present = pagemap.present(region.addr, 8)
        seen = [
            syscalls.outcome(calls.munlock, *part)
            for calls in (syscalls.RAW, syscalls.GLIBC)
            for part in ((region.at(4), 4 * PAGE), (region.at(5) + 1, PAGE - 1))
        ]
        assert seen == ["ok"] * 4, "nothing to do is no error"
        assert shape(region) == [(0, 2, "lo"), (2, 8, "")], "the lock elsewhere is as before"
        assert status.vmlck_pages() == 2, "VmLck is unchanged"
        assert pagemap.present(region.addr, 8) == present, "residency is unchanged"


@by_entry_point()
@pytest.mark.detects("munlock-ignored")
def test_munlock_over_locked_and_unlocked_pages_unlocks_all(calls):
    """munlock over islands of locked pages of both kinds succeeds and unlocks each one."""
    with mapping("private", 8) as region:
        region.touch()
        syscalls.mlock(region.at(1), PAGE)
        syscalls.mlock2(region.at(3), PAGE, syscalls.MLOCK_ONFAULT)
        syscalls.mlock(region.at(6), 2 * PAGE)
        before = status.vmlck_pages()
        seen = syscalls.outcome(calls.munlock, region.addr, 7 * PAGE)
        assert before == 4, "four pages were locked"
        assert seen == "ok", "unlocked pages in the range are no error"
        assert shape(region) == [(0, 7, ""), (7, 8, "lo")], "only the page behind it stays lo"
        assert status.vmlck_pages() == 1, "VmLck keeps that page"
        assert pagemap.present_count(region.addr, 8) == 8, "every page stays resident"


@by_entry_point()
def test_munlockall_with_nothing_locked_returns_zero(calls):
    """munlockall succeeds with nothing locked, and again."""
    with mapping("private", 2) as region:
        seen = [syscalls.outcome(calls.munlockall) for _ in range(2)]
        assert seen == ["ok", "ok"], "nothing to do is no error"
        assert shape(region) == [(0, 2, "")], "nothing is locked"
        assert status.vmlck_pages() == 0, "VmLck is 0"


@by_entry_point()
@pytest.mark.detects("thread-munlock-ignored", "thread-mlock-ignored")
def test_any_thread_may_lock_and_unlock(calls):
    """Locks belong to the address space: one thread locks what another unlocks, by munlock and
    by munlockall."""
    with mapping("private", 4) as region:

        def in_thread(name, *args):
            results = []
            call = getattr(calls, name)
            thread = threading.Thread(target=lambda: results.append(syscalls.outcome(call, *args)))
            thread.start()
            thread.join()
            return results

        seen = [in_thread("mlock", region.addr, region.size)]
        locked = shape(region)
        seen.append(in_thread("munlock", region.at(1), PAGE))
        partly = shape(region)
        seen.append(in_thread("munlockall"))
        assert seen == [["ok"]] * 3, "each call succeeds in a thread of its own"
        assert locked == [(0, 4, "lo")], "a thread's lock holds for the process"
        assert partly == [(0, 1, "lo"), (1, 2, ""), (2, 4, "lo")], "a thread unlocks a part"
        assert shape(region) == [(0, 4, "")], "a thread unlocks everything"
        assert status.vmlck_pages() == 0, "VmLck is 0"
