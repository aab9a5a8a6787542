"""Children: their value, their traceback, or the signal that killed them."""

import errno
import os
import signal
import time

import pytest

from helpers import libc, process


def broken():
    raise ValueError("from the child")


def gone(status):
    os._exit(status)


def test_child_returns_values_in_order():
    """Calls run in the child, one after the other."""
    with process.Child() as child:
        assert child.call(os.getpid) == child.pid
        assert child.call(divmod, 7, 2) == (3, 1)


def test_child_reports_its_errno():
    """An OSError in the child is the same OSError here."""
    with process.Child() as child:
        assert libc.outcome(child.call, libc.mlock, -libc.PAGE, 1) == "EINVAL"
        with pytest.raises(OSError, match="mlock2") as caught:
            child.call(libc.mlock2, 0, 0, 1 << 20)
        assert caught.value.errno == errno.EINVAL


def test_child_reports_its_traceback():
    """Any other exception comes with the child's traceback."""
    with process.Child() as child, pytest.raises(process.ChildFailed, match="in broken"):
        child.call(broken)


def test_killed_child_names_its_signal():
    """A child that dies says by which signal."""
    with process.Child() as child, pytest.raises(process.ChildKilled) as caught:
        child.call(os.kill, child.pid, signal.SIGSEGV)
    assert caught.value.signal == "SIGSEGV"


def test_leaving_child_names_its_status():
    """A child that leaves by os._exit says with which status."""
    with process.Child() as child, pytest.raises(process.ChildExited, match="status 7"):
        child.call(gone, 7)


def test_hung_child_is_killed_at_its_deadline():
    """A child that does not answer is killed."""
    with process.Child() as child:
        with pytest.raises(process.ChildHung):
            child.call(time.sleep, 100, deadline=0.2)
        assert os.WIFSIGNALED(child.wait())


def test_run_takes_closures():
    """run() needs no function by name."""
    word = "seen"
    assert process.run(lambda: word.upper()) == "SEEN"
    with pytest.raises(process.ChildKilled, match="SIGABRT"):
        process.run(os.abort)


def test_executed_program_prints_and_fails_by_name():
    """A program's output, its status, its signal, its deadline."""
    assert process.executed("echo", "a", "b") == "a b\n"
    assert process.executed("pwd", before=lambda: os.chdir("/")) == "/\n"
    with pytest.raises(process.ChildExited, match="status 127"):
        process.executed("no-such-program")
    with pytest.raises(process.ChildKilled, match="SIGTERM"):
        process.executed("sh", "-c", "kill -TERM $$")
    with pytest.raises(process.ChildHung):
        process.executed("sleep", "100", deadline=0.2)
