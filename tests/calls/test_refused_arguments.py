# SPDX-License-Identifier: MIT
"""Calls refused for their arguments change nothing: no VMA, no lock, no count, no page, no byte."""

import pytest

from helpers.model.arena import arena
from helpers.model.failing_table import (
    ALIGNED,
    ARGUMENTS,
    INSIDE_A_HUGE_PAGE,
    WRONG_NUMBERS,
    differences_after,
)
from helpers.model.page_state import COUNT, FIRST, KINDS
from helpers.model.refused_calls import REFUSED, REFUSED_LATE, differences_of_refused
from helpers.pytest_plugin.parametrize import by_row

pytestmark = [pytest.mark.share_process, pytest.mark.needs("smaps-flags", "lock:32")]
LOCKS = {"locked": "lo", "onfault": "lo lf"}


def rows():
    """Each call with each number that is wrong for it."""
    for call in WRONG_NUMBERS:
        for name, (rules, _) in ARGUMENTS.items():
            if call.rule in rules:
                marks = [pytest.mark.needs(*call.needs)] if call.needs else []
                yield pytest.param(call, name, id=f"{call.id}-{name}", marks=marks)


@pytest.mark.parametrize(("call", "argument"), list(rows()))
@pytest.mark.source("mprotect(2)", "madvise(2)", "mremap(2)", "munmap(2)", "msync(2)", "mseal(2)")
@pytest.mark.detects("wrapped-length-accepted", "unaligned-start-rounded", "empty-range-einval")
def test_wrong_number_changes_nothing(call, argument):
    """A call whose address or length is wrong is refused as its manual says, and everything is as
    it was."""
    with arena("private") as memory:
        memory.lock_all(call.before)
        if call.rule == "mremap":
            memory.make_target()
        request = ARGUMENTS[argument][1](call.request(memory, FIRST + 1, COUNT - 2))
        assert differences_after(memory, call, request) == []


def refused():
    """Each call that is always refused, in each state of lock that its memory can have."""
    for call in REFUSED:
        needs = (*call.needs, *KINDS[call.kind].needs)
        marks = [pytest.mark.needs(*needs)] if needs else []
        for name, lock in LOCKS.items():
            if KINDS[call.kind].lock == "yes" or name == "locked":
                yield pytest.param(call, lock, id=f"{call.id}-{name}", marks=marks)


@pytest.mark.parametrize(("call", "lock"), list(refused()))
@pytest.mark.source("mmap(2)", "mremap(2)", "mprotect(2)", "madvise(2)", "mlock2(2)", "msync(2)")
@pytest.mark.detects(
    "refused-call-unlocks", "refused-call-miscounts", "refused-call-drops-pages",
    "refused-map-fixed-unmaps", "shmat-replaces",
)  # fmt: skip
def test_wrong_argument_changes_nothing(call, lock):
    """A call with an argument that it must refuse says so, and everything is as it was, whatever
    the memory's lock."""
    with arena(call.kind) as memory:
        memory.lock_all(lock)
        memory.make_target()
        assert differences_of_refused(memory, call, FIRST + 1, COUNT - 2) == []


@pytest.mark.parametrize("lock", LOCKS.values(), ids=LOCKS)
@by_row(REFUSED_LATE)
@pytest.mark.source("mmap(2) ERRORS", "mm/mmap.c mmap_region", "mm/vma.c __mmap_region")
@pytest.mark.detects("refused-map-fixed-keeps-count")
def test_mapping_refused_by_its_file(call, lock):
    """MAP_FIXED that the file refuses leaves the old mapping, or nothing in its place; its
    neighbours keep lock, pages and contents, and VmLck is the sum of what is locked."""
    with arena("private") as memory:
        memory.lock_all(lock)
        assert differences_of_refused(memory, call, FIRST + 1, COUNT - 2) == []


@pytest.mark.parametrize("where", INSIDE_A_HUGE_PAGE)
@by_row(ALIGNED)
@pytest.mark.needs("hugetlb-mapping")
@pytest.mark.source("munmap(2)", "mprotect(2)", "mm/hugetlb.c hugetlb_vm_op_split")
@pytest.mark.detects("huge-page-cut-accepted")
def test_range_that_cuts_a_huge_page(call, where):
    """A range that begins or ends inside of a huge page is refused with EINVAL by what would have
    to split its VMA, and changes nothing; the others take it as it is."""
    with arena("hugetlb") as memory:
        request = INSIDE_A_HUGE_PAGE[where](call.request(memory, FIRST + 1, COUNT - 2))
        assert differences_after(memory, call, request) == []
