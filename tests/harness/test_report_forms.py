# SPDX-License-Identifier: MIT
"""Results handed to others, each read by the program that it is made for."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from helpers.machine import timeouts
from helpers.report import github, ktap, result
from helpers.report.__main__ import FORMS
from helpers.report.verdicts import CaseResult, Verdict
from tests.harness.test_report_input import FOREIGN, HOSTILE, judged, kept, row, tool, whole

ROOT = Path(__file__).resolve().parents[2]
EVERY = [row(f"t[{v.value}]", v.value, reason=f"why # {v.value}", line=7) for v in Verdict]
ODD = row(f"odd{HOSTILE}[a..b]", "failed", reason=f"]]> <x> & {HOSTILE}\0", statement=HOSTILE,
          evidence=[{"title": HOSTILE, "text": f"lo\n{HOSTILE}" + "y" * 30_000}])  # fmt: skip
KNOWN = row("known", "deviates", reason="wrapping-length: 0; expected: EINVAL (2.6 on, mm/mlock.c)")


@pytest.fixture
def made(tmp_path):
    """A result with each verdict, hostile text and a known deviation, and each form of it."""
    kept(tmp_path / "result.json", whole("r1", [*EVERY, ODD, KNOWN]))

    def form(name, *options):
        file = tmp_path / FORMS[name][1]
        code, out, lines = tool("report", name, tmp_path, "-o", file, *options)
        assert (code, out, lines) == (0, "", [])
        return file

    return form


def test_kcidb_accepts_a_result(made):
    """kcidb-io's schema, the oldest and the newest of version 5, takes it; each status is there."""
    schema = pytest.importorskip("kcidb_io", reason="needs kcidb-io: pip install kcidb-io").schema
    value = json.loads(made("kcidb").read_text())
    for version in (schema.V5_0, schema.LATEST):
        assert version.is_compatible(value)
        version.validate(value)
    found = Counter(test["status"] for test in value["tests"])
    assert found == {"PASS": 1, "FAIL": 4, "ERROR": 1, "SKIP": 1, "DONE": 1, "MISS": 1}
    assert len({test["id"] for test in value["tests"]}) == len(value["tests"])
    ids = {test["id"]: test["status"] for test in value["tests"]}
    assert [ids[each["test_id"]] for each in value["incidents"]] == ["FAIL", "FAIL"]
    issues = {each["id"] for each in value["issues"]}
    assert "memlock_tests:wrapping-length" in issues
    assert {each["issue_id"] for each in value["incidents"]} == issues
    value["tests"][0]["status"] = "BROKEN"
    assert not schema.LATEST.is_valid(value), "the schema refuses what is wrong"


def test_kcidb_knows_the_build(made, tmp_path):
    """With --build the tests are of a build that KCIDB has; nonsense is one line and 4."""
    value = json.loads(made("kcidb", "--origin", "ours", "--build", "maestro:abc").read_text())
    assert {test["build_id"] for test in value["tests"]} == {"maestro:abc"}
    assert {test["id"].partition(":")[0] for test in value["tests"]} == {"ours"}
    assert "builds" not in value
    for options in (("--origin", "A b"), ("--build", "none"), ("--build", "")):
        code, _, lines = tool("report", "kcidb", tmp_path, "-o", tmp_path / "x", *options)
        assert (code, len(lines)) == ((4, 1) if options[1] else (0, 0)), options


def kunit() -> Path | None:
    """The kernel tree's own KTAP parser, where a kernel source is at hand."""
    named = os.environ.get("KUNIT_PY")
    places = (
        [Path(named)] if named else Path("/usr/src").glob("linux*/tools/testing/kunit/kunit.py")
    )
    return next((p for p in places if p.is_file()), None)


