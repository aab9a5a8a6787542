# SPDX-License-Identifier: MIT
"""Faults that cases of tests/residency detect."""

from __future__ import annotations

from helpers import syscalls
from helpers.faults.catalogue.common import both_locks, on_reads
from helpers.faults.effects import conditions, files, requests, shown
from helpers.faults.fault import Fault
from helpers.observe import pagemap
from helpers.syscalls import MAP_LOCKED, MLOCK_ONFAULT, MS_INVALIDATE

CHAPTER = "residency"
FAULTS = (
    Fault(
        "mlock-not-populated",
        CHAPTER,
        "mlock brings no page into memory",
        "side-effect",
        {"mlock": requests.drop_absent()},
    ),
    Fault(
        "mlock-last-page-absent",
        CHAPTER,
        "mlock does not bring in the last page of several",
        "side-effect",
        both_locks(requests.drop_absent(last=True)),
    ),
    Fault(
        "mlock-shared-not-populated",
        CHAPTER,
        "mlock does not populate shared mappings",
        "side-effect",
        {"mlock": requests.drop_absent(conditions.shared)},
    ),
    Fault(
        "mlock-file-not-populated",
        CHAPTER,
        "mlock does not populate file mappings",
        "side-effect",
        {"mlock": requests.drop_absent(conditions.file)},
    ),
    Fault(
        "mlock-readonly-not-populated",
        CHAPTER,
        "mlock does not populate read-only mappings",
        "side-effect",
        {"mlock": requests.drop_absent(conditions.readonly)},
    ),
    Fault(
        "mlock-cow-not-broken",
        CHAPTER,
        "mlock of private writable memory does not break copy-on-write",
        "side-effect",
        {"mlock": requests.drop_absent(conditions.private_writable, read_back=True)},
    ),
    Fault(
        "mprotect-write-no-cow",
        CHAPTER,
        "making locked memory writable does not break copy-on-write",
        "side-effect",
        {"mprotect": requests.unbroken},
    ),
    Fault(
        "mlockall-not-populated",
        CHAPTER,
        "mlockall(MCL_CURRENT) brings no page into memory",
        "side-effect",
        {"mlockall": requests.drop_absent()},
    ),
    Fault(
        "maplocked-not-populated",
        CHAPTER,
        "MAP_LOCKED brings no page into memory",
        "side-effect",
        {"mmap": requests.drop_absent(when=conditions.flag(3, MAP_LOCKED))},
    ),
    Fault(
        "maplocked-last-page-absent",
        CHAPTER,
        "MAP_LOCKED does not bring in the last page of several",
        "side-effect",
        {"mmap": requests.drop_absent(last=True, when=conditions.flag(3, MAP_LOCKED))},
    ),
    Fault(
        "future-not-populated",
        CHAPTER,
        "a mapping made under MCL_FUTURE is not populated",
        "side-effect",
        {"mmap": requests.drop_absent(when=lambda c: not c.args[3] & MAP_LOCKED)},
    ),
    Fault(
        "mremap-grow-not-populated",
        CHAPTER,
        "mremap does not populate what it adds to locked memory",
        "side-effect",
        {"mremap": requests.drop_absent()},
    ),
    Fault(
        "mlock2-onfault-lost",
        CHAPTER,
        "mlock2 ignores MLOCK_ONFAULT",
        "argument",
        {"mlock2": requests.clear_bits(2, MLOCK_ONFAULT)},
    ),
    Fault(
        "mlock2-always-onfault",
        CHAPTER,
        "mlock2 without flags locks on fault",
        "argument",
        {"mlock2": requests.set_bits(2, 1, conditions.is_(2, 0))},
    ),
    Fault(
        "onfault-populates",
        CHAPTER,
        "memory locked on fault is populated at once",
        "side-effect",
        {"mlock2": requests.advise_after(syscalls.MADV_POPULATE_READ, when=conditions.is_(2, 1))},
    ),
    Fault(
        "mlock-writes-shared",
        CHAPTER,
        "mlock writes to shared mappings, dirtying the file",
        "side-effect",
        {"mlock": requests.advise_after(syscalls.MADV_POPULATE_WRITE, conditions.shared)},
    ),
    Fault(
        "munlock-drops-pages",
        CHAPTER,
        "munlock throws the pages out",
        "side-effect",
        {"munlock": requests.advise_after(syscalls.MADV_DONTNEED)},
    ),
    Fault(
        "munlockall-drops-pages",
        CHAPTER,
        "munlockall throws the pages of shared mappings out",
        "side-effect",
        {"munlockall": requests.all_dropped},
    ),
    Fault(
        "minor-fault-on-locked",
        CHAPTER,
        "every measurement finds one minor fault too many",
        "readout",
        {"getrusage": shown.minor_fault},
    ),
    Fault(
        "major-fault-on-locked",
        CHAPTER,
        "every measurement finds one major fault too many",
        "readout",
        {"getrusage": shown.major_fault},
    ),
    Fault(
        "pagemap-last-page-absent",
        CHAPTER,
        "pagemap shows the last page of several as absent",
        "readout",
        on_reads(shown.edit_words(shown.PAGEMAP, shown.clear(pagemap.PRESENT, 2, last=True))),
    ),
    Fault(
        "pagemap-file-bit-missing",
        CHAPTER,
        "pagemap does not tell file pages from anonymous ones",
        "readout",
        on_reads(shown.edit_words(shown.PAGEMAP, shown.clear(pagemap.FILE_OR_SHARED))),
    ),
    Fault(
        "pagemap-all-present",
        CHAPTER,
        "pagemap shows every page as present",
        "readout",
        on_reads(shown.edit_words(shown.PAGEMAP, shown.all_present)),
    ),
    Fault(
        "mincore-unaligned-accepted",
        CHAPTER,
        "mincore accepts an unaligned start",
        "argument",
        {"mincore": requests.replace(0, lambda a: a // syscalls.PAGE * syscalls.PAGE)},
    ),
    Fault(
        "mincore-hole-not-reported",
        CHAPTER,
        "mincore over a hole returns 0",
        "result",
        {"mincore": requests.substitute_result("ENOMEM", 0)},
    ),
    Fault(
        "mincore-last-page-absent",
        CHAPTER,
        "mincore shows the last page of several as absent",
        "readout",
        {"mincore": shown.mincore_says(lambda v: v[:-1] + b"\0" if len(v) > 1 else v)},
    ),
    Fault(
        "mincore-all-resident",
        CHAPTER,
        "mincore shows every page as resident",
        "readout",
        {"mincore": shown.mincore_says(lambda v: b"\1" * len(v))},
    ),
    Fault(
        "mincore-one-page-early",
        CHAPTER,
        "mincore's vector begins a page early",
        "readout",
        {"mincore": shown.mincore_says(lambda v: v[:1] + v[:-1])},
    ),
    Fault(
        "mincore-bad-vector-enomem",
        CHAPTER,
        "mincore reports a bad vector as ENOMEM",
        "result",
        {"mincore": requests.substitute_result("EFAULT", "ENOMEM")},
    ),
    Fault(
        "mincore-length-rounded-down",
        CHAPTER,
        "mincore ignores the incomplete last page of a length",
        "argument",
        {"mincore": requests.replace(1, lambda n: n // syscalls.PAGE * syscalls.PAGE)},
    ),
    Fault(
        "mincore-zero-length-einval",
        CHAPTER,
        "mincore of length 0 gives EINVAL",
        "skipped",
        {"mincore": requests.fail_with("EINVAL", conditions.is_(1, 0))},
    ),
    Fault(
        "msync-invalidate-not-busy",
        CHAPTER,
        "msync(MS_INVALIDATE) of locked memory returns 0",
        "result",
        {"msync": requests.substitute_result("EBUSY", 0)},
    ),
    Fault(
        "msync-invalidate-always-busy",
        CHAPTER,
        "msync(MS_INVALIDATE) gives EBUSY for unlocked memory",
        "result",
        {"msync": requests.substitute_result(0, "EBUSY", conditions.flag(2, MS_INVALIDATE))},
    ),
    Fault(
        "msync-sync-busy",
        CHAPTER,
        "msync(MS_SYNC) gives EBUSY for locked memory",
        "result",
        {"msync": requests.substitute_result(0, "EBUSY", lambda c: bool(c.locked(*c.range)))},
    ),
    Fault(
        "msync-onfault-not-busy",
        CHAPTER,
        "msync(MS_INVALIDATE) forgets memory locked on fault",
        "result",
        {
            "msync": requests.substitute_result(
                "EBUSY", 0, lambda c: all(v.onfault for _, _, v in c.locked(*c.range))
            )
        },
    ),
    Fault(
        "dontneed-drops-locked",
        CHAPTER,
        "MADV_DONTNEED drops locked pages",
        "argument",
        {
            "madvise": requests.replace(
                2,
                lambda a: syscalls.MADV_DONTNEED_LOCKED,
                conditions.is_(2, syscalls.MADV_DONTNEED),
            )
        },
    ),
    Fault(
        "madvise-locked-accepted",
        CHAPTER,
        "MADV_FREE, COLD, PAGEOUT and REMOVE return 0 for locked memory",
        "result",
        {"madvise": requests.substitute_result("EINVAL", 0, lambda c: c.args[2] in (8, 9, 20, 21))},
    ),
    Fault(
        "dontneed-locked-refused",
        CHAPTER,
        "MADV_DONTNEED_LOCKED gives EINVAL for locked memory",
        "skipped",
        {
            "madvise": requests.fail_with(
                "EINVAL",
                lambda c: c.args[2] == syscalls.MADV_DONTNEED_LOCKED and bool(c.locked(*c.range)),
            )
        },
    ),
    Fault(
        "dontneed-locked-ignored",
        CHAPTER,
        "MADV_DONTNEED_LOCKED does nothing",
        "skipped",
        {"madvise": requests.skip_returning(conditions.is_(2, syscalls.MADV_DONTNEED_LOCKED))},
    ),
    Fault(
        "harmless-advice-refused",
        CHAPTER,
        "advice that drops nothing gives EINVAL for locked memory",
        "skipped",
        {
            "madvise": requests.fail_with(
                "EINVAL",
                lambda c: c.args[2] not in (4, 8, 9, 20, 21, 24, 102) and bool(c.locked(*c.range)),
            )
        },
    ),
    Fault(
        "mlock-hangs-without-readahead",
        CHAPTER,
        "mlock of a mapping that is not read ahead (MADV_RANDOM) does not return",
        "side-effect",
        {"mlock": requests.hang_where(lambda v: "rr" in v.flags)},
    ),
    Fault(
        "direct-write-lost",
        CHAPTER,
        "a direct write to a file that is locked returns success and is not made",
        "skipped",
        {"pwrite64": files.ignored_where_locked},
    ),
    Fault(
        "direct-write-stale",
        CHAPTER,
        "locked private mappings of a file do not show what was written directly",
        "side-effect",
        {"pwrite64": files.stale},
    ),
    Fault(
        "direct-write-unlocks",
        CHAPTER,
        "a direct write unlocks the file's locked mappings",
        "side-effect",
        {"pwrite64": files.unlocks(files.direct)},
    ),
    Fault(
        "direct-write-takes-locked",
        CHAPTER,
        "a direct write takes every page of the file's locked mappings, copies too",
        "side-effect",
        {"pwrite64": files.drops(when=files.direct)},
    ),
    Fault(
        "file-change-unlocks",
        CHAPTER,
        "fallocate and truncation unlock the file's locked mappings",
        "side-effect",
        dict.fromkeys(("fallocate", "ftruncate"), files.unlocks()),
    ),
    Fault(
        "file-change-takes-locked",
        CHAPTER,
        "fallocate and truncation take every page of the file's locked mappings, copies too",
        "side-effect",
        dict.fromkeys(("fallocate", "ftruncate"), files.drops()),
    ),
    Fault(
        "clone-takes-copies",
        CHAPTER,
        "sharing a file's blocks drops the private copies of its locked mappings",
        "side-effect",
        {"ioctl": files.drops(conditions.private_writable)},
    ),
    Fault(
        "invalidated-stays-unmarked",
        CHAPTER,
        "locked pages of a file that were taken and come back are not PG_mlocked",
        "readout",
        {
            "pwrite64": files.remember_absent(files.direct),
            "fallocate": files.remember_absent(),
            **on_reads(files.unmarked_when_back),
        },
    ),
    Fault(
        "fadvise-drops-locked",
        CHAPTER,
        "posix_fadvise(POSIX_FADV_DONTNEED) drops locked pages of the file",
        "side-effect",
        {"fadvise64": files.drops()},
    ),
    Fault(
        "served-file-unlocked",
        CHAPTER,
        "a FUSE server's notification unlocks the file's locked mappings",
        "side-effect",
        {"write": files.served("munlock")},
    ),
    Fault(
        "served-file-taken",
        CHAPTER,
        "a FUSE server's notification takes private copies of locked mappings too",
        "side-effect",
        {"write": files.served("madvise", syscalls.MADV_DONTNEED_LOCKED)},
    ),
)
