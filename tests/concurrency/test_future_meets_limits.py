# SPDX-License-Identifier: MIT
"""MCL_FUTURE where it meets a limit, overcommit or a mapping larger than memory."""

import errno
import os
from pathlib import Path

import pytest

from helpers import syscalls
from helpers.observe import maps, status
from helpers.processes.stub import StubProcess
from helpers.syscalls import PAGE

pytestmark = [
    pytest.mark.needs("stub-process", "smaps-flags"),
    pytest.mark.source("mlockall(2); mmap(2) ERRORS; Documentation/mm/overcommit-accounting.rst"),
]

HUGE = 1 << 36
"""64 GiB in 64 kB pages and in 4 kB pages: below 2^32 pages, which older kernels miscount."""


def account(bare):
    """(VmLck, sum of lo VMAs) in pages."""
    return status.vmlck_pages(bare.pid), maps.locked_kb(bare.pid) // syscalls.PAGE_KB


def refused(bare, pages, *args):
    """The errno name of an mmap there, or "ok"."""
    try:
        bare.mmap(pages, *args)
    except OSError as error:
        return errno.errorcode[error.errno]
    return "ok"


@pytest.mark.needs("lock-all", f"space:{HUGE // PAGE}")
def test_huge_mapping_locked_on_fault_is_counted_whole():
    """Under MCL_FUTURE with MCL_ONFAULT a mapping larger than memory is lo and counted whole,
    costs nothing, and is given back whole."""
    with StubProcess() as bare:
        bare.call("mlockall", syscalls.MCL_FUTURE | syscalls.MCL_ONFAULT)
        before = account(bare)
        how = syscalls.MAP_PRIVATE | syscalls.MAP_ANONYMOUS | syscalls.MAP_NORESERVE
        addr = bare.mmap(HUGE // PAGE, syscalls.PROT_NONE, how)
        assert account(bare) == tuple(n + HUGE // PAGE for n in before), "counted whole"
        bare.call("munlock", addr, HUGE // 2)
        assert account(bare) == tuple(n + HUGE // PAGE // 2 for n in before), "half is left"
        bare.call("munmap", addr, HUGE)
        assert account(bare) == before, "given back"


@pytest.mark.needs("lock-all")
def test_mapping_refused_by_overcommit_is_not_counted():
    """Under MCL_FUTURE a mapping that overcommit refuses gives ENOMEM and leaves VmLck, VmSize
    and the VMAs as they were."""
    if Path("/proc/sys/vm/overcommit_memory").read_text().strip() == "1":
        pytest.skip("needs an overcommit policy that refuses: sysctl vm.overcommit_memory=0")
    memory = os.sysconf("SC_PHYS_PAGES")
    with StubProcess() as bare:
        bare.call("mlockall", syscalls.MCL_FUTURE)
        bare.mmap(1)
        assert account(bare) == (1, 1), "control: a mapping that fits is counted"
        before = account(bare), status.kb("VmSize", bare.pid), maps.vmas(bare.pid)
        # More than memory and swap of any machine that has this much memory.
        assert refused(bare, memory * 64, syscalls.PROT_RW) == "ENOMEM", "overcommit refuses it"
        after = account(bare), status.kb("VmSize", bare.pid), maps.vmas(bare.pid)
        assert after == before, "nothing has changed"


@pytest.mark.needs("limit:11")
@pytest.mark.parametrize("each", [1, 3, 4])
def test_future_mappings_fill_the_limit(each):
    """Under MCL_FUTURE mappings succeed while they fit in the limit, the first that does not is
    EAGAIN with nothing changed, and a smaller one still fits."""
    limit = 11
    with StubProcess() as bare:
        bare.without("CAP_IPC_LOCK").limit(limit * PAGE)
        bare.call("mlockall", syscalls.MCL_FUTURE)
        made = []
        while refused(bare, each) == "ok":
            made.append(each)
            assert len(made) <= limit, "the limit is kept"
        assert len(made) == limit // each, "as many as fit"
        assert refused(bare, each) == "EAGAIN", "no more"
        assert account(bare) == (sum(made), sum(made)), "what was refused is not counted"
        left = limit - sum(made)
        if left:
            assert refused(bare, left) == "ok", "the rest can be had"
        assert account(bare) == (limit, limit), "to the last page"


@pytest.mark.needs("limit:8")
def test_limit_lowered_half_way_stops_what_comes():
    """A limit lowered below what MCL_FUTURE has locked refuses new mappings and the break, keeps
    what is locked, and lets unlocking make room again."""
    with StubProcess() as bare:
        bare.without("CAP_IPC_LOCK").limit(8 * PAGE)
        bare.call("mlockall", syscalls.MCL_FUTURE)
        addr = bare.mmap(6)
        bare.limit(4 * PAGE)
        assert refused(bare, 1) == "EAGAIN", "a new mapping"
        top = bare.call("brk", 0)
        assert bare.call("brk", top + 2 * PAGE) == top, "the break stays"
        assert account(bare) == (6, 6), "what is locked stays"
        bare.call("munlock", addr, 3 * PAGE)
        assert refused(bare, 1) == "ok", "there is room again"
        assert account(bare) == (4, 4), "to the limit"
        assert refused(bare, 1) == "EAGAIN", "and no further"
