"""A small suite of its own for each test of the harness."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


class Suite:
    """A checkout-like folder with our conftest, helpers and pyproject, and cases of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for name in ("conftest.py", "pyproject.toml", "helpers"):
            (path / name).symlink_to(ROOT / name)
        self.chapter = path / "tests" / "calls"
        self.chapter.mkdir(parents=True)

    def case(self, text: str, name: str = "test_case.py") -> None:
        """Write a test module."""
        (self.chapter / name).write_text(text)

    def command(self, *options: str) -> list[str]:
        """The command line of a run over the folder's cases."""
        return [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests", *options]

    def run(self, *options: str, **extra: object) -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
        return subprocess.run(
            self.command(*options),
            cwd=self.path,
            env=environment | dict(extra.pop("env", {})),  # type: ignore[call-overload]
            capture_output=True,
            text=True,
            timeout=50,
            **extra,
        )


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    return Suite(tmp_path)
