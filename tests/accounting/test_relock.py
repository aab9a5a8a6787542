# SPDX-License-Identifier: MIT
"""What is locked already is not counted again: locks do not stack."""

import pytest

from helpers import syscalls
from helpers.memory import mapping
from helpers.observe import lock_accounting
from helpers.observe.lock_accounting import expect
from helpers.processes import Child
from helpers.syscalls import PAGE

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("lock:16", "smaps-flags"),
    pytest.mark.source("mlock(2) NOTES: memory locks do not stack"),
]

FLAGS = {"L": 0, "F": syscalls.MLOCK_ONFAULT}
LETTERS = pytest.mark.parametrize(
    ("first", "second"), [("L", "L"), ("L", "F"), ("F", "L"), ("F", "F")]
)


@LETTERS
def test_relock_counts_once(first, second):
    """Locking a locked range again, in full or on fault, changes the kind of lock and not the
    count."""
    with mapping("private", 8) as region:
        region.sub(0, 3).touch()
        syscalls.mlock2(region.addr, region.size, FLAGS[first])
        for _ in range(3):
            syscalls.mlock2(region.addr, region.size, FLAGS[second])
        resident = 3 if first + second == "FF" else 8
        assert lock_accounting.read(region) == expect(second * 8, resident), "8 pages count once"


@pytest.mark.source("commit b155b4fde5bd (mlock203 of LTP)")
def test_onfault_then_full_lock_counts_once():
    """A lock on fault made full and back again: the count stays, populated pages stay."""
    with mapping("private", 8) as region:
        syscalls.mlock2(region.addr, region.size, syscalls.MLOCK_ONFAULT)
        assert lock_accounting.read(region) == expect("FFFFFFFF", resident=0), "on fault"
        syscalls.mlock2(region.addr, region.size, 0)
        assert lock_accounting.read(region) == expect("LLLLLLLL", resident=8), "full: populated"
        syscalls.mlock2(region.addr, region.size, syscalls.MLOCK_ONFAULT)
        assert lock_accounting.read(region) == expect("FFFFFFFF", resident=8), (
            "on fault: none dropped"
        )


@pytest.mark.parametrize(("first", "second"), ["LL", "LF", "FL"])
@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((0, 5), (3, 5)),  # behind
        ((3, 5), (0, 5)),  # before
        ((2, 3), (0, 8)),  # around
        ((0, 8), (3, 2)),  # inside
        ((0, 4), (4, 4)),  # beside
    ],
)
def test_overlap_counts_once(one, other, first, second):
    """Of two overlapping locks each page counts once, and the later one says how it is
    locked."""
    with mapping("private", 8) as region:
        letters = ["-"] * 8
        for (start, count), letter in ((one, first), (other, second)):
            syscalls.mlock2(region.at(start), count * PAGE, FLAGS[letter])
            letters[start : start + count] = letter * count
        resident = sum(
            (first == "L" and one[0] <= page < sum(one))
            or (second == "L" and other[0] <= page < sum(other))
            for page in range(8)
        )
        assert lock_accounting.read(region) == expect("".join(letters), resident), (
            "each page of both ranges counts once"
        )


@pytest.mark.parametrize("kind", ["shared", "file-private"])
def test_relock_of_other_kinds_counts_once(kind):
    """Re-locking and overlapping locks of file and shared memory count each page once."""
    with mapping(kind, 8) as region:
        syscalls.mlock(region.addr, 5 * PAGE)
        syscalls.mlock(region.addr, 5 * PAGE)
        syscalls.mlock(region.at(3), 4 * PAGE)
        assert lock_accounting.read(region) == expect("LLLLLLL-", resident=7), (
            "seven pages count once"
        )


@pytest.mark.detects("vmlck-relock-double", "vmlck-onfault-relock-double")
def test_relock_of_map_locked_counts_once():
    """mlock of a MAP_LOCKED mapping adds nothing; mlock2(MLOCK_ONFAULT) makes it on fault."""
    with mapping("private", 8, flags=syscalls.MAP_LOCKED) as region:
        syscalls.mlock(region.addr, region.size)
        assert lock_accounting.read(region) == expect("LLLLLLLL", resident=8), "8 pages count once"
        syscalls.mlock2(region.at(2), 2 * PAGE, syscalls.MLOCK_ONFAULT)
        assert lock_accounting.read(region) == expect("LLFFLLLL", resident=8), "still once"


@pytest.mark.parametrize(
    "flags",
    [
        (0, 0, 0),
        (syscalls.MLOCK_ONFAULT, 0, syscalls.MLOCK_ONFAULT),
        (0, syscalls.MLOCK_ONFAULT, 0),
    ],
    ids=["full", "onfault-full-onfault", "full-onfault-full"],
)
def test_locks_do_not_stack(flags):
    """One munlock undoes any number of locks over the same pages."""
    with mapping("private", 8, flags=syscalls.MAP_LOCKED) as region:
        for how in flags:
            syscalls.mlock2(region.addr, region.size, how)
        syscalls.munlock(region.at(2), 3 * PAGE)
        letter = "F" if flags[-1] else "L"
        expected = 2 * letter + "---" + 3 * letter
        assert lock_accounting.read(region) == expect(expected, resident=5), "one munlock is enough"
        syscalls.munlock(region.addr, region.size)
        assert lock_accounting.read(region) == expect("--------", resident=0), "nothing is left"


def lock_three_times(addr, size):
    syscalls.mlockall(syscalls.MCL_CURRENT | syscalls.MCL_ONFAULT)
    syscalls.mlockall(syscalls.MCL_CURRENT | syscalls.MCL_ONFAULT)
    syscalls.mlock(addr, size)


@pytest.mark.needs("lock-all")
def test_mlockall_does_not_stack():
    """One munlock undoes two mlockall and an mlock of the same pages; the rest stays locked."""
    with mapping("private", 8) as region, Child() as child:
        child.call(lock_three_times, region.addr, region.size)
        seen = lock_accounting.read(region, child.pid)
        assert seen.pages == "LLLLLLLL", "all of the range is lo"
        assert seen.vmlck == seen.lo, "VmLck counts each lo page once"
        child.call(syscalls.munlock, region.addr, region.size)
        left = lock_accounting.read(region, child.pid)
        assert left.pages == "--------", "one munlock is enough"
        assert left.vmlck == left.lo, "VmLck counts what is still lo"
        assert left.vmlck >= seen.vmlck - 8, "and nothing beside the range was unlocked"


@pytest.mark.deviation("merging-range-enomem")
@pytest.mark.source("mm/mlock: fix vma iterator conversion of apply_vma_lock_flags()")
@pytest.mark.parametrize("locked", ["-L--", "---L", "LL--", "L-L-", "-L-L"])
def test_lock_over_merging_mappings_counts_all(locked):
    """mlock of a range partly locked already, whose VMAs merge during the call, succeeds and
    counts every page once."""
    with mapping("private", 4) as region:
        region.touch()  # one anon_vma for all, so that they may merge
        for page, letter in enumerate(locked):
            if letter == "L":
                syscalls.mlock(region.at(page), PAGE)
        seen = syscalls.outcome(syscalls.mlock, region.addr, region.size)
        assert seen == "ok", "the whole range is mapped"
        assert lock_accounting.read(region) == expect("LLLL", resident=4), "four pages count once"
