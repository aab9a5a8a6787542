# SPDX-License-Identifier: MIT
"""How long to wait for somebody: one multiplier for every deadline, and none for who is at work."""

from __future__ import annotations

import math
import os
import select
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

VARIABLE = "MEMLOCK_TESTS_TIMEOUT_MULTIPLIER"
"""Environment variable with the multiplier; ``--timeout-multiplier`` sets it."""
LONGEST = 5
"""A process at work is killed after so many times its deadline."""


def multiplier(text: str) -> float:
    """The number, if it is finite and above 0. Raises ValueError with the whole sentence."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1e6:
        raise ValueError(f"{text!r} is not a number above 0 (and at most 1000000), say 4")
    return value


def scaled(seconds: float) -> float:
    """Seconds to wait here for what takes less than ``seconds`` on an ordinary machine."""
    return seconds * multiplier(os.environ.get(VARIABLE, "1"))


def until(seconds: float) -> float:
    """The time (time.monotonic()) that is :func:`scaled` seconds away."""
    return time.monotonic() + scaled(seconds)


class Deadline:
    """Time that process ``pid`` may spend doing nothing, in seconds that are already scaled.

    While it, or a process below it or in its group, runs or waits for a CPU, no time is counted:
    on a loaded machine it is late and not hung. Who does that for :data:`LONGEST` times as long
    has passed it too. ``idle_only=False`` counts every second.
    """

    def __init__(self, pid: int, seconds: float, *, idle_only: bool = True) -> None:
        self.seconds = seconds
        self._pid = pid
        self._end = time.monotonic() + seconds * (LONGEST if idle_only else 1)
        self._idle_only = idle_only
        self._left = seconds
        self._looked = time.monotonic()
        # What it has done before is not looked at now: that would cost every wait some /proc.
        self._done = None if idle_only else 0.0

    def wait(self, descriptors: Sequence[int]) -> list[int]:
        """Those that can be read, as soon as one can; an empty list once the deadline passed."""
        while True:
            now = time.monotonic()
            left = min(self._looked + self._left, self._end) - now
            ready, _, _ = select.select(descriptors, [], [], max(0.0, left))
            if ready:
                return ready
            now = time.monotonic()
            if not self._idle_only or now >= self._end:
                return []
            done, spent = at_work(self._pid), now - self._looked
            before = max(0.0, done - spent) if self._done is None else self._done
            self._left -= max(0.0, spent - (done - before))
            self._looked, self._done = now, done
            if self._left <= self.seconds / 20:
                return []


def at_work(pid: int) -> float:
    """Seconds that a process, those below it and those in its group ran or waited for a CPU."""
    total = 0.0
    for process in _family(pid):
        try:
            total += sum(process.cpu_times()[:4])
            for path in Path(f"/proc/{process.pid}/task").glob("*/schedstat"):
                total += int(path.read_text().split()[1]) / 1e9
        except (OSError, IndexError, ValueError, psutil.Error):
            continue  # it has just ended, or the kernel keeps no such account
    return total


def _family(pid: int) -> list[psutil.Process]:
    try:
        first = psutil.Process(pid)
        found = {p.pid: p for p in [first, *first.children(recursive=True)]}
        for other in psutil.process_iter():
            if other.pid not in found and os.getpgid(other.pid) == pid:
                found[other.pid] = other
    except (OSError, psutil.Error):
        return []
    return list(found.values())
