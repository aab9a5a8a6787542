# SPDX-License-Identifier: MIT
"""SIGINT, SIGTERM, SIGHUP and SIGQUIT end a run as Ctrl-C does: once, and in order to its end.

The first one raises KeyboardInterrupt where pytest expects it. What comes after it, and what comes
while the run is ending anyway, is noted and raises nothing: it would fall into the clean-up of the
machine or into the writing of the result. A signal at any moment makes the exit code 2.

A signal that our parent ignores stays ignored here (nohup, a shell's background job). A forked
process has its old dispositions back, and a case the default ones
(:mod:`helpers.pytest_plugin.runner`).
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Generator
from types import FrameType
from typing import Any

import pytest

from helpers.processes import signal_name

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_JUDGED = {pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED}


class Signals:
    """Handlers of :data:`ENDING` in the controlling process."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self.raises = True
        self.before: dict[int, Any] = {}

    def install(self) -> None:
        """Take over the signals that are not ignored and have no handler from outside Python."""
        for number in ENDING:
            before = signal.getsignal(number)
            if before not in (signal.SIG_IGN, None):
                self.before[number] = before
                signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received.append(number)
        if self.raises:
            self.raises = False
            raise KeyboardInterrupt(signal_name(number))

    def ignore(self) -> None:
        """From here on a signal changes nothing any more, up to the interpreter's end."""
        self.raises = False
        for number in self.before:
            signal.signal(number, signal.SIG_IGN)

    def restore(self) -> None:
        """Dispositions as they were found."""
        for number, before in self.before.items():
            signal.signal(number, before)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logfinish(self) -> None:
        if self.received:  # its KeyboardInterrupt was raised where it is dropped (a destructor)
            raise KeyboardInterrupt(signal_name(self.received[0]))

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtestloop(self) -> Generator[None, None, None]:
        yield
        self.raises = False

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        self.raises = False


signals_key = pytest.StashKey[Signals]()
_installed: list[Signals] = []


def _in_child() -> None:
    while _installed:
        _installed.pop().restore()


os.register_at_fork(after_in_child=_in_child)


def received(config: pytest.Config) -> list[str]:
    """Names of the signals that this run was sent, in their order."""
    signals = config.stash.get(signals_key, None)
    return [signal_name(n) for n in signals.received] if signals else []


@pytest.hookimpl(hookwrapper=True)
def pytest_cmdline_main(config: pytest.Config) -> Generator[None, Any, None]:
    if hasattr(config, "workerinput"):
        yield
        return
    signals = config.stash[signals_key] = Signals()
    config.pluginmanager.register(signals, "memlock-signals")
    _installed.append(signals)
    signals.install()
    embedded = config.invocation_params.args != tuple(sys.argv[1:])
    outcome = yield
    signals.ignore()
    _installed.remove(signals)
    interrupted = outcome.excinfo is not None and issubclass(outcome.excinfo[0], KeyboardInterrupt)
    judged = outcome.excinfo is None and outcome.get_result() in _JUDGED
    if signals.received and (interrupted or judged):
        outcome.force_result(pytest.ExitCode.INTERRUPTED)
    if embedded:
        signals.restore()  # pytest.main() inside a program that has more to do
