# SPDX-License-Identifier: MIT
"""Large folios smaller than a huge page, mapped page by page (6.8 on): which are mlocked."""

from contextlib import contextmanager

import pytest

from helpers import syscalls
from helpers.machine import block_devices
from helpers.memory import Region, huge_pages
from helpers.observe import folios, lock_accounting, lru_batches, maps, page_faults, pagemap, status
from helpers.processes import Child, cpus
from helpers.reclaim import drivers, range_state
from helpers.requirements.inconclusive import inconclusive
from helpers.syscalls import PAGE

S = huge_pages.default_mthp_pages()
"""Pages in a folio."""
COUNT = 4
N = COUNT * S

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("large-folios", "allow-sysctl", "kpageflags", f"lock:{N}", f"budget:{N}"),
    pytest.mark.source("mm/mlock.c allow_mlock_munlock", "transhuge.rst"),
    pytest.mark.exclusive,
]


@contextmanager
def region_of(reclaim, touch=True):
    """A range of four folios' size and alignment that gets such folios when touched."""
    cpus.pin_to_one_cpu()
    huge_pages.enable_thp()
    with (
        reclaim.setting(str(huge_pages.mthp_sizes()[S]), "madvise"),
        huge_pages.thp_aligned_mapping() as whole,
    ):
        # Cut to size: a huge page does not fit any more.
        syscalls.munmap(whole.addr + N * PAGE, whole.size - N * PAGE)
        region = Region(whole.addr, N * PAGE, "large")
        if touch:
            fill(region)
            need_large(region)
            lru_batches.mlock_drain_local()
        yield region


def fill(region):
    for page in range(region.pages):
        syscalls.store(region.at(page), page.to_bytes(4, "little"))


def numbers(region):
    return [int.from_bytes(syscalls.load(region.at(p), 4), "little") for p in range(region.pages)]


def need_large(region, pid="self"):
    if folios.sizes(region, pid) != {S: region.pages}:
        inconclusive(f"no folios of {S} pages: {folios.sizes(region, pid)}")


def marks(region, pid="self"):
    """A letter for each folio's length of the region: "M" if its pages' folio is mlocked, "-"
    if not, "?" if they differ."""
    lru_batches.mlock_drain_local()
    seen = folios.of(region, pid)
    assert all(f.tails_agree for f in seen), "tail pages show the mark of their head"
    letters = []
    for first in range(0, region.pages, S):
        found = {f.mlocked for f in seen[first : first + S]}
        letters.append("?" if len(found) > 1 else "M" if found == {True} else "-")
    return "".join(letters)


def present(region):
    assert pagemap.present_count(region.addr, region.pages) == region.pages, "all present"
    assert maps.locked_kb() == status.vmlck_kb(), "VmLck is the sum of the lo VMAs"


def test_touch_of_a_locked_range_locks_the_whole_folio(reclaim):
    """One touch of memory locked on fault brings in, and marks, one whole folio; the next ones
    are untouched."""
    with region_of(reclaim, touch=False) as region:
        syscalls.mlock2(region.addr, region.size, syscalls.MLOCK_ONFAULT)
        syscalls.store(region.at(S + 1), b"x")
        second = region.sub(S, S)
        need_large(second)
        expected = [S <= page < 2 * S for page in range(N)]
        assert pagemap.present(region.addr, N) == expected, "one folio is present"
        assert marks(second) == "M", "and mlocked"
        assert maps.rollup_kb() == second.kb, "Locked"
        assert status.vmlck_pages() == N, "VmLck"


def test_lock_populates_with_folios_that_are_marked(reclaim):
    """mlock of an empty range brings folios in that are mlocked; munlock unmarks each."""
    with region_of(reclaim, touch=False) as region:
        syscalls.mlock(region.addr, region.size)
        present(region)
        need_large(region)
        assert marks(region) == "M" * COUNT, "mlocked"
        syscalls.munlock(region.addr, region.size)
        assert marks(region) == "-" * COUNT, "unlocked"


