# SPDX-License-Identifier: MIT
"""pagemap, PAGEMAP_SCAN, page flags, kpagecount and numa_maps of memory of every kind."""

import itertools
from contextlib import contextmanager
from pathlib import Path

import pytest

from helpers import syscalls
from helpers.machine import kernel_version
from helpers.memory import Region, every_kind, locks, mapping, mappings, sysv_segment
from helpers.observe import (
    lru_batches,
    maps,
    numa_maps,
    page_flags,
    pagemap,
    pagemap_scan,
    residency,
)
from helpers.processes import Child
from helpers.pytest_plugin.parametrize import by_memory_kind
from helpers.syscalls import PAGE, PAGE_KB, userfaultfd

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.source("Documentation/admin-guide/mm/pagemap.rst"),
]

UNITS = 6
ABSENT, OWN, ZERO, CACHE = "absent", "anonymous", "zero page", "file or shared"


def fill(region, kind):
    """Write unit 0, read unit 1, lock units 3 and 4 of which 3 was written: what each unit is.

    Unit 1 of a file is not read (the fault would map what is around it), nor of huge pages (which
    have a zero page of their own, or not).
    """
    written = OWN if kind.anonymous or kind.id == "hugetlb" else CACHE
    for unit in (0, 3):
        syscalls.memset(region.addr + unit * kind.unit, 0x5A, kind.unit)
    read = ABSENT
    if kind.unit == PAGE and not kind.id.startswith("file"):
        syscalls.load(region.at(1), 1)
        read = ZERO if kind.id in {"private", "droppable"} else CACHE
    middle = (region.addr + 3 * kind.unit, 2 * kind.unit)
    if kind.id == "secret":  # no lock brings its pages in
        syscalls.outcome(syscalls.mlock, *middle)
    else:
        syscalls.mlock(*middle)
    last = ABSENT if kind.id == "secret" else written
    return [written, read, ABSENT, written, last, ABSENT]


def runs(values):
    """Equal neighbours as one: (how many, value). A list of thousands takes minutes to show."""
    return [(len(list(same)), value) for value, same in itertools.groupby(values)]


