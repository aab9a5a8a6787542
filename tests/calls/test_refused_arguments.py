# SPDX-License-Identifier: MIT
"""Calls refused for their arguments change nothing: no VMA, no lock, no count, no page, no byte."""

import pytest

from helpers.model.arena import arena
from helpers.model.failing_table import (
    ARGUMENTS,
    RANGE_CALLS,
    REFUSED,
    differences_after,
    differences_of_refused,
)
from helpers.model.page_state import COUNT, FIRST
from helpers.pytest_plugin.parametrize import by_row

pytestmark = [pytest.mark.share_process, pytest.mark.needs("smaps-flags", "lock:32")]
LOCKS = {"unlocked": "", "locked": "lo", "onfault": "lo lf"}


def rows():
    """Each call with each number that is wrong for it."""
    for call in RANGE_CALLS.values():
        for name, (rules, _) in ARGUMENTS.items():
            if call.rule in rules:
                marks = [pytest.mark.needs(*call.needs)] if call.needs else []
                yield pytest.param(call, name, id=f"{call.id}-{name}", marks=marks)


@pytest.mark.parametrize(("call", "argument"), list(rows()))
@pytest.mark.source("mprotect(2)", "madvise(2)", "mremap(2)", "munmap(2)", "msync(2)", "mseal(2)")
def test_wrong_number_changes_nothing(call, argument):
    """A call whose address or length is wrong is refused as its manual says, and everything is as
    it was."""
    with arena("private") as memory:
        memory.lock_all(call.before)
        if call.rule == "mremap":
            memory.make_target()
        request = ARGUMENTS[argument][1](call.request(memory, FIRST + 1, COUNT - 2))
        assert differences_after(memory, call, request) == []


@pytest.mark.parametrize("lock", LOCKS)
@by_row(REFUSED.values())
@pytest.mark.source("mmap(2)", "mremap(2)", "mprotect(2)", "madvise(2)", "mlock2(2)", "msync(2)")
def test_wrong_argument_changes_nothing(call, lock):
    """A call with an argument that it must refuse says so, and everything is as it was, whatever
    the memory's lock."""
    with arena("private") as memory:
        memory.lock_all(LOCKS[lock])
        memory.make_target()
        assert differences_of_refused(memory, call, FIRST + 1, COUNT - 2) == []
