# SPDX-License-Identifier: MIT
"""The tools that read results, under broken and hostile input: one line, 4, nothing lost."""

import contextlib
import copy
import importlib
import io
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.machine import timeouts
from helpers.report import detection_matrix, ktap, result
from helpers.report.files import InvalidResult
from helpers.report.verdicts import Verdict

pytest.importorskip("msgspec", reason="needs msgspec: pip install msgspec")
pytest.importorskip("jinja2", reason="needs jinja2: pip install jinja2")

ROOT = Path(__file__).resolve().parents[2]
SEED = 13
FOREIGN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""What no reader is to be given: control characters but tab and line feed, turned writing."""


def row(name, verdict="verified", **more):
    """A behaviour as a result has it."""
    return {
        "id": f"tests/calls/test_a.py::{name}", "chapter": "calls", "statement": f"{name}.",
        "source": "mlock(2)", "claims": "W5", "verdict": verdict, "reason": "", "duration": 0.25,
    } | more  # fmt: skip


SERIES = [
    {"kind": "timeline", "unit": "kB", "steps": ["start", "mlock 8"],
     "values": {"VmLck": [0, 32], "resident": [None, 1.5]}},
    {"kind": "pages", "letters": {"p": "present", "s": "swapped", "a": "not mapped"},
     "regions": {"private, lo": "pppp", "control": "psaa"}},
]  # fmt: skip
ROWS = [
    row("a"),
    row("b", "failed", reason="VmLck", series=SERIES, detail="x",
        evidence=[{"title": "Memory", "text": "lo\nlf"}]),
    row("c", "not verified", reason="needs a unicorn"),
    row("d", "deviates", reason="known", duration=1),
    row("e", "inconclusive"),
    row("f", "broken set-up"),
]  # fmt: skip
SENSITIVITY = {
    "format": 3, "kernel": "6.1.0", "architecture": "x86_64", "page_size": 4096, "seconds": 60.0,
    "command": [], "all": True, "problems": ["said"],
    "faults": {"lie": {"chapter": "calls", "statement": "mlock lies", "mechanism": "result",
                       "noticed_by": ["calls/test_a"]}},
    "cases": {ROWS[0]["id"]: {"chapter": "calls", "baseline": "held", "seconds": 1.0},
              ROWS[3]["id"]: {"chapter": "calls", "baseline": "deviates"}},
    "cells": {"lie": {"noticed": [0], "missed": [1]}},
}  # fmt: skip


def whole(run="a", rows=ROWS, **more):
    """The content of a result of these behaviours."""
    return copy.deepcopy({
        "schema": 1,
        "run": {
            "id": run, "started": 0.0, "ended": None, "exit_code": 0,
            "kernel": {"release": "6.1.0", "version": "#1", "cmdline": "", "config": {"A": "y"}},
            "architecture": "x86_64", "page_size": 4096, "word_bits": 64,
            "machine": {"cpu": "c", "cpus": 2, "memory": 1 << 30, "virtual": ""},
            "rights": {}, "tools": {"pytest": "9"}, "command": ["pytest"],
            "facilities": [{"name": "swap", "available": True, "reason": "", "detail": "",
                            "remedy": ""}],
        },
        "complete": True,
        "behaviours": rows,
    } | more)  # fmt: skip


def kept(path, value):
    """That content as a file."""
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


TOOLS = {n: importlib.import_module(f"helpers.{n}.__main__") for n in ("report", "faults")}
"""Loaded now: a case that has become another user may not read the checkout."""


def tool(name, *arguments):
    """``helpers.NAME`` in this process: exit code, standard output, lines of standard error."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = TOOLS[name].main([str(each) for each in arguments])
        except SystemExit as end:
            code = end.code
    return code, out.getvalue(), err.getvalue().splitlines()


def command(name, *arguments, shell="", **more):
    """``python -m helpers.NAME …`` in a process of its own, with redirections of the shell."""
    line = f'exec "$@" {shell}'
    return subprocess.run(
        ["sh", "-c", line, "sh", sys.executable, "-m", f"helpers.{name}", *map(str, arguments)],
        cwd=ROOT, capture_output=True, timeout=timeouts.scaled(50), check=False,
        **{"text": True, "errors": "replace"} | more,
    )  # fmt: skip


