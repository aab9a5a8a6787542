# SPDX-License-Identifier: MIT
"""Fault switches: a kernel that lies is noticed, one that does not is not, and both are said."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.faults import catalogue, client
from helpers.faults.fault import MECHANISMS
from helpers.machine import timeouts
from helpers.report import detection_matrix, result
from helpers.syscalls.ptrace import TracingUnavailable, register_layout

ROOT = Path(__file__).resolve().parents[2]
CHAPTERS = {
    "mlock2-unknown-flags-accepted": "calls/test_flags.py::test_mlock2_unknown_flags_give_einval",
    "vmlck-munlock-kept":
        "accounting/test_release.py::test_munlock_restores_vmlck_and_flags",
    "mlock-keeps-lf": "vmas/test_conversion.py::"
        "test_full_lock_of_memory_locked_on_fault_clears_lf_and_populates",
    "mlock-last-page-absent": "residency/test_mincore_residency.py",
    "fork-child-locked":
        "fork/test_inheritance.py::test_fork_child_has_no_lock_and_parent_keeps_its_own",
    "limit-mlock-unchecked": "limits/test_edges.py::test_soft_limit_decides",
    "reclaim-takes-locked":
        "reclaim/test_pressure.py::test_locked_private_memory_stays_while_its_twin_is_swapped",
    "shm-lock-ignored": "memory_types/test_sysv.py::test_lock_marks_the_segment_and_no_mapping",
    "future-stays-onfault":
        "model/test_scripts.py::test_script_agrees_with_model[future-changes-its-kind]",
    "mlock-populates-4096":
        "concurrency/test_scale.py::test_large_region_is_locked_to_the_last_page[private]",
}  # fmt: skip
"""A fault of each chapter and the cases that know better."""

try:
    register_layout()
except TracingUnavailable as why:
    pytestmark = pytest.mark.skip(reason=str(why))


def suite_run(*options: str) -> subprocess.CompletedProcess[str]:
    """The suite itself, with options."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeouts.scaled(55),
        check=False,
    )  # fmt: skip


def test_a_fault_of_each_chapter_is_noticed_where_it_should_be(tmp_path):
    """Every chapter's fault breaks that chapter's case, and each case holds without it."""
    cases = [f"tests/{case}" for case in CHAPTERS.values()]
    done = suite_run(f"--fault-matrix={tmp_path}", "--inject-fault", ",".join(CHAPTERS), *cases)
    assert done.returncode == 0, done.stdout
    data = detection_matrix.load(tmp_path / "matrix.json")
    assert not [n for n, row in data["cases"].items() if row["baseline"] == "failed"], done.stdout
    assert data["problems"] == [], "every lie could be told"
    for fault, case in CHAPTERS.items():
        mine = [n for n in data["cases"] if case in n]
        assert mine, f"{case} was collected"
        if any(data["cases"][n]["baseline"] == "held" for n in mine):  # else it lacks something
            seen = {data["cells"].get(fault, {}).get(n) for n in mine}
            assert "noticed" in seen, f"{fault} is noticed by {case}"
    assert "| mlock-keeps-lf |" in (tmp_path / "matrix.md").read_text()


def test_a_supervised_kernel_that_does_not_lie_is_all_green():
    """Under ``--inject-fault none`` every case comes out as it does without."""
    cases = [f"tests/{case}" for case in CHAPTERS.values()]
    done = suite_run("--inject-fault", "none", *cases)
    assert done.returncode == 0, done.stdout
    assert "failed" not in done.stdout.splitlines()[-1], done.stdout
    assert "fault none: every case was supervised, none was changed" in done.stdout


