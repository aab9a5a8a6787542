"""mseal: a sealed mapping cannot be taken away, its lock can."""

import pytest

from helpers import libc
from helpers.libc import PAGE
from helpers.memory import Region
from helpers.observe import account, maps, pagemap, presence, status
from helpers.process import Child

N = 8

pytestmark = [
    pytest.mark.needs("mseal", "lock:16"),
    pytest.mark.source("mseal(2)", "Documentation/userspace-api/mseal.rst"),
]


def sealed(flags=0, prot=libc.PROT_RW):
    """In a child, whose end alone unmaps it: a sealed mapping, locked by MAP_LOCKED if asked."""
    how = libc.MAP_PRIVATE | libc.MAP_ANONYMOUS | flags
    base = libc.mmap(0, (N + 2) * PAGE, libc.PROT_NONE)
    addr = libc.mmap(base + PAGE, N * PAGE, libc.PROT_RW, how | libc.MAP_FIXED)
    region = Region(addr, N * PAGE)
    region.touch()
    libc.mprotect(addr, region.size, prot)
    libc.syscall("mseal", addr, region.size, 0)
    return region


def map_over(region):
    how = libc.MAP_PRIVATE | libc.MAP_ANONYMOUS | libc.MAP_FIXED
    return libc.mmap(region.at(2), PAGE, libc.PROT_RW, how)


def test_refused_calls_leave_the_lock_of_sealed_memory():
    """munmap, MAP_FIXED over it, mprotect and mremap of sealed locked memory give EPERM and leave
    lock, count and pages."""
    with Child() as child:
        region = child.call(sealed, libc.MAP_LOCKED)
        for call, *args in (
            (libc.munmap, region.addr, region.size),
            (libc.munmap, region.at(3), PAGE),
            (map_over, region),
            (libc.mprotect, region.at(1), PAGE, libc.PROT_NONE),
            (libc.mremap, region.addr, region.size, PAGE),
            (libc.mremap, region.addr, region.size, region.size * 2, libc.MREMAP_MAYMOVE),
        ):
            assert child.call(libc.outcome, call, *args) == "EPERM", "sealed"
            assert account.of(region, child.pid) == account.balanced("L" * N, N), "as before"


@pytest.mark.needs("lock-all")
def test_mlockall_and_munlockall_reach_sealed_memory():
    """mlockall and munlockall lock and unlock sealed memory like any other."""
    with Child() as child:
        region = child.call(sealed)
        child.call(libc.mlockall, libc.MCL_CURRENT)
        assert maps.at(region.addr, child.pid).lock == "lo", "locked"
        assert maps.locked_kb(child.pid) == status.vmlck_kb(child.pid), "VmLck: sum of lo"
        child.call(libc.munlockall)
        assert account.of(region, child.pid) == account.balanced("-" * N, 0), "unlocked"


@pytest.mark.needs("dontneed-locked")
def test_locked_pages_of_sealed_read_only_memory_are_not_dropped():
    """MADV_DONTNEED_LOCKED of sealed anonymous memory that is read-only gives EPERM, and its
    locked pages stay; of writable memory it drops them."""
    with Child() as child:
        for prot, answer in ((libc.PROT_READ, "EPERM"), (libc.PROT_RW, "ok")):
            region = child.call(sealed, 0, prot)
            child.call(libc.mlock2, region.addr, region.size, libc.MLOCK_ONFAULT)
            args = region.addr, region.size, libc.MADV_DONTNEED_LOCKED
            assert child.call(libc.outcome, libc.madvise, *args) == answer, "DONTNEED_LOCKED"
            left = presence.bits(pagemap.present(region.addr, N, child.pid))
            assert left == ("1" if answer == "EPERM" else "0") * N, "its pages"
            assert account.pages(region, child.pid) == account.ONFAULT * N, "its lock"


def test_child_of_sealed_locked_memory_has_no_lock():
    """fork gives the child the seal and not the lock; the child may lock for itself."""
    region = sealed(libc.MAP_LOCKED)
    with Child() as child:
        assert account.of(region, child.pid) == account.balanced("-" * N, 0), "not locked"
        assert child.call(libc.outcome, libc.munmap, region.addr, PAGE) == "EPERM", "sealed"
        child.call(libc.mlock, region.at(2), 2 * PAGE)
        assert account.of(region, child.pid) == account.balanced("--LL----", 2), "locked in part"
    assert account.of(region) == account.balanced("L" * N, N), "the parent's, as before"
