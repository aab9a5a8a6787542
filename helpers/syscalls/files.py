# SPDX-License-Identifier: MIT
"""File calls that Python's os lacks: fallocate, mount, reads and writes of an address."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from helpers.syscalls import call, constants
from helpers.syscalls.call import ADDR, DLL, INT, LOFF, SIZE, TEXT, c_function
from helpers.syscalls.numbers import architecture

_mount = c_function("mount", TEXT, TEXT, TEXT, ctypes.c_ulong, TEXT)
_fallocate = c_function(
    "fallocate64" if hasattr(DLL, "fallocate64") else "fallocate", INT, INT, LOFF, LOFF
)


def punch_hole(fd: int, offset: int, length: int) -> int:
    """Cut a hole in a file (fallocate(2)); offset and length in bytes."""
    return fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length)


FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_COLLAPSE_RANGE = 1, 2, 8
FALLOC_FL_ZERO_RANGE, FALLOC_FL_INSERT_RANGE = 0x10, 0x20


def fallocate(fd: int, mode: int, offset: int, length: int) -> int:
    """fallocate(2); offset and length in bytes. OSError as the kernel says."""
    return _fallocate(fd, mode, offset, length)


def mount(source: str, target: str, kind: str, flags: int = 0, options: str = "") -> None:
    """mount(2). OSError as the kernel says."""
    _mount(source.encode(), target.encode(), kind.encode(), flags, options.encode() or None)


_statfs = c_function("statfs", TEXT, ADDR)


def statfs_type(path: str) -> int:
    """f_type of statfs(2): the magic number of the file system that holds ``path``."""
    room = ctypes.create_string_buffer(512)
    _statfs(path.encode(), ctypes.addressof(room))
    word = ctypes.c_uint32 if architecture() == "s390x" else ctypes.c_ulong
    return word.from_buffer(room).value & 0xFFFFFFFF


_read = c_function("read", INT, ADDR, SIZE)


def read_to_address(fd: int, addr: int, length: int) -> int:
    """read(2) into memory at ``addr``: bytes read; OSError EFAULT where nothing is writable."""
    return _read(fd, addr, length)


_pwrite = c_function("pwrite64" if hasattr(DLL, "pwrite64") else "pwrite", INT, ADDR, SIZE, LOFF)


def write_from_address(fd: int, addr: int, length: int, offset: int) -> int:
    """pwrite(2) of memory at ``addr``: bytes written. OSError as the kernel says."""
    return _pwrite(fd, addr, length, offset)


def open_direct(fd: int) -> int:
    """A second descriptor of the same file, for direct I/O. OSError EINVAL where that is not."""
    return os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)


def unshare_mounts() -> None:
    """Move this process into a mount namespace of its own, for good. Needs CAP_SYS_ADMIN."""
    call.unshare(constants.CLONE_NEWNS)
    mount("none", "/", "", constants.MS_REC | constants.MS_PRIVATE)


def filesystem_type(directory: Path | str) -> str:
    """Type of the file system that holds ``directory`` (``"ext4"``): from mountinfo, or, where
    that does not have the mount (a chroot), by the magic number of statfs(2)."""
    device = os.stat(directory).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    found = ""
    path = str(Path(directory).resolve())
    best = -1
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        fields = left.split()
        point = fields[4].replace("\\040", " ")
        inside = point == "/" or path == point or path.startswith(point + "/")
        if (fields[2] == wanted or inside) and inside and len(point) >= best:
            best, found = len(point), right.split()[0]
    if found:
        return found
    magic = statfs_type(str(directory))
    return _MAGIC.get(magic, f"file system {magic:#x}")


# include/uapi/linux/magic.h, statfs(2). One driver serves ext2, ext3 and ext4.
_MAGIC = {
    0xEF53: "ext4", 0x58465342: "xfs", 0x9123683E: "btrfs", 0xF2F52010: "f2fs",
    0x01021994: "tmpfs", 0x858458F6: "ramfs", 0x794C7630: "overlay", 0x01021997: "9p",
    0x6969: "nfs", 0x65735546: "fuse", 0x2FC12FC1: "zfs", 0xCA451A4E: "bcachefs",
    0x73717368: "squashfs", 0xE0F5E1E2: "erofs", 0x9FA0: "proc", 0x62656572: "sysfs",
}  # fmt: skip
