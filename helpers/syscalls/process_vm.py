# SPDX-License-Identifier: MIT
"""Another process's memory: process_vm_readv(2), /proc/PID/mem, process_madvise(2)
and process_mrelease(2)."""

from __future__ import annotations

import ctypes
import os

from helpers.syscalls import call
from helpers.syscalls.call import DLL


class _Iovec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


def _vm(name: str, pid: int, ours: ctypes.Array[ctypes.c_char], addr: int) -> int:
    function = getattr(DLL, name)
    function.argtypes = [ctypes.c_int, *([ctypes.c_void_p, ctypes.c_ulong] * 2), ctypes.c_ulong]
    function.restype = ctypes.c_ssize_t
    local, remote = _Iovec(ctypes.addressof(ours), len(ours)), _Iovec(addr, len(ours))
    done: int = function(pid, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)
    if done != len(ours):
        code = ctypes.get_errno() if done < 0 else 0
        raise OSError(code, f"{name} of {len(ours)} bytes at {addr:#x} gave {done}")
    return done


def process_vm_readv(pid: int, addr: int, size: int) -> bytes:
    """process_vm_readv(2). OSError as the kernel says."""
    ours = ctypes.create_string_buffer(size)
    _vm("process_vm_readv", pid, ours, addr)
    return ours.raw


def process_vm_writev(pid: int, addr: int, data: bytes) -> None:
    """process_vm_writev(2): obeys the memory's protection. OSError as the kernel says."""
    _vm("process_vm_writev", pid, ctypes.create_string_buffer(data, len(data)), addr)


def write_proc_mem(pid: int, addr: int, data: bytes) -> None:
    """Write through /proc/PID/mem, whatever the protection. OSError as the kernel says."""
    fd = os.open(f"/proc/{pid}/mem", os.O_RDWR | os.O_CLOEXEC)
    try:
        os.pwrite(fd, data, addr)
    finally:
        os.close(fd)


def read_proc_mem(pid: int | str, addr: int, size: int) -> bytes:
    """Read through /proc/PID/mem. OSError as the kernel says."""
    fd = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(fd, size, addr)
    finally:
        os.close(fd)


def process_madvise(pid: int, addr: int, size: int, advice: int) -> int:
    """process_madvise(2): bytes done. OSError as the kernel says."""
    fd = os.pidfd_open(pid)
    try:
        vector = (ctypes.c_size_t * 2)(addr, size)
        return call.syscall("process_madvise", fd, vector, 1, advice, 0)
    finally:
        os.close(fd)


def process_mrelease(pidfd: int, flags: int = 0) -> None:
    """process_mrelease(2): free a dying process's memory at once. OSError as the kernel says."""
    call.syscall("process_mrelease", pidfd, flags)
