# SPDX-License-Identifier: MIT
"""mmap, mremap, brk and their kin through the C library."""

from __future__ import annotations

import ctypes

from helpers.syscalls.call import ADDR, DLL, INT, SIZE, c_function, syscall
from helpers.syscalls.constants import MAP_ANONYMOUS, MAP_PRIVATE, PROT_RW, ULONG_MAX

_mmap = c_function("mmap", ADDR, SIZE, INT, INT, INT, ctypes.c_longlong, restype=ADDR)
if hasattr(DLL, "mmap64"):  # 32-bit: file offsets beyond 2 GiB
    _mmap = c_function("mmap64", ADDR, SIZE, INT, INT, INT, ctypes.c_longlong, restype=ADDR)
munmap = c_function("munmap", ADDR, SIZE)
mprotect = c_function("mprotect", ADDR, SIZE, INT)
madvise = c_function("madvise", ADDR, SIZE, INT)
msync = c_function("msync", ADDR, SIZE, INT)
sbrk = c_function("sbrk", ctypes.c_ssize_t, restype=ADDR)


def mmap(
    addr: int,
    length: int,
    prot: int = PROT_RW,
    flags: int = MAP_PRIVATE | MAP_ANONYMOUS,
    fd: int = -1,
    offset: int = 0,
) -> int:
    """mmap(2): the address of the new mapping, in bytes. OSError as the kernel says."""
    return _mmap(addr, length, prot, flags, fd, offset)


def mremap(addr: int, old: int, new: int, flags: int = 0, target: int = 0) -> int:
    """mremap(2): the new address. Sizes in bytes; ``target`` counts with MREMAP_FIXED."""
    return syscall("mremap", addr, old, new, flags, target) & ULONG_MAX


def brk(addr: int) -> int:
    """The raw brk(2): the program break after the call, unchanged when it is refused."""
    return syscall("brk", addr) & ULONG_MAX
