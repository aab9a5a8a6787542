# SPDX-License-Identifier: MIT
"""Mlocked and Unevictable of the whole machine, from every place that shows them."""

from __future__ import annotations

from pathlib import Path

from helpers.observe import vmstat
from helpers.syscalls import PAGE_KB

EVENTS = ("mlocked", "munlocked", "culled", "rescued", "cleared", "stranded")
"""unevictable_pgs_* of /proc/vmstat: they only ever grow."""


def nodes(name: str) -> int:
    """Sum of a line over /sys/devices/system/node/node*/meminfo, in pages."""
    total = 0
    for path in Path("/sys/devices/system/node").glob("node[0-9]*/meminfo"):
        for line in path.read_text().splitlines():
            # Node 0 Mlocked:            12 kB
            words = line.split()
            if words[2] == f"{name}:":
                total += int(words[3]) // PAGE_KB
    return total


def read() -> dict[str, int]:
    """Every counter of locked pages, in pages, after per-CPU deltas were folded (root)."""
    vmstat.stat_refresh()
    stat = vmstat.read()
    found = {name: stat[name] for name in ("nr_mlock", "nr_unevictable")}
    found |= {name: stat[f"unevictable_pgs_{name}"] for name in EVENTS}
    for name in ("Mlocked", "Unevictable"):
        found[f"meminfo {name}"] = vmstat.meminfo_kb(name) // PAGE_KB
        found[f"node {name}"] = nodes(name)
    return found
