# SPDX-License-Identifier: MIT
"""File systems mounted for one process alone: gone with it, however it ends.

Each mount lies in a mount namespace of the case's own, loop devices clear themselves
(``LO_FLAGS_AUTOCLEAR``, mount(8) ``-o loop``), so there is nothing for the cleanup process.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

from helpers import syscalls
from helpers.syscalls import unshare_mounts

image_dir = ""
"""Folder for images of file systems; empty: the temporary folder."""
_LARGEST = {"ext4": 16 << 20, "xfs": 320 << 20, "btrfs": 128 << 20}
"""Bytes of a sparse image that its mkfs takes."""


def mount_new(kind: str, room: int = 0) -> Path:
    """A folder on a new file system of that kind, in this process's own namespace, for good.

    ``tmpfs``, ``tmpfs-huge`` (huge=always), ``ramfs``, ``overlay`` (over a tmpfs), or one that
    lives on a loop device: ``ext4``, ``xfs``, ``btrfs``, of ``room`` bytes more than its mkfs
    wants. OSError where it cannot be had.
    """
    unshare_mounts()
    # Anything mounted over /mnt is seen by nobody else, and goes with this process.
    point = "/mnt"
    syscalls.mount("tmpfs", point, "tmpfs")
    target = Path(point, kind)
    target.mkdir()
    if kind == "overlay":
        for name in ("lower", "upper", "work"):
            Path(point, name).mkdir()
        options = f"lowerdir={point}/lower,upperdir={point}/upper,workdir={point}/work"
        syscalls.mount("overlay", str(target), "overlay", 0, options)
    elif kind in _LARGEST:
        _loop(kind, target, room)
    elif kind == "tmpfs-huge":
        syscalls.mount("tmpfs", str(target), "tmpfs", 0, "huge=always")
    else:
        syscalls.mount(kind, str(target), kind)
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
    folder = image_dir or tempfile.gettempdir()
    return folder if os.access(folder, os.W_OK) else "/var/tmp"


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise OSError(2, f"no {command[0]} on this machine") from None
    if done.returncode:
        words = (done.stderr or done.stdout).strip().splitlines()
        raise OSError(5, f"{' '.join(command)}: {words[-1] if words else done.returncode}")
