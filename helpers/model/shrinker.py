# SPDX-License-Identifier: MIT
"""Shortens a script that diverges."""

from __future__ import annotations

from collections.abc import Sequence

from helpers.model import lockstep
from helpers.model.lockstep import Divergence
from helpers.model.script import Call


def shrink(found: Divergence) -> Divergence:
    """The shortest script near it that still diverges: parts are left out while that holds."""
    best = found
    size = max(1, len(best.calls) // 2)
    while size:
        at = 0
        while at < len(best.calls):
            shorter = best.calls[:at] + best.calls[at + size :]
            again = lockstep.diverges(shorter) if halves(shorter) else None
            if again is not None and len(again.calls) < len(best.calls):
                best = again
            else:
                at += size
        size //= 2
    return best


def halves(calls: Sequence[Call]) -> bool:
    names = [c.name for c in calls if c.name in {"fork", "exit"}]
    return all(name == ("fork", "exit")[n % 2] for n, name in enumerate(names))
