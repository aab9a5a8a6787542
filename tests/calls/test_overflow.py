# SPDX-License-Identifier: MIT
"""Ranges that overflow, or lie where user memory never is."""

import pytest

from helpers import syscalls
from helpers.memory import locks, mapping
from helpers.observe import maps, status
from helpers.processes import credentials, rlimits
from helpers.pytest_plugin.parametrize import by_call
from helpers.syscalls import PAGE

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("smaps-flags", "lock:8"),
    pytest.mark.source("mlock(2) ERRORS"),
]

DOORS = [syscalls.RAW, syscalls.GLIBC]
MUNLOCK = ("munlock",)
EVERY = [*locks.CALLS.values(), MUNLOCK]
EVERY_CALL = pytest.mark.parametrize("how", EVERY, ids=[*locks.CALLS, "munlock"])
TOP = syscalls.ULONG_MAX + 1
"""One behind the last address: TOP − n is the address or length −n."""


def start_state(how, region):
    """Half the region locked: shows what a failed lock, or a failed unlock, changes."""
    syscalls.mlock(region.at(2), 2 * PAGE)
    return [(0, 2, ""), (2, 4, "lo")]


# (offset of the start in its page, length): start + length is beyond the last address, and
# length + offset, rounded up to pages, wraps to 0
WRAPPING = {"SIZE_MAX": (0, TOP - 1), "offset 1, minus a page": (1, TOP - PAGE)}


@EVERY_CALL
@pytest.mark.deviation("wrapping-length")
def test_wrapping_length_gives_einval(how):
    """A length that overflows the address space by wrapping to 0 pages is refused with
    EINVAL."""
    with mapping("private", 4) as region:
        seen = {
            (name, calls): syscalls.outcome(locks.issue, calls, how, region.addr + offset, length)
            for name, (offset, length) in WRAPPING.items()
            for calls in DOORS
        }
        assert seen == dict.fromkeys(seen, "EINVAL"), "start + length overflows"


@EVERY_CALL
def test_wrapping_length_changes_nothing(how):
    """Whatever it returns, a call with a wrapping length locks and unlocks nothing."""
    with mapping("private", 4) as region:
        shape = start_state(how, region)
        before = status.vmlck_pages()
        for offset, length in WRAPPING.values():
            syscalls.outcome(locks.issue, syscalls.RAW, how, region.addr + offset, length)
        assert maps.locks(region.addr, region.end, PAGE) == shape, "the same pages are lo"
        assert status.vmlck_pages() == before, "VmLck is unchanged"


def overflowing(region):
    """Ranges that end beyond the last address without wrapping to 0 pages."""
    return {
        "length −P": (region.addr, TOP - PAGE),
        "length −2P": (region.addr, TOP - 2 * PAGE),
        "up to address 0": (region.addr, TOP - region.addr),
        "from the last page to address 0": (TOP - PAGE, 1),
        "from the last page beyond it": (TOP - PAGE, 2 * PAGE),
        "from the last byte": (TOP - 1, 1),
    }


@pytest.mark.needs("CAP_IPC_LOCK")
@by_call()
@pytest.mark.detects("overflow-enomem", "overflow-accepted")
def test_lock_of_overflowing_range_gives_einval(how):
    """A lock whose range ends beyond the last address gives EINVAL and locks nothing."""
    with mapping("private", 4) as region:
        shape = start_state(how, region)
        before = status.vmlck_pages()
        seen = {
            (name, calls): syscalls.outcome(locks.issue, calls, how, *span)
            for name, span in overflowing(region).items()
            for calls in DOORS
        }
        assert seen == dict.fromkeys(seen, "EINVAL"), "start + length overflows"
        assert maps.locks(region.addr, region.end, PAGE) == shape, "the same pages are lo"
        assert status.vmlck_pages() == before, "VmLck is unchanged"


def test_munlock_of_overflowing_range_gives_einval():
    """munlock of a range that ends beyond the last address gives EINVAL and unlocks nothing,
    without any privilege."""
    with mapping("private", 4) as region:
        shape = start_state(MUNLOCK, region)
        before = status.vmlck_pages()
        with credentials.without_capabilities("CAP_IPC_LOCK"):
            seen = {
                (name, calls): syscalls.outcome(locks.issue, calls, MUNLOCK, *span)
                for name, span in overflowing(region).items()
                for calls in DOORS
            }
        assert seen == dict.fromkeys(seen, "EINVAL"), "start + length overflows"
        assert maps.locks(region.addr, region.end, PAGE) == shape, "the same pages are lo"
        assert status.vmlck_pages() == before, "VmLck is unchanged"


