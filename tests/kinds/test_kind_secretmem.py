"""memfd_secret: memory that is locked by its nature, and that nobody else can read.

Two models: up to 7.1 the mapping is lo and counts in VmLck; since (6.1.192, 7.2) it is not lo, and
each page is charged to the user when it is touched. Which it is, the VMA says.
"""

import os
from contextlib import contextmanager

import pytest

from helpers import libc, lru, memory, outside, privilege, process, sysv
from helpers.libc import PAGE
from helpers.memory import Region
from helpers.observe import account, maps, pagemap, presence, status
from helpers.pressure import drive
from helpers.process import Child

N = 8

pytestmark = [
    pytest.mark.needs("secretmem", "lock:16"),
    pytest.mark.source("memfd_secret(2)", "mm/secretmem.c"),
]


@contextmanager
def secret(pages=N):
    """A shared mapping of a new secret memfd, untouched."""
    fd = libc.syscall("memfd_secret", 0)
    os.ftruncate(fd, pages * PAGE)
    addr = libc.mmap(0, pages * PAGE, libc.PROT_RW, libc.MAP_SHARED, fd)
    with memory.unmapped_after(addr, pages * PAGE) as region:
        yield Region(region.addr, region.size, "secret", fd)
    os.close(fd)


def counted(region):
    """The mapping is lo: the model in which it counts in VmLck."""
    return maps.at(region.addr).locked


def letters(region):
    return (account.LOCKED if counted(region) else account.FREE) * region.pages


def lock(region):
    return libc.outcome(libc.mlock, region.addr, region.size)


def test_secret_memory_is_populated_by_touch_alone():
    """Neither mapping (MAP_POPULATE too) nor mlock brings a page of secret memory in, for the
    kernel may not look at it; a touch does, and it stays counted as it was."""
    with secret() as region:
        expected = letters(region)
        assert presence.mapped(region) == "0" * N, "mapped: empty"
        lock(region)
        assert presence.mapped(region) == "0" * N, "mlock: empty"
        libc.fill(region.addr, 7, 3 * PAGE)
        assert presence.mapped(region) == "11100000", "three are touched"
        seen = account.of(region)
        assert (seen.pages, seen.vmlck) == (expected, expected.count("L")), "lo and VmLck"
        flags = libc.MAP_SHARED | libc.MAP_POPULATE
        addr = libc.mmap(0, region.size, libc.PROT_RW, flags, region.fd)
        with memory.unmapped_after(addr, region.size) as other:
            assert presence.mapped(other) == "0" * N, "MAP_POPULATE: empty"
            assert status.vmlck_pages() == 2 * expected.count("L"), "each mapping counts"
        assert status.vmlck_pages() == expected.count("L"), "until it is unmapped"


@pytest.mark.parametrize("call", ["munlock", "munlockall", "mlock2", "mlock"])
def test_lock_calls_leave_secret_memory_as_it_is(call):
    """mlock, mlock2, munlock and munlockall change neither the mark of secret memory nor its
    count, of a part or of all."""

    def act(addr, size):
        if call == "munlockall":
            libc.munlockall()
        elif call == "mlock2":
            libc.outcome(libc.mlock2, addr, size, libc.MLOCK_ONFAULT)
        else:
            libc.outcome(getattr(libc, call), addr, size)

    with secret() as region, memory.mapping("private", 1) as plain:
        region.touch()
        before = letters(region)
        unlocking = call in {"munlock", "munlockall"}
        if unlocking:
            libc.mlock(plain.addr, PAGE)
        act(plain.addr, PAGE)
        act(region.at(1), PAGE)
        if unlocking:
            act(region.addr, region.size)
        seen = account.of(region)
        assert maps.at(plain.addr).locked is not unlocking, "control: plain memory obeys"
        assert seen.pages == before, "the mark"
        assert seen.vmlck == before.count("L") + (not unlocking), "VmLck"
        assert presence.mapped(region) == "1" * N, "every page is there"
        assert len(maps.smaps(low=region.addr, high=region.end)) == 1, "one VMA"


@pytest.mark.needs("kpageflags")
def test_pages_of_secret_memory_are_unevictable():
    """Every touched page of secret memory is unevictable, and stays so after munlock."""
    lru.pin()
    with secret() as region:
        region.touch()
        lru.drain()
        seen = pagemap.snapshot(region.addr, N)
        assert seen.having(pagemap.UNEVICTABLE) == N, "unevictable"
        libc.munlock(region.addr, region.size)
        lru.drain()
        seen = pagemap.snapshot(region.addr, N)
        assert seen.having(pagemap.UNEVICTABLE) == N, "after munlock, too"


