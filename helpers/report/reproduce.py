# SPDX-License-Identifier: MIT
"""A C program of one case: the case is run again here, recorded, and put into C."""

from __future__ import annotations

import difflib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from helpers.report.files import InvalidResult
from helpers.report.result import Result
from helpers.reproducer import program

ROOT = Path(__file__).resolve().parents[2]
_LAST_LINES = 3


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
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0",
             "--share-process=never", f"--record-calls={folder}", node],
            cwd=ROOT, env={k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        found = sorted(Path(folder).glob("*.jsonl"))
        if done.returncode not in (0, 1) or not found:
            last = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
            raise InvalidResult(f"{node} could not be run here: {' '.join(last[-_LAST_LINES:])}")
        try:
            return program.from_record(found[0])
        except program.CannotReproduce as error:
            raise InvalidResult(f"{node} cannot be put into C: {error}") from None
