# SPDX-License-Identifier: MIT
"""Live progress: one line that is rewritten on a terminal, a plain line now and then elsewhere.

In place of pytest's letters, alone and under ``-n``; ``-v`` gives pytest's own lines back and
``-q`` is silent until the summary.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Generator, Sequence
from typing import Any

import pytest

from helpers.pytest_plugin import summary
from helpers.report.verdicts import Verdict

INTERVAL = 0.1
"""Seconds between two drawings of the line."""
FEW = 100
"""A run of fewer cases is over before a plain line would be of use."""


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    # A reporter of somebody else's (pytest-sugar) has its own idea of progress.
    if type(reporter).__module__ != "_pytest.terminal" or config.option.verbose > 0:
        return
    if not hasattr(config, "workerinput") and summary.runs_cases(config):
        config.pluginmanager.register(Progress(config, reporter), "memlock-progress")


class Progress:
    """Counts verdicts in the controlling process as they come in."""

    def __init__(self, config: pytest.Config, reporter: Any) -> None:
        self.behaviours = config.stash[summary.behaviours_key]
        self.reporter = reporter
        self.live = bool(reporter.isatty) and config.option.verbose == 0
        self.plain = not reporter.isatty and config.option.verbose == 0
        self.total = 0
        self.counts: Counter[Verdict] = Counter()
        self.begun = self.drawn = time.monotonic()
        self.told = 0
        self.running = True
        reporter.showfspath = False
        reporter._show_progress_info = False  # no public door; letters would have nothing beside

    @pytest.hookimpl(hookwrapper=True)
    def pytest_report_teststatus(self) -> Generator[None, Any, None]:
        outcome = yield
        status = outcome.get_result()
        if self.running and status and isinstance(status[1], str):
            outcome.force_result((status[0], "", ""))

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.total = len(session.items)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: Any, ids: Sequence[str]) -> None:
        self.total = len(ids)

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        behaviour = self.behaviours.get(nodeid)
        if behaviour is None:
            return
        self.counts[behaviour.verdict] += 1
        if behaviour.verdict in {Verdict.FAILED, Verdict.BROKEN}:
            self._say(f"{behaviour.verdict.value}: {nodeid}: {behaviour.statement}")
        done = self.counts.total()
        if self.live and (time.monotonic() - self.drawn >= INTERVAL or done == self.total):
            self.drawn = time.monotonic()
            self._draw(f"{self._line(done)} | {nodeid.partition('::')[0].removeprefix('tests/')}")
        elif self.plain and self.total >= FEW and done * 10 // self.total > self.told:
            self.told = done * 10 // self.total
            self._say(self._line(done))

    def _line(self, done: int) -> str:
        seconds = int(time.monotonic() - self.begun)
        verdicts = ", ".join(f"{n} {v.value}" for v in Verdict if (n := self.counts[v]))
        share = f"{done}/{self.total}" if self.total else str(done)
        return f"{share}  {seconds // 60}:{seconds % 60:02}  {verdicts}"

    def _draw(self, line: str) -> None:
        self.reporter.rewrite(line[: self.reporter._tw.fullwidth - 1], erase=True)

    def _say(self, line: str) -> None:
        if self.live:
            self._draw("")
            self.reporter.rewrite("")
        if self.live or self.plain:
            self.reporter.write_line(line)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        if self.live and self.running:
            self._draw("")
            self.reporter.rewrite("")
        self.running = False
