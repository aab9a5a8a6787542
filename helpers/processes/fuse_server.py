# SPDX-License-Identifier: MIT
"""A FUSE file system with one file, served by a process of ours.

Source: include/uapi/linux/fuse.h. The server decides what the kernel keeps of the file: it may keep
its cache when the file is opened again, and be told to drop it at any time.
"""

from __future__ import annotations

import errno
import os
import select
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from helpers import syscalls
from helpers.processes.child import die_with_parent
from helpers.syscalls import PAGE, scarcity

_LOOKUP, _FORGET, _GETATTR, _OPEN, _READ, _RELEASE = 1, 2, 3, 14, 15, 18
_FLUSH, _INIT, _INTERRUPT, _DESTROY, _BATCH_FORGET = 25, 26, 36, 38, 42
_NO_ANSWER = {_FORGET, _INTERRUPT, _BATCH_FORGET}
_KEEP_CACHE = 2
_INVAL_INODE = 2
_ROOT, _FILE = 1, 2
_LONGEST = 1 << 17


class FuseFile:
    """The mounted file. Page n holds byte n + ``shift`` (mod 256)."""

    def __init__(self, path: Path, commands: int, answers: int) -> None:
        self.path, self._commands, self._answers = path, commands, answers

    def _ask(self, command: bytes) -> None:
        os.write(self._commands, command)
        said = os.read(self._answers, 4)
        if len(said) < 4:
            raise OSError(errno.EPIPE, "the FUSE server has ended")
        if code := struct.unpack("=i", said)[0]:
            raise OSError(code, f"the FUSE server: {os.strerror(code)}")

    def set_shift(self, shift: int) -> None:
        """The file's contents are others from now on; the kernel is not told."""
        self._ask(bytes([ord("s"), shift]))

    def invalidate(self) -> None:
        """Have the kernel drop what it has cached of the file (FUSE_NOTIFY_INVAL_INODE)."""
        self._ask(b"i\0")


class _Server:
    def __init__(self, fd: int, pages: int, keep: bool) -> None:
        self.fd, self.size, self.keep, self.shift = fd, pages * PAGE, keep, 0

    def run(self, commands: int, answers: int) -> None:
        while True:
            ready, _, _ = select.select([self.fd, commands], [], [])
            if commands in ready:
                command = os.read(commands, 2)
                if not command:
                    return
                os.write(answers, struct.pack("=i", self._obey(command)))
            if self.fd in ready:
                try:
                    self._serve(os.read(self.fd, _LONGEST + PAGE))
                except OSError as error:
                    if error.errno == errno.ENODEV:
                        return  # unmounted
                    if error.errno not in {errno.EINTR, errno.EAGAIN, errno.ENOENT}:
                        raise

    def _obey(self, command: bytes) -> int:
        if command[:1] == b"s":
            self.shift = command[1]
            return 0
        message = struct.pack("=IiQQqq", 40, _INVAL_INODE, 0, _FILE, 0, 0)
        try:
            os.write(self.fd, message)
        except OSError as error:
            return error.errno or errno.EIO
        return 0

    def _serve(self, request: bytes) -> None:
        _, opcode, unique, node = struct.unpack_from("=IIQQ", request)
        if opcode in _NO_ANSWER:
            return
        code, body = self._answer(opcode, node, request[40:])
        os.write(self.fd, struct.pack("=IiQ", 16 + len(body), -code, unique) + body)

    def _answer(self, opcode: int, node: int, body: bytes) -> tuple[int, bytes]:
        if opcode == _INIT:
            _, minor, ahead, _ = struct.unpack_from("=IIII", body)
            kept = min(minor, 31)
            return 0, struct.pack(
                "=IIIIHHIIHHI28x", 7, kept, ahead, 0, 16, 12, _LONGEST, 1, 0, 0, 0
            )
        if opcode == _LOOKUP:
            if body.rstrip(b"\0") != b"file":
                return errno.ENOENT, b""
            return 0, struct.pack("=QQQQII", _FILE, 0, 3600, 3600, 0, 0) + self._attributes(_FILE)
        if opcode == _GETATTR:
            return 0, struct.pack("=QII", 3600, 0, 0) + self._attributes(node)
        if opcode == _OPEN:
            return 0, struct.pack("=QII", 0, _KEEP_CACHE if self.keep else 0, 0)
        if opcode == _READ:
            _, offset, size = struct.unpack_from("=QQI", body)
            end = min(offset + size, self.size)
            return 0, bytes((at // PAGE + self.shift) & 0xFF for at in range(offset, end))
        if opcode in {_RELEASE, _FLUSH, _DESTROY}:
            return 0, b""
        return errno.ENOSYS, b""

    def _attributes(self, node: int) -> bytes:
        mode, size = (0o100644, self.size) if node == _FILE else (0o40755, 0)
        times = (0,) * 3
        return struct.pack(
            "=6Q10I", node, size, size // 512, *times, *times, mode, 1, 0, 0, 0, PAGE, 0
        )


@contextmanager
def fuse_file(pages: int, keep_cache: bool) -> Iterator[FuseFile]:
    """A file of ``pages`` pages, mounted for this process alone (for good, in its own namespace).

    ``keep_cache``: another open(2) of it leaves the page cache as it is (FOPEN_KEEP_CACHE).
    OSError where FUSE cannot be had.
    """
    syscalls.unshare_mounts()
    point = "/mnt"
    syscalls.mount("tmpfs", point, "tmpfs")
    target = Path(point, "fuse")
    target.mkdir()
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    syscalls.mount("fuse", str(target), "fuse", 0, f"fd={fd},rootmode=40000,user_id=0,group_id=0")
    read_commands, commands = os.pipe()
    answers, write_answers = os.pipe()
    parent = os.getpid()
    pid = scarcity.fork()
    if pid == 0:
        try:
            die_with_parent(parent)
            os.close(commands)
            os.close(answers)
            _Server(fd, pages, keep_cache).run(read_commands, write_answers)
        finally:
            os._exit(0)
    os.close(read_commands)
    os.close(write_answers)
    os.close(fd)
    try:
        yield FuseFile(target / "file", commands, answers)
    finally:
        os.close(commands)
        os.close(answers)
        os.waitpid(pid, 0)
