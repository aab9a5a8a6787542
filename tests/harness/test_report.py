# SPDX-License-Identifier: MIT
"""Results: one file, every format of it in agreement, comparisons, and bad input told in a line."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from helpers.machine import timeouts
from helpers.report import ktap, result
from helpers.report.verdicts import CaseResult, Verdict

ROW = re.compile(r"^calls +(.*)$", re.MULTILINE)
ROOT = Path(__file__).resolve().parents[2]


def report(*arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """``python -m helpers.report …``."""
    return subprocess.run(
        [sys.executable, "-m", "helpers.report", *map(str, arguments)],
        cwd=cwd, env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=timeouts.scaled(50), check=False,
    )  # fmt: skip


def made(path: Path, verdicts: dict[str, str], *, run: str = "", release: str = "6.1.0", **extra):
    """A result file with these behaviours."""
    rows = [
        {
            "id": f"tests/calls/test_a.py::{name}", "chapter": "calls", "statement": f"{name}.",
            "source": "", "claims": "", "verdict": verdict, "reason": "", "duration": 0.01,
        }
        | extra.get(name, {})
        for name, verdict in verdicts.items()
    ]  # fmt: skip
    value = {
        "schema": 1,
        "run": {
            "id": run or path.stem, "started": 0.0, "ended": 1.0, "exit_code": 0,
            "kernel": {"release": release, "version": "#1", "cmdline": "", "config": {}},
            "architecture": "x86_64", "page_size": 4096,
            "machine": {"cpu": "c", "cpus": 2, "memory": 1 << 30, "virtual": ""},
            "rights": {}, "tools": {}, "command": [], "facilities": [],
        },
        "complete": True,
        "behaviours": rows,
    }  # fmt: skip
    path.write_text(json.dumps(value))
    return path


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["alone", "workers"])
def test_report_outside_of_the_project(suite, tmp_path_factory, workers):
    """The folder of the report may lie anywhere: it is no path of tests, for workers neither."""
    suite.case(suite.DEVIANT)
    out = tmp_path_factory.mktemp("elsewhere") / "out"
    command = [word for word in suite.command("--report", str(out), *workers) if word != "tests"]
    done = suite.run(command=command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(result.load(out).behaviours) == 2


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["alone", "workers"])
def test_all_formats_agree(suite, workers):
    """Terminal, JSON, KTAP, tmt and JUnit tell the same verdicts of the same behaviours."""
    from xml.etree import ElementTree

    suite.case(suite.EVERY)
    done = suite.run("--report", "out", "--junitxml", "out/junit.xml", *workers)
    found = result.load(suite.path / "out")
    assert found.complete
    assert found.run["exit_code"] == done.returncode == 1
    counts = Counter(b.verdict for b in found.behaviours.values())
    assert counts == Counter(v for v in Verdict if v is not Verdict.NOT_RUN), "one of each"

    header = re.search(r"^chapter +(.*)$", done.stdout, re.MULTILINE)[1]
    told = dict(zip(re.split(r"  +", header.strip()), map(int, ROW.search(done.stdout)[1].split())))
    assert told == {v.value: n for v, n in counts.items()}

    text = (suite.path / "out" / "result.ktap").read_text()
    names = ktap.unique_ktap_ids(found.behaviours.values())
    pairs = re.findall(r"^    ((?:not )?ok) \d+ (\S+)", text, re.MULTILINE)
    lines = {name: ok for ok, name in pairs}
    bad = {Verdict.FAILED, Verdict.BROKEN}
    assert lines == {
        names[b.id]: "not ok" if b.verdict in bad else "ok" for b in found.behaviours.values()
    }

    tmt = {row["name"]: row["result"] for row in json.loads(
        (suite.path / "out" / "results.yaml").read_text())}  # fmt: skip
    assert sorted(tmt.values()) == ["error", "fail", "info", "info", "pass", "skip"]

    cases = list(ElementTree.parse(suite.path / "out" / "junit.xml").iter("testcase"))
    assert len(cases) == len(found.behaviours)
    assert sum(c.find("failure") is not None for c in cases) == counts[Verdict.FAILED]
    assert sum(c.find("error") is not None for c in cases) == counts[Verdict.BROKEN]

    failed = next(b for b in found.behaviours.values() if b.verdict is Verdict.FAILED)
    assert failed.statement == "VmLck counts both pages."
    titles = [title for title, _ in failed.evidence]
    assert "Memory under test" in titles


def test_page_agrees_too(suite):
    """The page has each verdict as often as the result file."""
    pytest.importorskip("jinja2", reason="needs jinja2: pip install jinja2")
    suite.case(suite.EVERY)
    suite.run("--report", "out")
    assert report("html", suite.path / "out", "-o", suite.path / "r.html").returncode == 0
    text = (suite.path / "r.html").read_text()
    for verdict in Verdict:
        count = 0 if verdict is Verdict.NOT_RUN else 1
        cells = re.findall(rf'<td class="\w+" title="{verdict.value}[":]', text)
        assert len(cells) == count, verdict
    assert "http" not in re.sub(r'<a href="https://[^"]*"', "", text), "links, and no more"


def test_killed_run_leaves_a_readable_file(suite):
    """A run that is killed leaves what it had found out, marked as cut off."""
    suite.case(
        """
