# SPDX-License-Identifier: MIT
"""mlockall(MCL_FUTURE): everything that is mapped later, until it is cancelled."""

from contextlib import ExitStack, contextmanager

import pytest

from helpers import syscalls
from helpers.memory import MAPPING_KINDS, mapping
from helpers.observe import maps, pagemap
from helpers.processes import rlimits
from helpers.syscalls import MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT, PAGE

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("smaps-flags", "lock-all"),
    pytest.mark.source("mlockall(2)"),
    pytest.mark.claim("W7"),
]

PAGES = 4


def shape(region):
    return maps.locks(region.addr, region.end, PAGE)


@contextmanager
def locked_later(flags):
    """The block runs under mlockall(flags). The interpreter's own growth is locked as well, so
    cases look at their own mappings."""
    syscalls.mlockall(flags)
    try:
        yield
    finally:
        syscalls.munlockall()


@pytest.mark.parametrize("flags", [MCL_FUTURE, MCL_FUTURE | MCL_ONFAULT], ids=["full", "onfault"])
@pytest.mark.detects("mlockall-future-onfault-lost")
def test_mlockall_future_locks_every_kind_of_new_mapping(flags):
    """Under MCL_FUTURE new mappings of every kind are locked and populated, those without
    access are locked only; with MCL_ONFAULT nothing is populated."""
    full = not flags & MCL_ONFAULT
    lock = "lo" if full else "lo lf"
    with locked_later(flags), ExitStack() as stack:
        made = {kind: stack.enter_context(mapping(kind, PAGES)) for kind in MAPPING_KINDS}
        made["PROT_READ"] = stack.enter_context(mapping("private", PAGES, prot=syscalls.PROT_READ))
        made["PROT_NONE"] = stack.enter_context(mapping("private", PAGES, prot=syscalls.PROT_NONE))
        locks = {name: shape(r)[0][2] for name, r in made.items()}
        resident = {name: pagemap.present_count(r.addr, PAGES) for name, r in made.items()}
    assert locks == dict.fromkeys(made, lock), "every new mapping is locked"
    wanted = {name: PAGES if full and name != "PROT_NONE" else 0 for name in made}
    assert resident == wanted, "resident at once, or with MCL_ONFAULT not at all"


@pytest.mark.parametrize("flags", [MCL_FUTURE, MCL_FUTURE | MCL_ONFAULT], ids=["full", "onfault"])
@pytest.mark.detects("mlockall-future-locks-current")
def test_mlockall_future_leaves_existing_mappings_alone(flags):
    """mlockall(MCL_FUTURE) neither locks nor populates nor unlocks what is mapped already."""
    with mapping("private", 3 * PAGES) as region:
        syscalls.mlock(region.at(PAGES), PAGES * PAGE)
        syscalls.mlock2(region.at(2 * PAGES), PAGES * PAGE, syscalls.MLOCK_ONFAULT)
        with locked_later(flags):
            layout = shape(region)
            resident = pagemap.present_count(region.addr, region.pages)
    assert layout == [(0, 4, ""), (4, 8, "lo"), (8, 12, "lo lf")], "every lock is as before"
    assert resident == PAGES, "nothing more is populated"


@pytest.mark.parametrize(
    "extra",
    [syscalls.MAP_LOCKED, syscalls.MAP_POPULATE, syscalls.MAP_LOCKED | syscalls.MAP_POPULATE],
    ids=["MAP_LOCKED", "MAP_POPULATE", "both"],
)
def test_future_onfault_outweighs_prefault_flags_of_mmap(extra):
    """Under MCL_FUTURE | MCL_ONFAULT mappings made with MAP_LOCKED or MAP_POPULATE are locked
    on fault and not populated."""
    with locked_later(MCL_FUTURE | MCL_ONFAULT):
        with mapping("private", PAGES, flags=extra) as region:
            layout = shape(region)
            resident = pagemap.present_count(region.addr, PAGES)
            region.sub(1, 1).touch()
            touched = pagemap.present(region.addr, PAGES)
    assert layout == [(0, PAGES, "lo lf")], "locked on fault"
    assert resident == 0, "nothing is populated"
    assert touched == [False, True, False, False], "a touch brings in the page touched"


def test_mlockall_future_reaches_a_mapping_placed_over_another():
    """Under MCL_FUTURE a mapping that replaces an unlocked one is locked; the rest of the old
    one is not."""
    with mapping("private", 6) as region:
        region.touch()
        with locked_later(MCL_FUTURE):
            syscalls.mmap(
                region.at(2), 2 * PAGE, syscalls.PROT_RW,
                syscalls.MAP_PRIVATE | syscalls.MAP_ANONYMOUS | syscalls.MAP_FIXED,
            )  # fmt: skip
            layout = shape(region)
            resident = pagemap.present_count(region.at(2), 2)
    assert layout == [(0, 2, ""), (2, 4, "lo"), (4, 6, "")], "the new pages are lo"
    assert resident == 2, "and resident"


