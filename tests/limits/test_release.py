# SPDX-License-Identifier: MIT
"""Quota given back, limits lowered below what is locked, and raised again."""

import pytest

from helpers import syscalls
from helpers.memory import mapping
from helpers.observe import maps, pagemap, status
from helpers.processes.rlimits import set_soft_memlock, soft_memlock_limit, unprivileged_with_limit
from helpers.syscalls import PAGE

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("limit:8"),
    pytest.mark.source("mlock(2) Limits and permissions"),
]

ANON = syscalls.MAP_PRIVATE | syscalls.MAP_ANONYMOUS | syscalls.MAP_FIXED


def munlock(region):
    syscalls.munlock(region.at(1), 2 * PAGE)


def munlock_unaligned(region):
    syscalls.munlock(region.at(2) - 1, 2)


def munlock_twice(region):
    syscalls.munlock(region.at(1), 2 * PAGE)
    syscalls.munlock(region.at(1), 2 * PAGE)


def munmap(region):
    syscalls.munmap(region.at(1), 2 * PAGE)


def munmap_tail(region):
    syscalls.munmap(region.at(4), 2 * PAGE)


def replaced(region):
    syscalls.mmap(region.at(1), 2 * PAGE, syscalls.PROT_RW, ANON)


def shrunk(region):
    syscalls.mremap(region.addr, 6 * PAGE, 4 * PAGE)


def covered(region):
    """An unlocked page pair is moved over two locked ones."""
    syscalls.mmap(region.at(6), 2 * PAGE, syscalls.PROT_RW, ANON)
    how = syscalls.MREMAP_MAYMOVE | syscalls.MREMAP_FIXED
    syscalls.mremap(region.at(6), 2 * PAGE, 2 * PAGE, how, region.at(2))


WAYS = (
    munlock, munlock_unaligned, munlock_twice, munmap, munmap_tail, replaced, shrunk, covered,
)  # fmt: skip


@pytest.mark.parametrize("release", WAYS, ids=lambda way: way.__name__)
def test_released_pages_can_be_locked_again_exactly(release):
    """Each way of taking two of six locked pages away gives the limit two pages back,
    exactly.
    """
    with mapping(pages=8) as region, mapping(pages=4) as other, unprivileged_with_limit(6 * PAGE):
        syscalls.mlock(region.addr, 6 * PAGE)
        full = syscalls.outcome(syscalls.mlock, other.addr, PAGE)
        release(region)
        over = syscalls.outcome(syscalls.mlock, other.addr, 3 * PAGE)
        equal = syscalls.outcome(syscalls.mlock, other.addr, 2 * PAGE)
        one_more = syscalls.outcome(syscalls.mlock, other.at(2), PAGE)
        assert full == "ENOMEM", "six of six pages are locked"
        assert over == "ENOMEM", "three pages where two are free"
        assert equal == "ok", "two pages where two are free"
        assert one_more == "ENOMEM", "six of six again"
        assert status.vmlck_pages() == 6, "six pages are counted"
        assert maps.locked_kb() == 6 * syscalls.PAGE_KB, "six pages are lo"


def test_munlockall_gives_the_whole_limit_back():
    """After munlockall the whole limit is free again, to the page, many times over."""
    with mapping(pages=8) as region, unprivileged_with_limit(4 * PAGE):
        seen = []
        for _ in range(20):
            syscalls.mlock(region.addr, 2 * PAGE)
            syscalls.mlock2(region.at(4), 2 * PAGE, syscalls.MLOCK_ONFAULT)
            syscalls.munlockall()
            seen.append((
                syscalls.outcome(syscalls.mlock, region.addr, 5 * PAGE),
                syscalls.outcome(syscalls.mlock, region.addr, 4 * PAGE),
            ))  # fmt: skip
            syscalls.munlockall()
        assert seen == [("ENOMEM", "ok")] * 20, "four pages and no fifth, each time"