@pytest.mark.needs("limit:8")
@by_call()
@pytest.mark.detects("limit-checked-after-overflow")
def test_limit_is_checked_before_overflow(how):
    """Without CAP_IPC_LOCK a length of nearly the whole address space is over the limit:
    ENOMEM; a page that ends at address 0 is not, and gives EINVAL."""
    with mapping("private", 4) as region, rlimits.unprivileged_with_limit(8 * PAGE):
        too_long = syscalls.outcome(locks.issue, syscalls.RAW, how, region.addr, TOP - PAGE)
        one_page = syscalls.outcome(locks.issue, syscalls.RAW, how, TOP - PAGE, 1)
        assert too_long == "ENOMEM", "the limit speaks first"
        assert one_page == "EINVAL", "one page is within the limit, but overflows"
        assert maps.locks(region.addr, region.end, PAGE) == [(0, 4, "")], "nothing is locked"


def outside():
    """Addresses where a process has no memory."""
    # Under the personality MMAP_PAGE_ZERO there is a page at 0, and sealed.
    found = {} if maps.vmas(high=PAGE) else {"NULL": 0}
    if syscalls.WORD_BITS == 64:
        found |= {
            "page of LONG_MAX": ((1 << 63) - 1) & -PAGE,
            "first negative address": 1 << 63,
            "kernel half": 0xFFFF800000000000,
            "second to last page": TOP - 2 * PAGE,
        }
    return found


@EVERY_CALL
@pytest.mark.detects("kernel-range-einval")
def test_range_outside_user_space_gives_enomem(how):
    """A range where no process can have memory is a range that is not mapped: ENOMEM."""
    before = status.vmlck_pages()
    seen = {
        (name, calls): syscalls.outcome(locks.issue, calls, how, addr, 8)
        for name, addr in outside().items()
        for calls in DOORS
    }
    assert seen == dict.fromkeys(seen, "ENOMEM"), "not mapped, and it does not overflow"
    assert status.vmlck_pages() == before, "VmLck is unchanged"


def test_vsyscall_page_gives_enomem():
    """The [vsyscall] page is listed in /proc/self/maps but belongs to no process: ENOMEM."""
    # x86_64 only, and not with vsyscall=none: elsewhere the address is simply unmapped.
    gate = next((v.start for v in maps.vmas() if v.name == "[vsyscall]"), TOP - 10 * (1 << 20))
    seen = {how: syscalls.outcome(locks.issue, syscalls.RAW, how, gate, PAGE) for how in EVERY}
    assert seen == dict.fromkeys(EVERY, "ENOMEM"), "not a mapping of this process"


@pytest.mark.needs("stack-growth")
def test_page_below_the_stack_gives_enomem():
    """A lock below the stack gives ENOMEM and does not make the stack grow, as a touch would."""
    stack = next(v for v in maps.vmas() if v.name == "[stack]")
    below = stack.start - PAGE
    seen = {how: syscalls.outcome(locks.issue, syscalls.RAW, how, below, PAGE) for how in EVERY}
    after = next(v for v in maps.vmas() if v.name == "[stack]")
    assert seen == dict.fromkeys(EVERY, "ENOMEM"), "nothing is mapped there"
    assert after.start == stack.start, "the stack begins where it began"


@EVERY_CALL
@pytest.mark.detects("tagged-address-accepted")
def test_tagged_address(how):
    """arm64 ignores a tag in the top byte of an address, as its ABI has it; elsewhere such an
    address is outside user space."""
    # arm64 since 057d3389108e (5.4). x86 (LAM) and riscv only for processes that ask for it.
    with mapping("private", 4) as region:
        shape = start_state(how, region)
        if how == MUNLOCK:
            start, after = region.at(2), [(0, 4, "")]
        else:
            start = region.addr
            lock = "lo lf" if how == locks.CALLS["onfault"] else "lo"
            after = [(0, 4, "lo")] if lock == "lo" else [(0, 2, lock), (2, 4, "lo")]
        ignored = syscalls.architecture() == "aarch64" or syscalls.WORD_BITS == 32
        if syscalls.WORD_BITS == 64:  # 32 bits have no room for a tag
            start |= 0x2A << 57
        seen = syscalls.outcome(locks.issue, syscalls.RAW, how, start, 2 * PAGE)
        assert seen == ("ok" if ignored else "ENOMEM"), "tags are ignored on arm64 alone"
        assert maps.locks(region.addr, region.end, PAGE) == (after if ignored else shape), (
            "the call acts where its tag is ignored, else nothing changes"
        )
