# SPDX-License-Identifier: MIT
"""Blocks of memory that can be taken away and given back (memory hot-remove).

Only blocks of ZONE_MOVABLE are touched: their memory is there to be taken away (boot parameter
``movablecore=``). Source: Documentation/admin-guide/mm/memory-hotplug.rst.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from helpers.machine.journal import ChangeJournal
from helpers.syscalls import PAGE

_FOLDER = Path("/sys/devices/system/memory")


def block_pages() -> int:
    """Pages in a block. OSError where the kernel has no memory hotplug."""
    return int((_FOLDER / "block_size_bytes").read_text(), 16) // PAGE


def movable_blocks() -> dict[int, Path]:
    """Number of each online block of ZONE_MOVABLE (first PFN / block_pages) → its folder."""
    found = {}
    for folder in _FOLDER.glob("memory[0-9]*"):
        try:
            zones = (folder / "valid_zones").read_text().split()
            online = (folder / "state").read_text().strip() == "online"
        except OSError:
            continue
        if online and zones == ["Movable"]:
            found[int(folder.name.removeprefix("memory"))] = folder
    return found


@contextmanager
def offlined(run: ChangeJournal, block: Path) -> Iterator[bool]:
    """The block is taken away for the block of code: whether the kernel could (False: busy)."""
    state = block / "state"
    with run.change("memory-block", path=str(state), inode=state.stat().st_ino):
        try:
            state.write_text("offline")
        except OSError as error:
            if error.errno not in {errno.EBUSY, errno.EAGAIN, errno.EINTR}:
                raise
            yield False
            return
        yield True
