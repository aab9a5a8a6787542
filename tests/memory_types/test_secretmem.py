# SPDX-License-Identifier: MIT
"""memfd_secret: memory that is locked by its nature, and that nobody else can read.

Two models: up to 7.1 the mapping is lo and counts in VmLck; since (6.1.192, 7.2) it is not lo, and
each page is charged to the user when it is touched. Which it is, the VMA says.
"""

import os
from contextlib import contextmanager

import pytest

from helpers import memory, processes, syscalls
from helpers.memory import Region, sysv_segment
from helpers.observe import (
    lock_accounting,
    lru_batches,
    maps,
    page_flags,
    pagemap,
    residency,
    status,
)
from helpers.processes import Child, credentials, rlimits
from helpers.reclaim import drivers
from helpers.syscalls import PAGE, io_uring, process_vm, ptrace, vmsplice

N = 8

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("secretmem", "lock:16"),
    pytest.mark.source("memfd_secret(2)", "mm/secretmem.c"),
]


@contextmanager
def secret(pages=N):
    """A shared mapping of a new secret memfd, untouched."""
    fd = syscalls.syscall("memfd_secret", 0)
    os.ftruncate(fd, pages * PAGE)
    addr = syscalls.mmap(0, pages * PAGE, syscalls.PROT_RW, syscalls.MAP_SHARED, fd)
    with memory.adopt_mapping(addr, pages * PAGE) as region:
        yield Region(region.addr, region.size, "secret", fd)
    os.close(fd)


def counted(region):
    """The mapping is lo: the model in which it counts in VmLck."""
    return maps.at(region.addr).locked


def letters(region):
    return (lock_accounting.LOCKED if counted(region) else lock_accounting.FREE) * region.pages


def lock(region):
    return syscalls.outcome(syscalls.mlock, region.addr, region.size)


def test_secret_memory_is_populated_by_touch_alone():
    """Neither mapping (MAP_POPULATE too) nor mlock brings a page of secret memory in, for the
    kernel may not look at it; a touch does, and it stays counted as it was."""
    with secret() as region:
        expected = letters(region)
        assert residency.mapped_bits(region) == "0" * N, "mapped: empty"
        lock(region)
        assert residency.mapped_bits(region) == "0" * N, "mlock: empty"
        syscalls.memset(region.addr, 7, 3 * PAGE)
        assert residency.mapped_bits(region) == "11100000", "three are touched"
        seen = lock_accounting.read(region)
        assert (seen.pages, seen.vmlck) == (expected, expected.count("L")), "lo and VmLck"
        flags = syscalls.MAP_SHARED | syscalls.MAP_POPULATE
        addr = syscalls.mmap(0, region.size, syscalls.PROT_RW, flags, region.fd)
        with memory.adopt_mapping(addr, region.size) as other:
            assert residency.mapped_bits(other) == "0" * N, "MAP_POPULATE: empty"
            assert status.vmlck_pages() == 2 * expected.count("L"), "each mapping counts"
        assert status.vmlck_pages() == expected.count("L"), "until it is unmapped"


@pytest.mark.parametrize("call", ["munlock", "munlockall", "mlock2", "mlock"])
def test_lock_calls_leave_secret_memory_as_it_is(call):
    """mlock, mlock2, munlock and munlockall change neither the mark of secret memory nor its
    count, of a part or of all."""

    def act(addr, size):
        if call == "munlockall":
            syscalls.munlockall()
        elif call == "mlock2":
            syscalls.outcome(syscalls.mlock2, addr, size, syscalls.MLOCK_ONFAULT)
        else:
            syscalls.outcome(getattr(syscalls, call), addr, size)

    with secret() as region, memory.mapping("private", 1) as plain:
        region.touch()
        before = letters(region)
        unlocking = call in {"munlock", "munlockall"}
        if unlocking:
            syscalls.mlock(plain.addr, PAGE)
        act(plain.addr, PAGE)
        act(region.at(1), PAGE)
        if unlocking:
            act(region.addr, region.size)
        seen = lock_accounting.read(region)
        assert maps.at(plain.addr).locked is not unlocking, "control: plain memory obeys"
        assert seen.pages == before, "the mark"
        assert seen.vmlck == before.count("L") + (not unlocking), "VmLck"
        assert residency.mapped_bits(region) == "1" * N, "every page is there"
        assert len(maps.smaps(low=region.addr, high=region.end)) == 1, "one VMA"


