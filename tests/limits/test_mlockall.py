# SPDX-License-Identifier: MIT
"""mlockall and the limit: the whole address space against RLIMIT_MEMLOCK."""

import pytest

from helpers import syscalls
from helpers.observe import maps, status
from helpers.processes.stub import StubProcess
from helpers.syscalls import MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT, PAGE, PAGE_KB

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("stub-process", "limit:16"),
    pytest.mark.source("mlockall(2)", "SYSCALL mlockall in mm/mlock.c"),
]

CURRENT = {
    "C": MCL_CURRENT,
    "CF": MCL_CURRENT | MCL_FUTURE,
    "CO": MCL_CURRENT | MCL_ONFAULT,
    "CFO": MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT,
}
BY_FLAGS = pytest.mark.parametrize("flags", CURRENT.values(), ids=CURRENT)
FUTURE = pytest.mark.parametrize("flags", [MCL_FUTURE, MCL_FUTURE | MCL_ONFAULT], ids=["F", "FO"])


def total(bare):
    """Pages of the address space, as mlockall counts them."""
    return status.kb("VmSize", bare.pid) // PAGE_KB


def locked(bare):
    """(VmLck, sum of lo VMAs), both in pages."""
    return status.vmlck_pages(bare.pid), maps.locked_kb(bare.pid) // PAGE_KB


def locks_new_mapping(bare):
    """A mapping made now is lo."""
    addr = bare.mmap(1, syscalls.PROT_NONE)
    found = maps.at(addr, bare.pid).locked
    bare.call("munmap", addr, PAGE)
    return found


@BY_FLAGS
def test_mlockall_current_is_allowed_up_to_the_whole_address_space(flags):
    """mlockall(MCL_CURRENT) succeeds under a limit of exactly the pages of the address space,
    those included that are never locked.
    """
    with StubProcess() as bare:
        bare.without("CAP_IPC_LOCK").trim()
        size = total(bare)
        bare.limit(size * PAGE)
        seen = syscalls.outcome(bare.call, "mlockall", flags)
        counted, summed = locked(bare)
        special = sum(
            v.size // PAGE
            for v in maps.smaps(bare.pid)
            if v.name.startswith("[v") and v.name != "[vsyscall]"
        )
        assert seen == "ok", f"{size} pages under a limit of {size}"
        assert counted == summed, "VmLck equals the lo VMAs"
        assert counted == size - special, "all but the kernel's own mappings is counted"


@BY_FLAGS
@pytest.mark.detects("limit-mlockall-unchecked", "limit-mlockall-eagain")
def test_mlockall_current_over_the_limit_changes_nothing(flags):
    """mlockall(MCL_CURRENT) under a limit one page, or one byte, below the address space gives
    ENOMEM; nothing is locked, and with MCL_FUTURE nothing will be.
    """
    with StubProcess() as bare:
        bare.without("CAP_IPC_LOCK").trim()
        size = total(bare)
        before = [v.line for v in maps.vmas(bare.pid)]
        seen = {}
        for short in (1, PAGE):
            bare.limit(size * PAGE - short)
            seen[short] = syscalls.outcome(bare.call, "mlockall", flags)
        after = [v.line for v in maps.vmas(bare.pid)]
        counted = locked(bare)
        later = locks_new_mapping(bare)
        assert seen == {1: "ENOMEM", PAGE: "ENOMEM"}, f"{size} pages, so many bytes short"
        assert counted == (0, 0), "nothing is locked"
        assert after == before, "VMAs as before"
        assert later is False, "a later mapping is not locked"


def test_mlockall_current_compares_the_total_whatever_is_locked():
    """mlockall(MCL_CURRENT) of what is all locked already is refused below the total; the
    locks stay.
    """
    with StubProcess() as bare:
        bare.without("CAP_IPC_LOCK").trim()
        size = total(bare)
        bare.limit(size * PAGE)
        bare.call("mlockall", MCL_CURRENT)
        before = locked(bare)
        bare.limit((size - 1) * PAGE)
        seen = syscalls.outcome(bare.call, "mlockall", MCL_CURRENT)
        assert seen == "ENOMEM", f"{size} pages under a limit of {size - 1}"
        assert locked(bare) == before, "the locks stay"


def test_mlockall_current_counts_unlockable_and_unreadable_memory():
    """PROT_NONE mappings count in what mlockall(MCL_CURRENT) compares with the limit."""
    with StubProcess() as bare:
        bare.without("CAP_IPC_LOCK").trim()
        size = total(bare)
        bare.limit((size + 1) * PAGE)
        bare.mmap(2, syscalls.PROT_NONE)
        over = syscalls.outcome(bare.call, "mlockall", MCL_CURRENT)
        bare.limit((size + 2) * PAGE)
        equal = syscalls.outcome(bare.call, "mlockall", MCL_CURRENT)
        assert over == "ENOMEM", "two unreadable pages where one fits"
        assert equal == "ok", "two unreadable pages where two fit"


