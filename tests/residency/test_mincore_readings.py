# SPDX-License-Identifier: MIT
"""mincore of each kind of page that is not there, and for each way to own a file."""

import os
from pathlib import Path

import pytest

from helpers import memory, processes, syscalls
from helpers.memory import every_kind, locks, mapping
from helpers.observe import maps, mincore, pagemap, residency
from helpers.processes import credentials
from helpers.pytest_plugin.parametrize import by_memory_kind
from helpers.syscalls import PAGE, userfaultfd

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("mincore", "lock:8"),
    pytest.mark.source("mincore(2)", "mm/mincore.c"),
]

PAGES = 8
NONE, ALL = "0" * PAGES, "1" * PAGES
FILES = ("memfd-private", "memfd-shared", "file-private", "file-shared")


def by_unit(region, kind):
    """A letter for each of the kind's own pages; "?" where mincore calls part of one absent."""
    told = mincore.resident(region.addr, region.pages)
    size = kind.unit // PAGE
    parts = [set(told[n : n + size]) for n in range(0, region.pages, size)]
    return "".join("?" if len(part) > 1 else "01"[True in part] for part in parts)


@by_memory_kind(4, but=("file-private", "file-shared"))
def test_untouched_pages_are_absent_until_they_are_brought_in(kind):
    """Pages of any kind that nobody touched are absent to mincore, each is resident once it was
    written, in all its parts, and those of a lock once the lock has brought them in."""
    with every_kind.mapping_of(kind, 4) as region:
        assert by_unit(region, kind) == "0000", "untouched"
        syscalls.memset(region.addr + kind.unit, 1, kind.unit)
        assert by_unit(region, kind) == "0100", "unit 1 is written"
        part = (region.addr + 2 * kind.unit, 2 * kind.unit)
        if kind.id == "secret":
            syscalls.outcome(syscalls.mlock, *part)
            assert by_unit(region, kind) == "0100", "secret memory is not populated"
        else:
            syscalls.mlock(*part)
            assert by_unit(region, kind) == "0111", "units 2 and 3 are locked"
        syscalls.munlock(region.addr, region.size)
        assert by_unit(region, kind)[:2] == "01", "unlocked"


def dropped(region):
    """MADV_DONTNEED of pages 2 to 4."""
    syscalls.madvise(region.at(2), 3 * PAGE, syscalls.MADV_DONTNEED)


def removed(region):
    """MADV_REMOVE of the same: a hole in the file."""
    syscalls.madvise(region.at(2), 3 * PAGE, syscalls.MADV_REMOVE)


def punched(region):
    syscalls.punch_hole(region.fd, 2 * PAGE, 3 * PAGE)


def cut(region):
    """The file is cut off behind page 1; what lies behind is past its end."""
    os.ftruncate(region.fd, 2 * PAGE)


def cut_and_grown(region):
    cut(region)
    os.ftruncate(region.fd, PAGES * PAGE)


ACTS = [
    ("private", dropped, "11000111"),
    ("shared", dropped, ALL),
    ("memfd-shared", dropped, ALL),
    ("memfd-private", dropped, ALL),
    ("file-shared", dropped, ALL),
    ("file-private", dropped, ALL),
    ("shared", removed, "11000111"),
    ("memfd-shared", removed, "11000111"),
    ("memfd-shared", punched, "11000111"),
    ("file-shared", punched, "11000111"),
    ("memfd-shared", cut, "11000000"),
    ("memfd-private", cut, "11000000"),
    ("file-shared", cut, "11000000"),
    ("memfd-shared", cut_and_grown, "11000000"),
    ("file-shared", cut_and_grown, "11000000"),
]


@pytest.mark.parametrize(
    ("kind", "act", "resident", "lock"),
    [
        pytest.param(
            kind, act, resident, lock,
            id=f"{kind}-{act.__name__}-{lock}",
            marks=pytest.mark.needs("disk-file") if kind.startswith("file") else (),
        )
        for kind, act, resident in ACTS
        for lock in ("unlocked", "locked")
        if lock == "unlocked" or act not in {dropped, removed}  # locked memory takes no such advice
    ],
)  # fmt: skip
@pytest.mark.detects("mincore-hole-resident", "mincore-only-mapped")
def test_pages_that_were_given_up_are_absent_where_nothing_holds_them(kind, act, resident, lock):
    """A page that was dropped is absent unless its file has it cached; one that was cut out of its
    file, or lies past its end, is absent; and a lock on the range makes neither resident."""
    with mapping(kind, PAGES) as region:
        if kind.startswith("file"):
            region.first_bytes()
        else:
            region.touch()
        if lock == "locked":
            locks.mlock(region)
        act(region)
        assert residency.mincore_bits(region) == resident, "mincore"
        there = pagemap.present(region.addr, PAGES)
        wanted = [letter == "1" and not (act is dropped and 2 <= n < 5) for n, letter in
                  enumerate(resident)]  # fmt: skip
        assert there == wanted, "pagemap"


