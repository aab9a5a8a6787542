"""A mapping of a given kind, as a context manager.

:func:`mapping` reserves the range with an inaccessible page on each side, so that no
neighbour can merge with it and every edge is a known one. When an exception passes
through the block, the VMAs and page flags of the range are recorded (see
:mod:`helpers.evidence`) before it is unmapped: by the time a report is made they are gone.
"""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from helpers import evidence, libc, mounts, scarce
from helpers.libc import PAGE

KINDS = (
    "private",
    "shared",
    "memfd-private",
    "memfd-shared",
    "file-private",
    "file-shared",
)
"""Kinds :func:`mapping` makes: anonymous, over a memfd, over a file on disk."""


@dataclass(frozen=True)
class Region:
    """A range of whole pages in this process. ``addr`` and ``size`` are bytes."""

    addr: int
    size: int
    kind: str = "private"
    fd: int = field(default=-1, compare=False)

    @property
    def pages(self) -> int:
        """Length in pages."""
        return self.size // PAGE

    @property
    def kb(self) -> int:
        """Length in kB, as /proc counts."""
        return self.size // 1024

    @property
    def end(self) -> int:
        """First byte behind the range."""
        return self.addr + self.size

    def at(self, page: int) -> int:
        """Address of page ``page`` (0 is the first; may point behind the end)."""
        return self.addr + page * PAGE

    def sub(self, first: int, pages: int) -> Region:
        """The part of ``pages`` pages from page ``first`` on."""
        return Region(self.at(first), pages * PAGE, self.kind, self.fd)

    def write(self, byte: int = 0x5A) -> None:
        """Write every byte of the range."""
        libc.fill(self.addr, byte, self.size)

    def touch(self, byte: int = 0xA5) -> None:
        """Write the first byte of every page."""
        for addr in range(self.addr, self.end, PAGE):
            ctypes.memset(addr, byte, 1)

    def read(self) -> bytes:
        """Every byte of the range (reading faults in what is absent)."""
        return libc.read(self.addr, self.size)

    def peek(self) -> bytes:
        """The first byte of every page."""
        return b"".join(ctypes.string_at(a, 1) for a in range(self.addr, self.end, PAGE))


_next = 1 << 33 if libc.WORD_BITS == 64 else 0


def reserve(size: int) -> int:
    """An inaccessible mapping low in the address space, where the kernel has room for it.

    smaps is written in the order of addresses, at the cost of a page-table walk for each
    VMA: below the program and its libraries, a region is in the first lines. It is also far
    from where the kernel puts the interpreter's next buffer, which would fit in a hole that a
    case makes (with 64 KiB pages it would).
    """
    global _next
    addr = libc.mmap(_next, size, libc.PROT_NONE)
    if _next:
        _next += size + PAGE
    return addr


