# SPDX-License-Identifier: MIT
"""What a person reads: the header, and one screen at the end."""

from __future__ import annotations

import json
import os
import shlex
from collections import Counter
from collections.abc import Generator, Iterable, Sequence
from typing import Any

import pytest
from _pytest.junitxml import LogXML, xml_key

from helpers.machine import kernel_version
from helpers.observe import evidence, timeline
from helpers.pytest_plugin import signals
from helpers.report.verdicts import (
    PHASES,
    CaseResult,
    Verdict,
    add_report,
    missing,
    not_run,
    reason_of,
)

LISTENER = "memlock-listener"
behaviours_key = pytest.StashKey[dict[str, CaseResult]]()
COLUMNS = (
    Verdict.VERIFIED, Verdict.DEVIATES, Verdict.FAILED, Verdict.BROKEN, Verdict.INCONCLUSIVE,
    Verdict.NOT_VERIFIED, Verdict.NOT_RUN,
)  # fmt: skip
_ALWAYS = {Verdict.VERIFIED, Verdict.DEVIATES, Verdict.FAILED, Verdict.NOT_VERIFIED}


def runs_cases(config: pytest.Config) -> bool:
    """False where pytest is asked to collect or to set up only: nothing is verified by that."""
    return not (config.option.collectonly or config.option.setuponly)


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    config.stash[behaviours_key] = {}
    if hasattr(config, "workerinput"):
        return
    if runs_cases(config):
        config.pluginmanager.register(VerdictCollector(config), LISTENER)
    elif xml := config.stash.get(xml_key, None):
        # Its readers take a case without a failure for passed.
        config.pluginmanager.unregister(xml)
        del config.stash[xml_key]


