# SPDX-License-Identifier: MIT
"""Hooks of ``--inject-fault NAME``, ``--list-faults`` and ``--fault-matrix``."""

from __future__ import annotations

import argparse
import json
import time
import zlib
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from helpers.faults import catalogue, client
from helpers.faults.fault import NONE, UnknownFault
from helpers.pytest_plugin import case_process, exclusive
from helpers.pytest_plugin.marks import mark_texts
from helpers.report import detection_matrix, result
from helpers.report.tool import complain
from helpers.syscalls import ptrace

SHORTEST, TIMES = 1.5, 3
"""A case under a fault may take so many seconds and so many times what it took under supervision
without a fault: who hangs has detected it."""
ENOUGH = 0.8
"""Seconds of a case under faults. After that, once it was seen to fail, it meets those alone that
are expected to break a case of its file: a tenth of the cases would take half of all the time."""


service_key = pytest.StashKey[client.SupervisorClient]()
acted_key = pytest.StashKey[dict[str, int]]()
problems_key = pytest.StashKey[list[str]]()
faults_key = pytest.StashKey[list[str]]()
detects_key = pytest.StashKey[dict[Path, set[str]]]()
matrix_key = pytest.StashKey[detection_matrix.Matrix]()
data_key = pytest.StashKey[dict[str, Any]]()


RENAMED = {
    "--fault": "--inject-fault", "--faults": "--list-faults", "--fault-seconds": "--fault-budget",
}  # fmt: skip
"""Options by the names that they had → have."""


class _Renamed(argparse.Action):
    """An option that has another name now."""

    def __init__(self, *args: Any, new: str, **more: Any) -> None:
        super().__init__(*args, **more)
        self.new = new

    def __call__(self, *args: Any, **more: Any) -> None:
        raise pytest.UsageError(f"memlock-tests: {self.option_strings[0]} is {self.new} now")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("memlock-tests")
    group.addoption(
        "--inject-fault",
        metavar="NAME",
        help="inject this fault into the system calls of every case (none: supervise, change "
        "nothing)",
    )
    for old, new in RENAMED.items():
        group.addoption(old, nargs="?", action=_Renamed, new=new, help=argparse.SUPPRESS)
    group.addoption("--list-faults", action="store_true", help="list the faults and leave")
    group.addoption(
        "--fault-matrix",
        metavar="DIR",
        help="run each case under every fault that can reach it (with --inject-fault NAME,…: "
        "under these) and write who detected it",
    )
    group.addoption(
        "--fault-budget",
        type=float,
        default=ENOUGH,
        metavar="N",
        help="of --fault-matrix: a case that was seen to fail and has had so many seconds meets "
        f"only the faults that its file says it detects (default {ENOUGH:g})",
    )


def pytest_cmdline_main(config: pytest.Config) -> int | None:
    if not config.getoption("--list-faults"):
        return None
    print(catalogue.listing())
    return 0


def pytest_configure(config: pytest.Config) -> None:
    name, folder = config.getoption("--inject-fault"), config.getoption("--fault-matrix")
    if not name and not folder:
        return
    try:
        if not config.getoption("forked", False):
            raise ptrace.TracingUnavailable("faults reach forked cases only: pass --forked")
        names = name.split(",") if name and folder else [name] if name else list(catalogue.FAULTS)
        for one in names:
            if catalogue.get_fault(one) is None and folder:
                raise ptrace.TracingUnavailable("none is no fault that a case could notice")
        if not hasattr(config, "workerinput"):
            client.probe()
            if folder:
                Path(folder).mkdir(parents=True, exist_ok=True)
    except (ptrace.TracingUnavailable, UnknownFault, OSError) as error:
        option = "--fault-matrix" if folder else "--inject-fault"
        raise pytest.UsageError(f"memlock-tests: {option}: {error}") from None
    config.stash[acted_key], config.stash[problems_key] = {}, []
    config.stash[faults_key] = names
    if folder:
        rows = {
            f.name: {"chapter": f.chapter, "statement": f.statement, "noticed_by": [],
                     "mechanism": f.mechanism}
            for f in map(catalogue.FAULTS.__getitem__, names)
        }  # fmt: skip
        config.stash[matrix_key] = detection_matrix.Matrix(rows, len(rows) == len(catalogue.FAULTS))


def _service(config: pytest.Config) -> client.SupervisorClient:
    if service_key not in config.stash:
        config.stash[service_key] = client.SupervisorClient()
    return config.stash[service_key]


T = TypeVar("T")


