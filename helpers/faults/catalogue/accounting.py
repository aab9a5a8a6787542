# SPDX-License-Identifier: MIT
"""Faults that cases of tests/accounting detect."""

from __future__ import annotations

from helpers import syscalls
from helpers.faults.catalogue.common import miscounting, on_reads
from helpers.faults.effects import accounting, conditions, shown
from helpers.faults.fault import Fault

CHAPTER = "accounting"
_SHARED = rb"^\S+ ..[-x]s "
FAULTS = (
    Fault(
        "vmlck-one-page-less",
        CHAPTER,
        "VmLck lacks a page of whatever is locked",
        "readout",
        on_reads(accounting.show_vmlck(accounting.one_page_less)),
    ),
    Fault(
        "vmlck-always-zero",
        CHAPTER,
        "VmLck is always 0",
        "readout",
        on_reads(accounting.show_vmlck(lambda c, p, kb: 0)),
    ),
    Fault(
        "vmlck-one-page-more",
        CHAPTER,
        "VmLck has a page more than is locked, also when nothing is",
        "readout",
        on_reads(accounting.show_vmlck(lambda c, p, kb: kb + syscalls.PAGE_KB)),
    ),
    Fault(
        "vmlck-never-falls",
        CHAPTER,
        "VmLck never falls",
        "readout",
        on_reads(accounting.never_falls),
    ),
    Fault(
        "vmlck-counts-resident",
        CHAPTER,
        "VmLck counts pages in memory in place of ranges",
        "readout",
        on_reads(accounting.count_resident),
    ),
    Fault(
        "vmlck-onfault-uncounted",
        CHAPTER,
        "memory locked on fault is not in VmLck",
        "readout",
        on_reads(accounting.leave_out(conditions.onfault)),
    ),
    Fault(
        "vmlck-shared-uncounted",
        CHAPTER,
        "locked shared mappings are not in VmLck",
        "readout",
        on_reads(accounting.leave_out(conditions.shared)),
    ),
    Fault(
        "vmlck-protnone-uncounted",
        CHAPTER,
        "locked PROT_NONE mappings are not in VmLck",
        "readout",
        on_reads(accounting.leave_out(conditions.inaccessible)),
    ),
    Fault(
        "vmlck-readonly-uncounted",
        CHAPTER,
        "locked read-only mappings are not in VmLck",
        "readout",
        on_reads(accounting.leave_out(conditions.readonly)),
    ),
    Fault(
        "vmlck-cut-to-19-bits",
        CHAPTER,
        "VmLck keeps 19 bits of pages",
        "readout",
        on_reads(accounting.show_vmlck(lambda c, p, kb: kb % (syscalls.PAGE_KB << 19))),
    ),
    Fault(
        "vmlck-mlock-one-short",
        CHAPTER,
        "mlock of several pages counts one too few",
        "readout",
        miscounting("mlock", accounting.one_unadded),
    ),
    Fault(
        "vmlck-relock-double",
        CHAPTER,
        "mlock of what is locked counts it again",
        "readout",
        miscounting("mlock", accounting.again_added),
    ),
    Fault(
        "vmlck-onfault-relock-double",
        CHAPTER,
        "mlock2 of what is locked counts it again",
        "readout",
        miscounting("mlock2", accounting.again_added),
    ),
    Fault(
        "vmlck-munlock-kept",
        CHAPTER,
        "munlock does not lower VmLck",
        "readout",
        miscounting("munlock", accounting.kept),
    ),
    Fault(
        "vmlck-munlock-one-short",
        CHAPTER,
        "munlock of several pages lowers VmLck by one too few",
        "readout",
        miscounting("munlock", accounting.one_kept),
    ),
    Fault(
        "vmlck-munmap-kept",
        CHAPTER,
        "munmap of locked memory does not lower VmLck",
        "readout",
        miscounting("munmap", accounting.kept),
    ),
    Fault(
        "vmlck-munmap-one-short",
        CHAPTER,
        "munmap of several locked pages lowers VmLck by one too few",
        "readout",
        miscounting("munmap", accounting.one_kept),
    ),
    Fault(
        "vmlck-mapfixed-kept",
        CHAPTER,
        "a mapping placed over locked memory does not lower VmLck",
        "readout",
        miscounting("mmap", accounting.kept),
    ),
    Fault(
        "vmlck-mmap-uncounted",
        CHAPTER,
        "a mapping that is locked from the start is not counted",
        "readout",
        miscounting("mmap", accounting.unadded),
    ),
    Fault(
        "vmlck-mmap-one-short",
        CHAPTER,
        "a mapping locked from the start is counted a page short",
        "readout",
        miscounting("mmap", accounting.one_unadded),
    ),
    Fault(
        "vmlck-mremap-grow-uncounted",
        CHAPTER,
        "mremap does not count the growth of locked memory",
        "readout",
        miscounting("mremap", accounting.growth),
    ),
    Fault(
        "vmlck-mremap-shrink-kept",
        CHAPTER,
        "mremap does not uncount what it cuts off locked memory",
        "readout",
        miscounting("mremap", accounting.shrinkage),
    ),
    Fault(
        "vmlck-mremap-dup-uncounted",
        CHAPTER,
        "mremap of length 0 does not count the new mapping",
        "readout",
        miscounting("mremap", accounting.duplicate),
    ),
    Fault(
        "vmlck-mremap-move-double",
        CHAPTER,
        "mremap of locked memory counts a page again",
        "readout",
        miscounting("mremap", lambda c, before, after: syscalls.PAGE if before else 0),
    ),
    Fault(
        "vmlck-mprotect-lowers",
        CHAPTER,
        "mprotect of locked memory lowers VmLck",
        "readout",
        miscounting("mprotect", lambda c, before, after: -before),
    ),
    Fault(
        "vmlck-advice-lowers",
        CHAPTER,
        "madvise on locked memory lowers VmLck",
        "readout",
        miscounting("madvise", lambda c, before, after: -before),
    ),
    Fault(
        "vmlck-brk-uncounted",
        CHAPTER,
        "a heap that grows locked is not counted",
        "readout",
        {"brk": accounting.heap_uncounted, **on_reads(accounting.show_miscount)},
    ),
    Fault(
        "vmlck-brk-kept",
        CHAPTER,
        "a locked heap that shrinks keeps its count",
        "readout",
        {"brk": accounting.heap_kept, **on_reads(accounting.show_miscount)},
    ),
    Fault(
        "vmlck-stack-one-short",
        CHAPTER,
        "a locked stack counts a page less",
        "readout",
        on_reads(accounting.show_vmlck(accounting.stack_uncounted)),
    ),
    Fault(
        "vmlck-shmat-uncounted",
        CHAPTER,
        "a segment attached under MCL_FUTURE is not counted",
        "readout",
        {"shmat": accounting.attach_uncounted, **on_reads(accounting.show_miscount)},
    ),
    Fault(
        "smaps-locked-zero",
        CHAPTER,
        "Locked in smaps is 0",
        "readout",
        on_reads(shown.rewrite_proc_file("smaps", shown.renumber_field(b"Locked", lambda kb: 0))),
    ),
    Fault(
        "smaps-locked-one-short",
        CHAPTER,
        "Locked in smaps lacks a page",
        "readout",
        on_reads(
            shown.rewrite_proc_file(
                "smaps",
                shown.renumber_field(
                    b"Locked", lambda kb: kb - syscalls.PAGE_KB if kb > syscalls.PAGE_KB else kb
                ),
            )
        ),
    ),
    Fault(
        "smaps-locked-is-rss",
        CHAPTER,
        "Locked in smaps counts shared pages in full",
        "readout",
        on_reads(shown.rewrite_proc_file("smaps", shown.locked_is_rss)),
    ),
    Fault(
        "rollup-locked-zero",
        CHAPTER,
        "Locked in smaps_rollup is 0",
        "readout",
        on_reads(
            shown.rewrite_proc_file("smaps_rollup", shown.renumber_field(b"Locked", lambda kb: 0))
        ),
    ),
    Fault(
        "rollup-misses-locked",
        CHAPTER,
        "Locked in smaps_rollup leaves out the last locked VMA",
        "readout",
        on_reads(shown.rewrite_proc_file("smaps_rollup", shown.rollup_misses)),
    ),
    Fault(
        "smaps-shared-not-locked",
        CHAPTER,
        "Locked in smaps is 0 for shared mappings",
        "readout",
        on_reads(
            shown.rewrite_proc_file("smaps", shown.field_where(b"Locked", _SHARED, lambda kb: 0))
        ),
    ),
    Fault(
        "smaps-locked-of-huge-is-small",
        CHAPTER,
        "Locked in smaps counts a huge page as a small one",
        "readout",
        on_reads(
            shown.rewrite_proc_file(
                "smaps",
                shown.field_where(b"Locked", rb"AnonHugePages: +[1-9]", lambda kb: kb // 512),
            )
        ),
    ),
    Fault(
        "rss-shmem-in-file",
        CHAPTER,
        "status counts shared memory in RssFile",
        "readout",
        on_reads(shown.rewrite_proc_file("status", shown.column_in_other(b"RssShmem", b"RssFile"))),
    ),
    Fault(
        "rss-file-in-anon",
        CHAPTER,
        "status counts pages of files in RssAnon",
        "readout",
        on_reads(shown.rewrite_proc_file("status", shown.column_in_other(b"RssFile", b"RssAnon"))),
    ),
)
