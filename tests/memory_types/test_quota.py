# SPDX-License-Identifier: MIT
"""Other users of RLIMIT_MEMLOCK: the limit is one, the accounts are several."""

import ctypes
import errno
import os
import resource
import socket

import pytest

from helpers import syscalls
from helpers.machine import kernel_version
from helpers.memory import mapping, sysv_segment
from helpers.observe import lock_accounting, status
from helpers.processes import Child, credentials
from helpers.syscalls import PAGE, PAGE_KB, io_uring, perf_event

N = 8

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("limit:16"),
    pytest.mark.source("getrlimit(2) RLIMIT_MEMLOCK"),
]
USER = pytest.mark.needs("other-user", "root-user")
SO_ZEROCOPY, MSG_ZEROCOPY = 60, 0x4000000


def pinned_pages():
    return status.kb("VmPin") // PAGE_KB


def ordinary(pages):
    """In a child: a user of its own without capabilities, under a limit of so many pages."""
    uid = sysv_segment.unused_uid()
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (pages * PAGE, pages * PAGE))
    credentials.set_user(uid, uid)


def pin(addr, pages):
    """In a child: the answer to a fixed buffer of so many pages, and VmLck, VmPin growing by."""
    ring = io_uring.create()
    before = status.vmlck_pages(), pinned_pages()
    answer = syscalls.outcome(io_uring.register, ring, addr, pages * PAGE)
    change = status.vmlck_pages() - before[0], pinned_pages() - before[1]
    return answer, change, ring


def lock_answers(addr, *counts):
    return [syscalls.outcome(syscalls.mlock, addr, count * PAGE) for count in counts]


@USER
@pytest.mark.needs("io-uring", "limit:64")
@pytest.mark.source("io_uring_register(2)", "io_uring/rsrc.c")
def test_fixed_buffers_and_locks_are_two_accounts():
    """A fixed buffer of io_uring goes to VmPin up to the limit and no page further, beside a
    VmLck that is full; given up, it leaves locked pages locked."""
    with mapping("private", 64) as region, Child() as child:
        child.call(ordinary, 40)
        assert child.call(lock_answers, region.addr, 41, 40) == ["ENOMEM", "ok"], "VmLck is full"
        assert child.call(pin, region.addr, 41)[:2] == ("ENOMEM", (0, 0)), "beyond the limit"
        answer, change, ring = child.call(pin, region.addr, 16)
        assert (answer, change) == ("ok", (0, 16)), "VmPin"
        assert child.call(lock_accounting.page_letters, region) == "L" * 40 + "-" * 24, (
            "lo as before"
        )
        child.call(syscalls.munlock, region.addr, region.size)
        assert child.call(pinned_pages) == 16, "munlock takes nothing from VmPin"
        child.call(syscalls.mlock, region.addr, 40 * PAGE)
        child.call(io_uring.unregister, ring)
        assert child.call(status.vmlck_pages) == 40, "locked as before"
        assert child.call(pinned_pages) == 0, "no longer pinned"


@USER
@pytest.mark.needs("io-uring")
def test_ring_of_io_uring_is_in_no_vmlck():
    """Making and mapping an io_uring instance leaves the whole limit to mlock."""
    with mapping("private", N) as region, Child() as child:
        child.call(ordinary, N)
        answer = child.call(syscalls.outcome, io_uring.create)
        if answer == "EPERM":
            pytest.skip("needs io_uring for ordinary users: sysctl kernel.io_uring_disabled=0")
        charged = child.call(status.vmlck_pages), child.call(pinned_pages)
        # 26bfa89e25f4 (5.12; 5.10.162 has it too): the ring is the memory cgroup's affair.
        if (answer, charged) != ("ok", (0, 0)) and kernel_version.version() < (5, 12, 0):
            pytest.skip("needs a kernel from 5.12 on: before, the ring itself is charged")
        assert answer == "ok", "a ring can be had"
        assert charged == (0, 0), "and is neither in VmLck nor in VmPin"
        assert child.call(lock_answers, region.addr, N + 1, N) == ["ENOMEM", "ok"], "all of it"


