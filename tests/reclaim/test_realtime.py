# SPDX-License-Identifier: MIT
"""A real-time loop over locked memory never waits for paging; one over unlocked memory does."""

import ctypes

import pytest

from helpers import syscalls
from helpers.memory import mapping
from helpers.observe import page_faults, vmstat
from helpers.processes import Child
from helpers.reclaim import control_pairs
from helpers.requirements.inconclusive import inconclusive
from helpers.syscalls import PAGE

SIZE = 2 * control_pairs.SIZE

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("cgroup", "swap", "lock-all", "budget:1024"),
    pytest.mark.source("mlockall(2) NOTES", "mlock(2) NOTES"),
    pytest.mark.claim("W3", "W2"),
]


def prepare(region, lock):
    """In the child: a working set, pre-touched, and under mlockall or not."""
    if lock:
        syscalls.mlockall(syscalls.MCL_CURRENT | syscalls.MCL_FUTURE)
    control_pairs.fill(region)
    page_faults.warm_up()
    page_faults.faults_during(walk, region, None)  # warm: the code, its stack, the small objects


def walk(region, flag):
    """Go over the working set, reading and writing each page, until the flag is set."""
    end, memset = region.end, ctypes.memset
    while True:
        for addr in range(region.addr, end, PAGE):
            memset(addr + 8, 0x3C, 8)
        if flag is None or ctypes.c_ubyte.from_address(flag).value:
            return


def measure(region, flag):
    migrated = vmstat.read().get("pgmigrate_success", 0)
    faults = page_faults.faults_during(walk, region, flag)
    return faults.minor, faults.major, vmstat.read().get("pgmigrate_success", 0) - migrated


def test_loop_over_locked_working_set_never_faults(reclaim):
    """While its cgroup thrashes, a loop under mlockall takes no fault; an unlocked one does."""
    with (
        mapping("private", SIZE) as working_set,
        mapping("shared", 1) as flag,
        reclaim.cgroup() as group,
        Child() as locked,
        Child() as unlocked,
    ):
        for child, lock in ((locked, True), (unlocked, False)):
            group.add(child.pid)
            child.call(prepare, working_set, lock)
            child.call(flag.first_bytes)
        for child in (locked, unlocked):
            child.start(measure, working_set, flag.addr)
        # Each pass takes all that can be taken, while both loops run.
        for _ in range(12):
            group.reclaim()
        flag.touch(1)
        minor, major, migrated = locked.result()
        other = unlocked.result()
        if other[1] == 0:
            inconclusive(f"the unlocked loop took no major fault (minor, major: {other[:2]})")
        assert major == 0, "the locked loop took no major fault"
        # A page that compaction is just moving is waited for, and that counts as a fault.
        assert max(0, minor - migrated) == 0, "and no minor fault"
