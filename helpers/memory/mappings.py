# SPDX-License-Identifier: MIT
"""A mapping of a given kind, as a context manager.

:func:`mapping` reserves the range with an inaccessible page on each side, so that no
neighbour can merge with it and every edge is a known one. When an exception passes
through the block, the VMAs and page flags of the range are recorded (see
:mod:`helpers.observe.evidence`) before it is unmapped: by the time a report is made they are gone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from helpers import syscalls
from helpers.memory.files import memfd, scratch_file
from helpers.memory.kinds import MAPPING_KINDS
from helpers.memory.region import Region
from helpers.syscalls import PAGE

_next = 1 << 33 if syscalls.WORD_BITS == 64 else 0


def reserve(size: int) -> int:
    """An inaccessible mapping low in the address space, where the kernel has room for it.

    smaps is written in the order of addresses, at the cost of a page-table walk for each
    VMA: below the program and its libraries, a region is in the first lines. It is also far
    from where the kernel puts the interpreter's next buffer, which would fit in a hole that a
    case makes (with 64 KiB pages it would).
    """
    global _next
    addr = syscalls.mmap(_next, size, syscalls.PROT_NONE)
    if _next:
        _next += size + PAGE
    return addr


on_error: list[Callable[[int, int, str], None]] = []
"""Called with address, bytes and label of memory through whose block an exception passes."""


@contextmanager
def watched(addr: int, size: int, label: str) -> Iterator[None]:
    """Hand the range to :data:`on_error` if an exception passes through the block."""
    try:
        yield
    except Exception:
        for hook in on_error:
            hook(addr, size, label)
        raise


@contextmanager
def mapping(
    kind: str = "private",
    pages: int = 8,
    *,
    prot: int = syscalls.PROT_RW,
    flags: int = 0,
    directory: Path | str | None = None,
    fd: int | None = None,
    offset: int = 0,
) -> Iterator[Region]:
    """A fenced mapping of ``pages`` pages of one of :data:`KINDS`, untouched.

    ``flags`` are added to mmap's (MAP_LOCKED, MAP_POPULATE, …). A file kind makes its own
    file of that length, filled with pages 0, 1, 2 … of that byte, in ``directory``
    (default: :data:`file_dir`), unlinked at once; or maps ``fd`` from ``offset`` (bytes)
    when given. Raises ValueError on an unknown kind, OSError where the kernel refuses.
    """
    if kind not in MAPPING_KINDS:
        raise ValueError(f"unknown kind of memory {kind!r}; known: {', '.join(MAPPING_KINDS)}")
    size = pages * PAGE
    own_fd = -1
    if fd is None and kind.startswith("memfd"):
        own_fd = memfd(size)
    elif fd is None and kind.startswith("file"):
        own_fd = scratch_file(pages, directory)
    used = fd if fd is not None else own_fd
    how = syscalls.MAP_SHARED if kind.endswith("shared") else syscalls.MAP_PRIVATE
    if used < 0:
        how |= syscalls.MAP_ANONYMOUS
    base = reserve(size + 2 * PAGE)
    try:
        addr = syscalls.mmap(
            base + PAGE, size, prot, how | syscalls.MAP_FIXED | flags, used, offset
        )
        region = Region(addr, size, kind, used)
        with watched(region.addr, region.size, kind):
            yield region
    finally:
        syscalls.munmap(base, size + 2 * PAGE)
        if own_fd >= 0:
            os.close(own_fd)


@contextmanager
def adopt_mapping(addr: int, size: int) -> Iterator[Region]:
    """A mapping the case made itself (say by a bare mmap): watched, then unmapped."""
    region = Region(addr, size)
    try:
        with watched(addr, size, "mapping"):
            yield region
    finally:
        syscalls.munmap(addr, size)