def send(addr, pages):
    """In a child: the answer to a zero-copy send of so many pages over loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as server:
        server.bind(("127.0.0.1", 0))
        server.listen(1)
        # By address: names want modules that this user may not read any more.
        client = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        client.connect(server.getsockname())
        client.setsockopt(socket.SOL_SOCKET, SO_ZEROCOPY, 1)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        view = (ctypes.c_char * (pages * PAGE)).from_address(addr)
        client.setblocking(False)
        try:
            client.send(view, MSG_ZEROCOPY)
        except OSError as error:
            return errno.errorcode[error.errno]
    return "ok"


@USER
@pytest.mark.needs("zerocopy")
@pytest.mark.source("Documentation/networking/msg_zerocopy.rst", "net/core/skbuff.c")
def test_zero_copy_sends_have_an_account_of_their_own():
    """MSG_ZEROCOPY is bound by the limit (ENOBUFS beyond it) for each send, and neither fills
    VmLck nor is hindered by one that is full."""
    with mapping("private", 4 * N) as region, Child() as child:
        region.touch()
        child.call(ordinary, N)
        child.call(region.touch)
        assert child.call(lock_answers, region.addr, N) == ["ok"], "VmLck is full"
        assert child.call(send, region.addr, 2) == "ok", "a send within the limit"
        assert child.call(send, region.addr, 4 * N) == "ENOBUFS", "one beyond it"
        assert child.call(status.vmlck_pages) == N, "VmLck"
        assert child.call(lock_accounting.page_letters, region.sub(0, N)) == "L" * N, (
            "locked as before"
        )


def ring_of(pages):
    """In a child: the answer to a perf ring of 2^n + 1 pages, and what VmLck, VmPin grew by."""
    fd = perf_event.open_dummy_event()
    before = status.vmlck_pages(), pinned_pages()
    answer = syscalls.outcome(
        syscalls.mmap, 0, (pages + 1) * PAGE, syscalls.PROT_RW, syscalls.MAP_SHARED, fd
    )  # fmt: skip
    return answer, (status.vmlck_pages() - before[0], pinned_pages() - before[1])


@USER
@pytest.mark.needs("perf-user")
@pytest.mark.source("perf_event_open(2)", "kernel/events/core.c perf_mmap")
def test_perf_rings_have_an_account_of_their_own():
    """A perf ring counts for its user up to perf_event_mlock_kb, then in VmPin up to the limit,
    then EPERM; VmLck never knows."""
    allowed = perf_event.perf_event_mlock_kb() // PAGE_KB * os.cpu_count()
    power = 1 << max(0, (allowed // 2).bit_length() - 1)
    with mapping("private", N) as region, Child() as child:
        child.call(ordinary, N)
        assert child.call(lock_answers, region.addr, N) == ["ok"], "VmLck is full"
        answer, change = child.call(ring_of, power)
        assert (answer, change) == ("ok", (0, 0)), "a ring within the user's own"
        taken = power + 1
        while taken + power + 1 <= allowed:
            assert child.call(ring_of, power) == ("ok", (0, 0)), "and more"
            taken += power + 1
        answer, change = child.call(ring_of, 4 * power)
        assert (answer, change) == ("EPERM", (0, 0)), "far beyond both"
        assert child.call(status.vmlck_pages) == N, "VmLck"


@USER
@pytest.mark.needs("sysv-shm", "io-uring", "limit:64")
def test_full_accounts_do_not_hinder_each_other():
    """Locked memory, locked segments and fixed buffers can each reach the limit at once, and each
    is refused beyond it."""
    with mapping("private", 64) as region, Child() as child:
        child.call(ordinary, 32)
        assert child.call(lock_answers, region.addr, 33, 32) == ["ENOMEM", "ok"], "mlock"
        number = child.call(segment, 33)
        assert child.call(syscalls.outcome, sysv_segment.lock, number) == "ENOMEM", "SHM_LOCK of 33"
        number = child.call(segment, 16)
        assert child.call(syscalls.outcome, sysv_segment.lock, number) == "ok", "SHM_LOCK of 16"
        assert child.call(pin, region.addr, 33)[0] == "ENOMEM", "a buffer of 33"
        answers = child.call(lock_answers, region.addr, 32, 33)
        assert answers == ["ok", "ENOMEM"], "and mlock as before"
        assert child.call(status.vmlck_pages) == 32, "VmLck"


def segment(pages):
    return sysv_segment.create_segment(pages).id
