# SPDX-License-Identifier: MIT
"""mseal: a sealed mapping cannot be taken away, its lock can."""

import pytest

from helpers import syscalls
from helpers.memory import Region
from helpers.observe import lock_accounting, maps, pagemap, residency, status
from helpers.processes import Child
from helpers.syscalls import PAGE

N = 8

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("mseal", "lock:16"),
    pytest.mark.source("mseal(2)", "Documentation/userspace-api/mseal.rst"),
]


def sealed(flags=0, prot=syscalls.PROT_RW):
    """In a child, whose end alone unmaps it: a sealed mapping, locked by MAP_LOCKED if asked."""
    how = syscalls.MAP_PRIVATE | syscalls.MAP_ANONYMOUS | flags
    base = syscalls.mmap(0, (N + 2) * PAGE, syscalls.PROT_NONE)
    addr = syscalls.mmap(base + PAGE, N * PAGE, syscalls.PROT_RW, how | syscalls.MAP_FIXED)
    region = Region(addr, N * PAGE)
    region.touch()
    syscalls.mprotect(addr, region.size, prot)
    syscalls.syscall("mseal", addr, region.size, 0)
    return region


def map_over(region):
    how = syscalls.MAP_PRIVATE | syscalls.MAP_ANONYMOUS | syscalls.MAP_FIXED
    return syscalls.mmap(region.at(2), PAGE, syscalls.PROT_RW, how)


def test_refused_calls_leave_the_lock_of_sealed_memory():
    """munmap, MAP_FIXED over it, mprotect and mremap of sealed locked memory give EPERM and leave
    lock, count and pages."""
    with Child() as child:
        region = child.call(sealed, syscalls.MAP_LOCKED)
        for call, *args in (
            (syscalls.munmap, region.addr, region.size),
            (syscalls.munmap, region.at(3), PAGE),
            (map_over, region),
            (syscalls.mprotect, region.at(1), PAGE, syscalls.PROT_NONE),
            (syscalls.mremap, region.addr, region.size, PAGE),
            (syscalls.mremap, region.addr, region.size, region.size * 2, syscalls.MREMAP_MAYMOVE),
        ):
            assert child.call(syscalls.outcome, call, *args) == "EPERM", "sealed"
            assert lock_accounting.read(region, child.pid) == lock_accounting.expect("L" * N, N), (
                "as before"
            )


@pytest.mark.needs("lock-all")
def test_mlockall_and_munlockall_reach_sealed_memory():
    """mlockall and munlockall lock and unlock sealed memory like any other."""
    with Child() as child:
        region = child.call(sealed)
        child.call(syscalls.mlockall, syscalls.MCL_CURRENT)
        assert maps.at(region.addr, child.pid).lock == "lo", "locked"
        assert maps.locked_kb(child.pid) == status.vmlck_kb(child.pid), "VmLck: sum of lo"
        child.call(syscalls.munlockall)
        assert lock_accounting.read(region, child.pid) == lock_accounting.expect("-" * N, 0), (
            "unlocked"
        )


@pytest.mark.needs("dontneed-locked")
def test_locked_pages_of_sealed_read_only_memory_are_not_dropped():
    """MADV_DONTNEED_LOCKED of sealed anonymous memory that is read-only gives EPERM, and its
    locked pages stay; of writable memory it drops them."""
    with Child() as child:
        for prot, answer in ((syscalls.PROT_READ, "EPERM"), (syscalls.PROT_RW, "ok")):
            region = child.call(sealed, 0, prot)
            child.call(syscalls.mlock2, region.addr, region.size, syscalls.MLOCK_ONFAULT)
            args = region.addr, region.size, syscalls.MADV_DONTNEED_LOCKED
            assert child.call(syscalls.outcome, syscalls.madvise, *args) == answer, (
                "DONTNEED_LOCKED"
            )
            left = residency.bits(pagemap.present(region.addr, N, child.pid))
            assert left == ("1" if answer == "EPERM" else "0") * N, "its pages"
            assert lock_accounting.page_letters(region, child.pid) == lock_accounting.ONFAULT * N, (
                "its lock"
            )


@pytest.mark.own_process
def test_child_of_sealed_locked_memory_has_no_lock():
    """fork gives the child the seal and not the lock; the child may lock for itself."""
    region = sealed(syscalls.MAP_LOCKED)
    with Child() as child:
        assert lock_accounting.read(region, child.pid) == lock_accounting.expect("-" * N, 0), (
            "not locked"
        )
        assert child.call(syscalls.outcome, syscalls.munmap, region.addr, PAGE) == "EPERM", "sealed"
        child.call(syscalls.mlock, region.at(2), 2 * PAGE)
        assert lock_accounting.read(region, child.pid) == lock_accounting.expect("--LL----", 2), (
            "locked in part"
        )
    assert lock_accounting.read(region) == lock_accounting.expect("L" * N, N), (
        "the parent's, as before"
    )