@pytest.mark.needs("kpageflags")
@pytest.mark.usefixtures("one_cpu")
def test_pages_of_secret_memory_are_unevictable():
    """Every touched page of secret memory is unevictable, and stays so after munlock."""
    with secret() as region:
        region.touch()
        lru_batches.mlock_drain_local()
        seen = page_flags.snapshot(region.addr, N)
        assert seen.count_with(page_flags.UNEVICTABLE) == N, "unevictable"
        syscalls.munlock(region.addr, region.size)
        lru_batches.mlock_drain_local()
        seen = page_flags.snapshot(region.addr, N)
        assert seen.count_with(page_flags.UNEVICTABLE) == N, "after munlock, too"


def test_unmapping_secret_memory_gives_its_count_back():
    """Unmapping secret memory takes all of it out of VmLck, part by part."""
    with secret() as region:
        region.touch()
        each = letters(region).count("L") // N
        syscalls.munmap(region.at(5), 3 * PAGE)
        assert status.vmlck_pages() == 5 * each, "the tail"
        syscalls.munmap(region.at(1), PAGE)
        assert status.vmlck_pages() == 4 * each, "the middle"
        assert maps.locked_kb() == status.vmlck_kb(), "the sum of the lo VMAs"
        assert region.sub(2, 3).first_bytes() == b"\xa5" * 3, "the rest is there"
    assert status.vmlck_kb() == 0, "nothing is left"


def ordinary(pages, uid):
    rlimits.set_soft_memlock(pages * PAGE)
    credentials.set_user(uid, uid)


def map_secret(pages):
    """In a child: the answer to mapping so many pages of a new secret memfd, kept mapped."""
    fd = syscalls.syscall("memfd_secret", 0)
    os.ftruncate(fd, pages * PAGE)
    return syscalls.outcome(
        syscalls.mmap, 0, pages * PAGE, syscalls.PROT_RW, syscalls.MAP_SHARED, fd
    )


def touch_secret(pages, touched):
    """In a child: map and touch."""
    fd = syscalls.syscall("memfd_secret", 0)
    os.ftruncate(fd, pages * PAGE)
    addr = syscalls.mmap(0, pages * PAGE, syscalls.PROT_RW, syscalls.MAP_SHARED, fd)
    for page in range(touched):
        syscalls.store(addr + page * PAGE, b"x")
    return touched


@pytest.mark.needs("other-user", "root-user", "limit:16")
def test_secret_memory_is_bound_by_the_limit():
    """Secret memory is bound by RLIMIT_MEMLOCK: where it is lo, mmap beyond the limit gives
    EAGAIN; where it is charged when touched, the touch beyond it gives SIGBUS."""
    with secret(1) as probe:
        old = counted(probe)
    uid = sysv_segment.unused_uid()
    with memory.mapping("private", 4) as plain, Child() as child:
        child.call(ordinary, 4, uid)
        if not old:
            assert child.call(touch_secret, N, 4) == 4, "as many as the limit"
            with pytest.raises(processes.ChildKilled) as killed:
                child.call(touch_secret, N, 1)
            assert killed.value.signal == "SIGBUS", "one more"
            return
        assert child.call(map_secret, 5) == "EAGAIN", "five pages"
        assert child.call(map_secret, 3) == "ok", "three"
        assert child.call(map_secret, 2) == "EAGAIN", "two more"
        assert child.call(syscalls.outcome, syscalls.mlock, plain.addr, 2 * PAGE) == "ENOMEM", (
            "mlock has the same account"
        )
        assert child.call(syscalls.outcome, syscalls.mlock, plain.addr, PAGE) == "ok", "one is left"
        assert child.call(map_secret, 1) == "EAGAIN", "and then none"


@pytest.mark.own_process
@pytest.mark.needs("CAP_IPC_LOCK", "limit:16")
@pytest.mark.detects("secret-bound-in-spite-of-capability")
def test_capability_lifts_the_limit_of_counted_secret_memory():
    """Where secret memory counts in VmLck, CAP_IPC_LOCK lifts its limit, 0 as well."""
    with secret(1) as probe:
        if not counted(probe):
            pytest.skip("needs secret memory that counts in VmLck: here it is charged by page")
    for limit in (0, PAGE):
        with rlimits.soft_memlock_limit(limit):
            assert map_secret(4) == "ok", f"at limit {limit}"