EVIL = (
    10**400, "@1" + "0" * 5000, -(10**30), -1, 2**63, 0.5, "@1e400", "@-1e400", "@NaN", "@Infinity",
    "@-0.0", True, False, None, "", "no", "verified", "not run", "\ud800", "\udcff x \ud83d",
    "\x00", "\x1b[31m\x07", "\u202eevil\u2066", "a\nb\r\n", "y" * 100_000, [], {}, [[]], {"id": 1},
    ["p"], [1e308, -1e308], "@" + "[" * 500 + "]" * 500, "@" + '{"a":' * 5000 + "1" + "}" * 5000,
)  # fmt: skip


def encoded(value):
    """JSON, with what stands behind an @ as it is."""
    text = json.dumps(value)
    return re.sub(r'"@((?:[^"\\]|\\.)*)"', lambda m: m[1].replace('\\"', '"'), text).encode()


def places(value, path=()):
    """The path of everything in a JSON value."""
    inner = value.items() if isinstance(value, dict) else ()
    for key, item in enumerate(value) if isinstance(value, list) else inner:
        yield (*path, key)
        yield from places(item, (*path, key))


def changed(value, chance):
    """A copy with something in it replaced, removed, renamed, doubled, added or told otherwise."""
    value = copy.deepcopy(value)
    for _ in range(chance.choice((1, 1, 1, 2))):
        every = list(places(value))
        how = chance.randrange(8)
        told = [path for path in every if how == 4 and path[-1] in {"id", "verdict"}]
        *path, key = chance.choice(told or every)
        around = value
        for step in path:
            around = around[step]
        if told:
            around[key] = chance.choice((*map(str, Verdict), "x"))
        elif how == 0:
            del around[key]
        elif how == 1 and isinstance(around, dict):
            around[chance.choice(("x", "", "\u202e\x1b", "\ud800"))] = around.pop(key)
        elif how == 2 and isinstance(around, list):
            around.append(around[key])
        elif how == 3 and isinstance(around, dict):
            around["later"] = chance.choice(EVIL)
        else:
            around[key] = chance.choice(EVIL)
    return value


def damaged(data, chance):
    """The bytes with some of them cut off, overwritten, doubled or made NUL."""
    at = chance.randrange(len(data))
    how = chance.randrange(5)
    if how == 0:
        return data[:at]
    if how == 1:
        return data[:at] + bytes([chance.randrange(256)]) + data[at + 1 :]
    if how == 2:
        return data[:at] + data[at:][: chance.randrange(1, 200)] + data[at:]
    if how == 3:
        return data[:at] + b"\0" * 8 + data[at:]
    return b"\xef\xbb\xbf" + data if at % 2 else data.decode().encode("utf-16")


def judged(ended, what):
    """The code is 0, 1 or 4; 4 with one line, else none; nothing in it acts on a terminal."""
    code, out, lines = ended
    assert code in {0, 1, 4}, what
    assert len(lines) == (code == 4), (what, code, lines)
    assert not FOREIGN.search("".join([out, *lines])), what
    return code


@pytest.mark.parametrize("part", range(4))
def test_damaged_files_end_in_one_line(tmp_path, part):
    """Whatever is changed in a result or a fault matrix: a verdict, or one line and 4."""
    chance = random.Random(SEED + part)
    rows = [*ROWS, *(row(f"v{number}") for number in range(8))]
    good = kept(tmp_path / "good.json", whole("good", rows, sensitivity=SENSITIVITY))
    third = kept(tmp_path / "third.json", whole("third", rows))
    lies = kept(tmp_path / "lies.json", SENSITIVITY)
    bad, page = tmp_path / "bad.json", tmp_path / "page.html"
    codes = set()
    for number in range(150):
        about = SENSITIVITY if number % 3 == 2 else whole("bad", rows, sensitivity=SENSITIVITY)
        data = encoded(changed(about, chance))
        bad.write_bytes(damaged(data, chance) if number % 5 == 4 else data)
        what = f"seed {SEED + part}, {number}: {bad.read_bytes()[:3000]!r}"
        page.unlink(missing_ok=True)
        if number % 3 == 2:
            codes.add(judged(tool("faults", "merge", tmp_path / "m", bad, lies), what))
            codes.add(judged(tool("report", "carry", third, bad), what))
        else:
            for form in ((), ("--json",), ("--markdown",)):
                codes.add(judged(tool("report", "compare", good, bad, *form), what))
                codes.add(judged(tool("report", "compare", good, third, bad, *form), what))
            codes.add(judged(tool("report", "html", bad, "-o", page), what))
            codes.add(judged(tool("report", "carry", bad, lies), what))
        if page.exists():
            assert not FOREIGN.search(page.read_text(encoding="utf-8")), what
        assert result.load(good).behaviours.keys() == {r["id"] for r in rows}
    assert codes == {0, 1, 4}, "the changes reach each end"


