"""Locked memory as another process sees, reads, writes and advises it."""

import pytest

from helpers import libc, lru, outside, thp
from helpers.libc import PAGE, PAGE_KB
from helpers.memory import mapping
from helpers.observe import account, folios, maps, pagemap, presence, rusage, status, vmstat
from helpers.process import Child

N = 8

pytestmark = [pytest.mark.needs("lock:16"), pytest.mark.source("mlock(2)", "process_vm_readv(2)")]
FLAGS = pytest.mark.needs("kpageflags")
SOFT_DIRTY = "4"
"""What proc_pid_clear_refs(5) takes only with CONFIG_MEM_SOFT_DIRTY."""


def lock(region, flags=0):
    """In the child: fill and lock."""
    region.write(0x11)
    libc.mlock2(region.addr, region.size, flags)


def lock_read_only(region):
    """In the child: lock memory that it may only read."""
    region.write(0x11)
    libc.mprotect(region.addr, region.size, libc.PROT_READ)
    lru.drain()
    libc.mlock(region.addr, region.size)


def mlocked(region, pid):
    return presence.bits(pagemap.snapshot(region.addr, region.pages, pid).mlocked)


@pytest.mark.needs("outside-memory")
@pytest.mark.parametrize("way", ["process_vm_writev", "/proc/PID/mem", "ptrace"])
def test_write_from_outside_leaves_locked_memory_locked(way):
    """A write by another process into locked memory changes the bytes and nothing else: the
    pages stay present and locked, the count stands."""
    with mapping("private", N) as region, Child() as child:
        child.call(lock, region)
        if way == "process_vm_writev":
            outside.write(child.pid, region.at(3) - 4, b"\x22" * 8)
        elif way == "/proc/PID/mem":
            outside.force(child.pid, region.at(3) - 4, b"\x22" * 8)
        else:
            with outside.traced(child.pid):
                outside.poke(child.pid, region.at(3) - 8, 0x2222222211111111)
                outside.poke(child.pid, region.at(3), 0x1111111122222222)
        seen = outside.read(child.pid, region.at(3) - 8, 16)
        assert seen == b"\x11" * 4 + b"\x22" * 8 + b"\x11" * 4, "contents"
        assert account.of(region, child.pid) == account.balanced("L" * N, N), "locked"
        assert pagemap.present_count(region.addr, N, child.pid) == N, "all there"


