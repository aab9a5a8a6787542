# SPDX-License-Identifier: MIT
"""A memory cgroup of our own, v1 or v2, and reclaim inside it and nowhere else.

Sources: Documentation/admin-guide/cgroup-v1/memory.rst, cgroup-v2.rst.
"""

from __future__ import annotations

import errno
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from helpers.machine import kernel_version, timeouts
from helpers.machine.journal import ChangeJournal
from helpers.machine.records import RELEASE_TIMEOUT
from helpers.observe import status, timeline
from helpers.syscalls import PAGE


class CgroupUnavailable(OSError):
    """No memory cgroup can be made here; the text says what was tried."""


@dataclass(frozen=True)
class CgroupParent:
    """A folder in which memory cgroups can be made. ``version`` is 1 or 2."""

    path: Path
    version: int


def _mounts() -> list[tuple[int, Path]]:
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split()[:3]
        point = Path(left.split()[4])
        if kind == "cgroup" and "memory" in options.split(","):
            found.append((1, point))
        elif kind == "cgroup2" and "memory" in _controllers(point):
            found.append((2, point))
    return found


def _controllers(path: Path) -> list[str]:
    # /proc/cgroups has no memory line any more in newer kernels; this file has.
    try:
        return (path / "cgroup.controllers").read_text().split()
    except OSError:
        return []


def _own_v2(mount: Path) -> Path:
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        if line.startswith("0::"):
            return mount / line[3:].strip("/").removeprefix("../")
    return mount


def find_parent(run: ChangeJournal, given: str | None = None) -> CgroupParent:
    """Where this run can make memory cgroups, found out by making one with a limit.

    ``given`` (``--cgroup``) names a delegated folder. On v2 the memory controller is enabled for
    the folder's children where it is not (recorded, and undone at the end).
    Raises :class:`NoCgroup`.
    """
    tried: list[str] = []
    candidates: list[tuple[int, Path]] = []
    if given:
        path = Path(given)
        candidates.append((2 if (path / "cgroup.controllers").exists() else 1, path))
    else:
        for version, mount in _mounts():
            candidates.append((version, mount))
            own = _own_v2(mount)
            if version == 2 and own != mount and own.is_dir():
                candidates.append((2, own))
    for version, path in candidates:
        try:
            _enable(run, path, version)
            with make(run, CgroupParent(path, version)) as probe:
                probe.limit(1 << 26)
            return CgroupParent(path, version)
        except OSError as error:
            tried.append(f"{path} (v{version}): {error.strerror or error}")
    if not tried:
        tried.append("no mounted hierarchy has the memory controller")
    raise CgroupUnavailable(0, "; ".join(tried))


def _enable(run: ChangeJournal, path: Path, version: int) -> None:
    # In a default container mkdir succeeds here and makes a plain tmpfs folder.
    if not (path / "cgroup.procs").exists():
        raise OSError(errno.ENOENT, "not a cgroup folder")
    if version == 2:
        run.enable_memory(path / "cgroup.subtree_control")


def stat_slack() -> int:
    """Pages that a line of memory.stat may be wrong by for good.

    Before 5.15 each CPU keeps up to 32 pages of a change to itself; since then the sum is
    folded at once for a large change, and within two seconds for any.
    """
    return 64 if kernel_version.version() < (5, 15, 0) else 0


def _stat(text: str) -> dict[str, int]:
    return {k: int(v) for k, v in (line.split() for line in text.splitlines())}