def cut(digits):
    """An integer, no longer than Python reads."""
    return int(digits[:400])


def test_reader_and_schema_agree(tmp_path):
    """What schema.json refuses is refused, what it allows is read: each change to a result."""
    from tests.harness.test_report import problems

    schema = json.loads((ROOT / "helpers/report/schema.json").read_text(encoding="utf-8"))
    chance = random.Random(SEED)
    seen = {True: 0, False: 0}
    for _ in range(1500):
        data = encoded(changed(whole(sensitivity=SENSITIVITY), chance))
        path = tmp_path / "result.json"
        path.write_bytes(data)
        try:
            value = json.loads(data, parse_constant=lambda word: object(), parse_int=cut)
            found = [p for p in problems(value, schema) if "not in the schema" not in p]
        except RecursionError:
            continue
        try:
            result.load(path)
            read = ""
        except InvalidResult as error:
            read = str(error)
        # Neither JSON nor msgspec has numbers beyond a double's.
        endless = re.search(rb"1e400|NaN|Infinity|0{4000}", data)
        beside = "a case that is not in" in read or "recursion" in read
        if not endless and not beside:
            assert bool(read) == bool(found), (read, found, data[:3000])
        seen[bool(read)] += 1
    assert min(seen.values()) > 100, seen


@pytest.mark.parametrize("value", ["no", 0, 1, None, [], "true"], ids=repr)
def test_complete_is_true_or_false(tmp_path, value):
    """``complete`` of another kind is no result, where it once counted as complete."""
    bad = kept(tmp_path / "bad.json", whole("bad", complete=value))
    good = kept(tmp_path / "good.json", whole("good"))
    code, _, lines = tool("report", "compare", good, bad)
    assert (code, len(lines)) == (4, 1)
    assert "complete" in lines[0]


FORMS = {
    "two": (2, ()), "two-json": (2, ("--json",)), "two-markdown": (2, ("--markdown",)),
    "many": (3, ()), "many-json": (3, ("--json",)), "many-markdown": (3, ("--markdown",)),
}  # fmt: skip
LACKING = {
    "killed": {"complete": False},
    "not-run": {"rows": [*ROWS, row("g", "not run")]},
    "fewer-than-collected": {"collected": len(ROWS) + 1},
}  # fmt: skip


@pytest.mark.parametrize("how", LACKING)
@pytest.mark.parametrize("form", FORMS)
def test_incomplete_is_said_in_every_form(tmp_path, form, how):
    """Each form of a comparison names the result that is incomplete, whatever it says of itself."""
    number, options = FORMS[form]
    rows = [*ROWS, row("g")]
    files = [kept(tmp_path / f"{n}.json", whole(str(n), rows)) for n in range(number - 1)]
    _, out, _ = tool("report", "compare", *files, files[0], *options)
    assert "incomplete" not in out
    files.append(kept(tmp_path / "x.json", whole("x", **LACKING[how])))
    code, out, lines = tool("report", "compare", *files, *options)
    assert (code, lines) == (1, []), "a case that was verified is not there, or was not run"
    assert "incomplete" in out
    if "--json" in options:
        value = json.loads(out)
        told = value.get("complete") or [value[k]["complete"] for k in ("before", "after")]
        assert told == [True] * (number - 1) + [False]


