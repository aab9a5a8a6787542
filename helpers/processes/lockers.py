# SPDX-License-Identifier: MIT
"""Many processes that lock."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from helpers import syscalls
from helpers.memory import Region
from helpers.processes import child, errors
from helpers.syscalls import scarcity


class LockerProcesses:
    """Processes that hold a region locked until they are told to leave."""

    def __init__(self, region: Region, count: int) -> None:
        self.pids: list[int] = []
        self._gates: list[int] = []
        ready, says = os.pipe()
        parent = os.getpid()
        try:
            for _ in range(count):
                gate_read, gate = os.pipe()
                pid = scarcity.fork()
                if pid == 0:
                    self._hold(region, parent, says, gate_read, [*self._gates, gate, ready])
                os.close(gate_read)
                self.pids.append(pid)
                self._gates.append(gate)
            os.close(says)
            got = b""
            while len(got) < count:
                more = os.read(ready, count)
                if not more:
                    raise errors.ChildExited(1)
                got += more
            if got.strip(b"."):
                raise OSError(f"{count - got.count(b'.')} of {count} processes could not lock")
        except BaseException:
            self.exit(len(self.pids))
            raise
        finally:
            os.close(ready)

    @staticmethod
    def _hold(region: Region, parent: int, says: int, gate: int, others: list[int]) -> None:
        try:
            child.die_with_parent(parent)
            for fd in others:
                os.close(fd)  # or a gate would stay open in those forked later
            seen = syscalls.outcome(syscalls.mlock, region.addr, region.size)
            os.write(says, b"." if seen == "ok" else b"!")
            os.read(gate, 1)
        finally:
            os._exit(0)

    def exit(self, count: int) -> None:
        """The oldest ``count`` of them exit, and have been waited for."""
        for gate in self._gates[:count]:
            os.close(gate)
        for pid in self.pids[:count]:
            os.waitpid(pid, 0)
        del self._gates[:count], self.pids[:count]


@contextmanager
def lockers(region: Region, count: int) -> Iterator[LockerProcesses]:
    """``count`` forked processes that have locked the region. Raises OSError if one may not."""
    lockers = LockerProcesses(region, count)
    try:
        yield lockers
    finally:
        lockers.exit(len(lockers.pids))