def test_unmapping_secret_memory_gives_its_count_back():
    """Unmapping secret memory takes all of it out of VmLck, part by part."""
    with secret() as region:
        region.touch()
        each = letters(region).count("L") // N
        libc.munmap(region.at(5), 3 * PAGE)
        assert status.vmlck_pages() == 5 * each, "the tail"
        libc.munmap(region.at(1), PAGE)
        assert status.vmlck_pages() == 4 * each, "the middle"
        assert maps.locked_kb() == status.vmlck_kb(), "the sum of the lo VMAs"
        assert region.sub(2, 3).peek() == b"\xa5" * 3, "the rest is there"
    assert status.vmlck_kb() == 0, "nothing is left"


def ordinary(pages, uid):
    privilege.set_memlock(pages * PAGE)
    privilege.become(uid, uid)


def map_secret(pages):
    """In a child: the answer to mapping so many pages of a new secret memfd, kept mapped."""
    fd = libc.syscall("memfd_secret", 0)
    os.ftruncate(fd, pages * PAGE)
    return libc.outcome(libc.mmap, 0, pages * PAGE, libc.PROT_RW, libc.MAP_SHARED, fd)


def touch_secret(pages, touched):
    """In a child: map and touch."""
    fd = libc.syscall("memfd_secret", 0)
    os.ftruncate(fd, pages * PAGE)
    addr = libc.mmap(0, pages * PAGE, libc.PROT_RW, libc.MAP_SHARED, fd)
    for page in range(touched):
        libc.write(addr + page * PAGE, b"x")
    return touched


@pytest.mark.needs("other-user", "root-user", "limit:16")
def test_secret_memory_is_bound_by_the_limit():
    """Secret memory is bound by RLIMIT_MEMLOCK: where it is lo, mmap beyond the limit gives
    EAGAIN; where it is charged when touched, the touch beyond it gives SIGBUS."""
    with secret(1) as probe:
        old = counted(probe)
    uid = sysv.spare_user()
    with memory.mapping("private", 4) as plain, Child() as child:
        child.call(ordinary, 4, uid)
        if not old:
            assert child.call(touch_secret, N, 4) == 4, "as many as the limit"
            with pytest.raises(process.ChildKilled) as killed:
                child.call(touch_secret, N, 1)
            assert killed.value.signal == "SIGBUS", "one more"
            return
        assert child.call(map_secret, 5) == "EAGAIN", "five pages"
        assert child.call(map_secret, 3) == "ok", "three"
        assert child.call(map_secret, 2) == "EAGAIN", "two more"
        assert child.call(libc.outcome, libc.mlock, plain.addr, 2 * PAGE) == "ENOMEM", (
            "mlock has the same account"
        )
        assert child.call(libc.outcome, libc.mlock, plain.addr, PAGE) == "ok", "one is left"
        assert child.call(map_secret, 1) == "EAGAIN", "and then none"


@pytest.mark.needs("CAP_IPC_LOCK", "limit:16")
def test_capability_lifts_the_limit_of_counted_secret_memory():
    """Where secret memory counts in VmLck, CAP_IPC_LOCK lifts its limit, 0 as well."""
    with secret(1) as probe:
        if not counted(probe):
            pytest.skip("needs secret memory that counts in VmLck: here it is charged by page")
    for limit in (0, PAGE):
        with privilege.memlock(limit):
            assert map_secret(4) == "ok", f"at limit {limit}"


def test_secret_memory_can_be_shared_only():
    """A private mapping of secret memory is refused with EINVAL, and counts nothing."""
    with secret() as region:
        before = status.vmlck_kb()
        answer = libc.outcome(libc.mmap, 0, PAGE, libc.PROT_RW, libc.MAP_PRIVATE, region.fd)
        assert answer == "EINVAL", "MAP_PRIVATE"
        assert status.vmlck_kb() == before, "VmLck"


def test_child_shares_secret_memory_without_the_lock():
    """A child shares its parent's secret pages, with a VmLck of 0 and no mark; its end and its
    munlock change nothing for the parent."""
    with secret() as region:
        region.touch()
        before = letters(region)
        with Child() as child:
            assert child.call(region.peek) == b"\xa5" * N, "the same pages"
            assert child.call(status.vmlck_kb) == 0, "VmLck of the child"
            assert not maps.at(region.addr, child.pid).locked, "not lo"
            child.call(libc.munlock, region.addr, region.size)
            child.call(libc.munmap, region.addr, 2 * PAGE)
            assert child.call(status.vmlck_kb) == 0, "after munmap"
        seen = account.of(region)
        assert (seen.pages, seen.vmlck) == (before, before.count("L")), "the parent's"
        assert presence.mapped(region) == "1" * N, "all there"


