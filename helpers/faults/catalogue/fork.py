# SPDX-License-Identifier: MIT
"""Faults that cases of tests/fork detect."""

from __future__ import annotations

from helpers import syscalls
from helpers.faults.call import CHILD
from helpers.faults.catalogue.common import FORKS, LOCKS, both_locks, knowing_future, on_reads
from helpers.faults.effects import accounting, conditions, lifetime, requests, shown
from helpers.faults.fault import Fault
from helpers.observe import page_flags

CHAPTER = "fork"
FAULTS = (
    Fault(
        "fork-child-locked",
        CHAPTER,
        "a forked child has its parent's locks",
        "side-effect",
        {CHILD: lifetime.child_locked()},
    ),
    Fault(
        "fork-child-locked-on-fault",
        CHAPTER,
        "a forked child has its parent's locks as locks on fault",
        "side-effect",
        {CHILD: lifetime.child_locked(only=1)},
    ),
    Fault(
        "fork-child-keeps-shared-lock",
        CHAPTER,
        "a forked child has its parent's locks of shared memory",
        "side-effect",
        {CHILD: lifetime.child_locked(conditions.shared)},
    ),
    Fault(
        "fork-child-keeps-lf",
        CHAPTER,
        "a forked child has its parent's locks on fault",
        "side-effect",
        {CHILD: lifetime.child_locked(conditions.onfault)},
    ),
    Fault(
        "fork-child-vmlck",
        CHAPTER,
        "a forked child starts with its parent's VmLck",
        "readout",
        {CHILD: lifetime.child_counted, **on_reads(accounting.show_miscount)},
    ),
    Fault(
        "fork-child-inherits-future",
        CHAPTER,
        "a forked child inherits MCL_FUTURE",
        "side-effect",
        knowing_future((CHILD, lifetime.inherit_future)),
    ),
    Fault(
        "fork-parent-unlocked",
        CHAPTER,
        "fork takes the parent's locks away",
        "side-effect",
        dict.fromkeys(FORKS, lifetime.parent_unlocked),
    ),
    Fault(
        "fork-parent-vmlck-zero",
        CHAPTER,
        "fork sets the parent's VmLck to 0",
        "readout",
        {**dict.fromkeys(FORKS, lifetime.parent_uncounted), **on_reads(accounting.show_miscount)},
    ),
    Fault(
        "fork-copies-locked-at-once",
        CHAPTER,
        "fork copies private pages that the parent holds locked",
        "side-effect",
        {CHILD: lifetime.child_copied(conditions.private_writable)},
    ),
    Fault(
        "fork-dontfork-ignored",
        CHAPTER,
        "MADV_DONTFORK is accepted and ignored",
        "skipped",
        {"madvise": requests.skip_returning(conditions.is_(2, syscalls.MADV_DONTFORK))},
    ),
    Fault(
        "fork-wipeonfork-ignored",
        CHAPTER,
        "MADV_WIPEONFORK is accepted and ignored",
        "skipped",
        {"madvise": requests.skip_returning(conditions.is_(2, syscalls.MADV_WIPEONFORK))},
    ),
    Fault(
        "exec-keeps-future",
        CHAPTER,
        "MCL_FUTURE outlasts execve",
        "side-effect",
        knowing_future(
            ("execve", lifetime.exec_keeps_future), ("execveat", lifetime.exec_keeps_future)
        ),
    ),
    Fault(
        "exec-keeps-vmlck",
        CHAPTER,
        "VmLck outlasts execve",
        "readout",
        {
            "execve": lifetime.exec_keeps_count,
            "execveat": lifetime.exec_keeps_count,
            **on_reads(accounting.show_miscount),
        },
    ),
    Fault(
        "exec-raises-limit",
        CHAPTER,
        "execve raises the soft limit to the hard one",
        "limit",
        dict.fromkeys(("execve", "execveat"), lifetime.exec_raises_limit),
    ),
    Fault(
        "exec-failed-unlocks",
        CHAPTER,
        "a failed execve drops the locks",
        "side-effect",
        dict.fromkeys(("execve", "execveat"), lifetime.failed_unlocks),
    ),
    Fault(
        "exec-failed-cancels-future",
        CHAPTER,
        "a failed execve cancels MCL_FUTURE",
        "side-effect",
        knowing_future(("execve", lifetime.failed_cancels), ("execveat", lifetime.failed_cancels)),
    ),
    Fault(
        "vfork-munlock-ignored",
        CHAPTER,
        "munlock by a vfork child does nothing",
        "skipped",
        dict.fromkeys(
            ("munlock", "munlockall"), requests.skip_returning(conditions.in_vfork_child)
        ),
    ),
    Fault(
        "vfork-mlock-ignored",
        CHAPTER,
        "mlock by a vfork child does nothing",
        "skipped",
        dict.fromkeys((*LOCKS, "mlockall"), requests.skip_returning(conditions.in_vfork_child)),
    ),
    Fault(
        "vfork-end-unlocks",
        CHAPTER,
        "the end of a vfork child drops the parent's locks",
        "side-effect",
        {
            "vfork": lifetime.end_unlocks,
            "clone": lifetime.end_unlocks,
            "clone3": lifetime.end_unlocks,
        },
    ),
    Fault(
        "thread-mlockall-ignored",
        CHAPTER,
        "mlockall by a thread but the first does nothing",
        "skipped",
        dict.fromkeys(("mlockall", "munlockall"), requests.skip_returning(conditions.not_leader)),
    ),
    Fault(
        "exit-clears-others",
        CHAPTER,
        "an exiting locker clears PG_mlocked of pages others hold",
        "readout",
        {
            "exit_group": shown.mark_frames("cleared", "before"),
            **both_locks(shown.forget_frames("cleared")),
            **on_reads(shown.frames_show("cleared", page_flags.MLOCKED, False)),
        },
    ),
    Fault(
        "munlock-clears-others",
        CHAPTER,
        "the first of several lockers to unlock clears PG_mlocked",
        "readout",
        {
            "munlock": shown.mark_frames("cleared", "before"),
            **both_locks(shown.forget_frames("cleared")),
            **on_reads(shown.frames_show("cleared", page_flags.MLOCKED, False)),
        },
    ),
    Fault(
        "munlock-keeps-mlocked",
        CHAPTER,
        "munlock leaves PG_mlocked on its pages",
        "readout",
        {
            "munlock": shown.mark_frames("kept", "before"),
            "munlockall": shown.mark_frames("kept", "before"),
            **both_locks(shown.forget_frames("kept")),
            **on_reads(shown.frames_show("kept", page_flags.MLOCKED, True)),
        },
    ),
    Fault(
        "exit-keeps-mlocked",
        CHAPTER,
        "the end of a locker leaves PG_mlocked on pages that live on",
        "readout",
        {
            "exit_group": shown.mark_frames("kept", "before"),
            **on_reads(shown.frames_show("kept", page_flags.MLOCKED, True)),
        },
    ),
    Fault(
        "kpagecount-one-more",
        CHAPTER,
        "kpagecount counts each mapping once too often",
        "readout",
        on_reads(shown.edit_words(shown.COUNTS, shown.one_more)),
    ),
    Fault(
        "kpagecount-never-above-one",
        CHAPTER,
        "kpagecount does not count a second mapping",
        "readout",
        on_reads(shown.edit_words(shown.COUNTS, shown.one_at_most)),
    ),
    Fault(
        "wipeonfork-refused",
        CHAPTER,
        "MADV_WIPEONFORK gives EINVAL for every memory",
        "skipped",
        {"madvise": requests.fail_with("EINVAL", lambda c: c.args[2] == syscalls.MADV_WIPEONFORK)},
    ),
)
