# SPDX-License-Identifier: MIT
"""What an account of RLIMIT_MEMLOCK has taken comes back, all of it and once, to who took it."""

import functools
import os
import select
import signal
from contextlib import contextmanager

import pytest

from helpers import processes, syscalls
from helpers.machine.timeouts import scaled
from helpers.memory import sysv_segment
from helpers.processes import Child, credentials, limit_accounts, rlimits, send_signal
from helpers.processes.limit_accounts import ACCOUNTS, MM, give, take, take_all, take_freed
from helpers.syscalls import PAGE, io_uring, sysv, xdp

LIMIT = 32
SHARED = ("secret", "shm-lock", "io-uring", "xdp", "zero-copy")
"""Accounts that belong to a user (secret memory on some kernels)."""

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("other-user", "root-user", "limit:64"),
    pytest.mark.source("getrlimit(2) RLIMIT_MEMLOCK"),
]


def by_account(*names):
    """``name``: each of these accounts, with what it needs."""
    found = []
    for name in names:
        needs, source = ACCOUNTS[name].needs, ACCOUNTS[name].source
        marks = [pytest.mark.source(source)] + [pytest.mark.needs(*needs)] * bool(needs)
        found.append(pytest.param(name, id=name, marks=marks))
    return pytest.mark.parametrize("name", found)


def become(child, name, uid):
    child.call(functools.partial(limit_accounts.ordinary, LIMIT, name, uid=uid))


def assert_whole(child, name):
    """The child's user has the whole limit by this account, and not a page more."""
    over = child.call(take, name, LIMIT + 1)
    whole = child.call(take_freed, name, LIMIT, name)
    more = child.call(take, name, 4)
    no = limit_accounts.refusal(name)
    assert (over, whole, more) == (no, "ok", no), "a page over the limit, the limit, any more"


@by_account(*SHARED)
@pytest.mark.parametrize("way", ["given-back", "exit", "killed", "exec"])
@pytest.mark.detects("shm-charge-outlives-segment", "fixed-buffer-charge-kept")
def test_another_process_of_the_user_has_it_afterwards(name, way):
    """What one process of a user has taken is missing to another; the end of the object, by call,
    exit, SIGKILL or execve, gives the other the whole limit and not a page more."""
    uid = sysv_segment.unused_uid()
    own = limit_accounts.counter(name) == MM
    with Child() as holder, Child() as other:
        become(holder, name, uid)
        become(other, name, uid)
        assert holder.call(take, name, LIMIT) == "ok", "all of it"
        if not own:
            assert other.call(take, name, 4) == limit_accounts.refusal(name), "nothing is left"
        if way == "given-back":
            holder.call(give, name)
        else:
            holder.end_by(way)
        assert_whole(other, name)


def leave_a_copy():
    """In a child: a forked process that keeps all that was open and mapped, for good."""
    pid = os.fork()
    while pid == 0:
        signal.pause()
    return pid


@by_account("shm-lock", "io-uring", "xdp", "zero-copy")
def test_charge_lasts_as_long_as_a_forked_process_has_the_object(name):
    """The end of who took the pages gives nothing back while a forked process has the object
    still; that one's end does."""
    uid = sysv_segment.unused_uid()
    with Child() as holder, Child() as other:
        become(holder, name, uid)
        become(other, name, uid)
        assert holder.call(take, name, LIMIT) == "ok", "all of it"
        copy = holder.call(leave_a_copy)
        gone = os.pidfd_open(copy)
        try:
            holder.kill()
            assert other.call(take, name, 4) == limit_accounts.refusal(name), "still taken"
        finally:
            send_signal(copy, signal.SIGKILL)
            wait_for(gone)
        assert_whole(other, name)


def wait_for(pidfd):
    """Until the process has ended, whosever child it is."""
    select.select([pidfd], [], [])
    os.close(pidfd)


def switch_user(uid):
    """In a child of root: another real and effective user, who may switch again."""
    os.seteuid(0)
    os.setresuid(uid, uid, 0)


