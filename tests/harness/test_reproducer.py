# SPDX-License-Identifier: MIT
"""C programs of cases, and programs of anybody under a fault."""

import json
import os
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
    "tests/calls/test_unlocking.py": "munlock-does-nothing",
}
CASES = {
    "calls": ("tests/calls/test_holes.py::test_hole_in_range_gives_enomem", "", ""),
}


def faults(*words: object) -> subprocess.CompletedProcess[str]:
    """``python -m helpers.faults …``."""
    return subprocess.run(
        [sys.executable, "-m", "helpers.faults", *map(str, words)],
        cwd=ROOT, capture_output=True, text=True, timeout=timeouts.scaled(50), check=False,
    )  # fmt: skip
