# SPDX-License-Identifier: MIT
"""The forked runner: whatever a case does, the run goes on and says what happened."""

import os
import re
import time

import psutil
import pytest

from helpers.machine import timeouts

WILD = """
import ctypes, os, signal, time
import pytest

def test_leaves_quietly(): os._exit(0)
def test_leaves_with_four(): os._exit(4)
def test_killed(): os.kill(os.getpid(), signal.SIGKILL)
def test_crashes(): ctypes.string_at(0)
def test_exits(): pytest.exit("enough")
def test_raises_system_exit(): raise SystemExit(0)
@pytest.mark.xfail(reason="something else", raises=AssertionError)
def test_crash_is_not_an_expected_failure(): os.abort()

@pytest.mark.deadline(0.5)
def test_hangs():
    if os.fork() == 0:
        os.setpgid(0, os.getppid())
        time.sleep(1000)
    signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 32))
    time.sleep(1000)

def test_second_pytest():
    if os.fork() == 0:
        return
    os.wait()

def test_large_report():
    raise AssertionError("x" * 3_000_000)

def test_talks_then_dies():
    print("last words")
    os.write(2, b"at the descriptor\\n")
    os.kill(os.getpid(), signal.SIGTERM)

def test_fine(): pass
"""

CAUSES = {
    "test_leaves_quietly": "left by os._exit(0) before its report",
    "test_leaves_with_four": "left by os._exit(4) before its report",
    "test_killed": "was killed by SIGKILL",
    "test_crashes": "was killed by SIGSEGV",
    "test_exits": "ended by pytest.exit: enough",
    "test_raises_system_exit": "SystemExit",
    "test_crash_is_not_an_expected_failure": "was killed by SIGABRT",
    "test_hangs": "hung: killed with its process group at its deadline of 0.5 s",
    "test_large_report": "xxxx",
    "test_talks_then_dies": "was killed by SIGTERM",
}


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["alone", "workers"])
def test_every_end_of_a_case_is_one_failed_case(suite, workers):
    """Exits, signals, hangs and crashes are each one failure with a name and a cause."""
    suite.case(WILD)
    done = suite.run(*workers)
    assert re.search(r"10 failed, 2 passed", done.stdout), done.stdout
    for name, cause in CAUSES.items():
        assert re.search(rf"::{name}\n.*\n.*{re.escape(cause)}", done.stdout), (name, done.stdout)
    assert "last words" in done.stdout
    assert "at the descriptor" in done.stdout
    assert "in test_crashes" in done.stdout, "the fault handler's traceback is in the report"
    assert done.returncode == 1


def test_descendants_of_a_case_are_killed(suite):
    """A process that a case leaves behind in its group is gone when the next case runs."""
    marker = f"memlock-left-{os.getpid()}"
    suite.case(
        f"""
import os, sys

def test_leaves_one_behind():
    if os.fork() == 0:
        os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(60)", "{marker}"])
"""
    )
    done = suite.run()
    assert "1 passed" in done.stdout, done.stdout
    until = timeouts.until(5)
    while time.monotonic() < until:
        left = [p for p in psutil.process_iter(["cmdline"]) if marker in (p.info["cmdline"] or [])]
        if not left:
            break
    assert not left, "nothing of the case is running any more"


def test_cases_start_from_the_same_state(suite):
    """What one case does to its process (limits, locks, modules) the next one does not see."""
    suite.case(
        """
from helpers.observe import status
import resource, sys

def test_first():
    sys.left_behind = True
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))

def test_second():
    assert not hasattr(sys, "left_behind"), "a fresh process"
    assert resource.getrlimit(resource.RLIMIT_MEMLOCK) != (0, 0), "limits as at the start"
    assert status.vmlck_kb() == 0, "nothing locked"
"""
    )
    assert "2 passed" in suite.run("--memory-budget", "64M").stdout


def test_interrupt_ends_the_case_too(suite):
    """Ctrl-C (SIGINT to the run) leaves no case running."""
    import signal
    import subprocess

    marker = suite.path / "pid"
    suite.case(
        f"""
import os, pathlib, time

def test_long():
    pathlib.Path({str(marker)!r}).write_text(str(os.getpid()))
    time.sleep(1000)
"""
    )
    with subprocess.Popen(
        suite.command(), cwd=suite.path,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        # A shell's background job, as CI may start us, has SIGINT ignored, and so would this run.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as run:  # fmt: skip
        until = timeouts.until(30)
        while not (marker.exists() and marker.read_text()) and time.monotonic() < until:
            time.sleep(0.02)
        run.send_signal(signal.SIGINT)
        text, _ = run.communicate(timeout=timeouts.scaled(20))
    assert run.returncode == 2, text
    assert not psutil.pid_exists(int(marker.read_text())), "the case was killed"
