# SPDX-License-Identifier: MIT
"""mlockall(MCL_CURRENT): everything that is mapped, and nothing else."""

import os
from contextlib import ExitStack

import pytest

from helpers import memory, syscalls
from helpers.memory import mapping
from helpers.observe import maps, pagemap, status
from helpers.syscalls import MCL_CURRENT, MCL_ONFAULT, PAGE

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("smaps-flags", "lock-all"),
    pytest.mark.source("mlockall(2)"),
    pytest.mark.claim("W7"),
]

PAGES = 4
# kind of memory, protection: resident pages of an untouched mapping after mlockall(MCL_CURRENT)
MAPPED = {
    ("private", syscalls.PROT_RW): PAGES,
    ("private", syscalls.PROT_READ): PAGES,
    ("private", syscalls.PROT_WRITE): PAGES,
    ("private", syscalls.PROT_NONE): 0,
    ("shared", syscalls.PROT_RW): PAGES,
    ("shared", syscalls.PROT_NONE): 0,
    ("memfd-private", syscalls.PROT_RW): PAGES,
    ("memfd-private", syscalls.PROT_READ): PAGES,
    ("memfd-shared", syscalls.PROT_RW): PAGES,
    ("memfd-shared", syscalls.PROT_WRITE): PAGES,
    ("file-private", syscalls.PROT_RW): PAGES,
    ("file-shared", syscalls.PROT_READ): PAGES,
}
SPECIAL = {"io", "pf", "de", "mm", "ht", "dp"}
"""VmFlags of mappings that mlock_fixup() leaves out: VM_SPECIAL, hugetlb, droppable."""


def shape(region):
    return maps.locks(region.addr, region.end, PAGE)


def locks_of(made):
    """The lock of the VMA that holds each mapping, in one reading of smaps."""
    vmas = maps.smaps()
    return {
        what: vma.lock
        for what, r in made.items()
        for vma in vmas
        if vma.start <= r.addr and r.end <= vma.end
    }


