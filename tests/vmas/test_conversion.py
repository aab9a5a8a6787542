# SPDX-License-Identifier: MIT
"""One kind of lock turned into another in place: full, on fault, none."""

import pytest

from helpers import processes, syscalls
from helpers.memory import MAPPING_KINDS, mapping
from helpers.memory.locks import FLAGS, apply
from helpers.observe import maps, pagemap, status
from helpers.syscalls import MCL_CURRENT, MCL_ONFAULT

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("lock:8", "smaps-flags"),
    pytest.mark.source("mlock2(2)", "commit b155b4fde5bd", "commit b0f205c2a308"),
]


def layout(region):
    return maps.layout(region)


def flags(region):
    """VmFlags of the region's VMAs by name, as smaps has them."""
    found = set()
    for vma in maps.smaps(low=region.addr, high=region.end):
        found |= vma.flags
    return found & {"lo", "lf", "??"}


@pytest.mark.parametrize("kind", MAPPING_KINDS)
@pytest.mark.detects("mlock-keeps-lf")
def test_full_lock_of_memory_locked_on_fault_clears_lf_and_populates(kind):
    """mlock of memory locked on fault takes lf from it, leaves VmLck and the number of VMAs as
    they were, and brings every page in."""
    with mapping(kind, 8) as region:
        apply(region, "onfault")
        before = status.vmlck_pages()
        assert layout(region) == [(0, 8, "lo lf")], "locked on fault"
        assert pagemap.present_count(region.addr, 8) == 0, "pages mapped by the lock on fault"
        apply(region, "mlock")
        assert layout(region) == [(0, 8, "lo")], "locked at once"
        assert flags(region) == {"lo"}, "VmFlags: no lf in any name"
        assert status.vmlck_pages() == before, "VmLck counts each page once"
        assert pagemap.present_count(region.addr, 8) == 8, "pages mapped by the full lock"


@pytest.mark.parametrize("kind", MAPPING_KINDS)
@pytest.mark.detects("mlock2-onfault-keeps-full")
def test_lock_on_fault_of_fully_locked_memory_sets_lf_and_keeps_pages(kind):
    """mlock2(MLOCK_ONFAULT) of locked memory adds lf, leaves VmLck and the number of VMAs as
    they were, and keeps every page mapped."""
    with mapping(kind, 8) as region:
        apply(region, "mlock")
        before = status.vmlck_pages()
        apply(region, "onfault")
        assert layout(region) == [(0, 8, "lo lf")], "locked on fault"
        assert status.vmlck_pages() == before, "VmLck counts each page once"
        assert pagemap.present_count(region.addr, 8) == 8, "pages stay mapped"
        apply(region, "munlock")
        assert layout(region) == [(0, 8, "")], "munlock takes both marks"
        assert flags(region) == set(), "VmFlags: neither lo nor lf in any name"


@pytest.mark.parametrize("new", ["mlock", "onfault", "munlock"])
@pytest.mark.parametrize("old", ["mlock", "onfault", "munlock"])
@pytest.mark.parametrize("kind", ["private", "memfd-shared"])
def test_part_takes_the_new_lock_and_the_rest_keeps_the_old(kind, old, new):
    """A call on the head, middle or tail of a VMA gives that part the lock it asks for,
    whatever lock was there, and leaves the rest with what it had; the same call on the rest
    makes it one VMA."""
    with mapping(kind, 8) as region:
        region.touch()
        unlocked = status.vmlck_pages()
        for first, end in ((2, 5), (0, 3), (5, 8)):
            apply(region, old)
            assert layout(region) == [(0, 8, FLAGS[old])], "one VMA to begin with"
            apply(region.sub(first, end - first), new)
            want = [(0, 8, FLAGS[old])]
            if new != old:
                want = [
                    (0, first, FLAGS[old]),
                    (first, end, FLAGS[new]),
                    (end, 8, FLAGS[old]),
                ]
            want = [run for run in want if run[0] < run[1]]
            assert layout(region) == want, f"pages {first} to {end} changed"
            locked = sum(b - a for a, b, mark in want if mark)
            assert status.vmlck_pages() - unlocked == locked, f"VmLck with {first} to {end} changed"
            apply(region, new)
            assert layout(region) == [(0, 8, FLAGS[new])], "the rest changed too: one VMA"


