# SPDX-License-Identifier: MIT
"""Every fault by name, declared by chapter: what the kernel does wrong, in one line.

Which case detects it is said at the case, by the mark ``detects``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from helpers.faults.call import Effect
from helpers.faults.catalogue import (
    accounting,
    calls,
    concurrency,
    fork,
    limits,
    memory_types,
    model,
    reclaim,
    residency,
    vmas,
)
from helpers.faults.effects import requests
from helpers.faults.fault import NONE, Fault, UnknownFault

CHAPTERS = {
    m.CHAPTER: m.FAULTS
    for m in (
        calls,
        accounting,
        vmas,
        residency,
        fork,
        limits,
        reclaim,
        memory_types,
        model,
        concurrency,
    )
}
FAULTS: dict[str, Fault] = {f.name: f for faults in CHAPTERS.values() for f in faults}

PROBE = "probe"
"""Of no case: the name under which the supervisor itself is tried."""


def get_fault(name: str) -> Fault | None:
    """The fault of that name; None for :data:`NONE`. Raises UnknownFault."""
    if name == NONE:
        return None
    if name not in FAULTS:
        near = difflib.get_close_matches(name, [NONE, *FAULTS], 3, 0.4)
        hint = f"nearest: {', '.join(near)}" if near else "--list-faults lists them"
        raise UnknownFault(f"unknown fault {name!r}; {hint}")
    return FAULTS[name]


def effects_by_call(names: Iterable[str]) -> dict[str, list[tuple[str, Effect]]]:
    """What the supervisor goes by: each call with the faults that act on it."""
    found: dict[str, list[tuple[str, Effect]]] = {}
    for name in names:
        effects = (
            {"munlockall": requests.fail_with("ENOTTY")} if name == PROBE else FAULTS[name].effects
        )
        for call, effect in effects.items():
            found.setdefault(call, []).append((name, effect))
    return found


def listing() -> str:
    """Every fault, a line each, by chapter."""
    lines = []
    width = max(map(len, FAULTS))
    for chapter in CHAPTERS:
        lines.append(f"{chapter}:")
        lines += [
            f"  {f.name:{width}}  {f.statement}" for f in FAULTS.values() if f.chapter == chapter
        ]
    return "\n".join(lines)