import time

def test_one():
    pass

def test_two():
    open("reached", "w").close()
    time.sleep(1000)
"""
    )
    with subprocess.Popen(suite.command("--report", "out"), cwd=suite.path,
                          stdout=subprocess.DEVNULL) as run:  # fmt: skip
        until = timeouts.until(30)
        while not (suite.path / "reached").exists() and time.monotonic() < until:
            time.sleep(0.02)
        run.send_signal(signal.SIGKILL)
    found = result.load(suite.path / "out")
    assert not found.complete
    (one,) = found.behaviours.values()
    assert (one.id, one.verdict) == ("tests/calls/test_case.py::test_one", Verdict.VERIFIED)


def test_interrupted_run_says_so(suite):
    """A run that ends early (-x here) is not complete, and holds what was found out by then."""
    suite.case(suite.EVERY)
    suite.run("--report", "out", "-x")
    found = result.load(suite.path / "out")
    assert not found.complete
    verdicts = [b.verdict for b in found.behaviours.values()]
    assert verdicts == [Verdict.VERIFIED, Verdict.FAILED] + 4 * [Verdict.NOT_RUN]


def test_result_follows_its_schema(suite):
    """A real result is what schema.json says, field by field."""
    schema = json.loads((ROOT / "helpers" / "report" / "schema.json").read_text())
    suite.case(suite.EVERY)
    suite.run("--report", "out")
    value = json.loads((suite.path / "out" / "result.json").read_text())
    assert list(problems(value, schema)) == []
    assert schema["properties"]["schema"]["const"] == result.SCHEMA


KINDS = {
    "object": dict, "array": list, "string": str, "boolean": bool, "integer": int,
    "null": type(None), "number": (int, float),
}  # fmt: skip


def problems(value, schema, where="result"):
    """What JSON Schema would say, for the words that our schema uses."""
    if "const" in schema and (value != schema["const"] or isinstance(value, bool)):
        yield f"{where}: {value!r} is not {schema['const']!r}"
    if "enum" in schema and value not in schema["enum"]:
        yield f"{where}: {value!r} is none of {schema['enum']}"
    if "type" in schema:
        kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        alike = [kind for kind in kinds if isinstance(value, KINDS[kind])]
        if not alike or (isinstance(value, bool) and "boolean" not in alike):
            yield f"{where}: {type(value).__name__} is no {kinds}"
            return
    bounded = isinstance(value, (int, float)) and "minimum" in schema
    if bounded and not schema["minimum"] <= value <= schema["maximum"]:
        yield f"{where}: {value} is out of range"
    if isinstance(value, dict):
        yield from (f"{where}: no {key}" for key in schema.get("required", ()) if key not in value)
        for key, item in value.items():
            inner = schema.get("properties", {}).get(key, schema.get("additionalProperties"))
            if inner is None and schema.get("properties"):
                yield f"{where}: {key} is not in the schema"
            elif isinstance(inner, dict):
                yield from problems(item, inner, f"{where}.{key}")
    if isinstance(value, list) and "items" in schema:
        for index, item in enumerate(value):
            yield from problems(item, schema["items"], f"{where}[{index}]")


V, N, F, D = "verified", "not verified", "failed", "deviates"


def test_comparison_names_every_change(tmp_path):
    """new, gone, broken, mended, no longer verified, deviates now: each where it belongs."""
    a = made(tmp_path / "a.json", {"same": V, "worse": V, "lost": V, "old": V, "fixed": F, "dev": V,
                                   "seen": N})  # fmt: skip
    b = made(
        tmp_path / "b.json",
        {"same": V, "worse": F, "lost": N, "late": V, "fixed": V, "dev": D, "seen": V},
        release="6.2.0", same={"duration": 2.0},
    )  # fmt: skip
    done = report("compare", a, b, "--json")
    value = json.loads(done.stdout)
    kinds = {c["id"].split("::")[1]: c["kind"] for c in value["changes"]}
    assert kinds == {
        "worse": "broken", "lost": "no longer verified", "old": "gone", "late": "new",
        "fixed": "mended", "dev": "deviates now", "seen": "newly verified",
    }  # fmt: skip
    assert [o["id"] for o in value["duration_outliers"]] == ["tests/calls/test_a.py::same"]
    assert done.returncode == 1, "something verified no longer is"
    text = report("compare", a, b)
    assert "6.1.0 x86_64  ->  6.2.0 x86_64" in text.stdout
    assert "broken (1):" in text.stdout
    assert "| broken |" in report("compare", a, b, "--markdown").stdout
    same = made(tmp_path / "c.json", {"same": V})
    again = made(tmp_path / "d.json", {"same": V})
    done = report("compare", same, again)
    assert (done.returncode, "no verdict changed" in done.stdout) == (0, True)


def test_more_than_two_make_a_matrix(tmp_path):
    """Three results: behaviours by kernel, a mark a verdict."""
    files = [
        made(tmp_path / f"{n}.json", verdicts, release=f"6.{n}.0")
        for n, verdicts in enumerate(
            [{"a[/proc]": V, "b": V}, {"a[/proc]": V, "b": F}, {"a[/proc]": V}]
        )
    ]
    done = report("compare", *files)
    assert "+F   tests/calls/test_a.py::b" in done.stdout
    assert "1 of 2 behaviours have one verdict everywhere" in done.stdout
    assert done.returncode == 1
    table = report("compare", *files, "--markdown").stdout
    assert "| kernel | calls | total |" in table
    assert "| 6.0.0 x86_64 | 2 | 2 |\n| 6.1.0 x86_64 | 1 1F | 1 1F |\n" in table


BAD = {
    "empty": ("", "empty"),
    "truncated": ('{"schema": 1, "run": {', "truncated or not JSON"),
    "foreign": ('{"a": 1}', "not a result of memlock-tests"),
    "list": ("[]", "not a result of memlock-tests"),
    "newer": ('{"schema": 99}', "schema 99 is newer than this suite's 1"),
    "hollow": ('{"schema": 1, "run": {}, "complete": true, "behaviours": []}', "not a result of"),
    "verdict": ('{"schema": 1, "run": {"id": "x", "architecture": "y", "page_size": 4096, "kernel":'
                ' {"release": "z"}}, "complete": true, "behaviours": [{"id": "q"}]}',
                "not a result of schema 1"),
    "deep": ('{"a":' + "[" * 100_000, "truncated or not JSON"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_file_is_one_line(tmp_path, name):
    """A file that cannot be used is named in one line; the others are still compared."""
    text, words = BAD[name]
    bad = tmp_path / "bad.json"
    bad.write_text(text)
    good = [made(tmp_path / f"{n}.json", {"a": V}) for n in range(2)]
    for arguments in ((good[0], bad), (good[0], bad, good[1])):
        done = report("compare", *arguments)
        assert done.returncode == 4
        assert words in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "1 of 1 behaviours have one verdict" in done.stdout, "the good ones are compared"


def test_paths_without_results_are_one_line(tmp_path):
    """No such file, a folder without a result, one run twice."""
    good = made(tmp_path / "a.json", {"a": V})
    twin = made(tmp_path / "b.json", {"a": V}, run="a")
    for path, words in (
        (tmp_path / "none.json", "no such file"),
        (tmp_path, "no result.json in this folder"),
        (twin, "two files of the same run"),
    ):
        done = report("compare", good, path)
        assert done.returncode == 4
        assert words in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr


HOSTILE = "<script>alert(1)</script> | \x1b[31m `x` \n not ok 1 evil # SKIP \u202e" + "y" * 5000


def test_hostile_text_is_shown_as_text(tmp_path):
    """Markup, control characters and line breaks in a result reach no reader as such."""
    rows = {"a": {"reason": HOSTILE, "statement": HOSTILE, "id": f"tests/calls/{HOSTILE}::a"}}
    a = made(tmp_path / "a.json", {"a": F}, release=HOSTILE, **rows)
    b = made(tmp_path / "b.json", {"a": V})
    for form in ((), ("--json",), ("--markdown",)):
        out = report("compare", a, b, *form).stdout
        assert "\x1b" not in out
        assert "\u202e" not in out
        assert "\nnot ok" not in out
    assert "<script>" not in report("compare", a, b, "--markdown").stdout
    behaviour = CaseResult(HOSTILE, "calls", verdict=Verdict.NOT_VERIFIED, reason=HOSTILE)
    text = ktap.ktap([behaviour])
    assert len(re.findall(r"^ *(not )?ok ", text, re.MULTILINE)) == 2
    assert "\x1b" not in text
    if report("html", b, "-o", tmp_path / "x.html").returncode == 0:
        assert report("html", a, "-o", tmp_path / "h.html").returncode == 0
        pages = [(tmp_path / f"{name}.html").read_text() for name in "xh"]
        assert len({page.count("<script") for page in pages}) == 1, "the page's own"


def test_word_ids_are_words_and_distinct():
    """Ids hold only letters, digits, dots, dashes and underscores, and stay apart."""
    rows = [CaseResult(f"tests/calls/test_a.py::t[{p}]") for p in ("a b", "a  b", "a|b", "é", "ü")]
    names = list(ktap.unique_ktap_ids(rows).values())
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+", n) for n in names)


def lava(text):
    """What LAVA's kselftest parser (Linaro test-definitions) makes of it: (name, verdict) pairs.

    It takes every line with "ok", a number and a rest, strips "# …" of failures only, and turns
    the rest into a name.
    """
    for line in text.splitlines():
        if found := re.match(r".*?(not )?ok \d{1,5} (.*)$", line):
            bad, rest = found.groups()
            verdict = "fail" if bad else "skip" if "# SKIP" in rest else "pass"
            rest = re.sub("# .*$" if bad else "# SKIP", "", rest)
            yield re.sub(r"[^A-Za-z0-9_-]+", "_", rest).strip("_"), verdict


def test_lava_tells_behaviours_apart():
    """LAVA's kselftest parser sees one result a behaviour, under a name of its own that does not
    depend on the machine, though it takes skip reasons for part of the name."""
    rows = [
        CaseResult(f"tests/calls/test_a.py::t{p}", "calls", verdict=v, reason="needs x: none",
                  detail=f"needs x: none ({number} left)")
        for number, (p, v) in enumerate(
            [("[a.b]", Verdict.VERIFIED), ("[a_b]", Verdict.VERIFIED), ("[a b]", Verdict.FAILED),
             ("[1]", Verdict.NOT_VERIFIED), ("[2]", Verdict.INCONCLUSIVE),
             ("[3]", Verdict.DEVIATES), ("[not ok 4 x]", Verdict.BROKEN), ("[4]", Verdict.NOT_RUN)])
    ]  # fmt: skip
    seen = list(lava(ktap.ktap(rows)))
    names = [name for name, _ in seen]
    assert len(set(names)) == len(names) == len(rows) + 1, "and one for the chapter"
    assert Counter(v for _, v in seen) == {"pass": 3, "fail": 4, "skip": 2}
    assert not any("left" in name for name in names), "what varies stands on diagnostic lines"


def test_thousand_results_compare_within_bounds(tmp_path):
    """1,000 results of 1,000 behaviours compare in less than 10 s of CPU and 500 MB."""
    first = made(tmp_path / "0.json", {f"t{i}": V for i in range(1000)}).read_text()
    for n in range(1, 1000):
        (tmp_path / f"{n}.json").write_text(first.replace('"id": "0"', f'"id": "{n}"', 1))
    files = sorted(map(str, tmp_path.glob("*.json")))
    with subprocess.Popen(
        [sys.executable, "-m", "helpers.report", "compare", *files],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    ) as run:  # fmt: skip
        told = run.stdout.read()
        _, status, used = os.wait4(run.pid, 0)
        run.returncode = os.waitstatus_to_exitcode(status)
    assert run.returncode == 0
    assert "1000 of 1000 behaviours have one verdict everywhere" in told
    assert used.ru_maxrss < 500_000, "kB"
    assert used.ru_utime + used.ru_stime < 10, "seconds of CPU"


def test_result_of_an_earlier_suite_is_compared_by_the_ids_of_today(tmp_path):
    """A renamed case is not lost, and one that hid variants stands for each of them."""
    table = json.loads((ROOT / "helpers/report/renamed.json").read_text())
    (case, variants), *_ = table["cases"].items()
    (file, now), *_ = table["files"].items()
    rows = {"a": {"id": case}, "b": {"id": f"{file}::test"}}
    old = made(tmp_path / "a.json", {"a": V, "b": V}, **rows)
    rows = {n: {"id": n} for n in [*variants, f"{now}::test"]}
    new = made(tmp_path / "b.json", dict.fromkeys(rows, V), **rows)
    assert "no verdict changed" in report("compare", old, new).stdout
    bad = made(tmp_path / "c.json", dict.fromkeys(rows, V) | {variants[-1]: F}, **rows)
    done = report("compare", old, bad)
    assert done.returncode == 1
    assert variants[-1] in done.stdout
