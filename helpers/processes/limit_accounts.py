# SPDX-License-Identifier: MIT
"""Every way to take pages out of RLIMIT_MEMLOCK, and which of its counters each adds to.

The limit is one number; the kernel compares it with several counters. Ways with one counter
share the limit, ways with different counters have it each. All of it runs in the process that is
charged; what a way needs that an ordinary user may not make is made before, by :func:`prepare`.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

from helpers import syscalls
from helpers.machine import timeouts
from helpers.memory import files, sysv_segment
from helpers.observe import maps
from helpers.processes import credentials, namespaces, rlimits
from helpers.processes.oneshot import run
from helpers.syscalls import PAGE, PAGE_KB, io_uring, perf_event, xdp

MM, SHM, USER, PINNED = "mm->locked_vm", "ucounts", "user->locked_vm", "mm->pinned_vm"
"""The counters: of an address space; of SHM_LOCK, by user (since 5.14 by user and user namespace);
of pinned memory, by user; of pinned memory, by address space."""
SECRET = "secret memory's"
"""mm->locked_vm where its mapping is ``lo``, else user->locked_vm (since 7.1 and in stable)."""

GiveBack = Callable[[], object]
_ANONYMOUS = syscalls.MAP_PRIVATE | syscalls.MAP_ANONYMOUS
_SO_ZEROCOPY, _MSG_ZEROCOPY = 60, 0x4000000
_SOCKETS, _MOST_RINGS = 6, 40


@dataclass(frozen=True)
class LimitAccount:
    """One way: ``take(pages)`` charges them and returns how to give them back, or raises OSError
    with ``refusal`` and has charged nothing."""

    name: str
    counter: str
    refusal: str
    take: Callable[[int], GiveBack]
    source: str
    needs: tuple[str, ...] = ()
    deferred: bool = False
    """The kernel gives back from a work queue or a soft interrupt, not within the last close."""
    counts_capable: bool = True
    """What CAP_IPC_LOCK allowed is counted too, and missing to who has it not."""


def _mapped(pages: int, flags: int = 0, fd: int = -1) -> tuple[int, GiveBack]:
    how = syscalls.MAP_SHARED if fd >= 0 else _ANONYMOUS
    addr = syscalls.mmap(0, pages * PAGE, syscalls.PROT_RW, how | flags, fd)
    return addr, lambda: syscalls.munmap(addr, pages * PAGE)


def _lock_by(call: Callable[[int, int], object]) -> Callable[[int], GiveBack]:
    def take(pages: int) -> GiveBack:
        addr, unmap = _mapped(pages)
        try:
            call(addr, pages * PAGE)
        except OSError:
            unmap()
            raise
        return unmap

    return take


def _on_fault(addr: int, size: int) -> None:
    syscalls.mlock2(addr, size, syscalls.MLOCK_ONFAULT)


def _map_locked(pages: int) -> GiveBack:
    return _mapped(pages, syscalls.MAP_LOCKED)[1]


def _secret(pages: int) -> GiveBack:
    fd = files.secret(pages * PAGE)
    try:
        addr, unmap = _mapped(pages, fd=fd)
    finally:
        os.close(fd)
    if not all(touch(addr + index * PAGE) for index in range(pages)):
        unmap()
        raise OSError(errno.EFAULT, "a page of secret memory cannot be had")
    return unmap


def touch(addr: int) -> bool:
    """A page can be written: by the kernel, so that SIGBUS is EFAULT or less than a page."""
    with open("/dev/zero", "rb", 0) as zeroes:
        try:
            return syscalls.syscall("read", zeroes.fileno(), addr, PAGE) == PAGE
        except OSError as error:
            if error.errno != errno.EFAULT:
                raise
            return False


def _segment(pages: int) -> GiveBack:
    made = sysv_segment.create_segment(pages, sysv_segment.NORESERVE)
    try:
        sysv_segment.lock(made.id)
    except OSError:
        sysv_segment.detach(made)
        raise
    return lambda: sysv_segment.detach(made)


def _fixed_buffer(pages: int) -> GiveBack:
    """A buffer of an io_uring instance, which may have pages charged for itself."""
    buffer = pages - ring_pages()
    # One that was refused its buffer is used again: its own pages come back late.
    ring = _spare.pop() if _spare else io_uring.create()
    addr, unmap = _mapped(buffer)
    try:
        io_uring.register(ring, addr, buffer * PAGE)
    except OSError:
        unmap()
        _spare.append(ring)
        raise

    def give() -> None:
        io_uring.unregister(ring)
        os.close(ring)
        unmap()

    return give


_spare: list[int] = []
_sockets: list[socket.socket] = []


def _umem(pages: int) -> GiveBack:
    where = _sockets.pop()
    addr, unmap = _mapped(pages)
    try:
        xdp.register(where, addr, pages * PAGE)
    except OSError:
        unmap()
        _sockets.append(where)
        raise

    def give() -> None:
        where.close()
        unmap()

    return give


def _zero_copy(pages: int) -> GiveBack:
    """A send that waits for a receiver without room: its pages and two more (net/core/skbuff.c)."""
    return zero_copy_send(pages, room=1)[2]


def _connection(room: int = 0) -> tuple[socket.socket, socket.socket]:
    """Over loopback: who sends, without a copy and without waiting, and who receives.

    ``room`` is the receiver's SO_RCVBUF (0: as the system sets it).
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as server:
        if room:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
        server.bind(("127.0.0.1", 0))
        server.listen(1)
        # By address: names want modules that this user may not read any more.
        client = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        client.connect(server.getsockname())
        receiver = server.accept()[0]
    client.setsockopt(socket.SOL_SOCKET, _SO_ZEROCOPY, 1)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    client.setblocking(False)
    return client, receiver


