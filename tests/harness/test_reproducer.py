# SPDX-License-Identifier: MIT
"""C programs of cases, and programs of anybody under a fault."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.machine import timeouts
from helpers.report import reproduce
from tests.harness.test_report import made, report

ROOT = Path(__file__).resolve().parents[2]
SHOWN = {
    "tests/calls/test_flags.py::test_mlock2_unknown_flags_give_einval[syscall]":
        "mlock2-unknown-flags-accepted",
    "tests/accounting/test_release.py::test_munlock_restores_vmlck_and_flags":
        "vmlck-munlock-kept",
    "tests/vmas/test_splitting.py::test_unlock_of_part_splits_and_unlock_of_rest_merges":
        "munlock-from-vma-start",
    "tests/limits/test_zero.py::test_zero_limit_does_not_bind_the_capability[mlock2]":
        "limit-zero-binds-capability",
    "tests/fork/test_inheritance.py::test_fork_child_has_no_lock_and_parent_keeps_its_own":
        "fork-child-locked",
    "tests/residency/test_after_unlock.py::test_munlock_leaves_pages_resident[memfd-private]":
        "munlock-drops-pages",
}  # fmt: skip
"""A case of each chapter (its first variant, where none is named), and a fault that it detects."""
DEVIATING = {
    "wrapping-length": "tests/calls/test_overflow.py::test_wrapping_length_gives_einval[mlock]",
    "dontunmap-leaks-vmlck":
        "tests/accounting/test_mremap.py::test_dontunmap_leaves_nothing_behind",
    "dontunmap-strips-lock":
        "tests/accounting/test_mremap.py::test_dontunmap_of_part_keeps_the_rest_locked[2-4-L]",
}  # fmt: skip


def faults(*words: object) -> subprocess.CompletedProcess[str]:
    """``python -m helpers.faults …``."""
    return subprocess.run(
        [sys.executable, "-m", "helpers.faults", *map(str, words)],
        cwd=ROOT, capture_output=True, text=True, timeout=timeouts.scaled(50), check=False,
    )  # fmt: skip


def whole(case: str) -> str:
    """The id of the first variant, where a case without one is named."""
    if case.endswith("]"):
        return case
    listed = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", case],
        cwd=ROOT, capture_output=True, text=True, timeout=timeouts.scaled(50), check=True,
    ).stdout  # fmt: skip
    return listed.splitlines()[0]


def result_with(folder: Path, *cases: str) -> Path:
    """A result that has these cases."""
    return made(folder / "result.json", dict.fromkeys(cases, "verified"),
                **{case: {"id": case} for case in cases})  # fmt: skip


@pytest.fixture
def program(tmp_path):
    """Makes and compiles the program of a case: its text and its path."""
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler: apt install gcc libc6-dev")

    def compiled(case):
        source, binary = tmp_path / "case.c", tmp_path / "case"
        done = report("reproduce", result_with(tmp_path, case), case, "-o", source)
        if "was not verified here" in done.stderr:
            pytest.skip(f"needs what the case needs: {done.stderr}")
        assert done.returncode == 0, done.stderr
        subprocess.run(["cc", *reproduce.COMPILE, source, "-o", binary], check=True)
        return source.read_text(), binary

    return compiled


def exit_code(*command: object) -> int:
    return subprocess.run(
        [*map(str, command)],
        cwd=ROOT,
        capture_output=True,
        timeout=timeouts.scaled(50),
        check=False,
    ).returncode


@pytest.mark.parametrize("case", SHOWN, ids=lambda case: case.split("/")[1])
def test_program_shows_the_fault(program, case):
    """The program of a case ends with 0, and under a fault that the case detects with 1; its head
    has the statement, and what it does is read in a minute."""
    text, binary = program(whole(case))
    assert exit_code(binary) == 0
    assert faults("run", "none", "--", binary).returncode == 0
    assert faults("run", SHOWN[case], "--", binary).returncode == 1
    head = text.partition("*/")[0]
    assert case.partition("[")[0] in head
    assert "Source:" in head
    body = re.split(r"\nstatic void script\(void\)\n\{|\nint main\(void\)\n\{", text)[-2:]
    assert min(part.count("\n") for part in body) < 100


@pytest.mark.parametrize("case", DEVIATING.values(), ids=DEVIATING)
def test_program_shows_a_deviation(program, case):
    """Where a case deviates its program ends with 1, and says what was expected and what is seen;
    where it does not, with 0."""
    _, binary = program(case)
    out = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rx", case],
        cwd=ROOT, capture_output=True, text=True, timeout=timeouts.scaled(50), check=True,
    ).stdout  # fmt: skip
    deviates = "1 xfailed" in out
    done = subprocess.run([binary], capture_output=True, text=True, check=False)
    assert done.returncode == int(deviates), out
    assert ("FAIL" in done.stdout) == deviates
    assert "expected" in done.stdout
    assert "seen" in done.stdout


def test_case_without_a_program_says_why(tmp_path):
    """What cannot be put into C is told in one line, with the reason; an unknown case with the
    nearest; nothing is written."""
    case = (
        "tests/vmas/test_map_count.py::test_split_beyond_map_count_gives_enomem_and_changes_no_lock"
    )
    there = result_with(tmp_path, case)
    done = report("reproduce", there, case, "-o", tmp_path / "case.c")
    assert done.returncode == 4
    assert done.stderr.count("\n") == 1
    assert "VMAs the interpreter has" in done.stderr or "was not verified here" in done.stderr
    done = report("reproduce", there, case[:-1], "-o", tmp_path / "case.c")
    assert (done.returncode, done.stderr.count("\n")) == (4, 1)
    assert f"is it {case}?" in done.stderr
    assert not (tmp_path / "case.c").exists()


def test_any_program_runs_under_a_fault(tmp_path):
    """A program in any language runs under a fault; its exit code and its end by a signal are told
    on; what is no fault and no program is named."""
    assert faults("run", "none", "--", "sh", "-c", "exit 7").returncode == 7
    assert faults("run", "none", "--", "sh", "-c", "kill -KILL $$").returncode == 128 + 9
    script = tmp_path / "locks.py"
    script.write_text(
        "import mmap, re\n"
        "kept = mmap.mmap(-1, 8192, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x2000)\n"
        "print(re.search(r'VmLck:\\s+(\\d+)', open('/proc/self/status').read())[1])\n"
    )
    under = faults("run", "vmlck-always-zero", "--", sys.executable, script)
    assert (under.returncode, under.stdout) == (0, "0\n"), under.stderr
    assert "acted" in under.stderr
    for words, said in (
        (("no-such-fault", "--", "true"), "unknown fault"),
        (("none", "--", "/no/such/program"), "is no program"),
        (("none",), "wants a program"),
    ):
        done = faults("run", *words)
        assert (done.returncode, done.stderr.count("\n")) == (4, 1)
        assert said in done.stderr


def test_record_wants_a_process_a_case(suite):
    """--record-calls without --share-process=never is refused in one line."""
    suite.case("def test_it():\n    '''Holds.'''\n")
    done = suite.run("--record-calls=out")
    assert done.returncode == 4
    assert "--share-process=never" in done.stderr