@contextmanager
def mapping(
    kind: str = "private",
    pages: int = 8,
    *,
    prot: int = libc.PROT_RW,
    flags: int = 0,
    directory: Path | str | None = None,
    fd: int | None = None,
    offset: int = 0,
) -> Iterator[Region]:
    """A fenced mapping of ``pages`` pages of one of :data:`KINDS`, untouched.

    ``flags`` are added to mmap's (MAP_LOCKED, MAP_POPULATE, …). A file kind makes its own
    file of that length, filled with pages 0, 1, 2 … of that byte, in ``directory``
    (default: :data:`file_dir`), unlinked at once; or maps ``fd`` from ``offset`` (bytes)
    when given. Raises ValueError on an unknown kind, OSError where the kernel refuses.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind of memory {kind!r}; known: {', '.join(KINDS)}")
    size = pages * PAGE
    own_fd = -1
    if fd is None and kind.startswith("memfd"):
        own_fd = memfd(size)
    elif fd is None and kind.startswith("file"):
        own_fd = scratch_file(pages, directory)
    used = fd if fd is not None else own_fd
    how = libc.MAP_SHARED if kind.endswith("shared") else libc.MAP_PRIVATE
    if used < 0:
        how |= libc.MAP_ANONYMOUS
    base = reserve(size + 2 * PAGE)
    try:
        addr = libc.mmap(base + PAGE, size, prot, how | libc.MAP_FIXED | flags, used, offset)
        region = Region(addr, size, kind, used)
        with evidence.watching(region.addr, region.size, kind):
            yield region
    finally:
        libc.munmap(base, size + 2 * PAGE)
        if own_fd >= 0:
            os.close(own_fd)


@contextmanager
def unmapped_after(addr: int, size: int) -> Iterator[Region]:
    """A mapping the case made itself (say by a bare mmap): watched, then unmapped."""
    region = Region(addr, size)
    try:
        with evidence.watching(addr, size, "mapping"):
            yield region
    finally:
        libc.munmap(addr, size)


def memfd(size: int) -> int:
    """Descriptor of an empty memfd of ``size`` bytes (its pages are order 0)."""
    fd = os.memfd_create("memlock-tests", libc.MFD_CLOEXEC | libc.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    return fd


file_dir = ""
"""Folder for files of cases; empty: the temporary folder. Set by :func:`find_file_dir`."""
DISKS = {"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs"}
_TRIAL = 128  # pages: the largest file of most cases


def find_file_dir(given: str | None = None) -> str:
    """Folder for files: ``given``, or the first of some that is on a disk and has room.

    /var/tmp, the temporary folder, the current one; if none serves, the temporary folder.
    Raises OSError if ``given`` cannot be written.
    """
    if given:
        os.close(scratch_file(_TRIAL, given))
        return os.path.abspath(given)
    for folder in ("/var/tmp", tempfile.gettempdir(), os.getcwd()):
        if not no_disk(folder):
            return folder
    return ""


def no_disk(folder: str) -> str:
    """Why files in the folder are not kept on a disk, found by writing one, or ``""``."""
    try:
        kind = mounts.filesystem(folder)
        if kind not in DISKS:
            return f"{folder} is {kind}"
        os.close(scratch_file(_TRIAL, folder))
    except OSError as error:
        return f"{folder}: {scarce.reason(error) or error.strerror}"
    return ""


def write_file(fd: int, data: bytes, offset: int = 0) -> None:
    """Write all of ``data`` at ``offset`` (bytes). Raises OSError, on a full disk too."""
    while data:  # what fits is written before the error
        done = os.pwrite(fd, data, offset)
        data, offset = data[done:], offset + done


def scratch_file(pages: int, directory: Path | str | None = None) -> int:
    """Descriptor of an unlinked file; page n holds byte n (mod 256), all of it on disk.

    Written a page at a time: large page-cache folios (ext4 since 6.16, XFS) are made by large
    writes, and would make PG_mlocked a matter of the whole folio (mm/rmap.c, 6.7). Synced
    once: a sync a page makes order-0 folios no more surely and takes five times as long.
    """
    fd, path = tempfile.mkstemp(prefix="memlock-", dir=directory or file_dir or None)
    os.unlink(path)
    try:
        for page in range(pages):
            write_file(fd, bytes([page & 0xFF]) * PAGE, page * PAGE)
        os.fdatasync(fd)
    except OSError:
        os.close(fd)
        raise
    return fd


def hole(region: Region, page: int, pages: int = 1) -> None:
    """Unmap ``pages`` pages of the region from page ``page`` on."""
    libc.munmap(region.at(page), pages * PAGE)


def force(addr: int, data: bytes) -> None:
    """Write to this process's memory through /proc/self/mem, whatever its protection.

    OSError where the kernel forbids that.
    """
    fd = os.open("/proc/self/mem", os.O_RDWR | os.O_CLOEXEC)
    try:
        os.pwrite(fd, data, addr)
    finally:
        os.close(fd)