def zero_copy_failure(addr: int, size: int) -> str:
    """The answer to a zero-copy send of memory that is not there."""
    client, receiver = _connection()
    with client, receiver:
        view = (ctypes.c_char * size).from_address(addr)
        return syscalls.outcome(client.send, view, _MSG_ZEROCOPY)


def zero_copy_send(pages: int, room: int = 0) -> tuple[int, socket.socket, GiveBack]:
    """A zero-copy send that is charged so many pages: bytes sent, where they arrive, how to end it.

    ``room`` as for :func:`_connection`. OSError as the kernel says.
    """
    client, receiver = _connection(room)
    addr, unmap = _mapped(pages - 2)

    def give() -> None:
        receiver.close()  # with data unread: the connection is reset, what waits is dropped
        client.close()
        unmap()

    view = (ctypes.c_char * ((pages - 2) * PAGE)).from_address(addr)
    ctypes.memset(addr, 1, len(view))
    try:
        sent = client.send(view, _MSG_ZEROCOPY)
    except OSError:
        give()
        raise
    return sent, receiver, give


_events: list[int] = []


def _map_ring(pages: int) -> tuple[int, GiveBack]:
    fd = _events.pop()
    return fd, _mapped(pages, fd=fd)[1]


def rings(pages: int) -> GiveBack:
    """Rings of 2^n + 1 pages, or of one, that are so many together."""
    taken: list[tuple[int, GiveBack]] = []

    def give() -> None:
        while taken:
            fd, unmap = taken.pop()
            unmap()
            _events.append(fd)

    while pages:
        size = 1 if pages == 1 else (1 << (pages - 1).bit_length() - 1) + 1
        fd = _events[-1]
        try:
            taken.append(_map_ring(size))
        except OSError:
            if fd not in _events:
                _events.append(fd)
            give()
            raise
        pages -= size
    return give


def perf_allowance() -> int:
    """Pages of rings that a user has beside the limit (kernel.perf_event_mlock_kb)."""
    return perf_event.perf_event_mlock_kb() // PAGE_KB * os.sysconf("SC_NPROCESSORS_ONLN")


ACCOUNTS = {
    account.name: account
    for account in (
        LimitAccount("mlock", MM, "ENOMEM", _lock_by(syscalls.mlock), "mlock(2)"),
        LimitAccount("mlock-onfault", MM, "ENOMEM", _lock_by(_on_fault), "mlock2(2)"),
        LimitAccount("map-locked", MM, "EAGAIN", _map_locked, "mmap(2) MAP_LOCKED"),
        LimitAccount(
            "secret", SECRET, "EAGAIN", _secret, "mm/secretmem.c", needs=("secretmem",)
        ),
        LimitAccount(
            "shm-lock", SHM, "ENOMEM", _segment, "mm/mlock.c user_shm_lock", needs=("sysv-shm",)
        ),
        LimitAccount(
            "io-uring", USER, "ENOMEM", _fixed_buffer, "io_uring/rsrc.c", needs=("io-uring-user",),
            deferred=True, counts_capable=False,
        ),
        LimitAccount(
            "xdp", USER, "ENOBUFS", _umem, "net/xdp/xdp_umem.c", needs=("xdp",), deferred=True,
            counts_capable=False,
        ),
        LimitAccount(
            "zero-copy", USER, "ENOBUFS", _zero_copy, "net/core/skbuff.c mm_account_pinned_pages",
            needs=("zerocopy",), deferred=True, counts_capable=False,
        ),
        LimitAccount(
            "perf", PINNED, "EPERM", rings, "kernel/events/core.c perf_mmap",
            needs=("perf-limited",),
        ),
    )
}  # fmt: skip
"""Name → account."""


def prepare(*names: str) -> None:
    """In a child, before it changes its user: what these accounts need that root alone may make."""
    if "io-uring" in names:
        ring_pages()
    if "xdp" in names:
        _sockets.extend(xdp.create() for _ in range(_SOCKETS))
    if "perf" in names:
        _events.extend(perf_event.open_dummy_event() for _ in range(_MOST_RINGS))


