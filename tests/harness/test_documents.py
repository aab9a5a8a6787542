# SPDX-License-Identifier: MIT
"""The documents say what is so: commands, options, names, tables, links."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from helpers.machine import timeouts
from helpers.requirements import requirement

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
LONGEST = {
    "README.md": 110,
    "CONTRIBUTING.md": 140,
    "docs/architecture.md": 180,
    "docs/debugging.md": 120,
}
"""Document → most lines that a reader should have to go through."""
CHAPTERS = sorted(
    path.name for path in (ROOT / "tests").iterdir()
    if path.name not in {"harness", "bench"} and any(path.glob("test_*.py"))
)  # fmt: skip


def text(name: str) -> str:
    return (ROOT / name).read_text()


def between(name: str, marker: str) -> str:
    """What stands between ``<!-- marker -->`` and ``<!-- end of marker -->``."""
    found = re.search(rf"<!-- {marker} -->\n(.*)<!-- end of {marker} -->", text(name), re.DOTALL)
    assert found, f"{name} has no block {marker}"
    return found[1]


def rows(table: str, first: str = r"[^|-][^|]*") -> list[list[str]]:
    """Cells of the table rows whose first cell matches."""
    lines = re.findall(rf"^\| (?:{first}) \|.*$", table, re.MULTILINE)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_two_commands_stand_on_a_line_each():
    """.ci/run finds exactly the two commands, in fences of their own."""
    found = re.findall(r"^```sh\n(python3 -m venv .*)\n```$", text("README.md"), re.MULTILINE)
    assert [line.split()[-1] for line in found] == ["kernel", "selftest"]
    assert len(re.findall(r"^python3 -m venv", text("README.md"), re.MULTILINE)) == 2


@pytest.mark.parametrize("name", LONGEST)
def test_documents_that_are_read_first_are_short(name):
    """README, CONTRIBUTING, architecture and debugging have no more lines than they may."""
    assert len(text(name).splitlines()) <= LONGEST[name]


def test_options_page_is_the_help_text():
    """docs/options.md has the options of our group, word by word, as pytest --help has them."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--help", "-p", "no:cacheprovider"],
        cwd=ROOT, env={**os.environ, "COLUMNS": "98"}, capture_output=True, text=True,
        timeout=timeouts.scaled(30), check=True,
    )  # fmt: skip
    start = done.stdout.index("\nmemlock-tests:") + 1
    shown = done.stdout[start : done.stdout.index("\n\n", start)]
    documented = between("docs/options.md", "pytest --help").strip("`\n")
    assert documented.split() == shown.split(), f"paste this into docs/options.md:\n{shown}"


def test_every_requirement_has_its_row():
    """docs/requirements.md has every name that needs() knows, and no other."""
    page = text("docs/requirements.md")
    tables = page[page.index("## Every name") :]
    documented = {
        name.partition(":")[0]
        for row in rows(tables, r"`[^|]+")
        for name in re.findall(r"`([\w:…-]+)`", row[0])
    }
    known = {name for name in requirement.names() if not name.startswith("CAP_")}
    assert documented - {"CAP_…"} == known


def marked(path: Path) -> set[str]:
    """Claims that a test module's marks carry."""
    return set(re.findall(r'"(W\d+)"', path.read_text()))


def test_every_claim_has_its_row_and_its_cases():
    """W1 to W22 stand in the table, and each module named carries the claim's mark."""
    table = rows(text("docs/claims.md"), r"W\d+")
    assert [row[0] for row in table] == [f"W{n}" for n in range(1, 23)]
    for claim, said, real, cases in table:
        assert said and real, claim  # noqa: PT018
        modules = re.findall(r"`([\w/]+\.py)`", cases)
        assert modules, f"{claim} names its cases"
        carrying = [m for m in modules if claim in marked(ROOT / "tests" / m)]
        assert carrying, f"{claim}: none of {modules} carries the mark"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_case_and_file_named_exists(path):
    """A module, case or file of helpers named in a document is there."""
    page = path.read_text()
    for module, case in re.findall(r"`(?:tests/)?(\w+/test_\w+\.py)(?:::(\w+))?[^`]*`", page):
        found = ROOT / "tests" / module
        assert found.is_file(), module
        assert not case or f"def {case}(" in found.read_text(), f"{module}::{case}"
    for name in re.findall(r"`(helpers/[\w./]+)`", page):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_leads_somewhere(path):
    """A relative link of a document leads to a file."""
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text()):
        assert (path.parent / target).exists(), target


def test_coverage_has_no_empty_row():
    """Each fact of the other suites has a case of ours, or the reason why not."""
    page = text("docs/coverage.md")
    table = [line for line in page.splitlines() if re.match(r"\| (?!suite|---)", line)]
    assert len(table) > 100
    for line in table:
        assert line.strip("| ").split(" | ")[-1].strip(), line


def test_fault_matrix_has_every_chapter_and_adds_up():
    """The matrix in docs/faults.md has a row a chapter, and its total is their sum."""
    table = rows(between("docs/faults.md", "fault matrix"))[1:]
    assert [row[0] for row in table] == [*CHAPTERS, "total"]
    numbers = [[int(cell) for cell in row[1:]] for row in table]
    assert [sum(column) for column in zip(*numbers[:-1], strict=True)] == numbers[-1]


def test_table_of_kernels_has_every_chapter_and_adds_up():
    """The table in docs/kernels.md has a column a chapter, and each row's total is their sum."""

    def counts(cell: str) -> dict[str, int]:
        return {letter: int(n) for n, letter in re.findall(r"(\d+)([A-Z]?)", cell)}

    heading, *table = rows(text("docs/kernels.md"), r"kernel|\d+\.\d+[^|]*")
    assert sorted(heading[1:-1]) == CHAPTERS
    assert len(table) > 3
    for kernel, *cells, total in table:
        found: dict[str, int] = {}
        for cell in cells:
            for letter, number in counts(cell).items():
                found[letter] = found.get(letter, 0) + number
        assert found == counts(total), kernel


def test_architecture_has_the_floors_that_are_enforced():
    """The table of packages is the contract of import-linter, floor by floor."""
    settings = tomllib.loads(text("pyproject.toml"))["tool"]["importlinter"]["contracts"][0]
    layers = settings["layers"]
    enforced = {
        name.strip(): str(len(layers) - place)
        for place, layer in enumerate(layers)
        for name in layer.split("|")
    }
    table = rows(text("docs/architecture.md"), r"\d+")
    assert {row[1].strip("`"): row[0] for row in table} == enforced


def test_contributors_find_every_folder_of_tests():
    """CONTRIBUTING says of each folder in tests/ what it is about."""
    table = rows(text("CONTRIBUTING.md"), r"`tests/\w+`")
    assert sorted(row[0].strip("`").removeprefix("tests/") for row in table) == sorted(
        [*CHAPTERS, "harness", "bench"]
    )
