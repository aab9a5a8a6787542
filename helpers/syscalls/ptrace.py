# SPDX-License-Identifier: MIT
"""ptrace(2) by ctypes: stop a process, read and change its registers and memory.

Registers are read and written as one array of words (NT_PRSTATUS); :data:`REGISTER_LAYOUTS` says
which word is what. Nothing here knows of locks or faults.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from helpers.syscalls import call, constants
from helpers.syscalls.call import DLL
from helpers.syscalls.numbers import architecture, number

_PEEK, _POKE, CONT, GETEVENTMSG = 2, 5, 7, 0x4201
ATTACH, DETACH, SYSCALL = 16, 17, 24
GETREGSET, SETREGSET, SEIZE, INTERRUPT, LISTEN = 0x4204, 0x4205, 0x4206, 0x4207, 0x4208
GET_SYSCALL_INFO = 0x420E
EVENT_FORK, EVENT_VFORK, EVENT_CLONE, EVENT_EXEC, EVENT_EXIT, EVENT_SECCOMP = 1, 2, 3, 4, 6, 7
EVENT_STOP = 128
# TRACESYSGOOD, TRACEFORK, TRACEVFORK, TRACECLONE, TRACEEXEC, TRACESECCOMP, EXITKILL
OPTIONS = 0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x80 | 0x100000
TRACE_EXIT = 0x40
AT_ENTRY = 1
WALL = 0x40000000
_NT_PRSTATUS, _NT_ARM_SYSTEM_CALL = 1, 0x404
_PR_SET_PTRACER, _ANY = 0x59616D61, -1


@dataclass(frozen=True)
class RegisterLayout:
    """Where an architecture keeps a system call: indexes into its general registers."""

    audit: int
    number: int
    result: int
    args: tuple[int, ...]
    program: int
    stack: int
    gate: bytes
    """The instruction that makes a system call."""


REGISTER_LAYOUTS = {
    "x86_64": RegisterLayout(
        0xC000003E, 15, 10, (14, 13, 12, 7, 9, 8), 16, 19, b"\x0f\x05",
    ),
    "aarch64": RegisterLayout(
        0xC00000B7, 8, 0, (0, 1, 2, 3, 4, 5), 32, 31, b"\x01\x00\x00\xd4",
    ),
}  # fmt: skip


class TraceeExited(Exception):
    """The process ended while we worked on it."""


class TracingUnavailable(RuntimeError):
    """Processes cannot be supervised here; the text says why, in one line."""


def register_layout() -> RegisterLayout:
    """This machine's registers. Raises Refused where they are not known."""
    name = architecture()
    if name not in REGISTER_LAYOUTS:
        raise TracingUnavailable(
            f"system calls cannot be changed on {name} (only {', '.join(REGISTER_LAYOUTS)})"
        )
    return REGISTER_LAYOUTS[name]


def call_number(name: str) -> int | None:
    """A call's number; None where this architecture has no such call (fork on aarch64)."""
    try:
        return number(name)
    except LookupError:
        return None


class _Vector(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


_ptrace = DLL.ptrace
_ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_ptrace.restype = ctypes.c_long


def ptrace(request: int, tid: int, addr: int = 0, data: int = 0) -> int:
    """ptrace(2). Raises TraceeExited for a task that has ended, OSError as the kernel says."""
    ctypes.set_errno(0)
    word: int = _ptrace(request, tid, addr, data)
    if word == -1 and (code := ctypes.get_errno()):  # a peeked word may be -1
        if code == errno.ESRCH:
            raise TraceeExited(f"task {tid} has ended")
        raise OSError(code, f"ptrace({request:#x}, {tid}): {os.strerror(code)}")
    return word


Registers = ctypes.Array[ctypes.c_uint64]
_words = ctypes.c_uint64 * 34


def registers(tid: int) -> Registers:
    """The general registers of a stopped task."""
    found = _words()
    vector = _Vector(ctypes.addressof(found), ctypes.sizeof(found))
    ptrace(GETREGSET, tid, _NT_PRSTATUS, ctypes.addressof(vector))
    return found


def set_registers(tid: int, values: Registers) -> None:
    """Write them back; the length is the architecture's own."""
    size = 8 * (27 if architecture() == "x86_64" else 34)
    vector = _Vector(ctypes.addressof(values), size)
    ptrace(SETREGSET, tid, _NT_PRSTATUS, ctypes.addressof(vector))


def set_number(tid: int, value: int) -> None:
    """At a system call's entry: make it this call (−1: none)."""
    if architecture() == "aarch64":
        word = ctypes.c_int(value)
        vector = _Vector(ctypes.addressof(word), 4)
        ptrace(SETREGSET, tid, _NT_ARM_SYSTEM_CALL, ctypes.addressof(vector))
        return
    values = registers(tid)
    values[register_layout().number] = value & constants.ULONG_MAX
    set_registers(tid, values)


def event_message(tid: int) -> int:
    """What PTRACE_EVENT_* has to say: the new task's number."""
    word = ctypes.c_ulong()
    ptrace(GETEVENTMSG, tid, 0, ctypes.addressof(word))
    return word.value


def at_entry(tid: int) -> bool:
    """A task in a system-call stop is about to make the call (and has not made it)."""
    buffer = ctypes.create_string_buffer(88)
    ptrace(GET_SYSCALL_INFO, tid, len(buffer), ctypes.addressof(buffer))
    return buffer.raw[0] == AT_ENTRY


def allow_tracer() -> None:
    """In the process to be supervised: let the supervisor, no ancestor, attach (Yama)."""
    call.outcome(call.prctl, _PR_SET_PTRACER, _ANY, 0, 0, 0)


@contextmanager
def ptrace_stopped(pid: int) -> Iterator[None]:
    """The process is stopped and traced for the block, then runs on."""
    ptrace(SEIZE, pid)
    ptrace(INTERRUPT, pid)
    os.waitpid(pid, WALL)
    try:
        yield
    finally:
        ptrace(DETACH, pid)


@contextmanager
def held_at_exit(pid: int) -> Iterator[None]:
    """A child is killed, and held for the block where it has its memory still (then it ends)."""
    ptrace(SEIZE, pid, 0, TRACE_EXIT)
    os.kill(pid, signal.SIGKILL)
    while True:
        _, word = os.waitpid(pid, WALL)
        if not os.WIFSTOPPED(word):
            raise TraceeExited(f"process {pid} ended without a stop")
        if word >> 16 == EVENT_EXIT:
            break
        ptrace(CONT, pid)
    try:
        yield
    finally:
        ptrace(CONT, pid)


def pokedata(pid: int, addr: int, word: int) -> None:
    """PTRACE_POKEDATA of a machine word into a :func:`ptrace_stopped` process."""
    ptrace(_POKE, pid, addr, word)


def peekdata(pid: int, addr: int) -> int:
    """PTRACE_PEEKDATA."""
    return ptrace(_PEEK, pid, addr)
