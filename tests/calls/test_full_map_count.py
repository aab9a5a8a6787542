# SPDX-License-Identifier: MIT
"""Calls that would have to split a VMA when the process has vm.max_map_count of them."""

from contextlib import contextmanager
from pathlib import Path

import pytest

from helpers import syscalls
from helpers.model.arena import arena
from helpers.model.failing_calls import Request
from helpers.model.failing_table import SPLITTING, differences_when_refused
from helpers.syscalls import MAP_ANONYMOUS, MAP_NORESERVE, MAP_PRIVATE, MAP_SHARED, PAGE, PROT_READ

FIRST, COUNT = 5, 6
SPARE = 8


class Filling:
    """VMAs of one page each, until no more are to be had."""

    def __init__(self):
        most = int(Path("/proc/sys/vm/max_map_count").read_text())
        how = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE
        self.single = []
        self.start = self.next = syscalls.mmap(0, 2 * most * PAGE, syscalls.PROT_NONE, how)

    def fill(self):
        """To the limit: what the interpreter may have given back meanwhile is taken up too."""
        while syscalls.outcome(syscalls.mprotect, self.next + PAGE, PAGE, PROT_READ) == "ok":
            self.next += 2 * PAGE  # two VMAs more
        while syscalls.outcome(self._one_more) == "ok":
            pass

    def _one_more(self):
        self.single.append(syscalls.mmap(0, PAGE, PROT_READ, MAP_SHARED | MAP_ANONYMOUS))

    def relieve(self):
        """Give some back."""
        syscalls.munmap(self.start, SPARE * PAGE)
        self.start += SPARE * PAGE
        while self.single:
            syscalls.munmap(self.single.pop(), PAGE)


def is_there(call):
    """The kernel has the call."""
    return not call.needs or syscalls.outcome(call.make, Request(0, 0)) != "ENOSYS"


@contextmanager
def full(filling):
    """The block runs at the limit."""
    filling.fill()
    try:
        yield
    finally:
        filling.relieve()


@pytest.mark.needs("smaps-flags", "lock:32", "map-count")
@pytest.mark.detects("split-failure-miscounts")
@pytest.mark.deadline(300)
@pytest.mark.own_process
@pytest.mark.source("Documentation/admin-guide/sysctl/vm.rst max_map_count", "munmap(2) ENOMEM")
def test_split_that_the_map_count_forbids():
    """With vm.max_map_count VMAs, a call that would have to split one gives ENOMEM (madvise
    EAGAIN) and changes nothing: no lock, no count, no page, no byte."""
    filling = Filling()
    with full(filling):
        pass
    found = {}
    for call in filter(is_there, SPLITTING):
        with arena("private") as memory:
            memory.lock_all(call.before or "lo")
            if call.rule == "mremap":
                memory.make_target()
            request = call.request(memory, FIRST, COUNT)
            found[call.id] = differences_when_refused(memory, call, request, full(filling))
    assert not {name: lines for name, lines in found.items() if lines}
