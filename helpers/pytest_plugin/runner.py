# SPDX-License-Identifier: MIT
"""Every case in a forked child: the runner behind ``--forked``.

The option and the marker are pytest-forked's. Its own runner is not used, because a case
here may crash, hang, be OOM-killed or leave by ``os._exit``: pytest-forked has no deadline,
ends the whole run on ``os._exit(4)``, calls any crash of an xfail case XFAIL, and spends a
temporary folder, three files and a multiprocessing import on each case. This one sends the
reports through a pipe and kills what the case left in its process group.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Generator
from typing import Any, Literal, Protocol

import psutil
import pytest
from _pytest.runner import runtestprotocol

from helpers import syscalls
from helpers.machine import timeouts
from helpers.observe import evidence, timeline
from helpers.processes import credentials, default_signals, send_signal, signal_name
from helpers.pytest_plugin import exclusive, machine_setup
from helpers.syscalls.scarcity import SIGNALS, SetupError, fork, raise_soft_limits, reason

_LENGTH = 8


class ForkObserver(Protocol):
    """Somebody who holds a case while it runs (:mod:`helpers.faults`)."""

    def before_fork(self) -> None:
        """Before the fork."""

    def forked(self, pid: int) -> None:
        """After it, in the controlling process."""

    def child(self) -> None:
        """In the case's process, before its body."""

    def ended(self) -> None:
        """Once the case has been reaped."""


