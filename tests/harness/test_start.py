# SPDX-License-Identifier: MIT
"""Odd ways to start a run: refused in one line, or with the verdicts of any other start."""

import os
import re
import signal
import subprocess

import pytest

from tests.harness.conftest import ROOT

CASES = '''
from helpers import memory
from helpers import syscalls
from helpers.observe import status
import pytest

@pytest.mark.needs("lock:2", "map-vdso")
def test_locks():
    """VmLck counts both pages."""
    with memory.mapping("private", 2) as region:
        syscalls.mlock(region.addr, region.size)
        assert status.vmlck_pages() == 2, "VmLck in pages"
'''
SIGNALS = sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})


def refused(done, words, code=4):
    """The run ended before it began, in one line with these words."""
    assert done.returncode == code, done.stdout + done.stderr
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    assert len(lines) == 1, lines
    assert re.search(words, lines[0]), lines


def ignored():
    """Every signal is ignored, as a parent may leave it."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def blocked():
    """Every signal is blocked."""
    signal.pthread_sigmask(signal.SIG_SETMASK, SIGNALS)


@pytest.mark.deadline(60)
@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["alone", "workers"])
@pytest.mark.parametrize("inherit", [ignored, blocked])
def test_inherited_signals_change_no_verdict(suite, inherit, workers):
    """Signals that the parent ignores or blocks leave probes and verdicts as they are, and end."""
    suite.case(CASES)
    done = suite.run(*workers, preexec_fn=inherit)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^total +1 +0 +0 +0", done.stdout, re.MULTILINE), done.stdout


@pytest.mark.parametrize("require", [(), ("--require", "all")], ids=["", "require"])
def test_probe_that_breaks_is_a_broken_set_up(suite, monkeypatch, require):
    """Where a probe cannot even be made, nothing is verified and the run is red, in order."""
    suite.case(CASES)
    plain = suite.command
    monkeypatch.setattr(suite, "command", lambda *o: ["prlimit", "--nofile=12:12", *plain(*o)])
    done = suite.run(*require)
    assert done.returncode != 0, done.stdout + done.stderr
    assert "INTERNALERROR" not in done.stdout + done.stderr


def test_probe_killed_by_a_signal_is_a_broken_set_up(suite):
    """A probe that crashes gives no reason to skip: the case is a broken set-up, exit code 1."""
    (suite.path / "tests" / "conftest.py").write_text(
        "import os, signal\n"
        "from helpers.requirements import probing\n"
        "probing.PROBES['map-vdso'] = lambda: os.kill(os.getpid(), signal.SIGSEGV)\n"
    )
    suite.case(CASES)
    done = suite.run()
    assert done.returncode == 1, done.stdout + done.stderr
    assert "the probe of map-vdso broke" in done.stdout
    assert "broken set-up" in done.stdout


STRINGS = (
    "--require", "--memory-budget", "--file-dir", "--swap-dir", "--cgroup", "--report", "--fault",
    "--fault-matrix", "--timeout-multiplier", "--junitxml",
)  # fmt: skip


@pytest.mark.parametrize("word", ["", " "], ids=["empty", "blank"])
@pytest.mark.parametrize("option", STRINGS)
def test_empty_word_is_refused(suite, option, word):
    """An option whose value is empty, as an unset variable leaves it, is refused in one line."""
    suite.case(CASES)
    refused(suite.run(f"{option}={word}"), f"{option}.*(no value|not a number)")


@pytest.mark.parametrize("value", ["nan", "inf", "1e308", "-1", "0"])
def test_deadline_out_of_range_is_refused(suite, value):
    """A deadline that is no number of seconds above 0 is refused in one line."""
    suite.case(CASES)
    refused(suite.run(f"--deadline={value}"), "--deadline .* out of range")


def test_folder_that_is_no_cgroup_is_refused(suite, tmp_path):
    """--cgroup of an ordinary folder is refused in one line: nothing would be reclaimed in it."""
    suite.case(CASES)
    refused(suite.run("--cgroup", str(tmp_path)), f"--cgroup {tmp_path}")


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["alone", "workers"])
def test_settings_without_forked_are_refused(suite, workers):
    """Foreign settings without --forked would run cases inside pytest: refused in one line."""
    suite.case(CASES)
    (suite.path / "other.ini").write_text("[pytest]\n")
    for settings in (("-c", "other.ini"), ("-o", "addopts=")):
        refused(suite.run(*settings, *workers), "lack --forked")
    assert suite.run("-o", "addopts=", "--collect-only").returncode == 0


def test_optimized_python_is_refused(suite):
    """python -O takes assertions away, so that every case would pass: refused in one line."""
    suite.case(CASES)
    done = suite.run(env={"PYTHONOPTIMIZE": "1"})
    refused(done, "python -O")


@pytest.mark.needs("CAP_SYS_ADMIN")
def test_read_only_checkout_runs(suite):
    """A checkout that cannot be written runs to its end, with the verdicts of any other."""
    suite.case(CASES)
    command = suite.command()
    command = [part for part in command if part not in ("-p", "no:cacheprovider")]
    line = f'mount --bind -o ro "{suite.path}" "{suite.path}" && cd "{suite.path}" && exec "$@"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", line, "sh", *command],
        cwd=suite.path, env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize("descriptor", [0, 2])
def test_closed_standard_descriptor_changes_no_verdict(suite, descriptor):
    """A run started with a standard descriptor closed verifies and ends with 0."""
    suite.case(CASES)
    done = suite.run("--junitxml=x.xml", preexec_fn=lambda: os.close(descriptor))
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'tests="1"' in (suite.path / "x.xml").read_text()
    assert 'skipped="0"' in (suite.path / "x.xml").read_text()
