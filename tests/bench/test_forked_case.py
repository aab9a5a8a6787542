# SPDX-License-Identifier: MIT
"""CPU of an empty forked case: pytest-forked alone beside ours. Run by ``tox run -e bench``."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CASES = 200
EMPTY = f"""
import pytest

@pytest.mark.parametrize("n", range({CASES}))
def test_empty(n):
    pass
"""


def cpu_seconds(folder: Path, *options: str) -> float:
    """User and system time of one pytest run and all its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options],
        cwd=folder, check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def a_case(folder: Path, *options: str) -> float:
    """Milliseconds of CPU a case: the run of all, less the run of one."""
    whole = cpu_seconds(folder, *options)
    one = cpu_seconds(folder, *options, "-k", "test_empty and 0-")
    return (whole - one) / (CASES - 1) * 1000


def bare_fork() -> float:
    """Milliseconds of CPU of fork, exit and wait of this pytest process."""
    rounds = 200
    before = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    for _ in range(rounds):
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
    after = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    spent = sum(a.ru_utime + a.ru_stime - b.ru_utime - b.ru_stime for a, b in zip(after, before))
    return spent / rounds * 1000


def test_empty_forked_case(benchmark, tmp_path, capsys):
    """Ours and pytest-forked's own runner on the same empty cases, in CPU time."""
    text = EMPTY.replace("range(", "[f'{i}-' for i in range(").replace("))\ndef", ")])\ndef")
    bare, ours = tmp_path / "bare", tmp_path / "ours"
    for folder in (bare, ours):
        (folder / "tests" / "calls").mkdir(parents=True)
        (folder / "tests" / "calls" / "test_empty.py").write_text(text)
    for name in ("conftest.py", "pyproject.toml", "helpers"):
        (ours / name).symlink_to(ROOT / name)
    plain = min(a_case(bare, "--forked", "tests") for _ in range(2))
    mine = benchmark.pedantic(a_case, (ours, "tests"), rounds=2, iterations=1)
    benchmark.extra_info["ratio"] = mine / plain
    with capsys.disabled():
        print(
            f"\nempty forked case, CPU: pytest-forked {plain:.2f} ms, ours {mine:.2f} ms "
            f"(ratio {mine / plain:.2f}); bare fork, exit, wait {bare_fork():.2f} ms"
        )
