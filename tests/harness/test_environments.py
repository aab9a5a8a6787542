# SPDX-License-Identifier: MIT
"""The suite without a right, under another setting, and beside somebody who changes settings."""

import os
import re
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from helpers import processes
from helpers.environments import rights, running, settings, swap
from helpers.machine import kernel_version, state
from helpers.observe import status
from helpers.processes import credentials
from helpers.report.verdicts import CaseResult, Verdict
from helpers.requirements import requirement

MAY_CHANGE_USER = pytest.mark.needs("CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP")

CASES = """
from helpers.processes import credentials
import pytest

def test_needs_nothing():
    pass

def test_names_it():
    if not credentials.has_capability("CAP_NET_RAW"):
        pytest.skip("needs packet-ring: no packet socket; CAP_NET_RAW")

def test_says_something_else():
    if not credentials.has_capability("CAP_NET_RAW"):
        pytest.skip("needs better weather")

def test_fails_without():
    assert credentials.has_capability("CAP_NET_RAW")
"""


def command(suite, *arguments):
    """Run the command in the suite's folder."""
    return subprocess.run(
        [sys.executable, "-m", "helpers.environments", *arguments],
        cwd=suite.path, capture_output=True, text=True, timeout=100,
    )  # fmt: skip


@pytest.mark.deadline(120)
@MAY_CHANGE_USER
@pytest.mark.needs("CAP_NET_RAW")
def test_right_taken_away_is_held_against_all_rights(suite):
    """What fails without a capability, and what is unverified without naming it, is listed and
    makes the exit code 1; a case that names it does not."""
    suite.case(CASES)
    done = command(suite, "rights", "--only", "CAP_NET_RAW,CAP_SYSLOG")
    assert done.returncode == 1, done.stdout + done.stderr
    rows = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if line.strip()}
    #                        verified, deviates, failed, broken, inconclusive, not, unexplained
    assert rows["baseline"] == ["4", "0", "0", "0", "0", "0", "0"], done.stdout
    assert rows["CAP_NET_RAW"] == ["1", "0", "1", "0", "0", "2", "1"], done.stdout
    assert rows["CAP_SYSLOG"] == rows["baseline"], done.stdout
    assert re.search(r"unexplained: .*test_says_something_else: needs better weather", done.stdout)
    assert re.search(r"^    tests/calls/test_case.py::test_fails_without: ", done.stdout, re.M)
    assert "test_names_it" not in done.stdout


def need_interpreter_of_nobody():
    """Skip where nobody cannot start this interpreter, whatever is opened up for it."""

    def start():
        rights._as_nobody()
        return subprocess.run([sys.executable, "-c", ""], check=False).returncode

    try:
        assert processes.run(start) == 0
    except OSError as error:
        pytest.skip(f"needs an interpreter that nobody can reach: {error}; chmod a+x its folders")


