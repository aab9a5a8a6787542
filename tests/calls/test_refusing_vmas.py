# SPDX-License-Identifier: MIT
"""Ranges of several VMAs of which one refuses: what has been done by then, and that no more is."""

import pytest

from helpers.model.arena import arena
from helpers.model.failing_table import (
    OBSTACLES,
    SEVERAL_VMAS,
    differences_after,
)

pytestmark = [pytest.mark.share_process, pytest.mark.needs("smaps-flags", "lock:32")]
FIRST, COUNT = 5, 6


def rows():
    """Each call with each VMA that is unlike the others."""
    for call in SEVERAL_VMAS:
        for obstacle in OBSTACLES.values():
            if obstacle.lock != call.before and (call.id, obstacle.id) != ("mseal", "secret"):
                needs = (*call.needs, *obstacle.needs)
                marks = [pytest.mark.needs(*needs)] if needs else []
                yield pytest.param(call, obstacle, id=f"{call.id}-{obstacle.id}", marks=marks)


@pytest.mark.parametrize(("call", "obstacle"), list(rows()))
@pytest.mark.source("mm/mprotect.c", "mm/madvise.c", "mm/mremap.c", "mm/mseal.c", "mm/mlock.c")
@pytest.mark.detects(
    "failed-population-drops-pages", "madvise-locked-dropped-first", "madvise-several-vmas-einval"
)
def test_range_with_one_unlike_vma(call, obstacle):
    """A call over three VMAs of which the second is of another kind or state does what the manual
    says of each, up to the one that refuses; locks, VmLck, pages and contents are right."""
    with arena("private") as memory:
        memory.lock_all(call.before)
        obstacle.place(memory, 7, 2)
        if call.rule == "mremap":
            memory.make_target()
        assert differences_after(memory, call, call.request(memory, FIRST, COUNT)) == []
