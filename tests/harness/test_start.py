# SPDX-License-Identifier: MIT
"""However a run is started: what cannot be found out is red, what makes no sense one line."""

import json
import os
import re
import shutil
import signal
import sys

import pytest

FINE = "def test_fine():\n    pass\n"
NEEDY = """
import pytest

@pytest.mark.needs("lock-calls")
def test_locks():
    pass

@pytest.mark.needs("cgroup")
def test_presses():
    pass
"""
ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs another user's ids: run as root")


def wrapped(suite, monkeypatch, *before):
    """Every run of the suite is started by a program in front of it."""
    if shutil.which(before[0]) is None:
        pytest.skip(f"needs {before[0]}(1): install util-linux")
    plain = suite.command
    monkeypatch.setattr(suite, "command", lambda *o: [*before, *plain(*o)])


def verdicts(suite, *options, **extra):
    """The run, and the verdict of each case by its name."""
    done = suite.run("--report=out", *options, **extra)
    said = done.stdout + done.stderr
    assert "INTERNALERROR" not in said, said
    assert "Traceback" not in said, said
    rows = json.loads((suite.path / "out" / "result.json").read_text())["behaviours"]
    return done, {row["id"].partition("::")[2]: row["verdict"] for row in rows}


def refused(done, words):
    """The run ended before it began, in one line of ours."""
    said = [line for line in done.stderr.splitlines() if line.strip()]
    assert done.returncode == 4, done.stdout + done.stderr
    assert words in done.stderr
    assert "passed" not in done.stdout
    assert len(said) == 1, done.stderr


BREAKS = """
import os, signal, sys

def breaks():
    os.kill(os.getpid(), signal.{signal})

def pytest_configure():
    from helpers.requirements import probing
    probing.PROBES["lock-calls"] = breaks
"""


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("SIGSEGV", ()),
        ("SIGKILL", ("-n", "1")),
        ("SIGSEGV", ("--require", "all")),
        ("SIGSEGV", ("--require", "all", "-n", "1")),
    ],
    ids=lambda value: "".join(value),
)
def test_probe_that_is_killed_is_a_broken_set_up(suite, name, options):
    """Whether the kernel has it was not found out: neither a skip nor a green."""
    suite.case(NEEDY)
    (suite.path / "breaks.py").write_text(BREAKS.format(signal=name))
    done, seen = verdicts(suite, "-p", "breaks", *options)
    assert done.returncode == 1, done.stdout
    assert seen["test_locks"] == "broken set-up"
    assert f"the probe of lock-calls broke (child killed by {name}); report this" in done.stdout
    assert "not known, their probe broke: lock-calls" in done.stdout


def nobody(right):
    """Another user with one right: enough to come to files of root's."""
    sets = ("inh-caps", "ambient-caps", "bounding-set")
    return ["setpriv", "--reuid=65534", *(f"--{each}=-all,+{right}" for each in sets)]


@ROOT
@pytest.mark.parametrize("require", [(), ("--require", "all")], ids=["", "required"])
def test_probe_without_processes_is_a_broken_set_up(suite, monkeypatch, require):
    """No process to probe in: red, with the limit that is in the way."""
    wrapped(suite, monkeypatch, "prlimit", "--nproc=1:1", *nobody("dac_override"))
    suite.case(NEEDY)
    done, seen = verdicts(suite, *require)
    assert done.returncode == 1, done.stdout + done.stderr
    assert set(seen.values()) == {"broken set-up"}, done.stdout
    assert "ulimit -u" in done.stdout


@pytest.mark.parametrize(
    ("number", "options"),
    [(11, ()), (12, ()), (13, ()), (14, ("--require", "lock-calls")), (16, ()), (16, ("-n", "2"))],
    ids=lambda value: "".join(value) if isinstance(value, tuple) else None,
)
def test_too_few_descriptors_are_said(suite, monkeypatch, number, options):
    """Too few to read cases and write a result: one line; too few to probe: broken set-ups."""
    wrapped(suite, monkeypatch, "prlimit", f"--nofile={number}:{number}")
    suite.case(NEEDY.partition('@pytest.mark.needs("cgroup")')[0])
    done = suite.run("--report=out", *options)
    if done.returncode == 4:
        refused(done, f"the limit is {number}; wants more open files: ulimit -n")
        assert number < 14 or "-n" in options
        return
    done, seen = verdicts(suite, *options)
    assert seen == {"test_locks": "broken set-up" if done.returncode else "verified"}, done.stdout


