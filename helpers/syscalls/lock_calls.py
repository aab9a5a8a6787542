# SPDX-License-Identifier: MIT
"""The mlock family by both entry points: system call number and C library."""

from __future__ import annotations

import ctypes
from typing import Any, Protocol

from helpers.syscalls.call import ADDR, INT, SIZE, c_function, syscall


class LockCalls(Protocol):
    """The six calls under test, by whichever door. All return 0 or raise OSError."""

    def mlock(self, addr: int, length: int) -> int: ...
    def mlock2(self, addr: int, length: int, flags: int) -> int: ...
    def munlock(self, addr: int, length: int) -> int: ...
    def mlockall(self, flags: int) -> int: ...
    def munlockall(self) -> int: ...
    def mincore(self, addr: int, length: int, vec: ctypes.Array[Any] | int) -> int: ...


class _Raw:
    """The mlock family by system call number."""

    def __repr__(self) -> str:
        return "syscall"

    def mlock(self, addr: int, length: int) -> int:
        return syscall("mlock", addr, length)

    def mlock2(self, addr: int, length: int, flags: int) -> int:
        return syscall("mlock2", addr, length, flags)

    def munlock(self, addr: int, length: int) -> int:
        return syscall("munlock", addr, length)

    def mlockall(self, flags: int) -> int:
        return syscall("mlockall", flags)

    def munlockall(self) -> int:
        return syscall("munlockall")

    def mincore(self, addr: int, length: int, vec: ctypes.Array[Any] | int) -> int:
        return syscall("mincore", addr, length, vec)


class _Glibc:
    """The mlock family through the C library's wrappers, as programs call it."""

    def __init__(self) -> None:
        self.mlock = c_function("mlock", ADDR, SIZE)
        self.mlock2 = c_function("mlock2", ADDR, SIZE, ctypes.c_uint)
        self.munlock = c_function("munlock", ADDR, SIZE)
        self.mlockall = c_function("mlockall", INT)
        self.munlockall = c_function("munlockall")
        self.mincore = c_function("mincore", ADDR, SIZE, ctypes.c_void_p)

    def __repr__(self) -> str:
        return "libc"


RAW: LockCalls = _Raw()
GLIBC: LockCalls = _Glibc()

mlock, mlock2, munlock = RAW.mlock, RAW.mlock2, RAW.munlock
mlockall, munlockall, mincore = RAW.mlockall, RAW.munlockall, RAW.mincore
