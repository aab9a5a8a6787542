# SPDX-License-Identifier: MIT
"""KSM: equal pages become one, and a lock holds on to whichever it is."""

from contextlib import contextmanager

import pytest

from helpers import syscalls
from helpers.machine import kernel_version
from helpers.memory import Region, mapping
from helpers.observe import (
    ksm,
    lock_accounting,
    lru_batches,
    maps,
    page_faults,
    page_flags,
    pagemap,
    status,
)
from helpers.processes import Child
from helpers.reclaim import drivers
from helpers.requirements.inconclusive import inconclusive
from helpers.syscalls import PAGE

N = 16

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("lock:32"),
    pytest.mark.source("ksm.rst", "mm/ksm.c"),
]
KSMD = [
    pytest.mark.needs("ksm", "allow-sysctl", "kpageflags"),
    pytest.mark.exclusive,
]


def with_ksmd(case):
    for mark in KSMD:
        case = mark(case)
    return case


@contextmanager
def running(reclaim):
    """ksmd at full speed for the block, then as it was; what it merged is taken apart first."""
    fast = {"sleep_millisecs": "0", "pages_to_scan": "10000", "run": ksm.RUN}
    folder = str(ksm.FOLDER)
    with (
        reclaim.setting(f"{folder}/sleep_millisecs", fast["sleep_millisecs"]),
        reclaim.setting(f"{folder}/pages_to_scan", fast["pages_to_scan"]),
        reclaim.setting(f"{folder}/run", fast["run"]),
    ):
        yield


def same(region):
    """Fill the pages with equal contents, unlike any other's."""
    syscalls.store(region.addr, (b"memlock-tests ksm" + b"\xc3" * PAGE)[:PAGE] * region.pages)


def need_merged(region):
    if ksm.wait_merged(region, N) < N:
        inconclusive(f"ksmd merged {ksm.merged(region)} of {N} equal pages")


@pytest.mark.needs("mergeable")
def test_advice_to_merge_leaves_the_lock():
    """MADV_MERGEABLE and MADV_UNMERGEABLE of locked memory, of a part too, leave pages, mark and
    count."""
    with mapping("private", N) as region:
        same(region)
        syscalls.mlock(region.addr, region.size)
        syscalls.madvise(region.at(4), 4 * PAGE, syscalls.MADV_MERGEABLE)
        assert lock_accounting.read(region) == lock_accounting.expect("L" * N, N), (
            "mergeable in part"
        )
        syscalls.madvise(region.addr, region.size, syscalls.MADV_MERGEABLE)
        syscalls.madvise(region.addr, region.size, syscalls.MADV_UNMERGEABLE)
        assert lock_accounting.read(region) == lock_accounting.expect("L" * N, N), (
            "and not any more"
        )
        assert page_faults.faults_writing(region.addr, region.size).minor == 0, "no page faults"


@with_ksmd
@pytest.mark.parametrize("order", ["locked-first", "merged-first"])
@pytest.mark.usefixtures("one_cpu")
def test_merged_pages_of_a_locked_range_are_marked(order, reclaim):
    """Equal locked pages that KSM merges stay present and mlocked as one, and count as before; a
    write gives a mlocked copy, munlock leaves no mark."""
    with mapping("private", N) as region, running(reclaim):
        same(region)
        if order == "locked-first":
            lru_batches.mlock_drain_local()
            syscalls.mlock(region.addr, region.size)
        syscalls.madvise(region.addr, region.size, syscalls.MADV_MERGEABLE)
        need_merged(region)
        if order == "merged-first":
            syscalls.mlock2(region.addr, region.size, syscalls.MLOCK_ONFAULT)
        assert pagemap.present_count(region.addr, N) == N, "present"
        assert status.vmlck_pages() == N, "VmLck"
        if order == "locked-first" or kernel_version.version() >= (5, 18, 0):
            # Before, a lock on fault left the marking of present pages to reclaim.
            assert page_flags.mlocked(region) == "1" * N, "the merged page is mlocked"
        syscalls.store(region.at(3), b"own")
        assert page_flags.mlocked(region)[3] == "1", "the copy that a write made, too"
        assert status.vmlck_pages() == N, "VmLck"
        assert maps.locked_kb() == status.vmlck_kb(), "the sum of lo VMAs"
        syscalls.madvise(region.addr, region.size, syscalls.MADV_UNMERGEABLE)
        assert page_flags.mlocked(region) == "1" * N, "taken apart: every page is mlocked"
        assert ksm.merged(region) == 0, "none is merged"
        assert syscalls.load(region.at(3), 3) == b"own", "contents"
        syscalls.munlock(region.addr, region.size)
        assert page_flags.mlocked(region) == "0" * N, "unlocked: none is marked"


