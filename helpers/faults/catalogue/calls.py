# SPDX-License-Identifier: MIT
"""Faults that cases of tests/calls detect."""

from __future__ import annotations

from helpers import syscalls
from helpers.faults.catalogue import failing_calls
from helpers.faults.catalogue.common import LOCKS, both_locks, knowing_future
from helpers.faults.effects import conditions, lifetime, requests
from helpers.faults.fault import Fault
from helpers.syscalls import MAP_LOCKED, MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT, MLOCK_ONFAULT

CHAPTER = "calls"
FAULTS = (
    Fault(
        "mlock-ignored",
        CHAPTER,
        "mlock returns 0 and does nothing",
        "skipped",
        {"mlock": requests.skip_returning()},
    ),
    Fault(
        "mlock2-ignored",
        CHAPTER,
        "mlock2 returns 0 and does nothing",
        "skipped",
        {"mlock2": requests.skip_returning(lambda c: c.args[2] in (0, 1))},
    ),
    Fault(
        "munlock-ignored",
        CHAPTER,
        "munlock returns 0 and does nothing",
        "skipped",
        {"munlock": requests.skip_returning()},
    ),
    Fault(
        "mlockall-ignored",
        CHAPTER,
        "mlockall returns 0 and does nothing",
        "skipped",
        {"mlockall": requests.skip_returning(lambda c: 0 < c.args[0] < MCL_ONFAULT * 2)},
    ),
    Fault(
        "munlockall-ignored",
        CHAPTER,
        "munlockall returns 0 and does nothing",
        "skipped",
        {"munlockall": requests.skip_returning()},
    ),
    Fault(
        "lock-family-not-implemented",
        CHAPTER,
        "the mlock family gives ENOSYS",
        "skipped",
        dict.fromkeys(
            ("mlock", "mlock2", "munlock", "mlockall", "munlockall"), requests.fail_with("ENOSYS")
        ),
    ),
    Fault(
        "success-is-not-zero",
        CHAPTER,
        "the mlock family returns 1 for success",
        "result",
        dict.fromkeys(
            ("mlock", "mlock2", "munlock", "mlockall", "munlockall"),
            requests.substitute_result(0, 1),
        ),
    ),
    Fault(
        "mlock-length-ignores-offset",
        CHAPTER,
        "mlock rounds the length up without the offset of an unaligned start",
        "argument",
        both_locks(requests.forget_offset),
    ),
    Fault(
        "munlock-length-ignores-offset",
        CHAPTER,
        "munlock rounds the length up without the offset of an unaligned start",
        "argument",
        {"munlock": requests.forget_offset},
    ),
    Fault(
        "mlock-start-rounded-up",
        CHAPTER,
        "mlock rounds its start up, inward",
        "argument",
        both_locks(requests.round_start_up),
    ),
    Fault(
        "munlock-start-rounded-up",
        CHAPTER,
        "munlock rounds its start up, inward",
        "argument",
        {"munlock": requests.round_start_up},
    ),
    Fault(
        "mlock-length-rounded-down",
        CHAPTER,
        "mlock rounds a length of more than a page down",
        "argument",
        both_locks(requests.round_length_down),
    ),
    Fault(
        "mlock-one-page-more",
        CHAPTER,
        "mlock goes on into the page behind its range",
        "argument",
        both_locks(requests.one_page_more),
    ),
    Fault(
        "munlock-one-page-more",
        CHAPTER,
        "munlock goes on into the page behind its range",
        "argument",
        {"munlock": requests.one_page_more},
    ),
    Fault(
        "mlock-unaligned-einval",
        CHAPTER,
        "mlock refuses an unaligned start with EINVAL",
        "skipped",
        both_locks(requests.fail_with("EINVAL", lambda c: bool(c.args[0] % syscalls.PAGE))),
    ),
    Fault(
        "munlock-unaligned-einval",
        CHAPTER,
        "munlock refuses an unaligned start with EINVAL",
        "skipped",
        {"munlock": requests.fail_with("EINVAL", lambda c: bool(c.args[0] % syscalls.PAGE))},
    ),
    Fault(
        "mlock-zero-length-einval",
        CHAPTER,
        "mlock and munlock of length 0 give EINVAL",
        "skipped",
        dict.fromkeys((*LOCKS, "munlock"), requests.fail_with("EINVAL", conditions.is_(1, 0))),
    ),
    Fault(
        "mlock2-unknown-flags-accepted",
        CHAPTER,
        "mlock2 accepts unknown flags",
        "argument",
        {"mlock2": requests.clear_bits(2, ~MLOCK_ONFAULT)},
    ),
    Fault(
        "mlock2-flags-checked-late",
        CHAPTER,
        "mlock2 checks rights before its flags",
        "skipped",
        {"mlock2": requests.fail_with("EPERM", lambda c: c.args[2] > 1 and conditions.no_right(c))},
    ),
    Fault(
        "mlockall-zero-accepted",
        CHAPTER,
        "mlockall(0) succeeds",
        "skipped",
        {"mlockall": requests.skip_returning(conditions.is_(0, 0))},
    ),
    Fault(
        "mlockall-onfault-alone-accepted",
        CHAPTER,
        "mlockall(MCL_ONFAULT) alone succeeds",
        "skipped",
        {"mlockall": requests.skip_returning(conditions.is_(0, MCL_ONFAULT))},
    ),
    Fault(
        "mlockall-unknown-flag-accepted",
        CHAPTER,
        "mlockall accepts flags it does not know",
        "argument",
        {
            "mlockall": requests.clear_bits(
                0,
                ~(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT),
                conditions.flag(0, MCL_CURRENT | MCL_FUTURE),
            )
        },
    ),
    Fault(
        "mlockall-flags-checked-late",
        CHAPTER,
        "mlockall checks rights before its flags",
        "skipped",
        {
            "mlockall": requests.fail_with(
                "EPERM",
                lambda c: (
                    conditions.no_right(c)
                    and (c.args[0] in (0, MCL_ONFAULT) or c.args[0] >= MCL_ONFAULT * 2)
                ),
            )
        },
    ),
    Fault(
        "mlock-hole-not-reported",
        CHAPTER,
        "mlock over a hole returns 0",
        "result",
        both_locks(requests.substitute_result("ENOMEM", 0, conditions.has_hole)),
    ),
    Fault(
        "mlock-hole-eagain",
        CHAPTER,
        "mlock over a hole gives EAGAIN",
        "result",
        both_locks(requests.substitute_result("ENOMEM", "EAGAIN", conditions.has_hole)),
    ),
    Fault(
        "mlock-hole-locks-nothing",
        CHAPTER,
        "mlock over a hole locks nothing before it",
        "side-effect",
        both_locks(requests.undo_before_hole),
    ),
    Fault(
        "mlock-hole-locks-beyond",
        CHAPTER,
        "mlock over a hole also locks what lies behind it",
        "side-effect",
        both_locks(requests.lock_behind_hole),
    ),
    Fault(
        "munlock-hole-not-reported",
        CHAPTER,
        "munlock over a hole returns 0",
        "result",
        {"munlock": requests.substitute_result("ENOMEM", 0, conditions.has_hole)},
    ),
    Fault(
        "munlock-hole-unlocks-nothing",
        CHAPTER,
        "munlock over a hole unlocks nothing before it",
        "skipped",
        {"munlock": requests.fail_with("ENOMEM", conditions.has_hole)},
    ),
    Fault(
        "overflow-enomem",
        CHAPTER,
        "an overflowing range gives ENOMEM in place of EINVAL",
        "result",
        dict.fromkeys(
            (*LOCKS, "munlock"),
            requests.substitute_result("EINVAL", "ENOMEM", lambda c: c.args[1] >> 40 > 0),
        ),
    ),
    Fault(
        "overflow-accepted",
        CHAPTER,
        "an overflowing range returns 0",
        "result",
        dict.fromkeys(
            (*LOCKS, "munlock"),
            requests.substitute_result("EINVAL", 0, lambda c: c.args[1] >> 40 > 0),
        ),
    ),
    Fault(
        "kernel-range-einval",
        CHAPTER,
        "a range outside of user space gives EINVAL",
        "result",
        dict.fromkeys(
            (*LOCKS, "munlock"),
            requests.substitute_result("ENOMEM", "EINVAL", lambda c: c.args[0] >> 46 > 0),
        ),
    ),
    Fault(
        "tagged-address-accepted",
        CHAPTER,
        "a tagged address is taken for the untagged one",
        "argument",
        dict.fromkeys(
            (*LOCKS, "munlock"),
            requests.replace(0, lambda a: a & (1 << 56) - 1, lambda c: 0 < c.args[0] >> 56 < 255),
        ),
    ),
    Fault(
        "mlock-protnone-succeeds",
        CHAPTER,
        "mlock over PROT_NONE memory returns 0",
        "result",
        both_locks(requests.substitute_result("ENOMEM", 0, conditions.has_inaccessible)),
    ),
    Fault(
        "mlock-protnone-not-locked",
        CHAPTER,
        "mlock over PROT_NONE memory does not mark it",
        "side-effect",
        both_locks(requests.unlock_where(conditions.inaccessible)),
    ),
    Fault(
        "mlock-past-eof-succeeds",
        CHAPTER,
        "mlock reaching past the end of a file returns 0",
        "result",
        both_locks(requests.substitute_result("ENOMEM", 0, conditions.past_file)),
    ),
    Fault(
        "mlock-populate-efault",
        CHAPTER,
        "a failed population is reported as EFAULT",
        "result",
        both_locks(
            requests.substitute_result(
                "ENOMEM",
                "EFAULT",
                lambda c: conditions.has_inaccessible(c) or conditions.past_file(c),
            )
        ),
    ),
    Fault(
        "mlock-onfault-protnone-enomem",
        CHAPTER,
        "mlock2(MLOCK_ONFAULT) of PROT_NONE gives ENOMEM",
        "result",
        {
            "mlock2": requests.substitute_result(
                0, "ENOMEM", lambda c: c.args[2] == 1 and conditions.has_inaccessible(c)
            )
        },
    ),
    Fault(
        "mlockall-reports-populate-errors",
        CHAPTER,
        "mlockall(MCL_CURRENT) reports what it cannot populate",
        "result",
        {
            "mlockall": requests.substitute_result(
                0, "ENOMEM", lambda c: any(conditions.inaccessible(v) for v in c.vmas())
            )
        },
    ),
    Fault(
        "munlock-needs-right",
        CHAPTER,
        "munlock gives EPERM to who may lock nothing",
        "skipped",
        {"munlock": requests.fail_with("EPERM", conditions.no_right)},
    ),
    Fault(
        "munlockall-needs-right",
        CHAPTER,
        "munlockall gives EPERM to who may lock nothing",
        "skipped",
        {"munlockall": requests.fail_with("EPERM", conditions.no_right)},
    ),
    Fault(
        "thread-munlock-ignored",
        CHAPTER,
        "munlock by any thread but the first does nothing",
        "skipped",
        {"munlock": requests.skip_returning(conditions.not_leader)},
    ),
    Fault(
        "thread-mlock-ignored",
        CHAPTER,
        "mlock by any thread but the first does nothing",
        "skipped",
        both_locks(requests.skip_returning(conditions.not_leader)),
    ),
    Fault(
        "maplocked-ignored",
        CHAPTER,
        "mmap ignores MAP_LOCKED",
        "argument",
        {"mmap": requests.clear_bits(3, MAP_LOCKED)},
    ),
    Fault(
        "maplocked-fails-unpopulated",
        CHAPTER,
        "MAP_LOCKED of what cannot be populated gives ENOMEM",
        "skipped",
        {
            "mmap": requests.fail_with(
                "ENOMEM", lambda c: bool(c.args[3] & MAP_LOCKED) and not c.args[2]
            )
        },
    ),
    Fault(
        "maplocked-length-rounded-down",
        CHAPTER,
        "MAP_LOCKED rounds a length of more than a page down",
        "argument",
        {
            "mmap": requests.replace(
                1,
                lambda n: n // syscalls.PAGE * syscalls.PAGE,
                lambda c: bool(c.args[3] & MAP_LOCKED) and c.args[1] > syscalls.PAGE,
            )
        },
    ),
    Fault(
        "maplocked-bad-arguments-efault",
        CHAPTER,
        "MAP_LOCKED reports bad arguments as EFAULT",
        "result",
        {"mmap": requests.substitute_result("EINVAL", "EFAULT", conditions.flag(3, MAP_LOCKED))},
    ),
    Fault(
        "mlockall-current-keeps-future",
        CHAPTER,
        "mlockall(MCL_CURRENT) does not cancel MCL_FUTURE",
        "side-effect",
        knowing_future(("mlockall", lifetime.keep_future)),
    ),
    Fault(
        "munlockall-keeps-future",
        CHAPTER,
        "munlockall does not cancel MCL_FUTURE",
        "side-effect",
        knowing_future(("munlockall", lifetime.keep_future)),
    ),
    Fault(
        "munlock-cancels-future",
        CHAPTER,
        "munlock of one range cancels MCL_FUTURE",
        "side-effect",
        knowing_future(("munlock", lifetime.cancel_future)),
    ),
    Fault(
        "mlockall-both-forgets-future",
        CHAPTER,
        "mlockall(MCL_CURRENT|MCL_FUTURE) forgets MCL_FUTURE",
        "argument",
        {"mlockall": requests.clear_bits(0, MCL_FUTURE, conditions.flag(0, MCL_CURRENT))},
    ),
    Fault(
        "mlockall-both-forgets-current",
        CHAPTER,
        "mlockall(MCL_CURRENT|MCL_FUTURE) forgets MCL_CURRENT",
        "argument",
        {"mlockall": requests.clear_bits(0, MCL_CURRENT, conditions.flag(0, MCL_FUTURE))},
    ),
    Fault(
        "mlockall-future-onfault-lost",
        CHAPTER,
        "mlockall(MCL_FUTURE|MCL_ONFAULT) forgets MCL_ONFAULT",
        "argument",
        {"mlockall": requests.clear_bits(0, MCL_ONFAULT, conditions.flag(0, MCL_FUTURE))},
    ),
    Fault(
        "mlockall-current-onfault-lost",
        CHAPTER,
        "mlockall(MCL_CURRENT|MCL_ONFAULT) forgets MCL_ONFAULT",
        "argument",
        {"mlockall": requests.clear_bits(0, MCL_ONFAULT, conditions.flag(0, MCL_CURRENT))},
    ),
    Fault(
        "mlockall-future-locks-current",
        CHAPTER,
        "mlockall(MCL_FUTURE) also locks what is mapped",
        "argument",
        {"mlockall": requests.set_bits(0, MCL_CURRENT, conditions.flag(0, MCL_FUTURE))},
    ),
    Fault(
        "mlockall-current-implies-future",
        CHAPTER,
        "mlockall(MCL_CURRENT) also locks what comes later",
        "argument",
        {"mlockall": requests.set_bits(0, MCL_FUTURE, conditions.flag(0, MCL_CURRENT))},
    ),
    Fault(
        "mincore-one-page-refused",
        CHAPTER,
        "mincore of exactly one page gives ENOMEM",
        "skipped",
        {"mincore": requests.fail_with("ENOMEM", lambda c: c.args[1] == syscalls.PAGE)},
    ),
    *failing_calls.FAULTS,
)
