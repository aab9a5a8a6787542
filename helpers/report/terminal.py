"""What a person reads: the header, and one screen at the end."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Generator, Iterable
from typing import Any

import pytest

from helpers import evidence, gating, kernel, libc, series
from helpers.report.verdicts import Behaviour, Verdict, gather

behaviours_key = pytest.StashKey[dict[str, Behaviour]]()
COLUMNS = (
    Verdict.VERIFIED, Verdict.DEVIATES, Verdict.FAILED, Verdict.BROKEN, Verdict.INCONCLUSIVE,
    Verdict.NOT_VERIFIED,
)  # fmt: skip
_ALWAYS = {Verdict.VERIFIED, Verdict.DEVIATES, Verdict.FAILED, Verdict.NOT_VERIFIED}


def pytest_configure(config: pytest.Config) -> None:
    config.stash[behaviours_key] = {}
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Listener(config), "memlock-listener")


class Listener:
    """Gathers the verdicts in the controlling process."""

    def __init__(self, config: pytest.Config) -> None:
        self.behaviours = config.stash[behaviours_key]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        gather(self.behaviours, report)


def pytest_report_header(config: pytest.Config) -> list[str]:
    return gating.describe_machine(gating.survey(config))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Generator[None, Any, None]:
    """A failure carries its statement, its kernel and the memory it was about."""
    outcome = yield
    report: pytest.TestReport = outcome.get_result()
    if report.when == "call":
        report.user_properties += [("series", json.dumps(taken)) for taken in series.taken()]
    if not report.failed:
        return
    uname = os.uname()
    properties = dict(item.user_properties)
    report.sections.append(("Behaviour", str(properties.get("statement", ""))))
    report.sections.append(("Kernel", f"{kernel.release()} {uname.version} {uname.machine}"))
    if "known" in properties:
        report.sections.append(("Known elsewhere", str(properties["known"])))
    if evidence.records:
        report.sections.append(("Memory under test", "\n".join(evidence.records)))
    if calls := libc.recent_calls():
        report.sections.append(("System calls made last", "\n".join(calls[-16:])))


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
    terminalreporter.section(f"memory locking on Linux {kernel.release()}", "=")
    for line in table(behaviours):
        write(line)
    for title, lines in (
        ("deviates", deviating(behaviours)),
        ("mended here", mended(behaviours)),
        ("not verified", not_verified(behaviours)),
        ("failed", failures(behaviours)),
    ):
        if lines:
            write("")
            write(f"{title}:")
            for line in lines:
                write(f"  {line}")


def table(behaviours: Iterable[Behaviour]) -> list[str]:
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


def _grouped(behaviours: Iterable[Behaviour], *verdicts: Verdict) -> list[tuple[str, int]]:
    return Counter(b.detail or b.reason for b in behaviours if b.verdict in verdicts).most_common()


def deviating(behaviours: Iterable[Behaviour]) -> list[str]:
    """A line a known deviation that this kernel shows."""
    return [f"{n}x {reason}" for reason, n in _grouped(behaviours, Verdict.DEVIATES)]


def mended(behaviours: Iterable[Behaviour]) -> list[str]:
    """Known deviations whose range holds this kernel and that it does not show."""
    shown = (b for b in behaviours if b.verdict is Verdict.VERIFIED)
    return sorted({b.notes["mended"] for b in shown if "mended" in b.notes})


def not_verified(behaviours: Iterable[Behaviour]) -> list[str]:
    """A line a reason, with how many behaviours it left unverified."""
    behaviours = list(behaviours)
    lines = [f"{n}x {reason}" for reason, n in _grouped(behaviours, Verdict.NOT_VERIFIED)]
    lines += [
        f"{b.id}: inconclusive: {b.reason}" for b in behaviours if b.verdict is Verdict.INCONCLUSIVE
    ]
    return lines


def failures(behaviours: Iterable[Behaviour]) -> list[str]:
    """For each failure: where, the statement, and the first lines of what was seen."""
    lines = []
    for b in behaviours:
        if b.verdict in {Verdict.FAILED, Verdict.BROKEN}:
            kind = " (broken set-up)" if b.verdict is Verdict.BROKEN else ""
            lines.append(f"{b.id}{kind}")
            lines.append(f"    {b.statement or 'no statement'}")
            lines += [f"    | {text}" for text in b.reason.splitlines()[:4]]
    return lines