@pytest.mark.detects("secret-private-accepted")
def test_secret_memory_can_be_shared_only():
    """A private mapping of secret memory is refused with EINVAL, and counts nothing."""
    with secret() as region:
        before = status.vmlck_kb()
        answer = syscalls.outcome(
            syscalls.mmap, 0, PAGE, syscalls.PROT_RW, syscalls.MAP_PRIVATE, region.fd
        )
        assert answer == "EINVAL", "MAP_PRIVATE"
        assert status.vmlck_kb() == before, "VmLck"


def test_child_shares_secret_memory_without_the_lock():
    """A child shares its parent's secret pages, with a VmLck of 0 and no mark; its end and its
    munlock change nothing for the parent."""
    with secret() as region:
        region.touch()
        before = letters(region)
        with Child() as child:
            assert child.call(region.first_bytes) == b"\xa5" * N, "the same pages"
            assert child.call(status.vmlck_kb) == 0, "VmLck of the child"
            assert not maps.at(region.addr, child.pid).locked, "not lo"
            child.call(syscalls.munlock, region.addr, region.size)
            child.call(syscalls.munmap, region.addr, 2 * PAGE)
            assert child.call(status.vmlck_kb) == 0, "after munmap"
        seen = lock_accounting.read(region)
        assert (seen.pages, seen.vmlck) == (before, before.count("L")), "the parent's"
        assert residency.mapped_bits(region) == "1" * N, "all there"


@pytest.mark.detects("secret-read-by-others")
def test_nobody_else_reads_secret_memory():
    """Secret memory cannot be read or written through process_vm_readv, /proc/PID/mem or read(2) of
    its descriptor, by its own process neither: the kernel may not look at it."""
    with secret() as region, Child() as child:
        region.write(0x5C)
        pid = child.pid
        answers = {
            "process_vm_readv": syscalls.outcome(process_vm.process_vm_readv, pid, region.addr, 16),
            "process_vm_writev": syscalls.outcome(
                process_vm.process_vm_writev, pid, region.addr, b"x"
            ),
            "/proc/PID/mem": syscalls.outcome(process_vm.read_proc_mem, pid, region.addr, 16),
            "own process_vm_readv": syscalls.outcome(
                process_vm.process_vm_readv, os.getpid(), region.addr, 16
            ),
            "/proc/self/mem": syscalls.outcome(syscalls.write_proc_self_mem, region.addr, b"x"),
        }
        refused = {"EFAULT", "EIO"}
        assert {k: v for k, v in answers.items() if v not in refused} == {}, "all are refused"
        assert syscalls.outcome(os.pread, region.fd, 16, 0) != "ok", "read(2) of the descriptor"
        assert region.first_bytes() == b"\x5c" * N, "nothing was written"


def splice(region):
    with vmsplice.frame_pipe() as pipe:
        vmsplice.pin_in_pipe(pipe, region.addr, 1)


def write_directly(region):
    """Write the page to a file on disk past the page cache."""
    fd = memory.scratch_file(1)
    other = syscalls.open_direct(fd)
    try:
        syscalls.write_from_address(other, region.addr, PAGE, 0)
    finally:
        written = os.pread(fd, 4, 0)
        os.close(other)
        os.close(fd)
        assert written == bytes(4), "nothing of it is in the file"


def peek(region):
    with Child() as child, ptrace.ptrace_stopped(child.pid):
        ptrace.peekdata(child.pid, region.addr)


def pin_in_ring(region):
    with io_uring.io_uring_instance() as ring:
        io_uring.register(ring, region.addr, region.size)


PINNING = {
    "vmsplice": splice,
    "process_vm_readv": lambda r: process_vm.process_vm_readv(os.getpid(), r.addr, 16),
    "/proc/self/mem": lambda r: process_vm.read_proc_mem("self", r.addr, 16),
    "O_DIRECT": pytest.param(write_directly, marks=pytest.mark.needs("disk-file")),
    "ptrace": pytest.param(peek, marks=pytest.mark.needs("outside-memory")),
    "io_uring": pytest.param(pin_in_ring, marks=pytest.mark.needs("io-uring")),
}


