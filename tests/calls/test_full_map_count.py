# SPDX-License-Identifier: MIT
"""Calls that would have to split a VMA when the process has vm.max_map_count of them."""

from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from helpers import syscalls
from helpers.memory.mappings import reserve
from helpers.model.arena import arena
from helpers.model.failing_calls import Request
from helpers.model.failing_table import SPLITTING, differences_when_refused
from helpers.syscalls import MAP_ANONYMOUS, MAP_SHARED, PAGE, PROT_NONE, PROT_READ

FIRST, COUNT = 5, 6
SPARE = 16
"""VMAs that are free between two calls."""


class Filling:
    """VMAs of one page each: inaccessible memory of which every second page is readable."""

    def __init__(self):
        most = int(Path("/proc/sys/vm/max_map_count").read_text())
        self.start = reserve((most + 2 * SPARE) * PAGE)
        self.single = []
        self._divide(1, SPARE)
        self._divide(SPARE + 1, most + SPARE)
        self.relieve()

    def _divide(self, first, end):
        for page in range(first, end, 2):
            addr = self.start + page * PAGE
            if syscalls.outcome(syscalls.mprotect, addr, PAGE, PROT_READ) != "ok":
                break

    def _one_more(self):
        self.single.append(syscalls.mmap(0, PAGE, PROT_READ, MAP_SHARED | MAP_ANONYMOUS))

    def fill(self):
        """To the limit: what the interpreter may have given back meanwhile is taken up too."""
        self._divide(1, SPARE)
        while syscalls.outcome(self._one_more) == "ok":
            pass

    def relieve(self):
        """Give some back."""
        while self.single:
            syscalls.munmap(self.single.pop(), PAGE)
        syscalls.mprotect(self.start, SPARE * PAGE, PROT_NONE)


@contextmanager
def full(filling):
    """The block runs at the limit."""
    filling.fill()
    try:
        yield
    finally:
        filling.relieve()


def is_there(call):
    """The kernel has the call."""
    return not call.needs or syscalls.outcome(call.make, Request(0, 0)) != "ENOSYS"


@pytest.mark.needs("smaps-flags", "lock:128", "map-count")
@pytest.mark.detects("split-failure-miscounts")
@pytest.mark.deadline(300)
@pytest.mark.own_process
@pytest.mark.source("Documentation/admin-guide/sysctl/vm.rst max_map_count", "munmap(2) ENOMEM")
def test_split_that_the_map_count_forbids():
    """With vm.max_map_count VMAs, a call that would have to split one gives ENOMEM (madvise
    EAGAIN, or that) and changes nothing: no lock, no count, no page, no byte."""
    found = {}
    with ExitStack() as opened:
        # Below the many VMAs, where smaps has them first.
        memories = {c: opened.enter_context(arena("private")) for c in filter(is_there, SPLITTING)}
        filling = Filling()
        for call, memory in memories.items():
            memory.lock_all(call.before or "lo")
            if call.rule == "mremap":
                memory.make_target()
            request = call.request(memory, FIRST, COUNT)
            found[call.id] = differences_when_refused(memory, call, request, full(filling))
    assert not {name: lines for name, lines in found.items() if lines}
