# SPDX-License-Identifier: MIT
"""Faults that cases of tests/limits detect."""

from __future__ import annotations

from helpers import syscalls
from helpers.faults.call import SIGNAL
from helpers.faults.catalogue.common import LOCKS, both_locks, knowing_future, on_reads
from helpers.faults.effects import conditions, lifetime, limit_accounts, limits, requests
from helpers.faults.fault import Fault
from helpers.syscalls import MAP_LOCKED, MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT, PAGE

CHAPTER = "limits"
FAULTS = (
    Fault(
        "limit-mlock-one-over",
        CHAPTER,
        "mlock may exceed the limit by a page",
        "limit",
        both_locks(limits.lifted(conditions.over_limit, syscalls.PAGE)),
    ),
    Fault(
        "limit-mlock-unchecked",
        CHAPTER,
        "mlock obeys the hard limit in place of the soft one",
        "limit",
        {"mlock": limits.lifted(conditions.over_limit)},
    ),
    Fault(
        "limit-onfault-unchecked",
        CHAPTER,
        "mlock2(MLOCK_ONFAULT) escapes the limit",
        "limit",
        {"mlock2": limits.lifted(lambda c: c.args[2] == 1)},
    ),
    Fault(
        "limit-mmap-unchecked",
        CHAPTER,
        "MAP_LOCKED obeys the hard limit in place of the soft one",
        "limit",
        {"mmap": limits.lifted(conditions.flag(3, MAP_LOCKED))},
    ),
    Fault(
        "limit-mmap-fixed-unchecked",
        CHAPTER,
        "MAP_FIXED|MAP_LOCKED escapes the limit",
        "limit",
        {"mmap": limits.lifted(lambda c: bool(c.args[3] & MAP_LOCKED and c.args[3] & 0x10))},
    ),
    Fault(
        "limit-future-unchecked",
        CHAPTER,
        "a mapping under MCL_FUTURE escapes the limit",
        "limit",
        {"mmap": limits.lifted(lambda c: not c.args[3] & MAP_LOCKED)},
    ),
    Fault(
        "limit-future-silent",
        CHAPTER,
        "MCL_FUTURE over the limit maps without a lock",
        "limit",
        {"mmap": limits.lifted_unlocked},
    ),
    Fault(
        "limit-brk-unchecked",
        CHAPTER,
        "brk under MCL_FUTURE escapes the limit",
        "limit",
        {"brk": limits.lifted(conditions.always)},
    ),
    Fault(
        "limit-shmat-unchecked",
        CHAPTER,
        "shmat under MCL_FUTURE escapes the limit",
        "limit",
        {"shmat": limits.lifted(conditions.always)},
    ),
    Fault(
        "limit-mremap-unchecked",
        CHAPTER,
        "mremap of locked memory escapes the limit",
        "limit",
        {"mremap": limits.lifted(conditions.always)},
    ),
    Fault(
        "limit-mlockall-unchecked",
        CHAPTER,
        "mlockall(MCL_CURRENT) escapes the limit",
        "limit",
        {"mlockall": limits.lifted(conditions.flag(0, MCL_CURRENT))},
    ),
    Fault(
        "limit-stack-unchecked",
        CHAPTER,
        "growth of a locked stack escapes the limit",
        "limit",
        {SIGNAL: limits.grow_over_limit},
    ),
    Fault(
        "limit-zero-unchecked",
        CHAPTER,
        "limit 0 does not forbid mlock",
        "limit",
        both_locks(limits.lifted(lambda c: c.limit[0] == 0)),
    ),
    Fault(
        "limit-mlock-equal-refused",
        CHAPTER,
        "mlock up to exactly the limit is refused",
        "side-effect",
        both_locks(limits.full_refused("ENOMEM")),
    ),
    Fault(
        "limit-mmap-equal-refused",
        CHAPTER,
        "MAP_LOCKED up to exactly the limit is refused",
        "side-effect",
        {"mmap": limits.full_refused("EAGAIN")},
    ),
    Fault(
        "limit-mremap-equal-refused",
        CHAPTER,
        "mremap up to exactly the limit is refused",
        "result",
        {"mremap": limits.full_refused("EAGAIN")},
    ),
    Fault(
        "limit-relock-counted",
        CHAPTER,
        "memory locked already counts against the limit again",
        "skipped",
        both_locks(limits.relock_counted),
    ),
    Fault(
        "limit-shared-by-family",
        CHAPTER,
        "one limit holds for a parent and its children together",
        "skipped",
        both_locks(limits.counted_together),
    ),
    Fault(
        "limit-mlock-partly-locks",
        CHAPTER,
        "mlock over the limit locks as much as fits",
        "side-effect",
        both_locks(limits.refused_partly),
    ),
    Fault(
        "limit-mlock-eagain",
        CHAPTER,
        "mlock over the limit gives EAGAIN",
        "result",
        both_locks(requests.substitute_result("ENOMEM", "EAGAIN", conditions.over_limit)),
    ),
    Fault(
        "limit-mmap-enomem",
        CHAPTER,
        "a mapping over the limit gives ENOMEM",
        "result",
        {"mmap": requests.substitute_result("EAGAIN", "ENOMEM")},
    ),
    Fault(
        "limit-mremap-enomem",
        CHAPTER,
        "mremap over the limit gives ENOMEM",
        "result",
        {"mremap": requests.substitute_result("EAGAIN", "ENOMEM")},
    ),
    Fault(
        "limit-mlockall-eagain",
        CHAPTER,
        "mlockall over the limit gives EAGAIN",
        "result",
        {"mlockall": requests.substitute_result("ENOMEM", "EAGAIN")},
    ),
    Fault(
        "limit-zero-enomem",
        CHAPTER,
        "locking at limit 0 gives ENOMEM",
        "result",
        dict.fromkeys((*LOCKS, "mlockall"), requests.substitute_result("EPERM", "ENOMEM")),
    ),
    Fault(
        "limit-zero-mmap-eagain",
        CHAPTER,
        "MAP_LOCKED at limit 0 gives EAGAIN",
        "result",
        {"mmap": requests.substitute_result("EPERM", "EAGAIN", conditions.flag(3, MAP_LOCKED))},
    ),
    Fault(
        "limit-zero-length0-ok",
        CHAPTER,
        "length 0 succeeds at limit 0",
        "result",
        both_locks(requests.substitute_result("EPERM", 0, conditions.is_(1, 0))),
    ),
    Fault(
        "limit-zero-binds-capability",
        CHAPTER,
        "limit 0 forbids even with CAP_IPC_LOCK",
        "skipped",
        both_locks(limits.bound_capable("EPERM", lambda c: c.limit[0] == 0)),
    ),
    Fault(
        "limit-below-page-eperm",
        CHAPTER,
        "a limit below one page gives EPERM like limit 0",
        "result",
        dict.fromkeys(
            (*LOCKS, "mlockall"),
            requests.substitute_result("ENOMEM", "EPERM", lambda c: 0 < c.limit[0] < syscalls.PAGE),
        ),
    ),
    Fault(
        "limit-checked-after-overflow",
        CHAPTER,
        "an overflowing range is EINVAL before the limit is asked",
        "skipped",
        both_locks(
            requests.fail_with(
                "EINVAL", lambda c: not c.capable and c.args[1] >> 40 > 0 and c.limit[0] != -1
            )
        ),
    ),
    Fault(
        "limit-lowered-munlock-refused",
        CHAPTER,
        "munlock is refused while VmLck exceeds the limit",
        "skipped",
        dict.fromkeys(
            ("munlock", "munlockall"), requests.fail_with("ENOMEM", conditions.above_lowered)
        ),
    ),
    Fault(
        "limit-infinite-still-binds",
        CHAPTER,
        "an infinite limit binds at 64 KiB",
        "skipped",
        both_locks(
            requests.fail_with(
                "ENOMEM",
                lambda c: c.limit[0] == -1 and not c.capable and c.range[1] - c.range[0] > 1 << 16,
            )
        ),
    ),
    Fault(
        "limit-future-total",
        CHAPTER,
        "mlockall(MCL_FUTURE) compares the whole address space with the limit",
        "skipped",
        {
            "mlockall": requests.fail_with(
                "ENOMEM",
                lambda c: (
                    not c.capable
                    and c.limit[0] > 0
                    and c.args[0] & ~MCL_ONFAULT == MCL_FUTURE
                    and conditions.all_mapped_beyond(c)
                ),
            )
        },
    ),
    Fault(
        "limit-mlockall-cancels",
        CHAPTER,
        "a refused mlockall cancels MCL_FUTURE",
        "side-effect",
        knowing_future(("mlockall", lifetime.refused_cancels)),
    ),
    Fault(
        "setrlimit-one-page-more",
        CHAPTER,
        "a soft RLIMIT_MEMLOCK comes out a page higher than set",
        "limit",
        {"prlimit64": limits.limit_more},
    ),
    Fault(
        "setrlimit-ignored",
        CHAPTER,
        "setting RLIMIT_MEMLOCK is accepted and ignored",
        "skipped",
        {"prlimit64": limits.limit_ignored},
    ),
    Fault(
        "cap-by-uid",
        CHAPTER,
        "user 0 may lock beyond the limit whatever its capabilities",
        "limit",
        both_locks(limits.lifted(lambda c: c.uid == 0)),
    ),
    Fault(
        "cap-permitted",
        CHAPTER,
        "CAP_IPC_LOCK in the permitted set is enough",
        "limit",
        both_locks(limits.lifted(lambda c: c.has_capability("CapPrm"))),
    ),
    Fault(
        "cap-userns",
        CHAPTER,
        "CAP_IPC_LOCK in any user namespace is enough",
        "limit",
        both_locks(limits.lifted(lambda c: c.has_capability("CapEff"))),
    ),
    Fault(
        "cap-ignored-by-mlock",
        CHAPTER,
        "mlock obeys the limit in spite of CAP_IPC_LOCK",
        "skipped",
        both_locks(limits.bound_capable("ENOMEM", conditions.beyond)),
    ),
    Fault(
        "cap-ignored-by-mmap",
        CHAPTER,
        "MAP_LOCKED obeys the limit in spite of CAP_IPC_LOCK",
        "skipped",
        {
            "mmap": limits.bound_capable(
                "EAGAIN", lambda c: bool(c.args[3] & MAP_LOCKED) and conditions.beyond(c)
            )
        },
    ),
    Fault(
        "cap-ignored-by-mlockall",
        CHAPTER,
        "mlockall obeys the limit in spite of CAP_IPC_LOCK",
        "skipped",
        {"mlockall": limits.bound_capable("ENOMEM", conditions.all_beyond)},
    ),
    Fault(
        "shm-charge-outlives-segment",
        CHAPTER,
        "SHM_LOCK's charge is given back by SHM_UNLOCK alone, not by the segment's end",
        "skipped",
        limit_accounts.kept_by_the_dead(),
    ),
    Fault(
        "shm-charged-again",
        CHAPTER,
        "SHM_LOCK of a locked segment charges it once more",
        "skipped",
        limit_accounts.charged_again(),
    ),
    Fault(
        "shm-charged-to-owner",
        CHAPTER,
        "SHM_LOCK is charged to the segment's owner, whoever locks",
        "skipped",
        limit_accounts.charged_to_the_owner(),
    ),
    Fault(
        "shm-charge-given-to-unlocker",
        CHAPTER,
        "SHM_UNLOCK by another user gives nothing back to who had locked",
        "skipped",
        limit_accounts.given_to_the_unlocker(),
    ),
    Fault(
        "shm-charge-follows-setuid",
        CHAPTER,
        "what a process has locked by SHM_LOCK counts for the user that it becomes",
        "skipped",
        limit_accounts.follows_the_process(),
    ),
    Fault(
        "shm-end-gives-too-much",
        CHAPTER,
        "the end of a locked segment gives back more than was charged",
        "limit",
        limit_accounts.knowing_lockers(limits.lifted(limit_accounts.locked_before)),
    ),
    Fault(
        "shm-bound-in-spite-of-capability",
        CHAPTER,
        "SHM_LOCK obeys the limit in spite of CAP_IPC_LOCK",
        "result",
        {
            "shmctl": limits.bound_capable("ENOMEM", conditions.is_(1, syscalls.SHM_LOCK)),
        },
    ),
    Fault(
        "shm-huge-refused-charged",
        CHAPTER,
        "a huge segment that is refused stays charged",
        "skipped",
        limit_accounts.huge_leaks(),
    ),
    Fault(
        "userns-ceiling-ignored",
        CHAPTER,
        "a soft limit raised in a user namespace raises its ceiling",
        "result",
        {"shmget": limit_accounts.know_size, "shmctl": limit_accounts.ceiling_ignored},
    ),
    Fault(
        "userns-charge-not-outside",
        CHAPTER,
        "what is locked by SHM_LOCK in a user namespace does not count outside",
        "limit",
        limit_accounts.knowing_lockers(limits.lifted(limit_accounts.locked_inside)),
    ),
    Fault(
        "userns-charge-shared-inside",
        CHAPTER,
        "what a user has locked outside counts against the limit in its namespace",
        "skipped",
        limit_accounts.shared_inside(),
    ),
    Fault(
        "userns-capability-opens-pins",
        CHAPTER,
        "CAP_IPC_LOCK of a user namespace opens io_uring's and AF_XDP's limit",
        "limit",
        {
            "io_uring_register": limit_accounts.beside_capability(
                limits.lifted(limit_accounts.registers), limit_accounts.registers
            ),
            "setsockopt": limit_accounts.beside_capability(
                limits.lifted(limit_accounts.umem), limit_accounts.umem
            ),
        },
    ),
    Fault(
        "fixed-buffer-unlimited",
        CHAPTER,
        "a fixed buffer of io_uring obeys the hard limit in place of the soft one",
        "limit",
        {"io_uring_register": limits.lifted(limit_accounts.registers)},
    ),
    Fault(
        "fixed-buffer-counted-alone",
        CHAPTER,
        "a fixed buffer of io_uring is compared with the limit by itself",
        "limit",
        {"io_uring_register": limits.lifted(limit_accounts.buffer_fits_alone)},
    ),
    Fault(
        "fixed-buffer-charge-kept",
        CHAPTER,
        "the end of an io_uring instance leaves its fixed buffer charged",
        "skipped",
        {"io_uring_register": limit_accounts.buffers_kept},
    ),
    Fault(
        "fixed-buffer-bound-in-spite-of-capability",
        CHAPTER,
        "a fixed buffer of io_uring obeys the limit in spite of CAP_IPC_LOCK",
        "skipped",
        {"io_uring_register": limits.bound_capable("ENOMEM", limit_accounts.buffer_beyond)},
    ),
    Fault(
        "umem-counted-alone",
        CHAPTER,
        "a umem of AF_XDP is compared with the limit by itself",
        "limit",
        {"setsockopt": limits.lifted(limit_accounts.umem_fits_alone)},
    ),
    Fault(
        "umem-bound-in-spite-of-capability",
        CHAPTER,
        "a umem of AF_XDP obeys the limit in spite of CAP_IPC_LOCK",
        "skipped",
        {"setsockopt": limits.bound_capable("ENOBUFS", limit_accounts.umem_beyond)},
    ),
    Fault(
        "zero-copy-unlimited",
        CHAPTER,
        "a zero-copy send obeys the hard limit in place of the soft one",
        "limit",
        {"sendto": limits.lifted(limit_accounts.zero_copy)},
    ),
    Fault(
        "zero-copy-counted-alone",
        CHAPTER,
        "a zero-copy send is compared with the limit by itself",
        "limit",
        {"sendto": limits.lifted(limit_accounts.zero_copy_fits_alone)},
    ),
    Fault(
        "perf-ring-unlimited",
        CHAPTER,
        "a perf ring obeys the hard limit in place of the soft one",
        "limit",
        {"mmap": limits.lifted(limit_accounts.perf_ring)},
    ),
    Fault(
        "perf-ring-not-pinned",
        CHAPTER,
        "VmPin leaves out what is pinned",
        "readout",
        on_reads(limit_accounts.pins_hidden),
    ),
    Fault(
        "secret-counted-alone",
        CHAPTER,
        "secret memory that is lo is compared with the limit by itself",
        "limit",
        {
            "mmap": limits.lifted(
                lambda c: conditions.secret(c) and c.args[1] <= c.limit[0] // PAGE * PAGE
            )
        },
    ),
    Fault(
        "bpf-map-limited",
        CHAPTER,
        "a BPF map beyond the limit is refused",
        "skipped",
        {"bpf": requests.fail_with("EPERM", limit_accounts.map_beyond)},
    ),
)
