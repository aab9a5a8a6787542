# SPDX-License-Identifier: MIT
"""Asynchronous writes (io_submit(2))."""

from __future__ import annotations

import ctypes
import os
import struct

from helpers.syscalls import call

_PWRITE = 1


def write(fd: int, addr: int, length: int, offset: int) -> int:
    """Write memory at ``addr`` asynchronously and wait for it: bytes. OSError as it failed."""
    context = ctypes.c_ulong()
    call.syscall("io_setup", 1, context)
    try:
        # struct iocb: data, key and rw_flags, opcode, priority, descriptor, buffer, length, offset
        words = struct.pack("=QIIHhIQQqQII", 0, 0, 0, _PWRITE, 0, fd, addr, length, offset, 0, 0, 0)
        request = ctypes.create_string_buffer(words, len(words))
        pointers = (ctypes.c_void_p * 1)(ctypes.addressof(request))
        call.syscall("io_submit", context.value, 1, pointers)
        event = (ctypes.c_int64 * 4)()
        call.syscall("io_getevents", context.value, 1, 1, event, None)
        if event[2] < 0:
            raise OSError(-event[2], f"io_submit: {os.strerror(-event[2])}")
        return event[2]
    finally:
        call.syscall("io_destroy", context.value)