@pytest.mark.parametrize("lock", ["unlocked", "onfault", "mlock"])
@pytest.mark.parametrize("kind", ["private", "shared", "memfd-private"])
@pytest.mark.detects("mincore-inaccessible-absent")
def test_pages_without_access_are_resident_if_they_are_there(kind, lock):
    """Taking all access from a mapping, locked or not, changes no answer of mincore: what was
    touched or locked in is resident, the rest absent."""
    wanted = ALL if lock == "mlock" else "10010000"
    with mapping(kind, PAGES) as region:
        region.sub(0, 1).touch()
        region.sub(3, 1).touch()
        if lock != "unlocked":
            locks.apply(region, lock)
        syscalls.mprotect(region.addr, region.size, syscalls.PROT_NONE)
        assert residency.of(region) == residency.all_say(wanted), "PROT_NONE"
        syscalls.munlock(region.addr, region.size)
        assert residency.of(region) == residency.all_say(wanted), "unlocked"
        syscalls.mprotect(region.addr, region.size, syscalls.PROT_RW)
        assert residency.of(region) == residency.all_say(wanted), "accessible again"


@by_memory_kind(1, only=("private", "thp"))
def test_zero_page_is_resident_and_no_part_of_rss(kind):
    """A page that was only read is the zero page: resident to mincore and pagemap, but in no
    line of smaps, until a lock that may write puts a page of its own in its place."""
    with every_kind.mapping_of(kind, 1) as region:
        syscalls.load(region.addr, 1)
        whole = "1" * region.pages
        assert residency.of(region) == residency.all_say(whole), "read"
        zero = kind.id != "thp" or thp_zero_page()
        rss = 0 if zero else region.kb
        assert lines(region) == (rss, rss, 0), "Rss, Pss, Locked"
        locks.mlock_onfault(region)
        assert lines(region) == (rss, rss, rss), "locked on fault"
        locks.mlock(region)
        assert residency.of(region) == residency.all_say(whole), "locked"
        assert lines(region) == (region.kb,) * 3, "a page of its own"


def thp_zero_page():
    """Huge pages that are only read are the huge zero page."""
    return Path("/sys/kernel/mm/transparent_hugepage/use_zero_page").read_text().strip() == "1"


def lines(region):
    """Rss, Pss and Locked of the VMA in smaps, in kB."""
    vma = maps.at(region.addr)
    return tuple(vma.field_kb(name) for name in ("Rss", "Pss", "Locked"))


@pytest.mark.needs("disk-file")
@pytest.mark.parametrize("kind", ["file-private", "file-shared"])
@pytest.mark.detects("mincore-only-mapped")
def test_file_that_is_not_cached_is_absent_under_an_onfault_lock(kind):
    """Pages of a file that no page cache holds are absent, in a mapping locked on fault too; a
    page read comes in, a full lock brings in the rest."""
    fd = memory.scratch_file(PAGES)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)  # no readahead
    with mapping(kind, PAGES, fd=fd) as region:
        locks.mlock_onfault(region)
        assert residency.of(region) == residency.all_say(NONE), "not cached"
        os.pread(fd, 1, 3 * PAGE)
        assert residency.of(region) == {"pagemap": NONE, "mincore": "00010000"}, "read elsewhere"
        locks.mlock(region)
        assert residency.of(region) == residency.all_say(ALL), "locked"
    os.close(fd)


@pytest.mark.needs("userfaultfd")
@pytest.mark.parametrize("lock", ["unlocked", "onfault"])
def test_pages_behind_a_userfaultfd_are_absent_until_it_fills_them(lock):
    """A page whose fault a userfaultfd is to answer is absent until it was filled; mincore asks
    nobody."""
    with mapping("private", PAGES) as region, userfaultfd.open_fd() as fd:
        region.sub(0, 1).touch()
        userfaultfd.register(fd, region)
        if lock == "onfault":
            locks.mlock_onfault(region)
        assert residency.of(region) == residency.all_say("10000000"), "one was there before"
        userfaultfd.zeropage(fd, region.at(4), PAGE)
        assert residency.of(region) == residency.all_say("10001000"), "one is filled"


