# SPDX-License-Identifier: MIT
"""The marks of mappings that are born locked: MAP_LOCKED and MCL_FUTURE."""

import pytest

from helpers import processes, syscalls
from helpers.memory import MAPPING_KINDS, layouts, mapping
from helpers.observe import maps
from helpers.syscalls import (
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_LOCKED,
    MAP_PRIVATE,
    MCL_CURRENT,
    MCL_FUTURE,
    MCL_ONFAULT,
    PAGE,
    PROT_NONE,
    PROT_READ,
    PROT_RW,
)

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("lock:8", "smaps-flags"),
    pytest.mark.source("mmap(2) MAP_LOCKED", "mlockall(2)"),
]

PROTS = {"rw": PROT_RW, "r": PROT_READ, "none": PROT_NONE}
FUTURES = pytest.mark.parametrize(
    ("flags", "mark"),
    [(MCL_FUTURE, "lo"), (MCL_FUTURE | MCL_ONFAULT, "lo lf")],
    ids=["full", "onfault"],
)


def layout(region):
    return maps.layout(region)


@pytest.mark.parametrize("kind", MAPPING_KINDS)
@pytest.mark.detects("maplocked-shared-ignored")
def test_map_locked_marks_the_mapping(kind):
    """A mapping made with MAP_LOCKED, writable, read-only or inaccessible, is one VMA with lo
    and without lf; the same without MAP_LOCKED has neither."""
    for name, prot in PROTS.items():
        with mapping(kind, 4, prot=prot, flags=MAP_LOCKED) as region:
            assert layout(region) == [(0, 4, "lo")], f"MAP_LOCKED, {name}"
            (vma,) = maps.smaps(low=region.addr, high=region.end)
            assert vma.flags & {"lo", "lf", "??"} == {"lo"}, f"VmFlags, {name}"
        with mapping(kind, 4, prot=prot) as region:
            assert layout(region) == [(0, 4, "")], f"not MAP_LOCKED, {name}"


def under_future(flags, how=0):
    """Layouts of new mappings by kind and permissions under mlockall(flags), then of one that
    was there before it, and of a new one after munlockall."""
    found = {}
    with mapping("private", 4) as old:
        syscalls.mlockall(flags)
        for kind in MAPPING_KINDS:
            for name, prot in PROTS.items():
                with mapping(kind, 4, prot=prot, flags=how) as region:
                    found[kind, name] = layout(region)
        before = layout(old)
        syscalls.munlockall()
        with mapping("private", 4) as late:
            return found, before, layout(late)


@pytest.mark.needs("lock-all")
@FUTURES
@pytest.mark.claim("W7")
@pytest.mark.parametrize("how", [0, MAP_LOCKED], ids=["plain", "map-locked"])
@pytest.mark.detects("future-skips-shared", "future-skips-file", "future-skips-protnone")
def test_future_marks_new_mappings_of_every_kind(flags, mark, how):
    """Under MCL_FUTURE a new mapping of any kind and permissions is one VMA with lo, under
    MCL_FUTURE|MCL_ONFAULT with lo and lf, MAP_LOCKED or not; older mappings and those made
    after munlockall have no mark."""
    found, before, late = processes.run(lambda: under_future(flags, how))
    wrong = {what: shape for what, shape in found.items() if shape != [(0, 4, mark)]}
    assert wrong == {}, f"mappings that are not one VMA with {mark}"
    assert len(found) == len(MAPPING_KINDS) * len(PROTS), "every kind was tried"
    assert before == [(0, 4, "")], "a mapping from before MCL_FUTURE"
    assert late == [(0, 4, "")], "a mapping made after munlockall"


def fill_hole_under_future(flags):
    with mapping("private", 8) as region:
        region.touch()
        syscalls.mlock2(region.addr, region.size, 1 if flags & MCL_ONFAULT else 0)
        layouts.unmap_pages(region, 3, 2)
        syscalls.mlockall(flags)
        syscalls.mmap(region.at(3), 2 * PAGE, PROT_RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED)
        return layout(region)


@pytest.mark.needs("lock-all")
@FUTURES
def test_future_mapping_merges_with_equal_neighbours(flags, mark):
    """A mapping made under MCL_FUTURE between two VMAs with the lock it gets becomes one VMA
    with both."""
    shape = processes.run(lambda: fill_hole_under_future(flags))
    assert shape == [(0, 8, mark)], "one VMA"


def split_under_future(flags):
    """Layouts of a new mapping: whole, its middle unlocked, all unlocked."""
    syscalls.mlockall(flags)
    with mapping("private", 3) as region:
        region.touch()
        shapes = [layout(region)]
        syscalls.munlock(region.at(1), PAGE)
        shapes.append(layout(region))
        syscalls.munlock(region.addr, region.size)
        shapes.append(layout(region))
        return shapes


@pytest.mark.needs("lock-all")
@pytest.mark.claim("W12")
@pytest.mark.parametrize(
    ("flags", "mark"),
    [
        (MCL_FUTURE, "lo"),
        (MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT, "lo lf"),
    ],
    ids=["full", "onfault"],
)
def test_unlocking_middle_of_future_mapping_splits_and_rest_merges(flags, mark):
    """munlock of the middle page of a mapping locked by MCL_FUTURE leaves three VMAs, of which
    the outer ones keep their marks, and munlock of all one VMA, while MCL_FUTURE lasts."""
    shapes = processes.run(lambda: split_under_future(flags))
    assert shapes == [
        [(0, 3, mark)],
        [(0, 1, mark), (1, 2, ""), (2, 3, mark)],
        [(0, 3, "")],
    ], "whole, middle unlocked, all unlocked"
