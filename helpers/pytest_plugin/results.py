# SPDX-License-Identifier: MIT
"""``--report DIR``: result.json as the run goes, KTAP and tmt's results.yaml at its end.

The files of a run that began no case are not touched: what lies there is of another run. They get
their final form when nothing can change the exit code any more, since it stands in one of them.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Generator, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from helpers.machine import kernel_version
from helpers.pytest_plugin import machine_setup, requirements, signals, summary
from helpers.report import github, ktap, result, tmt
from helpers.report.verdicts import CaseResult

FORMS: dict[str, Callable[[Iterable[CaseResult]], str]] = {
    "result.ktap": ktap.ktap,
    "results.yaml": tmt.tmt,
}
"""What is written at the end beside result.json."""
_RAN = {pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED}
_ROOM = 64 << 10
"""Bytes that a folder must have room for before a run begins."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("memlock-tests").addoption(
        "--report",
        metavar="DIR",
        help="write result.json, result.ktap and results.yaml (tmt) into this folder; in GitHub "
        "Actions also the job's summary and annotations",
    )


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    folder = config.getoption("--report")
    if not folder or hasattr(config, "workerinput"):
        return
    try:  # by doing: a folder may look writable and not be (proc, read-only mounts, a full disk)
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(_ROOM))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise pytest.UsageError(
            f"memlock-tests: --report {folder} cannot be written ({error.strerror}); "
            "name a folder that can"
        ) from None
    for name in (result.FILE, *FORMS):
        path = Path(folder, name)
        if path.exists() and not path.is_file():
            raise pytest.UsageError(f"memlock-tests: --report: {path} is no file; remove it")
    _join_for_workers(config)
    reports = config.stash[reports_key] = ResultPlugin(config, Path(folder).absolute())
    config.pluginmanager.register(reports, "memlock-reports")


def _join_for_workers(config: pytest.Config) -> None:
    """``--report DIR`` becomes ``--report=DIR``.

    xdist's workers read the command line before they know the option: its value, a folder that
    exists by now, would be a test path to them, and the root folder with it.
    """
    given = list(map(str, config.invocation_params.args))
    for at in reversed(range(len(given) - 1)):
        if given[at] == "--report":
            given[at : at + 2] = [f"--report={given[at + 1]}"]
    config.invocation_params = pytest.Config.InvocationParams(
        args=tuple(given),
        plugins=config.invocation_params.plugins,
        dir=config.invocation_params.dir,
    )


class ResultPlugin:
    """Writes the result of a run in the controlling process."""

    def __init__(self, config: pytest.Config, folder: Path) -> None:
        self.config, self.folder = config, folder
        self.session = self.began = False
        self.writer: result.ResultWriter | None = None

    @property
    def _listener(self) -> summary.VerdictCollector:
        found = self.config.pluginmanager.get_plugin(summary.LISTENER)
        assert isinstance(found, summary.VerdictCollector)
        return found

    def pytest_sessionstart(self) -> None:
        self.session = True

    def pytest_runtest_logstart(self) -> None:
        if not self.began and summary.runs_cases(self.config):
            self.began = True
            self.begin()

    def begin(self) -> None:
        """Replace what another run left; where that cannot be done, :meth:`finish` will say so."""
        with contextlib.suppress(OSError):
            self._writer()
            # Until the end nothing is known to have run.
            for name, form in FORMS.items():
                result.replace(self.folder / name, form(self._listener.collected.values()))

    def _writer(self) -> result.ResultWriter:
        if self.writer is None:
            found = requirements.facilities_here(self.config) | (
                machine_setup.setup_facilities(self.config)
                if machine_setup.reclaim_key in self.config.stash
                else {}
            )
            cases = len(self._listener.collected)
            self.writer = result.ResultWriter(self.folder, found.values(), cases)
        return self.writer

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        behaviour = self.config.stash[summary.behaviours_key].get(nodeid)
        if self.writer is not None and behaviour is not None:
            self.writer.add(behaviour)

    def finish(self, code: int, *, orderly: bool) -> int:
        """Write all there is to write: the exit code, which is not 0 if that failed."""
        path = self.folder / result.FILE
        if not self.began:
            if self.session:
                left = "is left as it was" if path.exists() else "is not written"
                _say(f"no case was run: {path} {left}")
            return code
        behaviours = list(self.config.stash[summary.behaviours_key].values())
        for name, form in FORMS.items():
            if not self._try(self.folder / name, partial(_form, form, behaviours)):
                code = code or pytest.ExitCode.TESTS_FAILED
        complete = (
            orderly and code in _RAN and self._listener.whole and not signals.received(self.config)
        )
        extra = self.config.stash.get(result.extra_key, {})
        if not self._try(
            path,
            lambda p: self._writer().finish(behaviours, code, complete=complete, extra=extra),
        ):
            code = code or pytest.ExitCode.TESTS_FAILED
        if github.is_there():
            title = f"Memory locking on Linux {kernel_version.release()}"
            if why := github.publish(behaviours, title, self.config.rootpath):
                _say(why)
        return code

    def _try(self, path: Path, write: Callable[[Path], None]) -> bool:
        try:
            write(path)
        except OSError as error:
            _say(f"{path} cannot be written ({error.strerror}); what it held last is left")
            return False
        return True


def _form(
    form: Callable[[Iterable[CaseResult]], str], behaviours: Iterable[CaseResult], path: Path
) -> None:
    result.replace(path, form(behaviours))


def _say(line: str) -> None:
    with contextlib.suppress(OSError):
        print(f"memlock-tests: --report: {line}", file=sys.stderr, flush=True)


reports_key = pytest.StashKey[ResultPlugin]()


@pytest.hookimpl(hookwrapper=True, tryfirst=True)  # around the signals, and the end of the session
def pytest_cmdline_main(config: pytest.Config) -> Generator[None, Any, None]:
    outcome = yield
    reports = config.stash.get(reports_key, None)
    if reports is None:
        return
    before = _code(outcome)
    capture: Any = config.pluginmanager.get_plugin("capturemanager")
    with capture.global_and_fixture_disabled() if capture else contextlib.nullcontext():
        after = reports.finish(before, orderly=outcome.excinfo is None)
    if after != before:
        outcome.force_result(after)


def _code(outcome: Any) -> int:
    """What the process will exit with, unless a result cannot be written."""
    if outcome.excinfo is None:
        try:
            sys.stdout.flush()
        except OSError:
            return int(outcome.get_result() or pytest.ExitCode.TESTS_FAILED)
        return int(outcome.get_result() or 0)
    error = outcome.excinfo[1]
    if isinstance(error, pytest.UsageError):
        return int(pytest.ExitCode.USAGE_ERROR)
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        return error.code
    return 1  # as Python itself exits on an exception