watch_key = pytest.StashKey[ForkObserver]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("memlock-tests")
    group.addoption(
        "--deadline",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="time a case may idle before its process group is killed (default 60)",
    )
    group.addoption(
        "--timeout-multiplier",
        metavar="N",
        help="wait N times as long for everything, on a slow machine or kernel "
        f"(default: {timeouts.VARIABLE}, or 1)",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    option = config.getoption("--timeout-multiplier")
    name, text = "--timeout-multiplier", option
    if option is None:
        name, text = timeouts.VARIABLE, os.environ.get(timeouts.VARIABLE, "1")
    try:
        timeouts.multiplier(text)
    except ValueError as error:
        raise pytest.UsageError(f"memlock-tests: {name}: {error}") from None
    os.environ[timeouts.VARIABLE] = text  # of workers, and of programs we execute
    raise_soft_limits()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    if not (item.config.getoption("forked", False) or item.get_closest_marker("forked")):
        return None
    hook = item.ihook
    hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    # A case that is skipped as a whole needs no process.
    run = runtestprotocol if item.get_closest_marker("skip") else _in_child
    with exclusive.slot(item):
        reports = run(item, log=False, nextitem=nextitem)
    for report in reports:
        hook.pytest_runtest_logreport(report=report)
    hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _in_child(
    item: pytest.Item, log: bool, nextitem: pytest.Item | None
) -> list[pytest.TestReport]:
    return run_forked(item)


def run_forked(item: pytest.Item) -> list[pytest.TestReport]:
    """Reports of the case, run in a process of its own."""
    marker = item.get_closest_marker("deadline")
    deadline = float(marker.args[0] if marker else item.config.getoption("--deadline"))
    started = time.time()
    begun = time.monotonic()
    try:
        message, cause = _forked(item, timeouts.scaled(deadline), _reports)
    except SetupError as error:
        why = f"{NOT_SET_UP}: {error.strerror}"
        return [_crashed(item, why, started, time.monotonic() - begun, "setup")]
    if message is None:
        return [_crashed(item, cause, started, time.monotonic() - begun)]
    return [_report(item, fields) for fields in message]


def run_forked_outcome(item: pytest.Item, deadline: float) -> str:
    """``passed``, ``failed`` or ``skipped``: the case with nothing said of how or why.

    Most of what a failed case costs is its report: who runs a case under one fault after the
    other wants the word alone (a third of the time).
    """
    try:
        message, _ = _forked(item, timeouts.scaled(deadline), _outcome, idle_only=False)
    except SetupError:
        return "skipped"
    return "failed" if message is None else str(message)


def _forked(
    item: pytest.Item,
    deadline: float,
    protocol: Callable[[pytest.Item], object],
    idle_only: bool = True,
) -> tuple[Any, str]:
    """What ``protocol`` makes of the case in a child; None and why if it had no chance to say.

    Raises SetupError where there can be no child, or a limit of the run ended it.
    """
    watch = item.config.stash.get(watch_key, None)
    try:
        read_end, write_end = os.pipe()
    except OSError as error:
        raise SetupError(error.errno, reason(error) or error.strerror) from None
    if watch:
        watch.before_fork()
    try:
        pid = fork()
    except SetupError:
        os.close(read_end)
        os.close(write_end)
        raise
    if pid == 0:
        _child(item, read_end, write_end, protocol)
    os.close(write_end)
    data = b""
    hung = True
    try:
        if watch:
            watch.forked(pid)
        until = timeouts.Deadline(pid, deadline, idle_only=idle_only)
        data, hung = _collect(pid, read_end, until)
    finally:
        os.close(read_end)
        status = _end(pid)
        if watch:
            watch.ended()
        machine_setup.after_case(item, pid)
    if len(data) > _LENGTH:
        message, cause, scarcity = json.loads(data[_LENGTH:])
        if scarcity:
            raise SetupError(0, scarcity)
        if not cause:
            return message, ""
        cause = f"the case {cause}"
    elif hung:
        cause = f"the case hung: killed with its process group at its deadline of {deadline:g} s"
    elif os.WIFSIGNALED(status) and (lacking := SIGNALS.get(os.WTERMSIG(status))):
        raise SetupError(0, f"{signal_name(os.WTERMSIG(status))}: wants {lacking}")
    elif os.WIFSIGNALED(status):
        cause = f"the case was killed by {signal_name(os.WTERMSIG(status))}"
        if os.WTERMSIG(status) == signal.SIGKILL:
            cause += " (by the OOM killer, or by hand: see dmesg)"
    else:
        cause = f"the case left by os._exit({os.WEXITSTATUS(status)}) before its report"
    return None, cause


@pytest.hookimpl(hookwrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Generator[None, Any, None]:
    """A case that ran out of something is no failure of the kernel's, but a broken set-up."""
    outcome = yield
    report: pytest.TestReport = outcome.get_result()
    if report.when == "call" and call.excinfo and (why := reason(call.excinfo.value)):
        report.when, report.outcome = "setup", "failed"
        report.longrepr = f"{NOT_SET_UP}: {why}"


NOT_SET_UP = "the case could not be set up"


def _report(item: pytest.Item, fields: dict[str, Any]) -> pytest.TestReport:
    if isinstance(fields["longrepr"], list):
        fields["longrepr"] = tuple(fields["longrepr"])  # JSON has no tuples; a skip is one
    hook = item.config.hook
    made: pytest.TestReport = hook.pytest_report_from_serializable(config=item.config, data=fields)
    return made


def _reports(item: pytest.Item) -> object:
    """pytest's reports of the case, as data."""
    timeline.enabled = bool(item.config.getoption("--report", None))
    hook = item.config.hook
    return [
        hook.pytest_report_to_serializable(config=item.config, report=r)
        for r in runtestprotocol(item, log=False, nextitem=None)
    ]


def _outcome(item: pytest.Item) -> object:
    """The case's outcome alone."""
    timeline.enabled = evidence.enabled = False
    item._initrequest()  # type: ignore[attr-defined]
    hook = item.ihook
    try:
        try:
            hook.pytest_runtest_setup(item=item)
            hook.pytest_runtest_call(item=item)
        finally:
            hook.pytest_runtest_teardown(item=item, nextitem=None)
    except pytest.skip.Exception:
        return "skipped"
    except (pytest.exit.Exception, KeyboardInterrupt):
        raise
    except BaseException:
        return "failed"
    return "passed"


def _child(
    item: pytest.Item, read_end: int, write_end: int, protocol: Callable[[pytest.Item], object]
) -> None:
    """The case's own process; never returns."""
    pid = os.getpid()
    try:
        os.close(read_end)
        gc.disable()
        os.setpgid(0, 0)
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        default_signals()
        quiesce_process()
        evidence.reset()
        timeline.reset()
        message: tuple[object, str, str]
        try:
            message = protocol(item), "", ""
        except pytest.exit.Exception as end:
            message = None, f"ended by pytest.exit: {end}", ""
        except KeyboardInterrupt:
            message = None, "ended by KeyboardInterrupt", ""
        except Exception as error:  # pytest itself had not enough for its report
            if not (why := reason(error)):
                raise
            message = None, "", why
        if os.getpid() != pid:
            os._exit(70)  # a fork in the case came back here: never a second pytest
        text = json.dumps(message, default=repr).encode(errors="surrogateescape")
        text = len(text).to_bytes(_LENGTH, sys.byteorder) + text
        while text:
            text = text[os.write(write_end, text) :]
        os._exit(0)
    except BaseException:
        faulthandler.dump_traceback(2, all_threads=False)
        os._exit(3)


def quiesce_process() -> None:
    """Keep from this process what moves its pages for reasons of its own.

    Transparent huge pages (one touch would populate and lock 512 pages) and KSM; cases
    about them switch them on again. Scheduling and limits stay as they are.
    """
    syscalls.prctl(syscalls.PR_SET_THP_DISABLE, 1, 0, 0, 0)
    if syscalls.outcome(syscalls.prctl, syscalls.PR_GET_MEMORY_MERGE, 0, 0, 0, 0) == "ok":
        syscalls.outcome(syscalls.prctl, syscalls.PR_SET_MEMORY_MERGE, 0, 0, 0, 0)
    # Of a crash, the traceback goes where the case's output is captured.
    faulthandler.enable(2, all_threads=False)
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))


