"""Keep page frames from being freed, so that their flags can be read after their last mapping.

A freed page's frame belongs to somebody else at once; one that a pipe refers to does not.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

from helpers.libc import PAGE

MOST = 16
"""Pages that a pipe holds unless it is enlarged."""


class _Iovec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


_dll = ctypes.CDLL(None, use_errno=True)
_dll.vmsplice.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint]
_dll.vmsplice.restype = ctypes.c_ssize_t


def hold(fd: int, addr: int, pages: int) -> None:
    """vmsplice(2) up to :data:`MOST` present pages into the pipe ``fd``. Raises OSError."""
    vector = _Iovec(addr, pages * PAGE)
    done = _dll.vmsplice(fd, ctypes.byref(vector), 1, 0)
    if done != pages * PAGE:
        code = ctypes.get_errno() if done < 0 else 0
        raise OSError(code, f"vmsplice of {pages} pages took {done} bytes, {os.strerror(code)}")


@contextmanager
def pipe() -> Iterator[int]:
    """A pipe's writing end, to :func:`hold` pages (in this process or a child) for the block."""
    read_end, write_end = os.pipe()
    try:
        yield write_end
    finally:
        os.close(read_end)
        os.close(write_end)