@pytest.mark.parametrize("how", LACKING)
def test_page_says_incomplete(tmp_path, how):
    """The page says that a result is incomplete, and names what was not run."""
    kept(tmp_path / "x.json", whole("x", **LACKING[how]))
    kept(tmp_path / "y.json", whole("y"))
    for name in "xy":
        file, out = tmp_path / f"{name}.json", tmp_path / f"{name}.html"
        assert tool("report", "html", file, "-o", out)[0] == 0
    texts = [(tmp_path / f"{name}.html").read_text(encoding="utf-8") for name in "xy"]
    assert ["incomplete" in text for text in texts] == [True, False]
    assert ["Not run" in text for text in texts] == [how == "not-run", False]


def test_no_behaviours_are_no_agreement(tmp_path):
    """Results without behaviours do not compare as unchanged: one line, 4."""
    empty = [kept(tmp_path / f"{n}.json", whole(str(n), [])) for n in range(3)]
    for files in (empty[:2], empty):
        code, out, lines = tool("report", "compare", *files)
        assert (code, out, len(lines)) == (4, "", 1)
        assert "no behaviours" in lines[0]


def test_older_results_are_read(tmp_path):
    """A result of schema 1 as the first suites wrote it, and one with members of a later suite."""
    old = whole("old")
    del old["run"]["word_bits"], old["run"]["exit_code"]
    for each in old["behaviours"]:
        for name in ("detail", "evidence", "series"):
            each.pop(name, None)
    late = whole("late", later={"x": [1e300]})
    late["behaviours"][0]["later"] = ["y"]
    late["behaviours"][1]["series"] = [{"kind": "later", "x": 1}]
    files = [kept(tmp_path / "old.json", old), kept(tmp_path / "late.json", late)]
    code, out, lines = tool("report", "compare", *files)
    assert (code, lines) == (0, [])
    assert "no verdict changed (6 behaviours)" in out
    lies = kept(tmp_path / "lies.json", SENSITIVITY)
    assert tool("report", "carry", files[1], lies) == (0, "", [])
    assert json.loads(files[1].read_text())["later"] == {"x": [1e300]}, "nothing is lost"


def test_carry_says_what_it_cannot_write(tmp_path):
    """Members of a later suite that cannot be written again, and a full disk: the result stays."""
    lies = kept(tmp_path / "lies.json", SENSITIVITY)
    for later in ("1" + "0" * 5000, *("[" * n + "]" * n for n in range(900, 1000, 5))):
        text = json.dumps(whole("x", later="@")).replace('"@"', later)
        file = tmp_path / "x.json"
        file.write_text(text)
        if judged(tool("report", "carry", file, lies), later[:20]):
            assert file.read_text() == text
    file = kept(tmp_path / "y.json", whole("y", [row("a" * 100_000)]))
    text = file.read_text()
    most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, most))
    code, _, lines = tool("report", "carry", file, lies)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    assert (code, len(lines), file.read_text()) == (4, 1, text)
    assert str(file) in lines[0]


def test_half_a_character_is_read_and_not_shown(tmp_path):
    """A name or an argument that is not UTF-8 leaves a result that is read."""
    good = kept(tmp_path / "good.json", whole("good"))
    rows = [row("\ud800a \\ud800"), row("\U0001f600 \udc80", "failed", reason="\udcff \x1b[2J")]
    odd = whole("odd", [*ROWS, *rows])
    odd["run"]["command"] = ["pytest", "\udcff"]
    file = kept(tmp_path / "odd.json", odd)
    names = [name.partition("::")[2] for name in result.load(file).behaviours][-2:]
    assert names == ["\ufffda \\ud800", "\U0001f600 \ufffd"]
    code, out, lines = tool("report", "compare", good, file)
    assert (code, lines) == (0, [])
    assert not FOREIGN.search(out)


HOSTILE = "\x1b[31m\x9b2J\x07\u202eevil\u2066\u200b\x7f"