def test_kunit_parser_takes_our_ktap(made):
    """tools/testing/kunit/kunit.py parse counts what we counted, without an error of its own."""
    judge = kunit()
    if judge is None:
        pytest.skip(
            "needs the kernel's kunit.py: name it by KUNIT_PY=…/tools/testing/kunit/kunit.py "
            "(apt download linux-source)"
        )
    done = subprocess.run(
        [sys.executable, judge, "parse", made("ktap")], capture_output=True, text=True,
        check=False, cwd=judge.parents[3], env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert "[ERROR]" not in done.stdout, done.stdout
    assert re.search(r"Ran 9 tests: passed: 3, failed: 4, skipped: 2", done.stdout), done.stdout


def test_junit_is_read(made):
    """junitparser counts what we counted, suite by suite, and finds message and statement."""
    reader = pytest.importorskip("junitparser", reason="needs junitparser: pip install junitparser")
    found = reader.JUnitXml.fromfile(str(made("junit")))
    assert (found.tests, found.failures, found.errors, found.skipped) == (9, 2, 2, 4)
    suites = list(found)
    cases = [case for suite in suites for case in suite]
    assert [suite.name for suite in suites] == ["calls"]
    kinds = Counter(type(e).__name__ for case in cases for e in case.result)
    assert kinds == {"Failure": 2, "Error": 2, "Skipped": 4}
    found.update_statistics()
    assert (found.tests, found.failures, found.errors, found.skipped) == (9, 2, 2, 4)
    case = next(c for c in cases if c.name == "known")
    assert (case.classname, case.result[0].type) == ("tests.calls.test_a", "pytest.xfail")
    assert {p.name: p.value for p in case.child(reader.Properties)}["statement"] == "known."


def test_junit_is_what_pytest_says(suite, tmp_path):
    """The JUnit made of a result has the counts and names of pytest's own."""
    reader = pytest.importorskip("junitparser", reason="needs junitparser: pip install junitparser")
    suite.case(suite.EVERY)
    suite.run("--report", "out", "--junitxml", "pytest.xml")
    assert tool("report", "junit", suite.path / "out", "-o", tmp_path / "ours.xml")[0] == 0
    told = []
    for path in (suite.path / "pytest.xml", tmp_path / "ours.xml"):
        cases = [case for group in reader.JUnitXml.fromfile(str(path)) for case in group]
        told.append({(c.classname, c.name, *(type(e).__name__ for e in c.result)) for c in cases})
    assert told[0] == told[1]
    lines = {b.line for b in result.load(suite.path / "out").behaviours.values()}
    text = (suite.path / "tests/calls/test_case.py").read_text().splitlines()
    assert {text[n - 1].split("(")[0][:5] for n in lines} <= {"def t", "@pyte"}, lines


def test_tmt_reports_our_results(made, tmp_path):
    """tmt run takes results.yaml for custom results, each of the outcome that it stands for."""
    tmt = shutil.which("tmt", path=os.environ.get("TMT_PATH"))
    if not tmt or not shutil.which("rsync"):
        pytest.skip("needs tmt (pip install tmt, or TMT_PATH where it is) and rsync")
    tree = tmp_path / "tree"
    (tree / ".fmf").mkdir(parents=True)
    (tree / ".fmf/version").write_text("1\n")
    shutil.copy(made("tmt"), tree / "results.yaml")
    (tree / "plan.fmf").write_text(
        "/plan:\n  discover: {how: fmf}\n  execute: {how: tmt}\n  provision: {how: local}\n"
        "/case:\n  test: cp $TMT_TREE/results.yaml $TMT_TEST_DATA/results.yaml\n  result: custom\n"
    )
    done = subprocess.run(
        [tmt, "--feeling-safe", "run", "-i", tmp_path / "run", "--all", "report", "-vv"],
        cwd=tree, capture_output=True, text=True, check=False,
        timeout=timeouts.scaled(120), env=os.environ | {"HOME": str(tmp_path)},
    )  # fmt: skip
    told = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr)
    summary = re.search(r"summary: (\d+ tests? passed.*)", told)
    assert summary, told[-3000:]
    assert summary[1] == "1 test passed, 2 tests failed, 1 test skipped, 3 infos and 2 errors"


def test_forms_go_to_standard_output(made, tmp_path):
    """-o - prints each form, and what is printed is what is kept."""
    for name in FORMS:
        code, out, lines = tool("report", name, tmp_path, "-o", "-")
        assert (code, lines) == (0, [])
        assert out == made(name).read_text(encoding="utf-8"), name
        assert not FOREIGN.search(out), name


@pytest.mark.parametrize("name", FORMS)
def test_bad_input_of_a_form_is_one_line(tmp_path, name):
    """What is no result, or cannot be written, is one line and 4; what was there stays."""
    bad, good = tmp_path / "bad.json", kept(tmp_path / "good.json", whole())
    for text in ("", "{", "[]", '{"schema": 99}'):
        bad.write_text(text)
        assert judged(tool("report", name, bad, "-o", tmp_path / "x"), text) == 4
    assert not (tmp_path / "x").exists()
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "folder", tmp_path / "none/x", "/dev/full"):
        assert judged(tool("report", name, good, "-o", path), path) == 4
    assert judged(tool("report", name), "no argument") == 4


def failed(name, **more):
    return CaseResult(f"tests/calls/test_a.py::{name}", "calls", f"{name}.",
                      verdict=Verdict.FAILED, **more)  # fmt: skip


def test_annotations_are_escaped(tmp_path, monkeypatch):
    """File, line and title of a case, with %, line ends, commas and colons as GitHub reads them."""
    monkeypatch.setenv("GITHUB_WORKSPACE", str(tmp_path))
    case = failed("t", line=12, reason="50% of\r\na, b: c\x1b")
    case.statement = "VmLck, 100%: all\n::error::x"
    (line,) = github.workflow_commands([case], tmp_path / "suite")
    assert line == (
        "::error file=suite/tests/calls/test_a.py,line=12,"
        "title=VmLck%2C 100%25%3A all %3A%3Aerror%3A%3Ax::"
        "tests/calls/test_a.py::t: failed%0A50%25 of?%0Aa, b: c?"
    )