def fill(path, buffer):
    """Read a /proc file into a buffer made beforehand: measuring then maps and frees nothing."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    end = 0
    with memoryview(buffer) as view:
        while got := os.readv(fd, [view[end:]]):
            end += got
    os.close(fd)
    return end


@pytest.mark.parametrize("flags", [MCL_CURRENT, MCL_CURRENT | MCL_ONFAULT], ids=["full", "onfault"])
@pytest.mark.detects("mlockall-skips-protnone", "mlockall-skips-readonly", "mlockall-skips-shared")
def test_mlockall_current_locks_every_kind_of_mapping(flags):
    """mlockall(MCL_CURRENT) locks mappings of every kind and protection and populates what is
    accessible, and with MCL_ONFAULT populates nothing; munlockall unlocks each of them."""
    full = not flags & MCL_ONFAULT
    with ExitStack() as stack:
        made = {what: stack.enter_context(mapping(what[0], PAGES, prot=what[1])) for what in MAPPED}
        before = {what: pagemap.present_count(r.addr, PAGES) for what, r in made.items()}
        syscalls.mlockall(flags)
        locks = locks_of(made)
        after = {what: pagemap.present_count(r.addr, PAGES) for what, r in made.items()}
        syscalls.munlockall()
        left = locks_of(made)
        lock = "lo" if full else "lo lf"
        assert before == dict.fromkeys(MAPPED, 0), "nothing is resident before"
        assert locks == dict.fromkeys(MAPPED, lock), "every mapping is locked"
        assert after == (MAPPED if full else before), "resident: what can be populated, at once"
        assert left == dict.fromkeys(MAPPED, ""), "munlockall unlocks each one"


@pytest.mark.needs("stack-growth")
@pytest.mark.parametrize("flags", [MCL_CURRENT, MCL_CURRENT | MCL_ONFAULT], ids=["full", "onfault"])
def test_mlockall_current_locks_all_but_special_mappings(flags):
    """After mlockall(MCL_CURRENT) every mapping the process had is locked, heap, stack and
    program included, but for special ones ([vdso], [vvar], device memory), and VmLck is
    their size."""
    old, new = bytearray(1 << 20), bytearray(1 << 20)
    counts = bytearray(1 << 14)
    for path, buffer in (("/proc/self/smaps", old), ("/proc/self/status", counts)):
        fill(path, buffer)
    syscalls.munlockall()  # all of this once before, so that the stack has its full depth
    old_end = fill("/proc/self/smaps", old)
    syscalls.mlockall(flags)
    counts_end = fill("/proc/self/status", counts)
    new_end = fill("/proc/self/smaps", new)
    syscalls.munlockall()
    before = maps.parse_smaps(old[:old_end].decode())
    after = maps.parse_smaps(new[:new_end].decode())
    lines = counts[:counts_end].decode().splitlines()
    vmlck = next(int(text.split()[1]) for text in lines if text.startswith("VmLck:"))
    lockable = [v for v in before if not v.flags & SPECIAL and v.name != "[vsyscall]"]
    missed = [
        v.line
        for v in after
        if not v.locked and any(v.start < w.end and w.start < v.end for w in lockable)
    ]
    special = [v.line for v in after if v.locked and v.flags & SPECIAL]
    stack = [v.locked for v in after if v.name == "[stack]"]
    assert missed == [], "every ordinary mapping is lo"
    assert special == [], "no special mapping is lo"
    assert stack == [True], "the stack is lo"
    assert {v.onfault for v in after if v.locked} == {bool(flags & MCL_ONFAULT)}, (
        "lf everywhere or nowhere"
    )
    assert vmlck == sum(v.kb for v in after if v.locked), "VmLck is the size of the lo mappings"
    assert vmlck == sum(v.kb for v in lockable), "which is VmSize without the special mappings"


@pytest.mark.own_process
@pytest.mark.detects("mlockall-current-implies-future")
def test_mlockall_current_leaves_later_mappings_alone():
    """A mapping made after mlockall(MCL_CURRENT) is neither locked nor populated."""
    with mapping("private", PAGES) as old:
        syscalls.mlockall(MCL_CURRENT | MCL_ONFAULT)
        with mapping("private", PAGES) as later, mapping("shared", PAGES) as shared:
            assert shape(old) == [(0, PAGES, "lo lf")], "what was mapped is locked"
            assert shape(later) == [(0, PAGES, "")], "private memory mapped later is not"
            assert shape(shared) == [(0, PAGES, "")], "shared memory mapped later is not"
            assert pagemap.present_count(later.addr, PAGES) == 0, "nor is it populated"


@pytest.mark.own_process
@pytest.mark.detects("mlockall-reports-populate-errors")
def test_mlockall_hides_population_failure():
    """mlockall(MCL_CURRENT) returns 0 though it cannot populate memory without access or past
    the end of a file, where mlock reports ENOMEM, and populates what comes behind it."""
    fd = memory.memfd(2 * PAGE)
    empty = memory.memfd(0)
    with (
        mapping("private", 6) as region,
        mapping("memfd-shared", 4, fd=fd) as short,
        mapping("memfd-shared", 2, fd=empty, prot=syscalls.PROT_READ) as past,
    ):
        syscalls.mprotect(region.at(2), 2 * PAGE, syscalls.PROT_NONE)
        seen = syscalls.outcome(syscalls.mlockall, MCL_CURRENT)
        by_mlock = [syscalls.outcome(syscalls.mlock, r.addr, r.size) for r in (region, short, past)]
        locks = [shape(r) for r in (region, short, past)]
        assert seen == "ok", "failed population is not reported"
        assert locks == [[(0, 6, "lo")], [(0, 4, "lo")], [(0, 2, "lo")]], "all of it is lo"
        assert by_mlock == ["ENOMEM"] * 3, "mlock of the same ranges reports it"
        assert pagemap.present(region.addr, 6) == [True, True, False, False, True, True], (
            "what lies on both sides of the inaccessible part is resident"
        )
        assert pagemap.present(short.addr, 4) == [True, True, False, False], (
            "what lies in the file is resident"
        )
        assert pagemap.present_count(past.addr, 2) == 0, "an empty file has nothing to populate"
    os.close(fd)
    os.close(empty)


@pytest.mark.own_process
def test_mlockall_current_converts_earlier_locks():
    """mlockall(MCL_CURRENT) turns locks on fault into full ones and populates them; with
    MCL_ONFAULT it turns full ones into locks on fault and keeps what is resident."""
    with mapping("private", PAGES) as region:
        syscalls.mlock2(region.addr, 2 * PAGE, syscalls.MLOCK_ONFAULT)
        syscalls.mlockall(MCL_CURRENT)
        full, resident = shape(region), pagemap.present_count(region.addr, PAGES)
        syscalls.mlockall(MCL_CURRENT | MCL_ONFAULT)
        assert full == [(0, PAGES, "lo")], "lf is gone"
        assert resident == PAGES, "the whole mapping is populated"
        assert shape(region) == [(0, PAGES, "lo lf")], "lf is back"
        assert pagemap.present_count(region.addr, PAGES) == PAGES, "everything stays resident"


def test_munlock_of_part_after_mlockall():
    """After mlockall(MCL_CURRENT) munlock takes the lock off any part of any mapping."""
    with mapping("private", 6) as region:
        syscalls.mlockall(MCL_CURRENT | MCL_ONFAULT)
        before = status.vmlck_pages()
        syscalls.munlock(region.at(2), 2 * PAGE)
        taken = before - status.vmlck_pages()
        assert shape(region) == [(0, 2, "lo lf"), (2, 4, ""), (4, 6, "lo lf")], "two pages unlocked"
        assert taken == 2, "VmLck falls by two pages"
