# SPDX-License-Identifier: MIT
"""What locking costs at scale, beside its yardstick: linear if the cost of one stays the same.

Each size is four times the one before. Wall time of the calls alone; least of three.
"""

from __future__ import annotations

import time

import psutil
import pytest

from helpers import syscalls
from helpers.memory import layouts, mapping
from helpers.observe import pagemap, status
from helpers.processes import lockers
from helpers.syscalls import PAGE

MIB = 1 << 20


def took(function, *args) -> float:
    started = time.perf_counter()
    function(*args)
    return time.perf_counter() - started


def table(capsys, title: str, unit: str, rows: list[tuple[int, dict[str, float]]]) -> None:
    """A line a size: its µs for one, and how much of the first size's that is."""
    with capsys.disabled():
        print(f"\n{title}")
        for count, times in rows:
            parts = []
            for name, seconds in times.items():
                each = seconds / count
                first = rows[0][1][name] / rows[0][0]
                parts.append(f"{name} {each * 1e6:.2f} µs ({each / first:.2f})")
            print(f"  {count:6} {unit}: {', '.join(parts)}")


@pytest.mark.needs("map-count")
def test_cost_of_many_vmas(capsys):
    """mlock, munlock and munmap over tens of thousands of VMAs."""
    rows = []
    for count in (1875, 7500, 30000):
        syscalls.prctl(syscalls.PR_SET_THP_DISABLE, 1, 0, 0, 0)
        times: list[dict[str, float]] = []
        for _ in range(3):
            with layouts.alternating_protections(count) as region:
                times.append({
                    "mlock": took(syscalls.mlock, region.addr, region.size),
                    "again": took(syscalls.mlock, region.addr, region.size),
                    "munlock": took(syscalls.munlock, region.addr, region.size),
                })  # fmt: skip
                syscalls.mlock(region.addr, region.size)
                assert status.vmlck_pages() == count, "VmLck counts each"
                times[-1]["munmap"] = took(syscalls.munmap, region.addr, region.size)
        rows.append((count, {name: min(t[name] for t in times) for name in times[0]}))
    table(capsys, "VMAs, each of one page", "VMAs", rows)


def test_cost_of_many_processes(capsys):
    """Hundreds of processes that lock one file of 16 pages: fork, lock and exit of each."""
    rows = []
    with mapping("memfd-shared", 16) as region:
        region.touch()
        for count in (25, 100, 400):
            times = []
            for _ in range(3):
                started = time.perf_counter()
                with lockers.lockers(region, count) as crowd:
                    joined = time.perf_counter() - started
                    assert {status.vmlck_pages(p) for p in crowd.pids} == {16}, "each its own"
                    times.append({"join": joined, "leave": took(crowd.exit, count)})
            rows.append((count, {name: min(t[name] for t in times) for name in times[0]}))
    table(capsys, "processes locking one file", "processes", rows)


@pytest.mark.parametrize("kind", ["private", "memfd-shared"])
def test_cost_of_large_regions(capsys, kind):
    """mlock of untouched memory, mlock of what is there, munlock, up to a quarter of what is
    available or 1 GiB."""
    syscalls.prctl(syscalls.PR_SET_THP_DISABLE, 1, 0, 0, 0)
    most = min(psutil.virtual_memory().available // 4, 1024 * MIB)
    rows = []
    for size in (64 * MIB, 256 * MIB, 1024 * MIB):
        if size > most:
            continue
        pages = size // PAGE
        times = []
        for _ in range(3):
            with mapping(kind, pages) as region:
                times.append({"populate": took(syscalls.mlock, region.addr, region.size)})
                assert pagemap.present_count(region.addr, pages) == pages, "all is present"
                times[-1]["munlock"] = took(syscalls.munlock, region.addr, region.size)
                times[-1]["mlock"] = took(syscalls.mlock, region.addr, region.size)
        rows.append((pages, {name: min(t[name] for t in times) for name in times[0]}))
    if not rows:
        pytest.skip("needs 256 MiB of available memory")
    table(capsys, f"{kind} memory", "pages", rows)