@with_ksmd
@pytest.mark.usefixtures("one_cpu")
def test_lock_takes_merged_pages_apart(reclaim):
    """mlock of merged pages gives the writer pages of its own, so that no write faults later."""
    with mapping("private", N) as region, running(reclaim):
        same(region)
        syscalls.madvise(region.addr, region.size, syscalls.MADV_MERGEABLE)
        need_merged(region)
        with reclaim.setting(f"{ksm.FOLDER}/run", ksm.STOP):
            syscalls.mlock(region.addr, region.size)
            assert page_flags.mlocked(region) == "1" * N, "mlocked"
            assert ksm.merged(region) == 0, "none is merged"
            assert page_faults.faults_writing(region.addr, region.size).minor == 0, "no page faults"


@with_ksmd
@pytest.mark.usefixtures("one_cpu")
def test_page_merged_from_locked_and_unlocked_stays_locked(reclaim):
    """A page merged from a locked and an unlocked range stays mlocked for the first, until its
    munlock."""
    with mapping("private", N) as region, mapping("private", N) as other, running(reclaim):
        same(region)
        same(other)
        lru_batches.mlock_drain_local()
        syscalls.mlock(region.addr, region.size)
        for each in (region, other):
            syscalls.madvise(each.addr, each.size, syscalls.MADV_MERGEABLE)
        need_merged(region)
        need_merged(other)
        assert page_flags.mlocked(region) == "1" * N, "mlocked"
        syscalls.munmap(other.addr, other.size)
        assert page_flags.mlocked(region) == "1" * N, "the other mapping's end leaves the mark"
        syscalls.munlock(region.addr, region.size)
        assert page_flags.mlocked(region) == "0" * N, "unlocked"


def prepare(pages):
    """In the child: locked and unlocked memory of equal pages, and a control."""
    found = []
    for locked in (True, False):
        region = Region(syscalls.mmap(0, pages * PAGE), pages * PAGE)
        same(region)
        if locked:
            syscalls.mlock(region.addr, region.size)
        syscalls.madvise(region.addr, region.size, syscalls.MADV_MERGEABLE)
        found.append(region)
    control = Region(syscalls.mmap(0, pages * PAGE), pages * PAGE)
    control.write(0x13)
    return found[0], found[1], control


@with_ksmd
@pytest.mark.needs("cgroup", "swap")
@pytest.mark.claim("W1")
def test_merged_locked_page_stays_under_pressure(reclaim):
    """Under pressure a merged page stays in memory as long as one of its mappings is locked."""
    pages = 64
    with reclaim.cgroup() as group, Child() as child, running(reclaim):
        group.add(child.pid)
        locked, _, control = child.call(prepare, pages)
        if child.call(ksm.wait_merged, locked, pages) < pages:
            inconclusive("ksmd did not merge the pages")
        drivers.reclaim_until_evicted(group.reclaim, child.pid, control)
        assert pagemap.present_count(locked.addr, pages, child.pid) == pages, "present"
        assert child.call(status.vmlck_pages) == pages, "VmLck"