@pytest.mark.parametrize("new", ["mlock", "onfault", "munlock"])
def test_range_over_all_kinds_of_lock_becomes_uniform(new):
    """One call over unlocked, fully locked and on-fault memory gives all of it the lock asked
    for, as one VMA, and counts each page once."""
    with mapping("private", 8) as region:
        region.touch()
        before = status.vmlck_pages()
        for pattern in (
            ("munlock", "mlock", "onfault", "munlock"),
            ("onfault", "munlock", "mlock", "onfault"),
            ("mlock", "onfault", "munlock", "mlock"),
        ):
            for i, way in enumerate(pattern):
                apply(region.sub(2 * i, 2), way)
            inner = region.sub(1, 6)
            apply(inner, new)
            ends = (FLAGS[pattern[0]], FLAGS[pattern[-1]])
            want = [(1, 7, FLAGS[new])]
            # The outermost pages keep their lock, and are in the same VMA where it is equal.
            want = [(0, 7, FLAGS[new])] if ends[0] == FLAGS[new] else [(0, 1, ends[0]), *want]
            if ends[1] == FLAGS[new]:
                want[-1] = (want[-1][0], 8, FLAGS[new])
            else:
                want.append((7, 8, ends[1]))
            assert layout(region) == want, f"{new} over {pattern}"
            locked = sum(b - a for a, b, mark in want if mark)
            assert status.vmlck_pages() - before == locked, f"VmLck of {new} over {pattern}"


def after_all(steps):
    """Layout, pages present and VmLck less the sum of lo VMAs of a region of three locks.

    ``steps``: flags for mlockall, or None for munlockall, called in turn.
    """
    with mapping("private", 9) as region:
        apply(region.sub(3, 3), "mlock")
        apply(region.sub(6, 3), "onfault")
        for step in steps:
            if step is None:
                syscalls.munlockall()
            else:
                syscalls.mlockall(step)
        return layout(region), pagemap.present_count(region.addr, 9)


@pytest.mark.needs("lock-all")
@pytest.mark.parametrize(
    ("steps", "marks", "present"),
    [
        ([MCL_CURRENT], ["lo", "lo", "lo"], 9),
        ([MCL_CURRENT | MCL_ONFAULT], ["lo lf", "lo lf", "lo lf"], 3),
        ([MCL_CURRENT | MCL_ONFAULT, MCL_CURRENT], ["lo", "lo", "lo"], 9),
        ([MCL_CURRENT, MCL_CURRENT | MCL_ONFAULT], ["lo lf", "lo lf", "lo lf"], 9),
        ([None], ["", "", ""], 3),
        ([MCL_CURRENT | MCL_ONFAULT, None], ["", "", ""], 3),
    ],
    ids=["full", "onfault", "onfault-full", "full-onfault", "unlock", "onfault-unlock"],
)
@pytest.mark.detects("mlockall-keeps-lf")
def test_mlockall_and_munlockall_convert_every_lock(steps, marks, present):
    """mlockall(MCL_CURRENT) makes unlocked, locked and on-fault memory fully locked and
    present, with MCL_ONFAULT locked on fault and no more present than before; munlockall
    leaves neither lo nor lf."""
    shape, pages = processes.run(lambda: after_all(steps))
    # Parts that were populated apart may have an anon_vma each: compare page by page.
    by_page = [mark for first, end, mark in shape for _ in range(first, end)]
    assert by_page == [mark for mark in marks for _ in range(3)], "locks of the three parts"
    assert pages == present, "pages present"
