# SPDX-License-Identifier: MIT
"""An io_uring instance that pins a buffer: the other account of RLIMIT_MEMLOCK (VmPin)."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

from helpers.syscalls import call

_REGISTER_BUFFERS, _UNREGISTER_BUFFERS = 0, 1
_PARAMS = 120  # sizeof(struct io_uring_params)


def create(entries: int = 1) -> int:
    """Descriptor of a new instance, for its user to close. OSError as the kernel says."""
    return call.syscall("io_uring_setup", entries, (ctypes.c_ubyte * _PARAMS)())


@contextmanager
def io_uring_instance(entries: int = 1) -> Iterator[int]:
    """Descriptor of a new instance. OSError where io_uring is absent or forbidden."""
    fd = create(entries)
    try:
        yield fd
    finally:
        os.close(fd)


def register(fd: int, addr: int, size: int) -> None:
    """Pin the range as the fixed buffer of the instance ``fd``. OSError as the kernel says."""
    vector = (ctypes.c_size_t * 2)(addr, size)
    call.syscall("io_uring_register", fd, _REGISTER_BUFFERS, vector, 1)


def unregister(fd: int) -> None:
    """Give up the fixed buffer of the instance."""
    call.syscall("io_uring_register", fd, _UNREGISTER_BUFFERS, None, 0)
