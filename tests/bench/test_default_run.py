# SPDX-License-Identifier: MIT
"""The whole default run: CPU a case, and wall time, with cases that share a process and without."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RAN = ("verified", "deviates", "failed")


def run(folder: Path, *options: str) -> tuple[float, float, int]:
    """CPU seconds (user and system, children too), wall seconds and cases that ran."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--report", folder, *options],
        cwd=ROOT, check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    wall, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    verdicts = [
        case["verdict"] for case in json.loads((folder / "result.json").read_text())["behaviours"]
    ]
    return cpu, wall, sum(verdict in RAN for verdict in verdicts)


@pytest.mark.parametrize("options", [("-n", "0"), ("-n", "2")], ids=["one process", "two workers"])
def test_default_run(benchmark, tmp_path, capsys, options):
    """CPU a case of the default run, beside the same run in which no cases share a process."""
    apart = run(tmp_path / "apart", "--share-process=never", *options)
    shared = benchmark.pedantic(run, (tmp_path / "shared", *options), rounds=1, iterations=1)
    assert shared[2] == apart[2], "the same cases run"
    benchmark.extra_info |= {"cases": shared[2], "ms a case": shared[0] / shared[2] * 1000}
    with capsys.disabled():
        for name, (cpu, wall, cases) in (("a process each", apart), ("shared", shared)):
            print(
                f"\n{' '.join(options)}, {name}: {cases} cases, CPU {cpu:.1f} s "
                f"({cpu / cases * 1000:.1f} ms a case), wall {wall:.1f} s",
                end="",
            )
        print()
