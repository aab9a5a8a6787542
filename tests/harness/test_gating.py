# SPDX-License-Identifier: MIT
"""Options and requirements: bad input is one line and exit code 4, a skip is a statement."""

import subprocess

import psutil
import pytest

from helpers.pytest_plugin.options import check_versions, parse_memory_budget
from helpers.requirements import requirement

FINE = "def test_fine():\n    pass\n"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--require", "kpageflag"], "unknown requirement 'kpageflag'; known:"),
        (["--memory-budget", "lots"], "write 64M or 1G"),
        (["--memory-budget", "9999G"], "half of MemAvailable"),
        (["--memory-budget", "0"], "half of MemAvailable"),
        (["--file-dir", "/nowhere/at/all"], "is not a folder we can write to"),
        (["--junitxml", "/proc/self/x/result.xml"], "cannot be written"),
        (["--report", "/proc/self/x"], "cannot be written"),
        (["--report", "/dev/null/x"], "cannot be written"),
        (["--deadline", "0"], "--deadline 0.0 is out of range"),
        (["--deadline", "soon"], "invalid float value"),
    ],
    ids=lambda v: "_".join(v).strip("-").replace("/", "") if isinstance(v, list) else "",
)
def test_bad_option_is_one_line_and_exit_code_4(suite, options, words):
    """An option value that makes no sense ends the run before it begins, saying why."""
    suite.case(FINE)
    done = suite.run(*options)
    assert done.returncode == 4, done.stdout + done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert "passed" not in done.stdout


@pytest.mark.parametrize(
    ("mark", "words"),
    [
        ('needs("kpageflag")', "unknown requirement 'kpageflag'"),
        ('needs("lock")', "lock wants an amount of pages: lock:8"),
        ("needs()", "malformed mark"),
        ("needs(8)", "malformed mark"),
        ('claim("7")', "no claim '7'"),
        ('deviation("no-such")', "unknown deviation"),
    ],
)
def test_malformed_mark_is_a_usage_error(suite, mark, words):
    """A mark with a typing error does not silently gate nothing."""
    suite.case(f"import pytest\n\n@pytest.mark.{mark}\ndef test_fine():\n    pass\n")
    done = suite.run()
    assert done.returncode == 4, done.stdout
    assert words in done.stderr


def test_missing_proc_is_said(suite):
    """Without /proc there is no witness: one line that says how to mount it."""
    suite.case(FINE)
    command = " ".join(suite.command())
    try:
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", f"mount -t tmpfs none /proc && exec {command}"],
            cwd=suite.path, capture_output=True, text=True, check=False,
        )  # fmt: skip
    except FileNotFoundError:
        pytest.skip("needs unshare(1): install util-linux")
    if "unshare:" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"needs a mount namespace: {done.stderr.strip()}; run as root")
    assert done.returncode == 4, done.stdout + done.stderr
    assert "/proc is not mounted" in done.stderr
    assert "Traceback" not in done.stderr


def test_unknown_architecture_is_said(suite):
    """A machine whose system call numbers we do not know is refused in one line."""
    (suite.path / "sitecustomize.py").write_text(
        "import platform\nplatform.machine = lambda: 'vax'\n"
    )
    suite.case(FINE)
    done = suite.run(env={"PYTHONPATH": str(suite.path)})
    assert done.returncode == 4, done.stdout + done.stderr
    assert "no system call numbers known for vax (" in done.stderr


def test_broken_pair_of_plugins_is_refused():
    """pytest 9.2 with pytest-forked 1.7.5 is named and refused; its neighbours are not."""
    with pytest.raises(pytest.UsageError, match=r'pip install "pytest<9\.2"'):
        check_versions("9.2.0", "1.7.5")
    check_versions("9.1.1", "1.7.5")
    check_versions("9.2.0", "1.8.0")
    check_versions("7.2.1", "1.4.0")


NEEDY = """
import pytest

@pytest.mark.needs("lock:8")
def test_locks():
    raise AssertionError("not reached")
"""


def limited(*options):
    return ["prlimit", "--memlock=0:0", "setpriv", "--bounding-set=-ipc_lock",
            "--inh-caps=-ipc_lock", *options]  # fmt: skip


@pytest.fixture
def powerless(suite, monkeypatch):
    """The suite, run without CAP_IPC_LOCK under a limit of 0."""
    plain = suite.command
    monkeypatch.setattr(suite, "command", lambda *o: limited(*plain(*o)))
    suite.case(NEEDY)
    if suite.run("--version").returncode:
        pytest.skip("needs prlimit(1) and setpriv(1) as root: install util-linux")
    return suite


def test_missing_requirement_is_a_reasoned_skip(powerless):
    """What is missing, what was seen, and how to supply it stand in the summary."""
    done = powerless.run()
    assert done.returncode == 0, done.stdout
    assert "needs lock:8: may not lock that much (RLIMIT_MEMLOCK is 0 kB" in done.stdout
    assert "ulimit -l 33" in done.stdout or "ulimit -l" in done.stdout
    assert "not verified" in done.stdout


@pytest.mark.parametrize("names", ["all", "lock", "pfn,lock"])
@pytest.mark.parametrize("workers", [(), ("-n", "1")], ids=["alone", "worker"])
def test_required_requirement_fails_when_missing(powerless, names, workers):
    """--require turns the skip into a failure that names the requirement."""
    done = powerless.run("--require", names, *workers)
    assert done.returncode == 1, done.stdout
    assert "--require lock: needs lock:8" in done.stdout
    assert "1 error" in done.stdout or "1 failed" in done.stdout


FILTERED = """
from helpers.requirements import probing
from helpers.requirements.facility import Unavailable
def pytest_configure():

    def blocked():
        raise Unavailable("answered by a filter")

    probing.PROBES["lock-calls"] = blocked
"""


def test_filter_behind_a_requirement_is_named(suite):
    """lock:N where a seccomp filter answers the calls: a skip that says so, or, required by
    either name, a failure."""
    (suite.path / "filtered.py").write_text(FILTERED)
    suite.case(NEEDY)
    done = suite.run("-p", "filtered")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "needs lock-calls: answered by a filter" in done.stdout
    for name in ("lock", "lock-calls"):
        done = suite.run("-p", "filtered", "--require", name)
        assert done.returncode == 1, done.stdout + done.stderr
        assert f"--require {name}: needs lock-calls" in done.stdout


def test_other_requirement_does_not_fail(powerless):
    """--require of something else leaves the skip a skip."""
    assert powerless.run("--require", "pfn").returncode == 0


def test_budget_defaults_to_a_tenth(monkeypatch):
    """The default budget is a tenth of MemAvailable, at most 1 GiB."""
    memory = type("memory", (), {"available": 4 << 30})
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    assert parse_memory_budget(None) == (4 << 30) // 10
    memory.available = 64 << 30
    assert parse_memory_budget(None) == 1 << 30
    assert parse_memory_budget("64M") == 64 << 20
    assert parse_memory_budget("1g") == 1 << 30


def test_every_requirement_name_is_known():
    """``--require all`` stands for every name, and each name is accepted alone."""
    assert requirement.parse_require_option("all") == frozenset(requirement.names())
    for name in requirement.names():
        assert requirement.parse_require_option(name) == {name}
