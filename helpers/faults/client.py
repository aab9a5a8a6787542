# SPDX-License-Identifier: MIT
"""The case's side of the supervisor: asks for it, waits for it, and proves that it acts."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterable
from typing import Any

from helpers import syscalls
from helpers.faults import catalogue, supervisor
from helpers.faults.call import CHILD, END, READS, SIGNAL
from helpers.syscalls import ptrace, seccomp

PROBE = catalogue.PROBE


class SupervisorClient:
    """The supervising process of this worker of pytest."""

    def __init__(self) -> None:
        self._here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
                if os.getppid() == parent:
                    supervisor.serve(there, catalogue.effects_by_call)
            finally:
                os._exit(1)
        there.close()

    def ask(self, pid: int, faults: list[str], dry: bool) -> None:
        """Have it hold the process. Raises Refused."""
        self._here.send(json.dumps({"pid": pid, "faults": faults, "dry": dry}).encode())
        answer = self.answer()
        if "refused" in answer:
            raise ptrace.TracingUnavailable(answer["refused"])

    def answer(self) -> dict[str, Any]:
        """Its next answer. Raises RuntimeError if it broke."""
        text = self._here.recv(1 << 20)
        answer: dict[str, Any] = json.loads(text) if text else {"broken": "it ended"}
        if "broken" in answer:
            raise RuntimeError(f"the supervisor of --inject-fault broke: {answer['broken']}")
        return answer

    def close(self) -> None:
        """End it."""
        self._here.close()
        os.waitpid(self.pid, 0)


class SupervisedFork:
    """One case under supervision, as :mod:`helpers.pytest_plugin.case_process` sees it."""

    def __init__(self, service: SupervisorClient, faults: list[str], dry: bool) -> None:
        self._service, self._faults, self._dry = service, faults, dry
        calls = catalogue.effects_by_call(faults)
        self._numbers = _numbers({*calls, "ptrace"} - {*READS})
        self._reads = _numbers(READS) if "read" in calls else []
        if self._reads:
            self._numbers += _numbers(["openat"])
        self.acted: dict[str, int] = {}
        self.problems: list[str] = []

    def before_fork(self) -> None:
        """Before the fork."""
        self._wait, self._go = os.pipe()

    def after_fork_in_parent(self, pid: int) -> None:
        """In the controlling process: the supervisor takes hold of the child, then it may go."""
        os.close(self._wait)
        try:
            self._service.ask(pid, self._faults, self._dry)
            os.write(self._go, b"1")
        finally:
            os.close(self._go)

    def in_child(self) -> None:
        """In the case's process, just before its body: from here on faults are injected."""
        os.close(self._go)
        ptrace.allow_tracer()
        if not os.read(self._wait, 1):
            os._exit(71)
        os.close(self._wait)
        seccomp.stop_at(self._numbers, marked=self._reads)

    def reaped(self) -> None:
        """In the controlling process, once the case has been reaped."""
        answer = self._service.answer()
        self.acted, self.problems = answer["acted"], answer["problems"]


def run_program(faults: list[str], words: list[str]) -> tuple[int, SupervisedFork]:
    """A program under these faults: its exit code (-N: ended by signal N), and what acted.

    Raises TracingUnavailable, with nothing run.
    """
    probe()
    service = SupervisorClient()
    observer = SupervisedFork(service, faults, False)
    observer.before_fork()
    pid = os.fork()
    if pid == 0:
        try:
            observer.in_child()
            os.execvp(words[0], words)
        finally:
            os._exit(127)
    try:
        observer.after_fork_in_parent(pid)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        observer.reaped()
    finally:
        service.close()
    return status, observer


def _numbers(names: Iterable[str]) -> list[int]:
    found = (ptrace.call_number(name) for name in names if name not in (CHILD, SIGNAL, END))
    return [number for number in found if number is not None]


def probe() -> None:
    """Supervise a process that does nothing. Raises Refused where that cannot be done."""
    ptrace.register_layout()
    service = SupervisorClient()
    ready, go = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(go)
            ptrace.allow_tracer()
            os.read(ready, 1)
            seccomp.stop_at([syscalls.number("munlockall")])
            os._exit(42 if syscalls.outcome(syscalls.munlockall) == "ENOTTY" else 2)
        except OSError:
            os._exit(1)
        finally:
            os._exit(3)
    os.close(ready)
    try:
        service.ask(pid, [PROBE], False)
        os.close(go)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        service.answer()
    except ptrace.TracingUnavailable:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    finally:
        service.close()
    if status == 1:
        raise ptrace.TracingUnavailable(
            "no filter of system calls can be installed here; a kernel with CONFIG_SECCOMP_FILTER=y"
        )
    if status != 42:
        raise ptrace.TracingUnavailable(
            f"a call that was to fail did not (status {status}); --inject-fault cannot "
            "be used here, and nothing is run without its fault"
        )
