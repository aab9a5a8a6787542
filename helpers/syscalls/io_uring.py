# SPDX-License-Identifier: MIT
"""An io_uring instance that pins a buffer: the other account of RLIMIT_MEMLOCK (VmPin)."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

from helpers.syscalls import call

_REGISTER_BUFFERS, _UNREGISTER_BUFFERS, _CLONE_BUFFERS = 0, 1, 30
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
    register_all(fd, (addr, size))


def register_all(fd: int, *ranges: tuple[int, int]) -> None:
    """Pin ranges (address, bytes) as the fixed buffers of the instance. OSError as the kernel."""
    vector = (ctypes.c_size_t * (2 * len(ranges)))(*(word for pair in ranges for word in pair))
    call.syscall("io_uring_register", fd, _REGISTER_BUFFERS, vector, len(ranges))


def unregister(fd: int) -> None:
    """Give up the fixed buffers of the instance."""
    call.syscall("io_uring_register", fd, _UNREGISTER_BUFFERS, None, 0)


def clone_buffers(fd: int, source: int) -> None:
    """Let the instance ``fd`` have the fixed buffers of another too (6.12). OSError as the kernel.

    struct io_uring_clone_buffers: source, and all of them.
    """
    call.syscall("io_uring_register", fd, _CLONE_BUFFERS, (ctypes.c_uint32 * 8)(source), 1)
