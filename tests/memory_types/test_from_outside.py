# SPDX-License-Identifier: MIT
"""Locked memory as another process sees, reads, writes and advises it."""

import pytest

from helpers import syscalls
from helpers.memory import huge_pages, mapping
from helpers.observe import (
    folios,
    lock_accounting,
    lru_batches,
    maps,
    page_faults,
    page_flags,
    pagemap,
    residency,
    status,
    vmstat,
)
from helpers.processes import Child
from helpers.syscalls import PAGE, PAGE_KB, process_vm, ptrace

N = 8

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("lock:16"),
    pytest.mark.source("mlock(2)", "process_vm_readv(2)"),
]
FLAGS = pytest.mark.needs("kpageflags")
SOFT_DIRTY = "4"
"""What proc_pid_clear_refs(5) takes only with CONFIG_MEM_SOFT_DIRTY."""


def lock(region, flags=0):
    """In the child: fill and lock."""
    region.write(0x11)
    syscalls.mlock2(region.addr, region.size, flags)


def lock_read_only(region):
    """In the child: lock memory that it may only read."""
    region.write(0x11)
    syscalls.mprotect(region.addr, region.size, syscalls.PROT_READ)
    lru_batches.mlock_drain_local()
    syscalls.mlock(region.addr, region.size)


def mlocked(region, pid):
    return residency.bits(page_flags.snapshot(region.addr, region.pages, pid).mlocked)


@pytest.mark.needs("outside-memory")
@pytest.mark.parametrize("way", ["process_vm_writev", "/proc/PID/mem", "ptrace"])
def test_write_from_outside_leaves_locked_memory_locked(way):
    """A write by another process into locked memory changes the bytes and nothing else: the
    pages stay present and locked, the count stands."""
    with mapping("private", N) as region, Child() as child:
        child.call(lock, region)
        if way == "process_vm_writev":
            process_vm.process_vm_writev(child.pid, region.at(3) - 4, b"\x22" * 8)
        elif way == "/proc/PID/mem":
            process_vm.write_proc_mem(child.pid, region.at(3) - 4, b"\x22" * 8)
        else:
            with ptrace.ptrace_stopped(child.pid):
                ptrace.pokedata(child.pid, region.at(3) - 8, 0x2222222211111111)
                ptrace.pokedata(child.pid, region.at(3), 0x1111111122222222)
        seen = process_vm.process_vm_readv(child.pid, region.at(3) - 8, 16)
        assert seen == b"\x11" * 4 + b"\x22" * 8 + b"\x11" * 4, "contents"
        assert lock_accounting.read(region, child.pid) == lock_accounting.expect("L" * N, N), (
            "locked"
        )
        assert pagemap.present_count(region.addr, N, child.pid) == N, "all there"


