# SPDX-License-Identifier: MIT
"""Records of changes: files in a folder of the run, read with distrust."""

from __future__ import annotations

import fcntl
import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NAME = "memlock-tests"
RUN_NAME = re.compile(rf"{NAME}-[0-9a-f]{{16}}")
FORMAT = 2
"""Goes up when records change their meaning; those of another format are passed over."""
LARGEST = 1 << 14
"""Bytes of the longest record."""
RELEASE_TIMEOUT = 10.0
"""Seconds to wait for something the kernel lets go of in its own time."""


def not_private(folder: Path) -> str:
    """Why this is not a folder that only this user can write; empty if it is one."""
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        return "is not a folder"
    if found.st_uid != os.geteuid():
        return f"belongs to user {found.st_uid}"
    return "can be written by others" if found.st_mode & 0o022 else ""


def start_time(pid: int) -> int:
    """Start time of a process in clock ticks since boot, to tell it from a later one of the same
    number (field 22 of /proc/PID/stat). Raises ProcessLookupError."""
    return int(_stat(pid)[19])


def _stat(pid: int) -> list[str]:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        raise ProcessLookupError(f"no process {pid}") from None
    return text.rpartition(")")[2].split()  # from field 3, the state, on


def is_running(pid: int, started: int) -> bool:
    """The process is that one, and has not ended (a zombie has)."""
    try:
        fields = _stat(pid)
    except ProcessLookupError:
        return False
    return fields[0] not in "ZX" and int(fields[19]) == started


def boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def present_value(path: str) -> str:
    """What a setting is now; of several words, the chosen one. Raises OSError."""
    text = Path(path).read_text().strip()
    return text[text.index("[") + 1 : text.index("]")] if "[" in text else text


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """One process of all runs at a time: what runs share is changed and put back in here."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


OWNER, LOCK = "owner.json", "cleanup.lock"


def printable_line(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)[:400]


def read_content(path: Path) -> bytes:
    """The bytes of a file of ours. Raises ValueError or OSError; never waits, whatever it is."""
    found = path.lstat()  # opening alone can hang (a FIFO) or set something off (a device)
    for wrong, why in (
        (not stat.S_ISREG(found.st_mode), "not a regular file"),
        (found.st_uid != os.geteuid(), f"not ours, but of user {found.st_uid}"),
        (found.st_mode & 0o022, "others can write it"),
        (found.st_nlink > 1, "it has several names"),
        (found.st_size > LARGEST, f"larger than {LARGEST} bytes"),
    ):
        if wrong:
            raise ValueError(f"{why}; left alone")
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb", buffering=0) as file:
        if not os.path.samestat(os.fstat(fd), found):
            raise ValueError("it changed while being read; left alone")
        return file.read(LARGEST)


def read_file(path: Path) -> dict[str, object]:
    """What a record says. Raises ValueError or OSError."""
    data = read_content(path)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError("not a record; left alone") from None
    if not isinstance(value, dict):
        raise ValueError("not a record; left alone")
    return value
