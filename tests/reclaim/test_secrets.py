# SPDX-License-Identifier: MIT
"""A secret in locked memory is not in the swap area; and the ways in which it gets there.

The blocks of our own swap area are read past every cache, and in the same pass the secret of
an unlocked control must be found in them.
"""

from contextlib import contextmanager
from functools import partial

import pytest

from helpers import syscalls
from helpers.processes import Child
from helpers.reclaim import control_pairs, drivers, range_state, secrets
from helpers.requirements.inconclusive import inconclusive

SIZE = 64

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("cgroup", "swap-area", "lock:128", "budget:512"),
    pytest.mark.source("mlock(2) DESCRIPTION, NOTES"),
    pytest.mark.claim("W4"),
]


def blank(kind, pages, lock=""):
    """In the child: memory with random contents but no secret yet, locked or not."""
    made = control_pairs.make_pairs(
        (kind,), "mlock2-onfault" if lock == "onfault" else "mlock", pages
    )[kind]
    return made.locked if lock else made.control


def judge(reclaim, group, child, control, mask, control_mask):
    """How often the secret was found, once the control's was."""
    drivers.reclaim_until_evicted(group.reclaim, child.pid, control)
    found, shown = secrets.wait_written_back(
        group, reclaim.area.path, [mask, control_mask], control.pages // 4
    )
    # Not all: another run of this suite has a swap area of the same priority, and gets half.
    if shown < control.pages // 4:
        inconclusive(f"only {shown} of {control.pages} copies of the control were found in swap")
    return found


@contextmanager
def planted(reclaim, kind="private", lock="mlock"):
    """A child with a secret in memory that is locked so, and another in a control: the child, its
    locked memory, and a function that reclaims and says how often the secret is in swap."""
    mask, other = secrets.new_secret_mask(), secrets.new_secret_mask()
    with reclaim.cgroup() as group, Child() as child:
        group.add(child.pid)
        locked = child.call(blank, kind, SIZE, lock)
        control = child.call(blank, kind, SIZE)
        child.call(secrets.plant, mask, locked)
        child.call(secrets.plant, other, control)
        yield child, locked, partial(judge, reclaim, group, child, control, mask, other)


@pytest.mark.parametrize("lock", ["mlock", "onfault"])
@pytest.mark.parametrize("kind", ["private", "shared", "memfd-private", "memfd-shared"])
def test_secret_in_locked_memory_is_never_in_swap(reclaim, kind, lock):
    """What was written to locked memory is not in the swap area; an unlocked secret is."""
    with planted(reclaim, kind, lock) as (*_, leaked):
        found = leaked()
        assert found == 0, "the locked secret is nowhere in the swap area"


def churn(region, mask):
    """In the child: the secret written, wiped and written elsewhere in the page, many times."""
    for offset in range(64, 64 + 16 * 8, 16):
        secrets.plant(mask, region, offset)
        control_pairs.fill(region)
    secrets.plant(mask, region)


def test_secret_stays_out_of_swap_through_churn(reclaim):
    """Rewriting a locked secret again and again between passes of reclaim leaks no copy."""
    mask, other = secrets.new_secret_mask(), secrets.new_secret_mask()
    with reclaim.cgroup() as group, Child() as child:
        group.add(child.pid)
        locked = child.call(blank, "private", 16, "mlock")
        control = child.call(blank, "private", SIZE)
        for _ in range(6):
            child.call(churn, locked, mask)
            child.call(secrets.plant, other, control)
            group.reclaim()
        found = judge(reclaim, group, child, control, mask, other)
        assert found == 0, "the locked secret is nowhere in the swap area"


kept = []


def keep(mask):
    """In the child: the secret as an ordinary object of the interpreter, a hundred times."""
    kept.extend(secrets.reveal(mask) for _ in range(100))
    return len(kept)


@pytest.mark.needs("lock-all")
@pytest.mark.parametrize("flags", ["current then future", "future on fault"])
def test_mlockall_keeps_every_copy_out_of_swap(reclaim, flags):
    """Under mlockall even a secret in a program's heap, wherever copied, is not in swap."""
    mask, other = secrets.new_secret_mask(), secrets.new_secret_mask()
    with reclaim.cgroup() as group, Child() as child, Child() as unlocked:
        group.add(child.pid)
        group.add(unlocked.pid)
        child.call(syscalls.mlockall, syscalls.MCL_CURRENT | syscalls.MCL_FUTURE)
        if flags == "future on fault":
            child.call(
                syscalls.mlockall, syscalls.MCL_CURRENT | syscalls.MCL_FUTURE | syscalls.MCL_ONFAULT
            )
        child.call(keep, mask)
        unlocked.call(keep, other)
        control = unlocked.call(blank, "private", SIZE)
        unlocked.call(secrets.plant, other, control)
        found = judge(reclaim, group, unlocked, control, mask, other)
        assert found == 0, "no copy on the locked heap is in the swap area"


