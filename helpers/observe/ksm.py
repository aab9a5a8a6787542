# SPDX-License-Identifier: MIT
"""Kernel same-page merging, driven until a range has been merged.

Source: Documentation/admin-guide/mm/ksm.rst. Settings are the caller's to restore
(:meth:`helpers.reclaim.setup.ReclaimSetup.setting`).
"""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

from helpers.machine import timeouts
from helpers.memory import Region
from helpers.observe import pagemap

FOLDER = Path("/sys/kernel/mm/ksm")
RUN, STOP, UNMERGE = "1", "0", "2"
_PASSES = 12


def scans() -> int:
    """How often ksmd has been through all of its memory."""
    return int((FOLDER / "full_scans").read_text())


def merged(region: Region, pid: int | str = "self") -> int:
    """Pages of the region that share their frame with another page of it.

    KPF_KSM does not tell: kpageflags shows it on all anonymous pages (6.12, fs/proc/page.c).
    """
    shares = Counter(pagemap.pfns(region.addr, region.pages, pid))
    return sum(count for pfn, count in shares.items() if pfn and count > 1)


def wait_merged(region: Region, wanted: int, seconds: float = 10.0) -> int:
    """Let ksmd work until ``wanted`` pages of the region are merged: how many are.

    Gives up after some passes over all memory, or in the end after that time: ksmd tells
    nobody when it is done.
    """
    last, until = scans() + _PASSES, timeouts.until(seconds)
    while merged(region) < wanted and scans() < last and time.monotonic() < until:
        time.sleep(0.02)
    return merged(region)
