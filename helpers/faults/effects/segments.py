# SPDX-License-Identifier: MIT
"""Effects on what is told of SysV segments: /proc/sysvipc/shm and shmctl(2)."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable

from helpers.faults.call import Call, Effect, ReadFilter
from helpers.faults.effects.conditions import EffectSteps
from helpers.syscalls import PAGE

_STATS = (2, 13, 15)  # IPC_STAT, SHM_STAT, SHM_STAT_ANY
_INFO = 14  # SHM_INFO
_MODE = 20  # offset of shm_perm.mode
_LOCKED = 0o2000

RowChange = Callable[[dict[str, int]], int]


def show_column(title: str, change: RowChange) -> Effect:
    """A column of /proc/sysvipc/shm is another: a function of the row."""

    def effect(call: Call) -> EffectSteps:
        yield
        head, newline, rest = call.data.partition(b"\n")
        titles = head.decode().split()
        if title not in titles:  # the end of the file
            return
        lines = [_changed(line, titles, title, change) for line in rest.split(b"\n")]
        call.write(call.args[1], head + newline + b"\n".join(lines))

    return ReadFilter(re.compile("/proc/sysvipc/shm"), effect)


def _changed(line: bytes, titles: list[str], title: str, change: RowChange) -> bytes:
    fields = list(re.finditer(rb" *\d+", line))
    if len(fields) != len(titles):
        return line
    row = {t: int(f[0], 8 if t == "perms" else 10) for t, f in zip(titles, fields)}
    place = fields[titles.index(title)]
    new = format(change(row), "o" if title == "perms" else "d").rjust(place.end() - place.start())
    return line[: place.start()] + new.encode() + line[place.end() :]


def lock_hidden(row: dict[str, int]) -> int:
    """The mode without SHM_LOCKED."""
    return row["perms"] & ~_LOCKED


def in_pages(row: dict[str, int]) -> int:
    """The size rounded up to pages."""
    return -(-row["size"] // PAGE) * PAGE


def rss_and_swap(row: dict[str, int]) -> int:
    """What is in memory and what is in swap."""
    return row["rss"] + row["swap"]


def one_of_several_less(row: dict[str, int]) -> int:
    """An attachment of several is left out."""
    return row["nattch"] - (row["nattch"] > 1)


def stat_hides_lock(call: Call) -> EffectSteps:
    """shmctl does not show SHM_LOCKED."""
    result = yield
    if result >= 0 and call.args[1] & 0xFF in _STATS:
        at = call.args[2] + _MODE
        (mode,) = struct.unpack("=I", call.memory(at, 4))
        call.write(at, struct.pack("=I", mode & ~_LOCKED))


def info_rss_is_total(call: Call) -> EffectSteps:
    """SHM_INFO gives what is allocated as what is in memory."""
    result = yield
    if result >= 0 and call.args[1] & 0xFF == _INFO:
        size = struct.calcsize("@l")
        total = call.memory(call.args[2] + size, size)
        call.write(call.args[2] + 2 * size, total)
