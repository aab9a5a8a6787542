# SPDX-License-Identifier: MIT
"""A result never claims what did not run, and its exit code is the one of the process."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest

from helpers.report import result
from helpers.report.ktap import unique_ktap_ids
from helpers.report.verdicts import Verdict

WORKERS = pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["alone", "workers"])
OUT = ("--report=out", "--junitxml=junit.xml")
PAIR = "def test_one(): pass\ndef test_two(): pass\n"


def agree(suite, code: int, screen: str = "") -> dict[str, Verdict]:
    """The verdicts of ``out``, once every form of them was seen to tell the same."""
    found = result.load(suite.path / "out")
    assert found.run["exit_code"] == code, "the exit code of the process"
    rows = list(found.behaviours.values())
    lost = [b for b in rows if b.verdict is Verdict.NOT_RUN]
    words = f"{len(lost)} of {len(rows)} cases did not run"
    if lost:
        assert code != 0
        assert not found.complete
        assert all(b.reason and b.chapter == "calls" for b in lost)

    ktap = (suite.path / "out" / "result.ktap").read_text()
    names = unique_ktap_ids(rows)
    assert (f"# incomplete: {words}" in ktap) == bool(lost)
    for b in lost:
        assert re.search(rf"^    not ok \d+ {re.escape(names[b.id])} # ERROR not run$", ktap, re.M)
    assert len(re.findall(r"^    (?:not )?ok ", ktap, re.M)) == len(rows)

    tmt = json.loads((suite.path / "out" / "results.yaml").read_text())
    assert sum(row["note"][:1] == ["not run"] for row in tmt) == len(lost)
    assert {row["result"] for row in tmt if "not run" in row["note"]} <= {"error"}

    if (suite.path / "junit.xml").exists():
        (tree,) = ElementTree.parse(suite.path / "junit.xml").iter("testsuite")
        cases = list(tree.iter("testcase"))
        good = [c for c in cases if not {"error", "failure", "skipped"} & {e.tag for e in c}]
        assert len(cases) == len(rows)
        assert len(good) == sum(b.verdict is Verdict.VERIFIED for b in rows)
        told = [p.get("value") for p in tree.findall("properties/property")]
        assert told == ([words] if lost else [])
    if screen:
        assert (f"incomplete: {words}" in screen) == bool(lost)
        assert bool(re.search(r"^chapter .*not run$", screen, re.MULTILINE)) == bool(lost)
    return {b.id.partition("::")[2]: b.verdict for b in rows}


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("--setup-plan",), 0),
        (("--setup-only", "-n", "2"), 0),
        (("--collect-only",), 0),
        (("--fixtures",), 0),
        (("--markers",), 0),
        (("--help",), 0),
        (("--cache-show",), 0),
        (("-k", "nothing"), 5),
        (("-k", "nothing", "-n", "2"), 5),
        (("--no-such-option",), 4),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_what_runs_no_case_claims_nothing(suite, options, code):
    """Without a case that began nothing is verified, and the result that is there stays."""
    suite.case(PAIR)
    (suite.path / "out").mkdir()
    before = dict.fromkeys(("result.json", "result.ktap", "results.yaml"), b"of another run")
    for name, data in before.items():
        (suite.path / "out" / name).write_bytes(data)
    suite.command = lambda *given: [sys.executable, "-m", "pytest", "tests", *given]  # with a cache
    done = suite.run("--report=out", *options)
    assert done.returncode == code, done.stderr
    assert {p.name: p.read_bytes() for p in (suite.path / "out").iterdir()} == before
    assert not re.search(r"^chapter ", done.stdout, re.MULTILINE), "no table"
    if options[0] not in ("--markers", "--help", "--no-such-option"):
        (line,) = done.stderr.splitlines()
        assert "no case was run" in line
        assert "result.json is left as it was" in line


@pytest.mark.parametrize("option", ["--setup-plan", "--collect-only"])
def test_junit_has_no_case_that_was_only_planned(suite, option):
    """JUnit's readers take a case without a failure for passed: none is written."""
    suite.case(PAIR)
    assert suite.run("--junitxml=junit.xml", option).returncode == 0
    assert not (suite.path / "junit.xml").exists()


