# SPDX-License-Identifier: MIT
"""What declarations of faults share: groups of calls, and effects for each of a group."""

from __future__ import annotations

from helpers.faults.call import Effect
from helpers.faults.effects import accounting, lifetime

LOCKS = ("mlock", "mlock2")
FORKS = ("clone", "clone3", "fork")
RECLAIM_CALLS = ("write", "madvise", "process_madvise")
"""What a case drives reclaim with."""


def both_locks(effect: Effect) -> dict[str, Effect]:
    """The effect on mlock and mlock2."""
    return dict.fromkeys(LOCKS, effect)


def on_reads(effect: Effect) -> dict[str, Effect]:
    """The effect on what is read from a file."""
    return dict.fromkeys(("read", "pread64"), effect)


def knowing_future(*others: tuple[str, Effect]) -> dict[str, Effect]:
    """Effects that need to know whether MCL_FUTURE is on."""
    return {"mlockall": lifetime.follow_future, "munlockall": lifetime.follow_future} | dict(others)


def miscounting(call: str, size: object) -> dict[str, Effect]:
    """VmLck is wrong after the call, by ``size`` (:func:`accounting.miscounts`)."""
    return {
        call: accounting.miscounts(size),  # type: ignore[arg-type]
        **on_reads(accounting.show_miscount),
    }


def on_reclaim(effect: Effect) -> dict[str, Effect]:
    """The effect on each call that drives reclaim."""
    return dict.fromkeys(RECLAIM_CALLS, effect)
