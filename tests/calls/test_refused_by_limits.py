# SPDX-License-Identifier: MIT
"""Calls refused by RLIMIT_MEMLOCK leave the memory that they were made on as it was."""

import pytest

from helpers.model.arena import arena
from helpers.model.differences import kernel_has
from helpers.model.failing_table import OVER_LIMIT, differences_after
from helpers.observe import status
from helpers.processes.rlimits import unprivileged_with_limit
from helpers.pytest_plugin.parametrize import by_row
from helpers.syscalls import PAGE

FIRST, COUNT = 5, 6
pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("smaps-flags", "limit:64"),
    pytest.mark.source("mlock(2) ERRORS", "mmap(2) ERRORS", "mremap(2) ERRORS"),
]


def prepared(call, memory):
    """The request, and the pages that it would lock more than are locked."""
    memory.lock_all(call.before)
    if call.rule == "mremap":
        # Where the target is unmapped first, its locks would make room.
        memory.make_target("" if kernel_has("mremap-unmaps-first") else "lo")
    request = call.request(memory, FIRST, COUNT)
    more = request.new - request.length if call.rule == "mremap" else request.length
    return request, more // PAGE


@pytest.mark.parametrize("kind", ["private", "memfd"])
@pytest.mark.parametrize("short", [1, 2])
@by_row(OVER_LIMIT)
@pytest.mark.detects("refused-mremap-counts-growth")
def test_call_over_the_locking_limit(call, short, kind):
    """A call that would lock a page or two more than the limit has left is refused (mlock ENOMEM,
    mmap and mremap EAGAIN) and leaves locks, VmLck, mappings and contents; what locks no more
    than before is not refused."""
    with arena(kind) as memory:
        request, more = prepared(call, memory)
        room = more - short
        limit = unprivileged_with_limit((status.vmlck_pages() + room) * PAGE)
        permitted = status.vmlck_pages() + room > 0
        found = differences_after(memory, call, request, limit, room=room, permitted=permitted)
        assert found == []


@pytest.mark.parametrize("kind", ["private", "memfd"])
@by_row(OVER_LIMIT)
def test_call_under_a_limit_of_0(call, kind):
    """Under a limit of 0 mlock and MAP_LOCKED give EPERM, growth of locked memory EAGAIN, and
    locks, VmLck, mappings and contents are as they were; munlock is free."""
    with arena(kind) as memory:
        request, _ = prepared(call, memory)
        limit = unprivileged_with_limit(0)
        found = differences_after(memory, call, request, limit, room=0, permitted=False)
        assert found == []
