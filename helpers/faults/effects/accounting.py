# SPDX-License-Identifier: MIT
"""Effects on VmLck, as it is shown and as it is kept."""

from __future__ import annotations

import re
from collections.abc import Callable

from helpers.faults.call import Call, Effect, ReadFilter
from helpers.faults.effects.conditions import EffectSteps, VmaPredicate, file
from helpers.faults.effects.requests import extent
from helpers.syscalls import PAGE


def renumber(data: bytes, pattern: bytes, change: Callable[[int], int]) -> bytes:
    def other(match: re.Match[bytes]) -> bytes:
        width = len(match[2])
        value = max(0, change(int(match[2])))
        return match[1] + str(value).rjust(width).encode()[-width:]

    return re.sub(pattern, other, data)


_VMLCK = rb"(VmLck:\t)( *\d+)(?= kB)"


def process_file(name: str) -> re.Pattern[str]:
    """/proc/PID/``name``, of any process or thread."""
    return re.compile(rf"/proc/\d+/(?:task/\d+/)?{name}")


def show_vmlck(change: Callable[[Call, int, int], int]) -> Effect:
    """VmLck in status is another: a function of the call, the process and its kB."""

    def effect(call: Call) -> EffectSteps:
        yield
        shown = call.shown
        call.write(call.args[1], renumber(call.data, _VMLCK, lambda kb: change(call, shown, kb)))

    return ReadFilter(process_file("status"), effect)


def _kb_of(which: VmaPredicate) -> Callable[[Call, int, int], int]:
    def change(call: Call, pid: int, kb: int) -> int:
        if not kb:
            return kb
        return kb - sum(v.kb for v in call.locked_of(pid) if which(v))

    return change


def leave_out(which: VmaPredicate) -> Effect:
    """VmLck leaves out VMAs like these."""
    return show_vmlck(_kb_of(which))


def _resident_kb(call: Call, pid: int, kb: int) -> int:
    rest = call.locked_of(pid)
    return kb - sum(v.kb - v.field_kb("Rss") for v in rest)


count_resident = show_vmlck(_resident_kb)
"""VmLck counts pages in memory in place of ranges."""


def _never_less(call: Call, pid: int, kb: int) -> int:
    process = call.known(pid)
    if process is None:
        return kb
    notes = call.notes_of(process)
    notes["most"] = max(kb, notes.get("most", 0))
    return int(notes["most"])


never_falls = show_vmlck(_never_less)
"""VmLck never falls."""


def _miscounted(call: Call, pid: int, kb: int) -> int:
    process = call.known(pid)
    return kb + (process.space.skew_vmlck // 1024 if process else 0)


show_miscount = show_vmlck(_miscounted)
"""VmLck with what faults have added."""


def one_page_less(call: Call, pid: int, kb: int) -> int:
    """A page is missing of whatever is locked."""
    return kb - PAGE // 1024 if kb else kb


def miscounts(size: Callable[[Call, int, int], int]) -> Effect:
    """VmLck is wrong after the call by ``size(call, locked bytes before, after)``."""

    def effect(call: Call) -> EffectSteps:
        low, high = _touched(call)
        before = call.locked_bytes(low, high)
        result = yield
        if call.name == "mremap":
            # Source and target, before and after, are judged by what was asked for.
            call.skew_vmlck(size(call, before if result > 0 else 0, 0) if result > 0 else 0)
        elif result >= 0:
            low, high = _touched(call)
            call.skew_vmlck(size(call, before, call.locked_bytes(low, high)))

    return effect


def _touched(call: Call) -> tuple[int, int]:
    if call.name == "mmap":
        return extent(call) if call.result else call.range
    return call.range


def growth(call: Call, before: int, after: int) -> int:
    """mremap: minus the growth of a locked mapping."""
    grown = call.args[2] - call.args[1]
    return -grown if before and grown > 0 and call.args[1] else 0


def shrinkage(call: Call, before: int, after: int) -> int:
    """mremap: what a locked mapping was shortened by."""
    cut = call.args[1] - call.args[2]
    return cut if before and cut > 0 else 0


def duplicate(call: Call, before: int, after: int) -> int:
    """mremap of length 0: minus the new mapping."""
    return -call.args[2] if not call.args[1] else 0


def kept(call: Call, before: int, after: int) -> int:
    """What the call took away."""
    return max(0, before - after)


def one_kept(call: Call, before: int, after: int) -> int:
    """One page of what the call took away, if it was several."""
    return PAGE if before - after >= 2 * PAGE else 0


def unadded(call: Call, before: int, after: int) -> int:
    """Minus what the call added."""
    return -max(0, after - before)


def one_unadded(call: Call, before: int, after: int) -> int:
    """Minus one page of what the call added, if it was several."""
    return -PAGE if after - before >= 2 * PAGE else 0


def again_added(call: Call, before: int, after: int) -> int:
    """What was locked before counts once more."""
    return before if after else 0


def by_thread(size: Callable[[Call, int, int], int]) -> Callable[[Call, int, int], int]:
    """The same, for threads but the first."""
    return lambda call, before, after: size(call, before, after) if call.tid != call.pid else 0


def cut_uncounted(call: Call) -> EffectSteps:
    """Cutting off a file uncounts a page of each who has it locked."""
    had = [p for p in call.others() if any(file(v) for v in call.locked_of(p.pid))]
    result = yield
    if result == 0:
        for process in had:
            if call.record():
                process.space.skew_vmlck -= PAGE


def heap_uncounted(call: Call) -> EffectSteps:
    """A heap that grows locked is not counted."""
    before = call.notes.get("brk", 0)
    result = yield
    if result > 0:
        call.notes["brk"] = result
        start, end = (-(-a // PAGE) * PAGE for a in (before, result))
        if before and start < end and call.locked(start, end):
            call.skew_vmlck(start - end)


def heap_kept(call: Call) -> EffectSteps:
    """A locked heap that shrinks keeps its count."""
    before = call.notes.get("brk", 0)
    asked = call.args[0]
    start, end = (-(-a // PAGE) * PAGE for a in (asked, before))
    had = call.locked_bytes(start, end) if asked and before and start < end else 0
    result = yield
    if result > 0:
        call.notes["brk"] = result
        if result == asked:
            call.skew_vmlck(had)


def attach_uncounted(call: Call) -> EffectSteps:
    """A segment attached under MCL_FUTURE is not counted."""
    result = yield
    if result > 0:
        call.skew_vmlck(-sum(v.size for _, _, v in call.locked(result, result + 1)))


def stack_uncounted(call: Call, pid: int, kb: int) -> int:
    """A locked stack counts a page less."""
    grows = [v for v in call.locked_of(pid) if "gd" in v.flags] if kb else []
    return kb - PAGE // 1024 if grows else kb
