# SPDX-License-Identifier: MIT
"""Probes that see whether this kernel shows a known deviation."""

from __future__ import annotations

import resource

from helpers import memory, processes, syscalls
from helpers.memory import huge_pages, sysv_segment
from helpers.observe import folios, lru_batches, maps, special_mappings, status, vmstat
from helpers.processes import cpus, limit_accounts, munlock_race, rlimits
from helpers.syscalls import PAGE, io_uring, xdp


def _wrapping_length() -> bool:
    with memory.mapping("private", 2) as two:
        before = status.vmlck_kb()
        return (
            syscalls.outcome(syscalls.mlock, two.addr, syscalls.SIZE_MAX) == "ok"
            and syscalls.outcome(syscalls.munlock, two.addr, syscalls.SIZE_MAX) == "ok"
            and status.vmlck_kb() == before
        )


def _onfault_prot_none() -> bool:
    with memory.mapping("private", 2, prot=syscalls.PROT_NONE) as two:
        return syscalls.outcome(
            syscalls.mlock2, two.addr, two.size, syscalls.MLOCK_ONFAULT
        ) == "ENOMEM" and maps.layout_between(two.addr, two.end, PAGE) == [(0, 2, "lo lf")]


def _dontunmap(pages: int, moved: int) -> tuple[int, int] | None:
    """(VmLck change in pages, locked pages left in the source) after a move, or None."""
    with memory.mapping("private", pages) as source:
        source.touch()
        syscalls.mlock(source.addr, source.size)
        how = syscalls.MREMAP_MAYMOVE | syscalls.MREMAP_DONTUNMAP
        before = status.vmlck_pages()
        try:
            target = syscalls.mremap(source.addr, moved * PAGE, moved * PAGE, how)
        except OSError:
            return None
        change = status.vmlck_pages() - before
        left = sum(v.kb for v in maps.smaps(low=source.addr, high=source.end) if v.locked)
        syscalls.munmap(target, moved * PAGE)
        return change, left // syscalls.PAGE_KB


def _dontunmap_leaks() -> bool:
    return _dontunmap(4, 4) == (4, 0)


def _dontunmap_strips() -> bool:
    found = _dontunmap(4, 2)
    return found is not None and found[1] == 0


def _huge_lock_overflows() -> bool:
    # 2^32 pages: the page count wraps to 0 in an int.
    size = (1 << 32) * PAGE
    how = syscalls.MAP_PRIVATE | syscalls.MAP_ANONYMOUS | syscalls.MAP_NORESERVE
    try:
        addr = syscalls.mmap(0, size, syscalls.PROT_NONE, how)
    except OSError:
        return False
    before = status.vmlck_kb()
    # ENOMEM in 5.10, where PROT_NONE fails even on-fault locks; the lock stays all the same.
    seen = syscalls.outcome(syscalls.mlock2, addr, size, syscalls.MLOCK_ONFAULT)
    return seen in {"ok", "ENOMEM"} and maps.at(addr).locked and status.vmlck_kb() == before


def _special_mapping_locked() -> bool:
    syscalls.mlockall(syscalls.MCL_FUTURE)
    low, high = special_mappings.remap_special_mappings()
    return any(v.locked for v in maps.smaps(low=low, high=high))


def _droppable_locked() -> bool:
    syscalls.mlockall(syscalls.MCL_FUTURE)
    how = syscalls.MAP_DROPPABLE | syscalls.MAP_ANONYMOUS
    return maps.at(syscalls.mmap(0, PAGE, syscalls.PROT_RW, how)).locked


def _merging_range_enomem() -> bool:
    for locked in (0, 1, 2):
        with memory.mapping("private", 3) as three:
            three.touch()
            syscalls.mlock(three.at(locked), PAGE)
            if syscalls.outcome(syscalls.mlock, three.addr, three.size) == "ENOMEM":
                return True
    return False


def _fresh_lock_unpinnable() -> bool:
    # The pin takes the faults: pages of ZONE_MOVABLE, each in a batch of mlock that holds it.
    with (
        memory.mapping("memfd-shared", 16) as region,
        io_uring.io_uring_instance() as ring,
    ):
        syscalls.mlock2(region.addr, region.size, syscalls.MLOCK_ONFAULT)
        seen = syscalls.outcome(io_uring.register, ring, region.addr, region.size)
        return seen == "ENOMEM"


def _huge_page_forgets_lockers() -> bool:
    cpus.pin_to_one_cpu()
    huge_pages.enable_thp()
    with huge_pages.thp_aligned_mapping() as region:
        region.touch()
        syscalls.mprotect(region.addr, region.size, syscalls.PROT_READ)
        lru_batches.mlock_drain_local()
        syscalls.mlock(region.addr, region.size)
        marked = [folios.mlocked(region.sub(0, 1))]
        with processes.Child() as child:
            for call in (syscalls.mlock, syscalls.munlock):
                child.call(call, region.addr, region.size)
            child.call(lru_batches.mlock_drain_local)
            marked.append(folios.mlocked(region.sub(0, 1)))
        return marked == [[True], [False]]


def _racing_munlock_strands() -> bool:
    return munlock_race.stranded()[1] > 0


def _ceiling_in_bytes() -> bool:
    # Bytes of limit, pages of segment: so many pass, and one more does not.
    limit_accounts.ordinary(32)
    limit_accounts.enter_namespace(20, 32 * PAGE)
    return limit_accounts.take_all("shm-lock", 21, 20) == ["ENOMEM", "ok"]


def _unlimited_escapes_ceiling() -> bool:
    unlimited = rlimits.RLIM_INFINITY
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (unlimited, unlimited))
    limit_accounts.ordinary(32)
    limit_accounts.enter_namespace(20, unlimited)
    return limit_accounts.take("shm-lock", 21) == "ok"


def _ring_charged() -> bool:
    return limit_accounts.ring_pages() > 0


def _umem_in_part_stays_charged() -> bool:
    # Three pages of which one is there: two stay charged, of a limit of three.
    limit_accounts.ordinary(3, "xdp")
    addr = syscalls.mmap(0, 3 * PAGE)
    syscalls.munmap(addr + PAGE, 2 * PAGE)
    with limit_accounts.spare_socket() as where:
        seen = syscalls.outcome(xdp.register, where, addr, 3 * PAGE)
    return [seen, *limit_accounts.take_all("xdp", 2, 1)] == ["ENOMEM", "ENOBUFS", "ok"]


def _huge_rss_multiplied() -> bool:
    size = vmstat.huge_page_size()
    with sysv_segment.segment(size // PAGE, flags=sysv_segment.HUGETLB) as made:
        syscalls.memset(made.region.addr, 1, PAGE)
        return sysv_segment.proc_row(made.id)["rss"] == size * (size // PAGE)
