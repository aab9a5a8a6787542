# SPDX-License-Identifier: MIT
"""Files that back a mapping."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from helpers import syscalls
from helpers.syscalls import PAGE, scarcity


def memfd(size: int) -> int:
    """Descriptor of an empty memfd of ``size`` bytes (its pages are order 0)."""
    fd = os.memfd_create("memlock-tests", syscalls.MFD_CLOEXEC | syscalls.MFD_ALLOW_SEALING)
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
        kind = syscalls.filesystem_type(folder)
        if kind not in DISKS:
            return f"{folder} is {kind}"
        os.close(scratch_file(_TRIAL, folder))
    except OSError as error:
        return f"{folder}: {scarcity.reason(error) or error.strerror}"
    return ""


def write_file(fd: int, data: bytes, offset: int = 0) -> None:
    """Write all of ``data`` at ``offset`` (bytes). Raises OSError, on a full disk too."""
    while data:  # what fits is written before the error
        done = os.pwrite(fd, data, offset)
        data, offset = data[done:], offset + done


def opened_to_read(fd: int) -> int:
    """Another descriptor of the file, that may not write. Raises OSError."""
    return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)


def secret(size: int) -> int:
    """Descriptor of secret memory of ``size`` bytes: memfd_secret(2). Raises OSError."""
    fd = syscalls.syscall("memfd_secret", os.O_CLOEXEC)
    os.ftruncate(fd, size)
    return fd


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