def _under(
    item: pytest.Item, faults: list[str], dry: bool, run: Callable[[pytest.Item], T]
) -> tuple[T, client.SupervisedFork]:
    observer = client.SupervisedFork(_service(item.config), faults, dry)
    item.config.stash[case_process.observer_key] = observer
    try:
        # A turn for each fault: an exclusive case elsewhere waits for one, not for all.
        with exclusive.slot(item):
            return run(item), observer
    finally:
        del item.config.stash[case_process.observer_key]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    config = item.config
    name, folder = config.getoption("--inject-fault"), config.getoption("--fault-matrix")
    if not (name or folder) or item.get_closest_marker("skip"):
        return None
    hook = item.ihook
    hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    if folder:
        reports = _under_all(item)
    else:
        dry = name == NONE
        faults = list(catalogue.FAULTS) if dry else [name]
        reports, observer = _under(item, faults, dry, case_process.run_forked)
        told = 0 if dry else observer.acted.get(name, 0)
        for report in reports[-1:]:
            report.user_properties += [("fault", name), ("fault-acted", told)]
            report.user_properties += [("fault-problem", text) for text in observer.problems]
    for report in reports:
        hook.pytest_runtest_logreport(report=report)
    hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _under_all(item: pytest.Item) -> list[pytest.TestReport]:
    """The case with no fault, and under each fault that would have acted there."""
    begun = time.monotonic()
    reports, observer = _under(item, item.config.stash[faults_key], True, case_process.run_forked)
    cells: dict[str, str] = {}
    problems: list[str] = []
    if (
        detection_matrix.baseline(reports) == detection_matrix.PASSED
    ):  # else there is nothing a fault could break
        took = sum(r.duration for r in reports)
        deadline = SHORTEST + TIMES * took
        enough = item.config.getoption("--fault-budget")
        for fault in _in_order(observer.acted, item):
            late = time.monotonic() - begun > enough and not _expected(fault, item)
            if late and detection_matrix.DETECTED in cells.values():
                cells[fault] = detection_matrix.UNRUN
                continue
            seen, under = _under(
                item, [fault], False, lambda i: case_process.run_forked_outcome(i, deadline)
            )
            problems += under.problems
            # What went differently may have kept the fault from acting.
            cells[fault] = (
                detection_matrix.CELLS[seen] if under.acted else detection_matrix.NOT_REACHED
            )
    row = {"cells": cells, "problems": problems, "seconds": round(time.monotonic() - begun, 2)}
    reports[-1].user_properties.append((detection_matrix.PROPERTY, json.dumps(row)))
    return reports


def _in_order(faults: Iterable[str], item: pytest.Item) -> list[str]:
    """Those expected here, those of this chapter, then the others, each time from elsewhere."""
    chapter, found = item.path.parent.name, sorted(faults)
    start = zlib.crc32(item.nodeid.encode()) % max(1, len(found))
    return sorted(
        found[start:] + found[:start],
        key=lambda f: (not _expected(f, item), catalogue.FAULTS[f].chapter != chapter),
    )


def _expected(fault: str, item: pytest.Item) -> bool:
    """A case of this file has the mark ``detects`` for the fault."""
    found = item.config.stash.setdefault(detects_key, {})
    if item.path not in found:
        found[item.path] = {
            name for other in item.session.items if other.path == item.path
            for name in mark_texts(other, "detects")
        }  # fmt: skip
    return fault in found[item.path]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    observer = item.config.stash.get(case_process.observer_key, None)
    if observer is not None:
        observer.in_child()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _seen.append(report)


_seen: list[pytest.TestReport] = []


def _digest(config: pytest.Config) -> None:
    acted, problems = config.stash[acted_key], config.stash[problems_key]
    made = config.stash.get(matrix_key, None)
    outcomes: dict[str, list[pytest.TestReport]] = {}
    for report in _seen:
        outcomes.setdefault(report.nodeid, []).append(report)
        for name, value in report.user_properties:
            if name == "fault-acted":
                fault = config.getoption("--inject-fault")
                acted[fault] = acted.get(fault, 0) + int(str(value))
            elif name == "fault-problem":
                problems.append(f"{report.nodeid}: {value}")
    if made is not None:
        for node, reports in outcomes.items():
            made.add(node, reports)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    config = session.config
    if service_key in config.stash:
        config.stash[service_key].close()
        del config.stash[service_key]
    if acted_key not in config.stash or hasattr(config, "workerinput"):
        return
    _digest(config)
    if matrix_key in config.stash:
        data = config.stash[data_key] = config.stash[matrix_key].data()
        try:
            detection_matrix.write(data, Path(config.getoption("--fault-matrix")))
        except OSError as error:
            complain(f"--fault-matrix: {error.filename} cannot be written: {error.strerror}")
            session.exitstatus = pytest.ExitCode.USAGE_ERROR
        config.stash.setdefault(result.extra_key, {})["sensitivity"] = detection_matrix.packed(data)
        if session.exitstatus == 0 and not detection_matrix.count(data).whole:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(hookwrapper=True)
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> Generator[None]:
    yield
    if acted_key not in config.stash or (matrix_key in config.stash) != (data_key in config.stash):
        return
    name = config.getoption("--inject-fault")
    if matrix_key in config.stash:
        data: dict[str, Any] = config.stash[data_key]
        for line in detection_matrix.lines(data):
            terminalreporter.write_line(line)
    elif name == NONE:
        terminalreporter.write_line("fault none: every case was supervised, none was changed")
    else:
        told = config.stash[acted_key].get(name, 0)
        text = f"acted {told} times" if told else "never acted: no case made a call that it changes"
        terminalreporter.write_line(f"fault {name} ({catalogue.FAULTS[name].statement}): {text}")
    for line in config.stash[problems_key]:
        terminalreporter.write_line(f"the fault could not be told: {line}")
