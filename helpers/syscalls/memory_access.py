# SPDX-License-Identifier: MIT
"""Load and store at an address, one C loop each."""

from __future__ import annotations

import ctypes
import os


def store(addr: int, data: bytes) -> None:
    """Copy ``data`` to ``addr``; the kernel sends SIGSEGV where that is not writable."""
    ctypes.memmove(addr, data, len(data))


def load(addr: int, length: int) -> bytes:
    """``length`` bytes from ``addr``."""
    return ctypes.string_at(addr, length)


def memset(addr: int, byte: int, length: int) -> None:
    """Write ``byte`` over ``length`` bytes: one C loop, no interpreter work between pages."""
    ctypes.memset(addr, byte, length)


def write_proc_self_mem(addr: int, data: bytes) -> None:
    """Write to this process's memory through /proc/self/mem, whatever its protection.

    OSError where the kernel forbids that.
    """
    fd = os.open("/proc/self/mem", os.O_RDWR | os.O_CLOEXEC)
    try:
        os.pwrite(fd, data, addr)
    finally:
        os.close(fd)