@dataclass(frozen=True)
class Cgroup:
    """A memory cgroup. Sizes are bytes."""

    path: Path
    version: int

    def _write(self, name: str, value: str | int) -> None:
        fd = os.open(self.path / name, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, str(value).encode())
        finally:
            os.close(fd)

    def _read(self, name: str) -> str:
        return (self.path / name).read_text()

    def has(self, name: str) -> bool:
        """The kernel has this control file."""
        return (self.path / name).exists()

    def add(self, pid: int) -> None:
        """Move a process in; what it touches from now on is charged here."""
        self._write("cgroup.procs", pid)

    def limit(self, size: int) -> None:
        """Set the hard limit; -1 is none. v1: EBUSY if it cannot be reclaimed down to it."""
        if self.version == 1:
            self._write("memory.limit_in_bytes", size)
        else:
            self._write("memory.max", "max" if size < 0 else size)
        timeline.sample("no limit" if size < 0 else f"limit {size >> 10} kB")

    def current(self) -> int:
        """Memory charged now."""
        return int(self._read("memory.usage_in_bytes" if self.version == 1 else "memory.current"))

    def stat(self) -> dict[str, int]:
        """memory.stat: bytes and events, by the kernel's names."""
        return _stat(self._read("memory.stat"))

    def of_nodes(self, name: str) -> int | None:
        """A line of memory.numa_stat in pages, summed over the nodes; None without CONFIG_NUMA."""
        if not self.has("memory.numa_stat"):
            return None
        for line in self._read("memory.numa_stat").splitlines():
            first, *nodes = line.split()
            if first.partition("=")[0] == name:
                told = sum(int(node.partition("=")[2]) for node in nodes)
                return told if self.version == 1 else told // PAGE
        raise LookupError(f"no {name} in memory.numa_stat")

    def settled(self, name: str, pages: int) -> int:
        """A line of memory.stat in pages, once it is about as expected, or after the kernel's own
        interval for folding it."""
        until = timeouts.until(3)
        while abs((now := self.stat()[name] // PAGE) - pages) > stat_slack():
            if time.monotonic() > until:
                break
            time.sleep(0.05)
        return now

    def oom_kills(self) -> int:
        """How many processes the OOM killer took in here."""
        name = "memory.oom_control" if self.version == 1 else "memory.events"
        return _stat(self._read(name)).get("oom_kill", 0)

    def reclaim(self) -> None:
        """Reclaim all that can be reclaimed in here, and return.

        v1: memory.force_empty. v2: memory.reclaim (5.19), before that memory.high for a moment;
        neither has a limit to exceed, so nobody is OOM-killed.
        """
        # Whether active pages are aged is decided on the cgroup's own counters, which are
        # folded every two seconds, or when somebody reads them (prepare_scan_control() in
        # mm/vmscan.c, 5.15 on): unread, they say that a young cgroup has no active pages.
        self.stat()
        if self.version == 1:
            # Also takes the tasks' pages to swap (mem_cgroup_force_empty), and stops when
            # nothing more goes.
            try:
                self._write("memory.force_empty", 0)
            except OSError as error:
                if error.errno not in {errno.EBUSY, errno.EINTR}:
                    raise
        elif self.has("memory.reclaim"):
            for _ in range(3):  # it gives up early where much was written back
                try:
                    self._write("memory.reclaim", self.current())
                except OSError as error:
                    if error.errno != errno.EAGAIN:  # less than asked could be reclaimed
                        raise
        else:
            self._write("memory.high", 0)
            self._write("memory.high", "max")

    def gauge(self) -> dict[str, float]:
        """For a report's picture, in kB: what is charged, unevictable, locked and swapped, and
        the hard limit where there is one. Raises OSError if a process ends meanwhile."""
        told = [status.fields(pid) for pid in self.pids()]
        seen: dict[str, float] = {
            "charged": self.current() >> 10,
            "unevictable": self.stat().get("unevictable", 0) >> 10,
            "locked": sum(int(f["VmLck"].split()[0]) for f in told if "VmLck" in f),
            "swapped": sum(int(f["VmSwap"].split()[0]) for f in told if "VmSwap" in f),
        }
        limit = self._read("memory.limit_in_bytes" if self.version == 1 else "memory.max").strip()
        if limit.isdigit() and int(limit) < 1 << 50:  # v1 writes "none" as nearly 1 << 63
            seen["limit"] = int(limit) >> 10
        return seen

    def pids(self) -> list[int]:
        """Processes in here."""
        return [int(pid) for pid in self._read("cgroup.procs").split()]


@contextmanager
def make(run: ChangeJournal, parent: CgroupParent, limit: int = -1) -> Iterator[Cgroup]:
    """A cgroup of our own with a hard limit in bytes (-1: none) for the block.

    At its end every process in it is killed and it is removed. Pages cannot hide from its swap
    area: zswap is off in it where the kernel can say so.
    """
    path = parent.path / f"{run.name}-{os.getpid()}-{secrets.token_hex(2)}"
    with run.change("cgroup", path=str(path)):
        path.mkdir()
        made = Cgroup(path, parent.version)
        if not made.has("cgroup.procs") or not (
            made.has("memory.max") or made.has("memory.limit_in_bytes")
        ):
            path.rmdir()
            raise OSError(errno.ENOTSUP, "a new folder has no memory controller")
        if made.has("memory.swappiness"):
            made._write("memory.swappiness", 100)
        if made.has("memory.zswap.max"):
            made._write("memory.zswap.max", 0)
        if limit >= 0:
            made.limit(limit)
        with timeline.with_counters(made.gauge):
            yield made


def wait_empty(group: Cgroup) -> None:
    """Wait until no process is left in the cgroup. Raises TimeoutError."""
    until = timeouts.until(RELEASE_TIMEOUT)
    while group.pids():
        if time.monotonic() > until:
            raise TimeoutError(f"processes stay in {group.path}: {group.pids()}")
        time.sleep(0.01)
