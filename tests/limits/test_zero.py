# SPDX-License-Identifier: MIT
"""RLIMIT_MEMLOCK 0 without CAP_IPC_LOCK: no permission to lock, full permission to unlock."""

import pytest

from helpers import syscalls
from helpers.memory import mapping
from helpers.observe import maps, pagemap, status
from helpers.processes.rlimits import set_soft_memlock, soft_memlock_limit, unprivileged_with_limit
from helpers.syscalls import MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT, PAGE

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("lock-calls"),
    pytest.mark.source("mlock(2) ERRORS EPERM", "can_do_mlock() in mm/mlock.c"),
]


def mlock2(addr, size):
    syscalls.mlock2(addr, size, 0)


def onfault(addr, size):
    syscalls.mlock2(addr, size, syscalls.MLOCK_ONFAULT)


def map_locked(addr, size, flags=syscalls.MAP_PRIVATE):
    how = flags | syscalls.MAP_ANONYMOUS | syscalls.MAP_FIXED | syscalls.MAP_LOCKED
    syscalls.mmap(addr, size, syscalls.PROT_RW, how)


def map_locked_shared(addr, size):
    map_locked(addr, size, syscalls.MAP_SHARED)


def map_locked_none(addr, size):
    how = syscalls.MAP_PRIVATE | syscalls.MAP_ANONYMOUS | syscalls.MAP_FIXED | syscalls.MAP_LOCKED
    syscalls.mmap(addr, size, syscalls.PROT_NONE, how)


ROUTES = (syscalls.mlock, mlock2, onfault, map_locked, map_locked_shared, map_locked_none)
BY_ROUTE = pytest.mark.parametrize("lock", ROUTES, ids=lambda route: route.__name__)


@BY_ROUTE
@pytest.mark.source("LTP mlock02, mlock202", "gVisor RlimitMemlockZero")
@pytest.mark.detects("limit-zero-unchecked", "limit-zero-enomem", "limit-zero-mmap-eagain")
def test_zero_limit_forbids_locking(lock):
    """At limit 0 every call that locks a range gives EPERM and changes nothing."""
    with mapping(pages=4) as region, unprivileged_with_limit(0):
        syscalls.store(region.at(1), b"\x31")
        seen = syscalls.outcome(lock, region.addr, 2 * PAGE)
        assert seen == "EPERM", "two pages at limit 0"
        assert status.vmlck_pages() == 0, "nothing is counted"
        assert maps.layout(region) == [(0, 4, "")], "VMAs as before"
        assert pagemap.present(region.addr, 4) == [False, True, False, False], "pages as before"
        assert region.first_bytes() == b"\x00\x31\x00\x00", "contents as before"


@BY_ROUTE
@pytest.mark.needs("limit:1")
def test_zero_limit_forbids_only_while_it_lasts(lock):
    """The call refused at limit 0 succeeds as soon as the soft limit is a page."""
    with mapping(pages=2) as region, unprivileged_with_limit(0):
        zero = syscalls.outcome(lock, region.addr, PAGE)
        set_soft_memlock(PAGE)
        page = syscalls.outcome(lock, region.addr, PAGE)
        if lock is map_locked_none:
            syscalls.mprotect(region.addr, PAGE, syscalls.PROT_RW)
        assert zero == "EPERM", "at limit 0"
        assert page == "ok", "at a limit of one page"
        assert status.vmlck_pages() == 1, "one page is counted"


@pytest.mark.source("LTP mlockall02, mlockall03", "Open POSIX mlockall 15-1")
def test_zero_limit_forbids_mlockall():
    """At limit 0 mlockall gives EPERM for every set of flags, locks nothing now and nothing
    later.
    """
    sets = {
        "C": MCL_CURRENT,
        "F": MCL_FUTURE,
        "CF": MCL_CURRENT | MCL_FUTURE,
        "CO": MCL_CURRENT | MCL_ONFAULT,
        "FO": MCL_FUTURE | MCL_ONFAULT,
        "CFO": MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT,
    }
    with unprivileged_with_limit(0):
        seen = {name: syscalls.outcome(syscalls.mlockall, flags) for name, flags in sets.items()}
        with mapping(pages=2) as later:
            locked_later = maps.layout(later)
        assert seen == dict.fromkeys(sets, "EPERM"), "mlockall at limit 0"
        assert status.vmlck_pages() == 0, "nothing is locked"
        assert locked_later == [(0, 2, "")], "a later mapping is not locked"


@pytest.mark.parametrize("call", [syscalls.mlock, mlock2, onfault], ids=lambda call: call.__name__)
@pytest.mark.detects("limit-zero-length0-ok")
def test_zero_limit_forbids_zero_length(call):
    """At limit 0 even locking no bytes gives EPERM, mapped or not."""
    with mapping(pages=2) as region, unprivileged_with_limit(0):
        syscalls.munmap(region.at(1), PAGE)
        assert syscalls.outcome(call, region.addr, 0) == "EPERM", "no bytes of its own"
        assert syscalls.outcome(call, region.at(1), 0) == "EPERM", "no bytes of a hole"
        assert syscalls.outcome(call, 0, 0) == "EPERM", "no bytes at NULL"


