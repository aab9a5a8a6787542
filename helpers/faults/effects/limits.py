# SPDX-License-Identifier: MIT
"""Effects on RLIMIT_MEMLOCK and CAP_IPC_LOCK."""

from __future__ import annotations

import errno

from helpers import syscalls
from helpers.faults.call import Call, Effect, TraceeProcess
from helpers.faults.effects.conditions import CallPredicate, EffectSteps, over_limit
from helpers.faults.effects.requests import extent
from helpers.observe import status
from helpers.syscalls import PAGE


def lifted(when: CallPredicate, extra: int | None = None) -> Effect:
    """A call that the limit refuses is made after all.

    With ``extra``, only if the limit lacks no more than so many bytes; else up to the hard one.
    """

    def effect(call: Call) -> EffectSteps:
        soft, hard = call.limit
        if soft == -1 or call.capable or not when(call):
            return
        result = yield
        refused = result in (-errno.ENOMEM, -errno.EAGAIN, -errno.EPERM, -errno.ENOBUFS)
        if call.name == "brk":
            refused = result < call.args[0]
        wanted = hard if extra is None else soft + extra
        if not refused or wanted == soft or (hard != -1 and wanted > hard):
            return
        call.set_limit(wanted, hard)
        again = call.repeat()
        call.set_limit(soft, hard)
        if again >= 0:
            call.set_result(again)

    return effect


def lifted_unlocked(call: Call) -> EffectSteps:
    """A mapping under MCL_FUTURE that the limit forbids is made without its lock."""
    soft, hard = call.limit
    asked = call.args[3] & syscalls.MAP_LOCKED
    result = yield
    if result != -errno.EAGAIN or asked or call.capable or soft == hard:
        return
    call.set_limit(hard, hard)
    again = call.repeat()
    if again > 0:
        call.inject("munlock", again, call.args[1])
        call.set_result(again)
    call.set_limit(soft, hard)


def full_refused(name: str) -> Effect:
    """A lock that reaches the limit exactly is refused."""

    def effect(call: Call) -> EffectSteps:
        result = yield
        soft = call.limit[0]
        reached = (
            result >= 0 and soft > 0 and not call.capable and call.vmlck == soft // PAGE * PAGE
        )
        if reached and call.name == "mmap" and call.locked(*extent(call)):
            call.inject("munmap", *(result, call.args[1]))
            call.set_error(name)
        elif reached and call.name in ("mlock", "mlock2"):
            call.inject("munlock", *call.args[:2])
            call.set_error(name)
        elif reached and call.name == "mremap" and call.args[2] > call.args[1]:
            call.set_error(name)

    return effect


def relock_counted(call: Call) -> None:
    """Pages locked already count against the limit once more."""
    low, high = call.range
    soft = call.limit[0]
    bound = low and soft > 0 and not call.capable and not over_limit(call)
    if bound and call.vmlck + high - low > soft // PAGE * PAGE:
        call.fail("ENOMEM")


def counted_together(call: Call) -> None:
    """The limit holds for all of a family's address spaces together."""
    low, high = call.range
    soft = call.limit[0]
    if low and soft > 0 and not call.capable and not over_limit(call):
        spaces = {id(p.space): p for p in call.others()}
        total = sum(_vmlck(p) for p in spaces.values())
        if total > call.vmlck and total + high - low > soft // PAGE * PAGE:
            call.fail("ENOMEM")


def _vmlck(process: TraceeProcess) -> int:

    try:
        return status.vmlck_kb(process.pid) * 1024
    except (OSError, KeyError):
        return 0


def bound_capable(name: str, when: CallPredicate) -> Effect:
    """CAP_IPC_LOCK does not help beyond the limit."""

    def effect(call: Call) -> None:
        soft = call.limit[0]
        if soft != -1 and call.capable and when(call):
            call.fail(name)

    return effect


def refused_partly(call: Call) -> EffectSteps:
    """mlock over the limit locks as much as fits."""
    over = over_limit(call)
    low, high = call.range
    room = call.limit[0] // PAGE * PAGE - call.vmlck
    result = yield
    if over and result == -errno.ENOMEM and 0 < room < high - low:
        call.inject("mlock", low, room)


def limit_more(call: Call) -> EffectSteps:
    """A soft limit that is set comes out a page higher."""
    wants = call.args[1] == 8 and call.args[2]
    result = yield
    soft, hard = call.limit
    if wants and result == 0 and soft != -1 and (hard == -1 or soft + PAGE <= hard):
        call.set_limit(soft + PAGE, hard)


def limit_ignored(call: Call) -> None:
    """A soft limit that is set stays what it was."""
    if call.args[1] == 8 and call.args[2] and not call.args[3]:
        call.skip_with_result(0)


def grow_over_limit(call: Call) -> None:
    """Growth of a locked stack beyond the limit is let through."""
    soft, hard = call.limit
    if call.args[0] == 11 and soft != hard and soft != -1 and not call.notes.get("grown"):
        call.notes["grown"] = True
        call.set_limit(hard, hard)
        call.suppress_signal()