def test_nothing_acts_on_terminal_or_page(tmp_path):
    """Escapes and turned writing in every text of a result reach neither terminal nor page."""

    def hostile(value):
        if isinstance(value, dict):
            return {k if k in KEYS else k + HOSTILE: hostile(v) for k, v in value.items()}
        if isinstance(value, list):
            return [hostile(v) for v in value]
        return f"{value}{HOSTILE}" if isinstance(value, str) and value not in WORDS else value

    value = hostile(whole("hostile", sensitivity=SENSITIVITY))
    a = kept(tmp_path / f"a{HOSTILE}.json", value)
    b = kept(tmp_path / "b.json", whole("b", [ROWS[0]]))
    for form in ((), ("--json",), ("--markdown",)):
        for files in ((a, b), (b, a, kept(tmp_path / "c.json", whole("c")))):
            code, out, lines = tool("report", "compare", *files, *form)
            assert (code, lines) == (1, [])
            assert not FOREIGN.search(out), form
            assert "evil" in out or len(files) == 3, "it is shown as text"
    assert tool("report", "html", a, "-o", tmp_path / "a.html")[0] == 0
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert page.count("evil") > 20
    assert not FOREIGN.search(page)
    assert "\u200b" not in page
    lies = kept(tmp_path / "lies.json", hostile(SENSITIVITY))
    code, out, lines = tool("faults", "merge", tmp_path / "m", lies)
    assert (code, lines) == (0, [])
    assert "evil" in (tmp_path / "m" / "matrix.md").read_text(encoding="utf-8")
    assert not FOREIGN.search(out + (tmp_path / "m" / "matrix.md").read_text(encoding="utf-8"))
    code, _, lines = tool("report", "compare", tmp_path / f"none\n{HOSTILE}", b)
    assert code == 4
    assert not FOREIGN.search(lines[0])


KEYS = {
    *whole(), *whole()["run"], *whole()["run"]["kernel"], *whole()["run"]["machine"],
    *whole()["run"]["facilities"][0], *ROWS[1], "sensitivity", "title", "text", *SERIES[0],
    *SERIES[1], *"psa", *SENSITIVITY, "noticed", "missed", "statement", "mechanism", "noticed_by",
    "chapter", "baseline",
}  # fmt: skip
WORDS = {*map(str, Verdict), "timeline", "pages", "held", "pppp", "psaa"}


def test_one_function_for_what_is_shown():
    """What acts instead of being seen is a question mark; words of every script stay."""
    assert ktap.printable("mlock é 日本語 עברית ✓") == "mlock é 日本語 עברית ✓"
    assert ktap.printable("a\x1b[1m\u202eb\ud800\n", keep="\n") == "a?[1m?b?\n"


PATHS = {
    "fifo": os.mkfifo,
    "folder": lambda path: path.mkdir(),
    "device": lambda path: path.symlink_to("/dev/zero"),
    "full": lambda path: path.symlink_to("/dev/full"),
    "terminal": lambda path: path.symlink_to("/dev/tty"),
    "loop": lambda path: path.symlink_to(path),
    "dangling": lambda path: path.symlink_to(path.parent / "none"),
    "memory": lambda path: path.symlink_to("/proc/self/mem"),
    "huge": lambda path: os.close(os.open(path, os.O_CREAT)) or os.truncate(path, 1 << 40),
    "empty": lambda path: path.touch(),
    "nuls": lambda path: path.write_bytes(bytes(100_000)),
}


@pytest.mark.parametrize("how", PATHS)
def test_what_is_no_file_is_one_line(tmp_path, how):
    """A FIFO, a folder, a device and the like are never waited for: one line, 4, in each tool."""
    good = kept(tmp_path / "good.json", whole("good"))
    lies = kept(tmp_path / "lies.json", SENSITIVITY)
    for name in ("result.json", "matrix.json"):
        (tmp_path / how).mkdir(exist_ok=True)
        PATHS[how](tmp_path / how / name)
    odd = tmp_path / how
    signal.alarm(round(timeouts.scaled(20)))
    for ended in (
        tool("report", "compare", good, odd),
        tool("report", "compare", odd / "result.json", good, "--json"),
        tool("report", "html", odd, "-o", tmp_path / "page.html"),
        tool("report", "carry", odd, lies),
        tool("report", "carry", good, odd),
        tool("faults", "merge", tmp_path / "m", odd),
    ):
        assert judged(ended, how) == 4
    assert not (tmp_path / "page.html").exists()