@pytest.mark.parametrize("onfault", [0, syscalls.MLOCK_ONFAULT], ids=["mlock", "onfault"])
def test_lowered_limit_leaves_locks_alone(onfault):
    """A limit lowered below what is locked, to 0 even, unlocks nothing and evicts nothing."""
    with mapping(pages=8) as region, unprivileged_with_limit(6 * PAGE):
        region.touch()
        syscalls.mlock2(region.addr, 5 * PAGE, onfault)
        shape = maps.layout(region)
        for limit in (2 * PAGE, 1, 0):
            set_soft_memlock(limit)
            assert status.vmlck_pages() == 5, f"limit {limit}: five pages are counted"
            assert maps.layout(region) == shape, f"limit {limit}: VMAs"
            assert pagemap.present_count(region.addr, 8) == 8, f"limit {limit}: present pages"


def test_lowered_limit_refuses_every_lock():
    """While more is locked than the limit allows, no call locks anything: not new memory, not
    what is locked already, not even no bytes.
    """
    with mapping(pages=8) as region, unprivileged_with_limit(6 * PAGE):
        syscalls.mlock(region.addr, 5 * PAGE)
        shape = maps.layout(region)
        set_soft_memlock(4 * PAGE)
        assert syscalls.outcome(syscalls.mlock, region.at(6), PAGE) == "ENOMEM", "new memory"
        assert syscalls.outcome(syscalls.mlock, region.addr, 5 * PAGE) == "ENOMEM", "all of its own"
        assert syscalls.outcome(syscalls.mlock, region.addr, PAGE) == "ENOMEM", "a page of its own"
        assert syscalls.outcome(syscalls.mlock, region.addr, 0) == "ENOMEM", "no bytes of its own"
        assert syscalls.outcome(syscalls.mlock, region.at(6), 0) == "ENOMEM", "no bytes of others"
        lazily = syscalls.outcome(syscalls.mlock2, region.addr, PAGE, syscalls.MLOCK_ONFAULT)
        assert lazily == "ENOMEM", "a page of its own, on fault"
        everything = syscalls.outcome(syscalls.mlockall, syscalls.MCL_CURRENT)
        assert everything == "ENOMEM", "mlockall(MCL_CURRENT)"
        fixed = syscalls.outcome(
            syscalls.mmap, region.at(6), PAGE, syscalls.PROT_RW, ANON | syscalls.MAP_LOCKED
        )
        assert fixed == "EAGAIN", "MAP_LOCKED"
        assert maps.layout(region) == shape, "VMAs as before"
        assert status.vmlck_pages() == 5, "VmLck as before"


def test_lowered_limit_equal_to_what_is_locked_allows_relocking():
    """With exactly the limit locked, its own range and no bytes can be locked, new memory not."""
    with mapping(pages=8) as region, unprivileged_with_limit(8 * PAGE):
        syscalls.mlock(region.addr, 5 * PAGE)
        set_soft_memlock(5 * PAGE)
        assert syscalls.outcome(syscalls.mlock, region.addr, 5 * PAGE) == "ok", "its own range"
        assert syscalls.outcome(syscalls.mlock, region.at(6), 0) == "ok", "no bytes"
        assert syscalls.outcome(syscalls.mlock, region.at(5), 1) == "ENOMEM", "one page more"


