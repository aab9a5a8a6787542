# SPDX-License-Identifier: MIT
"""What /proc says of a process after a call."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

from helpers import syscalls
from helpers.observe import page_flags, pagemap
from helpers.syscalls import PAGE

_VMA = re.compile(
    rb"^([0-9a-f]+)-([0-9a-f]+) (....) ([0-9a-f]+) \S+ (\d+)[^\n]*\n(?:[^V\n].*\n)*?VmFlags: (.*)",
    re.MULTILINE,
)
_ADVISED = {b"dc": "dc", b"wf": "wf"}


@dataclass
class Observation:
    """What /proc says of the process after a call; pages by the model's numbers."""

    vmlck: int
    size: int
    pages: dict[int, tuple[str, str, tuple[str, ...], int | None]]
    boundaries: dict[int, bool]
    """First page of each VMA → its VmFlags are those of the VMA before it."""
    present: set[int]
    swapped: set[int]
    of_file: set[int]
    """Present pages that are the file's, or shared anonymous: not a copy of the process's own."""
    fixed_locks: set[str]
    special_locks: set[str]
    marks: dict[int, bool]
    """Page → PG_mlocked, of present anonymous pages; empty where page flags are not readable."""
    contents: dict[int, int]


def _whole(fd: int) -> bytes:
    os.lseek(fd, 0, os.SEEK_SET)
    chunks = []
    while chunk := os.read(fd, 1 << 16):
        chunks.append(chunk)
    return b"".join(chunks)


def _kb(text: bytes, name: bytes) -> int:
    at = text.index(name) + len(name)
    return int(text[at : text.index(b"kB", at)]) // syscalls.PAGE_KB


def _lock(words: list[bytes]) -> str:
    if b"lo" in words:
        return "lo lf" if b"lf" in words or b"??" in words else "lo"
    return "lf" if b"lf" in words else ""


def _is_special(words: list[bytes]) -> bool:
    return any(word in words for word in (b"io", b"pf", b"de", b"mm"))


_known: dict[str, bool] = {}


def marks_readable() -> bool:
    """Page flags of other processes can be read here (CAP_SYS_ADMIN)."""
    try:
        with _page() as number:
            return bool(number) and bool(page_flags.kpageflags([number]))
    except OSError:
        return False


@contextlib.contextmanager
def _page() -> Iterator[int]:
    """PFN of a page of our own, 0 where it is hidden."""
    addr = syscalls.mmap(0, PAGE)
    syscalls.memset(addr, 1, 1)
    try:
        yield pagemap.pfns(addr, 1)[0]
    finally:
        syscalls.munmap(addr, PAGE)
