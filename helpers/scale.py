"""Many VMAs and many lockers: made cheaply, so that what is measured is the kernel."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from helpers import libc, process, scarce
from helpers.libc import PAGE
from helpers.memory import Region, mapping


@contextmanager
def alternating(pages: int) -> Iterator[Region]:
    """A private region in which every page is a VMA: every other one is read-only."""
    with mapping("private", pages) as region:
        for page in range(0, pages, 2):
            libc.mprotect(region.at(page), PAGE, libc.PROT_READ)
        yield region


class Crowd:
    """Processes that hold a region locked until they are told to leave."""

    def __init__(self, region: Region, count: int) -> None:
        self.pids: list[int] = []
        self._gates: list[int] = []
        ready, says = os.pipe()
        parent = os.getpid()
        try:
            for _ in range(count):
                gate_read, gate = os.pipe()
                pid = scarce.fork()
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
                    raise process.ChildExited(1)
                got += more
            if got.strip(b"."):
                raise OSError(f"{count - got.count(b'.')} of {count} processes could not lock")
        except BaseException:
            self.leave(len(self.pids))
            raise
        finally:
            os.close(ready)

    @staticmethod
    def _hold(region: Region, parent: int, says: int, gate: int, others: list[int]) -> None:
        try:
            process.die_with_parent(parent)
            for fd in others:
                os.close(fd)  # or a gate would stay open in those forked later
            seen = libc.outcome(libc.mlock, region.addr, region.size)
            os.write(says, b"." if seen == "ok" else b"!")
            os.read(gate, 1)
        finally:
            os._exit(0)

    def leave(self, count: int) -> None:
        """The oldest ``count`` of them exit, and have been waited for."""
        for gate in self._gates[:count]:
            os.close(gate)
        for pid in self.pids[:count]:
            os.waitpid(pid, 0)
        del self._gates[:count], self.pids[:count]


@contextmanager
def lockers(region: Region, count: int) -> Iterator[Crowd]:
    """``count`` forked processes that have locked the region. Raises OSError if one may not."""
    crowd = Crowd(region, count)
    try:
        yield crowd
    finally:
        crowd.leave(len(crowd.pids))
