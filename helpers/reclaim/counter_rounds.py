# SPDX-License-Identifier: MIT
"""What an act does to the machine's counters of locked pages, told from what neighbours do."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable

from helpers.observe import lru_batches, mlock_counters
from helpers.requirements.inconclusive import inconclusive


def _ways(
    take: Callable[[], object], give: Callable[[], object], rounds: int
) -> tuple[list[dict[str, int]], list[dict[str, int]]]:
    seen = [mlock_counters.read()]
    for _ in range(rounds):
        for act in (take, give):
            act()
            lru_batches.mlock_drain_local()
            seen.append(mlock_counters.read())
    ways = [{k: b[k] - a[k] for k in a} for a, b in itertools.pairwise(seen)]
    return ways[0::2], ways[1::2]


def _median(values: list[int], name: str, most: float) -> float:
    # A kernel that counts wrongly does so in every round; a neighbour's burst does not.
    low, middle, high = statistics.quantiles(values, n=4)
    if high - low > most:
        inconclusive(f"neighbours moved {name} by {high - low:.0f} pages between rounds")
    return middle


def alternate(
    take: Callable[[], object], give: Callable[[], object], pages: int, rounds: int = 15
) -> tuple[dict[str, float], dict[str, float]]:
    """Median effect of ``take()`` on levels and on events, with what neighbours do taken out.

    Each round compares the counter's way over ``take`` with its way over ``give``, which
    cancels what others add at a steady rate; the median leaves out the rounds they disturbed,
    and where they disturbed more than a quarter of ``pages``, the case is inconclusive.
    A level moves by +N and -N, half the difference being N; an event by +N in one of them,
    so both halves are given for it.
    """
    taking, giving = _ways(take, give, rounds)
    levels, events = {}, {}
    for name in taking[0]:
        middle = _median([t[name] - g[name] for t, g in zip(taking, giving)], name, pages // 4)
        if name in mlock_counters.EVENTS:
            events[name] = middle
        else:
            levels[name] = middle / 2
    return levels, events


def left_behind(
    take: Callable[[], object], give: Callable[[], object], pages: int, rounds: int = 7
) -> tuple[dict[str, float], dict[str, float]]:
    """Of each level: the median effect of ``take()``, and what ``give()`` leaves of it."""
    taking, giving = _ways(take, give, rounds)
    names = [name for name in taking[0] if name not in mlock_counters.EVENTS]
    moved = {name: _median([t[name] for t in taking], name, pages // 4) for name in names}
    left = {
        name: _median([t[name] + g[name] for t, g in zip(taking, giving)], name, pages // 4)
        for name in names
    }
    return moved, left