LIED_TO = '''
from helpers import memory
from helpers import processes
from helpers import syscalls
from helpers.observe import maps
from helpers.processes import stub
import os

def locked():
    with memory.mapping("private", 2) as region:
        syscalls.mlock(region.addr, region.size)
        return maps.locked_kb() > 0

def test_own():
    """The case's own lock."""
    assert locked(), "lo"

def test_child():
    """A child's."""
    with processes.Child() as child:
        assert child.call(locked), "lo in the child"

def test_grandchild():
    """A child's child's."""
    assert processes.run(lambda: processes.run(locked)), "lo two forks away"

def test_bare():
    """A process without an interpreter."""
    with stub.StubProcess() as other:
        addr = other.mmap(2)
        other.call("mlock", addr, 2 * syscalls.PAGE)
        assert maps.locked_kb(other.pid) > 0, "lo behind execve"

def test_thread():
    """A thread's."""
    import threading
    seen = []
    thread = threading.Thread(target=lambda: seen.append(locked()))
    thread.start()
    thread.join()
    assert seen == [True], "lo"
'''


def test_a_fault_reaches_every_descendant(suite):
    """Children, their children, threads and what they execute are lied to alike."""
    suite.case(LIED_TO)
    done = suite.run("--inject-fault", "mlock-ignored")
    assert "5 failed" in done.stdout, done.stdout
    assert "fault mlock-ignored (mlock returns 0 and does nothing): acted 5 times" in done.stdout
    assert "5 passed" in suite.run().stdout, "without the fault they hold"


def test_a_fault_that_never_acted_says_so(suite):
    """A run in which no case made the call is not taken for one that noticed nothing."""
    suite.case('def test_nothing():\n    """No call."""\n')
    done = suite.run("--inject-fault", "mremap-move-loses-lf")
    assert "never acted" in done.stdout, done.stdout


def test_result_of_workers_is_one_run(suite):
    """Under workers the fault is counted over all of them."""
    suite.case(LIED_TO)
    done = suite.run("--inject-fault", "mlock-ignored", "-n", "2")
    assert "acted 5 times" in done.stdout, done.stdout


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            ["--inject-fault", "mlock-ignore"],
            "unknown fault 'mlock-ignore'; nearest: mlock-ignored",
        ),
        (["--inject-fault", "xyzzy"], "unknown fault 'xyzzy'; --list-faults lists them"),
        (
            ["--inject-fault", "none", "-o", "addopts="],
            "faults reach forked cases only: pass --forked",
        ),
        (["--fault-matrix", "/proc/no"], "--fault-matrix: "),
        (["--fault-matrix", "m", "--inject-fault", "none"], "none is no fault"),
        (["--fault-matrix", "m", "--inject-fault", "mlock-ignored,xyzzy"], "unknown fault 'xyzzy'"),
    ],
    ids=["misspelt", "unknown", "not-forked", "unwritable", "none-of-a-matrix", "one-of-several"],
)
def test_a_bad_option_is_told_in_one_line(suite, options, text):
    """What makes no sense ends the run with 4 and one line, before any case."""
    suite.case(LIED_TO)
    done = suite.run(*options)
    assert done.returncode == 4, done.stdout + done.stderr
    said = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(said) == 1, done.stderr
    assert text in said[0], done.stderr


def test_without_ptrace_nothing_runs(suite):
    """A kernel that allows no ptrace ends the run with 4: nothing runs without its fault."""
    suite.case(LIED_TO)
    code = (
        "import errno, os, sys\n"
        "from helpers.syscalls import number, seccomp\n"
        "seccomp.deny([number('ptrace')], errno.EPERM)\n"
        "os.execv(sys.executable, sys.argv[1:])\n"
    )
    command = suite.command("--inject-fault", "mlock-ignored")
    done = subprocess.run(
        [sys.executable, "-c", code, *command],
        cwd=suite.path, env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=timeouts.scaled(50), check=False,
    )  # fmt: skip
    assert done.returncode == 4, done.stdout + done.stderr
    assert "Operation not permitted" in done.stderr, done.stderr
    assert "SYS_PTRACE" in done.stderr, "and how to mend it"
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


@pytest.mark.parametrize(
    ("missing", "text"),
    [
        (lambda *_, **__: (_ for _ in ()).throw(OSError(22, "EINVAL")), "CONFIG_SECCOMP_FILTER"),
        (lambda *_, **__: None, "a call that was to fail did not"),
    ],
    ids=["no-filter", "filter-without-effect"],
)
def test_a_kernel_without_filters_is_refused(monkeypatch, missing, text):
    """Where system calls cannot be filtered, the probe says so: no fault is taken for acting."""
    monkeypatch.setattr("helpers.syscalls.seccomp.stop_at", missing)
    with pytest.raises(TracingUnavailable, match=text):
        client.probe()