def test_annotations_are_as_many_as_github_shows(tmp_path):
    """Of more than ten failures nine are told, and how many more there are."""
    rows = [failed(f"t{n}") for n in range(25)]
    assert len(github.workflow_commands(rows[:10], tmp_path)) == 10
    lines = github.workflow_commands(rows, tmp_path)
    assert len(lines) == 10
    assert lines[-1] == "::error title=memlock-tests::16 more failures"
    verified = CaseResult("tests/calls/test_a.py::v")
    assert github.workflow_commands([verified], tmp_path) == []


def test_summary_fits_and_is_text():
    """However much failed, the summary is at most 1 MiB, says what is left out, and holds no markup
    of what it shows."""
    rows = [
        failed(f"t{n}", reason="<script>|`x`" + "é" * 3000, evidence=[("<b>", "z\n\n</pre>" * 400)])
        for n in range(400)
    ]
    text = github.summary(rows, "Linux <6>")
    assert 1_000_000 < len(text) <= github.LARGEST
    told = text.decode()
    assert "| total | 400 |" in told
    assert re.search(r"\n\d+ more failures did not fit", told)
    assert not re.search(r"<(script|b)>|z\n", told)
    assert "## Linux &lt;6&gt;" in told
    assert len(github.summary(rows, "x", 10_000)) <= 10_000
    assert github.summary(rows, "x", 10) == b""


def test_run_in_actions_tells_github(suite):
    """A run with --report appends table and failures to the step's summary and annotates the line
    of each case that failed; without --report it does not."""
    suite.case(suite.EVERY)
    file = suite.path / "summary.md"
    file.write_text("before\n")
    env = {"GITHUB_STEP_SUMMARY": str(file), "GITHUB_WORKSPACE": str(suite.path)}
    assert "::error" not in suite.run(env=env).stdout
    assert file.read_text() == "before\n"
    done = suite.run("--report", "out", "-n", "2", env=env)
    assert done.returncode == 1
    told = file.read_text()
    assert told.startswith("before\n")
    assert re.search(r"^\| calls \|( 1 \|){6}$", told, re.MULTILINE), told[:500]
    assert "### VmLck counts both pages." in told
    assert "wrapping-length" in told
    lines = re.findall(r"^::error file=tests/calls/test_case.py,line=(\d+),", done.stdout, re.M)
    text = (suite.chapter / "test_case.py").read_text().splitlines()
    assert sorted(text[int(n) - 1] for n in lines) == ["def test_broken(broken):",
                                                       "def test_failed():"]  # fmt: skip


@pytest.mark.parametrize("how", ["none/summary", "folder", "fifo", "/dev/full", ""])
def test_summary_that_cannot_be_written_is_one_line(suite, how):
    """The result is kept and the exit code stays; one line says that there is no summary."""
    suite.case("def test_one():\n    pass\n")
    (suite.path / "folder").mkdir()
    os.mkfifo(suite.path / "fifo")
    path = str(suite.path / how) if how else ""
    done = suite.run("--report", "out", "-q", env={"GITHUB_STEP_SUMMARY": path})
    assert done.returncode == 0
    assert len(done.stderr.splitlines()) == bool(how), done.stderr
    assert not how or "GITHUB_STEP_SUMMARY" in done.stderr
    assert result.load(suite.path / "out").complete


def test_result_of_a_guest_is_told_to_github(tmp_path, monkeypatch):
    """``report github`` does the same from a result; outside Actions it is one line and 4."""
    kept(tmp_path / "result.json", whole("r", [*EVERY, ODD]))
    code, _, lines = tool("report", "github", tmp_path)
    assert (code, len(lines)) == (4, 1)
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    code, out, lines = tool("report", "github", tmp_path)
    assert (code, lines) == (0, [])
    assert out.count("::error file=tests/calls/test_a.py,line=") == 3
    text = (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert "6.1.0 x86&#95;64" in text
    assert not FOREIGN.search(text + out)


def test_names_are_the_same_everywhere(made):
    """A behaviour has one name in KTAP, tmt, KCIDB and on the page."""
    page = made("ktap").parent / "page.html"
    assert tool("report", "html", page.parent, "-o", page)[0] == 0
    anchors = set(re.findall(r' id="([\w.-]+)"', page.read_text(encoding="utf-8")))
    names = ktap.unique_ktap_ids(
        CaseResult(r["id"]) for r in (*EVERY, ODD, KNOWN)
    ).values()  # fmt: skip
    tests = json.loads(made("kcidb").read_text())["tests"]
    assert {test["id"].rpartition(":")[2] for test in tests} == set(names)
    rows = json.loads(made("tmt").read_text())
    assert {r["name"].strip("/").replace("/", ".") for r in rows} >= {"calls.test_a.known"}
    assert set(names) <= anchors