@WORKERS
def test_cases_after_the_last_failure_are_not_run(suite, workers):
    """-x: what comes behind the failure is not run, and everything says so."""
    rest = "".join(f"def test_{n}(): time.sleep(.1)\n" for n in range(30))
    suite.case(f"import time\ndef test_a(): pass\ndef test_b(): assert 0\n{rest}")
    done = suite.run(*OUT, "-x", *workers)
    found = agree(suite, done.returncode, done.stdout)
    assert found["test_b"] is Verdict.FAILED
    assert found["test_29"] is Verdict.NOT_RUN
    assert not [v for n, v in found.items() if n == "test_a"] or found["test_a"] is Verdict.VERIFIED
    assert "stopping after 1 failures" in done.stdout


def test_deselected_cases_are_no_loss(suite):
    """-k takes cases out of the run: it is complete without them."""
    suite.case(PAIR)
    done = suite.run(*OUT, "-k", "one")
    assert agree(suite, done.returncode, done.stdout) == {"test_one": Verdict.VERIFIED}
    assert result.load(suite.path / "out").complete


KILLS = """
import os, pathlib, signal, time
import pytest

@pytest.mark.parametrize("n", range(40))
def test_many(n):
    if n in {which}:
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(10)
"""


@pytest.mark.parametrize("restarts", [(), ("--max-worker-restart=0",)], ids=["replaced", "gone"])
def test_cases_of_killed_workers_are_not_run(suite, restarts):
    """A case counts as run only if its own report came back from its worker."""
    suite.case(KILLS.format(which=(4, 5)))
    done = suite.run(*OUT, "-n", "2", *restarts)
    found = agree(suite, done.returncode, done.stdout)
    assert done.returncode == 1
    assert len(found) == 40
    lost = [name for name, v in found.items() if v is Verdict.NOT_RUN]
    assert {"test_many[4]", "test_many[5]"} >= set(lost) if not restarts else len(lost) > 20
    assert set(found.values()) == {Verdict.VERIFIED, Verdict.NOT_RUN}


def test_killed_run_says_how_many_it_had(suite):
    """SIGKILL of the controller: the result is what was found by then, KTAP claims nothing."""
    suite.case(KILLS.format(which=(4,)))
    assert suite.run("--report=out").returncode == -signal.SIGKILL
    value = json.loads((suite.path / "out" / "result.json").read_text())
    assert (value["complete"], value["collected"], len(value["behaviours"])) == (False, 40, 4)
    ktap = (suite.path / "out" / "result.ktap").read_text()
    assert not re.search(r"^ *ok ", ktap, re.MULTILINE)


@WORKERS
def test_module_that_cannot_be_collected_is_not_passed_over(suite, workers):
    """--continue-on-collection-errors: the module is a broken set-up and the result incomplete."""
    suite.case(PAIR)
    suite.case("import no_such_module\n", "test_broken.py")
    done = suite.run("--report=out", "--continue-on-collection-errors", *workers)
    found = result.load(suite.path / "out")
    assert not found.complete
    assert done.returncode == found.run["exit_code"] == 1
    assert found.behaviours["tests/calls/test_broken.py"].verdict is Verdict.BROKEN


ENDS = {
    "clean": ("", 0, True),
    "changed": ("def pytest_sessionfinish(session): session.exitstatus = 7", 7, False),
    "red": ("@pytest.hookimpl(trylast=True)\n"
            "def pytest_sessionfinish(session): session.exitstatus = 1", 1, True),
    "summary": ("def pytest_terminal_summary(): raise RuntimeError('no summary')", 1, False),
    "finish": ("def pytest_sessionfinish(): raise RuntimeError('no end')", 1, False),
    "unconfigure": ("def pytest_unconfigure(): raise RuntimeError('late')", 1, False),
    "exit": ("def pytest_runtest_logfinish(): pytest.exit('enough', 9)", 9, False),
    "internal": ("def pytest_runtest_logfinish(): raise RuntimeError('broken')", 3, False),
    "folder": ("import os\ndef pytest_terminal_summary(config): hasattr(config, 'workerinput') or "
               "(os.unlink('out/result.ktap'), os.mkdir('out/result.ktap'))", 1, True),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "workers"),
    [(name, ()) for name in ENDS] + [(name, ("-n", "2")) for name in ("exit", "folder")],
)
def test_exit_code_in_the_result_is_the_true_one(suite, name, workers):
    """Whatever changes the exit code late (plug-ins, a summary that breaks, a form that cannot be
    written), the result has the one of the process, and is complete only in good order."""
    text, code, complete = ENDS[name]
    suite.case(PAIR)
    (suite.path / "late.py").write_text(f"import pytest\n{text}\n")
    done = suite.run("--report=out", "-p", "late", *workers, env={"PYTHONPATH": str(suite.path)})
    found = result.load(suite.path / "out")
    assert found.run["exit_code"] == done.returncode == code, done.stdout + done.stderr
    assert found.complete == complete
    if name == "folder":
        assert re.search(r"^memlock-tests: .*result\.ktap cannot be written", done.stderr, re.M)
        assert "Traceback" not in done.stderr + done.stdout


