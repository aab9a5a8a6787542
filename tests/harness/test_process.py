# SPDX-License-Identifier: MIT
"""Children: their value, their traceback, or the signal that killed them."""

import errno
import os
import signal
import time

import pytest

from helpers import processes, syscalls


def broken():
    raise ValueError("from the child")


def gone(status):
    os._exit(status)


def test_child_returns_values_in_order():
    """Calls run in the child, one after the other."""
    with processes.Child() as child:
        assert child.call(os.getpid) == child.pid
        assert child.call(divmod, 7, 2) == (3, 1)


def test_child_reports_its_errno():
    """An OSError in the child is the same OSError here."""
    with processes.Child() as child:
        assert syscalls.outcome(child.call, syscalls.mlock, -syscalls.PAGE, 1) == "EINVAL"
        with pytest.raises(OSError, match="mlock2") as caught:
            child.call(syscalls.mlock2, 0, 0, 1 << 20)
        assert caught.value.errno == errno.EINVAL


def test_child_reports_its_traceback():
    """Any other exception comes with the child's traceback."""
    with processes.Child() as child, pytest.raises(processes.ChildFailed, match="in broken"):
        child.call(broken)


def test_killed_child_names_its_signal():
    """A child that dies says by which signal."""
    with processes.Child() as child, pytest.raises(processes.ChildKilled) as caught:
        child.call(os.kill, child.pid, signal.SIGSEGV)
    assert caught.value.signal == "SIGSEGV"


def test_leaving_child_names_its_status():
    """A child that leaves by os._exit says with which status."""
    with processes.Child() as child, pytest.raises(processes.ChildExited, match="status 7"):
        child.call(gone, 7)


def test_hung_child_is_killed_at_its_deadline():
    """A child that does not answer is killed."""
    with processes.Child() as child:
        with pytest.raises(processes.ChildTimeout):
            child.call(time.sleep, 100, deadline=0.2)
        assert os.WIFSIGNALED(child.wait())


def test_run_takes_closures():
    """run() needs no function by name."""
    word = "seen"
    assert processes.run(lambda: word.upper()) == "SEEN"
    with pytest.raises(processes.ChildKilled, match="SIGABRT"):
        processes.run(os.abort)


def test_executed_program_prints_and_fails_by_name():
    """A program's output, its status, its signal, its deadline."""
    assert processes.run_program("echo", "a", "b") == "a b\n"
    assert processes.run_program("pwd", before=lambda: os.chdir("/")) == "/\n"
    with pytest.raises(processes.ChildExited, match="status 127"):
        processes.run_program("no-such-program")
    with pytest.raises(processes.ChildKilled, match="SIGTERM"):
        processes.run_program("sh", "-c", "kill -TERM $$")
    with pytest.raises(processes.ChildTimeout):
        processes.run_program("sleep", "100", deadline=0.2)
