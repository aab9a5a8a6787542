# SPDX-License-Identifier: MIT
"""Effects on what lasts: MCL_FUTURE, fork, exec, and the end of a process."""

from __future__ import annotations

from helpers import syscalls
from helpers.faults.call import Call, Effect
from helpers.faults.effects.conditions import EffectSteps, VmaPredicate, any_vma


def follow_future(call: Call) -> EffectSteps:
    """Remember MCL_FUTURE of an address space (for effects on what becomes of it)."""
    result = yield
    if result == 0:
        call.space.future = 0 if call.name == "munlockall" else call.args[0] & ~syscalls.MCL_CURRENT


def keep_future(call: Call) -> EffectSteps:
    """MCL_FUTURE outlasts the call that should end it."""
    before = call.space.future
    ends = call.name == "munlockall" or not call.args[0] & syscalls.MCL_FUTURE
    result = yield
    if result == 0 and not ends:
        call.space.future = call.args[0] & ~syscalls.MCL_CURRENT
    elif result == 0:
        call.space.future = 0
        if before & syscalls.MCL_FUTURE:
            call.inject("mlockall", before)
            call.space.future = before if call.wet else 0


def keep_onfault(call: Call) -> EffectSteps:
    """MCL_FUTURE stays on fault once it was."""
    if call.args[0] == syscalls.MCL_FUTURE and call.space.future & syscalls.MCL_ONFAULT:
        call.set_argument(0, syscalls.MCL_FUTURE | syscalls.MCL_ONFAULT)
    result = yield
    if result == 0:
        call.space.future = call.args[0] & ~syscalls.MCL_CURRENT


def cancel_future(call: Call) -> EffectSteps:
    """The call also ends MCL_FUTURE."""
    result = yield
    if result == 0:
        _cancel(call)


def inherit_future(call: Call) -> None:
    """A forked child, or an executed program, keeps MCL_FUTURE."""
    assert call.parent is not None
    future = call.parent.space.future
    if future & syscalls.MCL_FUTURE:
        call.inject("mlockall", future)
        call.space.future = future


def exec_keeps_future(call: Call) -> EffectSteps:
    """MCL_FUTURE outlasts execve(2)."""
    result = yield
    if result == 0 and call.before_exec and call.before_exec.future & syscalls.MCL_FUTURE:
        call.inject("mlockall", call.before_exec.future)


def exec_keeps_count(call: Call) -> EffectSteps:
    """VmLck outlasts execve(2)."""
    before = call.vmlck
    result = yield
    if result == 0:
        call.skew_vmlck(before)


def exec_raises_limit(call: Call) -> EffectSteps:
    """execve(2) raises the soft limit to the hard one."""
    result = yield
    soft, hard = call.limit
    if result == 0 and soft != hard:
        call.set_limit(hard, hard)


def _parents_locks(call: Call, which: VmaPredicate) -> list[tuple[int, int, bool]]:
    assert call.parent is not None
    return [(v.start, v.end, v.onfault) for v in call.locked_of(call.parent.pid) if which(v)]


def child_locked(which: VmaPredicate = any_vma, only: int | None = None) -> Effect:
    """A forked child has its parent's locks."""

    def effect(call: Call) -> None:
        for start, end, late in _parents_locks(call, which):
            call.inject("mlock2", start, end - start, int(late) if only is None else only)

    return effect


def child_counted(call: Call) -> None:
    """A forked child starts with its parent's VmLck."""
    assert call.parent is not None
    call.skew_vmlck(sum(e - s for s, e, _ in _parents_locks(call, any_vma)))


def child_copied(which: VmaPredicate) -> Effect:
    """A forked child gets its copies at once."""

    def effect(call: Call) -> None:
        for start, end, _ in _parents_locks(call, which):
            call.inject("madvise", start, end - start, syscalls.MADV_POPULATE_WRITE)

    return effect


def _child_of(call: Call) -> bool:
    """The call has forked a process with memory of its own."""
    child = call.known(call.result) if call.result > 0 else None
    return child is not None and child.parent is call.process and not child.vforked


def parent_unlocked(call: Call) -> EffectSteps:
    """fork takes the parent's locks away."""
    yield
    if _child_of(call):
        for start, end, _ in call.locked():
            call.inject("munlock", start, end - start)


def parent_uncounted(call: Call) -> EffectSteps:
    """fork sets the parent's VmLck to 0."""
    yield
    if _child_of(call) and call.locked():
        call.skew_vmlck(-call.vmlck)


def failed_unlocks(call: Call) -> EffectSteps:
    """A failed execve drops the locks."""
    result = yield
    if result < 0:
        for start, end, _ in call.locked():
            call.inject("munlock", start, end - start)


def failed_cancels(call: Call) -> EffectSteps:
    """A failed execve cancels MCL_FUTURE."""
    result = yield
    if result < 0:
        _cancel(call)


def refused_cancels(call: Call) -> EffectSteps:
    """A refused mlockall cancels MCL_FUTURE."""
    result = yield
    if result == 0:
        call.space.future = call.args[0] & ~syscalls.MCL_CURRENT
    else:
        _cancel(call)


def _cancel(call: Call) -> None:
    if call.space.future & syscalls.MCL_FUTURE:
        kept = [(s, e, v.onfault) for s, e, v in call.locked()]
        call.inject("munlockall")
        for start, end, late in kept:
            call.inject("mlock2", start, end - start, int(late))
        call.space.future = 0


def end_unlocks(call: Call) -> EffectSteps:
    """When a vfork child has ended, its parent's locks are gone."""
    result = yield
    if result > 0 and call.was_vforked(result):
        for start, end, _ in call.locked():
            call.inject("munlock", start, end - start)
