# SPDX-License-Identifier: MIT
"""Faults of calls that fail, or do a part only (tests/calls)."""

from __future__ import annotations

from helpers import syscalls
from helpers.faults.call import Effect
from helpers.faults.catalogue.common import LOCKS, on_reads
from helpers.faults.effects import accounting, refusals, requests
from helpers.faults.fault import Fault

CHAPTER = "calls"
_RANGES = ("mprotect", "pkey_mprotect", "munmap", "mmap", "madvise", "msync", "mincore", "mremap",
           "mseal", "mbind", "remap_file_pages")  # fmt: skip
_OTHERS = ("shmat", "shmdt", "ftruncate", "fallocate", "ioctl", "process_madvise", "mlockall",
           "mlock2", "mlock")  # fmt: skip
_ALIGNED = ("mprotect", "madvise", "munmap", "msync", "mseal", "mremap", "mincore")
_SPLITTING = ("mprotect", "munmap", "mseal", "mremap", "mmap")
_SHM_REMAP = 0o40000


def _on(calls: tuple[str, ...], effect: Effect) -> dict[str, Effect]:
    return dict.fromkeys(calls, effect)


def _counting(calls: tuple[str, ...], effect: Effect) -> dict[str, Effect]:
    return _on(calls, effect) | on_reads(accounting.show_miscount)


FAULTS = (
    Fault(
        "refused-call-unlocks",
        CHAPTER,
        "a call on a range that is refused unlocks the range",
        "side-effect",
        _on(_RANGES, refusals.unlocks),
    ),
    Fault(
        "refused-call-miscounts",
        CHAPTER,
        "a call that is refused adds a page to VmLck",
        "readout",
        _counting((*_RANGES, *_OTHERS), refusals.miscounts(refusals.one_page)),
    ),
    Fault(
        "refused-call-drops-pages",
        CHAPTER,
        "a call refused for its arguments drops the locked pages of its range",
        "side-effect",
        _on(_RANGES, refusals.drops("EINVAL", "EBADF", "EACCES", "EEXIST", "EPERM")),
    ),
    Fault(
        "refused-map-fixed-unmaps",
        CHAPTER,
        "MAP_FIXED that is refused has unmapped what was there",
        "side-effect",
        {"mmap": refusals.unmaps(kept=False)},
    ),
    Fault(
        "refused-map-fixed-keeps-count",
        CHAPTER,
        "MAP_FIXED that is refused has unmapped what was there, and VmLck counts it still",
        "side-effect",
        _counting(("mmap",), refusals.unmaps(kept=True)),
    ),
    Fault(
        "refused-mremap-unmaps-target",
        CHAPTER,
        "mremap that its arguments forbid has unmapped its target",
        "side-effect",
        {"mremap": refusals.target_unmapped},
    ),
    Fault(
        "refused-mremap-counts-growth",
        CHAPTER,
        "growth of locked memory that the limit forbids is counted all the same",
        "readout",
        _counting(("mremap",), refusals.miscounts(refusals.growth, "EAGAIN")),
    ),
    Fault(
        "mprotect-hole-changes-nothing",
        CHAPTER,
        "mprotect over a hole changes nothing before it",
        "skipped",
        {"mprotect": requests.fail_with("ENOMEM", refusals.locked_hole)},
    ),
    Fault(
        "mprotect-hole-changes-beyond",
        CHAPTER,
        "mprotect over a hole changes what is behind it",
        "side-effect",
        {"mprotect": refusals.protects_beyond},
    ),
    Fault(
        "mprotect-hole-drops-lock",
        CHAPTER,
        "mprotect over a hole unlocks what is before it",
        "side-effect",
        {"mprotect": refusals.hole_unlocks},
    ),
    Fault(
        "madvise-hole-ends",
        CHAPTER,
        "madvise ends at a hole",
        "argument",
        {"madvise": refusals.ends_at_hole},
    ),
    Fault(
        "madvise-locked-dropped-first",
        CHAPTER,
        "MADV_DONTNEED drops locked pages before it is refused for them",
        "side-effect",
        {"madvise": refusals.dropped_first},
    ),
    Fault(
        "madvise-several-vmas-einval",
        CHAPTER,
        "madvise of several VMAs gives EINVAL",
        "skipped",
        {"madvise": requests.fail_with("EINVAL", lambda c: len(c.vmas(*c.range)) > 1)},
    ),
    Fault(
        "msync-hole-hides-lock",
        CHAPTER,
        "msync(MS_INVALIDATE) over a hole does not report that memory is locked",
        "result",
        {"msync": refusals.hides_lock},
    ),
    Fault(
        "wrapped-length-accepted",
        CHAPTER,
        "a length that wraps around is taken for 0",
        "skipped",
        _on(_ALIGNED, requests.skip_returning(refusals.overflows)),
    ),
    Fault(
        "unaligned-start-rounded",
        CHAPTER,
        "a start that is not aligned is rounded down",
        "argument",
        _on(_ALIGNED, requests.replace(0, lambda v: v & -syscalls.PAGE)),
    ),
    Fault(
        "empty-range-einval",
        CHAPTER,
        "mprotect, madvise, mseal and msync of length 0 give EINVAL",
        "skipped",
        _on(_ALIGNED, requests.fail_with("EINVAL", refusals.empty)),
    ),
    Fault(
        "noreplace-replaces",
        CHAPTER,
        "MAP_FIXED_NOREPLACE replaces what is there",
        "argument",
        {
            "mmap": requests.replace(
                3,
                lambda v: v & ~syscalls.MAP_FIXED_NOREPLACE | syscalls.MAP_FIXED,
                lambda c: bool(c.args[3] & syscalls.MAP_FIXED_NOREPLACE),
            )
        },
    ),
    Fault(
        "shmat-replaces",
        CHAPTER,
        "shmat at an address, without SHM_REMAP, replaces what is there",
        "argument",
        {"shmat": requests.replace(2, lambda v: v | _SHM_REMAP, lambda c: c.args[1] != 0)},
    ),
    Fault(
        "split-failure-miscounts",
        CHAPTER,
        "a call that may not split a VMA takes a page out of VmLck",
        "readout",
        _counting(
            _SPLITTING,
            refusals.miscounts(
                lambda call: -syscalls.PAGE, "ENOMEM", when=refusals.without_hole
            ),
        ),
    ),
    Fault(
        "failed-population-drops-pages",
        CHAPTER,
        "a lock that cannot populate all drops what was there",
        "side-effect",
        _on(LOCKS, refusals.drops("ENOMEM", when=refusals.without_hole)),
    ),
    Fault(
        "huge-page-cut-accepted",
        CHAPTER,
        "a range that cuts a huge page is not refused",
        "result",
        _on(
            ("munmap", "mprotect", "madvise", "mseal"),
            requests.substitute_result("EINVAL", 0, refusals.in_huge_pages),
        ),
    ),
)  # fmt: skip
