# SPDX-License-Identifier: MIT
"""mlockall and munlockall in the account; MCL_FUTURE by every kind of new mapping.

The locker is a child at rest, read from outside: under MCL_FUTURE a reader's own buffers
would move what it reads.
"""

from contextlib import ExitStack

import pytest

from helpers import syscalls
from helpers.memory import Region, mapping
from helpers.observe import lock_accounting, maps, pagemap, status
from helpers.processes import Child
from helpers.syscalls import PAGE, sysv

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("lock-all", "smaps-flags"),
    pytest.mark.source("mlockall(2)"),
    pytest.mark.claim("W7"),
]

# VM_SPECIAL, hugetlb and droppable memory are passed over (mlock_fixup in mm/mlock.c).
NEVER = frozenset({"io", "de", "pf", "mm", "ht", "dp"})
PLACES = {
    "private": ("private", syscalls.PROT_RW),
    "read-only": ("private", syscalls.PROT_READ),
    "inaccessible": ("private", syscalls.PROT_NONE),
    "shared": ("shared", syscalls.PROT_RW),
    "memfd": ("memfd-shared", syscalls.PROT_RW),
    "file": ("file-shared", syscalls.PROT_RW),
    "private file": ("file-private", syscalls.PROT_RW),
    "read-only file": ("file-shared", syscalls.PROT_READ),
}


def lockable(vma):
    return not vma.flags & NEVER and vma.name != "[vsyscall]"


def invalidate(addr, size):
    return syscalls.outcome(syscalls.msync, addr, size, syscalls.MS_INVALIDATE)


def unmap(addr, size):
    return syscalls.munmap(addr, size)


@pytest.mark.source("mlock(2); Open POSIX mlockall 3-6")
@pytest.mark.parametrize(
    "flags", [syscalls.MCL_CURRENT, syscalls.MCL_CURRENT | syscalls.MCL_ONFAULT], ids=hex
)
def test_mlockall_current_locks_existing(flags):
    """mlockall(MCL_CURRENT) locks and counts mappings of every kind, populates them unless on
    fault, and leaves no lockable VMA out: VmLck is VmSize less the special mappings."""
    letter = "F" if flags & syscalls.MCL_ONFAULT else "L"
    with ExitStack() as stack:
        places = {
            name: stack.enter_context(mapping(kind, 2, prot=prot))
            for name, (kind, prot) in PLACES.items()
        }
        child = stack.enter_context(Child())
        before = {n: child.call(invalidate, r.addr, r.size) for n, r in places.items()}
        assert before == dict.fromkeys(places, "ok"), "msync finds nothing locked before"
        child.call(syscalls.mlockall, flags)
        after = {n: child.call(invalidate, r.addr, r.size) for n, r in places.items()}
        assert after == dict.fromkeys(places, "EBUSY"), "msync finds each of them locked"
        letters = {n: lock_accounting.page_letters(r, child.pid) for n, r in places.items()}
        assert letters == dict.fromkeys(places, letter * 2), "each of them is lo"
        present = {n: pagemap.present_count(r.addr, 2, child.pid) for n, r in places.items()}
        full = 0 if letter == "F" else 2
        expected = {n: 0 if n == "inaccessible" else full for n in places}
        assert present == expected, "all that can be populated is resident, unless on fault"
        vmas = maps.smaps(child.pid)
        left_out = [v.line for v in vmas if lockable(v) and not v.locked]
        assert left_out == [], "no lockable VMA is without lo"
        marked = [v.line for v in vmas if v.locked and not lockable(v)]
        assert marked == [], "no special VMA is lo"
        special = sum(v.kb for v in vmas if not lockable(v) and v.name != "[vsyscall]")
        size, locked = status.kb("VmSize", child.pid), status.vmlck_kb(child.pid)
        assert locked == size - special, "VmLck is VmSize less the special mappings"


def test_mlockall_current_leaves_later_mappings_alone():
    """mlockall(MCL_CURRENT) neither locks nor counts what is mapped afterwards."""
    with Child() as child:
        child.call(syscalls.mlockall, syscalls.MCL_CURRENT | syscalls.MCL_ONFAULT)
        later = Region(child.call(syscalls.mmap, 0, 8 * PAGE), 8 * PAGE)
        seen = lock_accounting.read(later, child.pid)
        assert seen.pages == "--------", "the later mapping is not lo"
        assert seen.vmlck == seen.lo, "VmLck counts exactly the lo pages"


