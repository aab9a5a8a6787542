# SPDX-License-Identifier: MIT
"""A secret that exists nowhere but where a case puts it, and a look for it in the swap area.

The case holds the secret masked (every bit inverted) and unmasks it only to compare, so
that neither its own memory nor the interpreter's can bring the secret into swap.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from ctypes import c_ubyte

from helpers.machine import timeouts
from helpers.machine.records import RELEASE_TIMEOUT
from helpers.memory import Region
from helpers.reclaim import swap_area
from helpers.reclaim.cgroup import Cgroup
from helpers.syscalls import PAGE

LENGTH = 32


def new_secret_mask() -> bytes:
    """A new secret, inverted."""
    return os.urandom(LENGTH)


def reveal(mask: bytes) -> bytes:
    """The secret itself, as a new object in this process's memory."""
    return bytes(byte ^ 0xFF for byte in mask)


def plant(mask: bytes, region: Region, offset: int = PAGE // 2) -> None:
    """Write the secret into every page of the region, byte by byte: no copy is made elsewhere."""
    memory = (c_ubyte * region.size).from_address(region.addr)
    for page in range(0, region.size, PAGE):
        for index, byte in enumerate(mask):
            memory[page + offset + index] = byte ^ 0xFF


def occurrences(path: str, masks: Sequence[bytes]) -> list[int]:
    """How often each secret stands in the blocks of the swap area."""
    return swap_area.occurrences(path, [reveal(mask) for mask in masks])


def wait_written_back(group: Cgroup, path: str, masks: Sequence[bytes], least: int) -> list[int]:
    """As :func:`leaked`; looks again while the last secret, the control, is not all written.

    Swap-out returns before the blocks are written, which takes its time on a busy disk.
    """
    until = timeouts.until(RELEASE_TIMEOUT)
    while True:
        found = occurrences(path, masks)
        if found[-1] >= least or time.monotonic() > until:
            return found
        group.reclaim()
