# SPDX-License-Identifier: MIT
"""``--bisect``: what a guest came to as an exit code of git-bisect-run(1)."""

from __future__ import annotations

from pathlib import Path

from helpers.report.files import InvalidResult
from helpers.report.result import load
from helpers.report.verdicts import Verdict
from helpers.vm.guest_exit import BROKEN, Outcome

GOOD, BAD, SKIP = 0, 1, 125
END = 255
"""A command line that is wrong for every kernel: above 127 it ends the bisection."""
_WRONG = (Verdict.FAILED, Verdict.DEVIATES)


def judge(outcome: Outcome) -> tuple[int, str]:
    """The exit code, and why in a few words."""
    if outcome.code == BROKEN:
        return SKIP, outcome.verdict
    try:
        cases = list(load(outcome.folder or Path()).behaviours.values())
    except (InvalidResult, ModuleNotFoundError) as error:
        return SKIP, f"no result ({error})"
    wrong = [case for case in cases if case.verdict in _WRONG]
    if wrong:
        return BAD, f"{wrong[0].verdict.value}: {wrong[0].id}" + _more(len(wrong))
    unjudged = [case for case in cases if case.verdict is not Verdict.VERIFIED]
    if unjudged:
        first = unjudged[0]
        return SKIP, f"{first.verdict.value}: {first.id}" + _more(len(unjudged))
    return (GOOD, f"{len(cases)} verified") if cases else (SKIP, "no case was run")


def _more(count: int) -> str:
    return f", and {count - 1} more" if count > 1 else ""
