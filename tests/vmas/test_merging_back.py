# SPDX-License-Identifier: MIT
"""What a call set apart becomes one VMA again when the difference is taken back."""

import pytest

from helpers import syscalls
from helpers.memory import locks, mapping
from helpers.observe import maps, pagemap, status
from helpers.processes import Child
from helpers.syscalls import (
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PROT_NONE,
    PROT_READ,
    PROT_RW,
)

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("lock:16", "smaps-flags"),
    pytest.mark.source("mm/vma.c", "mm/mlock.c mlock_fixup"),
    pytest.mark.claim("W12"),
]

PAGES = 8
FIXED = MREMAP_MAYMOVE | MREMAP_FIXED
BYTE = 0x3C


def protect(prot):
    return lambda part, away: syscalls.mprotect(part.addr, part.size, prot)


def advise(advice):
    return lambda part, away: syscalls.madvise(part.addr, part.size, advice)


def apply(way):
    return lambda part, away: locks.apply(part, way)


def move(part, away):
    syscalls.mremap(part.addr, part.size, part.size, FIXED, away.addr)


def move_back(part, away):
    syscalls.mremap(away.addr, part.size, part.size, FIXED, part.addr)


CHANGES = {
    "lock": (None, None),  # the other lock and back: below
    "mprotect read": (protect(PROT_READ), protect(PROT_RW)),
    "mprotect none": (protect(PROT_NONE), protect(PROT_RW)),
    "move": (move, move_back),
    "DONTFORK": (advise(syscalls.MADV_DONTFORK), advise(syscalls.MADV_DOFORK)),
    "DONTDUMP": (advise(syscalls.MADV_DONTDUMP), advise(syscalls.MADV_DODUMP)),
    "RANDOM": (advise(syscalls.MADV_RANDOM), advise(syscalls.MADV_NORMAL)),
}
PARTS = {"head": (0, 2), "middle": (3, 2), "tail": (6, 2)}
OTHER = {"mlock": "munlock", "onfault": "mlock", "munlock": "onfault"}


def there_and_back(region, away, way, change):
    """Change each part and take it back: the layouts seen, of the process that calls."""
    there, back = CHANGES[change]
    if there is None:
        there, back = apply(OTHER[way]), apply(way)
    seen = {}
    for name, (first, count) in PARTS.items():
        there(region.sub(first, count), away)
        apart = len(maps.vmas(low=region.addr, high=region.end))
        back(region.sub(first, count), away)
        seen[name] = apart > (1 if change != "move" or name == "middle" else 0), maps.layout(region)
    return seen


def prepare(region, way):
    locks.apply(region, way)
    region.touch(BYTE)


@pytest.mark.parametrize("kind", ["private", "memfd-shared", "memfd-private"])
@pytest.mark.parametrize("way", ["mlock", "onfault", "munlock"])
@pytest.mark.parametrize("who", ["alone", "parent", "child"])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.detects("vma-not-merged-on-protect", "vma-not-merged-on-move")
def test_part_changed_and_changed_back_is_in_its_vma_again(kind, way, who, change):
    """A part of locked or unlocked memory that gets another lock, protection, advice or place,
    and has it taken back, is one VMA with the rest again, in a parent and a forked child too."""
    with mapping(kind, PAGES) as region, mapping("private", 2, prot=PROT_NONE) as away:
        if who != "child":
            prepare(region, way)
        else:
            region.touch(BYTE)
        if who == "alone":
            seen = there_and_back(region, away, way, change)
        else:
            with Child() as child:
                if who == "parent":
                    seen = there_and_back(region, away, way, change)
                else:
                    child.call(prepare, region, way)
                    seen = child.call(there_and_back, region, away, way, change)
        want = True, [(0, PAGES, locks.FLAGS[way])]
        assert seen == dict.fromkeys(PARTS, want), "apart, and one VMA again"
        if who != "child":
            locked = 0 if way == "munlock" else PAGES
            assert status.vmlck_pages() == locked, "VmLck as before"
            assert region.first_bytes() == bytes([BYTE]) * PAGES, "contents"
            assert pagemap.present_count(region.addr, PAGES) == PAGES, "present"


@pytest.mark.parametrize("way", ["onfault", "munlock"])
def test_parts_faulted_in_apart_stay_apart(way):
    """Parts of private memory that were each faulted in while their locks differed have pages
    of two kinds of reverse map: equal locks do not make them one VMA, in no order."""
    first = OTHER[way]
    with mapping("private", PAGES) as region:
        for half in (0, PAGES // 2):
            how = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED
            syscalls.mmap(region.addr, region.size, PROT_RW, how)
            locks.apply(region, way)
            locks.apply(region.sub(half, PAGES // 2), first)
            region.touch(BYTE)
            locks.apply(region.sub(half, PAGES // 2), way)
            flags = locks.FLAGS[way]
            half_way = PAGES // 2
            want = [(0, half_way, flags), (half_way, PAGES, flags)]
            assert maps.layout(region) == want, "two VMAs of equal locks"
            assert status.vmlck_pages() == (0 if way == "munlock" else PAGES), "VmLck"