def by_page(kind, units):
    """A value for each page from one for each unit."""
    return [value for value in units for _ in range(kind.unit // PAGE)]


BITS = {
    ABSENT: set(),
    OWN: {"present", "exclusive"},
    ZERO: {"present"},
    CACHE: {"present", "file", "exclusive"},
}
MASKS = {
    "present": pagemap.PRESENT,
    "swapped": pagemap.SWAPPED,
    "file": pagemap.FILE_OR_SHARED,
    "exclusive": pagemap.EXCLUSIVE,
    "uffd-wp": pagemap.WRITE_PROTECTED,
    "guard": pagemap.GUARD,
}


def bits(region, pid="self"):
    """The named bits of each page's pagemap entry, but for soft-dirty."""
    return [
        {name for name, mask in MASKS.items() if word & mask}
        for word in pagemap.entries(region.addr, region.pages, pid)
    ]


@by_memory_kind(2)
@pytest.mark.detects("pagemap-exclusive-missing", "pagemap-file-bit-missing")
def test_pagemap_bits_are_what_was_done_to_each_page(kind):
    """Each page of memory of any kind is present, file or shared, mapped exclusively, swapped or
    none of it in pagemap by what was done to it, the same while locked and unlocked; absent when
    it is given up, and nothing when it is unmapped."""
    with every_kind.mapping_of(kind, UNITS) as region:
        nothing = [(region.pages, set())]
        assert runs(bits(region)) == nothing, "untouched"
        wanted = runs(by_page(kind, [BITS[state] for state in fill(region, kind)]))
        assert runs(bits(region)) == wanted, "while locked"
        syscalls.munlock(region.addr, region.size)
        assert runs(bits(region)) == wanted, "unlocked"
        # hugetlb took no such advice before 5.18; secret memory takes none while it is lo.
        if kind.id not in {"hugetlb", "secret"}:
            syscalls.madvise(region.addr, region.size, syscalls.MADV_DONTNEED)
            assert runs(bits(region)) == nothing, "given up"
    assert not any(pagemap.entries(region.addr, region.pages)), "unmapped"


SCANNED = {
    ABSENT: 0,
    OWN: pagemap_scan.PRESENT,
    ZERO: pagemap_scan.PRESENT | pagemap_scan.PFNZERO,
    CACHE: pagemap_scan.PRESENT | pagemap_scan.FILE,
}
TOLD = (
    pagemap_scan.PRESENT | pagemap_scan.SWAPPED | pagemap_scan.FILE | pagemap_scan.PFNZERO
    | pagemap_scan.HUGE
)  # fmt: skip


@by_memory_kind(2)
@pytest.mark.needs("pagemap-scan")
@pytest.mark.detects("pagemap-scan-file-missing")
def test_scan_of_pagemap_says_the_same_of_each_page(kind):
    """PAGEMAP_SCAN puts each page into the categories that its pagemap bits say, in one range for
    equal neighbours, and finds by each category exactly the pages that have it."""
    huge = pagemap_scan.HUGE if kind.unit > PAGE else 0
    with every_kind.mapping_of(kind, UNITS) as region:
        states = by_page(kind, fill(region, kind))
        wanted = [SCANNED[s] | (huge if s != ABSENT else 0) for s in states]
        seen = runs(pagemap_scan.categories(region, TOLD))
        assert seen == runs(wanted), "categories, page by page"
        ranges = pagemap_scan.scan(region, any_of=pagemap_scan.PRESENT, told=TOLD)
        joints = [a == b[0] and c == b[2] for (_, a, c), b in itertools.pairwise(ranges)]
        assert not any(joints), "equal neighbours are one range"
        for category in (pagemap_scan.PRESENT, pagemap_scan.FILE, pagemap_scan.PFNZERO):
            found = pagemap_scan.scan(region, all_of=category, told=category)
            told = [False] * region.pages
            for first, last, _ in found:
                told[first:last] = [True] * (last - first)
            assert runs(told) == runs(bool(c & category) for c in wanted), f"by {category}"
        there = runs(bool(c & pagemap_scan.PRESENT) for c in wanted)
        assert runs(pagemap.present(region.addr, region.pages)) == there, "and pagemap agrees"


FLAGS = {
    "private": "ANON SWAPBACKED LRU MMAP",
    "memfd-private": "ANON SWAPBACKED LRU MMAP",
    "file-private": "ANON SWAPBACKED LRU MMAP",
    "thp": "ANON SWAPBACKED LRU MMAP THP COMPOUND_HEAD",
    "droppable": "ANON LRU MMAP",
    "shared": "SWAPBACKED LRU MMAP",
    "memfd-shared": "SWAPBACKED LRU MMAP",
    "sysv": "SWAPBACKED LRU MMAP",
    "file-shared": "LRU MMAP",
    "secret": "LRU MMAP UNEVICTABLE",
    "hugetlb": "ANON MMAP HUGE COMPOUND_HEAD",
}
"""What a written page of the kind is; of a huge page its first."""
JUDGED = (
    "ANON", "SWAPBACKED", "LRU", "MMAP", "MLOCKED", "UNEVICTABLE", "THP", "HUGE", "COMPOUND_HEAD",
    "COMPOUND_TAIL", "SLAB", "BUDDY", "NOPAGE", "HWPOISON", "ZERO_PAGE", "SWAPCACHE", "OFFLINE",
)  # fmt: skip


def flags(region, kind):
    """The flags among :data:`JUDGED` of the first page of each unit, batches drained.

    Whether a page of secret memory is mlocked too depends on the kernel (lo, and from 5.18 on).
    """
    judged = [n for n in JUDGED if not (n == "MLOCKED" and kind.id == "secret")]
    lru_batches.mlock_drain_local()
    words = page_flags.snapshot(region.addr, region.pages).flags
    return [
        {name for name in judged if word >> page_flags.KPF[name] & 1}
        for word in words[:: kind.unit // PAGE]
    ]


@by_memory_kind(2)
@pytest.mark.needs("kpageflags", "kpagecount")
@pytest.mark.usefixtures("one_cpu")
def test_page_flags_are_the_kinds_and_the_locks(kind):
    """A written page has the flags of its kind in kpageflags, mlocked and unevictable in
    addition exactly where and while it is locked, and kpagecount counts its one mapping."""
    with every_kind.mapping_of(kind, UNITS) as region:
        states = fill(region, kind)
        own = set(FLAGS[kind.id].split())
        marked = {"MLOCKED", "UNEVICTABLE"} if kind.lock and kind.id != "secret" else set()
        seen = flags(region, kind)
        for unit in (0, 3, 4):
            locked = marked if unit >= 3 else set()
            wanted = own | locked if states[unit] != ABSENT else set()
            assert seen[unit] == wanted, f"unit {unit}, locked"
        numbers = pagemap.pfns(region.addr, region.pages)[:: kind.unit // PAGE]
        counts = [c for c, s in zip(page_flags.kpagecount(numbers), states) if s in {OWN, CACHE}]
        assert counts == [1] * len(counts), "each is mapped once"
        syscalls.munlock(region.addr, region.size)
        seen = flags(region, kind)
        assert (seen[0], seen[3]) == (own, own), "unlocked"


@by_memory_kind(2)
@pytest.mark.needs("numa-maps")
@pytest.mark.source("numa(7)")
@pytest.mark.detects("numa-maps-page-left-out")
def test_numa_maps_counts_the_pages_of_each_vma(kind):
    """numa_maps has a line for each VMA that a lock makes, whose nodes add up to the pages that
    are there (the zero page is none), anonymous or not as they are."""
    with every_kind.mapping_of(kind, UNITS) as region:
        states = fill(region, kind)
        marked = bool(kind.lock) and kind.id != "secret"
        edges = [0, 3, 5, UNITS] if marked else [0, UNITS]
        each = 1 if kind.id == "hugetlb" else kind.unit // PAGE
        seen = numa_maps.lines(region)
        assert [line.start for line in seen] == [region.addr + e * kind.unit for e in edges[:-1]]
        for line, first, last in zip(seen, edges, edges[1:]):
            part = states[first:last]
            there = each * sum(s in {OWN, CACHE} for s in part)
            assert line.pages == there, f"pages of units {first} to {last}"
            assert line.counts.get("anon", 0) == each * part.count(OWN), "anonymous ones"
            assert "mapmax" not in line.counts, "none is mapped twice"
            size = kind.unit // 1024 if kind.id == "hugetlb" else PAGE_KB
            assert not there or line.counts["kernelpagesize_kB"] == size, "page size"
            assert ("huge" in line.words) == (kind.id == "hugetlb"), "huge"


@contextmanager
def mapped_again(region, kind):
    """The object of the region mapped a second time, or the region in a forked child: who has it
    mapped there."""
    if kind.id in {"private", "shared"}:
        with Child() as child:
            child.call(syscalls.load, region.addr, region.size)
            yield region, child.pid
    elif kind.id == "sysv":
        number = maps.at(region.addr).inode
        other = sysv_segment.attach(number, region.pages)
        syscalls.load(other.region.addr, other.region.size)
        yield other.region, "self"
        sysv_segment.detach(other)
    else:
        size = region.size + 2 * PAGE
        base = mappings.reserve(size)
        how = syscalls.MAP_SHARED | syscalls.MAP_FIXED
        addr = syscalls.mmap(base + PAGE, region.size, syscalls.PROT_RW, how, region.fd)
        syscalls.load(addr, region.size)
        yield Region(addr, region.size, region.kind, region.fd), "self"
        syscalls.munmap(base, size)


@by_memory_kind(4, only=("private", "shared", "memfd-shared", "file-shared", "sysv", "secret"))
@pytest.mark.needs("kpagecount", "smaps-flags")
@pytest.mark.source("proc_pid_smaps(5) Pss, Locked")
def test_pages_mapped_twice_are_counted_by_halves(kind):
    """Pages mapped twice are not exclusive in pagemap, kpagecount says 2, and Pss and Locked in
    smaps are half of Rss in the mapping that is locked, Locked 0 in the other; alone again they
    are as before."""
    alone = {"present", "exclusive"} | (set() if kind.anonymous else {"file"})
    with every_kind.mapping_of(kind, 4) as region:
        region.write()
        born_locked = maps.at(region.addr).locked
        if kind.id != "secret":
            syscalls.mlock(region.addr, region.size)
        locked = maps.at(region.addr).locked
        with mapped_again(region, kind) as (other, pid):
            for here, whose, lo in ((region, "self", locked), (other, pid, born_locked)):
                assert bits(here, whose) == [alone - {"exclusive"}] * 4, f"pagemap of {whose}"
                (vma,) = maps.smaps(whose, here.addr, here.end)
                half = region.kb // 2
                assert vma.locked == lo, "lo"
                assert numbers(vma) == (region.kb, half, half if lo else 0), (
                    f"Rss, Pss, Locked of {whose}"
                )
            pfns = pagemap.pfns(region.addr, 4)
            assert list(page_flags.kpagecount(pfns)) == [2] * 4, "kpagecount"
        assert bits(region) == [alone] * 4, "alone again"
        assert numbers(maps.at(region.addr)) == (region.kb, region.kb, region.kb if locked else 0)
        assert list(page_flags.kpagecount(pagemap.pfns(region.addr, 4))) == [1] * 4, "kpagecount"


def numbers(vma):
    return tuple(vma.field_kb(name) for name in ("Rss", "Pss", "Locked"))


@pytest.mark.needs("uffd-protect", "lock:6")
@pytest.mark.parametrize("lock", ["unlocked", "mlock", "onfault"])
def test_write_protection_is_shown_page_by_page(lock):
    """Pages that userfaultfd protects from writes are so marked in pagemap (5.14), and are the
    only ones not WRITTEN in PAGEMAP_SCAN (6.7), in locked memory too, until they are released."""
    if kernel_version.version() < (5, 14, 0):
        pytest.skip("needs 5.14: pagemap does not show write protection before fb8e37f35a2f")
    with mapping("private", UNITS) as region, userfaultfd.open_fd() as fd:
        region.touch()
        if lock != "unlocked":
            locks.apply(region, lock)
        userfaultfd.register(fd, region, userfaultfd.WP)
        userfaultfd.writeprotect(fd, region.at(2), 3 * PAGE, True)
        assert protected(region) == "001110", "three pages are protected"
        userfaultfd.writeprotect(fd, region.at(3), PAGE, False)
        assert protected(region) == "001010", "one is released"
        userfaultfd.unregister(fd, region)
        assert [b - {"exclusive"} for b in bits(region)] == [{"present"}] * UNITS, "all are"


def protected(region):
    """Pages protected from writes: by pagemap, and by PAGEMAP_SCAN where it is there."""
    seen = residency.bits("uffd-wp" in b for b in bits(region))
    try:
        told = pagemap_scan.categories(region, pagemap_scan.PRESENT | pagemap_scan.WRITTEN)
    except OSError:
        return seen  # before 6.7
    scanned = residency.bits(not c & pagemap_scan.WRITTEN for c in told)
    return seen if scanned == seen else f"pagemap {seen}, PAGEMAP_SCAN {scanned}"


@pytest.mark.needs("guard", "lock:6")
@pytest.mark.source("madvise(2) MADV_GUARD_INSTALL")
@pytest.mark.parametrize("lock", ["unlocked", "onfault"])
def test_guarded_pages_are_shown_and_not_present(lock):
    """Guarded pages are neither present nor exclusive in pagemap and absent to mincore, guards by
    pagemap's own bit (6.15), and no part of Rss, Swap or Locked; and so in locked memory."""
    with mapping("private", UNITS) as region:
        region.touch()
        syscalls.madvise(region.at(2), 2 * PAGE, syscalls.MADV_GUARD_INSTALL)
        if lock != "unlocked":
            locks.apply(region, lock)
        seen = [b & {"present", "exclusive", "guard", "file"} for b in bits(region)]
        shown = {"guard"} if kernel_version.version() >= (6, 15, 0) else set()
        there = {"present", "exclusive"}
        assert seen == [there, there, shown, shown, there, there], "pagemap"
        assert residency.mincore_bits(region) == "110011", "mincore"
        vma = maps.at(region.addr)
        kb = 4 * PAGE_KB
        assert numbers(vma) == (kb, kb, kb if lock == "onfault" else 0), "Rss, Pss, Locked"
        assert vma.field_kb("Swap") == 0, "a guard is no swap entry"


@pytest.mark.needs("soft-dirty", "lock:6")
@pytest.mark.source("Documentation/admin-guide/mm/soft-dirty.rst")
@pytest.mark.parametrize("lock", ["unlocked", "mlock", "onfault"])
def test_soft_dirty_pages_are_those_written(lock):
    """After clear_refs exactly the pages written since are soft-dirty in pagemap, and in
    PAGEMAP_SCAN (6.7), in locked memory as in other."""
    with mapping("private", UNITS) as region:
        region.touch()
        if lock != "unlocked":
            locks.apply(region, lock)
        Path("/proc/self/clear_refs").write_text("4")
        region.sub(1, 2).touch()
        region.sub(5, 1).touch()
        words = pagemap.entries(region.addr, UNITS)
        assert residency.bits(w & pagemap.SOFT_DIRTY for w in words) == "011001", "pagemap"
        try:
            told = pagemap_scan.categories(region, pagemap_scan.SOFT_DIRTY)
        except OSError:
            return  # before 6.7
        assert residency.bits(told) == "011001", "PAGEMAP_SCAN"