def _collect(pid: int, read_end: int, until: timeouts.Deadline) -> tuple[bytes, bool]:
    """Bytes the child sent, and whether it was still silent at the deadline."""
    try:
        # Its descriptor tells of the end even when a grandchild holds the pipe open.
        ended = os.pidfd_open(pid)
    except OSError:
        ended = -1
    watched = [read_end] if ended < 0 else [read_end, ended]
    data, size = b"", -1
    try:
        while size < 0 or len(data) < size:
            ready = until.wait(watched)
            if not ready:
                return b"", True
            if read_end in ready:
                got = os.read(read_end, 1 << 20)
                if not got:
                    return b"", False
                data += got
                if size < 0 and len(data) >= _LENGTH:
                    size = _LENGTH + int.from_bytes(data[:_LENGTH], sys.byteorder)
            elif ended in ready:
                return b"", False
        return data, False
    finally:
        if ended >= 0:
            os.close(ended)


def _end(pid: int) -> int:
    """Kill what is left of the case's process group and reap the child: its wait status."""
    if not _has_ended(pid):
        # Sent its report and is about to exit, or hung: the group goes either way.
        _kill(pid)
    # While the leader is not reaped, its number cannot be given to another group.
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    _kill(pid)
    return os.waitpid(pid, 0)[1]


def _has_ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None


def _kill(pid: int) -> None:
    try:
        send_signal(pid, signal.SIGKILL, group=True)
    except ProcessLookupError:
        try:
            send_signal(pid, signal.SIGKILL)  # hung before it made its group
        except ProcessLookupError:
            pass
    if credentials.has_capability("CAP_SETUID") and not credentials.has_capability("CAP_KILL"):
        _kill_others(pid)


def _kill_others(group: int) -> None:
    """Those that took another user's ids: a signal to the group passes over them (kill(2))."""
    for pid in psutil.pids():
        try:
            if os.getpgid(pid) == group and psutil.Process(pid).uids().real != os.geteuid():
                send_signal(pid, signal.SIGKILL)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue


def _crashed(
    item: pytest.Item,
    cause: str,
    started: float,
    took: float,
    when: Literal["setup", "call"] = "call",
) -> pytest.TestReport:
    path, line, _ = item.location
    sections = []
    capture: Any = item.config.pluginmanager.getplugin("capturemanager")
    if capture is not None and capture.is_globally_capturing():
        out, err = capture.read_global_capture()
        sections = [(f"Captured {n}", t) for n, t in (("stdout", out), ("stderr", err)) if t]
    return pytest.TestReport(
        nodeid=item.nodeid,
        location=item.location,
        keywords=dict.fromkeys(item.keywords, 1),
        outcome="failed",
        longrepr=cause if when == "setup" else f"{path}:{(line or 0) + 1}: {cause}",
        when=when,
        sections=sections,
        duration=took,
        start=started,
        stop=started + took,
        user_properties=list(item.user_properties),
    )


def freeze_gc() -> None:
    """Call once before the first fork: collected objects no longer move or get scanned."""
    gc.collect()
    gc.freeze()