def ordinary(limit: int, *names: str, uid: int | None = None, capability: str = "") -> int:
    """In a child: a user of its own who may take ``limit`` pages by these accounts, and raise that
    to twice as many, without capabilities, or with this one. Its id."""
    prepare(*names)
    uid = sysv_segment.unused_uid() if uid is None else uid
    rlimits.set_soft_memlock(2 * limit * PAGE)  # the hard limit too: the soft one may rise later
    rlimits.set_soft_memlock(limit * PAGE)
    credentials.set_user(uid, uid, keep=capability)
    if "perf" in names:
        rings(perf_allowance())
    return uid


def without_capability(name: str) -> None:
    """In a child: the capability is given up, for what is made from now on."""
    credentials.lower_effective(name)
    _close_spare()


def _close_spare() -> None:
    """An io_uring instance stays charged to the user, and free for the capability, of its maker."""
    while _spare:
        os.close(_spare.pop())


def enter_namespace(ceiling: int, inside: int) -> None:
    """In a child: root of a new user namespace, made under a soft limit of ``ceiling`` bytes, that
    is set to ``inside`` bytes then."""
    rlimits.set_soft_memlock(ceiling)
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 1, 0, 0, 0)  # else /proc/self is root's
    namespaces.enter_user_namespace()
    rlimits.set_soft_memlock(inside)


@functools.cache
def ceiling_unit() -> int:
    """Bytes of limit that make a page of a user namespace's ceiling: the page size, or 1 where
    the kernel compares pages with bytes (deviation ``userns-ceiling-in-bytes``)."""

    def a_page_passes() -> bool:
        ordinary(2)
        enter_namespace(1, 2 * PAGE)
        return take("shm-lock", 1) == "ok"

    return 1 if run(a_page_passes) else PAGE


@functools.cache
def ring_pages() -> int:
    """Pages that making an io_uring instance is charged for (0 by the manual)."""

    def measure() -> int:
        rlimits.set_soft_memlock(_AMPLE * PAGE)
        uid = sysv_segment.unused_uid()
        credentials.set_user(uid, uid)
        ring = io_uring.create()
        addr, _ = _mapped(_AMPLE)
        for own in range(_AMPLE):
            size = (_AMPLE - own) * PAGE
            if syscalls.outcome(io_uring.register, ring, addr, size) == "ok":
                return own
        raise LookupError("no fixed buffer can be had")

    return run(measure)


_AMPLE = 32


@functools.cache
def secret_counter() -> str:
    """:data:`MM` or :data:`USER`: where this kernel counts secret memory."""

    def measure() -> bool:
        return maps.at(_mapped(1, fd=files.secret(PAGE))[0]).locked

    return MM if run(measure) else USER


def counter(name: str) -> str:
    """The counter that the account adds to on this kernel."""
    found = ACCOUNTS[name].counter
    return secret_counter() if found == SECRET else found


def refusal(name: str) -> str:
    """The errno of a refusal on this kernel."""
    faulted = ACCOUNTS[name].counter == SECRET and secret_counter() == USER
    return "EFAULT" if faulted else ACCOUNTS[name].refusal


_held: dict[str, list[GiveBack]] = {}


def take(name: str, pages: int) -> str:
    """Charge so many pages by this way: ``"ok"``, or the errno's name and nothing is charged."""

    def attempt() -> None:
        _held.setdefault(name, []).append(ACCOUNTS[name].take(pages))

    return syscalls.outcome(attempt)


def take_all(name: str, *counts: int) -> list[str]:
    """:func:`take` of each count, one after the other, each kept."""
    return [take(name, count) for count in counts]


def take_freed(name: str, pages: int, after: str) -> str:
    """:func:`take` of what the account ``after`` has just given back.

    Waited for only where the kernel defers that: an io_uring instance and a umem are freed by a
    work queue, a send by the reset of its connection.
    """
    return take_late(name, pages) if ACCOUNTS[after].deferred else take(name, pages)


def take_late(name: str, pages: int) -> str:
    """:func:`take`, again and again until it can be had or a time has passed."""
    until = timeouts.until(_SECONDS)
    while (answer := take(name, pages)) != "ok" and time.monotonic() < until:
        time.sleep(0.001)
    return answer


_SECONDS = 10.0


def give(name: str, index: int = -1) -> None:
    """Give back what was taken last (or as the ``index``-th) by this way.

    Nothing, where it was refused: the answer to :func:`take` is what the case judges.
    """
    if held := _held.get(name):
        held.pop(index)()


def become(limit: int, uid: int) -> None:
    """In a child of root: this user without CAP_IPC_LOCK, who can become another again."""
    _close_spare()
    os.seteuid(0)
    credentials.drop("CAP_IPC_LOCK")
    rlimits.set_soft_memlock(limit * PAGE)
    os.setresuid(uid, uid, 0)


def spare_event() -> int:
    """One of the perf events that :func:`prepare` made."""
    return _events.pop()


def spare_socket() -> socket.socket:
    """One of the AF_XDP sockets that :func:`prepare` made."""
    return _sockets.pop()
