# SPDX-License-Identifier: MIT
"""Effects on calls that fail: what should be as it was is not."""

from __future__ import annotations

import errno
from collections.abc import Callable

from helpers import syscalls
from helpers.faults.call import Call, Effect
from helpers.faults.effects.conditions import CallPredicate, EffectSteps, has_hole
from helpers.syscalls import PAGE


def overflows(call: Call) -> bool:
    """The end of the range is behind that of every address."""
    return call.args[0] + call.args[1] > syscalls.ULONG_MAX


def locked_hole(call: Call) -> bool:
    """The range has a page that is not mapped, and something is locked."""
    return call.vmlck > 0 and has_hole(call)


def empty(call: Call) -> bool:
    """The range has no byte."""
    return call.args[1] == 0


def placed(call: Call) -> bool:
    """An mmap at a fixed place."""
    return bool(call.args[3] & syscalls.MAP_FIXED)


def without_hole(call: Call) -> bool:
    """The range is mapped."""
    return bool(call.range[0]) and not has_hole(call)


def in_huge_pages(call: Call) -> bool:
    """The range begins in a mapping of huge pages."""
    low = call.args[0]
    return any("ht" in v.flags for v in call.flagged(low, low + 1))


def _asked(call: Call) -> tuple[int, int]:
    """Its range; of one that is nonsense the first page."""
    low, high = call.range
    return (low, high) if low else (call.args[0] & -PAGE, (call.args[0] & -PAGE) + PAGE)


def _always(call: Call) -> bool:
    return True


def unlocks(call: Call) -> EffectSteps:
    """Refused, it unlocks its range."""
    result = yield
    if result < 0:
        for start, end, _ in call.locked(*_asked(call)):
            call.inject("munlock", start, end - start)


def drops(*names: str, when: CallPredicate = _always) -> Effect:
    """Refused with one of these errors, it drops the pages of what is locked in its range."""

    def effect(call: Call) -> EffectSteps:
        result = yield
        if result < 0 and any(map(call.failed, names)) and when(call):
            for start, end, _ in call.locked(*_asked(call)):
                call.inject("madvise", start, end - start, syscalls.MADV_DONTNEED_LOCKED)

    return effect


def miscounts(size: Callable[[Call], int], *names: str, when: CallPredicate = _always) -> Effect:
    """Refused with one of these errors (any, if none is named), it changes VmLck."""

    def effect(call: Call) -> EffectSteps:
        result = yield
        if result < 0 and (not names or any(map(call.failed, names))) and when(call):
            call.skew_vmlck(size(call))

    return effect


def one_page(call: Call) -> int:
    """A page."""
    return PAGE


def growth(call: Call) -> int:
    """What mremap was to grow by."""
    return max(0, call.args[2] - call.args[1])


def unmaps(kept: bool) -> Effect:
    """A refused MAP_FIXED has unmapped what was there. ``kept``: VmLck counts it still."""

    def effect(call: Call) -> EffectSteps:
        parts = call.locked_bytes(*_asked(call)) if placed(call) else 0
        result = yield
        low, high = call.range
        if result < 0 and placed(call) and low:
            call.inject("munmap", low, high - low)
            if kept:
                call.skew_vmlck(parts)

    return effect


def target_unmapped(call: Call) -> EffectSteps:
    """A mremap that its arguments forbid has unmapped its target."""
    result = yield
    target, size = call.args[4] & -PAGE, call.args[2] & -PAGE
    if call.failed("EINVAL") and result and target and 0 < size < 1 << 30:
        call.inject("munmap", target, size)


def protects_beyond(call: Call) -> EffectSteps:
    """mprotect goes on behind a hole."""
    low, high = call.range
    rest = call.vmas(call.hole(), high) if locked_hole(call) else []
    yield
    if call.failed("ENOMEM"):
        for vma in rest:
            start, end = max(low, vma.start), min(high, vma.end)
            call.inject("mprotect", start, end - start, call.args[2])


def hole_unlocks(call: Call) -> EffectSteps:
    """mprotect over a hole unlocks what it has changed."""
    low, _ = call.range
    parts = call.locked(low, call.hole()) if locked_hole(call) else []
    yield
    if call.failed("ENOMEM"):
        for start, end, _ in parts:
            call.inject("munlock", start, end - start)


def ends_at_hole(call: Call) -> EffectSteps:
    """madvise ends at a hole."""
    low, hole = call.range[0], call.hole()
    if hole:
        call.set_argument(1, hole - low)
    result = yield
    if hole and result == 0:
        call.set_error("ENOMEM")


def dropped_first(call: Call) -> EffectSteps:
    """MADV_DONTNEED drops what is locked, and is refused then."""
    acts = call.args[2] == syscalls.MADV_DONTNEED
    yield
    if acts and call.failed("EINVAL"):
        for start, end, _ in call.locked(*call.range):
            call.inject("madvise", start, end - start, syscalls.MADV_DONTNEED_LOCKED)


def hides_lock(call: Call) -> EffectSteps:
    """msync over a hole does not say that memory behind it is locked."""
    hole = has_hole(call)
    result = yield
    if hole and result == -errno.EBUSY:
        call.set_error("ENOMEM")
