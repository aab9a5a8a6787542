# SPDX-License-Identifier: MIT
"""Run something in a child process: its value, its traceback, or the signal that killed it.

A child inherits the case's process group, is killed when its parent dies, and never becomes
a second pytest: it always ends in ``os._exit``.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import pickle
import signal
import struct
import traceback
from collections.abc import Callable
from typing import Any, TypeVar

import psutil

from helpers import syscalls
from helpers.machine.timeouts import Deadline, scaled
from helpers.processes.errors import ChildExited, ChildFailed, ChildKilled, ChildTimeout
from helpers.syscalls import log, scarcity

T = TypeVar("T")

CALL_TIMEOUT = 20.0
"""Seconds a child may idle before an answer unless told otherwise (helpers.machine.timeouts)."""


_JOB_CONTROL = {
    signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU,
}  # fmt: skip
_INTERPRETER = {signal.SIGPIPE, signal.SIGXFSZ}
"""Python ignores these itself, and says so by an OSError."""


def default_signals(*, keep_job_control: bool = False) -> None:
    """Give every signal its default action and block none, whatever the parent left us.

    Ignored and blocked signals outlive execve(2): SIGCHLD ignored reaps children unseen, SIGTERM
    ignored or blocked lets nobody end a child. ``keep_job_control``: leave ignored what a shell
    has ignored on purpose (nohup, a job in the background). For the main thread only.
    """
    for number in signal.valid_signals() - _INTERPRETER:
        action = signal.getsignal(number)
        if action is signal.SIG_DFL or action is None:
            continue
        if action is signal.SIG_IGN and keep_job_control and number in _JOB_CONTROL:
            continue
        if action is signal.SIG_IGN or not keep_job_control:
            ours = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, ours)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def send_signal(pid: int, number: int, group: bool = False) -> None:
    """Signal a process of ours (or its group) that may have taken another user's ids.

    Without CAP_KILL we may not (kill(2)), but that user may, and whose child can become him
    can do so again. Raises OSError as the kernel says.
    """
    send = os.killpg if group else os.kill
    try:
        send(pid, number)
    except PermissionError as refused:
        try:
            user = psutil.Process(pid).uids().real
        except psutil.Error:
            raise refused from None
        helper = os.fork()
        if helper == 0:
            status = 1
            try:
                os.setresuid(user, user, user)
                send(pid, number)
                status = 0
            finally:
                os._exit(status)
        if os.waitpid(helper, 0)[1]:
            raise


def _send(fd: int, value: object) -> None:
    data = pickle.dumps(value)
    data = struct.pack("=Q", len(data)) + data
    while data:
        data = data[os.write(fd, data) :]


def _receive_exactly(fd: int, size: int, until: Deadline | None) -> bytes:
    chunks = b""
    while len(chunks) < size:
        if until is not None and not until.wait([fd]):
            raise TimeoutError
        got = os.read(fd, min(size - len(chunks), 1 << 20))
        if not got:
            raise EOFError
        chunks += got
    return chunks


def _receive(fd: int, until: Deadline | None = None) -> Any:
    (size,) = struct.unpack("=Q", _receive_exactly(fd, 8, until))
    return pickle.loads(_receive_exactly(fd, size, until))


def _answer(function: Callable[..., object], args: tuple[object, ...]) -> tuple[str, object]:
    try:
        return "value", function(*args)
    except BaseException as error:
        if why := scarcity.reason(error):
            return "setup", (getattr(error, "errno", 0), why)
        if isinstance(error, OSError):
            return "oserror", (error.errno, str(error.strerror))
        return "raised", traceback.format_exc()


class Child:
    """A forked process that runs functions on request, one at a time.

    ::

        with Child() as child:
            child.call(libc.mlock, region.addr, region.size)
            assert child.call(status.vmlck_pages) == region.pages

    Functions travel by name (pickle), so they live at module level; addresses mean the same
    in both processes for whatever was mapped before the fork.
    """

    def __init__(self) -> None:
        requests, self._requests = os.pipe()
        self._answers, answers = os.pipe()
        self._reads = requests  # by this number, in the child
        parent = os.getpid()
        self.pid = scarcity.fork()
        if self.pid == 0:
            status = 1
            try:
                os.close(self._requests)
                os.close(self._answers)
                self._serve(parent, requests, answers)
                status = 0
            finally:
                os._exit(status)
        os.close(requests)
        os.close(answers)
        self._serving = True
        self._status: int | None = None

    @classmethod
    def _of(cls, pid: int, answers: int) -> Child:
        child = cls.__new__(cls)
        child.pid, child._answers, child._requests, child._status = pid, answers, -1, None
        child._serving = False
        return child

    @staticmethod
    def _serve(parent: int, requests: int, answers: int) -> None:
        die_with_parent(parent)
        while True:
            try:
                function, args = _receive(requests)
            except EOFError:
                return
            _send(answers, _answer(function, args))

    def start(self, function: Callable[..., object], *args: object) -> None:
        """Ask for a call without waiting; :meth:`result` gives its answer."""
        _send(self._requests, (function, args))

    def result(self, deadline: float = CALL_TIMEOUT) -> Any:
        """Answer to the oldest :meth:`start`. Raises as :meth:`call` does."""
        try:
            kind, value = _receive(self._answers, Deadline(self.pid, scaled(deadline)))
        except TimeoutError:
            self.kill()
            raise ChildTimeout(f"child {self.pid} gave no answer within {deadline:g} s") from None
        except EOFError:
            status = self.wait()
            if os.WIFSIGNALED(status):
                raise ChildKilled(os.WTERMSIG(status)) from None
            raise ChildExited(os.waitstatus_to_exitcode(status)) from None
        if kind == "setup":
            raise scarcity.SetupError(*value)
        if kind == "oserror":
            raise OSError(*value)
        if kind == "raised":
            raise ChildFailed(f"in the child:\n{value}")
        return value

    def call(self, function: Callable[..., T], *args: object, deadline: float = CALL_TIMEOUT) -> T:
        """Run ``function(*args)`` in the child and return its value.

        An OSError is raised here as in the child; anything else as :class:`ChildFailed`,
        :class:`ChildKilled`, :class:`ChildExited` or, after ``deadline`` seconds,
        :class:`ChildHung`.
        """
        self.start(function, *args)
        log.add_remote(getattr(function, "__name__", "?"), args, f"in child {self.pid}")
        value: T = self.result(deadline)
        return value

    def exec(self, *command: str, deadline: float = CALL_TIMEOUT) -> None:
        """Have the child execute a program in place of itself; return once it has.

        The program reads what would be requests, so ``cat`` lives on until :meth:`leave`,
        :meth:`kill` or the end of the block. Raises OSError if it could not be executed,
        ChildHung after ``deadline`` seconds.
        """
        try:
            self.start(_execute, self._reads, command)
            kind, value = _receive(self._answers, Deadline(self.pid, scaled(deadline)))
        except EOFError:
            # The answers' end closes on exec, after the old address space was given up.
            self._serving = False
            return
        except TimeoutError:
            self.kill()
            raise ChildTimeout(f"{command[0]} was not executed within {deadline:g} s") from None
        if kind == "setup":
            raise scarcity.SetupError(*value)
        if kind == "oserror":
            raise OSError(*value)
        raise ChildFailed(f"in the child:\n{value}")

    def wait(self) -> int:
        """Wait status (waitpid(2)) of the child once it has ended."""
        if self._status is None:
            _, self._status = os.waitpid(self.pid, 0)
        return self._status

    def end_by(self, way: str) -> None:
        """Have its memory go by ``exec`` (of cat), ``exit``, or else SIGKILL."""
        if way == "exec":
            self.exec("cat")
        elif way == "exit":
            self.start(os._exit, 0)
            self.wait()
        else:
            self.kill(signal.SIGKILL)

    def kill(self, number: int = signal.SIGKILL) -> int:
        """Send a signal and wait for the end: the wait status."""
        if self._status is None:
            send_signal(self.pid, number)
        return self.wait()

    def exit(self) -> int:
        """Let the child exit by itself with status 0: the wait status.

        A child that has :meth:`become` a program ends by end of file, which it sees only if
        no other child was forked after it.
        """
        if self._serving:
            # Not by end of file: children forked later hold this pipe too.
            self.start(os._exit, 0)
            self._serving = False
        if self._requests >= 0:
            os.close(self._requests)
            self._requests = -1
        return self.wait()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        os.close(self._answers)
        if self._requests >= 0:
            os.close(self._requests)
            self._requests = -1


def _execute(stdin: int, command: tuple[str, ...]) -> None:
    os.dup2(stdin, 0)
    os.execvp(command[0], command)


def die_with_parent(parent: int) -> None:
    """First thing in a child: be killed when the parent ends.

    A change of credentials cancels it (prctl(2)).
    """
    faulthandler.disable()  # a child that is meant to die must not print a traceback
    gc.disable()  # a collection would copy half the interpreter's pages after the fork
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


_SCARCE = b"\0a resource ran out before execve: "
