# SPDX-License-Identifier: MIT
"""/proc/PID/numa_maps: the pages of each VMA by node (numa(7), CONFIG_NUMA)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from helpers.memory import Region


@dataclass(frozen=True)
class NodeCounts:
    """A line: the VMA's start, its words, its counters by name."""

    start: int
    words: frozenset[str]
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def pages(self) -> int:
        """Pages mapped, over all nodes (huge ones count once)."""
        return sum(n for name, n in self.counts.items() if name[0] == "N" and name[1:].isdigit())


def lines(region: Region, pid: int | str = "self") -> list[NodeCounts]:
    """The lines of VMAs that begin in the region. FileNotFoundError without CONFIG_NUMA."""
    found = []
    for line in Path(f"/proc/{pid}/numa_maps").read_text().splitlines():
        start, *words = line.split()
        if region.addr <= int(start, 16) < region.end:
            pairs = (word.partition("=") for word in words)
            counts = {name: int(value) for name, _, value in pairs if value.isdigit()}
            found.append(NodeCounts(int(start, 16), frozenset(words), counts))
    return found