@by_account(*(name for name in ACCOUNTS if name != "perf"))
@pytest.mark.needs("CAP_SETPCAP")
@pytest.mark.source("setuid(2)", "kernel/cred.c set_cred_ucounts")
@pytest.mark.detects("shm-charge-follows-setuid")
def test_charge_stays_with_who_took_it(name):
    """A process that becomes another user leaves its charge with the former, to whom it comes back
    even when the latter gives it back; what is counted by address space stays with that."""
    one = sysv_segment.unused_uid()
    two = one + 1

    def moving():
        credentials.drop("CAP_IPC_LOCK")
        limit_accounts.prepare(name)
        rlimits.set_soft_memlock(LIMIT * PAGE)
        switch_user(one)
        first = take(name, LIMIT)
        switch_user(two)
        second = take_all(name, LIMIT + 1, LIMIT)
        switch_user(one)
        full = take(name, 4)
        switch_user(two)
        give(name, 0)
        kept = take(name, 4)
        switch_user(one)
        return first, second, full, kept, take_freed(name, LIMIT, name)

    def staying():
        credentials.drop("CAP_IPC_LOCK")
        rlimits.set_soft_memlock(LIMIT * PAGE)
        switch_user(one)
        first = take(name, LIMIT)
        switch_user(two)
        before = take(name, 4)
        give(name)
        return first, before, take_all(name, LIMIT + 1, LIMIT)

    no = limit_accounts.refusal(name)
    if limit_accounts.counter(name) == MM:
        assert processes.run(staying) == ("ok", no, [no, "ok"]), "full, full still, given back"
        return
    first, second, full, kept, after = processes.run(moving)
    assert first == "ok", "the first user takes all"
    assert second == [no, "ok"], "the second has the limit for itself"
    assert full == no, "the first has nothing left"
    assert kept == no, "what the second gave back of the first's is not the second's"
    assert after == "ok", "but the first's"


@pytest.mark.needs("io-uring-user")
@pytest.mark.source("io_uring_register(2) IORING_REGISTER_BUFFERS", "io_uring/rsrc.c")
@pytest.mark.parametrize("end", ["close", "unregister"])
def test_fixed_buffer_is_charged_until_its_end_and_not_until_munmap(end):
    """munmap of a fixed buffer gives nothing back; unregistering it does at once, closing the
    io_uring instance soon."""

    def child():
        limit_accounts.ordinary(LIMIT, "io-uring")
        ring, size = io_uring.create(), (LIMIT - limit_accounts.ring_pages()) * PAGE
        addr = syscalls.mmap(0, size)
        io_uring.register(ring, addr, size)
        syscalls.munmap(addr, size)
        unmapped = take("io-uring", 4)
        if end == "unregister":
            io_uring.unregister(ring)
            addr = syscalls.mmap(0, size)
            return unmapped, syscalls.outcome(io_uring.register, ring, addr, size)
        os.close(ring)
        return unmapped, take_freed("io-uring", LIMIT, "io-uring")

    assert processes.run(child) == ("ENOMEM", "ok"), "after munmap, and after the end"


@pytest.mark.needs("xdp")
@pytest.mark.source("Documentation/networking/af_xdp.rst", "net/xdp/xdp_umem.c")
def test_umem_is_charged_until_its_socket_closes_and_not_until_munmap():
    """munmap of an AF_XDP umem gives nothing back, closing its socket does soon."""

    def child():
        limit_accounts.ordinary(LIMIT, "xdp")
        with limit_accounts.spare_socket() as where:
            addr = syscalls.mmap(0, LIMIT * PAGE)
            xdp.register(where, addr, LIMIT * PAGE)
            syscalls.munmap(addr, LIMIT * PAGE)
            unmapped = take("xdp", 4)
        return unmapped, take_freed("xdp", LIMIT, "xdp")

    assert processes.run(child) == ("ENOBUFS", "ok"), "after munmap, and after close"


@pytest.mark.needs("zerocopy")
@pytest.mark.source("Documentation/networking/msg_zerocopy.rst", "net/core/skbuff.c")
def test_zero_copy_send_is_given_back_once_received():
    """A zero-copy send that has been received is charged no longer: the limit is whole again
    though both sockets are open and the memory is mapped."""

    def child():
        limit_accounts.ordinary(LIMIT, "zero-copy")
        sent, receiver, _ = limit_accounts.zero_copy_send(LIMIT)
        receiver.settimeout(scaled(10))
        while sent:
            sent -= len(receiver.recv(sent))
        return take_freed("zero-copy", LIMIT, "zero-copy")

    assert processes.run(child) == "ok", "the whole limit"


def removed(number):
    sysv.shmctl(number, syscalls.IPC_RMID, None)


@contextmanager
def removing(number):
    """The segment is removed at the end of the block, if it is there still."""
    try:
        yield
    finally:
        syscalls.outcome(removed, number)


