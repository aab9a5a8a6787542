# SPDX-License-Identifier: MIT
"""The OOM reaper and locked memory: what process_mrelease(2) takes, and from whom."""

import os

import pytest

from helpers import syscalls
from helpers.machine import kernel_version
from helpers.memory import mapping
from helpers.observe import lock_accounting, maps, page_flags, pagemap, residency, status
from helpers.processes import Child
from helpers.syscalls import process_vm, ptrace

N = 8

pytestmark = [
    pytest.mark.needs("process-mrelease", "outside-memory", "lock:32", "smaps-flags"),
    pytest.mark.source("process_mrelease(2)", "mm/oom_kill.c __oom_reap_task_mm()"),
]
REAPS_LOCKED = kernel_version.version() >= (5, 18, 0)
"""a213e5cf71cb: before, the reaper leaves out locked VMAs."""


def lock_all(*regions):
    """In the child: lock them, with its own bytes in the first."""
    for region in regions:
        syscalls.mlock(region.addr, region.size)
    regions[0].write(0x31)


@pytest.mark.detects("mrelease-takes-living")
def test_living_process_keeps_its_locked_memory():
    """process_mrelease of a process that is not being killed is EINVAL and takes no page of it,
    locked or not."""
    with mapping("private", N) as locked, mapping("private", N) as control, Child() as child:
        child.call(lock_all, locked)
        child.call(control.touch)
        fd = os.pidfd_open(child.pid)
        assert syscalls.outcome(process_vm.process_mrelease, fd) == "EINVAL", "it lives"
        assert syscalls.outcome(process_vm.process_mrelease, fd, 1) == "EINVAL", "unknown flags"
        os.close(fd)
        for region in (locked, control):
            assert pagemap.present_count(region.addr, N, child.pid) == N, "all there"
        assert child.call(locked.first_bytes) == b"\x31" * N, "contents"
        assert child.call(status.vmlck_pages) == N, "VmLck"


@pytest.mark.needs("kpageflags")
@pytest.mark.detects("reaped-stays-mlocked", "mrelease-unlocks-others")
@pytest.mark.usefixtures("one_cpu")
def test_reaper_takes_private_pages_and_leaves_others_locks():
    """Of a process that is being killed the reaper takes private pages, locked ones too (since
    5.18); a file's page that it alone had locked is not left mlocked, one that a living process has
    locked stays so, and shared memory stays as it was."""
    with (
        mapping("private", N) as own,
        mapping("memfd-shared", N) as seen,
        mapping("memfd-shared", N) as held,
        mapping("memfd-private", N, fd=seen.fd, prot=syscalls.PROT_READ) as alone,
        mapping("memfd-private", N, fd=held.fd, prot=syscalls.PROT_READ) as both,
        mapping("private", N) as control,
    ):
        seen.touch(0x11)
        held.touch(0x12)
        syscalls.mlock(held.addr, held.size)
        with Child() as child:
            child.call(lock_all, own, alone, both)
            child.call(control.touch)
            assert page_flags.mlocked(seen) == "1" * N, "locked by the child: mlocked"
            fd = os.pidfd_open(child.pid)
            with ptrace.held_at_exit(child.pid):
                process_vm.process_mrelease(fd)
                left = {
                    name: pagemap.present_count(region.addr, N, child.pid)
                    for name, region in (("own", own), ("alone", alone), ("control", control))
                }
                kept = 0 if REAPS_LOCKED else N
                assert left == {"own": kept, "alone": kept, "control": 0}, "what it still has"
                if REAPS_LOCKED:
                    assert page_flags.mlocked(seen) == "0" * N, "reaped: nobody has it locked"
                assert page_flags.mlocked(held) == "1" * N, "reaped: ours stays"
            child.wait()
            os.close(fd)
        assert page_flags.mlocked(seen) == "0" * N, "ended: nobody has it locked"
        assert page_flags.mlocked(held) == "1" * N, "ended: ours stays"
        assert lock_accounting.read(held).pages == "L" * N, "locked as before"
        assert maps.locked_kb() == status.vmlck_kb(), "VmLck"
        assert residency.mapped_bits(held) == "1" * N, "present"
        assert (seen.first_bytes(), held.first_bytes()) == (b"\x11" * N, b"\x12" * N), "contents"
