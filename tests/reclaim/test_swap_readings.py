# SPDX-License-Identifier: MIT
"""What is told of pages in swap: VmSwap, Swap and SwapPss of smaps, smaps_rollup, pagemap."""

import pytest

from helpers.memory import every_kind
from helpers.observe import maps, pagemap, status
from helpers.processes.stub_memory import fill, settle, stub_with
from helpers.reclaim import drivers
from helpers.requirements.inconclusive import inconclusive
from helpers.syscalls import PAGE, PAGE_KB

PAGES = 256

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("cgroup", "swap", "stub-process", "smaps-flags"),
    pytest.mark.needs(f"lock:{PAGES}", f"budget:{2 * PAGES}"),
    pytest.mark.source("proc_pid_status(5) VmSwap", "proc_pid_smaps(5) Swap"),
    pytest.mark.usefixtures("one_cpu"),
]


def told(stub, region):
    """In pages: what smaps has of the region, what smaps_rollup and status of the process."""
    settle(stub)
    inside, others = [], []
    for vma in maps.smaps(stub.pid):
        (inside if region.addr <= vma.start < region.end else others).append(vma)
    seen = {
        name: sum(v.field_kb(name) for v in inside) // PAGE_KB
        for name in ("Rss", "Swap", "SwapPss", "Locked")
    }
    for name in ("Swap", "SwapPss"):
        seen[f"rollup {name}"] = (
            maps.rollup_kb(name, stub.pid) - sum(v.field_kb(name) for v in others)
        ) // PAGE_KB
    elsewhere = sum(v.field_kb("Swap") for v in others if v.perms[3] == "p")
    seen["VmSwap"] = (status.kb("VmSwap", stub.pid) - elsewhere) // PAGE_KB
    seen["pagemap"] = pagemap.swapped_count(region.addr, region.pages, stub.pid)
    return seen


def expect(kind, rss, swap, locked=0):
    """All of it where the kind's pages have slots in page tables; of shared memory smaps alone
    asks the file, and counts no part in SwapPss where several may share it."""
    own = swap if kind.anonymous else 0
    return {
        "Rss": rss, "Swap": swap, "SwapPss": own, "Locked": locked, "rollup Swap": swap,
        "rollup SwapPss": own, "VmSwap": own, "pagemap": own,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["private", "memfd-private", "shared", "memfd-shared", "sysv"])
@pytest.mark.detects("smaps-swap-of-shared-zero", "vmswap-always-zero", "rollup-swap-zero")
def test_every_reading_tells_which_pages_are_in_swap(reclaim, name):
    """Of memory that reclaim took, each page is in Rss or in Swap; VmSwap, SwapPss and pagemap
    know of private pages, smaps of shared ones too; of a locked twin all is Rss and nothing
    Swap; a lock, or a touch, of what is in swap makes it so again."""
    kind = every_kind.KINDS[name]
    with (
        reclaim.cgroup() as group,
        stub_with(kind, PAGES) as (stub, region),
        stub_with(kind, PAGES) as (other, locked),
    ):
        for process, part in ((stub, region), (other, locked)):
            group.add(process.pid)
            fill(process, part.addr, part.size)
        other.call("mlock", locked.addr, locked.size)
        charged = group.current()
        drivers.reclaim_until_evicted(group.reclaim, stub.pid, region)
        gone = (charged - group.current()) // PAGE
        if gone < PAGES * 3 // 4:
            inconclusive(f"{gone} pages have left memory: those unmapped are not in swap yet")
        assert told(other, locked) == expect(kind, PAGES, 0, PAGES), "the locked twin"
        seen = told(stub, region)
        assert seen["Swap"] >= PAGES // 2, "Swap in smaps"
        rss = pagemap.present_count(region.addr, PAGES, stub.pid)
        in_swap = PAGES - rss if kind.anonymous else seen["Swap"]  # some may be cached, unmapped
        assert seen == expect(kind, rss, in_swap), "taken"
        half = region.sub(0, PAGES // 2)
        stub.call("mlock2", half.addr, half.size, 0)
        stub.call("munlock", half.addr, half.size)
        for n in range(PAGES // 2, PAGES):
            stub.store(region.at(n))
        assert told(stub, region) == expect(kind, PAGES, 0), "half of it locked, half touched"
