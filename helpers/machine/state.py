# SPDX-License-Identifier: MIT
"""The machine before and after: what a session must leave as it found it.

In the manner of CPython's save_env: named resources, each with a way to read it. Only what a
run of this suite could have changed is compared, so that a neighbour's doings raise no alarm.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Container
from pathlib import Path

import psutil

from helpers.machine import block_devices, timeouts

_SETTINGS = (
    "/proc/sys/kernel/perf_event_mlock_kb",
    "/proc/sys/vm/compact_unevictable_allowed",
    "/proc/sys/vm/drop_caches",
    "/proc/sys/vm/max_map_count",
    "/proc/sys/vm/nr_hugepages",
    "/proc/sys/vm/overcommit_memory",
    "/proc/sys/vm/swappiness",
    "/sys/kernel/mm/ksm/run",
    "/sys/kernel/mm/lru_gen/enabled",
    "/sys/kernel/mm/transparent_hugepage/enabled",
)


def _swap(name: str) -> list[str]:
    return [path for path in block_devices.areas() if name in path]


def _swap_devices(name: str) -> list[str]:
    found = []
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            if name in backing.read_text():
                found.append(backing.parts[3])
        except OSError:
            continue
    return found


def _cgroups(name: str) -> list[str]:
    roots = {
        line.split()[4]
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
        if line.partition(" - ")[2].split()[0] in {"cgroup", "cgroup2"}
    }
    return sorted(str(p) for root in roots for p in Path(root).glob(f"**/{name}*"))


def _settings(name: str) -> list[str]:
    found = []
    for path in _SETTINGS:
        try:
            found.append(f"{path} = {Path(path).read_text().strip()}")
        except OSError:
            continue
    return found


def _folders(name: str) -> list[str]:
    return [
        str(p) for where in ("/var/tmp", "/tmp", "/dev/shm") for p in Path(where).glob(f"{name}*")
    ]


def _shm(name: str) -> list[str]:
    """SysV segments of ours whose maker is gone and that were made since this process began."""
    try:
        rows = Path("/proc/sysvipc/shm").read_text().splitlines()
    except OSError:
        return []
    began = psutil.Process().create_time()
    found = []
    if rows:
        columns = rows[0].split()
        for row in rows[1:]:
            values = dict(zip(columns, row.split()))
            if int(values["uid"]) != os.geteuid() or int(values["ctime"]) < began:
                continue
            if not psutil.pid_exists(int(values["cpid"])):
                found.append(f"shmid {values['shmid']} ({values['size']} bytes)")
    return found


def _children(name: str) -> list[str]:
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            command = " ".join(child.cmdline())
            if child.status() != psutil.STATUS_ZOMBIE and "helpers.machine.journal" not in command:
                found.append(f"{child.pid} {command[:80]}")
        except psutil.NoSuchProcess:
            continue
    return found


RESOURCES: dict[str, Callable[[str], list[str]]] = {
    "swap areas": _swap,
    "loop devices": _swap_devices,
    "cgroups": _cgroups,
    "settings": _settings,
    "folders": _folders,
    "SysV segments": _shm,
    "child processes": _children,
}
"""Resource → what there is of it now; ``name`` is the run's random name."""


def read(name: str) -> dict[str, list[str]]:
    """State of every resource, as sorted lines."""
    return {title: sorted(read(name)) for title, read in RESOURCES.items()}


def diff(
    before: dict[str, list[str]], name: str, ours: Container[str] = (), patience: float = 2.0
) -> tuple[list[str], list[str]]:
    """A line for each thing that was not there before, or is not there any more.

    Second the lines that are not held against the run: settings other than ``ours``, the paths
    of those that it changed. Waits up to ``patience`` seconds for children that are just ending.
    """
    until = timeouts.until(patience)
    while True:
        now = read(name)
        lines: list[str] = []
        notes: list[str] = []
        for title, was in before.items():
            found = [(entry, "new") for entry in now[title] if entry not in was]
            if title != "child processes":  # a worker that has ended is as it should be
                found += [(entry, "gone") for entry in was if entry not in now[title]]
            for entry, how in found:
                foreign = title == "settings" and entry.partition(" = ")[0] not in ours
                (notes if foreign else lines).append(f"{title}: {entry} is {how}")
        if not lines or time.monotonic() > until:
            return lines, notes
        time.sleep(0.05)