@pytest.mark.needs("uffd-protect")
def test_protected_absent_pages_of_a_file_are_where_the_cache_has_them():
    """A page table entry that only says "protected" makes no page resident: mincore asks the page
    cache."""
    with mapping("memfd-shared", PAGES) as region, userfaultfd.open_fd() as fd:
        try:
            userfaultfd.register(fd, region, userfaultfd.WP)
        except OSError:
            pytest.skip("needs 5.19: write protection of shared memory (b1f9e876862d)")
        os.pwrite(region.fd, b"x", 2 * PAGE)
        userfaultfd.writeprotect(fd, region.addr, region.size, True)
        assert residency.mincore_bits(region) == "00100000", "the one page that is cached"


def ask(region, uid, capability=""):
    """In a child: as that user (0: root without capabilities), keeping one capability."""
    kept = credentials.CAPABILITIES[capability] if capability else -1
    if uid:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        syscalls.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0)
        os.setresuid(uid, uid, uid)
    mask = 1 << kept if kept >= 0 else 0
    credentials.set_capabilities(credentials.CapabilitySets(mask, mask, 0))
    return residency.bits(mincore.resident(region.addr, region.pages))


_PR_SET_KEEPCAPS = 8
USER = credentials.NOBODY
TRUTH = "01000000"
OWNERS = {
    "owner who may not write": ((USER, 0, 0o400), USER, "", TRUTH),
    "owner without any right": ((USER, 0, 0o000), USER, "", TRUTH),
    "group that may write": ((0, USER, 0o460), USER, "", TRUTH),
    "group that may read": ((0, USER, 0o640), USER, "", ALL),
    "group that may not, others that may write": ((0, USER, 0o602), USER, "", ALL),
    "others that may write": ((0, 0, 0o602), USER, "", TRUTH),
    "others that may read": ((0, 0, 0o644), USER, "", ALL),
    "CAP_FOWNER": ((0, 0, 0o644), USER, "CAP_FOWNER", TRUTH),
    "CAP_DAC_OVERRIDE": ((0, 0, 0o644), USER, "CAP_DAC_OVERRIDE", TRUTH),
    "CAP_DAC_READ_SEARCH": ((0, 0, 0o644), USER, "CAP_DAC_READ_SEARCH", ALL),
    "root without capabilities, of another's file": ((USER, USER, 0o644), 0, "", ALL),
    "root without capabilities, of root's file": ((0, 0, 0o444), 0, "", TRUTH),
}


@pytest.mark.needs("other-user", "root-user", "CAP_SETUID", "CAP_SETGID", "CAP_CHOWN")
@pytest.mark.source("commit 134fca9063ad (5.2)", "mm/mincore.c can_do_mincore")
@pytest.mark.parametrize("lock", ["unlocked", "onfault"])
@pytest.mark.parametrize(
    "kind", ["memfd-shared", pytest.param("file-private", marks=pytest.mark.needs("disk-file"))]
)
@pytest.mark.parametrize(
    ("owned", "uid", "capability", "seen"),
    [
        pytest.param(*row, id=name, marks=pytest.mark.needs(row[2]) if row[2] else ())
        for name, row in OWNERS.items()
    ],
)
@pytest.mark.detects("mincore-tells-everybody", "mincore-tells-owners-alone")
def test_mincore_tells_of_a_file_by_the_right_to_write_it(owned, uid, capability, seen, kind, lock):
    """mincore tells who owns a file, or may write it, which of its pages are cached, and calls
    all of them resident to anybody else, whatever the mapping's own rights and locks."""
    owner, group, mode = owned
    fd = memory.memfd(PAGES * PAGE) if kind.startswith("memfd") else memory.scratch_file(PAGES)
    if kind.startswith("file"):
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        os.pread(fd, 1, PAGE)
    else:
        os.pwrite(fd, b"x", PAGE)
    with mapping(kind, PAGES, fd=fd) as region:
        if lock == "onfault":
            locks.mlock_onfault(region)
        os.fchmod(fd, mode)
        os.fchown(fd, owner, group)
        assert processes.run(lambda: ask(region, uid, capability)) == seen
    os.close(fd)


@pytest.mark.needs("other-user", "root-user", "CAP_SETUID", "CAP_SETGID")
@by_memory_kind(4, only=("private", "shared", "sysv", "thp", "hugetlb"))
def test_mincore_tells_everybody_of_memory_without_a_file_to_own(kind):
    """Of anonymous memory, private or shared, and of a segment, mincore tells any user the truth,
    the root of it or not."""
    with every_kind.mapping_of(kind, 4) as region:
        syscalls.memset(region.addr + kind.unit, 1, kind.unit)
        locks.mlock_onfault(region.sub(0, kind.unit // PAGE)) if kind.lock else None
        assert processes.run(lambda: as_user(region, kind)) == "0100", "another user"


def as_user(region, kind):
    credentials.set_user()
    return by_unit(region, kind)
