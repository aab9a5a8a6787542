"""Another process's memory: process_vm_readv(2), ptrace(2), /proc/PID/mem, process_madvise(2)."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

from helpers import libc

_PEEK, _POKE, _SEIZE, _DETACH, _INTERRUPT = 2, 5, 0x4206, 17, 0x4207
_WALL = 0x40000000

_dll = ctypes.CDLL(None, use_errno=True)


class _Iovec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


def _vm(name: str, pid: int, ours: ctypes.Array[ctypes.c_char], addr: int) -> int:
    function = getattr(_dll, name)
    function.argtypes = [ctypes.c_int, *([ctypes.c_void_p, ctypes.c_ulong] * 2), ctypes.c_ulong]
    function.restype = ctypes.c_ssize_t
    local, remote = _Iovec(ctypes.addressof(ours), len(ours)), _Iovec(addr, len(ours))
    done: int = function(pid, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)
    if done != len(ours):
        code = ctypes.get_errno() if done < 0 else 0
        raise OSError(code, f"{name} of {len(ours)} bytes at {addr:#x} gave {done}")
    return done


def read(pid: int, addr: int, size: int) -> bytes:
    """process_vm_readv(2). OSError as the kernel says."""
    ours = ctypes.create_string_buffer(size)
    _vm("process_vm_readv", pid, ours, addr)
    return ours.raw


def write(pid: int, addr: int, data: bytes) -> None:
    """process_vm_writev(2): obeys the memory's protection. OSError as the kernel says."""
    _vm("process_vm_writev", pid, ctypes.create_string_buffer(data, len(data)), addr)


def force(pid: int, addr: int, data: bytes) -> None:
    """Write through /proc/PID/mem, whatever the protection. OSError as the kernel says."""
    fd = os.open(f"/proc/{pid}/mem", os.O_RDWR | os.O_CLOEXEC)
    try:
        os.pwrite(fd, data, addr)
    finally:
        os.close(fd)


def peek_file(pid: int | str, addr: int, size: int) -> bytes:
    """Read through /proc/PID/mem. OSError as the kernel says."""
    fd = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(fd, size, addr)
    finally:
        os.close(fd)


def _ptrace(request: int, pid: int, addr: int = 0, data: int = 0) -> int:
    function = _dll.ptrace
    function.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    function.restype = ctypes.c_long
    ctypes.set_errno(0)
    word: int = function(request, pid, addr, data)
    if word == -1 and ctypes.get_errno():
        raise OSError(ctypes.get_errno(), f"ptrace({request:#x}, {pid}, {addr:#x})")
    return word


@contextmanager
def traced(pid: int) -> Iterator[None]:
    """The process is stopped and traced for the block, then runs on."""
    _ptrace(_SEIZE, pid)
    _ptrace(_INTERRUPT, pid)
    os.waitpid(pid, _WALL)
    try:
        yield
    finally:
        _ptrace(_DETACH, pid)


def poke(pid: int, addr: int, word: int) -> None:
    """PTRACE_POKEDATA of a machine word into a :func:`traced` process."""
    _ptrace(_POKE, pid, addr, word)


def peek(pid: int, addr: int) -> int:
    """PTRACE_PEEKDATA."""
    return _ptrace(_PEEK, pid, addr)


def advise(pid: int, addr: int, size: int, advice: int) -> int:
    """process_madvise(2): bytes done. OSError as the kernel says."""
    fd = os.pidfd_open(pid)
    try:
        vector = (ctypes.c_size_t * 2)(addr, size)
        return libc.syscall("process_madvise", fd, vector, 1, advice, 0)
    finally:
        os.close(fd)
