# SPDX-License-Identifier: MIT
"""One function or program in a child of its own."""

from __future__ import annotations

import os
from collections.abc import Callable

from helpers.machine.timeouts import Deadline, scaled
from helpers.processes.child import _SCARCE, CALL_TIMEOUT, Child, T, _answer, _send, die_with_parent
from helpers.processes.errors import ChildExited, ChildKilled, ChildTimeout
from helpers.syscalls import scarcity


def run(function: Callable[[], T], deadline: float = CALL_TIMEOUT) -> T:
    """Value of ``function()`` run in a child of its own (closures allowed).

    Raises as :meth:`Child.call` does.
    """
    answers, write_end = os.pipe()
    parent = os.getpid()
    pid = scarcity.fork()
    if pid == 0:
        status = 1
        try:
            os.close(answers)
            die_with_parent(parent)
            _send(write_end, _answer(function, ()))
            status = 0
        finally:
            os._exit(status)
    os.close(write_end)
    child = Child._of(pid, answers)
    with child:
        value: T = child.result(deadline)
        child.wait()
        return value


def run_program(
    *command: str, before: Callable[[], object] | None = None, deadline: float = CALL_TIMEOUT
) -> str:
    """What a program prints, executed by a forked child that ran ``before()`` first.

    Raises ChildExited on a non-zero status (127: the program could not be executed, or
    ``before`` raised), SetupError where that ran out of something, ChildKilled by a signal,
    ChildHung after ``deadline`` seconds.
    """
    answers, write_end = os.pipe()
    parent = os.getpid()
    pid = scarcity.fork()
    if pid == 0:
        try:
            os.dup2(write_end, 1)
            die_with_parent(parent)
            if before is not None:
                before()
            os.execvp(command[0], command)
        except BaseException as error:
            if why := scarcity.reason(error):
                os.write(write_end, _SCARCE + why.encode())
        finally:
            os._exit(127)
    os.close(write_end)
    child = Child._of(pid, answers)
    text, until = b"", Deadline(pid, scaled(deadline))
    with child:
        while True:
            if not until.wait([answers]):
                raise ChildTimeout(f"{' '.join(command)} did not end within {deadline:g} s")
            got = os.read(answers, 1 << 16)
            if not got:
                break
            text += got
        wait_status = child.wait()
    if os.WIFSIGNALED(wait_status):
        raise ChildKilled(os.WTERMSIG(wait_status))
    if text.startswith(_SCARCE):
        raise scarcity.SetupError(0, text.removeprefix(_SCARCE).decode())
    if wait_status:
        raise ChildExited(os.waitstatus_to_exitcode(wait_status))
    return text.decode(errors="replace")
