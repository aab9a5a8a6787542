# SPDX-License-Identifier: MIT
"""Effects on pages that wait in a CPU's batch, or in that of a CPU which the process has left."""

from __future__ import annotations

import re
from array import array

from helpers import syscalls
from helpers.faults.call import Call, Effect, ReadFilter
from helpers.faults.effects.accounting import renumber
from helpers.faults.effects.conditions import EffectSteps
from helpers.faults.effects.requests import extent
from helpers.observe import page_flags
from helpers.syscalls import PAGE, PAGE_KB

_BATCH = 7


def remember_move(call: Call) -> EffectSteps:
    """The process has gone to another CPU."""
    result = yield
    if result >= 0:
        call.notes["moved"] = True


def _has_moved(call: Call) -> bool:
    return bool(call.notes.pop("moved", False))


def after_move(effect: Effect) -> Effect:
    """The effect on the first such call on the new CPU."""

    def first(call: Call) -> EffectSteps | None:
        return effect(call) if _has_moved(call) else None

    return first


def leave_waiting(call: Call) -> EffectSteps:
    """The last pages of a lock wait in the batch until the next lock."""
    waiting: set[int] = call.case.setdefault("waiting", set())
    waiting.clear()
    locks = call.name != "mmap" or bool(call.args[3] & syscalls.MAP_LOCKED)
    result = yield
    if result >= 0 and locks:
        low, high = extent(call)
        if low < high and call.vmas(low, high):
            numbers = call.frames(max(low, high - _BATCH * PAGE), high)
            if numbers and call.record():
                waiting.update(numbers)


def leak_count(call: Call) -> EffectSteps | None:
    """What a process unlocks on another CPU stays in the machine's counter."""
    if not _has_moved(call):
        return None
    return _leaking(call)


def _leaking(call: Call) -> EffectSteps:
    low, high = call.range if call.name in ("munlock", "munmap") else (0, 1 << 56)
    had = sum(end - start for start, end, _ in call.locked(low, high))
    result = yield
    if result == 0:
        _leak(call, had)


def leak_at_exit(call: Call) -> None:
    """What a process has locked when it ends stays in the machine's counter."""
    if call.tid == call.pid:
        _leak(call, sum(end - start for start, end, _ in call.locked()))


def _leak(call: Call, size: int) -> None:
    if size and call.record():
        call.case["leaked"] = call.case.get("leaked", 0) + size // PAGE


def _show(call: Call) -> EffectSteps:
    yield
    leaked = int(call.case.get("leaked", 0)) * PAGE_KB
    if leaked:
        pattern = rb"(Mlocked:)( +\d+)(?= kB)"
        call.write(call.args[1], renumber(call.data, pattern, lambda kb: kb + leaked))


show_leaked = ReadFilter(re.compile("/proc/meminfo"), _show)
"""Mlocked with what has leaked (meminfo has room for more digits, vmstat has not)."""


def waiting_not_unevictable(call: Call, first: int, words: array[int]) -> array[int]:
    """Pages that wait are not on the unevictable list yet."""
    for number in call.case.get("waiting", ()):
        if first <= number < first + len(words):
            words[number - first] &= ~page_flags.UNEVICTABLE
    return words