@FLAGS
@pytest.mark.needs("outside-memory")
@pytest.mark.parametrize(
    "way",
    [pytest.param("/proc/PID/mem", marks=pytest.mark.needs("forced-outside")), "ptrace"],
)
@pytest.mark.parametrize("kind", ["private", "memfd-private"])
def test_write_from_outside_into_locked_read_only_memory_copies_into_a_locked_page(way, kind):
    """A debugger's write into a locked page that is shared and read-only gives the process a
    mlocked copy of its own of that page, present without a fault; the others stay."""
    lru.pin()
    word = b"\x22" * (libc.WORD_BITS // 8)
    with mapping(kind, N) as region:
        if kind == "private":
            region.write(0x11)  # shared with the child by fork
            lru.drain()
        with Child() as child:
            child.call(libc.mprotect, region.addr, region.size, libc.PROT_READ)
            child.call(libc.mlock, region.addr, region.size)
            child.call(lru.drain)
            before = pagemap.pfns(region.addr, N, child.pid)
            assert mlocked(region, child.pid) == "1" * N, "locked: mlocked"
            with outside.traced(child.pid):  # from 6.12 on /proc/PID/mem may want a tracer
                if way == "ptrace":
                    outside.poke(child.pid, region.at(5), int.from_bytes(word, "little"))
                else:
                    outside.force(child.pid, region.at(5), word)
            lru.drain()
            after = pagemap.pfns(region.addr, N, child.pid)
            assert after[5] != before[5], "the page was copied"
            assert mlocked(region, child.pid) == "1" * N, "every page, the copy too"
            assert account.of(region, child.pid).vmlck == N, "VmLck"
            assert outside.read(child.pid, region.at(5), len(word)) == word, "contents"
            if kind == "private":
                assert region.peek() == b"\x11" * N, "the other mapping of the old page"
                old = pagemap.snapshot(region.at(5), 1)
                assert old.having(pagemap.MLOCKED) == 0, "which nobody holds any more"
            child.call(libc.munlock, region.addr, region.size)
            child.call(lru.drain)
            assert mlocked(region, child.pid) == "0" * N, "unlocked: none is marked"


@pytest.mark.needs("outside-memory")
def test_process_vm_writev_obeys_the_protection_of_locked_memory():
    """process_vm_writev into locked read-only memory gives EFAULT and copies nothing."""
    with mapping("private", N) as region, Child() as child:
        child.call(lock_read_only, region)
        answer = libc.outcome(outside.write, child.pid, region.at(2), b"x")
        assert answer == "EFAULT", "read-only"
        assert outside.read(child.pid, region.at(2), 1) == b"\x11", "contents"
        assert account.of(region, child.pid) == account.balanced("L" * N, N), "locked"


@pytest.mark.needs("outside-memory")
def test_read_from_outside_populates_only_what_it_reads():
    """Reading memory locked on fault from another process brings in, and locks, what was read."""
    with mapping("memfd-shared", N) as region, Child() as child:
        child.call(libc.mlock2, region.addr, region.size, libc.MLOCK_ONFAULT)
        assert outside.read(child.pid, region.at(2), 2 * PAGE) == bytes(2 * PAGE), "contents"
        assert presence.bits(pagemap.present(region.addr, N, child.pid)) == "00110000", "present"
        assert account.of(region, child.pid).vmlck == N, "VmLck"
        assert maps.rollup_kb("Locked", child.pid) == 2 * PAGE_KB, "Locked"


@pytest.mark.parametrize("flags", [0, libc.MLOCK_ONFAULT], ids=["mlock", "onfault"])
def test_locks_of_another_process_are_read_in_its_proc(flags):
    """status, smaps and smaps_rollup of a process tell its locks to others, part by part."""
    with mapping("private", N) as region, Child() as child:
        child.call(lock, region.sub(0, 5), flags)
        letter = account.ONFAULT if flags else account.LOCKED
        expected = letter * 5 + account.FREE * 3
        assert account.of(region, child.pid) == account.balanced(expected, 5), "five pages"
        assert account.of(region) == account.balanced(account.FREE * N, 0), "none here"
        child.call(libc.munlock, region.at(1), PAGE)
        expected = letter + account.FREE + letter * 3 + account.FREE * 3
        assert account.of(region, child.pid) == account.balanced(expected, 4), "four pages"


@FLAGS
@pytest.mark.needs("clear-refs")
@pytest.mark.parametrize("what", ["1", "2", "3", "4", "5"])
def test_clear_refs_leaves_locks(what):
    """Writing to another process's clear_refs (referenced, by kind, soft-dirty, peak) leaves its
    pages present, mlocked and in their frames."""
    lru.pin()
    with mapping("private", N) as region, Child() as child:
        child.call(region.write)
        child.call(lru.drain)
        child.call(libc.mlock, region.addr, region.size)
        before, migrated = pagemap.pfns(region.addr, N, child.pid), migrations()
        accepted = clear_refs(child.pid, what)
        if what == SOFT_DIRTY and not accepted:
            pytest.skip("needs soft-dirty bits: a kernel with CONFIG_MEM_SOFT_DIRTY=y")
        assert accepted, "accepted"
        assert pagemap.present_count(region.addr, N, child.pid) == N, "present"
        assert mlocked(region, child.pid) == "1" * N, "mlocked"
        after = pagemap.pfns(region.addr, N, child.pid)
        changed = sum(1 for a, b in zip(before, after) if a != b)
        assert changed <= migrations() - migrated, "in their frames, unless these were migrated"
        child.call(region.touch)
        assert mlocked(region, child.pid) == "1" * N, "written again: mlocked"
        assert account.of(region, child.pid) == account.balanced("L" * N, N), "locked"


def migrations():
    """Pages that the kernel has migrated, on the whole machine (0 where it does not count)."""
    return vmstat.read().get("pgmigrate_success", 0)


def clear_refs(pid, what):
    try:
        with open(f"/proc/{pid}/clear_refs", "w") as file:
            file.write(what)
    except OSError:
        return False
    return True


@FLAGS
@pytest.mark.needs("process-madvise", "CAP_SYS_NICE")
@pytest.mark.parametrize("flags", [0, libc.MLOCK_ONFAULT], ids=["mlock", "onfault"])
@pytest.mark.parametrize(
    ("advice", "answer"), [("COLD", "EINVAL"), ("PAGEOUT", "EINVAL"), ("WILLNEED", "ok")]
)
def test_advice_from_outside_takes_no_locked_page(advice, answer, flags):
    """process_madvise by another process takes no locked page: COLD and PAGEOUT give EINVAL,
    WILLNEED of a locked file is accepted and leaves the lock."""
    lru.pin()
    with mapping("memfd-private" if advice == "WILLNEED" else "private", N) as region:
        with Child() as child:
            number = getattr(libc, f"MADV_{advice}")

            def advise():
                return libc.outcome(outside.advise, child.pid, region.addr, region.size, number)

            unlocked = advise()
            if advice == "WILLNEED" and unlocked == "EINVAL":
                pytest.skip("needs process_madvise with MADV_WILLNEED: a kernel from 5.13 on")
            assert unlocked == "ok", "control: taken for memory that is not locked"
            child.call(lock, region, flags)
            child.call(lru.drain)
            assert advise() == answer, advice
            letter = account.ONFAULT if flags else account.LOCKED
            assert account.of(region, child.pid) == account.balanced(letter * N, N), "locked"
            assert mlocked(region, child.pid) == "1" * N, "mlocked"


@pytest.mark.needs("process-madvise", "CAP_SYS_NICE", "collapse", "kpageflags")
@pytest.mark.needs(f"lock:{thp.PAGES}", f"budget:{thp.PAGES}")
def test_collapse_from_outside_keeps_the_lock():
    """process_madvise(MADV_COLLAPSE) by another process makes a mlocked huge page of locked small
    ones, and the owner faults on none of it."""
    lru.pin()
    thp.allow()
    with thp.aligned(advise=False) as region, Child() as child:
        child.call(lock, region)
        child.call(lru.drain)
        outside.advise(child.pid, region.addr, region.size, libc.MADV_COLLAPSE)
        child.call(lru.drain)
        lru.drain()
        assert folios.sizes(region, child.pid) == {thp.PAGES: thp.PAGES}, "one huge page"
        assert all(folios.mlocked(region, child.pid)), "mlocked"
        assert child.call(status.vmlck_pages) == thp.PAGES, "VmLck"
        assert child.call(rusage.writing, region.addr, region.size).minor == 0, "no faults"


@pytest.mark.needs("forced-outside")
def test_outside_sees_through_the_lock_of_inaccessible_memory():
    """Locked PROT_NONE memory keeps its contents for a debugger, and its lock."""
    with mapping("private", N) as region, Child() as child:
        child.call(lock, region)
        child.call(libc.mprotect, region.addr, region.size, libc.PROT_NONE)
        with outside.traced(child.pid):
            seen = outside.peek_file(child.pid, region.at(4), 4)
        assert seen == b"\x11" * 4, "contents"
        assert account.of(region, child.pid) == account.balanced("L" * N, N), "locked"


def steal(region):
    """In the child: end the lock by unmapping part of the range."""
    libc.munmap(region.at(2), PAGE)


def test_end_of_a_part_shows_outside_at_once():
    """What a process unmaps of its locked memory is out of its account for others, too."""
    with mapping("private", N) as region, Child() as child:
        child.call(lock, region)
        child.call(steal, region)
        assert account.of(region, child.pid) == account.balanced("LL-LLLLL", N - 1), "one less"
        assert status.vmlck_pages(child.pid) == N - 1, "VmLck"