@pytest.mark.parametrize("call", [syscalls.mlock, mlock2, onfault], ids=lambda call: call.__name__)
@pytest.mark.needs("limit:2")
def test_limit_is_checked_before_the_mapping(call):
    """In a hole: EPERM at limit 0, ENOMEM under a limit, the range too long or not."""
    with mapping(pages=4) as region:
        syscalls.munmap(region.at(1), 3 * PAGE)
        with unprivileged_with_limit(0):
            zero = syscalls.outcome(call, region.at(1), PAGE)
        with unprivileged_with_limit(2 * PAGE):
            fits = syscalls.outcome(call, region.at(1), PAGE)
            over = syscalls.outcome(call, region.at(1), 3 * PAGE)
        assert zero == "EPERM", "a hole at limit 0"
        assert fits == "ENOMEM", "a hole within the limit"
        assert over == "ENOMEM", "a hole beyond the limit"


def test_munlock_of_a_hole_is_no_privilege_error():
    """munlock of a hole gives ENOMEM at limit 0 too, of an overflowing range EINVAL."""
    with mapping(pages=4) as region, unprivileged_with_limit(0):
        syscalls.munmap(region.at(1), 3 * PAGE)
        assert syscalls.outcome(syscalls.munlock, region.at(1), PAGE) == "ENOMEM", "a hole"
        assert syscalls.outcome(syscalls.munlock, region.addr, -PAGE) == "EINVAL", "an overflow"


@pytest.mark.needs("limit:2")
def test_limit_is_checked_before_the_overflow():
    """A length near the top of the address space is over the limit before it overflows:
    ENOMEM, and EPERM at limit 0.
    """
    with mapping(pages=2) as region:
        with unprivileged_with_limit(2 * PAGE):
            over = syscalls.outcome(syscalls.mlock, region.addr, -PAGE)
        with unprivileged_with_limit(0):
            zero = syscalls.outcome(syscalls.mlock, region.addr, -PAGE)
        assert over == "ENOMEM", "length -P under a limit of two pages"
        assert zero == "EPERM", "length -P at limit 0"


@pytest.mark.detects("mlock2-flags-checked-late")
def test_mlock2_flags_are_checked_before_privilege():
    """mlock2 with unknown flags gives EINVAL at limit 0 too."""
    with mapping(pages=1) as region, unprivileged_with_limit(0):
        flags = 2, 3, 4, 1 << 31, -1
        seen = {f: syscalls.outcome(syscalls.mlock2, region.addr, PAGE, f) for f in flags}
        known = syscalls.outcome(syscalls.mlock2, region.addr, PAGE, syscalls.MLOCK_ONFAULT)
        assert seen == dict.fromkeys(flags, "EINVAL"), "unknown flags at limit 0"
        assert known == "EPERM", "known flags at limit 0"


def test_mlockall_flags_are_checked_before_privilege():
    """mlockall with invalid flags gives EINVAL at limit 0 too."""
    with unprivileged_with_limit(0):
        unknown = MCL_ONFAULT << 1
        flags = 0, MCL_ONFAULT, unknown, MCL_CURRENT | unknown, -1
        seen = {f: syscalls.outcome(syscalls.mlockall, f) for f in flags}
        known = syscalls.outcome(syscalls.mlockall, MCL_FUTURE)
        assert seen == dict.fromkeys(flags, "EINVAL"), "invalid flags at limit 0"
        assert known == "EPERM", "known flags at limit 0"


def test_unlocking_nothing_needs_no_privilege():
    """munlock of what was never locked, of no bytes, and munlockall are 0 at limit 0, over and
    over.
    """
    with mapping(pages=2) as region, unprivileged_with_limit(0):
        assert syscalls.outcome(syscalls.munlock, region.addr, region.size) == "ok", "munlock"
        assert syscalls.outcome(syscalls.munlock, region.addr, 0) == "ok", "munlock of no bytes"
        assert syscalls.outcome(syscalls.munlockall) == "ok", "munlockall"
        assert syscalls.outcome(syscalls.munlockall) == "ok", "munlockall again"


@pytest.mark.needs("limit:4")
@pytest.mark.claim("W9")
def test_munlock_needs_no_privilege():
    """At limit 0, without the capability, munlock unlocks part after part and munlockall the
    rest.
    """
    with mapping(pages=6) as region, unprivileged_with_limit(4 * PAGE):
        region.touch()  # with one anon_vma neighbours merge on every kernel
        syscalls.mlock(region.addr, 2 * PAGE)
        onfault(region.at(3), 2 * PAGE)
        set_soft_memlock(0)
        relock = syscalls.outcome(syscalls.mlock, region.addr, PAGE)
        first = syscalls.outcome(syscalls.munlock, region.at(1), PAGE)
        shape = maps.layout(region)
        rest = syscalls.outcome(syscalls.munlockall)
        assert relock == "EPERM", "locking again its own page"
        assert first == "ok", "munlock of one page"
        assert shape == [(0, 1, "lo"), (1, 3, ""), (3, 5, "lo lf"), (5, 6, "")], "it is unlocked"
        assert rest == "ok", "munlockall"
        assert status.vmlck_pages() == 0, "nothing is counted any more"
        assert maps.layout(region) == [(0, 6, "")], "nothing is lo"


@pytest.mark.needs("CAP_IPC_LOCK")
@pytest.mark.parametrize("lock", ROUTES, ids=lambda route: route.__name__)
@pytest.mark.detects("limit-zero-binds-capability")
def test_zero_limit_does_not_bind_the_capability(lock):
    """With CAP_IPC_LOCK every call that locks a range succeeds at limit 0, and so does locking
    no bytes.
    """
    with mapping(pages=4) as region, soft_memlock_limit(0):
        nothing = syscalls.outcome(syscalls.mlock, region.addr, 0)
        seen = syscalls.outcome(lock, region.addr, 3 * PAGE)
        assert nothing == "ok", "no bytes"
        assert seen == "ok", "three pages"
        assert status.vmlck_pages() == 3, "three pages are counted"
