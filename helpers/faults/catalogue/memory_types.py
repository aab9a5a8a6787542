# SPDX-License-Identifier: MIT
"""Faults that cases of tests/memory_types detect."""

from __future__ import annotations

from helpers import syscalls
from helpers.faults.catalogue.common import both_locks, on_reads
from helpers.faults.effects import conditions, limits, requests, segments, shown
from helpers.faults.fault import Fault
from helpers.observe import page_flags, pagemap
from helpers.syscalls import SHM_LOCK, SHM_UNLOCK

CHAPTER = "memory_types"
SOFT_OFFLINE = conditions.is_(2, syscalls.MADV_SOFT_OFFLINE)
_UNMARKED = on_reads(shown.frames_show("cleared", page_flags.MLOCKED, False))
_PRESENT, _ANONYMOUS = pagemap.PRESENT, pagemap.PRESENT | pagemap.FILE_OR_SHARED
FAULTS = (
    Fault(
        "shm-lock-ignored",
        CHAPTER,
        "SHM_LOCK returns 0 and does nothing",
        "skipped",
        {"shmctl": requests.skip_returning(conditions.is_(1, SHM_LOCK))},
    ),
    Fault(
        "shm-unlock-ignored",
        CHAPTER,
        "SHM_UNLOCK returns 0 and does nothing",
        "skipped",
        {"shmctl": requests.skip_returning(conditions.is_(1, SHM_UNLOCK))},
    ),
    Fault(
        "shm-lock-by-anyone",
        CHAPTER,
        "SHM_LOCK succeeds for who is neither owner nor capable",
        "result",
        {"shmctl": requests.substitute_result("EPERM", 0, conditions.is_(1, SHM_LOCK))},
    ),
    Fault(
        "shm-quota-unchecked",
        CHAPTER,
        "SHM_LOCK beyond the user's quota succeeds",
        "result",
        {"shmctl": requests.substitute_result("ENOMEM", 0, conditions.is_(1, SHM_LOCK))},
    ),
    Fault(
        "shm-lock-unknown-segment",
        CHAPTER,
        "SHM_LOCK of a segment that is not there succeeds",
        "result",
        {"shmctl": requests.substitute_result("EINVAL", 0, conditions.is_(1, SHM_LOCK))},
    ),
    Fault(
        "shm-unlock-needs-right",
        CHAPTER,
        "SHM_UNLOCK by the owner gives EPERM",
        "skipped",
        {"shmctl": requests.fail_with("EPERM", conditions.is_(1, SHM_UNLOCK))},
    ),
    Fault(
        "secret-private-accepted",
        CHAPTER,
        "a private mapping of secret memory succeeds",
        "argument",
        {
            "mmap": requests.replace(
                3,
                lambda f: f & ~syscalls.MAP_PRIVATE | syscalls.MAP_SHARED,
                lambda c: bool(c.args[3] & syscalls.MAP_PRIVATE) and conditions.secret(c),
            )
        },
    ),
    Fault(
        "secret-bound-in-spite-of-capability",
        CHAPTER,
        "the limit binds secret memory in spite of CAP_IPC_LOCK",
        "skipped",
        {
            "mmap": limits.bound_capable(
                "EAGAIN", lambda c: conditions.secret(c) and conditions.beyond(c)
            )
        },
    ),
    Fault(
        "secret-read-by-others",
        CHAPTER,
        "process_vm_readv reads secret memory",
        "result",
        {"process_vm_readv": requests.all_read},
    ),
    Fault(
        "secret-spliced",
        CHAPTER,
        "vmsplice takes pages of secret memory",
        "result",
        {"vmsplice": requests.substitute_result("EFAULT", syscalls.PAGE)},
    ),
    Fault(
        "secret-written-directly",
        CHAPTER,
        "direct I/O writes secret memory to a file",
        "result",
        {"pwrite64": requests.substitute_result("EFAULT", syscalls.PAGE)},
    ),
    Fault(
        "pin-of-locked-enomem",
        CHAPTER,
        "pinning a fixed buffer gives ENOMEM to a process that has locked memory",
        "skipped",
        {"io_uring_register": requests.fail_with("ENOMEM", conditions.pins_locked)},
    ),
    Fault(
        "pin-of-locked-unlocks",
        CHAPTER,
        "pinning a fixed buffer unlocks what the process has locked",
        "side-effect",
        {"io_uring_register": requests.unlocked_after(conditions.pins_locked)},
    ),
    Fault(
        "move-drops-contents",
        CHAPTER,
        "move_pages and mbind lose the contents of locked pages",
        "side-effect",
        {
            "mbind": requests.followed_by(
                "madvise", syscalls.MADV_DONTNEED_LOCKED, when=conditions.always
            ),
            "move_pages": requests.moved_empty,
        },
    ),
    Fault(
        "soft-offline-unlocks",
        CHAPTER,
        "MADV_SOFT_OFFLINE unlocks the page",
        "side-effect",
        {"madvise": requests.followed_by("munlock", when=SOFT_OFFLINE)},
    ),
    Fault(
        "soft-offline-drops",
        CHAPTER,
        "MADV_SOFT_OFFLINE loses the page's contents",
        "side-effect",
        {
            "madvise": requests.followed_by(
                "madvise", syscalls.MADV_DONTNEED_LOCKED, when=SOFT_OFFLINE
            )
        },
    ),
    Fault(
        "soft-offline-unmarks",
        CHAPTER,
        "a locked page moved by MADV_SOFT_OFFLINE is not PG_mlocked",
        "readout",
        {
            "madvise": shown.mark_frames("cleared", only=SOFT_OFFLINE),
            **on_reads(shown.frames_show("cleared", page_flags.MLOCKED, False)),
        },
    ),
    Fault(
        "hwpoison-ignored",
        CHAPTER,
        "MADV_HWPOISON returns 0 and takes no page",
        "skipped",
        {"madvise": requests.skip_returning(conditions.is_(2, syscalls.MADV_HWPOISON))},
    ),
    Fault(
        "hwpoison-unlocks",
        CHAPTER,
        "an error in a locked page unlocks all of the process",
        "side-effect",
        {"madvise": requests.unlocked_after(conditions.is_(2, syscalls.MADV_HWPOISON))},
    ),
    Fault(
        "policy-change-unlocks",
        CHAPTER,
        "set_mempolicy unlocks what the process has locked",
        "side-effect",
        {"set_mempolicy": requests.unlocked_after(conditions.always)},
    ),
    Fault(
        "advised-page-not-marked",
        CHAPTER,
        "a page that was advised MADV_COLD or MADV_FREE is not PG_mlocked by its lock",
        "readout",
        {
            "madvise": shown.remember_advised(syscalls.MADV_COLD, syscalls.MADV_FREE),
            **both_locks(shown.unmark_advised("cleared")),
            **_UNMARKED,
        },
    ),
    Fault(
        "cow-page-not-marked",
        CHAPTER,
        "a private page that a forked child shares is not PG_mlocked by its lock",
        "readout",
        {
            **both_locks(
                shown.unmark_at_lock(
                    "cleared", lambda w: w & (_ANONYMOUS | pagemap.EXCLUSIVE) == _PRESENT
                )
            ),
            **_UNMARKED,
        },
    ),
    Fault(
        "protected-page-not-marked",
        CHAPTER,
        "a page that a userfaultfd has write-protected is not PG_mlocked by its lock",
        "readout",
        {
            **both_locks(
                shown.unmark_at_lock("cleared", lambda w: bool(w & pagemap.WRITE_PROTECTED))
            ),
            **_UNMARKED,
        },
    ),
    Fault(
        "mark-lost-on-move",
        CHAPTER,
        "pages of locked memory that mremap moves lose PG_mlocked",
        "readout",
        {"mremap": shown.unmark_moved("cleared"), **_UNMARKED},
    ),
    Fault(
        "mark-lost-on-migration",
        CHAPTER,
        "locked pages that move_pages moves to another node lose PG_mlocked",
        "readout",
        {"move_pages": shown.unmark_migrated("cleared"), **_UNMARKED},
    ),
    Fault(
        "guard-removed-by-lock",
        CHAPTER,
        "a lock removes the guard pages of its range",
        "side-effect",
        both_locks(requests.advise_after(syscalls.MADV_GUARD_REMOVE)),
    ),
    Fault(
        "shm-proc-hides-lock",
        CHAPTER,
        "/proc/sysvipc/shm does not show SHM_LOCKED",
        "readout",
        on_reads(segments.show_column("perms", segments.lock_hidden)),
    ),
    Fault(
        "shm-stat-hides-lock",
        CHAPTER,
        "shmctl does not show SHM_LOCKED in the mode",
        "readout",
        {"shmctl": segments.stat_hides_lock},
    ),
    Fault(
        "shm-size-in-pages",
        CHAPTER,
        "/proc/sysvipc/shm rounds sizes up to pages",
        "readout",
        on_reads(segments.show_column("size", segments.in_pages)),
    ),
    Fault(
        "shm-rss-is-size",
        CHAPTER,
        "/proc/sysvipc/shm shows the whole size of a segment as rss",
        "readout",
        on_reads(segments.show_column("rss", segments.in_pages)),
    ),
    Fault(
        "shm-rss-counts-swapped",
        CHAPTER,
        "rss of a segment has its swapped-out pages too",
        "readout",
        on_reads(segments.show_column("rss", segments.rss_and_swap)),
    ),
    Fault(
        "shm-swap-always-zero",
        CHAPTER,
        "/proc/sysvipc/shm shows no page of a segment in swap",
        "readout",
        on_reads(segments.show_column("swap", lambda row: 0)),
    ),
    Fault(
        "shm-attachment-left-out",
        CHAPTER,
        "nattch in /proc/sysvipc/shm lacks an attachment of several",
        "readout",
        on_reads(segments.show_column("nattch", segments.one_of_several_less)),
    ),
    Fault(
        "shm-info-rss-is-total",
        CHAPTER,
        "SHM_INFO counts every page of every segment as in memory",
        "readout",
        {"shmctl": segments.info_rss_is_total},
    ),
)
