# SPDX-License-Identifier: MIT
"""status, statm, smaps_rollup and the sum of smaps tell the same of a process, whatever it locked.

The process is a stub, which does nothing between two readings.
"""

import os
from pathlib import Path

import pytest

from helpers import syscalls
from helpers.machine import kernel_version
from helpers.memory import every_kind
from helpers.observe import maps, status
from helpers.processes.stub_memory import settle, stub_with
from helpers.pytest_plugin.parametrize import by_memory_kind
from helpers.syscalls import PAGE, PAGE_KB

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("stub-process", "smaps-flags"),
    pytest.mark.usefixtures("one_cpu"),
    pytest.mark.source("proc_pid_status(5)", "proc_pid_smaps(5)", "fs/proc/task_mmu.c"),
]


def lag():
    """Pages that a counter of RSS in status may be wrong by: what a CPU keeps to itself, from 6.2
    on; nothing with 82241a83cd15, which 6.18 has and many older releases."""
    version = kernel_version.version()
    between = (6, 2, 0) <= version < (6, 18, 0)
    return 2 * max(32, 2 * (os.cpu_count() or 1)) if between else 0


SMALL = max(16, 4 * lag())
"""Pages of a kind whose pages are small: more than what a counter may lag behind."""
SUMMED = (
    "Rss", "Shared_Clean", "Shared_Dirty", "Private_Clean", "Private_Dirty", "Referenced",
    "Anonymous", "LazyFree", "AnonHugePages", "ShmemPmdMapped", "FilePmdMapped", "Shared_Hugetlb",
    "Private_Hugetlb", "Swap",
)  # fmt: skip
ROUNDED = ("Pss", "Pss_Dirty", "SwapPss", "Locked")
"""Kept in parts of a page, and cut to kB in each line."""
COLUMNS = {"anon": "RssAnon", "file": "RssFile", "shmem": "RssShmem", "hugetlb": "HugetlbPages"}


def rollup(pid):
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}


