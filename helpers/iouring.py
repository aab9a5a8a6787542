"""An io_uring instance that pins a buffer: the other account of RLIMIT_MEMLOCK (VmPin)."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

from helpers import libc

_REGISTER_BUFFERS, _UNREGISTER_BUFFERS = 0, 1
_PARAMS = 120  # sizeof(struct io_uring_params)


@contextmanager
def ring(entries: int = 1) -> Iterator[int]:
    """Descriptor of a new instance. OSError where io_uring is absent or forbidden."""
    params = (ctypes.c_ubyte * _PARAMS)()
    fd = libc.syscall("io_uring_setup", entries, params)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def fixed_buffer(fd: int, addr: int, size: int) -> Iterator[None]:
    """The range, registered (and so pinned) as a fixed buffer of the instance ``fd``."""
    vector = (ctypes.c_size_t * 2)(addr, size)
    libc.syscall("io_uring_register", fd, _REGISTER_BUFFERS, vector, 1)
    try:
        yield
    finally:
        libc.syscall("io_uring_register", fd, _UNREGISTER_BUFFERS, None, 0)
