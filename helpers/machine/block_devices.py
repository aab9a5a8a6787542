# SPDX-License-Identifier: MIT
"""Swap areas of our own: a file where the file system allows it, else a loop device or zram.

Existing areas are never touched. Ours has the highest priority there is, so that what is
swapped out while the suite runs lands in it, and it can be read back block by block.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import re
import struct
import time
from pathlib import Path

from helpers import syscalls
from helpers.machine import kernel_version, timeouts
from helpers.machine.records import RELEASE_TIMEOUT, RUN_NAME
from helpers.syscalls import PAGE
from helpers.syscalls.call import DLL

PRIORITY = 32767
_PREFER, DISCARD = 0x8000, 0x10000
_LOOP_CTL_GET_FREE, _LOOP_SET_FD, _LOOP_CLR_FD = 0x4C82, 0x4C00, 0x4C01
_LOOP_SET_STATUS64 = 0x4C04
# _IOW('f', 2, long), include/uapi/linux/fs.h
_FS_IOC_SETFLAGS = (
    (4 << 29 if platform.machine().lower().startswith("ppc") else 1 << 30)
    | syscalls.WORD_BITS // 8 << 16 | ord("f") << 8 | 2
)  # fmt: skip
_FS_NOCOW_FL = 0x00800000


def areas() -> list[str]:
    """Paths in /proc/swaps, escapes undone."""
    lines = Path("/proc/swaps").read_text().splitlines()[1:]
    return [line.split()[0].replace("\\040", " ") for line in lines]


def takes_large_folios() -> bool:
    """A large folio can get slots for all its pages at once, and be swapped out unsplit.

    Since 6.10, and on a block device alone, rotating or not (SWP_BLKDEV in mm/swapfile.c).
    """
    lines = Path("/proc/swaps").read_text().splitlines()[1:]
    return kernel_version.version() >= (6, 10, 0) and any(
        line.split()[1] == "partition" for line in lines
    )


def is_on(path: str) -> bool:
    """The path is an active swap area."""
    return path in areas()


def of_a_run(path: str) -> bool:
    """The area belongs to a run of this suite, and may go at any moment: nothing to rely on."""
    if path.startswith("/dev/zram"):
        try:
            return bool(re.fullmatch(r"[0-9a-f]{16}", _label(path)))
        except OSError:
            return False
    if path.startswith("/dev/loop"):
        try:
            path = Path(f"/sys/block/{Path(path).name}/loop/backing_file").read_text()
        except OSError:
            return False
    return bool(RUN_NAME.search(path))


def swapon(path: str, flags: int = 0) -> None:
    """swapon(2) at the highest priority, with more flags if given. Raises OSError."""
    if DLL.swapon(path.encode(), _PREFER | PRIORITY | flags):
        code = ctypes.get_errno()
        raise OSError(code, f"swapon({path}): {errno.errorcode.get(code)}, {os.strerror(code)}")


def swapoff(path: str) -> None:
    """swapoff(2). Raises OSError; EBUSY and EINTR are waited out for a while."""
    until = timeouts.until(RELEASE_TIMEOUT)
    while DLL.swapoff(path.encode()):
        code = ctypes.get_errno()
        if code not in {errno.EBUSY, errno.EINTR} or time.monotonic() > until:
            raise OSError(code, f"swapoff({path}): {os.strerror(code)}")
        time.sleep(0.05)


_LABEL = slice(1052, 1068)  # sws_volume


def header(pages: int, label: str = "") -> bytes:
    """First page of a swap area of ``pages`` pages (union swap_header, include/linux/swap.h).

    ``label`` (16 characters at most) says whose it is.
    """
    page = bytearray(PAGE)
    struct.pack_into("=III", page, 1024, 1, pages - 1, 0)
    page[_LABEL] = label.encode().ljust(16, b"\0")
    page[PAGE - 10 :] = b"SWAPSPACE2"
    return bytes(page)


def _label(device: str) -> str:
    fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(fd, PAGE, 0)[_LABEL].rstrip(b"\0").decode(errors="replace")
    finally:
        os.close(fd)


def make_file(path: Path, size: int) -> None:
    """A swap file: new, 0600, without holes, with its header. Raises OSError (ENOSPC …)."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        if syscalls.filesystem_type(path.parent) == "btrfs":  # it swaps to no file that it copies
            fcntl.ioctl(fd, _FS_IOC_SETFLAGS, struct.pack("@l", _FS_NOCOW_FL))
        os.posix_fallocate(fd, 0, size)
        # Written once: the file system knows nothing of what swap-out writes underneath, and
        # reads an extent that is allocated but unwritten as zeros, O_DIRECT or not.
        zeros = bytes(1 << 20)
        for offset in range(0, size, len(zeros)):
            os.pwrite(fd, zeros[: size - offset], offset)
        os.pwrite(fd, header(size // PAGE), 0)
        os.fsync(fd)
    finally:
        os.close(fd)


def _loop_config(backing: Path) -> bytes:
    # struct loop_info64: five u64, five u32 (flags is the fourth), two 64-byte names …
    name = str(backing).encode()[:63]
    # LO_FLAGS_AUTOCLEAR: gone with its last user, even if nobody cleans up; LO_FLAGS_PARTSCAN:
    # its partitions too.
    info = struct.pack("=5Q4I", 0, 0, 0, 0, 0, 0, 0, 0, 4 | 8)
    return info + name.ljust(64, b"\0") + bytes(64 + 32 + 16)


def release_device(device: str, backing: Path) -> None:
    """Swap off and detach a loop device, if it is over ``backing``. Raises OSError."""
    try:
        fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return
    try:
        # While it is held open it stays what it is: swapped off, it could clear itself and be
        # somebody else's a moment later.
        over = Path(f"/sys/block/{Path(device).name}/loop/backing_file").read_text().strip()
        if over.removesuffix(" (deleted)") == str(backing):
            for path in areas():
                if re.fullmatch(rf"{device}(p\d+)?", path):
                    swapoff(path)
            fcntl.ioctl(fd, _LOOP_CLR_FD)
    except FileNotFoundError:
        return  # not attached (any more)
    finally:
        os.close(fd)


def release_zram(name: str, label: str, inode: int, size: int) -> None:
    """Swap off and remove the zram device that we made: the folder in sysfs has this inode, and
    it is idle, or of ``size`` bytes and with our label, or with nothing on it yet.

    Raises ValueError for one that is somebody else's, OSError where it is in use.
    """
    block = Path("/sys/block") / name
    if not block.is_dir():
        return
    device = f"/dev/{name}"
    disksize = int((block / "disksize").read_text())
    if block.stat().st_ino != inode or disksize not in {0, size}:
        raise ValueError(f"{name} is not the device we made; left alone")
    if disksize and _label(device) not in {label, ""}:
        raise ValueError(f"{name} does not carry our label; left alone")
    if is_on(device):
        if _label(device) != label:
            raise ValueError(f"{name} does not carry our label; left alone")
        swapoff(device)
    (block / "reset").write_text("1")
    Path("/sys/class/zram-control/hot_remove").write_text(name.removeprefix("zram"))
