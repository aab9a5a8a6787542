# SPDX-License-Identifier: MIT
"""What a page has been through when its lock comes, and what comes over it while it is locked."""

import threading
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from helpers import syscalls
from helpers.machine import kernel_version
from helpers.memory import mapping
from helpers.observe import (
    lru_batches,
    maps,
    page_faults,
    page_flags,
    pagemap,
    residency,
    status,
)
from helpers.processes import Child
from helpers.requirements.inconclusive import inconclusive
from helpers.syscalls import (
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PAGE,
    PROT_NONE,
    PROT_RW,
    numa,
    userfaultfd,
)

N = 8
ALL, NONE = "1" * N, "0" * N
BYTE = 0x4D

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("lock:16", "kpageflags", "smaps-flags"),
    pytest.mark.source("unevictable-lru.rst", "mlock(2)"),
    pytest.mark.usefixtures("one_cpu"),
]
BEFORE_5_18 = kernel_version.version() < (5, 18, 0)
"""A lock on fault left the marking of present pages to reclaim."""


def advise(name):
    def act(region, stack):
        return syscalls.outcome(syscalls.madvise, region.addr, region.size, getattr(syscalls, name))

    return act


def clear_refs(what):
    def act(region, stack):
        with open("/proc/self/clear_refs", "w") as file:
            file.write(what)
        return "ok"

    return act


def page_out(region, stack):
    """MADV_PAGEOUT until the pages are gone; refused for locked memory."""
    for _ in range(4):
        answer = advise("MADV_PAGEOUT")(region, stack)
        if answer != "ok" or not pagemap.present_count(region.addr, N):
            return answer
    return inconclusive(f"{pagemap.present_count(region.addr, N)} of {N} pages were not paged out")


def fork(region, stack):
    stack.enter_context(Child())
    return "ok"


def move(region, stack):
    with mapping("private", N, prot=PROT_NONE) as away:
        how = MREMAP_MAYMOVE | MREMAP_FIXED
        syscalls.mremap(region.addr, region.size, region.size, how, away.addr)
        syscalls.mremap(away.addr, region.size, region.size, how, region.addr)
        syscalls.mmap(away.addr, away.size, PROT_NONE)
    return "ok"


def migrate(region, stack):
    [here, *_] = numa.page_nodes(region)
    there = next(node for node in numa.nodes() if node != here)
    return "ok" if numa.move_pages(region, there) == [there] * N else "not moved"


def protect(region, stack):
    syscalls.mprotect(region.addr, region.size, PROT_NONE)
    syscalls.mprotect(region.addr, region.size, PROT_RW)
    return "ok"


@dataclass(frozen=True)
class Event:
    """What happens to the pages; whether it is refused for locked ones and takes them away."""

    act: object
    refused: bool = False
    absent: bool = False
    needs: tuple[str, ...] = ()


EVENTS = {
    "nothing": Event(lambda region, stack: "ok"),
    "cold": Event(advise("MADV_COLD"), refused=True, needs=("pageout",)),
    "free": Event(advise("MADV_FREE"), refused=True),
    "paged out": Event(page_out, refused=True, absent=True, needs=("pageout", "swap")),
    "dropped": Event(advise("MADV_DONTNEED"), refused=True, absent=True),
    "migrated": Event(migrate, needs=("two-nodes",)),
    "soft-dirty cleared": Event(clear_refs("4"), needs=("clear-refs",)),
    "referenced cleared": Event(clear_refs("1"), needs=("clear-refs",)),
    "forked": Event(fork),
    "moved": Event(move),
    "protected": Event(protect),
}
LOCKS = {
    "mlock": ("mlock",),
    "onfault": ("mlock2", syscalls.MLOCK_ONFAULT),
    "mlockall": ("mlockall", syscalls.MCL_CURRENT),
    "mlockall onfault": ("mlockall", syscalls.MCL_CURRENT | syscalls.MCL_ONFAULT),
}


def lock(region, way):
    name, *flags = LOCKS[way]
    of_all = name == "mlockall"
    getattr(syscalls, name)(*(() if of_all else (region.addr, region.size)), *flags)