# First page and length of the lock, in folios' quarters; the folios that lie in it.
QUARTER = S // 4
SPANS = [
    pytest.param(0, 16, "MMMM", id="all"),
    pytest.param(4, 8, "-MM-", id="whole-ones"),
    pytest.param(2, 8, "-M--", id="from-inside-to-inside"),
    pytest.param(4, 5, "-M--", id="to-inside-the-next"),
    pytest.param(3, 5, "-M--", id="from-inside-the-last"),
    pytest.param(5, 2, "----", id="inside-one"),
    pytest.param(3, 2, "----", id="across-an-edge"),
]


@pytest.mark.parametrize(("first", "count", "expected"), SPANS)
def test_lock_marks_the_folios_that_lie_in_it_as_a_whole(first, count, expected, reclaim):
    """A lock of present folios marks those that lie in it as a whole and none that it cuts;
    every page of it is counted and stays; its munlock unmarks them all."""
    with region_of(reclaim) as region:
        part = region.sub(first * QUARTER, count * QUARTER)
        syscalls.mlock(part.addr, part.size)
        assert marks(region) == expected, "folios"
        assert status.vmlck_pages() == part.pages, "VmLck"
        assert lock_accounting.page_letters(part) == lock_accounting.LOCKED * part.pages, "lo"
        assert page_faults.faults_writing(part.addr, part.size).minor == 0, "no page faults"
        present(region)
        syscalls.munlock(part.addr, part.size)
        assert marks(region) == "----", "unlocked"


@pytest.mark.parametrize(
    ("first", "count", "expected"),
    [
        pytest.param(0, 1, "-MMM", id="head-of-the-first"),
        pytest.param(15, 1, "MMM-", id="tail-of-the-last"),
        pytest.param(7, 2, "M--M", id="across-an-edge"),
        pytest.param(4, 4, "M-MM", id="one-folio"),
    ],
)
def test_unlock_of_a_part_unmarks_the_folios_it_touches(first, count, expected, reclaim):
    """munlock of a part unmarks the folios of which it takes a page, and no other; locked again
    as a whole they count as before."""
    with region_of(reclaim) as region:
        syscalls.mlock(region.addr, region.size)
        part = region.sub(first * QUARTER, count * QUARTER)
        syscalls.munlock(part.addr, part.size)
        assert marks(region) == expected, "folios"
        assert status.vmlck_pages() == N - part.pages, "VmLck"
        present(region)
        syscalls.munlock(region.addr, region.size)
        assert marks(region) == "----", "all unlocked"
        syscalls.mlock(region.addr, region.size)
        assert marks(region) == "MMMM", "locked as a whole: marked"
        assert status.vmlck_pages() == N, "VmLck"


@pytest.mark.parametrize("half", ["first", "second"])
def test_split_marks_exactly_the_locked_pages(half, reclaim):
    """A folio that is locked in part and split (MADV_COLD of the rest) leaves each locked page
    mlocked, and no other."""
    with region_of(reclaim) as region:
        folio = region.sub(S, S)
        pages = S // 2
        locked = folio.sub(0 if half == "first" else pages, pages)
        loose = folio.sub(pages if half == "first" else 0, pages)
        syscalls.mlock(locked.addr, locked.size)
        lru_batches.mlock_drain_local()
        syscalls.madvise(loose.addr, loose.size, syscalls.MADV_COLD)
        lru_batches.mlock_drain_local()
        if folios.sizes(folio) != {1: S}:
            inconclusive(f"the folio was not split: {folios.sizes(folio)}")
        assert folios.mlocked(locked) == [True] * pages, "locked: mlocked"
        assert folios.mlocked(loose) == [False] * pages, "not locked: not"
        assert numbers(region) == list(range(N)), "contents"
        syscalls.munlock(region.addr, region.size)
        lru_batches.mlock_drain_local()
        assert not any(folios.mlocked(region)), "unlocked: none"


