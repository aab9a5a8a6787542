# SPDX-License-Identifier: MIT
"""Effects on counters of locked pages: what they keep of locks that have ended, or leave out."""

from __future__ import annotations

import re
from collections.abc import Callable

from helpers.faults.call import Call, Effect, ReadFilter
from helpers.faults.effects.conditions import EffectSteps, VmaPredicate
from helpers.syscalls import PAGE, PAGE_KB

MACHINE = (
    r"/proc/(vmstat|meminfo|zoneinfo)|/sys/devices/system/node/node\d+/(vmstat|meminfo)",
    rb"(?m)(^(?:Node \d+ +| +)?(?:nr_mlock|Mlocked:) *)(\d+)",
)
CGROUP = r"/sys/fs/cgroup/.*/memory.stat", rb"(?m)(^(?:total_)?unevictable )(\d+)"
EVERYWHERE = (
    f"{MACHINE[0]}|{CGROUP[0]}",
    rb"(?m)(^(?:Node \d+ +| +)?(?:nr_mlock|Mlocked:|(?:total_)?unevictable(?= )) *)(\d+)",
)
_UNITS = {b"Mlocked": PAGE_KB, b"nr_mlock": 1, b"unevictable": PAGE}


def _shows(place: tuple[str, bytes], pages: Callable[[Call], int]) -> Effect:
    """Counters show so many pages more; the text may grow as far as the reader has room."""
    pattern = re.compile(place[1])

    def effect(call: Call) -> EffectSteps:
        result = yield
        more = pages(call) if result > 0 else 0
        if not more:
            return

        def other(match: re.Match[bytes]) -> bytes:
            unit = next(size for name, size in _UNITS.items() if name in match[1])
            return match[1] + b"%d" % max(0, int(match[2]) + more * unit)

        new = pattern.sub(other, call.data)[: call.args[2]]
        call.write(call.args[1], new)
        call.set_result(len(new))

    return ReadFilter(re.compile(place[0]), effect)


def show_kept(place: tuple[str, bytes]) -> Effect:
    """Counters of a place show what has been kept."""
    return _shows(place, lambda call: int(call.case.get("kept", 0)))


def _of(call: Call, which: VmaPredicate) -> int:
    return sum(
        vma.size // PAGE for p in call.others() for vma in call.locked_of(p.pid) if which(vma)
    )


def leave_out(place: tuple[str, bytes], which: VmaPredicate) -> Effect:
    """Counters of a place leave out the locked VMAs like these."""
    return _shows(place, lambda call: -_of(call, which))


def _keep(call: Call, pages: int) -> None:
    if pages and call.record():
        call.case["kept"] = call.case.get("kept", 0) + pages


def keep_at_end(call: Call) -> None:
    """What a process has locked when it ends is kept."""
    if call.tid == call.pid:
        _keep(call, call.locked_bytes() // PAGE)


def keep_part(call: Call) -> EffectSteps:
    """Giving up a part of a locked mapping keeps the part's pages in the counters."""
    low, high = call.range
    if call.name == "mremap":
        low, high = call.args[0] + call.args[2], call.args[0] + call.args[1]
    found = call.locked(low, high) if 0 < low < high else []
    parts = sum(end - start for start, end, vma in found if end - start < vma.size)
    result = yield
    if result >= 0:
        _keep(call, parts // PAGE)


def keep_moved(call: Call) -> EffectSteps:
    """Pages of processes with locks that are moved to another node are kept where they were."""
    result = yield
    if result >= 0 and call.args[3] and any(call.locked_of(p.pid) for p in call.others()):
        _keep(call, call.args[1])


def count_unlockable(call: Call) -> EffectSteps:
    """A lock of memory that cannot be locked, or that is unevictable by birth, counts."""
    yield
    low, high = call.range
    vmas = call.flagged(low, high) if 0 < low < high else []
    pages = sum(
        (min(v.end, high) - max(v.start, low)) // PAGE
        for v in vmas
        if not v.locked or v.name.startswith("/secretmem")
    )
    if vmas and pages * PAGE == high - low and call.record():
        call.case["kept"], call.case["counted"] = pages, low


def uncount_unlockable(call: Call) -> EffectSteps:
    """munlock of it takes it back."""
    yield
    if call.range[0] == call.case.get("counted"):
        call.case["kept"] = 0


def _nodes_stuck(call: Call) -> EffectSteps:
    """unevictable of each node is what it was when first read."""
    result = yield
    if result > 0:
        first: dict[int, bytes] = call.case.setdefault(call.file, {})
        numbers = iter(range(1000))

        def other(match: re.Match[bytes]) -> bytes:
            return first.setdefault(next(numbers), match[0])

        new = re.sub(rb"(?m)^unevictable[ =].*$", other, call.data)[: call.args[2]]
        call.write(call.args[1], new)
        call.set_result(len(new))


nodes_stuck = ReadFilter(re.compile("/sys/fs/cgroup/.*/memory.numa_stat"), _nodes_stuck)
"""memory.numa_stat does not move."""