@pytest.mark.needs("sysv-shm")
@pytest.mark.source("shmctl(2) IPC_RMID", "ipc/shm.c shm_destroy")
@pytest.mark.parametrize("last", ["detach", "exit", "killed", "exec", "removal"])
@pytest.mark.parametrize("locker", ["attached", "gone"])
@pytest.mark.detects("shm-end-gives-too-much")
def test_locked_segment_is_charged_until_it_is_destroyed(locker, last):
    """A locked segment is charged to its locker, be that alive or not, until it is removed and
    nobody has it attached any more: removal gives back nothing while somebody has."""
    uid = sysv_segment.unused_uid()
    with Child() as holder, Child() as attacher, Child() as other:
        for child in (holder, attacher, other):
            become(child, "shm-lock", uid)
        number = holder.call(
            sysv.shmget, syscalls.IPC_PRIVATE, LIMIT * PAGE, syscalls.IPC_CREAT | 0o600
        )
        with removing(number):
            holder.call(sysv_segment.lock, number)
            segment = attacher.call(sysv_segment.attach, number, LIMIT)
            if locker == "gone":
                holder.kill()
            if last != "removal":
                removed(number)
            assert other.call(take, "shm-lock", 1) == "ENOMEM", "attached: nothing comes back"
            if last in ("detach", "removal"):
                attacher.call(sysv_segment.detach, segment)
            else:
                attacher.end_by(last)
            if last == "removal":
                assert other.call(take, "shm-lock", 1) == "ENOMEM", "not removed: nothing either"
                removed(number)
            assert_whole(other, "shm-lock")


@pytest.mark.needs("sysv-shm")
@pytest.mark.source("shmctl(2) SHM_LOCK", "ipc/shm.c shmctl_do_lock")
@pytest.mark.detects("shm-charged-to-owner", "shm-charge-given-to-unlocker")
def test_lock_is_charged_to_the_locker_and_not_to_the_owner():
    """SHM_LOCK by a segment's creator is charged to the creator, though it is another user's by
    now; that user's SHM_UNLOCK gives it back to the creator."""
    creator_id = sysv_segment.unused_uid()
    with Child() as creator, Child() as owner:
        become(creator, "shm-lock", creator_id)
        become(owner, "shm-lock", creator_id + 1)
        number = creator.call(segment_of, LIMIT)
        creator.call(sysv_segment.set_owner, number, creator_id + 1)
        creator.call(sysv_segment.lock, number)
        assert creator.call(take, "shm-lock", 1) == "ENOMEM", "the creator has nothing left"
        assert owner.call(take_all, "shm-lock", LIMIT + 1, LIMIT) == ["ENOMEM", "ok"], "the owner"
        owner.call(sysv_segment.unlock, number)
        assert owner.call(take, "shm-lock", 1) == "ENOMEM", "no page comes to the owner"
        assert_whole(creator, "shm-lock")


def segment_of(pages):
    return sysv_segment.create_segment(pages).id


@pytest.mark.needs("sysv-shm")
@pytest.mark.source("mm/shmem.c shmem_lock")
@pytest.mark.detects("shm-charged-again")
def test_refused_and_repeated_locks_leave_no_charge():
    """Locking a locked segment again charges nothing, refused locks leave nothing charged, and
    unlocking twice gives back once."""

    def child():
        limit_accounts.ordinary(LIMIT, "shm-lock")
        half, over = segment_of(LIMIT // 2), segment_of(LIMIT + 1)
        for _ in range(3):
            sysv_segment.lock(half)
            refused = syscalls.outcome(sysv_segment.lock, over)
        rest = take_all("shm-lock", LIMIT // 2 + 1, LIMIT // 2)
        sysv_segment.unlock(half)
        sysv_segment.unlock(half)
        return refused, rest, take_all("shm-lock", LIMIT // 2 + 1, LIMIT // 2, 1)

    refused, rest, after = processes.run(child)
    assert refused == "ENOMEM", "a segment over the limit"
    assert rest == ["ENOMEM", "ok"], "half is left"
    assert after == ["ENOMEM", "ok", "ENOMEM"], "half came back, once"


@pytest.mark.needs("sysv-shm")
@pytest.mark.source("mm/mlock.c user_shm_lock")
def test_limit_lowered_below_what_is_charged_gives_nothing_back_twice():
    """With the limit lowered below what is charged every lock is refused; unlocking gives back
    what was charged and the lowered limit is there, whole."""

    def child():
        limit_accounts.ordinary(LIMIT, "shm-lock")
        take("shm-lock", LIMIT)
        rlimits.set_soft_memlock(8 * PAGE)
        low = take("shm-lock", 1)
        give("shm-lock")
        return low, take_all("shm-lock", 9, 8, 1)

    assert processes.run(child) == ("ENOMEM", ["ENOMEM", "ok", "ENOMEM"])
