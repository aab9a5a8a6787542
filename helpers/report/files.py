# SPDX-License-Identifier: MIT
"""Files that others name to our tools: read and replaced as a whole, never waited for."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO

LARGEST = 1 << 32
"""Bytes of a file that are read; a million behaviours are some 300 MB."""


class InvalidResult(ValueError):
    """A file that cannot be used; the text is one line for the person who named it."""


def inside(path: Path, name: str, remedy: str) -> Path:
    """The file that ``path`` names: itself, or the one of that name in that folder.

    Raises :class:`Unreadable`.
    """
    try:
        if not path.is_dir():
            if not path.exists():
                raise InvalidResult(f"{path}: no such file")
            return path
        if not (path / name).exists():
            raise InvalidResult(f"{path}: no {name} in this folder; make one by {remedy}")
    except OSError as error:
        raise InvalidResult(f"{path}: cannot be read: {error.strerror}") from None
    return path / name


def read_bytes(path: Path) -> bytes:
    """The bytes of a regular file; never waits for a FIFO or a device. Raises Unreadable."""
    try:
        if path.exists() and not path.is_file():
            raise InvalidResult(f"{path}: no regular file")
        # In case it becomes a FIFO in between.
        with open(path, "rb", opener=_at_once) as file:
            if os.fstat(file.fileno()).st_size > LARGEST:
                raise InvalidResult(f"{path}: larger than {LARGEST >> 30} GiB")
            return file.read() or b""
    except OSError as error:
        raise InvalidResult(f"{path}: cannot be read: {error.strerror}") from None
    except MemoryError:
        raise InvalidResult(f"{path}: larger than the memory there is") from None


@contextlib.contextmanager
def replaced_file(path: Path) -> Iterator[IO[str]]:
    """A text file that replaces ``path`` as a whole at the block's end; else the old one stays.

    What is no regular file (a device, a FIFO that is read) is written to. Raises OSError with
    ``path`` as its filename.
    """
    try:
        if path.exists() and not path.is_file():
            with open(path, "w", encoding="utf-8", opener=_at_once) as file:
                yield file
            return
        target = path.resolve()
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        with open(temporary, "x", encoding="utf-8") as file:
            try:
                yield file
                file.flush()
                os.fsync(file.fileno())
                if target.exists():
                    os.fchmod(file.fileno(), stat.S_IMODE(target.stat().st_mode))
                os.replace(temporary, target)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def _at_once(name: str, flags: int) -> int:
    """Open, but do not wait for the other end of a FIFO."""
    descriptor = os.open(name, flags | os.O_NONBLOCK, 0o666)
    if flags & os.O_WRONLY:
        os.set_blocking(descriptor, True)
    return descriptor