@pytest.mark.detects("limit-lowered-munlock-refused")
def test_munlock_works_above_a_lowered_limit():
    """munlock above a lowered limit works page by page; locking works again once the total
    fits, and not before.
    """
    with mapping(pages=8) as region, unprivileged_with_limit(6 * PAGE):
        syscalls.mlock(region.addr, 6 * PAGE)
        set_soft_memlock(3 * PAGE)
        seen = []
        for page in range(5):
            unlocked = syscalls.outcome(syscalls.munlock, region.at(page), PAGE)
            left = status.vmlck_pages()
            relock = syscalls.outcome(syscalls.mlock, region.at(5), PAGE)
            seen.append((unlocked, left, relock))
        fill = syscalls.outcome(syscalls.mlock, region.addr, 3 * PAGE)
        exactly = syscalls.outcome(syscalls.mlock, region.addr, 2 * PAGE)
        assert seen == [
            ("ok", 5, "ENOMEM"),
            ("ok", 4, "ENOMEM"),
            ("ok", 3, "ok"),
            ("ok", 2, "ok"),
            ("ok", 1, "ok"),
        ], "munlock, pages left, locking the last page again"
        assert fill == "ENOMEM", "1 + 3 pages under three"
        assert exactly == "ok", "1 + 2 pages under three"


@pytest.mark.parametrize("limit", [2 * PAGE, 0], ids=["2P", "0"])
def test_every_release_works_above_a_lowered_limit(limit):
    """munlockall, munmap, MAP_FIXED, mprotect and shrinking ask for no quota."""
    with mapping(pages=8) as region, unprivileged_with_limit(8 * PAGE):
        syscalls.mlock(region.addr, 7 * PAGE)
        set_soft_memlock(limit)
        counts = [status.vmlck_pages()]
        for act in (
            lambda: syscalls.mprotect(region.at(3), PAGE, syscalls.PROT_READ),
            lambda: syscalls.munmap(region.addr, PAGE),
            lambda: syscalls.mmap(region.at(1), PAGE, syscalls.PROT_RW, ANON),
            lambda: syscalls.mremap(region.at(4), 3 * PAGE, 2 * PAGE),
            syscalls.munlockall,
        ):
            act()
            counts.append(status.vmlck_pages())
        assert counts == [7, 7, 6, 5, 4, 0], (
            "VmLck after mprotect, munmap, MAP_FIXED, mremap, munlockall"
        )


def test_limit_raised_again_allows_at_once():
    """A soft limit raised back, up to the hard one, allows what was refused a moment ago."""
    with mapping(pages=8) as region, unprivileged_with_limit(4 * PAGE):
        syscalls.mlock(region.addr, 4 * PAGE)
        set_soft_memlock(2 * PAGE)
        low = syscalls.outcome(syscalls.mlock, region.at(4), PAGE)
        set_soft_memlock(0)
        none = syscalls.outcome(syscalls.mlock, region.at(4), PAGE)
        set_soft_memlock(5 * PAGE)
        raised = syscalls.outcome(syscalls.mlock, region.at(4), PAGE)
        over = syscalls.outcome(syscalls.mlock, region.at(5), PAGE)
        assert low == "ENOMEM", "limit of two pages, four locked"
        assert none == "EPERM", "limit 0"
        assert raised == "ok", "limit of five pages, four locked"
        assert over == "ENOMEM", "limit of five pages, five locked"


def test_refusals_use_nothing_up():
    """A hundred refused calls leave VmLck and the free part of the limit as they were."""
    with mapping(pages=8) as region, unprivileged_with_limit(4 * PAGE):
        syscalls.mlock(region.addr, 2 * PAGE)
        refused = set()
        for page in range(3, 6):
            for count in range(3, 8 - page + 1):
                where, size = region.at(page), count * PAGE
                for _ in range(8):
                    refused.add(syscalls.outcome(syscalls.mlock, where, size))
                    refused.add(
                        syscalls.outcome(syscalls.mlock2, where, size, syscalls.MLOCK_ONFAULT)
                    )
        mapped = set()
        for _ in range(20):
            how = ANON | syscalls.MAP_LOCKED
            mapped.add(
                syscalls.outcome(syscalls.mmap, region.at(4), 3 * PAGE, syscalls.PROT_RW, how)
            )
        counted = status.vmlck_pages()
        rest = syscalls.outcome(syscalls.mlock, region.at(4), 2 * PAGE)
        assert refused == {"ENOMEM"}, "three and more pages where two are free"
        assert mapped == {"EAGAIN"}, "MAP_LOCKED of three pages where two are free"
        assert counted == 2, "two pages are counted"
        assert rest == "ok", "two pages where two are free"