def test_nobody_else_reads_secret_memory():
    """Secret memory cannot be read or written through process_vm_readv, /proc/PID/mem, vmsplice
    or read(2), by its own process neither: the kernel may not look at it."""
    with secret() as region, Child() as child:
        region.write(0x5C)
        pid = child.pid
        answers = {
            "process_vm_readv": libc.outcome(outside.read, pid, region.addr, 16),
            "process_vm_writev": libc.outcome(outside.write, pid, region.addr, b"x"),
            "/proc/PID/mem": libc.outcome(outside.peek_file, pid, region.addr, 16),
            "own process_vm_readv": libc.outcome(outside.read, os.getpid(), region.addr, 16),
            "/proc/self/mem": libc.outcome(memory.force, region.addr, b"x"),
        }
        refused = {"EFAULT", "EIO"}
        assert {k: v for k, v in answers.items() if v not in refused} == {}, "all are refused"
        assert libc.outcome(os.pread, region.fd, 16, 0) != "ok", "read(2) of the descriptor"
        assert region.peek() == b"\x5c" * N, "nothing was written"


@pytest.mark.parametrize(
    "advice", ["MADV_DONTNEED", "MADV_FREE", "MADV_COLD", "MADV_PAGEOUT", "MADV_REMOVE"]
)
def test_advice_takes_no_secret_page(advice):
    """No advice to madvise takes a page of lo secret memory away."""
    with secret() as region:
        region.write(0x3D)
        answer = libc.outcome(libc.madvise, region.addr, region.size, getattr(libc, advice))
        if counted(region):
            assert answer == "EINVAL", f"{advice} of locked memory"
            assert presence.mapped(region) == "1" * N, "still mapped"
        assert region.peek() == b"\x3d" * N, "contents"


def hold(pages):
    """In the child: touched secret memory, and plain memory beside it."""
    fd = libc.syscall("memfd_secret", 0)
    os.ftruncate(fd, pages * PAGE)
    found = Region(libc.mmap(0, pages * PAGE, libc.PROT_RW, libc.MAP_SHARED, fd), pages * PAGE)
    found.write(0x44)
    control = Region(libc.mmap(0, pages * PAGE), pages * PAGE)
    libc.write(control.addr, os.urandom(control.size))
    return found, control


@pytest.mark.needs("cgroup", "swap", "lock:128")
@pytest.mark.claim("W1")
def test_secret_memory_stays_under_pressure(pressure):
    """Reclaim takes the plain memory beside secret memory, and none of it, unlocked or not."""
    pages = 128
    with pressure.cgroup() as group, Child() as child:
        group.add(child.pid)
        found, control = child.call(hold, pages)
        child.call(libc.munlock, found.addr, found.size)
        before = pagemap.pfns(found.addr, pages, child.pid)
        drive.until_gone(group.reclaim, child.pid, control)
        assert pagemap.present_count(found.addr, pages, child.pid) == pages, "all there"
        assert pagemap.pfns(found.addr, pages, child.pid) == before, "in their frames"


@pytest.mark.needs("lock-all")
def test_secret_memory_made_under_future_counts_once():
    """Secret memory mapped under MCL_FUTURE counts once if it is lo, and its unmapping gives that
    back."""
    # In the newer model it is lo only here (7.2, 7.3): do_mmap() adds the flag, mlock() does not.
    with Child() as child:
        child.call(libc.mlockall, libc.MCL_FUTURE)
        plain = child.call(libc.mmap, 0, PAGE)
        assert maps.at(plain, child.pid).locked, "control: plain memory is lo"
        before = child.call(vmlck_now)
        found = child.call(hold_only, N)
        pages = N if maps.at(found, child.pid).locked else 0
        assert child.call(vmlck_now) - before == pages, "VmLck"
        assert maps.locked_kb(child.pid) == status.vmlck_kb(child.pid), "VmLck is the sum of lo"
        child.call(libc.munmap, found, N * PAGE)
        assert child.call(vmlck_now) == before, "unmapped"


def vmlck_now():
    return status.vmlck_pages()


def hold_only(pages):
    fd = libc.syscall("memfd_secret", 0)
    libc.outcome(os.ftruncate, fd, pages * PAGE)
    return libc.mmap(0, pages * PAGE, libc.PROT_RW, libc.MAP_SHARED, fd)