FUTURE = {
    "private": (syscalls.PROT_RW, syscalls.MAP_PRIVATE | syscalls.MAP_ANONYMOUS, False),
    "read-only": (syscalls.PROT_READ, syscalls.MAP_PRIVATE | syscalls.MAP_ANONYMOUS, False),
    "inaccessible": (syscalls.PROT_NONE, syscalls.MAP_PRIVATE | syscalls.MAP_ANONYMOUS, False),
    "noreserve": (
        syscalls.PROT_RW,
        syscalls.MAP_PRIVATE | syscalls.MAP_ANONYMOUS | syscalls.MAP_NORESERVE,
        False,
    ),
    "shared": (syscalls.PROT_RW, syscalls.MAP_SHARED | syscalls.MAP_ANONYMOUS, False),
    "file-shared": (syscalls.PROT_RW, syscalls.MAP_SHARED, True),
    "file-private": (syscalls.PROT_RW, syscalls.MAP_PRIVATE, True),
    "file-read-only": (syscalls.PROT_READ, syscalls.MAP_PRIVATE, True),
}  # fmt: skip


@pytest.mark.parametrize("onfault", [0, syscalls.MCL_ONFAULT], ids=["full", "onfault"])
def test_future_mapping_is_counted(onfault):
    """Under MCL_FUTURE a new mapping of any kind, accessible or not, is lo and counted in
    full; unmapped in parts, its pages leave VmLck."""
    letter = "F" if onfault else "L"
    with mapping("file-shared", 4) as file, Child() as child:
        child.call(syscalls.mlockall, syscalls.MCL_FUTURE | onfault)
        new = {}
        for kind, (prot, flags, of_file) in FUTURE.items():
            fd = file.fd if of_file else -1
            addr = child.call(syscalls.mmap, 0, file.size, prot, flags, fd)
            new[kind] = Region(addr, file.size)
        seen = {kind: lock_accounting.read(region, child.pid) for kind, region in new.items()}
        pages = {kind: found.pages for kind, found in seen.items()}
        assert pages == dict.fromkeys(new, letter * 4), "each new mapping is lo, all of it"
        for found in seen.values():
            assert found.vmlck == found.lo, "VmLck counts exactly the lo pages"
        present = {k: pagemap.present_count(r.addr, 4, child.pid) for k, r in new.items()}
        populated = {k: 0 if onfault or k == "inaccessible" else 4 for k in new}
        assert present == populated, "populated, unless on fault or inaccessible"
        for region in new.values():
            child.call(unmap, region.at(1), 2 * PAGE)
        left = lock_accounting.read(new["private"], child.pid)
        assert left.pages == letter + "--" + letter, "two pages are gone"
        assert left.vmlck == left.lo, "and no longer counted, nor those of the others"


def test_future_locks_new_mappings_only():
    """mlockall(MCL_FUTURE) leaves existing mappings alone and locks new ones until munlockall,
    which leaves nothing locked and later mappings alone."""
    with mapping("private", 8) as existing, Child() as child:
        child.call(syscalls.mlockall, syscalls.MCL_FUTURE)
        new = Region(child.call(syscalls.mmap, 0, 8 * PAGE), 8 * PAGE)
        seen = lock_accounting.read(existing, child.pid)
        assert seen.pages == "--------", "the existing mapping is not lo"
        assert seen.vmlck == seen.lo, "VmLck counts exactly the lo pages"
        assert lock_accounting.page_letters(new, child.pid) == "LLLLLLLL", "the new one is"
        child.call(syscalls.munlockall)
        after = Region(child.call(syscalls.mmap, 0, 8 * PAGE), 8 * PAGE)
        left = lock_accounting.read(after, child.pid)
        assert left == lock_accounting.expect("--------", 0), "nothing counts, new mappings neither"
        assert lock_accounting.page_letters(new, child.pid) == "--------", (
            "the mapping made before is unlocked"
        )


def attach_segment(size):
    segment = sysv.shmget(syscalls.IPC_PRIVATE, size, syscalls.IPC_CREAT | 0o600)
    try:
        return sysv.shmat(segment, None, 0)
    finally:
        sysv.shmctl(segment, syscalls.IPC_RMID, None)