@pytest.mark.parametrize("flags", [MCL_FUTURE, MCL_FUTURE | MCL_ONFAULT], ids=["full", "onfault"])
@pytest.mark.detects("munlock-cancels-future")
def test_munlock_leaves_future_in_force(flags):
    """munlock of mappings made under MCL_FUTURE unlocks them and leaves MCL_FUTURE in force,
    with its MCL_ONFAULT."""
    lock = "lo lf" if flags & MCL_ONFAULT else "lo"
    with locked_later(flags):
        with mapping("private", PAGES) as first:
            syscalls.munlock(first.addr, first.size)
            unlocked = shape(first)
            syscalls.mlock(first.addr, first.size)
            syscalls.mlock2(first.addr, first.size, syscalls.MLOCK_ONFAULT)
            syscalls.munlock(first.addr, first.size)
            with mapping("private", PAGES) as second:
                layout = shape(second)
    assert unlocked == [(0, PAGES, "")], "munlock unlocks the mapping"
    assert layout == [(0, PAGES, lock)], "the next mapping is locked as the call said"


@pytest.mark.claim("W8")
@pytest.mark.detects("munlockall-keeps-future")
def test_munlockall_cancels_future():
    """munlockall unlocks what MCL_FUTURE locked, and later mappings are not locked."""
    syscalls.mlockall(MCL_FUTURE)
    with mapping("private", PAGES) as first:
        locked = shape(first)
        syscalls.munlockall()
        unlocked = shape(first)
        with mapping("private", PAGES) as second, mapping("shared", PAGES) as shared:
            assert locked == [(0, PAGES, "lo")], "MCL_FUTURE was in force"
            assert unlocked == [(0, PAGES, "")], "its mapping is unlocked"
            assert shape(second) == [(0, PAGES, "")], "private memory mapped later is not locked"
            assert shape(shared) == [(0, PAGES, "")], "shared memory mapped later is not locked"
            assert pagemap.present_count(second.addr, PAGES) == 0, "nor populated"


def refusals():
    """Every way in which mlockall fails, as this process is: name → outcome."""
    seen = {
        "0": syscalls.outcome(syscalls.mlockall, 0),
        "ONFAULT": syscalls.outcome(syscalls.mlockall, MCL_ONFAULT),
        "unknown": syscalls.outcome(syscalls.mlockall, 1 << 20),
        "unknown|CURRENT": syscalls.outcome(syscalls.mlockall, 1 << 20 | MCL_CURRENT),
        "unknown|FUTURE": syscalls.outcome(syscalls.mlockall, 1 << 20 | MCL_FUTURE | MCL_ONFAULT),
    }
    with rlimits.unprivileged_with_limit(PAGE):
        seen["over the limit"] = syscalls.outcome(syscalls.mlockall, MCL_CURRENT)
        seen["over the limit, FUTURE"] = syscalls.outcome(
            syscalls.mlockall, MCL_CURRENT | MCL_FUTURE
        )
    with rlimits.unprivileged_with_limit(0):
        seen["no right"] = syscalls.outcome(syscalls.mlockall, MCL_CURRENT)
        seen["no right, FUTURE"] = syscalls.outcome(syscalls.mlockall, MCL_FUTURE)
    return seen


REFUSED = {
    "0": "EINVAL",
    "ONFAULT": "EINVAL",
    "unknown": "EINVAL",
    "unknown|CURRENT": "EINVAL",
    "unknown|FUTURE": "EINVAL",
    "over the limit": "ENOMEM",
    "over the limit, FUTURE": "ENOMEM",
    "no right": "EPERM",
    "no right, FUTURE": "EPERM",
}


@pytest.mark.needs("limit:1")
@pytest.mark.parametrize(
    "flags", [0, MCL_FUTURE, MCL_FUTURE | MCL_ONFAULT], ids=["none", "full", "onfault"]
)
def test_failed_mlockall_changes_nothing(flags):
    """An mlockall that fails neither locks or unlocks a mapping nor sets or cancels
    MCL_FUTURE."""
    lock = {0: "", MCL_FUTURE: "lo"}.get(flags, "lo lf")
    refusals()  # so that under MCL_FUTURE and a limit of a page nothing new is to be allocated
    with mapping("private", 2 * PAGES) as old:
        syscalls.mlock(old.at(PAGES), PAGES * PAGE)
        if flags:
            syscalls.mlockall(flags)
        seen = refusals()
        existing = shape(old)
        with mapping("private", PAGES) as later:
            layout = shape(later)
        syscalls.munlockall()
    assert seen == REFUSED, "each call is refused"
    assert existing == [(0, PAGES, ""), (PAGES, 2 * PAGES, "lo")], "existing locks are as before"
    assert layout == [(0, PAGES, lock)], "the next mapping is locked as before the failed calls"


@pytest.mark.needs("limit:1")
def test_mlockall_future_does_not_count_what_is_mapped():
    """mlockall(MCL_FUTURE) alone succeeds however much is mapped already: the limit is asked
    for each new mapping."""
    with rlimits.unprivileged_with_limit(PAGE):
        seen = syscalls.outcome(syscalls.mlockall, MCL_FUTURE)
        syscalls.munlockall()
    assert seen == "ok", "a limit of one page is enough for the call itself"