CLOCK = """
import sys, time

def look(*_):
    time.monotonic()

def pytest_sessionstart():
    sys.setprofile(look)
"""


def test_tracer_that_looks_at_the_clock_breaks_no_probe(suite):
    """The vdso is mapped anew with no interpreter between: coverage would call into the gap."""
    suite.case(NEEDY.replace("lock-calls", "map-vdso"))
    (suite.path / "clock.py").write_text(CLOCK)
    done, seen = verdicts(suite, "-p", "clock")
    assert "broke" not in done.stdout, done.stdout
    assert seen["test_locks"] in ("verified", "not verified")


def _ignored():
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN)


def _blocked():
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


CHILDREN = """
from helpers import processes
from helpers.processes import ChildKilled
import os, signal
import pytest

@pytest.mark.needs("lock-calls")
def test_child():
    with processes.Child() as child:
        assert child.call(os.getppid) == os.getpid()

@pytest.mark.parametrize("number", [n for n in range(1, 65) if n in signal.valid_signals()])
def test_signal(number):
    ours = {signal.SIGINT: signal.default_int_handler}
    ignored = {signal.SIGPIPE, signal.SIGXFSZ}
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        wanted = signal.SIG_IGN if number in ignored else ours.get(number, signal.SIG_DFL)
        assert signal.getsignal(number) == wanted
    assert number not in signal.pthread_sigmask(signal.SIG_BLOCK, [])

@pytest.mark.parametrize("name", ["SIGTERM", "SIGSEGV", "SIGBUS", "SIGUSR1"])
def test_child_is_killed(name):
    with pytest.raises(ChildKilled, match=name):
        processes.run(lambda: os.kill(os.getpid(), getattr(signal, name)))
"""


@pytest.mark.parametrize("workers", [(), ("-n", "1")], ids=["alone", "worker"])
@pytest.mark.parametrize("inherited", [_ignored, _blocked])
def test_inherited_signals_change_no_verdict(suite, inherited, workers):
    """Signals that the parent ignores or blocks, SIGCHLD and SIGTERM too: no verdict changes."""
    suite.case(CHILDREN + NEEDY)
    done, seen = verdicts(suite, *workers, preexec_fn=inherited)
    del seen["test_presses"]  # only root can set it up
    assert set(seen.values()) == {"verified"}, done.stdout
    assert done.returncode == 0, done.stdout


def pytest_generate_tests(metafunc):
    if "ours" in metafunc.fixturenames:
        options = metafunc.config._parser.getgroup("memlock-tests").options
        given = vars(metafunc.config.option)
        wordy = [o.names()[0] for o in options if not isinstance(given[o.dest], bool)]
        metafunc.parametrize("ours", [*wordy, "--junitxml"])


def test_option_without_its_word_is_refused(suite, ours):
    """``--require=$UNSET`` demands nothing silently: every option of ours wants its word."""
    suite.case(FINE)
    done = suite.run(f"{ours}=")
    if "invalid" in done.stderr:  # pytest's own parser, of a number: it adds its usage
        assert done.returncode == 4
        assert f"argument {ours}" in done.stderr
        return
    refused(done, ours)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        *((["--deadline", n], "out of range") for n in ("nan", "inf", "1e308", "-1", "0")),
        (["--deadline=1e-9"], "out of range"),
        (["--fault-budget=nan"], "out of range"),
        (["--model-steps=-1"], "out of range"),
        (["--seed=-1"], "out of range"),
        (["--require= "], "--require has no value"),
        ([""], "the name of a file or folder has no value"),
        (["--cgroup", "."], "--cgroup . is no cgroup"),
        (["--cgroup", "/proc"], "--cgroup /proc is no cgroup"),
        (["--cgroup", "/nowhere"], "--cgroup /nowhere is not a folder"),
        (["-p", "no:reports"], "leave out -p no:reports"),
        (
            ["-p", "no:helpers.pytest_plugin.requirements"],
            "leave out -p no:helpers.pytest_plugin.requirements",
        ),
        (["-p", "no:pytest_forked"], "--forked wants pytest-forked"),
        (["-p", "no:xdist", "-n", "2"], "-n wants pytest-xdist"),
        (["-o", "addopts="], "lack --forked"),
        (["-c", "other.ini"], "lack --forked"),
        (["-o", "addopts=", "-n", "1"], "lack --forked"),
        (["-o", "addopts=", "tests/calls/test_case.py::test_fine"], "lack --forked"),
    ],
    ids=lambda v: re.sub(r"[^\w.:-]+", "_", " ".join(v)) if isinstance(v, list) else "",
)
def test_start_that_makes_no_sense_is_refused(suite, options, words):
    """Numbers out of range, folders that are no cgroup, settings or plugins not ours: one line."""
    suite.case(FINE)
    (suite.path / "other.ini").write_text("[pytest]\n")
    refused(suite.run(*options), words)


