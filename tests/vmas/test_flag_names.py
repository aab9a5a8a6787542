# SPDX-License-Identifier: MIT
"""VmFlags: each thing that a VMA can be told has its own name there, beside those of a lock."""

import contextlib

import pytest

from helpers import syscalls
from helpers.machine import kernel_version
from helpers.memory import locks, mapping
from helpers.observe import maps
from helpers.syscalls import PAGE, userfaultfd

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("lock:4", "smaps-flags"),
    pytest.mark.source("proc_pid_smaps(5) VmFlags", "fs/proc/task_mmu.c show_smap_vma_flags"),
]

LF = "lf" if kernel_version.version() >= (6, 2, 0) else "??"
MARKS = {"unlocked": set(), "mlock": {"lo"}, "onfault": {"lo", LF}}


def advise(number):
    return lambda region, stack: syscalls.madvise(region.addr, region.size, number)


def protect(prot):
    return lambda region, stack: syscalls.mprotect(region.addr, region.size, prot)


def grows_down(region, stack):
    """A new mapping in the region's place."""
    how = syscalls.MAP_PRIVATE | syscalls.MAP_ANONYMOUS | syscalls.MAP_FIXED
    syscalls.mmap(region.addr, region.size, syscalls.PROT_RW, how | syscalls.MAP_GROWSDOWN)
    region.touch()


def watch(mode):
    """Registered with a userfaultfd, which is open as long as the stack."""

    def act(region, stack):
        fd = stack.enter_context(userfaultfd.open_fd())
        userfaultfd.register(fd, region, mode)

    return act


ACTS = {
    "nothing": (lambda region, stack: None, set(), set()),
    "MADV_RANDOM": (advise(syscalls.MADV_RANDOM), {"rr"}, set()),
    "MADV_SEQUENTIAL": (advise(syscalls.MADV_SEQUENTIAL), {"sr"}, set()),
    "MADV_DONTFORK": (advise(syscalls.MADV_DONTFORK), {"dc"}, set()),
    "MADV_WIPEONFORK": (advise(syscalls.MADV_WIPEONFORK), {"wf"}, set()),
    "MADV_DONTDUMP": (advise(syscalls.MADV_DONTDUMP), {"dd"}, set()),
    "MADV_HUGEPAGE": (advise(syscalls.MADV_HUGEPAGE), {"hg"}, set(), "thp"),
    "MADV_NOHUGEPAGE": (advise(syscalls.MADV_NOHUGEPAGE), {"nh"}, set(), "thp"),
    "MADV_MERGEABLE": (advise(syscalls.MADV_MERGEABLE), {"mg"}, set(), "mergeable"),
    "read-only": (protect(syscalls.PROT_READ), set(), {"wr"}),
    "executable": (protect(syscalls.PROT_RW | syscalls.PROT_EXEC), {"ex"}, set()),
    "no access": (protect(syscalls.PROT_NONE), set(), {"rd", "wr"}),
    "userfaultfd, missing": (watch(userfaultfd.MISSING), {"um"}, set(), "userfaultfd"),
    "userfaultfd, write": (watch(userfaultfd.WP), {"uw"}, set(), "uffd-protect"),
    "MAP_GROWSDOWN": (grows_down, {"gd"}, set()),
}
"""What is done → how, the flags that it adds, those that it takes away, and what it needs."""


def flags(region):
    found = maps.smaps(low=region.addr, high=region.end)
    assert len(found) == 1, "one VMA"
    return found[0].flags


def variants():
    """Each act before the lock, and under it where it is nothing else then."""
    for act, (_do, _added, _taken, *needs) in ACTS.items():
        marks = pytest.mark.needs(*needs) if needs else ()
        for order in ("before the lock", "under the lock")[: 1 if act == "MAP_GROWSDOWN" else 2]:
            yield pytest.param(act, order, id=f"{act}-{order}", marks=marks)


@pytest.mark.parametrize(("act", "order"), list(variants()))
@pytest.mark.parametrize("lock", MARKS)
@pytest.mark.detects(
    "vmflags-name-unknown", "vmflags-lo-missing-where-random", "vmflags-unlocked-shows-lo"
)
def test_each_flag_has_its_name_beside_the_locks(act, order, lock):
    """Whatever a VMA is told before or under a lock, VmFlags has exactly that name more, the
    lock's own, and none that is unknown; after munlock the lock's are gone and no other."""
    do, added, taken, *_ = ACTS[act]
    with mapping("private", 4) as region, contextlib.ExitStack() as stack:
        region.touch()
        base = flags(region)
        assert not base & {"lo", "lf", "??"}, "not locked, and every flag has a name"
        if order == "before the lock":
            do(region, stack)
        if lock != "unlocked" and act != "no access":
            locks.apply(region, lock)
        elif lock != "unlocked":  # which answers ENOMEM, having marked the range
            syscalls.outcome(locks.issue, syscalls.RAW, locks.CALLS[lock], region.addr, region.size)
        if order == "under the lock":
            do(region, stack)
        told = (base | added) - taken
        assert flags(region) == told | MARKS[lock], "locked"
        syscalls.munlock(region.addr, region.size)
        assert flags(region) == told, "unlocked"
        syscalls.munlock(region.at(1), PAGE)
        assert flags(region) == told, "munlock of what is not locked"