def detach(addr):
    return sysv.shmdt(addr)


@pytest.mark.needs("sysv-shm")
@pytest.mark.parametrize("onfault", [0, syscalls.MCL_ONFAULT], ids=["full", "onfault"])
@pytest.mark.detects("vmlck-shmat-uncounted", "future-skips-segments")
def test_segment_attached_under_future_is_counted(onfault):
    """shmat under MCL_FUTURE counts the segment; shmdt takes it out again."""
    with Child() as child:
        child.call(syscalls.mlockall, syscalls.MCL_FUTURE | onfault)
        region = Region(child.call(attach_segment, 8 * PAGE), 8 * PAGE)
        seen = lock_accounting.read(region, child.pid)
        assert seen.pages == ("F" if onfault else "L") * 8, "the segment is lo"
        assert seen.vmlck == seen.lo, "VmLck counts exactly the lo pages"
        child.call(detach, region.addr)
        left = lock_accounting.read(region, child.pid)
        assert left.pages == "--------", "it is gone"
        assert left.vmlck == left.lo, "and no longer counted"


@pytest.mark.claim("W8")
@pytest.mark.source("munlockall(2)")
@pytest.mark.detects("munlockall-skips-shared", "munlockall-skips-protnone")
def test_munlockall_clears_all_locks_and_future():
    """munlockall undoes mlock, mlock2, MAP_LOCKED, mlockall and MCL_FUTURE, whatever the kind
    of memory: VmLck is 0, no VMA is lo, and a later mapping is not."""
    with ExitStack() as stack:
        places = {
            name: stack.enter_context(mapping(kind, 2, prot=prot))
            for name, (kind, prot) in PLACES.items()
        }
        child = stack.enter_context(Child())
        assert status.vmlck_pages(child.pid) == 0, "nothing counts in the beginning"
        for region in places.values():
            child.call(syscalls.outcome, syscalls.mlock, region.addr, PAGE)
            child.call(
                syscalls.outcome, syscalls.mlock2, region.at(1), PAGE, syscalls.MLOCK_ONFAULT
            )
        child.call(
            syscalls.mlockall, syscalls.MCL_CURRENT | syscalls.MCL_FUTURE | syscalls.MCL_ONFAULT
        )
        how = syscalls.MAP_PRIVATE | syscalls.MAP_ANONYMOUS | syscalls.MAP_LOCKED
        new = Region(child.call(syscalls.mmap, 0, 2 * PAGE, syscalls.PROT_RW, how), 2 * PAGE)
        locked = lock_accounting.read(new, child.pid)
        assert locked.pages == "FF", "MAP_LOCKED under MCL_FUTURE|MCL_ONFAULT is on fault"
        assert locked.vmlck == locked.lo, "VmLck counts exactly the lo pages"
        child.call(syscalls.munlockall)
        later = Region(child.call(syscalls.mmap, 0, 2 * PAGE), 2 * PAGE)
        assert lock_accounting.read(later, child.pid) == lock_accounting.expect("--", 0), (
            "nothing is locked, and MCL_FUTURE is off"
        )
        left = [v.line for v in maps.smaps(child.pid) if v.locked]
        assert left == [], "no VMA is lo"


@pytest.mark.claim("W8")
@pytest.mark.source("munlockall(2)")
@pytest.mark.parametrize("route", ["mlock", "MLOCK_ONFAULT", "MAP_LOCKED"])
def test_munlockall_undoes_every_route(route):
    """munlockall takes mappings of every kind out of VmLck, however they were locked."""
    with ExitStack() as stack:
        how = syscalls.MAP_LOCKED if route == "MAP_LOCKED" else 0
        places = [
            stack.enter_context(mapping(kind, 2, prot=prot, flags=how))
            for kind, prot in PLACES.values()
        ]
        for region in places:
            if route != "MAP_LOCKED":
                on_fault = syscalls.MLOCK_ONFAULT if route == "MLOCK_ONFAULT" else 0
                syscalls.outcome(syscalls.mlock2, region.addr, region.size, on_fault)
        assert status.vmlck_pages() == 2 * len(places), "all of them count"
        syscalls.munlockall()
        assert lock_accounting.read(places[0]) == lock_accounting.expect("--", 0), "nothing counts"
        syscalls.munlockall()
        assert status.vmlck_kb() == 0, "nor after a second munlockall"
