# SPDX-License-Identifier: MIT
"""A small suite of its own for each test of the harness."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.machine import timeouts

ROOT = Path(__file__).resolve().parents[2]
# The summary of a job of GitHub's is about the kernel, not about what is run here.
os.environ.pop("GITHUB_STEP_SUMMARY", None)


EVERY = '''
from helpers import memory
from helpers import syscalls
from helpers.requirements.inconclusive import inconclusive
import pytest

@pytest.mark.source("mlock(2) NOTES")
@pytest.mark.claim("W5")
def test_verified():
    """A fact that holds."""

def test_failed():
    """VmLck counts both pages."""
    with memory.mapping("private", 2) as region:
        region.touch()
        seen = 1
        assert seen == 2, "VmLck in pages"

@pytest.mark.deviation("wrapping-length")
@pytest.mark.needs("lock:2")
def test_deviates():
    """A length that overflows is refused."""
    with memory.mapping("private", 1) as page:
        seen = syscalls.outcome(syscalls.mlock, page.addr, syscalls.SIZE_MAX)
        assert seen == "EINVAL", "length overflows"

def test_not_verified():
    """Something that cannot be had here."""
    pytest.skip("needs a unicorn")

def test_inconclusive():
    """Something whose control stood still."""
    inconclusive("the control did not move")

@pytest.fixture
def broken():
    raise RuntimeError("no set-up today")

def test_broken(broken):
    """Never reached."""
'''
DEVIANT = (
    EVERY[: EVERY.index("def test_failed")]
    + EVERY[EVERY.index('@pytest.mark.deviation("wr') : EVERY.index("def test_not_verified")]
)


class Suite:
    """A checkout-like folder with our conftest, helpers and pyproject, and cases of its own."""

    EVERY = EVERY
    """A module with one case of each verdict."""
    DEVIANT = DEVIANT
    """Of those, the verified and the deviating one."""
    away = ("-p", "no:randomly", "-p", "no:sugar")
    """Plugins of others that change order and look: test_plugins.py is about them."""

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
        how = (*self.away, "-p", "no:cacheprovider")
        return [sys.executable, "-m", "pytest", *how, "tests", *options]

    def run(self, *options: str, **extra: object) -> subprocess.CompletedProcess[str]:
        """Run it, or ``command``, to its end."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
        return subprocess.run(
            extra.pop("command", self.command(*options)),
            cwd=self.path,
            env=environment | dict(extra.pop("env", {})),  # type: ignore[call-overload]
            capture_output=True,
            text=True,
            timeout=timeouts.scaled(50),
            **extra,
        )


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    return Suite(tmp_path)
