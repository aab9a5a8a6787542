# SPDX-License-Identifier: MIT
"""A case in a forked child, which sends its reports through a pipe.

What the case leaves in its process group is killed; a child that says nothing is explained.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import resource
import signal
import time
from collections.abc import Callable
from typing import Any, Literal, NoReturn, Protocol

import psutil
import pytest
from _pytest.runner import runtestprotocol

from helpers import syscalls
from helpers.machine import timeouts
from helpers.observe import evidence, timeline
from helpers.processes import credentials, default_signals, send_signal, signal_name
from helpers.pytest_plugin import exclusive, machine_setup, wire
from helpers.syscalls import scarcity


class ForkObserver(Protocol):
    """Somebody who traces a case while it runs (:mod:`helpers.pytest_plugin.fault_injection`)."""

    def before_fork(self) -> None:
        """Before the fork."""

    def after_fork_in_parent(self, pid: int) -> None:
        """After it, in the controlling process."""

    def in_child(self) -> None:
        """In the case's process, before its body."""

    def reaped(self) -> None:
        """Once the case has been reaped."""


observer_key = pytest.StashKey[ForkObserver]()


def deadline_of(item: pytest.Item) -> float:
    """Seconds, scaled, that the case may idle: its mark's or the option's."""
    marker = item.get_closest_marker("deadline")
    return timeouts.scaled(float(marker.args[0] if marker else item.config.getoption("--deadline")))


def run_forked(item: pytest.Item) -> list[pytest.TestReport]:
    """Reports of the case, run in a process of its own."""
    started, begun = time.time(), time.monotonic()
    try:
        message, cause = _forked(item, deadline_of(item), reports_of)
    except scarcity.SetupError as error:
        return [not_set_up(item, error, started, time.monotonic() - begun)]
    if message is None:
        return [crashed(item, cause, started, time.monotonic() - begun)]
    return [report_from(item, fields) for fields in message]


def run_forked_outcome(item: pytest.Item, deadline: float) -> str:
    """``passed``, ``failed`` or ``skipped``: the case with nothing said of how or why.

    Most of what a failed case costs is its report: who runs a case under one fault after the
    other wants the word alone (a third of the time).
    """
    try:
        message, _ = _forked(item, timeouts.scaled(deadline), _outcome, idle_only=False)
    except scarcity.SetupError:
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
    observer = item.config.stash.get(observer_key, None)
    read_end, write_end = pipe()
    if observer:
        observer.before_fork()
    try:
        pid = scarcity.fork()
    except scarcity.SetupError:
        os.close(read_end)
        os.close(write_end)
        raise
    if pid == 0:
        os.close(read_end)
        enter_child(item, lambda: wire.send(write_end, answer(lambda: protocol(item))))
    os.close(write_end)
    frame, hung = None, True
    try:
        if observer:
            observer.after_fork_in_parent(pid)
        until = timeouts.Deadline(pid, deadline, idle_only=idle_only)
        frame, hung = wire.receive_until(read_end, pid, until)
    finally:
        os.close(read_end)
        status = end(pid)
        if observer:
            observer.reaped()
        machine_setup.after_case(item, pid)
    return understood(frame, status, hung, deadline)


def pipe() -> tuple[int, int]:
    """A pipe for one child. Raises SetupError."""
    try:
        return os.pipe()
    except OSError as error:
        why = scarcity.reason(error) or error.strerror
        raise scarcity.SetupError(error.errno, why) from None


def answer(protocol: Callable[[], object]) -> list[object]:
    """In the child: what ``protocol`` returns, or why it returned nothing, or what ran out."""
    pid = os.getpid()
    found: list[object]
    try:
        found = [protocol(), "", ""]
    except pytest.exit.Exception as stopped:
        found = [None, f"ended by pytest.exit: {stopped}", ""]
    except KeyboardInterrupt:
        found = [None, "ended by KeyboardInterrupt", ""]
    except Exception as error:  # pytest itself had not enough for its report
        if not (why := scarcity.reason(error)):
            raise
        found = [None, "", why]
    if os.getpid() != pid:
        os._exit(70)  # a fork in the case came back here: never a second pytest
    return found


def understood(frame: Any, status: int | None, hung: bool, deadline: float) -> tuple[Any, str]:
    """In the parent: what the child said (:func:`answer`), or None and the cause of its silence.

    ``status``: its wait status; ``deadline``: seconds that it was waited for. Raises SetupError
    where something ran out.
    """
    if frame is not None:
        message, cause, why = frame
        if why:
            raise scarcity.SetupError(0, why)
        return message, f"the case {cause}" if cause else ""
    if hung or status is None:
        return None, (
            f"the case hung: killed with its process group at its deadline of {deadline:g} s"
        )
    if not os.WIFSIGNALED(status):
        return None, f"the case left by os._exit({os.WEXITSTATUS(status)}) before its report"
    number = os.WTERMSIG(status)
    if lacking := scarcity.SIGNALS.get(number):
        raise scarcity.SetupError(0, f"{signal_name(number)}: wants {lacking}")
    cause = f"the case was killed by {signal_name(number)}"
    if number == signal.SIGKILL:
        cause += " (by the OOM killer, or by hand: see dmesg)"
    return None, cause


NOT_SET_UP = "the case could not be set up"


def report_from(item: pytest.Item, fields: dict[str, Any]) -> pytest.TestReport:
    """A report of the case, from what its child sent."""
    if isinstance(fields["longrepr"], list):
        fields["longrepr"] = tuple(fields["longrepr"])  # JSON has no tuples; a skip is one
    hook = item.config.hook
    made: pytest.TestReport = hook.pytest_report_from_serializable(config=item.config, data=fields)
    return made


def reports_of(item: pytest.Item, nextitem: pytest.Item | None = None) -> list[Any]:
    """In the child: pytest's reports of the case, as data."""
    timeline.enabled = bool(item.config.getoption("--report", None))
    hook = item.config.hook
    return [
        hook.pytest_report_to_serializable(config=item.config, report=r)
        for r in runtestprotocol(item, log=False, nextitem=nextitem)
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


def enter_child(item: pytest.Item, work: Callable[[], object]) -> NoReturn:
    """In a process just forked for a case: quiet it, do the work, and leave."""
    try:
        gc.disable()
        os.setpgid(0, 0)
        exclusive.forget()
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        default_signals()
        quiesce_process()
        # A layout or a list of pages is never cut in an assertion's text.
        item.config.option.verbose = max(2, item.config.option.verbose)
        evidence.reset()
        timeline.reset()
        work()
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


def end(pid: int) -> int:
    """Kill what is left of the case's process group and reap the child: its wait status."""
    if not has_ended(pid):
        # Sent its report and is about to exit, or hung: the group goes either way.
        _kill(pid)
    # While the leader is not reaped, its number cannot be given to another group.
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    _kill(pid)
    return os.waitpid(pid, 0)[1]


def has_ended(pid: int) -> bool:
    """The child has ended; it is not reaped."""
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


def not_set_up(
    item: pytest.Item, error: scarcity.SetupError, started: float, took: float
) -> pytest.TestReport:
    """The report of a case for which something ran out: a broken set-up."""
    return crashed(item, f"{NOT_SET_UP}: {error.strerror}", started, took, "setup")


def crashed(
    item: pytest.Item,
    cause: str,
    started: float,
    took: float,
    when: Literal["setup", "call"] = "call",
) -> pytest.TestReport:
    """The report of a case that sent none; ``started`` is a time, ``took`` are seconds."""
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