def unlock(region, way):
    if way.startswith("mlockall"):
        syscalls.munlockall()
    else:
        syscalls.munlock(region.addr, region.size)


def marks(region):
    """Mlocked and unevictable pages."""
    lru_batches.mlock_drain_local()
    seen = page_flags.snapshot(region.addr, region.pages)
    return residency.bits(seen.mlocked), residency.bits(seen.unevictable)


def variants():
    for kind in ("private", "memfd-shared"):
        for name, event in EVENTS.items():
            if name == "free" and kind != "private":
                continue
            for way in LOCKS:
                needs = [*event.needs, *(["lock-all"] if way.startswith("mlockall") else [])]
                marks = [pytest.mark.needs(*needs)] if needs else []
                if not way.startswith("mlockall") or kind == "private":
                    yield pytest.param(kind, name, way, marks=marks)


@pytest.mark.parametrize(("kind", "event", "way"), [*variants()])
@pytest.mark.detects("advised-page-not-marked", "cow-page-not-marked")
def test_lock_of_pages_that_have_been_through(kind, event, way):
    """Whatever pages have been through, a full lock has them all present, mlocked, with their
    contents and without a fault to come; a lock on fault marks the present ones and brings none
    in; munlock unmarks them all and takes nothing."""
    full = way in {"mlock", "mlockall"}
    had = EVENTS[event]
    with ExitStack() as stack, mapping(kind, N) as region:
        region.touch(BYTE)
        lru_batches.mlock_drain_local()
        assert had.act(region, stack) == "ok", f"{event}: taken, as nothing is locked"
        before = residency.mapped_bits(region)
        assert before == (NONE if had.absent else ALL), f"control: present when {event}"
        lock(region, way)
        assert maps.layout(region) == [(0, N, "lo" if full else "lo lf")], "one VMA"
        if not way.startswith("mlockall"):
            assert status.vmlck_pages() == N, "VmLck"
        there = ALL if full else before
        assert residency.mapped_bits(region) == there, "present"
        # Since 6.11 what comes from the swap cache is marked when reclaim meets it.
        if event != "paged out" and (full or not BEFORE_5_18):
            assert marks(region) == (there, there), "mlocked and unevictable"
        if full and kind == "private":
            faults = page_faults.faults_writing(region.addr, region.size)
            assert faults.minor + faults.major == 0, "no fault is left"
        else:
            want = 0 if event == "dropped" and kind == "private" else BYTE
            assert region.first_bytes() == bytes([want]) * N, "contents"
        unlock(region, way)
        assert marks(region) == (NONE, NONE), "unlocked: none is marked"
        assert residency.mapped_bits(region) == ALL, "unlocking takes nothing"
        assert status.vmlck_pages() == 0, "VmLck"


@pytest.mark.parametrize(
    ("kind", "event", "way"),
    [v for v in variants() if v.values[1] != "nothing" and v.values[2] in {"mlock", "onfault"}],
)
@pytest.mark.detects("madvise-locked-accepted", "mark-lost-on-move", "mark-lost-on-migration")
def test_what_comes_over_locked_pages(kind, event, way):
    """What comes over locked pages leaves them present, mlocked and counted, with their contents,
    or is refused; after munlock it is taken, and no page is marked."""
    had = EVENTS[event]
    with ExitStack() as stack, mapping(kind, N) as region:
        region.touch(BYTE)
        lru_batches.mlock_drain_local()
        if way == "onfault" and not BEFORE_5_18:
            lock(region, way)
        else:
            syscalls.mlock(region.addr, region.size)
            lock(region, way)
        answer = had.act(region, stack)
        assert answer == ("EINVAL" if had.refused else "ok"), f"{event} while locked"
        assert residency.mapped_bits(region) == ALL, "present"
        assert marks(region) == (ALL, ALL), "mlocked and unevictable"
        assert maps.layout(region) == [(0, N, "lo" if way == "mlock" else "lo lf")], "one VMA"
        assert status.vmlck_pages() == N, "VmLck"
        assert region.first_bytes() == bytes([BYTE]) * N, "contents"
        unlock(region, way)
        assert marks(region) == (NONE, NONE), "unlocked: none is marked"
        assert had.act(region, stack) == "ok", f"{event} after munlock"
        assert marks(region) == (NONE, NONE), "none is marked"
        assert status.vmlck_pages() == 0, "VmLck"


