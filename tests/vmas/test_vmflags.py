# SPDX-License-Identifier: MIT
"""How the marks are shown: names in VmFlags, and the witnesses beside them."""

import pytest

from helpers import syscalls
from helpers.machine import kernel_version
from helpers.memory import MAPPING_KINDS, mapping
from helpers.observe import maps, status
from helpers.syscalls import PAGE

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("lock:8", "smaps-flags"),
    pytest.mark.source("proc_pid_smaps(5)", "fs/proc/task_mmu.c show_smap_vma_flags"),
]


def marks(region):
    (vma,) = maps.smaps(low=region.addr, high=region.end)
    return vma.flags & {"lo", "lf", "??"}


@pytest.mark.detects("vmflags-lf-missing")
def test_lock_on_fault_is_shown_as_lf():
    """VM_LOCKONFAULT is shown as lf beside lo (up to 6.1 as ??), and only while it is set."""
    names = {"lf"} if kernel_version.version() >= (6, 2, 0) else {"lf", "??"}
    with mapping("private", 2) as region:
        assert marks(region) == set(), "no mark before the lock"
        syscalls.mlock2(region.addr, region.size, syscalls.MLOCK_ONFAULT)
        seen = marks(region)
        assert "lo" in seen, "locked on fault is locked"
        shown = seen - {"lo"}
        assert len(shown) == 1, f"one mark beside lo, not {shown}"
        assert shown <= names, f"VM_LOCKONFAULT is shown as one of {names}"
        syscalls.mlock(region.addr, region.size)
        assert marks(region) == {"lo"}, "lo alone after a full lock"
        syscalls.munlock(region.addr, region.size)
        assert marks(region) == set(), "no mark after munlock"


@pytest.mark.claim("W11")
@pytest.mark.parametrize("kind", MAPPING_KINDS)
@pytest.mark.detects("vmflags-lo-missing")
def test_lock_is_a_mark_on_the_vma(kind):
    """Memory of every kind has lo in VmFlags from its lock to its unlock, however it is locked,
    present or not, and VmLck is the summed size of the VMAs so marked."""
    with mapping(kind, 8) as region:
        start = status.vmlck_kb()
        for flags in (0, syscalls.MLOCK_ONFAULT):
            assert "lo" not in marks(region), "no lo before the lock"
            syscalls.mlock2(region.addr, region.size, flags)
            assert "lo" in marks(region), f"lo after mlock2({flags})"
            assert status.vmlck_kb() - start == region.kb, "VmLck grows by the VMA's size"
            assert status.vmlck_kb() == maps.locked_kb(), "VmLck and the sum of lo VMAs"
            syscalls.munlock(region.addr, region.size)
            assert marks(region) == set(), "no mark after munlock"
        assert status.vmlck_kb() == maps.locked_kb(), "VmLck and the sum of lo VMAs, unlocked"


@pytest.mark.claim("W12")
@pytest.mark.parametrize("kind", ["private", "file-shared"])
def test_maps_and_smaps_show_the_same_vmas(kind):
    """After every split and merge maps and smaps agree, line by line, and smaps' Size and the
    next VMA's start follow the boundaries: no gap, no overlap."""
    with mapping(kind, 8) as region:
        region.touch()
        for call, first, pages, count in (
            (syscalls.mlock, 2, 4, 3),
            (syscalls.munlock, 3, 1, 5),
            (syscalls.mlock, 0, 1, 6),
            (syscalls.mlock, 1, 1, 4),
            (syscalls.munlock, 0, 8, 1),
        ):
            call(region.at(first), pages * PAGE)
            full = maps.smaps(low=region.addr, high=region.end)
            short = maps.vmas(low=region.addr, high=region.end)
            step = f"{call.__name__} of {pages} pages from page {first}"
            assert [v.line for v in short] == [v.line for v in full], f"maps and smaps, {step}"
            assert len(short) == count, f"lines of maps after {step}"
            edges = [region.addr, *(v.end for v in full)]
            assert [*(v.start for v in full), region.end] == edges, f"no gap after {step}"
            sizes = [v.field_kb("Size") for v in full]
            assert sizes == [v.kb for v in full], f"Size in smaps after {step}"


def test_msync_finds_the_marked_pages():
    """msync(MS_INVALIDATE) is refused with EBUSY on exactly the pages whose VMA has lo."""
    with mapping("private", 8) as region:
        region.touch()
        syscalls.mlock(region.at(1), 3 * PAGE)
        syscalls.mlock2(region.at(5), 2 * PAGE, syscalls.MLOCK_ONFAULT)
        syscalls.munlock(region.at(2), PAGE)
        busy = [
            syscalls.outcome(syscalls.msync, region.at(page), PAGE, syscalls.MS_INVALIDATE)
            for page in range(8)
        ]
        no, yes = "ok", "EBUSY"
        assert busy == [no, yes, no, yes, no, yes, yes, no], "msync page by page"
        by_page = [lock for first, end, lock in maps.layout(region) for _ in range(first, end)]
        assert [bool(lock) for lock in by_page] == [b == yes for b in busy], "smaps agrees"