class VerdictCollector:
    """Gathers the verdicts in the controlling process, and knows what has none."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.behaviours = config.stash[behaviours_key]
        self.collected: dict[str, CaseResult] = {}
        self.whole = True
        """Every module could be collected, and (at the end) every case has run."""
        self.why = ""
        self._ran = False
        self._unended: dict[str, pytest.TestReport] = {}

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.whole = False
            row = self.behaviours[report.nodeid] = not_run(report.nodeid)
            row.verdict, row.reason = Verdict.BROKEN, report.longreprtext

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            self.collected[item.nodeid] = not_run(item.nodeid, item.user_properties)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: Sequence[str]) -> None:
        for node in ids:
            self.collected.setdefault(node, not_run(node))

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self) -> None:
        self._ran = True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        add_report(self.behaviours, report)
        self._unended[report.nodeid] = report

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._unended.pop(nodeid, None)

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        self.why = str(excinfo.value)

    def pytest_internalerror(self) -> None:
        self.why = "internal error"

    @pytest.hookimpl(tryfirst=True)  # the reports of everybody else are made in this hook
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if not self._ran:
            return  # --fixtures, --cache-show: no case was to run
        names = " ".join(signals.received(self.config))
        why = str(names or self.why or session.shouldfail or session.shouldstop or "")
        why = why or "no report of it came back"
        rows: list[tuple[CaseResult, pytest.TestReport | None]] = []
        for node, report in self._unended.items():
            row = self.behaviours[node]
            if row.verdict not in {Verdict.FAILED, Verdict.BROKEN}:
                row.verdict = Verdict.NOT_RUN
                row.reason = reason_of(report) if report.when not in PHASES else why
                rows.append((row, report))
        for node, row in self.collected.items():
            if node not in self.behaviours:
                row.reason = why
                self.behaviours[node] = row
                rows.append((row, None))
        if not rows:
            return
        self.whole = False
        if session.exitstatus in {pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED}:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        if xml := self.config.stash.get(xml_key, None):
            xml.add_global_property("incomplete", missing(self.behaviours.values()))
            for row, last in rows:
                _tell_junit(xml, row, last)


def _tell_junit(xml: LogXML, row: CaseResult, last: pytest.TestReport | None) -> None:
    """An error in place of a case that was not run."""
    if last is not None and last.when not in PHASES:
        return  # xdist's report of the crash is one
    report = pytest.TestReport(
        nodeid=row.id, location=(row.id.partition("::")[0], None, row.id), keywords={},
        outcome="failed", longrepr=f"not run: {row.reason}", when="setup",
        user_properties=[("chapter", row.chapter), ("statement", row.statement)],
    )  # fmt: skip
    if (node := getattr(last, "node", None)) is not None:  # by this it finds what it has of it
        report.node = node  # type: ignore[attr-defined]
    xml.pytest_runtest_logreport(report)
    xml.finalize(report)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Generator[None, Any, None]:
    """A failure carries its statement, its kernel and the memory it was about."""
    outcome = yield
    report: pytest.TestReport = outcome.get_result()
    if report.when == "call":
        report.user_properties += [("series", json.dumps(taken)) for taken in timeline.drawn()]
    if not report.failed:
        return
    uname = os.uname()
    properties = dict(item.user_properties)
    report.sections.append(("Behaviour", str(properties.get("statement", ""))))
    report.sections.append(
        ("Kernel", f"{kernel_version.release()} {uname.version} {uname.machine}")
    )
    if "known" in properties:
        report.sections.append(("Known elsewhere", str(properties["known"])))
    if evidence.captured:
        report.sections.append(("Memory under test", "\n".join(evidence.captured)))
    if calls := evidence.call_lines():
        report.sections.append(("Calls that led here", "\n".join(calls[-16:])))
    report.sections.append(
        ("Run it again", f"pytest {shlex.quote(item.nodeid)} -v --share-process=never\n"
         "docs/debugging.md: what to look at, and what to send")
    )  # fmt: skip


def pytest_sessionfinish(session: pytest.Session) -> None:
    config = session.config
    if not config.getoption("--fail-on-deviation") or hasattr(config, "workerinput"):
        return
    seen = config.stash[behaviours_key].values()
    if session.exitstatus == 0 and any(b.verdict is Verdict.DEVIATES for b in seen):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    behaviours = list(config.stash[behaviours_key].values())
    if not behaviours:
        return
    write = terminalreporter.write_line
    terminalreporter.section(f"memory locking on Linux {kernel_version.release()}", "=")
    for line in table(behaviours):
        write(line)
    if lacking := missing(behaviours):
        write(f"incomplete: {lacking}")
    for title, lines in (
        ("deviates", deviating(behaviours)),
        ("fixed here", fixed_here(behaviours)),
        ("not verified", not_verified(behaviours)),
        ("not run", [f"{n}x {why}" for why, n in _grouped(behaviours, Verdict.NOT_RUN)]),
        ("failed", failures(behaviours)),
    ):
        if lines:
            write("")
            write(f"{title}:")
            for line in lines:
                write(f"  {line}")


def table(behaviours: Iterable[CaseResult]) -> list[str]:
    """A line a chapter, a column a verdict."""
    chapters: dict[str, Counter[Verdict]] = {}
    for b in behaviours:
        chapters.setdefault(b.chapter or "-", Counter())[b.verdict] += 1
    total: Counter[Verdict] = Counter()
    for counts in chapters.values():
        total += counts
    columns = [v for v in COLUMNS if v in _ALWAYS or total[v]]
    wide = max(len(c) for c in [*chapters, "chapter"])
    lines = [f"{'chapter':{wide}}" + "".join(f"  {v.value:>12}" for v in columns)]
    for name, counts in [*sorted(chapters.items()), ("total", total)]:
        lines.append(f"{name:{wide}}" + "".join(f"  {counts[v]:>12}" for v in columns))
    return lines


def _grouped(behaviours: Iterable[CaseResult], *verdicts: Verdict) -> list[tuple[str, int]]:
    return Counter(b.detail or b.reason for b in behaviours if b.verdict in verdicts).most_common()


def deviating(behaviours: Iterable[CaseResult]) -> list[str]:
    """A line a known deviation that this kernel shows."""
    return [f"{n}x {reason}" for reason, n in _grouped(behaviours, Verdict.DEVIATES)]


def fixed_here(behaviours: Iterable[CaseResult]) -> list[str]:
    """Known deviations whose range holds this kernel and that it does not show."""
    shown = (b for b in behaviours if b.verdict is Verdict.VERIFIED)
    return sorted({b.notes["mended"] for b in shown if "mended" in b.notes})


def not_verified(behaviours: Iterable[CaseResult]) -> list[str]:
    """A line a reason, with how many behaviours it left unverified."""
    behaviours = list(behaviours)
    lines = [f"{n}x {reason}" for reason, n in _grouped(behaviours, Verdict.NOT_VERIFIED)]
    lines += [
        f"{b.id}: inconclusive: {b.reason}" for b in behaviours if b.verdict is Verdict.INCONCLUSIVE
    ]
    return lines


def failures(behaviours: Iterable[CaseResult]) -> list[str]:
    """For each failure: where, the statement, and the first lines of what was seen."""
    lines = []
    for b in behaviours:
        if b.verdict in {Verdict.FAILED, Verdict.BROKEN}:
            kind = " (broken set-up)" if b.verdict is Verdict.BROKEN else ""
            lines.append(f"{b.id}{kind}")
            lines.append(f"    {b.statement or 'no statement'}")
            lines += [f"    | {text}" for text in b.reason.splitlines()[:4]]
    return lines