@pytest.mark.deadline(120)
@MAY_CHANGE_USER
def test_chapter_without_a_right_has_no_failure(tmp_path):
    """The command over a real file of cases, without one capability and as nobody, is 0."""
    need_interpreter_of_nobody()
    done = subprocess.run(
        [sys.executable, "-m", "helpers.environments", "rights", "--only", "CAP_IPC_LOCK,nobody",
         "--out", str(tmp_path), "-n", "0", "tests/calls/test_rights.py"],
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nobody" in done.stdout
    assert "not run" not in done.stdout, done.stdout


@pytest.mark.deadline(120)
@pytest.mark.needs("CAP_SYS_ADMIN")
def test_existing_swap_areas_serve_where_none_can_be_made(tmp_path):
    """Swap areas of other sorts pass: one that the suite makes, and a partition that is there
    while it can make none, with or without modprobe; nothing of it is left."""
    if not os.access("/dev/loop-control", os.W_OK) or not shutil.which("addpart"):
        pytest.skip("needs loop devices and addpart; run as root, with util-linux")
    done = subprocess.run(
        [sys.executable, "-m", "helpers.environments", "swap", "--only",
         "loop over tmpfs,partition (non-rotating)",
         "--out", str(tmp_path), "-n", "0", "tests/reclaim/test_pressure.py"],
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "not run" not in done.stdout, done.stdout
    output = (tmp_path / "partition-non-rotating-" / "output.txt").read_text()
    assert "1 passed" in output
    assert "swapped to" not in output, "to an area of the suite's own"
    assert not [*Path("/dev").glob("loop*p1")], "no partition is left"


@pytest.mark.deadline(120)
def test_setting_of_the_whole_machine_wants_consent(suite):
    """Without --allow-sysctl a machine-wide setting is not touched, and said not to have been;
    a limit of the run's own process is set."""
    suite.case(
        """
import resource

def test_soft_limit():
    assert resource.getrlimit(resource.RLIMIT_STACK)[0] == 256 << 10
"""
    )
    done = command(suite, "settings", "--only", "vm/swappiness 0,stack", "--out", "out")
    assert re.search(r"^vm/swappiness 0 +not run: .*--allow-sysctl$", done.stdout, re.M), done
    assert re.search(r"^stack 262144 +1 +0 +0 ", done.stdout, re.M), done.stdout
    assert done.returncode == 1, "the baseline has another limit"


@pytest.mark.parametrize("words", [["--only", "CAP_NONSENSE"], ["--only="]], ids=["name", "empty"])
def test_unknown_environment_is_refused(suite, words):
    """A name that is in no environment's, or none at all, is one line and 4."""
    done = command(suite, "rights", *words)
    assert done.returncode == 4
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "--list" in done.stderr


def test_environments_have_names_of_their_own():
    """Results lie in folders by the environments' names: no two are the same."""
    for made in (rights, settings, swap):
        names = [re.sub(r"[^\w.-]+", "-", e.name) for e in made.environments()]
        assert len(names) == len({*names}) > 10


@MAY_CHANGE_USER
def test_child_that_changed_its_user_is_ended_without_cap_kill():
    """A child of another user is killed though we may not signal it, a busy one too."""

    def without():
        credentials.drop("CAP_KILL")
        with processes.Child() as child:
            child.call(credentials.set_user)
            child.start(time.sleep, 60)
            with pytest.raises(PermissionError):
                os.kill(child.pid, 9)
        return child.wait()

    began = time.monotonic()
    assert os.WTERMSIG(processes.run(without)) == 9
    assert time.monotonic() - began < 15


@pytest.mark.deadline(120)
@MAY_CHANGE_USER
def test_case_of_another_user_is_ended_without_cap_kill(suite):
    """At its end, and at its deadline, a case and what it left are killed, of whatever user."""
    marker = f"memlock-left-{os.getpid()}"
    suite.case(
        f"""
import os, sys, time
import pytest
from helpers.processes import credentials

def test_leaves_one_behind():
    ready, tell = os.pipe()
    if os.fork() == 0:
        credentials.set_user()
        os.write(tell, b".")
        os.set_inheritable(tell, False)
        os.execv("/bin/sleep", ["{marker}", "60"])
    os.read(ready, 1)

@pytest.mark.deadline(1)
def test_hangs():
    credentials.set_user()
    time.sleep(60)
"""
    )
    done = suite.run(preexec_fn=lambda: credentials.drop("CAP_KILL"))
    assert "1 failed, 1 passed" in done.stdout, done.stdout
    assert "hung: killed with its process group" in done.stdout
    left = [p for p in psutil.process_iter(["cmdline"]) if marker in (p.info["cmdline"] or [])]
    assert not left, "nothing of the case is running any more"


def test_only_what_the_run_changed_is_held_against_it(tmp_path, monkeypatch):
    """A setting that differs at the end is a difference if the run changed it, else a note."""
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    monkeypatch.setattr(state, "_SETTINGS", (str(mine), str(theirs)))
    for path in (mine, theirs):
        path.write_text("60")
    before = state.read("memlock-tests-0")
    for path in (mine, theirs):
        path.write_text("10")
    lines, notes = state.diff(before, "memlock-tests-0", {str(mine)}, patience=0)
    assert lines == [f"settings: {mine} = 10 is new", f"settings: {mine} = 60 is gone"]
    assert notes == [f"settings: {theirs} = 10 is new", f"settings: {theirs} = 60 is gone"]


def test_setting_changed_by_a_neighbour_is_a_note(suite):
    """A run in which somebody else changes a setting says so and exits with 0."""
    (suite.path / "swappiness").write_text("60")
    (suite.path / "tests" / "conftest.py").write_text(
        "from helpers.machine import state\n"
        f"state._SETTINGS = ({str(suite.path / 'swappiness')!r},)\n"
    )
    suite.case(
        f"""
import pathlib, pytest

@pytest.mark.needs("allow-sysctl")
def test_neighbour():
    "Only so that the machine is looked at."

def test_meanwhile():
    pathlib.Path({str(suite.path / "swappiness")!r}).write_text("10")
"""
    )
    done = suite.run()
    if "changed by somebody else" not in done.stdout and os.geteuid():
        pytest.skip("needs a folder for the cleanup process's records: run as root")
    assert "not as it was found" not in done.stdout
    assert "changed by somebody else meanwhile: settings:" in done.stdout
    assert done.returncode == 0, done.stdout


def test_too_few_vmas_are_a_reason():
    """A case that wants more VMAs than vm.max_map_count allows is not run, and says so."""
    assert requirement.unmet("vmas:1", {}, 0) is None
    found = requirement.unmet(f"vmas:{1 << 32}", {}, 0)
    assert "vm.max_map_count" in str(found)


def test_baseline_is_compared_case_by_case():
    """A case that the baseline verified and that did not run here has no reason at all."""
    outcome = running.Outcome("x")

    class Made:
        def __init__(self, **verdicts):
            self.behaviours = {
                n: CaseResult(n, verdict=Verdict(v), reason=r) for n, (v, r) in verdicts.items()
            }

    before = Made(a=("verified", ""), b=("verified", ""), c=("not verified", "x"))
    here = Made(b=("inconclusive", "the control stood still"), c=("not verified", "y"))
    running.hold_against(outcome, here, re.compile("CAP_KILL"), before)
    assert [(b.id, b.reason) for b in outcome.unnamed] == [
        ("a", "not run"),
        ("b", "the control stood still"),
    ]


def test_release_is_the_kernels_whatever_uname_says():
    """Under the personality UNAME26 uname(2) says 2.6; deviations go by the true release."""
    real = kernel_version.release()

    def disguised():
        settings.personality(settings.PERSONALITIES["UNAME26"])
        return os.uname().release, kernel_version.release()

    shown, release = processes.run(disguised)
    assert shown.startswith("2.6.")
    assert release == real


def test_too_little_address_space_is_a_reason():
    """A case that maps more than RLIMIT_AS allows is not run, and says so."""

    def narrow():
        soft = status.kb("VmSize") * 1024 + (64 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (soft, resource.getrlimit(resource.RLIMIT_AS)[1]))
        few, many = (str(requirement.unmet(f"space:{n}", {}, 0)) for n in (1, 1 << 20))
        return few, many

    few, many = processes.run(narrow)
    assert few == "None"
    assert "ulimit -v" in many
