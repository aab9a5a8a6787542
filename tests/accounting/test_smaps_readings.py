# SPDX-License-Identifier: MIT
"""smaps of memory of every kind: each line is what was mapped, touched and locked.

What a line must say is computed from the calls and touches of the case, and pagemap is asked
beside it.
"""

import pytest

from helpers import syscalls
from helpers.machine import kernel_version
from helpers.memory import every_kind, locks
from helpers.observe import maps, pagemap, status
from helpers.syscalls import PAGE, PAGE_KB

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("lock:4", "smaps-flags"),
    pytest.mark.source("proc_pid_smaps(5)", "fs/proc/task_mmu.c smap_gather_stats"),
]

UNITS = 8
TOUCHED = (0, 2, 6)
FIRST, LAST = 1, 5
"""The units that are locked: two of them are touched before, two only by the lock."""


def variants(*methods):
    """Each kind with each method that it can be locked by, in words."""
    found = []
    for kind in every_kind.KINDS.values():
        amount = (LAST - FIRST) * kind.unit // PAGE
        for method in methods if kind.lock else methods[:1]:
            found.append(
                pytest.param(
                    kind, method,
                    id=f"{kind.id}-{method.id}",
                    marks=pytest.mark.needs(f"lock:{amount}", *kind.needs),
                )
            )  # fmt: skip
    return pytest.mark.parametrize(("kind", "method"), found)


def kinds(*chosen):
    """``kind``: these, with what each needs."""
    return pytest.mark.parametrize(
        "kind",
        [
            pytest.param(every_kind.KINDS[name], id=name, marks=pytest.mark.needs(*needs))
            if (needs := every_kind.KINDS[name].needs)
            else pytest.param(every_kind.KINDS[name], id=name)
            for name in chosen or every_kind.KINDS
        ],
    )


def expected(kind, units, locked, mappings=1):
    """The lines that depend on what was done, of a VMA with these units present (True) in order."""
    kb = kind.unit // 1024
    there = sum(units) * kb
    rss = there if kind.in_rss else 0
    return {
        "Size": len(units) * kb,
        "KernelPageSize": kb if kind.id == "hugetlb" else PAGE_KB,
        "Rss": rss,
        "Pss": rss // mappings,
        "private": rss if mappings == 1 else 0,
        "shared": 0 if mappings == 1 else rss,
        "Anonymous": rss if kind.anonymous else 0,
        "AnonHugePages": rss if kind.id == "thp" else 0,
        "ShmemPmdMapped": 0,
        "FilePmdMapped": 0,
        "Private_Hugetlb": there if kind.id == "hugetlb" else 0,
        "Shared_Hugetlb": 0,
        "Swap": 0,
        "SwapPss": 0,
        "Locked": rss // mappings if locked else 0,
    }


def shown(vma):
    """The same lines, as smaps has them."""
    seen = {name: vma.field_kb(name) for name in NAMES}
    seen["private"] = vma.field_kb("Private_Clean") + vma.field_kb("Private_Dirty")
    seen["shared"] = vma.field_kb("Shared_Clean") + vma.field_kb("Shared_Dirty")
    return seen


NAMES = (
    "Size", "KernelPageSize", "Rss", "Pss", "Anonymous", "AnonHugePages", "ShmemPmdMapped",
    "FilePmdMapped", "Private_Hugetlb", "Shared_Hugetlb", "Swap", "SwapPss", "Locked",
)  # fmt: skip


def touch(region, kind, units):
    for unit in units:
        syscalls.memset(region.addr + unit * kind.unit, 0x5A, kind.unit)


def lock(region, kind, method):
    """Lock the middle; the answer where locking is no success by nature (secret memory)."""
    start, size = region.addr + FIRST * kind.unit, (LAST - FIRST) * kind.unit
    if kind.id == "secret":
        syscalls.outcome(locks.issue, syscalls.RAW, method.call, start, size)
    else:
        locks.issue(syscalls.RAW, method.call, start, size)


def present(kind, method):
    """Which units are there, by the acts."""
    filled = method.populates and kind.id != "secret"
    return [n in TOUCHED or (filled and FIRST <= n < LAST) for n in range(UNITS)]


def mark(method):
    """What the method leaves in VmFlags of this kernel."""
    names = set(method.flags.split())
    if "lf" in names and kernel_version.version() < (6, 2, 0):
        names = {"lo", "??"}
    return names


def pieces(kind):
    """Where the VMAs begin and end once the middle is locked."""
    return [0, FIRST, LAST, UNITS] if kind.lock and kind.id != "secret" else [0, UNITS]


@variants(locks.MLOCK, locks.MLOCK2_ONFAULT)
def test_smaps_says_of_each_vma_what_was_done_to_it(kind, method):
    """Before the lock, while it holds and after munlock each line of smaps is the number of pages
    that were touched, populated or locked, and VmFlags has the lock's flag and no other change."""
    with every_kind.mapping_of(kind, UNITS) as region:
        touch(region, kind, TOUCHED)
        (fresh,) = maps.smaps(low=region.addr, high=region.end)
        born_locked = kind.id == "secret" and fresh.locked
        there = [n in TOUCHED for n in range(UNITS)]
        assert shown(fresh) == expected(kind, there, born_locked), "touched"
        assert "??" not in fresh.flags, "every flag has a name"

        lock(region, kind, method)
        edges, there = pieces(kind), present(kind, method)
        seen = maps.smaps(low=region.addr, high=region.end)
        assert [v.start for v in seen] == [region.addr + e * kind.unit for e in edges[:-1]], (
            "VMAs begin where the lock begins and ends"
        )
        for vma, first, last in zip(seen, edges, edges[1:]):
            held = len(edges) > 2 and first == FIRST
            assert shown(vma) == expected(kind, there[first:last], held or born_locked), (
                f"units {first} to {last} while locked"
            )
            assert vma.flags == fresh.flags | (mark(method) if held else set()), "VmFlags"

        syscalls.munlock(region.addr, region.size)
        left = maps.smaps(low=region.addr, high=region.end)
        # VMAs of a segment have a close operation, and such never merge (mm/vma.c).
        assert kind.id == "sysv" or len(left) == 1, "one VMA again"
        whole = {name: sum(shown(v)[name] for v in left) for name in shown(fresh)}
        whole["KernelPageSize"] //= len(left)
        assert whole == expected(kind, there, born_locked), "unlocked, and all still there"
        assert {v.flags for v in left} == {fresh.flags}, "VmFlags as before"
    assert maps.vmas(low=region.addr, high=region.end) == [], "gone when unmapped"


@kinds()
def test_locked_and_present_agree_with_pagemap(kind):
    """Rss of a locked VMA is the number of its pages that pagemap calls present."""
    with every_kind.mapping_of(kind, 4) as region:
        touch(region, kind, (1, 3))
        seen = pagemap.present_count(region.addr, region.pages) * PAGE_KB
        (vma,) = maps.smaps(low=region.addr, high=region.end)
        told = vma.field_kb("Rss") + vma.field_kb("Private_Hugetlb")
        assert (told, seen) == (2 * kind.unit // 1024,) * 2, "two units"
        assert status.vmlck_kb() == maps.locked_kb(), "VmLck and the lo VMAs"