@FUTURE
@pytest.mark.detects("limit-future-total")
def test_mlockall_future_asks_no_room_for_what_is_mapped(flags):
    """mlockall(MCL_FUTURE) alone succeeds under any limit but 0, a byte even: only what comes
    later counts.
    """
    with StubProcess() as bare:
        bare.without("CAP_IPC_LOCK")
        bare.limit(1)
        tiny = syscalls.outcome(bare.call, "mlockall", flags)
        refused = syscalls.outcome(bare.mmap, 1)
        bare.limit(PAGE)
        page = syscalls.outcome(bare.call, "mlockall", flags)
        first = syscalls.outcome(bare.mmap, 1)
        second = syscalls.outcome(bare.mmap, 1)
        assert (tiny, page) == ("ok", "ok"), "mlockall(MCL_FUTURE) at 1 byte, at a page"
        assert refused == "EAGAIN", "a page under a limit of a byte"
        assert (first, second) == ("ok", "EAGAIN"), "two pages under a limit of one"
        assert locked(bare) == (1, 1), "only the later page is locked"


@pytest.mark.source("Open POSIX mlockall assertion 10")
@FUTURE
@pytest.mark.detects("limit-mlockall-cancels")
def test_refused_mlockall_keeps_mcl_future(flags):
    """A refused mlockall neither cancels MCL_FUTURE nor changes its kind, be it refused for
    its flags, for the limit or for privilege.
    """
    with StubProcess() as bare:
        bare.without("CAP_IPC_LOCK").trim()
        bare.limit(16 * PAGE)
        bare.call("mlockall", flags)
        kind = maps.at(bare.mmap(1), bare.pid).onfault
        bare.limit(2 * PAGE)
        seen = {}
        for name, limit, asked in (
            ("no flags", 2 * PAGE, 0),
            ("unknown flag", 2 * PAGE, MCL_ONFAULT << 1),
            ("over the limit", 2 * PAGE, MCL_CURRENT),
            ("over the limit, on fault", 2 * PAGE, MCL_CURRENT | MCL_ONFAULT),
            ("limit 0", 0, MCL_CURRENT),
        ):
            bare.limit(limit)
            answer = syscalls.outcome(bare.call, "mlockall", asked)
            bare.limit(16 * PAGE)
            new = maps.at(bare.mmap(1), bare.pid)
            seen[name] = answer, new.locked, new.onfault
        assert seen == {
            "no flags": ("EINVAL", True, kind),
            "unknown flag": ("EINVAL", True, kind),
            "over the limit": ("ENOMEM", True, kind),
            "over the limit, on fault": ("ENOMEM", True, kind),
            "limit 0": ("EPERM", True, kind),
        }, "answer, then a new mapping lo, and lf as before"
        assert kind == bool(flags & MCL_ONFAULT), "lf with MCL_ONFAULT alone"


def test_munlockall_cancels_mcl_future_at_zero_limit():
    """munlockall at limit 0 unlocks all and cancels MCL_FUTURE: mappings are free again."""
    with StubProcess() as bare:
        bare.without("CAP_IPC_LOCK").trim()
        bare.limit(16 * PAGE)
        bare.call("mlockall", MCL_CURRENT | MCL_FUTURE)
        bare.limit(0)
        before = syscalls.outcome(bare.mmap, 1)
        unlocked = syscalls.outcome(bare.call, "munlockall")
        after = syscalls.outcome(bare.mmap, 4)
        assert before == "EAGAIN", "a new mapping under MCL_FUTURE at limit 0"
        assert unlocked == "ok", "munlockall"
        assert after == "ok", "a new mapping after it"
        assert locked(bare) == (0, 0), "nothing is locked"


@BY_FLAGS
@pytest.mark.needs("CAP_IPC_LOCK")
@pytest.mark.detects("cap-ignored-by-mlockall")
def test_mlockall_with_the_capability_asks_no_limit(flags):
    """With CAP_IPC_LOCK mlockall(MCL_CURRENT) locks the whole address space under any limit."""
    with StubProcess() as bare:
        seen = {}
        for limit in (PAGE, 1, 0):
            bare.limit(limit)
            seen[limit] = syscalls.outcome(bare.call, "mlockall", flags)
        counted, summed = locked(bare)
        assert seen == {PAGE: "ok", 1: "ok", 0: "ok"}, "under a limit of so many bytes"
        assert counted == summed, "VmLck equals the lo VMAs"
        assert counted > 1, "code and stack are locked"


@pytest.mark.needs("limit-infinite")
@BY_FLAGS
def test_mlockall_under_infinite_limit_needs_no_capability(flags):
    """Under an infinite limit mlockall needs no CAP_IPC_LOCK."""
    with StubProcess() as bare:
        bare.without("CAP_IPC_LOCK").limit(-1)
        assert syscalls.outcome(bare.call, "mlockall", flags) == "ok", "mlockall"
