# SPDX-License-Identifier: MIT
"""Locking too much: who dies of it, and who does not."""

import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from helpers import syscalls
from helpers.machine import timeouts
from helpers.memory import mapping
from helpers.observe import maps, pagemap, status
from helpers.processes import Child, ChildKilled
from helpers.reclaim import control_pairs, range_state
from helpers.requirements.inconclusive import inconclusive
from helpers.syscalls import PAGE

ROOM = max(1 << 20, 32 * PAGE)

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("cgroup", "lock:4096", "budget:1024", "smaps-flags"),
    pytest.mark.source("cgroup-v1/memory.rst", "cgroup-v2.rst"),
    pytest.mark.claim("W10"),
]


def panics():
    # Else an OOM kill inside a cgroup would take the machine with it (sysctl/vm.rst).
    return Path("/proc/sys/vm/panic_on_oom").read_text().strip() == "2"


def lock_everything(route, size):
    """In the child: lock more than its cgroup may have."""
    if route == "mlock":
        syscalls.mlock(syscalls.mmap(0, size), size)
    elif route == "MAP_LOCKED":
        how = syscalls.MAP_PRIVATE | syscalls.MAP_ANONYMOUS | syscalls.MAP_LOCKED
        syscalls.mmap(0, size, syscalls.PROT_RW, how)
    elif route == "MCL_FUTURE":
        syscalls.mlockall(syscalls.MCL_FUTURE)
        syscalls.mmap(0, size)
    else:
        addr = syscalls.mmap(0, size)
        syscalls.mlock2(addr, size, syscalls.MLOCK_ONFAULT)
        syscalls.memset(addr, 1, size)


@pytest.mark.parametrize("route", ["mlock", "MAP_LOCKED", "MCL_FUTURE", "onfault"])
@pytest.mark.detects("lock-over-limit-reports-eagain")
def test_locking_beyond_the_cgroups_limit_kills_inside_it(reclaim, route):
    """Locked memory that nothing can reclaim ends in the cgroup's OOM killer, inside it only."""
    if panics():
        inconclusive("vm.panic_on_oom is 2")
    with reclaim.cgroup() as group, Child() as neighbour, Child() as child:
        group.add(child.pid)
        child.call(status.vmlck_pages)
        limit = group.current() + ROOM
        group.limit(limit)
        free = psutil.virtual_memory().available
        kills = group.oom_kills()
        with pytest.raises(ChildKilled) as end:
            child.call(lock_everything, route, 2 * limit)
        assert end.value.signal == "SIGKILL", "the locker was killed"
        assert group.oom_kills() == kills + 1, "by the cgroup's OOM killer"
        assert group.current() <= limit, "the cgroup never had more than its limit"
        assert neighbour.call(os.getpid) == neighbour.pid, "who is outside lives"
        sunk = free - psutil.virtual_memory().available
        assert sunk < max(8 * limit, 256 << 20), "and the machine has its memory"


def test_limit_below_what_is_locked(reclaim):
    """A limit below locked memory takes none of it: v1 refuses the limit, v2 kills inside."""
    if panics():
        inconclusive("vm.panic_on_oom is 2")
    with reclaim.cgroup() as group, Child() as child:
        group.add(child.pid)
        made = child.call(control_pairs.make_pairs, ("private",), "mlock", 2 * ROOM // PAGE)
        locked = made["private"].locked
        answer = syscalls.outcome(group.limit, ROOM)
        if group.version == 1:
            assert answer == "EBUSY", "memory.limit_in_bytes below what is locked is refused"
            assert range_state.absent_pages(locked, child.pid) == 0, (
                "all locked pages are in memory"
            )
            assert child.call(status.vmlck_kb) == locked.kb, "and the process lives"
        else:
            ended = os.waitstatus_to_exitcode(child.wait())
            assert ended == -signal.SIGKILL, "the locker was killed"
            assert group.oom_kills() >= 1, "by the cgroup's OOM killer"


SPARE = 256
"""Pages, more than a CPU keeps charged ahead (MEMCG_CHARGE_BATCH, mm/memcontrol.c)."""


def lock_result(region):
    spare = syscalls.mmap(0, SPARE * PAGE)
    said = syscalls.outcome(syscalls.mlock, region.addr, region.size)
    # Waits here for room, at a fault in user space. The answer's way through the pipe would be
    # refused instead (its pages are charged too), and end this process.
    syscalls.memset(spare, 1, SPARE * PAGE)
    return said


def test_lock_without_oom_killer_gives_eagain(reclaim):
    """With v1's OOM killer off, mlock beyond the limit is EAGAIN: all lo, part of it resident."""
    with mapping("private", 2 * ROOM // PAGE + 4096) as region, reclaim.cgroup() as group:
        if not group.has("memory.oom_control") or group.version != 1:
            pytest.skip("needs cgroup v1: only there the OOM killer can be switched off")
        with Child() as child:
            group.add(child.pid)
            child.call(status.vmlck_pages)
            limit = group.current() + ROOM
            if region.size <= limit:
                inconclusive("the interpreter alone is charged more than the case's range")
            oom = group.path / "memory.oom_control"
            oom.write_text("1")
            group.limit(limit)
            child.start(lock_result, region)
            # The child waits for room at its first fault in user space: give it some.
            until = timeouts.until(2)
            while "under_oom 1" not in oom.read_text() and time.monotonic() < until:
                time.sleep(0.005)
            seen = pagemap.present_count(region.addr, region.pages, child.pid)
            group.limit(-1)
            assert child.result() == "EAGAIN", "mlock says that it ran out of memory"
            vmas = maps.smaps(child.pid, region.addr, region.end)
            assert [v.locked for v in vmas] == [True], "the whole range is lo all the same"
            assert 0 < seen < region.pages, "and part of it is resident"
