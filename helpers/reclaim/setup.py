# SPDX-License-Identifier: MIT
"""What reclaim cases may use: cgroups, the swap area, settings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from helpers.machine import journal, records
from helpers.reclaim import swap_area
from helpers.reclaim.cgroup import Cgroup, CgroupParent, make
from helpers.requirements.facility import Facility

SWAP_SIZE = 64 << 20


@dataclass
class ReclaimSetup:
    """What a case may use: the run (for records), where cgroups go, the swap area."""

    run: journal.ChangeJournal
    parent: CgroupParent | None = None
    area: swap_area.Area | None = None
    facilities: dict[str, Facility] = field(default_factory=dict)

    @contextmanager
    def cgroup(self, limit: int = -1) -> Iterator[Cgroup]:
        """A memory cgroup of the case's own with a hard limit in bytes (-1: none)."""
        assert self.parent is not None, 'the case lacks needs("cgroup")'
        with make(self.run, self.parent, limit) as made:
            yield made

    @contextmanager
    def setting(self, path: str, value: str) -> Iterator[None]:
        """A sysctl or sysfs setting for the block, then its old value. For --allow-sysctl."""
        old = records.present_value(path)
        with self.run.change("setting", path=path, value=old, wrote=value):
            Path(path).write_text(value)
            yield
