# SPDX-License-Identifier: MIT
"""Verdicts: what a run found out about each behaviour, gathered from pytest's reports."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import PurePath
from typing import Any

import pytest

from helpers.requirements.inconclusive import INCONCLUSIVE_PREFIX


class Verdict(StrEnum):
    """What a run says of one behaviour."""

    VERIFIED = "verified"
    DEVIATES = "deviates"
    FAILED = "failed"
    NOT_VERIFIED = "not verified"
    INCONCLUSIVE = "inconclusive"
    BROKEN = "broken set-up"
    NOT_RUN = "not run"


PHASES = ("setup", "call", "teardown")
# A later phase may only make a verdict worse.
_RANK = [
    Verdict.NOT_RUN, Verdict.VERIFIED, Verdict.DEVIATES, Verdict.NOT_VERIFIED,
    Verdict.INCONCLUSIVE, Verdict.BROKEN, Verdict.FAILED,
]  # fmt: skip


@dataclass
class CaseResult:
    """One case: its pytest node id, statement and verdict. ``duration`` is seconds."""

    id: str
    chapter: str = ""
    statement: str = ""
    source: str = ""
    claims: str = ""
    verdict: Verdict = Verdict.VERIFIED
    reason: str = ""
    duration: float = 0.0
    detail: str = ""
    notes: dict[str, str] = field(default_factory=dict)
    evidence: list[tuple[str, str]] = field(default_factory=list)
    series: list[dict[str, Any]] = field(default_factory=list)
    subject: str = ""
    """What its module is about."""
    line: int = 0
    """Of the case in its file, from 1; 0: unknown."""


def not_run(node: str, properties: Iterable[tuple[str, object]] = ()) -> CaseResult:
    """A collected case of which nothing is known yet but what its mark and docstring say."""
    told = dict(properties)
    chapter = str(told.get("chapter") or PurePath(node.partition("::")[0]).parent.name)
    statement, source, claim = (str(told.get(key, "")) for key in ("statement", "source", "claim"))
    return CaseResult(
        node, chapter, statement, source, claim, verdict=Verdict.NOT_RUN,
        subject=str(told.get("subject", "")),
    )  # fmt: skip


def missing(behaviours: Iterable[CaseResult]) -> str:
    """``N of M cases did not run``; empty if all did."""
    verdicts = [b.verdict for b in behaviours]
    number = verdicts.count(Verdict.NOT_RUN)
    return f"{number} of {len(verdicts)} cases did not run" if number else ""


def reason_of(report: pytest.TestReport) -> str:
    """What a report says in words: the skip reason, or the failure's message."""
    if hasattr(report, "wasxfail"):
        return str(report.wasxfail).removeprefix("reason: ")
    longrepr: Any = report.longrepr
    if isinstance(longrepr, tuple):
        return str(longrepr[2]).removeprefix("Skipped: ")
    crash = getattr(longrepr, "reprcrash", None)
    return str(crash.message if crash is not None else longrepr or "")


def verdict_of(report: pytest.TestReport) -> tuple[Verdict, str] | None:
    """Verdict and reason of one phase's report; None for a phase that merely went well."""
    if report.when not in PHASES:
        return None  # xdist's word on a case whose worker is gone: no report of its own
    if report.passed:
        return (Verdict.VERIFIED, "") if report.when == "call" else None
    reason = reason_of(report)
    if report.skipped:
        if hasattr(report, "wasxfail"):
            return Verdict.DEVIATES, reason
        if reason.startswith(INCONCLUSIVE_PREFIX):
            return Verdict.INCONCLUSIVE, reason.removeprefix(INCONCLUSIVE_PREFIX)
        return Verdict.NOT_VERIFIED, reason
    # --require turns a skip into a failure of the case, though it is raised in set-up.
    broken = report.when != "call" and not reason.startswith("--require ")
    return (Verdict.BROKEN if broken else Verdict.FAILED), reason


def add_report(behaviours: dict[str, CaseResult], report: pytest.TestReport) -> None:
    """Add one report to what is known so far."""
    properties = dict(report.user_properties)
    found = behaviours.get(report.nodeid)
    if found is None:
        found = behaviours[report.nodeid] = not_run(report.nodeid, report.user_properties)
    found.duration += report.duration
    line = report.location[1]
    found.line = 0 if line is None else line + 1
    found.notes |= {k: str(properties[k]) for k in ("mended", "known") if k in properties}
    judged = verdict_of(report)
    if judged and _RANK.index(judged[0]) >= _RANK.index(found.verdict):
        found.verdict, found.reason = judged
        if found.verdict is Verdict.NOT_VERIFIED and "missing" in properties:
            found.reason, found.detail = str(properties["missing"]), found.reason
    if report.failed:
        found.evidence += [(t, x) for t, x in report.sections if t not in {"Behaviour"}]
        found.evidence.append((f"Report ({report.when})", report.longreprtext))
    found.series += [json.loads(str(v)) for k, v in report.user_properties if k == "series"]
