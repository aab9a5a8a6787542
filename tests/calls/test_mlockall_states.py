# SPDX-License-Identifier: MIT
"""What mlockall and munlockall make of each other: every call after every other.

A process has two states: how each mapping is locked, and how the next one will be. Each
call with MCL_CURRENT sets the first for all mappings, and every call sets the second.
"""

from itertools import pairwise

import pytest

from helpers import syscalls
from helpers.memory import mapping
from helpers.observe import maps, pagemap, status
from helpers.syscalls import MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT, PAGE

pytestmark = [
    pytest.mark.share_process,
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


def call(flags, calls=syscalls.RAW):
    """mlockall(flags), or munlockall() for 0."""
    return calls.mlockall(flags) if flags else calls.munlockall()


def place(area, slot):
    """A new mapping in a slot of the area, its first page written."""
    addr = syscalls.mmap(
        area.at(slot * SLOT), PAGES * PAGE, syscalls.PROT_RW,
        syscalls.MAP_PRIVATE | syscalls.MAP_ANONYMOUS | syscalls.MAP_FIXED,
    )  # fmt: skip
    present = pagemap.present_count(addr, PAGES)
    syscalls.memset(addr, 1, 1)
    return present


def state(area, slots):
    """(lock, resident pages) of the mapping in each slot."""
    locks = {first: lock for first, _, lock in maps.layout(area)}
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


def made(flags):
    """(lock, resident pages) of a mapping made after a call, once its first page is written."""
    lock, populated = new(flags)
    return lock, max(populated, 1)


def tour():
    """The calls in an order that has every ordered pair of them once (a de Bruijn sequence)."""
    names = list(CALLS)
    steps = []
    for index, name in enumerate(names):
        steps.append(name)
        for other in names[index + 1 :]:
            steps += [name, other]
    return [*steps, names[0]]


@pytest.mark.detects(
    "mlockall-ignored",
    "mlockall-current-keeps-future",
    "mlockall-both-forgets-future",
    "mlockall-both-forgets-current",
    "mlockall-current-onfault-lost",
)
def test_every_call_after_every_other():
    """Each call decides anew what is locked now, if it has MCL_CURRENT, and what will be
    locked: MCL_FUTURE and MCL_ONFAULT of the call before are forgotten."""
    steps = tour()
    seen, wanted = {}, {}
    with mapping("private", 3 * SLOT, prot=syscalls.PROT_NONE) as area:
        try:
            place(area, 0)
            place(area, 1)
            oldest = older = ("", 1)
            for number, (before, name) in enumerate(pairwise(["nothing", *steps])):
                flags = CALLS[name]
                call(flags)
                last, newest = 1 + number % 2, 2 - number % 2
                populated = place(area, newest)
                oldest, older = existing(flags, oldest), existing(flags, older)
                step = f"{name} after {before}"
                wanted[step] = (oldest, older, made(flags), new(flags)[1])
                seen[step] = (*state(area, (0, last, newest)), populated)
                older = made(flags)
        finally:
            syscalls.munlockall()
    assert len(seen) == len(CALLS) ** 2 + 1, "every ordered pair of calls, and the first call"
    assert seen == wanted, (
        "(lock, resident pages) of the oldest mapping, the one made before the call, the one "
        "made after it, and what mmap populated of that"
    )


@pytest.mark.parametrize("calls", [syscalls.RAW, syscalls.GLIBC], ids=repr)
@pytest.mark.detects("munlockall-ignored")
def test_mlockall_accepts_each_valid_flag_set(calls):
    """mlockall returns 0 for each of the six valid sets of flags, munlockall after it as
    well."""
    results = {}
    for name, flags in CALLS.items():
        results[name] = call(flags, calls)
        syscalls.munlockall()
    assert results == dict.fromkeys(CALLS, 0), "the call returns exactly 0"
    assert status.vmlck_pages() == 0, "VmLck is 0 after munlockall"
