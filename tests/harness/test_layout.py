# SPDX-License-Identifier: MIT
"""The tree is what the documents say: names, licence, sources, one of each table."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BANNED = {
    "lie", "lies", "tell", "told", "wish", "twin", "twins", "dice", "chance", "bare", "series",
    "guard", "each", "calm", "crowd", "holder", "gone", "unfit", "janitor",
}  # fmt: skip
"""Words that no public name has: a kernel engineer would have to learn them first."""


def files(*folders):
    """Python files below the folders."""
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def public_names(tree):
    """Functions, classes and constants that others may use."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
    for node in tree.body:
        if isinstance(node, ast.Assign):
            yield from (t.id for t in node.targets if isinstance(t, ast.Name))


def test_helpers_has_packages_only():
    """There is no loose module in helpers/."""
    assert [p.name for p in (ROOT / "helpers").glob("*.py")] == ["__init__.py"]


def test_public_names_are_the_fields_words():
    """No public name of helpers/ has a word that only its authors know."""
    found = []
    for path in files("helpers"):
        for name in public_names(ast.parse(path.read_text(encoding="utf-8"))):
            words = {w.lower() for w in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)}
            if not name.startswith("_") and words & BANNED:
                found.append(f"{path.relative_to(ROOT)}: {name}")
    assert not found


@pytest.mark.parametrize("folder", ["helpers", "tests"])
def test_every_file_names_its_licence(folder):
    """Each Python file has the SPDX line."""
    lacking = [
        str(path.relative_to(ROOT))
        for path in files(folder)
        if path.read_text(encoding="utf-8").strip()
        and "SPDX-License-Identifier: MIT" not in path.read_text(encoding="utf-8")[:200]
    ]
    assert not lacking


def test_one_library_and_no_test_named():
    """The C library is loaded once (and once in the guest), and helpers/ names no test."""
    loads = [p for p in files("helpers", "tests") if "CDLL(None" in p.read_text(encoding="utf-8")]
    assert [str(p.relative_to(ROOT)) for p in loads] == [
        "helpers/syscalls/call.py", "helpers/vm/guest/launcher.py", "tests/harness/test_layout.py",
    ]  # fmt: skip
    for path in files("helpers"):
        assert not re.search(r"test_\w+\.py::", path.read_text(encoding="utf-8")), path


def test_every_case_has_a_statement_and_a_source(tmp_path):
    """Each kernel case says in its docstring what it proves, and where that is documented."""
    plugin = tmp_path / "sources.py"
    plugin.write_text(
        "import pytest\n"
        "@pytest.hookimpl(trylast=True)\n"
        "def pytest_collection_modifyitems(items):\n"
        "    for item in items:\n"
        "        if not item.obj.__doc__ or not item.get_closest_marker('source'):\n"
        "            print('LACKS', item.nodeid)\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "sources"],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "LACKS" not in done.stdout, [x for x in done.stdout.splitlines() if "LACKS" in x][:9]
