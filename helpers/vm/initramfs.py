# SPDX-License-Identifier: MIT
"""Archives as the kernel unpacks them at boot (driver-api/early-userspace/buffer-format.rst)."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import IO


class Cpio:
    """Writes a "newc" archive, in which everything is owned by root whoever owns it here."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._inode = 0
        self._made: set[str] = set()

    def __enter__(self) -> Cpio:
        return self

    def __exit__(self, *_: object) -> None:
        self._member("TRAILER!!!", 0, b"")
        self._stream.write(b"\0" * (-self._stream.tell() % 512))

    def _member(
        self, name: str, mode: int, data: bytes, mtime: int = 0, device: tuple[int, int] = (0, 0)
    ) -> None:
        self._inode += 1
        raw = name.encode() + b"\0"
        fields = (
            self._inode, mode, 0, 0, 1, mtime, len(data), 0, 0, device[0], device[1], len(raw), 0,
        )  # fmt: skip
        head = b"070701" + b"".join(b"%08X" % value for value in fields) + raw
        self._stream.write(head + b"\0" * (-len(head) % 4) + data + b"\0" * (-len(data) % 4))

    def folder(self, name: str, mode: int = 0o755) -> None:
        """Add a folder, and those above it."""
        name = name.strip("/")
        if name and name not in self._made:
            self.folder(os.path.dirname(name))
            self._made.add(name)
            self._member(name, stat.S_IFDIR | mode, b"")

    def file(self, name: str, data: bytes, mode: int = 0o644, mtime: int = 0) -> None:
        """Add a regular file."""
        self.folder(os.path.dirname(name))
        self._member(name, stat.S_IFREG | mode, data, mtime)

    def link(self, name: str, target: str) -> None:
        """Add a symbolic link."""
        self.folder(os.path.dirname(name))
        self._member(name, stat.S_IFLNK | 0o777, target.encode())

    def device(self, name: str, major: int, minor: int) -> None:
        """Add a character device."""
        self.folder(os.path.dirname(name))
        self._member(name, stat.S_IFCHR | 0o600, b"", device=(major, minor))

    def copy(self, path: Path, name: str) -> None:
        """Add a file or link as it is in the file system; other kinds are left out."""
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            self.link(name, os.readlink(path))
        elif stat.S_ISREG(status.st_mode):
            mode = 0o755 if status.st_mode & 0o111 else 0o644
            self.file(name, path.read_bytes(), mode, int(status.st_mtime))
