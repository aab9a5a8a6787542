# SPDX-License-Identifier: MIT
"""A C program of one case: the case is run again here, recorded, and put into C."""

from __future__ import annotations

import difflib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from helpers.machine import timeouts
from helpers.report.files import InvalidResult
from helpers.report.result import Result
from helpers.reproducer import program

ROOT = Path(__file__).resolve().parents[2]
COMPILE = ("-O2", "-Wall", "-Wextra", "-Werror", "-static")
_LAST_LINES = 3
_SECONDS = 30


def program_of(made: Result, node: str) -> str:
    """The program of a case that is in this result. Raises InvalidResult, saying why there is none.

    What is checked is what the case looked at when it ran here: a result has no record of it.
    """
    if node not in made.behaviours:
        near = difflib.get_close_matches(node, made.behaviours, 1)
        raise InvalidResult(
            f"{made.label} has no case {node}" + (f"; is it {near[0]}?" if near else "")
        )
    with tempfile.TemporaryDirectory(prefix="memlock-") as folder:
        os.chmod(folder, 0o755)  # for cases that become another user
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "-n", "0",
             "--share-process=never", f"--record-calls={folder}", node],
            cwd=ROOT, env={k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        found = sorted(Path(folder).glob("*.jsonl"))
        if done.returncode not in (0, 1) or not found:
            last = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
            raise InvalidResult(f"{node} could not be run here: {' '.join(last[-_LAST_LINES:])}")
        if skipped := re.search(r"^SKIPPED \[1\] (.*)$", done.stdout, re.MULTILINE):
            raise InvalidResult(f"{node} was not verified here: {skipped[1]}")
        try:
            text, shows = program.from_record(found[0])
            _try(text, Path(folder), shows)
        except program.CannotReproduce as error:
            raise InvalidResult(f"{node} cannot be put into C: {error}") from None
        return text


def _try(text: str, folder: Path, shows: bool) -> None:
    """Compile the program and run it, where there is a compiler. Raises CannotReproduce if it does
    not come to what the case came to: nobody is handed a program that was not seen to do so."""
    compiler = shutil.which("cc")
    if compiler is None:
        return
    source, made = folder / "case.c", folder / "case"
    source.write_text(text)
    done = subprocess.run(
        [compiler, *COMPILE, source, "-o", made], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise program.CannotReproduce(f"it does not compile: {done.stderr.splitlines()[:1]}")
    try:
        code = subprocess.run(
            [made], capture_output=True, timeout=timeouts.scaled(_SECONDS), check=False
        ).returncode
    except subprocess.TimeoutExpired:
        code = None
    if code != int(shows):
        how = "did not end" if code is None else f"ended with {code}"
        raise program.CannotReproduce(f"its program {how} here, and {int(shows)} would be right")