def lock_from_middle(region):
    syscalls.mlock(region.at(1), 6 * PAGE)


def lock_whole(region):
    syscalls.mlock(region.addr, region.size)


def lock_unaligned(region):
    syscalls.mlock(region.at(4) - 1, 2 * PAGE + 2)


def lock_onfault(region):
    syscalls.mlock2(region.at(1), 6 * PAGE, syscalls.MLOCK_ONFAULT)


def lock_replacing(region):
    syscalls.mmap(region.addr, region.size, syscalls.PROT_RW, ANON | syscalls.MAP_LOCKED)


def lock_replacing_shared(region):
    how = syscalls.MAP_SHARED | syscalls.MAP_ANONYMOUS | syscalls.MAP_FIXED | syscalls.MAP_LOCKED
    syscalls.mmap(region.at(4), 4 * PAGE, syscalls.PROT_RW, how)


def lock_growing(region):
    how = syscalls.MREMAP_MAYMOVE
    syscalls.mremap(region.at(2), 2 * PAGE, 5 * PAGE, how)


LOCKS = {
    lock_from_middle: "ENOMEM",
    lock_whole: "ENOMEM",
    lock_unaligned: "ENOMEM",
    lock_onfault: "ENOMEM",
    lock_replacing: "EAGAIN",
    lock_replacing_shared: "EAGAIN",
    lock_growing: "EAGAIN",
}


@pytest.mark.parametrize(
    ("lock", "refusal"), LOCKS.items(), ids=lambda v: getattr(v, "__name__", v)
)
@pytest.mark.source("POSIX mlock: on failure no lock is changed", "mlock-random-test.c")
@pytest.mark.detects("limit-mlock-partly-locks")
def test_refused_lock_changes_nothing(lock, refusal):
    """A lock refused for the limit leaves VmLck, VMAs, locks, present pages and contents as
    they were, in a range that is partly locked and partly present.
    """
    with mapping(pages=8) as region, unprivileged_with_limit(4 * PAGE):
        syscalls.mlock(region.at(2), 2 * PAGE)
        for page in (2, 3, 5):
            syscalls.store(region.at(page), bytes([page]))
        shape = maps.layout(region)
        present = pagemap.present(region.addr, 8)
        seen = syscalls.outcome(lock, region)
        counted = status.vmlck_pages()
        assert seen == refusal, "over the limit"
        assert counted == 2, "VmLck as before"
        assert maps.locked_kb() == 2 * syscalls.PAGE_KB, "lo VMAs as before"
        assert maps.layout(region) == shape, "VMAs as before"
        assert pagemap.present(region.addr, 8) == present, "present pages as before"
        assert region.first_bytes() == bytes([0, 0, 2, 3, 0, 5, 0, 0]), "contents as before"


def test_refused_map_locked_maps_nothing():
    """mmap(MAP_LOCKED) refused for the limit leaves a hole a hole."""
    with mapping(pages=8) as region, unprivileged_with_limit(4 * PAGE):
        syscalls.munmap(region.at(1), 6 * PAGE)
        how = ANON | syscalls.MAP_LOCKED
        seen = syscalls.outcome(syscalls.mmap, region.at(1), 5 * PAGE, syscalls.PROT_RW, how)
        assert seen == "EAGAIN", "five pages under a limit of four"
        assert maps.layout(region) == [
            (0, 1, ""),
            (7, 8, ""),
        ], "nothing is mapped"
        with soft_memlock_limit(5 * PAGE):
            again = syscalls.outcome(syscalls.mmap, region.at(1), 5 * PAGE, syscalls.PROT_RW, how)
        assert again == "ok", "five pages under a limit of five"
