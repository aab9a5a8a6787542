# SPDX-License-Identifier: MIT
"""A range of whole pages."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field

from helpers import syscalls
from helpers.syscalls import PAGE


@dataclass(frozen=True)
class Region:
    """A range of whole pages in this process. ``addr`` and ``size`` are bytes."""

    addr: int
    size: int
    kind: str = "private"
    fd: int = field(default=-1, compare=False)

    @property
    def pages(self) -> int:
        """Length in pages."""
        return self.size // PAGE

    @property
    def kb(self) -> int:
        """Length in kB, as /proc counts."""
        return self.size // 1024

    @property
    def end(self) -> int:
        """First byte behind the range."""
        return self.addr + self.size

    def at(self, page: int) -> int:
        """Address of page ``page`` (0 is the first; may point behind the end)."""
        return self.addr + page * PAGE

    def sub(self, first: int, pages: int) -> Region:
        """The part of ``pages`` pages from page ``first`` on."""
        return Region(self.at(first), pages * PAGE, self.kind, self.fd)

    def write(self, byte: int = 0x5A) -> None:
        """Write every byte of the range."""
        syscalls.memset(self.addr, byte, self.size)

    def touch(self, byte: int = 0xA5) -> None:
        """Write the first byte of every page."""
        for addr in range(self.addr, self.end, PAGE):
            ctypes.memset(addr, byte, 1)

    def read(self) -> bytes:
        """Every byte of the range (reading faults in what is absent)."""
        return syscalls.load(self.addr, self.size)

    def first_bytes(self) -> bytes:
        """The first byte of every page."""
        return b"".join(ctypes.string_at(a, 1) for a in range(self.addr, self.end, PAGE))