@pytest.mark.source("fork(2)")
def test_forked_child_that_only_reads_leaks_nothing(reclaim):
    """A child that shares its parent's locked pages leaves the secret protected by the lock."""
    with planted(reclaim) as (child, locked, leaked):
        child.call(control_pairs.fork_grandchild)
        child.call(control_pairs.call_in_grandchild, range_state.absent_pages, locked, child.pid)
        found = leaked()
        assert found == 0, "the locked secret is nowhere in the swap area"


@pytest.mark.source("fork(2)", "mlock(2) NOTES")
@pytest.mark.parametrize("writer", ["child", "parent"])
def test_copy_on_write_after_fork_leaks_the_childs_copy(reclaim, writer):
    """Whoever writes first after fork, the page that stays with the child is not locked: it leaks.

    What users must know: lock again in the child, or exclude the range by MADV_DONTFORK.
    """
    with planted(reclaim) as (child, locked, leaked):
        pid = child.call(control_pairs.fork_grandchild)
        if writer == "child":
            child.call(control_pairs.call_in_grandchild, locked.touch)
        else:
            child.call(locked.touch)
        found = leaked()
        if range_state.absent_pages(locked, pid) < SIZE // 2:
            inconclusive("the child's copies were not swapped out")
        assert range_state.absent_pages(locked, child.pid) == 0, "the parent's pages are in memory"
        assert found > 0, "the child's unlocked copies are in the swap area"


@pytest.mark.source("fork(2)", "madvise(2) MADV_DONTFORK, MADV_WIPEONFORK")
@pytest.mark.parametrize("way", ["DONTFORK", "WIPEONFORK", "lock in child"])
def test_remedies_against_the_childs_copy(reclaim, way):
    """MADV_DONTFORK, MADV_WIPEONFORK, or a lock in the child keep the secret out of swap."""
    with planted(reclaim) as (child, locked, leaked):
        if way != "lock in child":
            advice = syscalls.MADV_DONTFORK if way == "DONTFORK" else syscalls.MADV_WIPEONFORK
            child.call(syscalls.madvise, locked.addr, locked.size, advice)
        child.call(control_pairs.fork_grandchild)
        if way == "lock in child":
            child.call(control_pairs.call_in_grandchild, syscalls.mlock, locked.addr, locked.size)
        if way != "DONTFORK":
            child.call(control_pairs.call_in_grandchild, locked.touch)
        child.call(locked.touch)
        found = leaked()
        assert found == 0, "the secret is nowhere in the swap area"


def test_secret_written_before_the_lock_may_be_in_swap_already(reclaim):
    """Locking protects from then on: what reclaim wrote before is in the swap area's blocks."""
    mask, other = secrets.new_secret_mask(), secrets.new_secret_mask()
    with reclaim.cgroup() as group, Child() as child:
        group.add(child.pid)
        late = child.call(blank, "private", SIZE)
        control = child.call(blank, "private", SIZE)
        child.call(secrets.plant, mask, late)
        child.call(secrets.plant, other, control)
        drivers.reclaim_until_evicted(group.reclaim, child.pid, late)
        found = judge(reclaim, group, child, control, mask, other)
        assert found > 0, "the secret was swapped out before it was locked"
        child.call(syscalls.mlock, late.addr, late.size)
        assert range_state.absent_pages(late, child.pid) == 0, (
            "the lock brought it back into memory"
        )


def copy_out(region):
    """In the child: a copy in memory of its own, as any read, send or str makes one."""
    copy = control_pairs._map("private", region.pages)
    syscalls.store(copy.addr, syscalls.load(region.addr, region.size))
    return copy


def test_copy_made_of_a_locked_secret_is_not_protected(reclaim):
    """The lock is on the memory, not on its contents: a copy elsewhere is swapped out."""
    with planted(reclaim) as (child, locked, leaked):
        copy = child.call(copy_out, locked)
        found = leaked()
        if range_state.absent_pages(copy, child.pid) < SIZE // 2:
            inconclusive("the copy was not swapped out")
        assert range_state.absent_pages(locked, child.pid) == 0, "the original is in memory"
        assert found > 0, "the copy is in the swap area"