def test_list_of_faults(suite):
    """``--list-faults`` lists every fault with its statement and runs nothing."""
    done = suite.run("--list-faults")
    assert done.returncode == 0, done.stderr
    for fault in catalogue.FAULTS.values():
        assert fault.name in done.stdout, "listed"
        assert fault.statement in done.stdout, "with its statement"


def test_every_chapter_has_faults_and_one_of_them_is_tried():
    """The faults are over all chapters, and the small matrix above has one of each."""
    chapters = {fault.chapter for fault in catalogue.FAULTS.values()}
    folders = {p.name for p in (ROOT / "tests").iterdir() if list(p.glob("test_*.py"))}
    assert chapters == folders - {"harness", "bench"}
    assert {catalogue.FAULTS[name].chapter for name in CHAPTERS} == chapters


def test_every_fault_is_detected_by_a_case_and_every_mark_names_a_fault():
    """The marks ``detects`` and the catalogue name the same faults."""
    named = set()
    for path in (ROOT / "tests").glob("*/test_*.py"):
        for found in re.finditer(r"@pytest\.mark\.detects\(([^)]*)\)", path.read_text()):
            named |= set(re.findall(r'"([^"]+)"', found[1]))
    assert named == set(catalogue.FAULTS)
    assert {fault.mechanism for fault in catalogue.FAULTS.values()} == set(MECHANISMS)


def test_no_case_imports_the_faults():
    """Cases know nothing of the machinery that lies to them."""
    for path in (ROOT / "tests").glob("*/test_*.py"):
        if path.parent.name != "harness":
            assert "helpers.faults" not in path.read_text(), path


def sample(chapter="calls"):
    """A matrix of four faults and three cases, as it is kept."""
    fault = {"chapter": chapter, "statement": "mlock lies", "mechanism": "result"}
    names = {n: f"tests/{chapter}/test_{n}.py::test" for n in "abc"}
    faults = {
        name: fault | {"noticed_by": [f"tests/{chapter}/test_{case}.py::test"]}
        for name, case in {"seen": "a", "missed": "b", "idle": "c", "elsewhere": "c"}.items()
    }
    return {
        "format": 3, "kernel": "6.1.0", "architecture": "x86_64", "page_size": 4096,
        "seconds": 60.0, "command": [], "all": True, "problems": [], "faults": faults,
        "cases": {n: {"chapter": chapter, "baseline": "held"} for n in names.values()},
        "cells": {"seen": {"noticed": [0], "missed": [1]}, "missed": {"inconclusive": [1]},
                  "idle": {"unreached": [1]}, "elsewhere": {"noticed": [0], "missed": [2]}},
    }  # fmt: skip


def test_worth_of_a_matrix(tmp_path):
    """Noticed, unnoticed, noticed elsewhere, never acted, shown, controlled and unshown are told
    apart, and only a matrix with nothing left over counts as whole."""
    data = sample()
    b, c = list(data["cases"])[1:]
    (tmp_path / "matrix.json").write_text(json.dumps(data))
    found = detection_matrix.count(detection_matrix.load(tmp_path))
    assert (found.faults, found.noticed, found.expected) == (3, 2, 1)
    assert (found.cases, found.shown, found.controlled) == (3, 1, 0)
    assert (found.unnoticed, found.unexpected, found.idle) == (
        ("missed",), ("elsewhere",), ("idle",),
    )  # fmt: skip
    assert found.unshown == (b, c)
    assert not found.whole
    data["cases"][b]["baseline"] = "deviates"
    found = detection_matrix.count(detection_matrix.unpacked(data))
    assert (found.controlled, found.unshown) == (1, (c,)), "it fails by itself here"
    data["cases"][b]["baseline"] = "held"
    data["cells"] = {"seen": {"noticed": [0]}, "missed": {"noticed": [1]},
                     "idle": {"noticed": [2]}, "elsewhere": {"noticed": [2]}}  # fmt: skip
    assert detection_matrix.count(detection_matrix.unpacked(data)).whole
    assert detection_matrix.packed(detection_matrix.unpacked(data)) == data


