# SPDX-License-Identifier: MIT
"""Consecutive items of one module or function in one forked child (mark ``share_process``).

Groups are formed from the items as they come: nothing is reordered, nothing is looked up further
ahead than the next item. The child serves the next item only after one that passed, or was
inconclusive, and left nothing behind (:mod:`helpers.pytest_plugin.leaks`); after anything else the
next one gets a fresh child, so that a failure never reaches its neighbours. A module that carries
the mark shares one among all its items but those marked ``own_process``; else a function does.
"""

from __future__ import annotations

import functools
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from helpers.machine import timeouts
from helpers.observe import evidence, timeline
from helpers.pytest_plugin import case_process, leaks, machine_setup, wire
from helpers.syscalls import scarcity

MARK = "share_process"
OWN = "own_process"
CHOICES = ("never", "marked", "all")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("memlock-tests").addoption(
        "--share-process",
        choices=CHOICES,
        default="marked",
        help="which consecutive items run in one process: those of modules and functions marked "
        "share_process (default), none, or all that are not exclusive (lists what they leave "
        "behind)",
    )


@pytest.hookimpl(trylast=True)  # after what adds marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        node, mark = _mark(item)
        if node is not item or mark is None:
            continue
        why = ""
        if mark.args or mark.kwargs:
            why = "takes no arguments"
        elif not hasattr(item, "callspec"):
            why = "wants a parametrized function"
        elif item.get_closest_marker("exclusive"):
            why = "does not go with exclusive"
        if why:
            raise pytest.UsageError(f"memlock-tests: {item.nodeid}: the mark {MARK} {why}")


@dataclass(frozen=True)
class GroupKey:
    """The module whose items share a process, or the function of it."""

    path: Path
    function: str = ""


def _mark(item: pytest.Item) -> tuple[Any, pytest.Mark | None]:
    """The outermost node that carries the mark, with it: the module, where that carries it."""
    return next(reversed([*item.iter_markers_with_node(MARK)]), (None, None))


def group_key(item: pytest.Item | None) -> GroupKey | None:
    """The group of an item; None where it runs in a process of its own."""
    if item is None or item.get_closest_marker("skip"):
        return None
    choice = item.config.getoption("--share-process")
    if choice == "never" or item.get_closest_marker("exclusive"):
        return None
    if choice == "all":
        return GroupKey(item.path)
    node, mark = _mark(item)
    if mark is None or item.get_closest_marker(OWN):
        return None
    return GroupKey(item.path, item.originalname if node is item else "")


class SharedChild:
    """A forked process that runs items of one function on request. Raises SetupError."""

    def __init__(self, item: pytest.Item) -> None:
        self.key = group_key(item)
        requests, self._requests = case_process.pipe()
        self._answers, answers = case_process.pipe()
        self.pid = scarcity.fork()
        if self.pid == 0:
            os.close(self._requests)
            os.close(self._answers)
            case_process.enter_child(item, lambda: self._serve(item, requests, answers))
        os.close(requests)
        os.close(answers)

    def _serve(self, item: pytest.Item, requests: int, answers: int) -> None:
        items = item.session.items
        before = leaks.read()
        while (request := wire.receive(requests)) is not None:
            evidence.reset()
            timeline.reset()
            current, following = request
            nextitem = None if following is None else items[following]
            work = functools.partial(case_process.reports_of, items[current], nextitem)
            frame = case_process.answer(work)
            wire.send(answers, [frame, leaks.since(before)])

    def run(
        self, item: pytest.Item, nextitem: pytest.Item | None, deadline: float
    ) -> tuple[Any, list[str], bool]:
        """What the child says of an item (None: it ended first), what the item left behind, and
        whether it hung. ``deadline`` is in scaled seconds, counted from the request."""
        index = item.session.items.index
        request = [index(item), None if nextitem is None else index(nextitem)]
        try:
            wire.send(self._requests, request)
        except BrokenPipeError:
            return None, [], False
        until = timeouts.Deadline(self.pid, deadline)
        found, hung = wire.receive_until(self._answers, self.pid, until)
        if found is None:
            return None, [], hung
        frame, left = found
        return frame, left, False

    def end(self) -> int:
        """End the child: by the end of its requests, after a second by SIGKILL. Its status."""
        os.close(self._requests)
        until = timeouts.until(1)
        while not case_process.has_ended(self.pid) and time.monotonic() < until:
            time.sleep(0.001)
        os.close(self._answers)
        return case_process.end(self.pid)


_child_key = pytest.StashKey[SharedChild]()


def run(item: pytest.Item, nextitem: pytest.Item | None) -> list[pytest.TestReport] | None:
    """Reports of an item that shares a process; None where it has none to share."""
    key = group_key(item)
    waiting = item.config.stash.get(_child_key, None)
    if waiting is not None and waiting.key != key:
        end(item.config)
        waiting = None
    following = nextitem if key is not None and group_key(nextitem) == key else None
    if key is None or (waiting is None and following is None):
        return None
    started, begun = time.time(), time.monotonic()
    try:
        return _run(item, following, started, begun)
    except scarcity.SetupError as error:
        end(item.config)
        return [case_process.not_set_up(item, error, started, time.monotonic() - begun)]


def _run(
    item: pytest.Item, following: pytest.Item | None, started: float, begun: float
) -> list[pytest.TestReport]:
    stash, deadline = item.config.stash, case_process.deadline_of(item)
    if _child_key not in stash:
        stash[_child_key] = SharedChild(item)
    child = stash[_child_key]
    frame, hung = None, True
    left: list[str] = []
    try:
        frame, left, hung = child.run(item, following, deadline)
    finally:
        status = None if frame is not None else _kill(item.config)
    left += machine_setup.undo_changes(item, child.pid)
    data, cause = case_process.understood(frame, status, hung, deadline)
    if data is None:
        end(item.config)
        return [case_process.crashed(item, cause, started, time.monotonic() - begun)]
    reports = [case_process.report_from(item, fields) for fields in data]
    sound = not any(r.failed or hasattr(r, "wasxfail") for r in reports)
    # What skips half way may leave its preparations behind: no fault of the case.
    if left and sound and not any(r.skipped for r in reports):
        reports[-1] = _leaked(reports[-1], left)
    if left or not sound or following is None:
        end(item.config)
    return reports


def _leaked(last: pytest.TestReport, left: list[str]) -> pytest.TestReport:
    """A failed teardown: the statement held, the test is at fault."""
    last.when, last.outcome = "teardown", "failed"
    last.longrepr = f"left behind: {'; '.join(left)}. Undo it in the test, or mark it {OWN}."
    return last


def _kill(config: pytest.Config) -> int | None:
    child = config.stash.get(_child_key, None)
    if child is None:
        return None
    del config.stash[_child_key]
    os.close(child._requests)
    os.close(child._answers)
    return case_process.end(child.pid)


def end(config: pytest.Config) -> None:
    """End the child that waits for another item, if there is one."""
    child = config.stash.get(_child_key, None)
    if child is not None:
        del config.stash[_child_key]
        child.end()


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    end(session.config)
