# SPDX-License-Identifier: MIT
"""Mlocked and Unevictable of the whole machine, from every place that shows them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from helpers.observe import vmstat
from helpers.syscalls import PAGE_KB

_NODES, _ZONES = Path("/sys/devices/system/node"), Path("/proc/zoneinfo")
EVENTS = ("mlocked", "munlocked", "culled", "scanned", "rescued", "cleared", "stranded")
"""unevictable_pgs_* of /proc/vmstat: they only ever grow."""


def _sums(paths: Sequence[Path], *names: str) -> dict[str, int]:
    """The first number behind each of these names, summed over the lines of files."""
    found = dict.fromkeys(names, 0)
    for path in paths:
        for line in path.read_text().splitlines():
            words = line.replace(":", " ").split()
            # Of zoneinfo and vmstat, or "Node 0 Mlocked:            12 kB".
            name = words[2] if words[0] == "Node" and len(words) > 3 else words[0]
            if name in found:
                found[name] += int(words[3] if words[0] == "Node" else words[1])
    return found


def read() -> dict[str, int]:
    """Every counter of locked pages, in pages, after per-CPU deltas were folded (root).

    Those of nodes only where the kernel has them (CONFIG_NUMA).
    """
    vmstat.stat_refresh()
    stat = vmstat.read()
    found = {name: stat[name] for name in ("nr_mlock", "nr_unevictable")}
    found |= {name: stat[f"unevictable_pgs_{name}"] for name in EVENTS}
    for name in ("Mlocked", "Unevictable"):
        found[f"meminfo {name}"] = vmstat.meminfo_kb(name) // PAGE_KB
    if nodes := sorted(_NODES.glob("node[0-9]*")):
        told = _sums([n / "meminfo" for n in nodes], "Mlocked", "Unevictable")
        found |= {f"node {name}": kb // PAGE_KB for name, kb in told.items()}
        told = _sums([n / "vmstat" for n in nodes], "nr_mlock", "nr_unevictable")
        found |= {f"node vmstat {name}": pages for name, pages in told.items()}
    told = _sums([_ZONES], "nr_mlock", "nr_unevictable", "nr_zone_unevictable")
    found |= {f"zoneinfo {name}": pages for name, pages in told.items()}
    return found