def faults_command(*arguments):
    """``python -m helpers.faults …``."""
    return subprocess.run(
        [sys.executable, "-m", "helpers.faults", *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, timeout=timeouts.scaled(50), check=False,
    )  # fmt: skip


def test_matrices_of_chapters_are_merged(tmp_path):
    """A later part replaces the cases that it has, and what is kept is read again."""
    first, *_ = sample()["cases"]
    old, new = detection_matrix.unpacked(sample()), detection_matrix.unpacked(sample())
    old["cells"]["seen"] = dict.fromkeys(old["cases"], "noticed")
    new["cases"] = {first: new["cases"][first]}
    new["cells"] = {"seen": {first: "missed"}}
    detection_matrix.write(old, tmp_path / "old")
    detection_matrix.write(new, tmp_path / "new")
    done = faults_command("merge", tmp_path / "out", tmp_path / "old", tmp_path / "new")
    assert done.returncode == 1, "something is left over"
    assert "noticed by nobody: missed" in done.stdout, done.stdout + done.stderr
    row = detection_matrix.load(tmp_path / "out")["cells"]["seen"]
    assert row == dict.fromkeys(old["cases"], "noticed") | {first: "missed"}


@pytest.mark.parametrize(
    "text", ["", "{}", "[1]", '{"format": 2}', '{"format": 1, "cases": {}}'],
    ids=["empty", "no-matrix", "list", "cut", "older"],
)  # fmt: skip
def test_unreadable_matrix_is_one_line(tmp_path, text):
    """What is no matrix is said in a line, with exit code 4."""
    (tmp_path / "matrix.json").write_text(text)
    done = faults_command("merge", tmp_path / "out", tmp_path)
    assert done.returncode == 4
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert str(tmp_path) in done.stderr


SHOWN = '''
from helpers import memory
from helpers import syscalls
from helpers.observe import maps

def test_notices():
    """A lock is lo."""
    with memory.mapping("private", 2) as region:
        syscalls.mlock(region.addr, region.size)
        assert maps.locked_kb() > 0, "lo"

def test_cannot_fail():
    """A case that would let any kernel pass."""
    syscalls.outcome(syscalls.mlock, 0, 0)
'''


def test_result_and_page_carry_the_matrix(suite):
    """A run under faults with ``--report`` puts the matrix into its result, ``carry`` one made
    apart, and the page says what this green is worth; a case that nothing breaks fails the run."""
    pytest.importorskip("jinja2", reason="needs jinja2: pip install jinja2")

    def report(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "helpers.report", *arguments],
            cwd=suite.path, env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True, text=True, timeout=timeouts.scaled(50), check=False,
        )  # fmt: skip

    suite.case(SHOWN)
    done = suite.run("--fault-matrix=m", "--report=out")
    assert done.returncode == 1, done.stdout
    assert "not broken by any fault: tests/calls/test_case.py::test_cannot_fail" in done.stdout
    carried = result.load(suite.path / "out").sensitivity
    assert carried == detection_matrix.load(suite.path / "m")
    assert detection_matrix.count(carried).shown == 1
    suite.run("--report=plain")
    assert result.load(suite.path / "plain").sensitivity is None
    assert report("carry", "plain", "m").returncode == 0
    assert report("html", "plain", "-o", "page.html").returncode == 0
    page = (suite.path / "page.html").read_text()
    assert "What this green is worth" in page
    assert "1 of 2</span> cases were shown able to fail" in page
    assert "breaks under" in page
    kept = json.loads((suite.path / "m" / "matrix.json").read_text()) | {"kernel": "5.4"}
    (suite.path / "m" / "matrix.json").write_text(json.dumps(kept))
    done = report("carry", "plain", "m")
    assert done.returncode == 4
    assert "not the same kernel" in done.stderr
    assert len(done.stderr.splitlines()) == 1