def test_exit_code_in_the_result_knows_deviations(suite):
    """--fail-on-deviation is in the result as it is in the process."""
    suite.case(suite.DEVIANT)
    done = suite.run(*OUT, "--fail-on-deviation")
    assert done.returncode == 1
    agree(suite, done.returncode, done.stdout)
    assert result.load(suite.path / "out").complete


# Signals.

REACHES = """
import pathlib, time
import pytest

@pytest.mark.parametrize("n", range({count}))
def test_many(n):
    pathlib.Path(f"reached-{{n}}").touch()
    if n >= {stops}:
        time.sleep({pause})
"""
ENDING = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT]


def defaults() -> None:
    """Before a run: no signal is ignored, as some are in a job in the background."""
    for number in ENDING:
        signal.signal(number, signal.SIG_DFL)


def signalled(suite, at: str, series, *options, group=False) -> tuple[int, str, str]:
    """Run, and once the file ``at`` is there send (pause, signal) after another: its exit code and
    what it wrote."""
    with subprocess.Popen(
        suite.command("--report=out", *options), cwd=suite.path, preexec_fn=defaults,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    ) as run:  # fmt: skip
        while run.poll() is None and not (suite.path / at).exists():
            time.sleep(0.005)
        for pause, number in series:
            time.sleep(pause)
            if run.poll() is None:
                (os.killpg if group else os.kill)(run.pid, number)
        out, err = run.communicate(timeout=40)
    return run.returncode, out, err


@WORKERS
@pytest.mark.parametrize(
    ("first", "second", "group"),
    [
        (signal.SIGINT, signal.SIGINT, False),
        (signal.SIGINT, signal.SIGTERM, True),
        (signal.SIGTERM, signal.SIGTERM, True),
        (signal.SIGHUP, signal.SIGQUIT, False),
        (signal.SIGQUIT, signal.SIGHUP, True),
    ],
    ids=["INT-INT", "INT-TERM-group", "TERM-TERM-group", "HUP-QUIT", "QUIT-HUP-group"],
)
def test_two_signals_end_a_run_in_order(suite, first, second, group, workers):
    """Two within 0.1 s: exit code 2, and what did not run is said in every form."""
    suite.case(REACHES.format(count=60, stops=5, pause=0.2))
    series = [(0, first), (0.1, second)]
    code, out, err = signalled(
        suite, "reached-5", series, "--junitxml=junit.xml", *workers, group=group
    )
    assert code == 2, out + err
    found = agree(suite, code, out)
    assert len(found) == 60
    assert found["test_many[59]"] is Verdict.NOT_RUN
    assert "Traceback" not in out + err
    assert "not as it was found" not in out


@pytest.mark.deadline(150)
@WORKERS
def test_any_series_of_signals_leaves_the_truth(suite, workers):
    """Random series of INT, TERM, HUP and QUIT at random moments (of a seed that is printed): the
    result has the true exit code, and is complete only if no signal came before its end."""
    seed = 1
    chance = random.Random(seed)
    suite.case(REACHES.format(count=20, stops=0, pause=0.01))
    for number in range(3):
        reached = chance.choice(["tests", "reached-0", "reached-10", "reached-19"])
        series = [
            (chance.choice([0.0, 0.01, 0.05, 0.2]), chance.choice(ENDING))
            for _ in range(1 + chance.randrange(5))
        ]
        told = f"seed {seed}, run {number}: {reached} {series} {workers}"
        code, out, err = signalled(suite, reached, series, *workers, group=chance.random() < 0.3)
        path = suite.path / "out" / "result.json"
        if path.exists():
            value = json.loads(path.read_text())
            assert value["run"]["exit_code"] == code, (told, out, err)
            assert value["complete"] == (code == 0), told
            assert code in (0, 2), (told, out, err)
            agree(suite, code)
        else:  # no case had begun
            assert code != 0, told
        for file in [*suite.path.glob("out/*"), *suite.path.glob("reached-*")]:
            file.unlink()
        assert "not as it was found" not in out, (told, out)