class Told(dict):
    """What the files tell of a process at rest, in kB, by name; having checked that they agree."""

    def __init__(self, stub):
        settle(stub)
        pid = stub.pid
        each, whole = maps.smaps(pid), rollup(pid)
        fields = {k: int(v.split()[0]) for k, v in status.fields(pid).items() if v.endswith(" kB")}
        size, resident, shared, *_ = map(int, Path(f"/proc/{pid}/statm").read_text().split())
        total = {name: sum(v.field_kb(name) for v in each) for name in SUMMED + ROUNDED}
        assert {n: whole[n] for n in SUMMED} == {n: total[n] for n in SUMMED}, "smaps_rollup"
        for name in ROUNDED:
            cut = whole.get(name, 0) - total[name]
            assert 0 <= cut <= len(each), f"{name} of smaps_rollup, less that of smaps"
        parts = [fields[name] for name in ("RssAnon", "RssFile", "RssShmem")]
        assert fields["VmRSS"] == sum(parts), "VmRSS is the sum of its parts"
        told = [fields[n] // PAGE_KB for n in ("VmSize", "VmRSS")]
        assert [size, resident] == told, "statm: size, resident"
        assert shared == (parts[1] + parts[2]) // PAGE_KB, "statm: shared"
        assert abs(fields["VmRSS"] - total["Rss"]) <= 3 * lag() * PAGE_KB, "VmRSS and Rss"
        assert fields["VmHWM"] >= fields["VmRSS"], "VmHWM"
        assert fields["VmLck"] == sum(v.kb for v in each if v.locked), "VmLck and the lo VMAs"
        huge = total["Shared_Hugetlb"] + total["Private_Hugetlb"]
        assert fields.get("HugetlbPages", 0) == huge, "HugetlbPages"
        super().__init__(total | fields)


def grown(before, after):
    """What has changed since, of what a lock or a touch may change."""
    names = (*COLUMNS.values(), "VmLck", "VmPin", "VmSwap", "Rss", "Locked", "AnonHugePages")
    return {name: after.get(name, 0) - before.get(name, 0) for name in names}


def agree(kind, seen, present, locked):
    """Compare what has changed with so many kB that are present and locked; exact where the
    kernel is."""
    marked = locked if kind.lock else 0
    wanted = dict.fromkeys(seen, 0)
    wanted["VmLck"] = marked
    wanted["Rss"] = present if kind.in_rss else 0
    wanted["Locked"] = min(marked, present)
    wanted["AnonHugePages"] = present if kind.id == "thp" else 0
    wanted[COLUMNS[kind.backing]] = present
    slack = lag() * PAGE_KB
    return {
        name: value
        for name, value in seen.items()
        if abs(value - wanted[name]) > (slack if name.startswith("Rss") and name != "Rss" else 0)
    }


def units_of(kind):
    return SMALL if kind.unit == PAGE else 2


LOCK = {"mlock": ("mlock",), "onfault": ("mlock2", syscalls.MLOCK_ONFAULT)}


@by_memory_kind(SMALL, but=("thp", "hugetlb", "secret"))
@pytest.mark.parametrize("method", LOCK)
@pytest.mark.detects("rollup-misses-locked", "rss-shmem-in-file", "rss-file-in-anon")
def test_every_file_tells_the_same_of_small_pages(kind, method):
    """Before a lock, with half of it touched, with all of it locked, unlocked and unmapped,
    status, statm, smaps_rollup and smaps agree, each kind in its own column."""
    follow(kind, method)


@by_memory_kind(2, only=("thp", "hugetlb"))
@pytest.mark.parametrize("method", LOCK)
@pytest.mark.detects("smaps-locked-of-huge-is-small")
def test_every_file_tells_the_same_of_huge_pages(kind, method):
    """The same of memory in huge pages: Locked counts each in full, hugetlb memory has columns
    of its own and is never locked."""
    follow(kind, method)


def follow(kind, method):
    units = units_of(kind)
    with stub_with(kind, units) as (stub, region):
        base = Told(stub)

        def now():
            return grown(base, Told(stub))

        half, all_kb = region.kb // 2, region.kb
        for n in range(units // 2):
            stub.store(region.addr + n * kind.unit)
        assert agree(kind, now(), half, 0) == {}, "half of it touched"
        name, *flags = LOCK[method]
        stub.call(name, region.addr, region.size, *flags)
        # On-fault locks populate what they do not mark (hugetlb, droppable).
        filled = all_kb if method == "mlock" or not kind.lock else half
        assert agree(kind, now(), filled, all_kb) == {}, "locked"
        for n in range(units):
            stub.store(region.addr + n * kind.unit)
        assert agree(kind, now(), all_kb, all_kb) == {}, "locked, and all of it touched"
        stub.call("munlock", region.addr, region.size // 2)
        assert agree(kind, now(), all_kb, half) == {}, "half of it unlocked"
        stub.call("munlock", region.addr, region.size)
        assert agree(kind, now(), all_kb, 0) == {}, "unlocked"
        if kind.id != "sysv":
            stub.call("munmap", region.addr, region.size)
            assert agree(kind, now(), 0, 0) == {}, "unmapped"


FILLED = tuple(k for k in every_kind.KINDS if k not in {"secret", "hugetlb", "droppable", "thp"})


@by_memory_kind(SMALL, only=FILLED)
@pytest.mark.detects("smaps-locked-one-short", "vmlck-counts-resident", "smaps-shared-not-locked")
def test_fill_of_an_onfault_lock_is_shown_page_by_page(kind):
    """While a range locked on fault fills, Rss and Locked grow by each page that is touched, in
    smaps and in smaps_rollup, and VmLck is the whole range all the time."""
    with stub_with(kind, 4) as (stub, region):
        before = Told(stub)
        stub.call("mlock2", region.addr, region.size, syscalls.MLOCK_ONFAULT)
        shown = []
        for page in (None, 2, 0, 3, 3, 1):
            if page is not None:
                stub.store(region.at(page))
            now = Told(stub)
            shown.append(tuple((now[n] - before[n]) // PAGE_KB for n in ("VmLck", "Rss", "Locked")))
    assert shown == [(4, n, n) for n in (0, 1, 2, 3, 3, 4)], "VmLck, Rss, Locked in pages"