@pytest.mark.parametrize("way", ["mlock", "onfault"])
def test_lock_of_zero_pages(way):
    """A full lock gives memory that was only read pages of its own, mlocked; a lock on fault
    leaves the zero page, which is nobody's to lock, until the write that replaces it."""
    with mapping("private", N) as region:
        assert region.first_bytes() == bytes(N), "read: the zero page"
        lock(region, way)
        own = ALL if way == "mlock" else NONE
        assert marks(region) == (own, own), "mlocked if its own"
        assert page_faults.faults_writing(region.addr, region.size).minor == (
            0 if way == "mlock" else N
        ), "faults of the first write"
        assert marks(region) == (ALL, ALL), "written: mlocked"
        syscalls.munlock(region.addr, region.size)
        assert marks(region) == (NONE, NONE), "unlocked: none is marked"


def answer_writes(fd, region, seen):
    """Let each reported write through, and note where it was."""
    for _ in range(region.pages):
        addr = userfaultfd.wait_fault(fd)
        seen.append(addr)
        userfaultfd.writeprotect(fd, addr, PAGE, False)


@pytest.mark.needs("userfaultfd", "uffd-protect")
@pytest.mark.source("userfaultfd.rst")
@pytest.mark.parametrize(
    "state", ["present", pytest.param("paged out", marks=pytest.mark.needs("swap", "pageout"))]
)
@pytest.mark.detects("protected-page-not-marked")
def test_lock_on_fault_of_write_protected_pages(state):
    """A lock on fault of pages that a userfaultfd has write-protected reports nothing, marks what
    is present and leaves each protected until its handler lets the write through."""
    with mapping("private", N) as region, userfaultfd.open_fd() as fd, ExitStack() as stack:
        region.touch(BYTE)
        lru_batches.mlock_drain_local()
        userfaultfd.register(fd, region, userfaultfd.WP)
        userfaultfd.writeprotect(fd, region.addr, region.size, True)
        if state == "paged out":
            assert page_out(region, stack) == "ok", "paged out"
        lock(region, "onfault")
        there = ALL if state == "present" else NONE
        assert residency.mapped_bits(region) == there, "nothing was brought in"
        assert region.first_bytes() == bytes([BYTE]) * N, "a read is not reported"
        if state == "present" and not BEFORE_5_18:
            assert marks(region) == (ALL, ALL), "mlocked and unevictable"
        seen = []
        handler = threading.Thread(target=answer_writes, args=(fd, region, seen))
        handler.start()
        region.touch(BYTE + 1)
        handler.join()
        assert seen == [region.at(page) for page in range(N)], "each write is reported"
        assert residency.mapped_bits(region) == ALL, "present"
        assert status.vmlck_pages() == N, "VmLck"
        syscalls.munlock(region.addr, region.size)
        assert marks(region) == (NONE, NONE), "unlocked: none is marked"


@pytest.mark.needs("userfaultfd", "uffd-protect")
@pytest.mark.source("userfaultfd.rst", "mm/gup.c populate_vma_page_range")
def test_full_lock_of_write_protected_pages_asks_the_handler():
    """mlock of private pages that a userfaultfd has write-protected waits for its handler, page
    by page, and has them all present and mlocked when it returns."""
    with mapping("private", N) as region, userfaultfd.open_fd() as fd:
        region.touch(BYTE)
        lru_batches.mlock_drain_local()
        userfaultfd.register(fd, region, userfaultfd.WP)
        userfaultfd.writeprotect(fd, region.addr, region.size, True)
        seen = []
        handler = threading.Thread(target=answer_writes, args=(fd, region, seen))
        handler.start()
        assert syscalls.outcome(syscalls.mlock, region.addr, region.size) == "ok", "mlock"
        handler.join()
        assert seen == [region.at(page) for page in range(N)], "a write for each page, in order"
        assert marks(region) == (ALL, ALL), "mlocked and unevictable"
        assert page_faults.faults_writing(region.addr, region.size).minor == 0, "no fault is left"
        assert region.first_bytes() != b"", "readable"


