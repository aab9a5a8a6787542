# SPDX-License-Identifier: MIT
"""Faults that cases of tests/concurrency detect."""

from __future__ import annotations

from helpers.faults.call import END
from helpers.faults.catalogue.common import both_locks, miscounting, on_reads
from helpers.faults.effects import accounting, batches, conditions, limits, requests, shown
from helpers.faults.fault import Fault
from helpers.observe import page_flags

CHAPTER = "concurrency"
FAULTS = (
    Fault(
        "thread-escapes-limit",
        CHAPTER,
        "mlock by a thread but the first escapes the limit",
        "limit",
        both_locks(limits.lifted(conditions.not_leader)),
    ),
    Fault(
        "thread-uncounted",
        CHAPTER,
        "mlock by a thread but the first is not counted in VmLck",
        "readout",
        {
            **miscounting("mlock", accounting.by_thread(accounting.unadded)),
            **miscounting("mlock2", accounting.by_thread(accounting.unadded)),
        },
    ),
    Fault(
        "thread-munlock-kept",
        CHAPTER,
        "munlock by a thread but the first does not lower VmLck",
        "readout",
        miscounting("munlock", accounting.by_thread(accounting.kept)),
    ),
    Fault(
        "kill-keeps-mlocked",
        CHAPTER,
        "death by a signal leaves PG_mlocked on pages that live on",
        "readout",
        {
            END: shown.mark_killed("kept"),
            **on_reads(shown.frames_show("kept", page_flags.MLOCKED, True)),
        },
    ),
    Fault(
        "mlock-populates-4096",
        CHAPTER,
        "mlock brings in the first 4096 pages of a long range alone",
        "side-effect",
        both_locks(requests.populate_at_most(4096)),
    ),
    Fault(
        "mlock-stops-after-1000-vmas",
        CHAPTER,
        "mlock leaves out what lies behind the first 1000 VMAs",
        "argument",
        both_locks(requests.cut_after(1000)),
    ),
    Fault(
        "mark-lost-on-another-cpu",
        CHAPTER,
        "a page that waits in another CPU's batch is not PG_mlocked by a lock",
        "readout",
        {
            "sched_setaffinity": batches.remember_move,
            **both_locks(batches.after_move(shown.mark_frames("cleared"))),
            **on_reads(shown.frames_show("cleared", page_flags.MLOCKED, False)),
        },
    ),
    Fault(
        "mark-kept-on-another-cpu",
        CHAPTER,
        "munlock on another CPU than the lock's leaves PG_mlocked",
        "readout",
        {
            "sched_setaffinity": batches.remember_move,
            "munlock": batches.after_move(shown.mark_frames("kept", "before")),
            "munlockall": batches.after_move(shown.mark_frames("kept", "before")),
            **on_reads(shown.frames_show("kept", page_flags.MLOCKED, True)),
        },
    ),
    Fault(
        "lock-leaves-its-batch",
        CHAPTER,
        "the last pages of a lock wait in the CPU's batch when it returns",
        "readout",
        {
            **both_locks(batches.leave_waiting),
            "mmap": batches.leave_waiting,
            **on_reads(shown.edit_words(shown.FLAGS, batches.waiting_not_unevictable)),
        },
    ),
    Fault(
        "mlocked-counter-grows-on-another-cpu",
        CHAPTER,
        "Mlocked in meminfo keeps what is unlocked on another CPU than the lock's",
        "readout",
        {
            "sched_setaffinity": batches.remember_move,
            **dict.fromkeys(("munlock", "munlockall", "munmap"), batches.leak_count),
            **on_reads(batches.show_leaked),
        },
    ),
    Fault(
        "mlocked-counter-grows-at-exit",
        CHAPTER,
        "Mlocked in meminfo keeps what a process had locked when it ended",
        "readout",
        {END: batches.leak_at_exit, **on_reads(batches.show_leaked)},
    ),
)
