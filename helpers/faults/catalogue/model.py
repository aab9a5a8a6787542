# SPDX-License-Identifier: MIT
"""Faults that cases of tests/model detect."""

from __future__ import annotations

from helpers.faults.catalogue.common import both_locks, knowing_future, on_reads
from helpers.faults.effects import accounting, conditions, lifetime, requests
from helpers.faults.fault import Fault

CHAPTER = "model"
FAULTS = (
    Fault(
        "future-stays-onfault",
        CHAPTER,
        "mlockall(MCL_FUTURE) does not end MCL_ONFAULT of an earlier MCL_FUTURE",
        "argument",
        knowing_future(("mlockall", lifetime.keep_onfault)),
    ),
    Fault(
        "dontneed-locked-unlocks",
        CHAPTER,
        "MADV_DONTNEED_LOCKED drops the lock with the pages",
        "side-effect",
        {"madvise": requests.unlocked_too},
    ),
    Fault(
        "mremap-refused-unlocks",
        CHAPTER,
        "a refused mremap drops the lock of its source",
        "side-effect",
        {"mremap": requests.refused_unlocks},
    ),
    Fault(
        "truncate-uncounts",
        CHAPTER,
        "cutting off a file uncounts a page of who has it locked",
        "readout",
        {"ftruncate": accounting.cut_uncounted, **on_reads(accounting.show_miscount)},
    ),
    Fault(
        "writeonly-not-populated",
        CHAPTER,
        "a lock does not populate write-only mappings",
        "side-effect",
        {
            **both_locks(requests.drop_absent(conditions.writeonly)),
            "mmap": requests.drop_absent(conditions.writeonly),
        },
    ),
)