def test_case_finds_default_signals(suite):
    """A case has neither the handlers of the run nor the signals that a parent ignores."""
    suite.case(
        """
import signal

def test_dispositions():
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGQUIT) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
"""
    )

    def ignore():
        defaults()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    assert "1 passed" in suite.run(preexec_fn=ignore).stdout


# Full disks.

FILLS = """
import os
import pytest

def fill(room):
    found = os.statvfs("out")
    left = found.f_bavail * found.f_bsize - room
    with open("out/filler", "ab") as file:
        file.write(bytes(max(0, left)))

@pytest.mark.parametrize("n", range(20))
def test_many(n):
    if n == 10:
        fill({room})
    assert not ({fails} and n > 10), "x" * 5000
"""
ON_DISK = """
import json, os, subprocess, sys
subprocess.run(["mount", "-t", "tmpfs", "-o", sys.argv[1], "none", "out"], check=True)
exec(sys.argv[2])
done = subprocess.run(sys.argv[3:], capture_output=True, text=True)
try:
    value = json.load(open("out/result.json"))
except FileNotFoundError:
    value = None
print(json.dumps([done.returncode, done.stdout, done.stderr, value, sorted(os.listdir("out"))]))
"""


def on_disk(suite, size: str, first: str = "", *options: str):
    """Run with ``out`` on a tmpfs of that size: code, output, errors, result, names."""
    (suite.path / "out").mkdir(exist_ok=True)
    done = subprocess.run(
        ["unshare", "-m", sys.executable, "-c", ON_DISK, f"size={size}", first,
         *suite.command("--report=out", *options)],
        cwd=suite.path, capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip
    if "unshare failed" in done.stderr or "mount: " in done.stderr:
        pytest.skip(f"needs a mount of its own (CAP_SYS_ADMIN): {done.stderr.splitlines()[0]}")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_disk_that_is_full_from_the_start_is_one_line(suite):
    """Nothing is run, what lies there stays, and one line says what to do."""
    suite.case(PAIR)
    old = (
        "open('out/result.json', 'w').write('{\"old\": 1}');"
        "open('out/x', 'wb').write(bytes(4096 * 14))"
    )
    code, out, err, value, names = on_disk(suite, "64k", old)
    assert (code, value) == (4, {"old": 1}), out + err
    assert "chapter" not in out
    (line,) = err.strip().splitlines()
    assert "--report out cannot be written (No space left on device)" in line
    assert names == ["result.json", "x"]


@pytest.mark.parametrize(
    ("room", "fails", "workers"),
    [(0, False, ()), (0, True, ("-n", "2")), (4096, True, ()), (40960, True, ())],
)
def test_disk_that_fills_up_leaves_the_last_valid_state(suite, room, workers, fails):
    """The result stays JSON and says it is cut off; a line, a code that is not 0, no traceback."""
    suite.case(FILLS.format(room=room, fails=fails))
    code, out, err, value, names = on_disk(suite, "1m", "", *workers)
    assert "Traceback" not in out + err
    assert "INTERNALERROR" not in out
    assert not [n for n in names if n.endswith(".new")]
    if "cannot be written" in err:
        assert code == 1
        for line in err.strip().splitlines():
            assert re.fullmatch(
                r"memlock-tests: --report: \S+ cannot be written \(No space.*", line
            )
    else:
        assert code == int(fails)
    if "result.json cannot be written" in err:
        assert value["complete"] is False
        assert value["run"]["exit_code"] is None
        assert 0 < len(value["behaviours"]) <= 20
    else:
        assert value["run"]["exit_code"] == code
        assert value["complete"]
    if room == 0:
        assert "result.json cannot be written" in err


@pytest.mark.parametrize(
    ("name", "kind"),
    [("result.json", "folder"), ("result.ktap", "full device"), ("results.yaml", "folder")],
)
def test_what_is_no_file_is_refused_before_anything_runs(suite, name, kind):
    """A folder or a device of such a name: one line, exit code 4."""
    suite.case(PAIR)
    (suite.path / "out").mkdir()
    path: Path = suite.path / "out" / name
    path.mkdir() if kind == "folder" else path.symlink_to("/dev/full")
    done = suite.run("--report=out")
    assert done.returncode == 4
    (line,) = done.stderr.strip().splitlines()
    assert f"out/{name} is no file" in line
    assert "passed" not in done.stdout