@FLAGS
@pytest.mark.needs("outside-memory")
@pytest.mark.parametrize(
    "way",
    [pytest.param("/proc/PID/mem", marks=pytest.mark.needs("forced-outside")), "ptrace"],
)
@pytest.mark.parametrize("kind", ["private", "memfd-private"])
@pytest.mark.usefixtures("one_cpu")
def test_write_from_outside_into_locked_read_only_memory_copies_into_a_locked_page(way, kind):
    """A debugger's write into a locked page that is shared and read-only gives the process a
    mlocked copy of its own of that page, present without a fault; the others stay."""
    word = b"\x22" * (syscalls.WORD_BITS // 8)
    with mapping(kind, N) as region:
        if kind == "private":
            region.write(0x11)  # shared with the child by fork
            lru_batches.mlock_drain_local()
        with Child() as child:
            child.call(syscalls.mprotect, region.addr, region.size, syscalls.PROT_READ)
            child.call(syscalls.mlock, region.addr, region.size)
            child.call(lru_batches.mlock_drain_local)
            before = pagemap.pfns(region.addr, N, child.pid)
            assert mlocked(region, child.pid) == "1" * N, "locked: mlocked"
            with ptrace.ptrace_stopped(child.pid):  # from 6.12 on /proc/PID/mem may want a tracer
                if way == "ptrace":
                    ptrace.pokedata(child.pid, region.at(5), int.from_bytes(word, "little"))
                else:
                    process_vm.write_proc_mem(child.pid, region.at(5), word)
            lru_batches.mlock_drain_local()
            after = pagemap.pfns(region.addr, N, child.pid)
            assert after[5] != before[5], "the page was copied"
            assert mlocked(region, child.pid) == "1" * N, "every page, the copy too"
            assert lock_accounting.read(region, child.pid).vmlck == N, "VmLck"
            assert process_vm.process_vm_readv(child.pid, region.at(5), len(word)) == word, (
                "contents"
            )
            if kind == "private":
                assert region.first_bytes() == b"\x11" * N, "the other mapping of the old page"
                old = page_flags.snapshot(region.at(5), 1)
                assert old.count_with(page_flags.MLOCKED) == 0, "which nobody holds any more"
            child.call(syscalls.munlock, region.addr, region.size)
            child.call(lru_batches.mlock_drain_local)
            assert mlocked(region, child.pid) == "0" * N, "unlocked: none is marked"


@pytest.mark.needs("outside-memory")
def test_process_vm_writev_obeys_the_protection_of_locked_memory():
    """process_vm_writev into locked read-only memory gives EFAULT and copies nothing."""
    with mapping("private", N) as region, Child() as child:
        child.call(lock_read_only, region)
        answer = syscalls.outcome(process_vm.process_vm_writev, child.pid, region.at(2), b"x")
        assert answer == "EFAULT", "read-only"
        assert process_vm.process_vm_readv(child.pid, region.at(2), 1) == b"\x11", "contents"
        assert lock_accounting.read(region, child.pid) == lock_accounting.expect("L" * N, N), (
            "locked"
        )


@pytest.mark.needs("outside-memory")
def test_read_from_outside_populates_only_what_it_reads():
    """Reading memory locked on fault from another process brings in, and locks, what was read."""
    with mapping("memfd-shared", N) as region, Child() as child:
        child.call(syscalls.mlock2, region.addr, region.size, syscalls.MLOCK_ONFAULT)
        assert process_vm.process_vm_readv(child.pid, region.at(2), 2 * PAGE) == bytes(2 * PAGE), (
            "contents"
        )
        assert residency.bits(pagemap.present(region.addr, N, child.pid)) == "00110000", "present"
        assert lock_accounting.read(region, child.pid).vmlck == N, "VmLck"
        assert maps.rollup_kb("Locked", child.pid) == 2 * PAGE_KB, "Locked"


@pytest.mark.parametrize("flags", [0, syscalls.MLOCK_ONFAULT], ids=["mlock", "onfault"])
def test_locks_of_another_process_are_read_in_its_proc(flags):
    """status, smaps and smaps_rollup of a process tell its locks to others, part by part."""
    with mapping("private", N) as region, Child() as child:
        child.call(lock, region.sub(0, 5), flags)
        letter = lock_accounting.ONFAULT if flags else lock_accounting.LOCKED
        expected = letter * 5 + lock_accounting.FREE * 3
        assert lock_accounting.read(region, child.pid) == lock_accounting.expect(expected, 5), (
            "five pages"
        )
        assert lock_accounting.read(region) == lock_accounting.expect(
            lock_accounting.FREE * N, 0
        ), "none here"
        child.call(syscalls.munlock, region.at(1), PAGE)
        expected = letter + lock_accounting.FREE + letter * 3 + lock_accounting.FREE * 3
        assert lock_accounting.read(region, child.pid) == lock_accounting.expect(expected, 4), (
            "four pages"
        )


@FLAGS
@pytest.mark.needs("clear-refs")
@pytest.mark.parametrize("what", ["1", "2", "3", "4", "5"])
@pytest.mark.usefixtures("one_cpu")
def test_clear_refs_leaves_locks(what):
    """Writing to another process's clear_refs (referenced, by kind, soft-dirty, peak) leaves its
    pages present, mlocked and in their frames."""
    with mapping("private", N) as region, Child() as child:
        child.call(region.write)
        child.call(lru_batches.mlock_drain_local)
        child.call(syscalls.mlock, region.addr, region.size)
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
        assert lock_accounting.read(region, child.pid) == lock_accounting.expect("L" * N, N), (
            "locked"
        )


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
@pytest.mark.parametrize("flags", [0, syscalls.MLOCK_ONFAULT], ids=["mlock", "onfault"])
@pytest.mark.parametrize(
    ("advice", "answer"), [("COLD", "EINVAL"), ("PAGEOUT", "EINVAL"), ("WILLNEED", "ok")]
)
@pytest.mark.usefixtures("one_cpu")
def test_advice_from_outside_takes_no_locked_page(advice, answer, flags):
    """process_madvise by another process takes no locked page: COLD and PAGEOUT give EINVAL,
    WILLNEED of a locked file is accepted and leaves the lock."""
    with mapping("memfd-private" if advice == "WILLNEED" else "private", N) as region:
        with Child() as child:
            number = getattr(syscalls, f"MADV_{advice}")

            def advise():
                return syscalls.outcome(
                    process_vm.process_madvise, child.pid, region.addr, region.size, number
                )

            unlocked = advise()
            if advice == "WILLNEED" and unlocked == "EINVAL":
                pytest.skip("needs process_madvise with MADV_WILLNEED: a kernel from 5.13 on")
            assert unlocked == "ok", "control: taken for memory that is not locked"
            child.call(lock, region, flags)
            child.call(lru_batches.mlock_drain_local)
            assert advise() == answer, advice
            letter = lock_accounting.ONFAULT if flags else lock_accounting.LOCKED
            assert lock_accounting.read(region, child.pid) == lock_accounting.expect(
                letter * N, N
            ), "locked"
            assert mlocked(region, child.pid) == "1" * N, "mlocked"


@pytest.mark.own_process
@pytest.mark.needs("process-madvise", "CAP_SYS_NICE", "collapse", "kpageflags")
@pytest.mark.needs(f"lock:{huge_pages.HPAGE_PMD_NR}", f"budget:{huge_pages.HPAGE_PMD_NR}")
@pytest.mark.usefixtures("one_cpu")
def test_collapse_from_outside_keeps_the_lock():
    """process_madvise(MADV_COLLAPSE) by another process makes a mlocked huge page of locked small
    ones, and the owner faults on none of it."""
    huge_pages.enable_thp()
    with huge_pages.thp_aligned_mapping(advise=False) as region, Child() as child:
        child.call(lock, region)
        child.call(lru_batches.mlock_drain_local)
        process_vm.process_madvise(child.pid, region.addr, region.size, syscalls.MADV_COLLAPSE)
        child.call(lru_batches.mlock_drain_local)
        lru_batches.mlock_drain_local()
        assert folios.sizes(region, child.pid) == {
            huge_pages.HPAGE_PMD_NR: huge_pages.HPAGE_PMD_NR
        }, "one huge page"
        assert all(folios.mlocked(region, child.pid)), "mlocked"
        assert child.call(status.vmlck_pages) == huge_pages.HPAGE_PMD_NR, "VmLck"
        assert child.call(page_faults.faults_writing, region.addr, region.size).minor == 0, (
            "no faults"
        )


@pytest.mark.needs("forced-outside")
def test_outside_sees_through_the_lock_of_inaccessible_memory():
    """Locked PROT_NONE memory keeps its contents for a debugger, and its lock."""
    with mapping("private", N) as region, Child() as child:
        child.call(lock, region)
        child.call(syscalls.mprotect, region.addr, region.size, syscalls.PROT_NONE)
        with ptrace.ptrace_stopped(child.pid):
            seen = process_vm.read_proc_mem(child.pid, region.at(4), 4)
        assert seen == b"\x11" * 4, "contents"
        assert lock_accounting.read(region, child.pid) == lock_accounting.expect("L" * N, N), (
            "locked"
        )


def steal(region):
    """In the child: end the lock by unmapping part of the range."""
    syscalls.munmap(region.at(2), PAGE)


def test_end_of_a_part_shows_outside_at_once():
    """What a process unmaps of its locked memory is out of its account for others, too."""
    with mapping("private", N) as region, Child() as child:
        child.call(lock, region)
        child.call(steal, region)
        assert lock_accounting.read(region, child.pid) == lock_accounting.expect(
            "LL-LLLLL", N - 1
        ), "one less"
        assert status.vmlck_pages(child.pid) == N - 1, "VmLck"