def test_unreadable_folder_is_one_line(tmp_path):
    """A folder without the right to search it, read by another user, is one line and 4."""
    if os.geteuid():
        pytest.skip("needs root: to become another user")
    shut = tmp_path / "shut"
    shut.mkdir()
    kept(shut / "result.json", whole())
    good = kept(tmp_path / "good.json", whole("good"))
    shut.chmod(0)
    for folder in (tmp_path, *list(tmp_path.parents)[:2]):
        folder.chmod(0o755)
    result.load(good)  # what it is read with may not be there for another user
    os.seteuid(65534)
    for path in (shut, shut / "result.json"):
        assert judged(tool("report", "compare", good, path), path) == 4
        assert judged(tool("faults", "merge", tmp_path / "m", path), path) == 4
    os.seteuid(0)


SINKS = {
    "closed": (">&-", 4), "full": (">/dev/full", 4), "read-only": ("1</dev/null", 4),
    "reader-gone": ("| true", 0),
    "both-closed": (">&- 2>&-", 4), "both-full": (">/dev/full 2>&1", 4),
}  # fmt: skip


@pytest.mark.parametrize("how", SINKS)
@pytest.mark.parametrize("what", ["two", "many", "json", "merge", "list"])
def test_output_that_cannot_be_written_is_one_line(tmp_path, what, how):
    """Standard output that is closed or full, and standard error too, ends in 4."""
    shell, code = SINKS[how]
    files = [kept(tmp_path / f"{n}.json", whole(str(n))) for n in range(3)]
    lies = kept(tmp_path / "lies.json", SENSITIVITY)
    name, *arguments = {
        "two": ("report", "compare", *files[:2]),
        "many": ("report", "compare", *files),
        "json": ("report", "compare", *files, "--json"),
        "merge": ("faults", "merge", tmp_path / "m", lies),
        "list": ("faults", "list"),
    }[what]  # fmt: skip
    line = shell if "|" not in shell else f"{shell}; exit 0"
    done = command(name, *arguments, shell=line)
    assert done.returncode == code
    assert len(done.stderr.splitlines()) == (code == 4 and "both" not in how), done.stderr


def test_page_that_cannot_be_written_is_one_line(tmp_path):
    """An output path that cannot be written is one line and 4; what was there stays."""
    good = kept(tmp_path / "good.json", whole("good"))
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    for path in ("none/x.html", "fifo", "folder", "good.json/x", "/dev/full", "/proc/x.html", ""):
        code, _, lines = tool("report", "html", good, "-o", path and tmp_path / path)
        assert (code, len(lines)) == (4, 1), path
    page = tmp_path / "page.html"
    page.write_text("old")
    page.chmod(0o640)
    most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, most))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    code, _, lines = tool("report", "html", good, "-o", page)
    assert (code, len(lines), page.read_text()) == (4, 1, "old")
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    assert tool("report", "html", good, "-o", page)[0] == 0
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert page.stat().st_mode & 0o777 == 0o640
    left = {p.name for p in tmp_path.iterdir()}
    assert left == {"fifo", "folder", "good.json", "page.html"}


@pytest.mark.parametrize(
    "arguments",
    [(), ("compare",), ("compare", "a"), ("compare", "--yaml", "a", "b"), ("nonsense\n\x1b",),
     ("html",), ("carry", "a"), ("compare", "--json", "--markdown", "a", "b")],
    ids=" ".join,
)  # fmt: skip
def test_arguments_are_one_line(arguments):
    """Arguments that make no sense are one line and 4."""
    for name in ("report", "faults"):
        code, _, lines = tool(name, *arguments)
        assert (code, len(lines)) == (4, 1), lines
    for arguments in (
        ("list", "x"),
        ("matrix", "--out", ""),
        ("merge", "a"),
        ("merge", "--x", "a", "b"),
    ):
        code, _, lines = tool("faults", *arguments)
        assert (code, len(lines)) == (4, 1), lines


