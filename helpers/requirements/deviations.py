# SPDX-License-Identifier: MIT
"""Known deviations of kernels from their manual, or from what later kernels do.

A case marked ``@pytest.mark.deviation(ID)`` asserts the right behaviour. Where the kernel
lies in the range and the probe sees exactly the known fault, the case becomes a strict
expected failure with the verdict *deviates*; anywhere else it must pass, so a new fault,
or an old one outside its range, fails. Stable trees backport, so the range says only where
the fault is excusable and the probe decides whether it is there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from helpers import processes
from helpers.requirements.deviation_probes import (
    _ceiling_in_bytes,
    _dontunmap_leaks,
    _dontunmap_strips,
    _droppable_locked,
    _fresh_lock_unpinnable,
    _huge_lock_overflows,
    _huge_page_forgets_lockers,
    _huge_rss_multiplied,
    _merging_range_enomem,
    _onfault_prot_none,
    _racing_munlock_strands,
    _ring_charged,
    _special_mapping_locked,
    _umem_in_part_stays_charged,
    _unlimited_escapes_ceiling,
    _wrapping_length,
)

Version = tuple[int, int, int]


@dataclass(frozen=True)
class Deviation:
    """One known fault. ``since`` ≤ kernel < ``until`` (None: not fixed yet)."""

    id: str
    actual: str
    expected: str
    since: Version
    until: Version | None
    source: str
    probe: Callable[[], bool]
    fixed_by: str = ""
    fixed_in_stable: tuple[Version, ...] = ()
    """Stable releases known to have the fix: no excuse in their series from there on."""

    def in_range(self, version: Version) -> bool:
        """The fault is excusable on this kernel version."""
        if any(
            version[:2] == release[:2] and version >= release for release in self.fixed_in_stable
        ):
            return False
        return self.since <= version and (self.until is None or version < self.until)

    @property
    def range(self) -> str:
        """``5.10 to 7.2`` or ``5.10 on``."""
        first = ".".join(map(str, self.since[:2]))
        if self.until is None:
            return f"{first} on"
        return f"{first} to before {'.'.join(map(str, self.until))}"

    def __str__(self) -> str:
        fix = f"; your kernel may lack {self.fixed_by}" if self.fixed_by else ""
        where = f"{self.range}, {self.source}{fix}"
        return f"{self.id}: {self.actual}; expected: {self.expected} ({where})"


KNOWN = {
    d.id: d
    for d in (
        Deviation(
            "wrapping-length",
            "mlock, mlock2 and munlock of (addr, SIZE_MAX) return 0 and lock nothing",
            "EINVAL: addr + len overflows",
            (2, 6, 0), None, "mlock(2) ERRORS; PAGE_ALIGN in mm/mlock.c do_mlock",
            _wrapping_length,
        ),
        Deviation(
            "onfault-populates-prot-none",
            "mlock2(MLOCK_ONFAULT) of PROT_NONE memory gives ENOMEM, having locked it",
            "0: a lock on fault populates nothing, so nothing can fail",
            (4, 4, 0), (5, 18, 0), "populate_vma_page_range in mm/gup.c",
            _onfault_prot_none, "b67bf49ce7aa (in 5.18)",
        ),
        Deviation(
            "dontunmap-leaks-vmlck",
            "mremap(MREMAP_DONTUNMAP) of a locked mapping counts its pages in VmLck twice, "
            "for good",
            "VmLck unchanged: the source loses its lock as the target gains it",
            (6, 13, 0), (7, 2, 13), "mm/mremap.c move_vma", _dontunmap_leaks,
            "the order of dontunmap_complete and vrm_stat_account (in 7.2.13, 7.3.4)",
        ),
        Deviation(
            "dontunmap-strips-lock",
            "MREMAP_DONTUNMAP of part of a locked VMA unlocks the rest of it too",
            "only the moved part of the source loses its lock",
            (5, 7, 0), (7, 2, 13), "mm/mremap.c dontunmap_complete", _dontunmap_strips,
            "the split before VM_LOCKED_CLEAR_MASK (in 6.1.192, 7.2.13, 7.3.4)", ((6, 1, 192),),
        ),
        Deviation(
            "merging-range-enomem",
            "a lock over VMAs that merge while the call walks over them gives ENOMEM, though "
            "nothing is missing",
            "0",
            (6, 3, 0), (6, 5, 0), "mm/mlock.c apply_vma_lock_flags (commit 37598f5a9d8b)",
            _merging_range_enomem, "commit 2658f94d6792 (in 6.5)",
        ),
        Deviation(
            "huge-lock-overflows",
            "locking 2^32 pages at once (PROT_NONE, on-fault) leaves VmLck as it was",
            "VmLck grows by 2^32 pages",
            (2, 6, 0), (7, 3, 0), "int nr_pages in mm/mlock.c mlock_fixup",
            _huge_lock_overflows, "long nr_pages in mlock_fixup (in 7.3.4)",
        ),
        Deviation(
            "special-mapping-locked",
            "a special mapping (vdso) made under MCL_FUTURE is marked lo, uncounted; unmapping "
            "it takes its pages out of VmLck",
            "special mappings are never locked",
            (2, 6, 18), (5, 18, 0), "mm/mmap.c __install_special_mapping",
            _special_mapping_locked, "VM_LOCKED_CLEAR_MASK in __install_special_mapping (5.18)",
        ),
        Deviation(
            "droppable-locked",
            "a MAP_DROPPABLE mapping made under MCL_FUTURE is marked lo",
            "droppable memory is never locked",
            (6, 11, 0), (7, 2, 13), "mm/mmap.c do_mmap", _droppable_locked,
            "its mending (in 6.12.107, 6.18.44, 7.2.13)", ((6, 12, 107), (6, 18, 44)),
        ),
        Deviation(
            "fresh-lock-unpinnable",
            "pinning locked pages of ZONE_MOVABLE that were touched just now gives ENOMEM: mlock's "
            "batch holds them, and they cannot be moved",
            "0, with the pages moved out of ZONE_MOVABLE",
            (5, 18, 0), (6, 17, 0), "mm/gup.c collect_longterm_unpinnable_folios (2fbb0c10d1e8)",
            _fresh_lock_unpinnable, "98c6d259319e (in 6.17)",
        ),
        Deviation(
            "huge-page-forgets-lockers",
            "a huge page that two processes have locked is no longer mlocked when one unlocks it",
            "PG_mlocked until the last unlock",
            (4, 8, 0), (5, 18, 0), "mm/rmap.c try_to_unmap_one (9a73f61bdb8a)",
            _huge_page_forgets_lockers, "mlock_count (commit cea86fe246b6, in 5.18)",
        ),
        Deviation(
            "racing-munlock-strands",
            "pages that two CPUs lock and unlock at the same time stay mlocked, and unevictable, "
            "until they are freed",
            "the count of lockers errs on the low side: none is stranded",
            (5, 18, 0), None, "mm/mlock.c __munlock_folio; unevictable-lru.rst",
            _racing_munlock_strands,
        ),
        Deviation(
            "userns-ceiling-in-bytes",
            "a user namespace made under a limit of n bytes lets n pages of segments be locked",
            "no more than the limit's pages",
            (5, 14, 0), None, "set_userns_rlimit_max in kernel/user_namespace.c (d7c9e99aee48)",
            _ceiling_in_bytes,
        ),
        Deviation(
            "shm-lock-unlimited-escapes-ceiling",
            "SHM_LOCK under an unlimited limit is not bound by the ceiling of its user namespace",
            "ENOMEM beyond the ceiling",
            (5, 14, 0), (5, 18, 0), "mm/mlock.c user_shm_lock", _unlimited_escapes_ceiling,
            "e97824ff663c (in 5.18)",
        ),
        Deviation(
            "umem-in-part-stays-charged",
            "an AF_XDP umem of which only a part can be pinned is refused, and the other part "
            "stays charged to its user for good",
            "what is refused is not charged",
            (4, 18, 0), None,
            "net/xdp/xdp_umem.c: xdp_umem_pin_pages sets npgs to what it pinned, "
            "xdp_umem_unaccount_pages gives back so much",
            _umem_in_part_stays_charged,
        ),
        Deviation(
            "io-uring-ring-charged",
            "an io_uring instance is charged for its rings as for fixed buffers",
            "ring memory is the memory cgroup's affair since 26bfa89e25f4 (5.12)",
            (6, 14, 0), (7, 3, 0), "io_uring/memmap.c io_create_region", _ring_charged,
            "a region without a user for rings (in 7.2.13, 7.3.4)",
        ),
        Deviation(
            "shm-huge-rss-multiplied",
            "rss of a segment of huge pages (/proc/sysvipc/shm, SHM_INFO) is what is in memory "
            "times the small pages of a huge one",
            "the bytes, and pages, that are in memory",
            (6, 7, 0), (7, 3, 0), "ipc/shm.c shm_add_rss_swap (commit a08c7193e4f1)",
            _huge_rss_multiplied, "nrpages as it is (in 6.12.117, 7.3.4)", ((6, 12, 117),),
        ),
    )
}  # fmt: skip


def is_present(deviation: Deviation) -> bool:
    """The probe, run in a child, sees exactly this fault on the running kernel."""
    try:
        return processes.run(deviation.probe)
    except (processes.ChildError, OSError):
        return False
