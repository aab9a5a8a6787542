"""What mlockall and munlockall make of each other: every call after every other.

A process has two states: how each mapping is locked, and how the next one will be. Each
call with MCL_CURRENT sets the first for all mappings, and every call sets the second.
"""

import pytest

from helpers import libc
from helpers.libc import MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT, PAGE
from helpers.memory import mapping
from helpers.observe import maps, pagemap, status

pytestmark = [
    pytest.mark.needs("smaps-flags", "lock-all"),
    pytest.mark.source("mlockall(2)", "apply_mlockall_flags() in mm/mlock.c"),
    pytest.mark.claim("W7", "W8"),
]

CALLS = {
    "CURRENT": MCL_CURRENT,
    "CURRENT|ONFAULT": MCL_CURRENT | MCL_ONFAULT,
    "FUTURE": MCL_FUTURE,
    "FUTURE|ONFAULT": MCL_FUTURE | MCL_ONFAULT,
    "CURRENT|FUTURE": MCL_CURRENT | MCL_FUTURE,
    "CURRENT|FUTURE|ONFAULT": MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT,
    "munlockall": 0,
}
SLOT = 4
"""Each mapping has three pages, and an inaccessible one that keeps it from merging."""
PAGES = SLOT - 1


def call(flags, calls=libc.RAW):
    """mlockall(flags), or munlockall() for 0."""
    return calls.mlockall(flags) if flags else calls.munlockall()


def place(area, slot):
    """A new mapping in a slot of the area, its first page written."""
    addr = libc.mmap(
        area.at(slot * SLOT), PAGES * PAGE, libc.PROT_RW,
        libc.MAP_PRIVATE | libc.MAP_ANONYMOUS | libc.MAP_FIXED,
    )  # fmt: skip
    present = pagemap.present_count(addr, PAGES)
    libc.fill(addr, 1, 1)
    return present


def state(area, slots):
    """(lock, resident pages) of the mapping in each slot."""
    locks = {first: lock for first, _, lock in maps.layout(area.addr, area.end, PAGE)}
    return [
        (locks[slot * SLOT], pagemap.present_count(area.at(slot * SLOT), PAGES)) for slot in slots
    ]


def kind(flags):
    return "lo lf" if flags & MCL_ONFAULT else "lo"


def existing(flags, before):
    """What a call makes of a mapping that was (lock, resident pages) before it."""
    resident = before[1]
    if flags == 0:
        return ("", resident)
    if not flags & MCL_CURRENT:
        return before
    return (kind(flags), resident if flags & MCL_ONFAULT else PAGES)


def new(flags):
    """(lock, pages populated by mmap) of a mapping made after a call."""
    if not flags & MCL_FUTURE:
        return ("", 0)
    return (kind(flags), 0 if flags & MCL_ONFAULT else PAGES)


def walk(first, second):
    """Maps a, first call, maps b, second call, maps c: what a, b, c are in the end, and how
    many pages b and c had when they were made."""
    with mapping("private", 3 * SLOT, prot=libc.PROT_NONE) as area:
        try:
            place(area, 0)
            call(first)
            fresh = [place(area, 1)]
            call(second)
            fresh.append(place(area, 2))
            found = state(area, (0, 1, 2))
        finally:
            libc.munlockall()
    return found, fresh


def model(first, second):
    """What :func:`walk` must see. A mapping's first page is written when it is made."""

    def made(flags):
        lock, populated = new(flags)
        return lock, max(populated, 1)

    a = existing(first, ("", 1))
    b = made(first)
    found = [existing(second, a), existing(second, b), made(second)]
    return found, [new(first)[1], new(second)[1]]


@pytest.mark.parametrize("first", CALLS.values(), ids=CALLS)
def test_each_call_after_this_one(first):
    """After this call, each call decides anew what is locked now, if it has MCL_CURRENT, and
    what will be locked: MCL_FUTURE and MCL_ONFAULT of earlier calls are forgotten."""
    seen = {name: walk(first, second) for name, second in CALLS.items()}
    wanted = {name: model(first, second) for name, second in CALLS.items()}
    assert seen == wanted, "(lock, resident) of the mappings made before, between, after the calls"


@pytest.mark.parametrize("calls", [libc.RAW, libc.GLIBC], ids=repr)
def test_mlockall_accepts_each_valid_flag_set(calls):
    """mlockall returns 0 for each of the six valid sets of flags, munlockall after it as
    well."""
    results = {}
    for name, flags in CALLS.items():
        results[name] = call(flags, calls)
        libc.munlockall()
    assert results == dict.fromkeys(CALLS, 0), "the call returns exactly 0"
    assert status.vmlck_pages() == 0, "VmLck is 0 after munlockall"