@pytest.mark.needs("userfaultfd", "uffd-minor")
@pytest.mark.source("userfaultfd.rst")
def test_full_lock_of_cached_pages_asks_the_handler():
    """mlock of pages that the cache holds and a userfaultfd reports waits for its handler to map
    each, and has them all present and mlocked when it returns."""
    with (
        mapping("memfd-shared", N) as writer,
        mapping("memfd-shared", N, fd=writer.fd) as region,
        userfaultfd.open_fd(userfaultfd.FEATURE_MINOR_SHMEM) as fd,
    ):
        writer.touch(BYTE)
        lru_batches.mlock_drain_local()
        userfaultfd.register(fd, region, userfaultfd.MINOR)
        seen = []

        def answer():
            for _ in range(N):
                seen.append(userfaultfd.wait_fault(fd))
                userfaultfd.uffd_continue(fd, seen[-1], PAGE)

        handler = threading.Thread(target=answer)
        handler.start()
        assert syscalls.outcome(syscalls.mlock, region.addr, region.size) == "ok", "mlock"
        handler.join()
        assert seen == [region.at(page) for page in range(N)], "a fault for each page, in order"
        if not BEFORE_5_18:
            assert marks(region) == (ALL, ALL), "mlocked and unevictable"
        assert region.first_bytes() == bytes([BYTE]) * N, "contents"


def readable(region):
    """Which pages can be read, asked without a signal."""
    found = ""
    with open("/proc/self/mem", "rb", buffering=0) as memory:
        for page in range(region.pages):
            memory.seek(region.at(page))
            try:
                found += "01"[len(memory.read(1))]
            except OSError:
                found += "0"
    return found


GUARDED = "11011011"


@pytest.mark.needs("guard")
@pytest.mark.source("madvise(2) MADV_GUARD_INSTALL (6.13)", "mm/madvise.c")
@pytest.mark.parametrize("kind", ["private", "memfd-shared"])
@pytest.mark.parametrize(
    "way",
    [
        w if not w.startswith("mlockall") else pytest.param(w, marks=pytest.mark.needs("lock-all"))
        for w in LOCKS
    ],
)
@pytest.mark.detects("guard-removed-by-lock")
def test_lock_leaves_guard_pages(kind, way):
    """A lock counts guard pages as part of its range, populates and removes none of them, and
    munlock leaves them too; one removed under the lock is mlocked when it is touched."""
    if kind != "private" and kernel_version.version() < (6, 15, 0):
        pytest.skip("needs 6.15: before, guard pages are of private anonymous memory")
    with mapping(kind, N) as region:
        region.touch(BYTE)
        lru_batches.mlock_drain_local()
        for page in (2, 5):
            syscalls.madvise(region.at(page), PAGE, syscalls.MADV_GUARD_INSTALL)
        assert readable(region) == GUARDED, "control: guarded"
        answer = syscalls.outcome(lock, region, way)
        assert answer == ("ENOMEM" if way == "mlock" else "ok"), "mlock reports them"
        assert readable(region) == GUARDED, "guarded still"
        assert residency.mapped_bits(region) == GUARDED, "and not present"
        if not way.startswith("mlockall"):
            assert status.vmlck_pages() == N, "VmLck counts the range"
        assert marks(region) == (GUARDED, GUARDED), "the others are mlocked"
        syscalls.madvise(region.at(2), PAGE, syscalls.MADV_GUARD_REMOVE)
        region.sub(2, 1).touch(BYTE)
        removed = "11111011"
        assert marks(region) == (removed, removed), "one that was removed is mlocked at its touch"
        unlock(region, way)
        assert marks(region) == (NONE, NONE), "unlocked: none is marked"
        assert readable(region) == removed, "guarded still"
