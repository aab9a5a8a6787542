# SPDX-License-Identifier: MIT
"""Ranges with a hole: what each call does of them, over each kind of memory.

Three rules. A call works up to the hole (mprotect, as mlock), works on everything that is mapped
(madvise, msync), or looks first and does nothing (mincore, mseal, mremap).
"""

import pytest

from helpers.model.arena import arena
from helpers.model.failing_table import (
    ADVICE_CALLS,
    MOVE_CALLS,
    OTHER_CALLS,
    PROTECT_CALLS,
    RANGE_CALLS,
    differences_after,
)
from helpers.model.page_state import KINDS
from helpers.pytest_plugin.parametrize import by_row

pytestmark = [pytest.mark.share_process, pytest.mark.needs("smaps-flags", "lock:32")]
FIRST, COUNT = 5, 6
HOLES = {"start": (5, 1), "middle": (7, 2), "end": (10, 1), "everything": (5, 6)}
by_hole = pytest.mark.parametrize("hole", HOLES)


def differences_over_hole(call, hole, kind="private"):
    with arena(kind) as memory:
        memory.unmap(*HOLES[hole])
        memory.lock_all(call.before)
        if call.rule == "mremap":
            memory.make_target()
        return differences_after(memory, call, call.request(memory, FIRST, COUNT))


@by_hole
@by_row(PROTECT_CALLS)
@pytest.mark.source("mprotect(2) ERRORS", "mm/mprotect.c do_mprotect_pkey")
@pytest.mark.detects(
    "mprotect-hole-changes-nothing", "mprotect-hole-changes-beyond", "mprotect-hole-drops-lock"
)
def test_protection_is_changed_up_to_the_hole(call, hole):
    """mprotect over a hole gives ENOMEM: the pages before the hole have the new protection,
    those behind the old; locks, VmLck, pages and contents are as before."""
    assert differences_over_hole(call, hole) == []


@pytest.mark.parametrize("hole", ["start", "middle"])
@by_row(ADVICE_CALLS)
@pytest.mark.source("madvise(2) ERRORS", "mm/madvise.c madvise_walk_vmas")
@pytest.mark.detects("madvise-hole-ends", "madvise-locked-dropped-first")
def test_advice_is_followed_on_both_sides_of_the_hole(call, hole):
    """madvise over a hole gives ENOMEM when it has been followed wherever memory is mapped;
    population ends at the hole, and what may not be done to locked memory is refused before."""
    assert differences_over_hole(call, hole) == []


@by_hole
@by_row(MOVE_CALLS)
@pytest.mark.source("mremap(2) ERRORS", "mm/mremap.c")
@pytest.mark.detects("mremap-refused-unlocks", "refused-mremap-unmaps-target")
def test_nothing_is_moved_across_a_hole(call, hole):
    """mremap of a range with a hole gives EFAULT and leaves source and target, their locks
    and their contents; from 6.17 on it moves each VMA of the range with its lock."""
    assert differences_over_hole(call, hole) == []


@pytest.mark.parametrize("hole", ["start", "middle", "end"])
@by_row(OTHER_CALLS)
@pytest.mark.source("munmap(2)", "mseal(2)", "msync(2)", "mincore(2)", "mm/mseal.c", "mm/msync.c")
@pytest.mark.detects("msync-hole-hides-lock", "noreplace-replaces")
def test_hole_ends_a_call_or_does_not(call, hole):
    """munmap takes away what there is; mseal and mincore give ENOMEM, mmap that may not replace
    EEXIST, and do nothing; msync finds locked memory (EBUSY) behind a hole too."""
    assert differences_over_hole(call, hole) == []


EACH_RULE = [
    RANGE_CALLS[name]
    for name in ("mlock", "onfault", "munlock", "mprotect-r", "madvise-dontneed",
                 "madvise-cold-unlocked", "msync-invalidate", "mremap-fixed")
]  # fmt: skip


@by_row((k for k in KINDS.values() if k.id not in {"private", "hugetlb"}), "kind")
@by_row(EACH_RULE)
@pytest.mark.source("mlock(2)", "madvise(2)", "mprotect(2)", "mremap(2)", "msync(2)")
def test_hole_in_each_kind_of_memory(call, kind):
    """A call over a range with a hole does to each kind of memory what the manual says of the
    call and the kind, and nothing else."""
    assert differences_over_hole(call, "middle", kind.id) == []
