# SPDX-License-Identifier: MIT
"""The README keeps its promises: its commands, its claims, its files, the coverage table."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
COVERAGE = (ROOT / "docs" / "coverage.md").read_text()


def test_two_commands_stand_on_a_line_each():
    """.ci/run finds exactly the two commands."""
    found = re.findall(r"^python3 -m venv .*$", README, re.MULTILINE)
    assert [line.split()[-1] for line in found] == ["kernel", "selftest"]


def rows(text: str, first: str) -> list[list[str]]:
    """Cells of the table rows whose first cell matches."""
    lines = re.findall(rf"^\| (?:{first}) \|.*$", text, re.MULTILINE)
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def marked(path: Path) -> set[str]:
    """Claims that a test module's marks carry."""
    return set(re.findall(r'"(W\d+)"', path.read_text()))


def test_every_claim_has_its_row_and_its_cases():
    """W1 to W22 stand in the table, and each module named carries the claim's mark."""
    table = rows(README, r"W\d+")
    assert [row[0] for row in table] == [f"W{n}" for n in range(1, 23)]
    for claim, told, real, cases in table:
        assert told and real, claim  # noqa: PT018
        modules = re.findall(r"`([\w/]+\.py)`", cases)
        assert modules, f"{claim} names its cases"
        carrying = [m for m in modules if claim in marked(ROOT / "tests" / m)]
        assert carrying, f"{claim}: none of {modules} carries the mark"


@pytest.mark.parametrize("text", [README, COVERAGE], ids=["README", "coverage"])
def test_every_case_named_exists(text):
    """A module or case named in the documents is there."""
    for module, case in re.findall(r"`(\w+/test_\w+\.py)(?:::(\w+))?`", text):
        path = ROOT / "tests" / module
        assert path.is_file(), module
        assert not case or f"def {case}(" in path.read_text(), f"{module}::{case}"


def test_coverage_has_no_empty_row():
    """Each fact of the other suites has a case of ours, or the reason why not."""
    table = [line for line in COVERAGE.splitlines() if re.match(r"\| (?!suite|---)", line)]
    assert len(table) > 100
    for line in table:
        assert line.strip("| ").split(" | ")[-1].strip(), line


def test_every_option_stands_in_the_readme(suite):
    """Options of the suite are in the README's table."""
    suite.case("")
    text = suite.run("--help").stdout
    start = text.index("\nmemlock-tests:")
    ours = re.findall(r"^  (--[a-z-]+)", text[start : text.index("\n\n", start + 20)], re.MULTILINE)
    assert ours
    for option in ours:
        assert f"`{option}" in README, option
