# SPDX-License-Identifier: MIT
"""Flags of mlock2 and mlockall, bit by bit."""

import pytest

from helpers import syscalls
from helpers.memory import mapping
from helpers.observe import maps, status
from helpers.pytest_plugin.parametrize import by_entry_point
from helpers.syscalls import MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT, MLOCK_ONFAULT, PAGE

pytestmark = [pytest.mark.share_process, pytest.mark.needs("smaps-flags", "lock:8")]

BITS = [1 << n for n in range(32)]
WHOLE_INT = 0xFFFFFFFF


def shape(region):
    return maps.locks(region.addr, region.end, PAGE)


def unknown_to_mlock2():
    """Every single bit but MLOCK_ONFAULT, each of them with it, and all at once."""
    alone = [bit for bit in BITS if bit != MLOCK_ONFAULT]
    return [*alone, *(bit | MLOCK_ONFAULT for bit in alone), WHOLE_INT, WHOLE_INT & ~MLOCK_ONFAULT]


@by_entry_point()
@pytest.mark.source("mlock(2) ERRORS: EINVAL (mlock2() only) Unknown flags were specified")
@pytest.mark.detects("mlock2-unknown-flags-accepted")
def test_mlock2_unknown_flags_give_einval(calls):
    """mlock2 refuses every flag but MLOCK_ONFAULT with EINVAL, alone or beside it, and changes
    no lock."""
    with mapping("private", 4) as region:
        syscalls.mlock(region.at(2), PAGE)
        before = status.vmlck_pages()
        accepted = {
            hex(flags): seen
            for flags in unknown_to_mlock2()
            if (seen := syscalls.outcome(calls.mlock2, region.addr, region.size, flags)) != "EINVAL"
        }
        assert accepted == {}, "each of these flags gives EINVAL"
        assert shape(region) == [(0, 2, ""), (2, 3, "lo"), (3, 4, "")], "no lock changed"
        assert status.vmlck_pages() == before, "VmLck is unchanged"


@by_entry_point()
@pytest.mark.source("mlock(2) DESCRIPTION")
@pytest.mark.detects("mlock2-ignored", "mlock2-always-onfault")
def test_mlock2_known_flags_are_accepted(calls):
    """mlock2 with no flag locks like mlock, with MLOCK_ONFAULT on fault: nothing else does."""
    with mapping("private", 4) as region:
        seen = [
            syscalls.outcome(calls.mlock2, region.addr, PAGE, 0),
            syscalls.outcome(calls.mlock2, region.at(2), PAGE, MLOCK_ONFAULT),
        ]
        assert seen == ["ok", "ok"], "both flag values are valid"
        wanted = [(0, 1, "lo"), (1, 2, ""), (2, 3, "lo lf"), (3, 4, "")]
        assert shape(region) == wanted, "one page lo, one lo and lf"


@by_entry_point()
@pytest.mark.source("mm/mlock.c mlock2")
def test_mlock2_flags_are_checked_before_the_range(calls):
    """mlock2 with an unknown flag gives EINVAL whatever the range: length 0, unmapped, or
    without any end."""
    with mapping("private", 2) as region:
        syscalls.munmap(region.at(1), PAGE)
        seen = {
            "length 0": syscalls.outcome(calls.mlock2, region.addr, 0, 2),
            "unmapped": syscalls.outcome(calls.mlock2, region.at(1), PAGE, 2),
            "NULL, length 0": syscalls.outcome(calls.mlock2, 0, 0, 2),
            "wrapping": syscalls.outcome(calls.mlock2, region.addr, syscalls.SIZE_MAX, 2),
        }
        assert seen == dict.fromkeys(seen, "EINVAL"), "the flags are looked at first"
        assert shape(region) == [(0, 1, "")], "nothing is locked"


VALID = MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT


def invalid_for_mlockall():
    """0, MCL_ONFAULT alone, and every unknown bit, alone and beside valid ones."""
    unknown = [bit for bit in BITS if not bit & VALID]
    return [
        0,
        MCL_ONFAULT,
        *unknown,
        *(bit | MCL_CURRENT for bit in unknown),
        *(bit | MCL_FUTURE for bit in unknown),
        *(bit | MCL_ONFAULT for bit in unknown),
        WHOLE_INT,
        WHOLE_INT & ~(MCL_CURRENT | MCL_FUTURE),
    ]


@by_entry_point()
@pytest.mark.source("mlockall(2) ERRORS: EINVAL")
@pytest.mark.detects(
    "mlockall-zero-accepted", "mlockall-onfault-alone-accepted", "mlockall-unknown-flag-accepted"
)
def test_mlockall_invalid_flags_give_einval(calls):
    """mlockall refuses 0, MCL_ONFAULT alone and every unknown flag with EINVAL, and locks
    neither what is mapped nor what is mapped later."""
    with mapping("private", 2) as region:
        accepted = {}
        for flags in invalid_for_mlockall():
            seen = syscalls.outcome(calls.mlockall, flags)
            if seen != "EINVAL":
                accepted[hex(flags)] = seen
                syscalls.munlockall()
        assert accepted == {}, "each of these flags gives EINVAL"
        assert shape(region) == [(0, 2, "")], "what was mapped is not locked"
        with mapping("private", 2) as later:
            assert shape(later) == [(0, 2, "")], "what is mapped later is not locked"
        assert status.vmlck_pages() == 0, "VmLck is 0"
