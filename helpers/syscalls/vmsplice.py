# SPDX-License-Identifier: MIT
"""Keep page frames from being freed, so that their flags can be read after their last mapping.

A freed page's frame belongs to somebody else at once; one that a pipe refers to does not.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

from helpers.syscalls.call import DLL
from helpers.syscalls.constants import PAGE

PIPE_PAGES = 16
"""Pages that a pipe holds unless it is enlarged."""


class _Iovec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


DLL.vmsplice.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint]
DLL.vmsplice.restype = ctypes.c_ssize_t


def pin_in_pipe(fd: int, addr: int, pages: int) -> None:
    """vmsplice(2) up to :data:`MOST` present pages into the pipe ``fd``. Raises OSError."""
    vector = _Iovec(addr, pages * PAGE)
    done = DLL.vmsplice(fd, ctypes.byref(vector), 1, 0)
    if done != pages * PAGE:
        code = ctypes.get_errno() if done < 0 else 0
        raise OSError(code, f"vmsplice of {pages} pages took {done} bytes, {os.strerror(code)}")


@contextmanager
def frame_pipe() -> Iterator[int]:
    """A pipe's writing end, to :func:`hold` pages (in this process or a child) for the block."""
    read_end, write_end = os.pipe()
    try:
        yield write_end
    finally:
        os.close(read_end)
        os.close(write_end)