def test_copy_of_a_page_of_a_locked_folio_is_marked(reclaim):
    """After fork the parent's write into a locked folio gives it a mlocked copy; the child's
    exit leaves every page present and locked."""
    with region_of(reclaim) as region:
        syscalls.mlock(region.addr, region.size)
        with Child() as child:
            syscalls.store(region.at(S + 3), b"mine")
            lru_batches.mlock_drain_local()
            [copy] = folios.of(Region(region.at(S + 3), PAGE))
            assert copy.marks == "MU", "the copy is mlocked"
            child.call(syscalls.store, region.at(3), b"hers")
            child.call(lru_batches.mlock_drain_local)
            [hers] = folios.of(Region(region.at(3), PAGE), child.pid)
            assert not hers.mlocked, "the child's is not"
            present(region)
        present(region)
        assert status.vmlck_pages() == N, "VmLck"
        syscalls.munlock(region.addr, region.size)
        lru_batches.mlock_drain_local()
        assert not any(folios.mlocked(region)), "unlocked: none"


def test_two_lockers_of_a_folio(reclaim):
    """A folio locked by two processes stays mlocked until the last of them unlocks."""
    with region_of(reclaim) as region:
        syscalls.mprotect(region.addr, region.size, syscalls.PROT_READ)
        syscalls.mlock(region.addr, region.size)
        with Child() as child:
            child.call(syscalls.mlock, region.addr, region.size)
            child.call(lru_batches.mlock_drain_local)
            syscalls.munlock(region.addr, region.size)
            assert marks(region) == "MMMM", "the child holds them"
            syscalls.mlock(region.addr, region.size)
            child.call(syscalls.munlock, region.addr, region.size)
            child.call(lru_batches.mlock_drain_local)
            assert marks(region) == "MMMM", "the parent does"
            syscalls.munlock(region.addr, region.size)
            assert marks(region) == "----", "nobody"


def build(region):
    huge_pages.enable_thp()
    fill(region)


@pytest.mark.needs("cgroup", "swap")
@pytest.mark.claim("W1", "W17")
def test_reclaim_takes_the_unlocked_part_of_a_folio(reclaim):
    """Under pressure folios that are locked in part are split: the unlocked pages go, the locked
    stay, each mlocked; where a swap area takes folios whole, none goes from behind the lock."""
    with region_of(reclaim, touch=False) as region, reclaim.cgroup() as group, Child() as child:
        group.add(child.pid)
        child.call(build, region)
        need_large(region, child.pid)
        held = region.sub(S // 2, 2 * S)
        before, behind = region.sub(0, S // 2), region.sub(2 * S + S // 2, S - S // 2)
        child.call(syscalls.mlock, held.addr, held.size)
        child.call(lru_batches.mlock_drain_local)
        drivers.reclaim_until_evicted(group.reclaim, child.pid, region.sub(3 * S, S))
        drivers.until_met(group.reclaim, child.pid, held)
        child.call(lru_batches.mlock_drain_local)
        assert pagemap.present_count(held.addr, held.pages, child.pid) == held.pages, "stay"
        found = folios.of(held, child.pid)
        crossing = folios.crossing(found)
        assert [folio.mlocked for folio in found] == [not c for c in crossing], "mlocked if split"
        # As huge pages are (test_kind_thp.py): unmapped up to the lock and no further.
        whole = [folio for folio, crosses in zip(found, crossing) if crosses]
        assert not whole or block_devices.takes_large_folios(), "no area takes large folios: split"
        assert all(folio.swap_cached for folio in whole), "not split: they have their slots"
        assert child.call(numbers, held) == list(range(S // 2, S // 2 + 2 * S)), "contents"
        assert range_state.absent_pages(before, child.pid) >= before.pages - 1, (
            "before the lock: they go"
        )
        if crossing[-1]:
            assert range_state.absent_pages(behind, child.pid) == 0, (
                "behind it in a whole folio: they stay"
            )
            child.call(syscalls.munlock, held.addr, held.size)
        assert drivers.reclaim_evicts(group.reclaim, child.pid, behind), (
            "without the lock in the way: they go"
        )
