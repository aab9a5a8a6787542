"""ptrace(2) and seccomp(2) by ctypes: stop a process at chosen system calls and change them.

Registers are read and written as one array of words (NT_PRSTATUS); :data:`MACHINES` says
which word is what. Nothing here knows of locks or faults.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from helpers import libc

CONT, SETOPTIONS, GETEVENTMSG = 7, 0x4200, 0x4201
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
MARK = 512
"""Descriptors from here on are those whose reads the tracer wants to see."""
_NT_PRSTATUS, _NT_ARM_SYSTEM_CALL = 1, 0x404
_PR_SET_SECCOMP, _FILTER = 22, 2
_PR_SET_PTRACER, _ANY = 0x59616D61, -1
_RET_ERRNO, _RET_TRACE, _RET_ALLOW = 0x00050000, 0x7FF00000, 0x7FFF0000


@dataclass(frozen=True)
class Machine:
    """Where an architecture keeps a system call: indexes into its general registers."""

    audit: int
    number: int
    result: int
    args: tuple[int, ...]
    program: int
    stack: int
    gate: bytes
    """The instruction that makes a system call."""
    numbers: dict[str, int]
    """Calls that helpers.libc does not make by number."""


MACHINES = {
    "x86_64": Machine(
        0xC000003E, 15, 10, (14, 13, 12, 7, 9, 8), 16, 19, b"\x0f\x05",
        {"read": 0, "pread64": 17, "write": 1, "mmap": 9, "shmat": 30, "shmctl": 31,
         "clone": 56, "fork": 57, "vfork": 58, "clone3": 435, "execve": 59, "execveat": 322,
         "exit_group": 231, "getrusage": 98, "prlimit64": 302, "fallocate": 285,
         "ftruncate": 77, "ptrace": 101, "openat": 257, "close": 3, "fcntl": 72,
         "process_vm_readv": 310},
    ),
    "aarch64": Machine(
        0xC00000B7, 8, 0, (0, 1, 2, 3, 4, 5), 32, 31, b"\x01\x00\x00\xd4",
        {"read": 63, "pread64": 67, "write": 64, "mmap": 222, "shmat": 196, "shmctl": 195,
         "clone": 220, "clone3": 435, "execve": 221, "execveat": 281, "exit_group": 94,
         "getrusage": 165, "prlimit64": 261, "fallocate": 47, "ftruncate": 46, "ptrace": 117,
         "openat": 56, "close": 57, "fcntl": 25, "process_vm_readv": 270},
    ),
}  # fmt: skip


class Gone(Exception):
    """The process ended while we worked on it."""


class Refused(RuntimeError):
    """Processes cannot be supervised here; the text says why, in one line."""


def machine() -> Machine:
    """This machine's registers. Raises Refused where they are not known."""
    name = libc.architecture()
    if name not in MACHINES:
        raise Refused(f"system calls cannot be changed on {name} (only {', '.join(MACHINES)})")
    return MACHINES[name]


def number(name: str) -> int | None:
    """A call's number; None where this architecture has no such call (fork on aarch64)."""
    found = machine().numbers.get(name)
    if found is None:
        try:
            found = libc.number(name)
        except ValueError:
            return None
    return found


class _Vector(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


_dll = ctypes.CDLL(None, use_errno=True)
_ptrace = _dll.ptrace
_ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_ptrace.restype = ctypes.c_long


def ptrace(request: int, tid: int, addr: int = 0, data: int = 0) -> None:
    """ptrace(2). Raises Gone for a task that has ended, OSError as the kernel says."""
    if _ptrace(request, tid, addr, data) == -1:
        code = ctypes.get_errno()
        if code == errno.ESRCH:
            raise Gone(f"task {tid} has ended")
        raise OSError(code, f"ptrace({request:#x}, {tid}): {os.strerror(code)}")


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
    size = 8 * (27 if libc.architecture() == "x86_64" else 34)
    vector = _Vector(ctypes.addressof(values), size)
    ptrace(SETREGSET, tid, _NT_PRSTATUS, ctypes.addressof(vector))


def set_number(tid: int, value: int) -> None:
    """At a system call's entry: make it this call (−1: none)."""
    if libc.architecture() == "aarch64":
        word = ctypes.c_int(value)
        vector = _Vector(ctypes.addressof(word), 4)
        ptrace(SETREGSET, tid, _NT_ARM_SYSTEM_CALL, ctypes.addressof(vector))
        return
    values = registers(tid)
    values[machine().number] = value & libc.ULONG_MAX
    set_registers(tid, values)


def event_message(tid: int) -> int:
    """What PTRACE_EVENT_* has to say: the new task's number."""
    word = ctypes.c_ulong()
    ptrace(GETEVENTMSG, tid, 0, ctypes.addressof(word))
    return word.value


def at_entry(tid: int) -> bool:
    """A task in a system-call stop is about to make the call (and has not made it)."""
    buffer = ctypes.create_string_buffer(88)
    if _ptrace(GET_SYSCALL_INFO, tid, len(buffer), ctypes.addressof(buffer)) == -1:
        raise Gone(f"task {tid} has ended")
    return buffer.raw[0] == AT_ENTRY


def allow_tracer() -> None:
    """In the process to be supervised: let the supervisor, no ancestor, attach (Yama)."""
    libc.outcome(libc.prctl, _PR_SET_PTRACER, _ANY, 0, 0, 0)


def stop_at(numbers: Iterable[int], *, marked: Iterable[int] = ()) -> None:
    """From now on this process and its descendants stop for their tracer at these calls.

    At those ``marked`` only if their first argument, a descriptor, is :data:`MARK` or above.
    Without CAP_SYS_ADMIN this sets no_new_privs. Raises OSError where seccomp is not to be had.
    """
    _install(numbers, _RET_TRACE, marked)


def deny(numbers: Iterable[int], code: int) -> None:
    """From now on these calls fail with the errno ``code``. As :func:`stop_at` otherwise."""
    _install(numbers, _RET_ERRNO | code)


def _install(numbers: Iterable[int], action: int, marked: Iterable[int] = ()) -> None:
    def step(code: int, k: int, yes: int = 0, no: int = 0) -> bytes:
        return struct.pack("=HBBI", code, yes, no, k)

    # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_JMP|JGE|K, BPF_RET|K
    load, equal, least, leave = 0x20, 0x15, 0x35, 0x06
    steps = [
        step(load, 4), step(equal, machine().audit, 1, 0), step(leave, _RET_ALLOW), step(load, 0),
    ]  # fmt: skip
    for value in sorted(set(numbers)):
        steps += [step(equal, value, 0, 1), step(leave, action)]
    for value in sorted(set(marked)):
        steps += [
            step(equal, value, 0, 4), step(load, 16), step(least, MARK, 0, 1),
            step(leave, action), step(leave, _RET_ALLOW),
        ]  # fmt: skip
    steps.append(step(leave, _RET_ALLOW))
    code = ctypes.create_string_buffer(b"".join(steps))
    program = _Program(len(steps), ctypes.addressof(code))
    where = ctypes.addressof(program)
    try:
        libc.prctl(_PR_SET_SECCOMP, _FILTER, where, 0, 0)
    except PermissionError:
        libc.prctl(libc.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        libc.prctl(_PR_SET_SECCOMP, _FILTER, where, 0, 0)
