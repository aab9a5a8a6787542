# SPDX-License-Identifier: MIT
"""What is told of a lock call while it is under way: it waits at each page for a userfaultfd."""

import threading

import pytest

from helpers import syscalls
from helpers.memory import locks, mapping
from helpers.observe import maps, residency, status
from helpers.syscalls import PAGE, PAGE_KB, userfaultfd

N = 6

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("userfaultfd", f"lock:{N}", "smaps-flags"),
    pytest.mark.source("mlock(2)", "mm/mlock.c do_mlock", "userfaultfd(2)"),
]


def told(region, before):
    """VmLck since before; lo, Rss and Locked, in pages; and which pages are there."""
    inside = maps.smaps(low=region.addr, high=region.end)
    counts = [sum(v.field_kb(name) for v in inside) // PAGE_KB for name in ("Rss", "Locked")]
    lo = sum(v.kb for v in inside if v.locked) // PAGE_KB
    rollup = (maps.rollup_kb() - before["rollup"]) // PAGE_KB
    return {
        "VmLck": status.vmlck_pages() - before["VmLck"], "lo": lo, "Rss": counts[0],
        "Locked": counts[1], "rollup": rollup, **residency.of(region),
    }  # fmt: skip


def expect(filled, locked=N):
    there = "1" * filled + "0" * (N - filled)
    return {
        "VmLck": locked, "lo": locked, "Rss": filled, "Locked": filled if locked else 0,
        "rollup": filled if locked else 0, "pagemap": there, "mincore": there,
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["private", "shared", "memfd-private", "memfd-shared"])
@pytest.mark.parametrize("method", ["mlock", "mlock2", "on fault, then mlock"])
@pytest.mark.detects("vmlck-counts-resident", "mincore-all-resident", "smaps-locked-one-short")
def test_lock_under_way_is_counted_whole_and_filled_page_by_page(kind, method):
    """While a lock call waits for page n, the range is lo and in VmLck as a whole, and n pages are
    in Rss, Locked, pagemap and mincore; all of them when it returns, and after munlock as many
    in Rss and none in Locked."""
    answers = []
    with mapping(kind, N) as region, mapping("private", 1) as source:
        source.touch()
        before = {"VmLck": status.vmlck_pages(), "rollup": maps.rollup_kb()}
        if method.startswith("on fault"):
            locks.mlock_onfault(region)
        call = locks.CALLS["mlock2" if method == "mlock2" else "mlock"]
        locker = threading.Thread(
            target=lambda: answers.append(
                syscalls.outcome(locks.issue, syscalls.RAW, call, region.addr, region.size)
            )
        )
        try:
            with userfaultfd.open_fd() as fd:  # once it is closed no fault waits any more
                userfaultfd.register(fd, region)
                locker.start()
                for page in range(N):
                    assert userfaultfd.wait_fault(fd) == region.at(page), "in order"
                    assert told(region, before) == expect(page), f"waiting for page {page}"
                    userfaultfd.copy(fd, region.at(page), source.addr, PAGE)
        finally:
            locker.join()
        assert answers == ["ok"], "the call returns"
        assert told(region, before) == expect(N), "locked"
        syscalls.munlock(region.addr, region.size)
        assert told(region, before) == expect(N, 0), "unlocked"