@ROOT
def test_foreign_proc_is_refused(suite, monkeypatch):
    """A /proc of another process-id namespace would show us other processes than ours."""
    wrapped(suite, monkeypatch, "unshare", "--pid", "--fork")
    suite.case(FINE)
    done = suite.run()
    if done.stderr.startswith("unshare:"):
        pytest.skip(f"needs a process-id namespace: {done.stderr.strip()}; run as root")
    refused(done, "/proc is of another process-id namespace")


@pytest.mark.parametrize("options", [["-O"], ["-OO"]], ids="".join)
def test_optimised_python_is_refused(suite, options):
    """Without assertions every case would pass: one line, not one for each module."""
    suite.case(FINE)
    plain = suite.command()
    suite.command = lambda *given: [plain[0], *options, *plain[1:], *given]
    refused(suite.run(), "python -O")


@pytest.mark.parametrize("options", [["--collect-only"], ["--forked"]], ids="".join)
def test_foreign_settings_that_do_no_harm_are_fine(suite, options):
    """Without our settings: a list of cases, or cases that are forked all the same."""
    suite.case(FINE)
    done = suite.run("-o", "addopts=", *options)
    assert done.returncode == 0, done.stdout + done.stderr


def test_harness_needs_no_forked_cases(suite):
    """What is about the suite itself runs inside pytest."""
    suite.chapter = suite.path / "tests" / "harness"
    suite.chapter.mkdir()
    suite.case(FINE)
    done = suite.run("-o", "addopts=", "tests/harness", "--deselect=tests/calls")
    assert "lack --forked" in done.stderr  # the whole of tests is asked for, too
    suite.command = lambda *given: [sys.executable, "-m", "pytest", *given]
    done = suite.run("-o", "addopts=", "tests/harness")
    assert done.returncode == 0, done.stdout + done.stderr


READ_ONLY = 'mount --bind . . && mount -o remount,ro,bind . && cd "$PWD" && exec "$@"'


@ROOT
@pytest.mark.parametrize(
    "before",
    [["unshare", "-m", "sh", "-c", READ_ONLY, "_"], nobody("dac_read_search")],
    ids=["mount", "nobody"],
)
def test_checkout_that_cannot_be_written(suite, before):
    """On a read-only mount, or root's folder with another user: no cache is kept, nothing else."""
    suite.case(FINE)
    if shutil.which(before[0]) is None:
        pytest.skip(f"needs {before[0]}(1): install util-linux")
    suite.command = lambda *given: [*before, sys.executable, "-m", "pytest", "tests", *given]
    done = suite.run("-v")
    said = done.stdout + done.stderr
    if done.stderr.startswith(("unshare:", "mount:")):
        pytest.skip(f"needs a mount namespace: {done.stderr.strip()}; run as root")
    assert done.returncode == 0, said
    assert "1 passed" in done.stdout
    assert not {path.name for path in suite.path.iterdir()} & {".pytest_cache", ".hypothesis"}
    assert "Warning" not in said
    assert "Traceback" not in said


@pytest.mark.parametrize("descriptor", [0, 2])
def test_closed_standard_descriptor_changes_no_verdict(suite, descriptor):
    """A run started with a standard descriptor closed verifies and ends with 0."""
    suite.case(FINE)
    done, seen = verdicts(suite, preexec_fn=lambda: os.close(descriptor))
    assert done.returncode == 0, done.stdout + done.stderr
    assert seen == {"test_fine": "verified"}
