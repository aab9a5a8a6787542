"""File systems mounted for one process alone: gone with it, however it ends.

Each mount lies in a mount namespace of the case's own, loop devices clear themselves
(``LO_FLAGS_AUTOCLEAR``, mount(8) ``-o loop``), so there is nothing for the janitor.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

from helpers import libc

_LARGEST = {"ext4": 16 << 20, "xfs": 320 << 20, "btrfs": 128 << 20}
"""Bytes of a sparse image that its mkfs takes."""


def alone() -> None:
    """Move this process into a mount namespace of its own, for good. Needs CAP_SYS_ADMIN."""
    libc.unshare(libc.CLONE_NEWNS)
    libc.mount("none", "/", "", libc.MS_REC | libc.MS_PRIVATE)


def made(kind: str, room: int = 0) -> Path:
    """A folder on a new file system of that kind, in this process's own namespace, for good.

    ``tmpfs``, ``tmpfs-huge`` (huge=always), ``ramfs``, ``overlay`` (over a tmpfs), or one that
    lives on a loop device: ``ext4``, ``xfs``, ``btrfs``, of ``room`` bytes more than its mkfs
    wants. OSError where it cannot be had.
    """
    alone()
    # Anything mounted over /mnt is seen by nobody else, and goes with this process.
    point = "/mnt"
    libc.mount("tmpfs", point, "tmpfs")
    target = Path(point, kind)
    target.mkdir()
    if kind == "overlay":
        for name in ("lower", "upper", "work"):
            Path(point, name).mkdir()
        options = f"lowerdir={point}/lower,upperdir={point}/upper,workdir={point}/work"
        libc.mount("overlay", str(target), "overlay", 0, options)
    elif kind in _LARGEST:
        _loop(kind, target, room)
    elif kind == "tmpfs-huge":
        libc.mount("tmpfs", str(target), "tmpfs", 0, "huge=always")
    else:
        libc.mount(kind, str(target), kind)
    return target


def _loop(kind: str, target: Path, room: int) -> None:
    fd, path = tempfile.mkstemp(prefix="memlock-", dir=_room())
    try:
        os.ftruncate(fd, _LARGEST[kind] + room)
        _run(f"mkfs.{kind}", "-q", path)
        _run("mount", "-o", "loop", "-t", kind, path, str(target))
    finally:
        os.close(fd)
        os.unlink(path)  # the loop device holds it


def _room() -> str:
    from helpers import memory

    folder = memory.file_dir or tempfile.gettempdir()
    return folder if os.access(folder, os.W_OK) else "/var/tmp"


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise OSError(2, f"no {command[0]} on this machine") from None
    if done.returncode:
        words = (done.stderr or done.stdout).strip().splitlines()
        raise OSError(5, f"{' '.join(command)}: {words[-1] if words else done.returncode}")


def filesystem(directory: Path | str) -> str:
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
    magic = libc.statfs_type(str(directory))
    return _MAGIC.get(magic, f"file system {magic:#x}")


# include/uapi/linux/magic.h, statfs(2). One driver serves ext2, ext3 and ext4.
_MAGIC = {
    0xEF53: "ext4", 0x58465342: "xfs", 0x9123683E: "btrfs", 0xF2F52010: "f2fs",
    0x01021994: "tmpfs", 0x858458F6: "ramfs", 0x794C7630: "overlay", 0x01021997: "9p",
    0x6969: "nfs", 0x65735546: "fuse", 0x2FC12FC1: "zfs", 0xCA451A4E: "bcachefs",
    0x73717368: "squashfs", 0xE0F5E1E2: "erofs", 0x9FA0: "proc", 0x62656572: "sysfs",
}  # fmt: skip
