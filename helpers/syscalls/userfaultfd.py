# SPDX-License-Identifier: MIT
"""userfaultfd(2): a range whose faults are answered by the case.

Sources: include/uapi/linux/userfaultfd.h, Documentation/admin-guide/mm/userfaultfd.rst.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from helpers.syscalls import call, ioctls
from helpers.syscalls.call import AddressRange
from helpers.syscalls.constants import PAGE

_API = 0xAA
MISSING, WP, MINOR = 1, 2, 4
USER_MODE_ONLY = 1
COPY_WP = 2
MOVE_ALLOW_SRC_HOLES = 2
FEATURE_MINOR_SHMEM = 1 << 10
FEATURE_MOVE = 1 << 16
EVENT_PAGEFAULT = 0x12


def _request(number: int, size: int, write: bool = True) -> int:
    return ioctls.request(_API, number, size, write)


_DO_API = _request(0x3F, 24)
_REGISTER, _UNREGISTER = _request(0x00, 32), _request(0x01, 16, write=False)
_COPY, _ZEROPAGE, _MOVE = _request(0x03, 40), _request(0x04, 32), _request(0x05, 40)
_PROTECT, _CONTINUE = _request(0x06, 24), _request(0x07, 32)


def _ioctl(fd: int, request: int, *words: int) -> None:
    fcntl.ioctl(fd, request, bytearray(struct.pack(f"={len(words)}q", *words)))


def enable(fd: int, features: int = 0) -> None:
    """UFFDIO_API: the handshake. OSError where a feature is refused."""
    _ioctl(fd, _DO_API, _API, features, 0)


@contextmanager
def open_fd(features: int = 0, flags: int = 0) -> Iterator[int]:
    """A userfaultfd with these features; OSError where it, or one of them, is refused."""
    fd = call.syscall("userfaultfd", os.O_CLOEXEC | flags)
    try:
        enable(fd, features)
        yield fd
    finally:
        os.close(fd)


def register(fd: int, region: AddressRange, mode: int = MISSING) -> None:
    """Have the faults of a range reported to ``fd``. OSError as the kernel says."""
    _ioctl(fd, _REGISTER, region.addr, region.size, mode, 0)


def unregister(fd: int, region: AddressRange) -> None:
    """Stop that."""
    _ioctl(fd, _UNREGISTER, region.addr, region.size)


def wait_fault(fd: int) -> int:
    """Wait for a page fault: its address, rounded down to its page."""
    message = os.read(fd, 32)
    event, _, addr = struct.unpack_from("=B7xQQ", message)
    if event != EVENT_PAGEFAULT:
        raise RuntimeError(f"userfaultfd event {event:#x} where a page fault was expected")
    return int(addr) & -PAGE


def copy(fd: int, target: int, source: int, size: int, mode: int = 0) -> None:
    """UFFDIO_COPY: fill absent pages with a copy of ``size`` bytes from ``source``."""
    _ioctl(fd, _COPY, target, source, size, mode, 0)


def zeropage(fd: int, target: int, size: int) -> None:
    """UFFDIO_ZEROPAGE: fill absent pages with zeros."""
    _ioctl(fd, _ZEROPAGE, target, size, 0, 0)


def move(fd: int, target: int, source: int, size: int, mode: int = 0) -> None:
    """UFFDIO_MOVE: move the pages themselves from ``source`` to absent pages (6.8)."""
    _ioctl(fd, _MOVE, target, source, size, mode, 0)


def writeprotect(fd: int, target: int, size: int, on: bool) -> None:
    """UFFDIO_WRITEPROTECT: report the next write, or let it pass again."""
    _ioctl(fd, _PROTECT, target, size, 1 if on else 0)


def uffd_continue(fd: int, target: int, size: int) -> None:
    """UFFDIO_CONTINUE: map what the page cache holds (registered MINOR)."""
    _ioctl(fd, _CONTINUE, target, size, 0, 0)