@pytest.mark.parametrize("way", PINNING.values(), ids=PINNING)
@pytest.mark.parametrize("drained", [False, True], ids=["just-touched", "drained"])
@pytest.mark.source("mm/gup.c gup_fast_folio_allowed()", "CVE-2024-35872")
@pytest.mark.detects("secret-spliced", "secret-written-directly")
@pytest.mark.usefixtures("one_cpu")
def test_kernel_gets_no_hold_of_secret_pages(way, drained):
    """No call gets at a page of secret memory, be it just touched and in this CPU's batch still:
    vmsplice, direct I/O, ptrace, process_vm_readv, /proc/PID/mem and a fixed buffer of io_uring are
    refused, where they take plain memory."""
    with memory.mapping("shared", 1) as plain, secret(1) as region:
        plain.touch(0)
        assert syscalls.outcome(way, plain) == "ok", "control: plain memory"
        syscalls.store(region.addr, b"\x5c")
        if drained:
            lru_batches.mlock_drain_local()
        assert syscalls.outcome(way, region) in {"EFAULT", "EIO"}, "refused"
        assert region.first_bytes() == b"\x5c", "contents"
        assert residency.mapped_bits(region) == "1", "still there"


@pytest.mark.parametrize(
    "advice", ["MADV_DONTNEED", "MADV_FREE", "MADV_COLD", "MADV_PAGEOUT", "MADV_REMOVE"]
)
def test_advice_takes_no_secret_page(advice):
    """No advice to madvise takes a page of lo secret memory away."""
    with secret() as region:
        region.write(0x3D)
        answer = syscalls.outcome(
            syscalls.madvise, region.addr, region.size, getattr(syscalls, advice)
        )
        if counted(region):
            assert answer == "EINVAL", f"{advice} of locked memory"
            assert residency.mapped_bits(region) == "1" * N, "still mapped"
        assert region.first_bytes() == b"\x3d" * N, "contents"


def hold(pages):
    """In the child: touched secret memory, and plain memory beside it."""
    fd = syscalls.syscall("memfd_secret", 0)
    os.ftruncate(fd, pages * PAGE)
    found = Region(
        syscalls.mmap(0, pages * PAGE, syscalls.PROT_RW, syscalls.MAP_SHARED, fd), pages * PAGE
    )
    found.write(0x44)
    control = Region(syscalls.mmap(0, pages * PAGE), pages * PAGE)
    syscalls.store(control.addr, os.urandom(control.size))
    return found, control


@pytest.mark.needs("cgroup", "swap", "lock:128")
@pytest.mark.claim("W1")
def test_secret_memory_stays_under_pressure(reclaim):
    """Reclaim takes the plain memory beside secret memory, and none of it, unlocked or not."""
    pages = 128
    with reclaim.cgroup() as group, Child() as child:
        group.add(child.pid)
        found, control = child.call(hold, pages)
        child.call(syscalls.munlock, found.addr, found.size)
        before = pagemap.pfns(found.addr, pages, child.pid)
        drivers.reclaim_until_evicted(group.reclaim, child.pid, control)
        assert pagemap.present_count(found.addr, pages, child.pid) == pages, "all there"
        assert pagemap.pfns(found.addr, pages, child.pid) == before, "in their frames"


@pytest.mark.needs("lock-all")
def test_secret_memory_made_under_future_counts_once():
    """Secret memory mapped under MCL_FUTURE counts once if it is lo, and its unmapping gives that
    back."""
    # In the newer model it is lo only here (7.2, 7.3): do_mmap() adds the flag, mlock() does not.
    with Child() as child:
        child.call(syscalls.mlockall, syscalls.MCL_FUTURE)
        plain = child.call(syscalls.mmap, 0, PAGE)
        assert maps.at(plain, child.pid).locked, "control: plain memory is lo"
        before = child.call(vmlck_now)
        found = child.call(hold_only, N)
        pages = N if maps.at(found, child.pid).locked else 0
        assert child.call(vmlck_now) - before == pages, "VmLck"
        assert maps.locked_kb(child.pid) == status.vmlck_kb(child.pid), "VmLck is the sum of lo"
        child.call(syscalls.munmap, found, N * PAGE)
        assert child.call(vmlck_now) == before, "unmapped"


def vmlck_now():
    return status.vmlck_pages()


def hold_only(pages):
    fd = syscalls.syscall("memfd_secret", 0)
    syscalls.outcome(os.ftruncate, fd, pages * PAGE)
    return syscalls.mmap(0, pages * PAGE, syscalls.PROT_RW, syscalls.MAP_SHARED, fd)