def test_ascii_locale_serves(tmp_path):
    """With LC_ALL=C and no UTF-8 mode files are read and written as UTF-8."""
    rows = [row("é\udcff"), row("日本", "failed", reason="≠ é")]
    a, b = tmp_path / "a.json", tmp_path / "é.json"
    for path, run in ((a, "a"), (b, "b")):
        text = json.dumps(whole(run, [*ROWS, *rows] if run == "b" else ROWS), ensure_ascii=False)
        path.write_text(text.replace("\udcff", "\\udcff"), encoding="utf-8")
    env = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for form in ((), ("--json",), ("--markdown",)):
        done = command("report", "compare", a, b, *form, env=env)
        assert (done.returncode, done.stderr) == (0, ""), form
    page = tmp_path / "page.html"
    assert command("report", "html", b, "-o", page, env=env).returncode == 0
    assert "日本" in page.read_text(encoding="utf-8")
    done = command("report", "compare", a, tmp_path / "ö.json", env=env)
    assert (done.returncode, len(done.stderr.splitlines())) == (4, 1)
    lies = copy.deepcopy(SENSITIVITY)
    lies["faults"]["lie"]["statement"] = "mlock lügt"
    (tmp_path / "m.json").write_text(json.dumps(lies, ensure_ascii=False), encoding="utf-8")
    done = command("faults", "merge", tmp_path / "out", tmp_path / "m.json", env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert detection_matrix.load(tmp_path / "out")["faults"] == lies["faults"]


def test_matrices_of_other_kernels_are_not_merged(tmp_path):
    """Parts of different kernels are refused in one line."""
    parts = [kept(tmp_path / f"{r}.json", SENSITIVITY | {"kernel": r}) for r in ("6.1", "6.2")]
    code, _, lines = tool("faults", "merge", tmp_path / "m", *parts)
    assert (code, len(lines)) == (4, 1)
    assert "not the same kernel" in lines[0]


def test_matrix_that_cannot_be_written_is_one_line(suite):
    """A run under faults whose matrix cannot be kept ends in one line and 4."""
    suite.case("def test_one():\n    pass\n")
    (suite.path / "m" / "matrix.json").mkdir(parents=True)
    done = suite.run("--fault-matrix=m", "--inject-fault=mlock-ignored", "-q")
    if "--fault-matrix" not in done.stderr:
        pytest.skip(f"needs to trace processes: {done.stdout[-200:]}")
    assert (done.returncode, len(done.stderr.splitlines())) == (4, 1), done.stderr
    assert "Traceback" not in done.stdout


def test_missing_library_is_one_line(tmp_path):
    """Without msgspec the tools say what to install."""
    good = kept(tmp_path / "good.json", whole("good"))
    hide = "import sys; sys.modules['msgspec'] = None; from helpers.report.__main__ import main; "
    done = subprocess.run(
        [sys.executable, "-c", f"{hide}sys.exit(main(['compare', {str(good)!r}, {str(good)!r}]))"],
        cwd=ROOT, capture_output=True, text=True, timeout=timeouts.scaled(50), check=False,
    )  # fmt: skip
    assert done.returncode == 4
    assert len(done.stderr.splitlines()) == 1
    assert "pip install msgspec" in done.stderr


def test_many_behaviours_within_bounds(tmp_path):
    """Results of 100,000 behaviours compare in less than 3 s of CPU and 200 MB, a page of one is
    made in less than 6 s and 250 MB."""
    for name in "ab":
        with (tmp_path / f"{name}.json").open("w") as file:
            file.write(json.dumps(whole(name))[:-2])
            for n in range(100_000):
                text = f"A statement of some length about behaviour {n}."
                file.write(",\n" + json.dumps(row(f"test_with_a_long_name[{n}]", statement=text)))
            file.write("]}")
    for arguments, seconds, megabytes in (
        (("compare", tmp_path / "a.json", tmp_path / "b.json"), 3, 200),
        (("html", tmp_path / "a.json", "-o", tmp_path / "a.html"), 6, 250),
    ):
        with subprocess.Popen(
            [sys.executable, "-m", "helpers.report", *map(str, arguments)],
            cwd=ROOT, stdout=subprocess.DEVNULL,
        ) as run:  # fmt: skip
            _, status, used = os.wait4(run.pid, 0)
            run.returncode = os.waitstatus_to_exitcode(status)
        assert run.returncode == 0
        assert used.ru_maxrss < megabytes * 1000, "kB"
        assert used.ru_utime + used.ru_stime < seconds, "seconds of CPU"
