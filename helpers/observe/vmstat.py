# SPDX-License-Identifier: MIT
"""/proc/vmstat and /proc/meminfo: machine-wide counters, moved by everybody.

Per-CPU deltas are folded on reading only after a write to /proc/sys/vm/stat_refresh (root).
"""

from __future__ import annotations

from pathlib import Path

from helpers import syscalls


def stat_refresh() -> bool:
    """Fold per-CPU deltas; False where the file is not ours to write.

    5.10 answers EINVAL when a counter is negative, having folded all the same.
    """
    try:
        Path("/proc/sys/vm/stat_refresh").write_text("1")
    except PermissionError:
        return False
    except OSError:
        return Path("/proc/sys/vm/stat_refresh").exists()
    return True


def read() -> dict[str, int]:
    """Every counter of /proc/vmstat (pages or events)."""
    rows = (line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    return {name: int(value) for name, value in rows}


def meminfo_kb(name: str) -> int:
    """A line of /proc/meminfo in kB. Raises LookupError if the kernel has no such line."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0])
    raise LookupError(f"no {name} in /proc/meminfo")


def huge_page_size() -> int:
    """Bytes in a huge page of the default size; 512 pages where the kernel has none.

    So that a module can size its cases on a kernel without hugetlb, where they do not run.
    """
    try:
        return meminfo_kb("Hugepagesize") * 1024
    except LookupError:
        return 512 * syscalls.PAGE
