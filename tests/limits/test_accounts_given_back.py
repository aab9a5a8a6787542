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
from helpers.observe import status
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
        limit_accounts.prepare(name)
        limit_accounts.become(LIMIT, one)
        first = take(name, LIMIT)
        limit_accounts.become(LIMIT, two)
        second = take_all(name, LIMIT + 1, LIMIT)
        limit_accounts.become(LIMIT, one)
        full = take(name, 4)
        limit_accounts.become(LIMIT, two)
        give(name, 0)
        kept = take(name, 4)
        limit_accounts.become(LIMIT, one)
        return first, second, full, kept, take_freed(name, LIMIT, name)

    def staying():
        limit_accounts.become(LIMIT, one)
        first = take(name, LIMIT)
        limit_accounts.become(LIMIT, two)
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


@pytest.mark.needs("sysv-shm")
@pytest.mark.source("credentials(7)", "kernel/cred.c set_cred_ucounts")
def test_charge_is_the_real_users():
    """SHM_LOCK is counted by the real user id: a process of another effective user takes from the
    real one's limit, and nothing from the effective one's."""
    real = sysv_segment.unused_uid()

    def child():
        credentials.drop("CAP_IPC_LOCK")
        rlimits.set_soft_memlock(LIMIT * PAGE)
        os.setresuid(real, real + 1, 0)
        first = take("shm-lock", LIMIT)
        limit_accounts.become(LIMIT, real + 1)
        effective = take_all("shm-lock", LIMIT + 1, LIMIT)
        limit_accounts.become(LIMIT, real)
        return first, effective, take("shm-lock", 1)

    assert processes.run(child) == ("ok", ["ENOMEM", "ok"], "ENOMEM"), "real, effective, real"


def fail_to_register(addr):
    """Fixed buffers of which the last, the first, or the only one cannot be pinned."""
    ring, there = io_uring.create(), syscalls.mmap(0, 8 * PAGE)
    good, bad = (there, 8 * PAGE), (addr, 2 * PAGE)
    answers = [
        syscalls.outcome(io_uring.register_all, ring, *ranges)
        for ranges in ((bad,), (good, bad), (bad, good), (good, good, bad))
    ]
    os.close(ring)
    return answers


def fail_to_have_a_umem(addr):
    """Umems that cannot be pinned, one after the other with one socket."""
    with limit_accounts.spare_socket() as where:
        return [syscalls.outcome(xdp.register, where, addr, 2 * PAGE) for _ in range(4)]


def fail_to_send(addr):
    """Zero-copy sends of what cannot be pinned."""
    return [limit_accounts.zero_copy_failure(addr, 2 * PAGE) for _ in range(4)]


FAILING = {
    "io-uring": fail_to_register, "xdp": fail_to_have_a_umem, "zero-copy": fail_to_send,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        pytest.param(
            name, missing, id=f"{name}-{missing}", marks=[
                pytest.mark.needs(*ACCOUNTS[name].needs),
                *[pytest.mark.deviation("umem-in-part-stays-charged")]
                * ((name, missing) == ("xdp", "part")),
            ],
        )
        for name in FAILING
        for missing in ("all", "part")
        if (name, missing) != ("zero-copy", "part")  # what is there is sent
    ],
)  # fmt: skip
def test_pinning_that_fails_for_the_memory_leaves_no_charge(name, missing):
    """Pinning memory of which all or a part is not mapped fails, and leaves the limit whole and
    VmPin as it was."""

    def child():
        limit_accounts.ordinary(LIMIT, name)
        addr = syscalls.mmap(0, 3 * PAGE)
        syscalls.munmap(addr + PAGE, 2 * PAGE)
        answers = FAILING[name](addr if missing == "part" else addr + PAGE)
        pinned = status.kb("VmPin")
        # Of io_uring the instance itself may come back late, of the others nothing.
        whole = take_freed(name, LIMIT, name) if name == "io-uring" else take(name, LIMIT)
        return answers, pinned, whole, take(name, 4)

    answers, pinned, whole, more = processes.run(child)
    assert set(answers) <= {"EFAULT", "ENOMEM"}, "each fails for the memory"
    assert pinned == 0, "VmPin"
    assert (whole, more) == ("ok", limit_accounts.refusal(name)), "the limit, and no page more"


def unregister_in_child(ring):
    """In a forked process: it gives up its parent's buffers; its own VmPin then."""
    io_uring.unregister(ring)
    return status.kb("VmPin")


@pytest.mark.needs("io-uring-user")
@pytest.mark.source("io_uring/rsrc.c io_unaccount_mem")
def test_fixed_buffer_that_a_forked_process_gives_up_comes_back_to_who_pinned_it():
    """A fixed buffer unregistered by a forked process is given back to the user, and to the VmPin
    of the address space that made the instance and no other."""

    def child():
        limit_accounts.ordinary(LIMIT, "io-uring")
        ring, size = io_uring.create(), (LIMIT - limit_accounts.ring_pages()) * PAGE
        addr = syscalls.mmap(0, size)
        io_uring.register(ring, addr, size)
        pinned = status.kb("VmPin") * 1024 == size
        theirs = processes.run(lambda: unregister_in_child(ring))
        again = syscalls.outcome(io_uring.register, ring, addr, size)
        return pinned, theirs, again, status.kb("VmPin") * 1024 == size

    assert processes.run(child) == (True, 0, "ok", True), "pinned, theirs, once more, pinned"


@pytest.mark.needs("io-uring-user")
@pytest.mark.source("io_uring_register(2) IORING_REGISTER_CLONE_BUFFERS")
@pytest.mark.parametrize("first", ["source", "clone"])
def test_cloned_fixed_buffer_is_charged_once_until_the_last_has_it(first):
    """Fixed buffers that two io_uring instances share are charged once, until both have given them
    up, whichever is the first."""

    def child():
        limit_accounts.ordinary(LIMIT, "io-uring")
        source, clone = io_uring.create(), io_uring.create()
        size = (LIMIT - 2 * limit_accounts.ring_pages()) * PAGE
        addr = syscalls.mmap(0, size)
        io_uring.register(source, addr, size)
        cloned = syscalls.outcome(io_uring.clone_buffers, clone, source)
        if cloned != "ok":
            return cloned
        spare = take("io-uring", 4)
        early, late = (source, clone) if first == "source" else (clone, source)
        io_uring.unregister(early)
        kept = syscalls.outcome(io_uring.register, early, addr, 4 * PAGE)
        io_uring.unregister(late)
        return spare, kept, syscalls.outcome(io_uring.register, early, addr, size)

    answers = processes.run(child)
    if answers == "EINVAL":
        pytest.skip("needs IORING_REGISTER_CLONE_BUFFERS: a kernel from 6.12 on")
    assert answers == ("ENOMEM", "ENOMEM", "ok"), "charged, still charged by the other, given back"
