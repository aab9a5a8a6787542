# SPDX-License-Identifier: MIT
"""Faults that cases of tests/reclaim detect."""

from __future__ import annotations

from helpers.faults.call import END
from helpers.faults.catalogue.common import LOCKS, both_locks, on_reads, on_reclaim
from helpers.faults.effects import conditions, counters, reclaim, requests, shown
from helpers.faults.fault import Fault
from helpers.observe import page_flags

CHAPTER = "reclaim"
_SHARED = rb"^\S+ ..[-x]s "
FAULTS = (
    Fault(
        "reclaim-takes-locked",
        CHAPTER,
        "reclaim takes locked pages",
        "reclaim",
        on_reclaim(reclaim.under_pressure()),
    ),
    Fault(
        "reclaim-takes-onfault",
        CHAPTER,
        "reclaim takes pages locked on fault",
        "reclaim",
        on_reclaim(reclaim.under_pressure(conditions.onfault)),
    ),
    Fault(
        "reclaim-takes-locked-files",
        CHAPTER,
        "reclaim takes locked pages of files",
        "reclaim",
        on_reclaim(reclaim.under_pressure(conditions.file)),
    ),
    Fault(
        "reclaim-takes-locked-anonymous",
        CHAPTER,
        "reclaim takes locked private anonymous pages",
        "reclaim",
        on_reclaim(reclaim.under_pressure(conditions.private_anonymous)),
    ),
    Fault(
        "reclaim-takes-locked-shared",
        CHAPTER,
        "reclaim takes locked pages of shared memory",
        "reclaim",
        on_reclaim(reclaim.under_pressure(conditions.shared)),
    ),
    Fault(
        "munlocked-stays-protected",
        CHAPTER,
        "reclaim spares what was unlocked",
        "reclaim",
        {
            **on_reclaim(reclaim.held_under_pressure),
            "munlock": reclaim.remember_unlocked,
            "munlockall": reclaim.remember_unlocked,
        },
    ),
    Fault(
        "mlocked-never-set",
        CHAPTER,
        "PG_mlocked is never set",
        "readout",
        on_reads(shown.edit_words(shown.FLAGS, shown.clear(page_flags.MLOCKED))),
    ),
    Fault(
        "unevictable-never-set",
        CHAPTER,
        "locked pages do not move to the unevictable list",
        "readout",
        on_reads(shown.edit_words(shown.FLAGS, shown.clear(page_flags.UNEVICTABLE))),
    ),
    Fault(
        "onfault-not-mlocked",
        CHAPTER,
        "pages faulted into memory locked on fault are not PG_mlocked",
        "readout",
        on_reads(shown.unmark_where(conditions.onfault)),
    ),
    Fault(
        "file-not-mlocked",
        CHAPTER,
        "locked pages of files are not PG_mlocked",
        "readout",
        on_reads(shown.unmark_where(conditions.file)),
    ),
    Fault(
        "mlock-last-unmarked",
        CHAPTER,
        "the last page of a lock is not PG_mlocked",
        "readout",
        {
            **both_locks(shown.mark_frames("cleared", last=True)),
            **on_reads(shown.frames_show("cleared", page_flags.MLOCKED, False)),
        },
    ),
    Fault(
        "mlock-marks-next-page",
        CHAPTER,
        "mlock marks the page behind its range too",
        "readout",
        {
            **both_locks(shown.mark_frames("kept", behind=True)),
            **on_reads(shown.frames_show("kept", page_flags.MLOCKED, True)),
        },
    ),
    Fault(
        "munmap-keeps-mlocked",
        CHAPTER,
        "unmapping locked memory leaves PG_mlocked on pages that live on",
        "readout",
        {
            "munmap": shown.mark_frames("kept", "before"),
            "mmap": shown.mark_frames("kept", "before"),
            **on_reads(shown.frames_show("kept", page_flags.MLOCKED, True)),
        },
    ),
    Fault(
        "munlock-stays-unevictable",
        CHAPTER,
        "an unlocked page stays on the unevictable list",
        "readout",
        {
            "munlock": shown.mark_frames("kept", "before"),
            "munlockall": shown.mark_frames("kept", "before"),
            **on_reads(shown.frames_show("kept", page_flags.UNEVICTABLE, True)),
        },
    ),
    Fault(
        "truncated-stays-mlocked",
        CHAPTER,
        "pages cut off a file stay PG_mlocked",
        "readout",
        {
            "ftruncate": shown.mark_all("kept"),
            "fallocate": shown.mark_all("kept"),
            **on_reads(shown.frames_show("kept", page_flags.MLOCKED, True)),
        },
    ),
    Fault(
        "nr-mlock-stuck",
        CHAPTER,
        "nr_mlock does not move",
        "readout",
        on_reads(shown.frozen("/proc/vmstat", b"nr_mlock")),
    ),
    Fault(
        "nr-unevictable-stuck",
        CHAPTER,
        "nr_unevictable does not move",
        "readout",
        on_reads(shown.frozen("/proc/vmstat", b"nr_unevictable")),
    ),
    Fault(
        "meminfo-mlocked-stuck",
        CHAPTER,
        "Mlocked in meminfo does not move",
        "readout",
        on_reads(shown.frozen("/proc/meminfo|/sys/devices/system/node/.*/meminfo", b"Mlocked")),
    ),
    Fault(
        "event-mlocked-stuck",
        CHAPTER,
        "unevictable_pgs_mlocked does not count",
        "readout",
        on_reads(shown.frozen("/proc/vmstat", b"unevictable_pgs_mlocked")),
    ),
    Fault(
        "event-munlocked-stuck",
        CHAPTER,
        "unevictable_pgs_munlocked does not count",
        "readout",
        on_reads(shown.frozen("/proc/vmstat", b"unevictable_pgs_munlocked")),
    ),
    Fault(
        "event-culled-stuck",
        CHAPTER,
        "unevictable_pgs_culled does not count",
        "readout",
        on_reads(shown.frozen("/proc/vmstat", b"unevictable_pgs_culled")),
    ),
    Fault(
        "event-rescued-stuck",
        CHAPTER,
        "unevictable_pgs_rescued does not count",
        "readout",
        on_reads(shown.frozen("/proc/vmstat", b"unevictable_pgs_rescued")),
    ),
    Fault(
        "memcg-unevictable-stuck",
        CHAPTER,
        "a cgroup's unevictable counter does not move",
        "readout",
        on_reads(shown.frozen("/sys/fs/cgroup/.*/memory.stat", b"unevictable")),
    ),
    Fault(
        "lock-over-limit-reports-eagain",
        CHAPTER,
        "mlock beyond the cgroup's limit returns EAGAIN at once",
        "skipped",
        dict.fromkeys((*LOCKS, "mlockall"), requests.fail_with("EAGAIN", conditions.large)),
    ),
    Fault(
        "mlock-swapped-stays-out",
        CHAPTER,
        "mlock leaves swapped-out pages in swap",
        "argument",
        {"mlock2": requests.set_bits(2, 1, conditions.swapped), "mlock": reclaim.swapped_left},
    ),
    Fault(
        "mrelease-takes-living",
        CHAPTER,
        "process_mrelease takes the locked pages of a process that lives",
        "side-effect",
        {"process_mrelease": reclaim.living_reaped},
    ),
    Fault(
        "mrelease-unlocks-others",
        CHAPTER,
        "process_mrelease unlocks what its caller has locked",
        "side-effect",
        {"process_mrelease": reclaim.reaper_unlocks_caller},
    ),
    Fault(
        "reaped-stays-mlocked",
        CHAPTER,
        "pages of a file that the reaper took from a locker stay PG_mlocked",
        "readout",
        {
            "process_mrelease": shown.mark_all_processes("kept"),
            **on_reads(shown.frames_show("kept", page_flags.MLOCKED, True)),
        },
    ),
    Fault(
        "culled-stays-unevictable",
        CHAPTER,
        "a locked page that reclaim has met stays on the unevictable list after its last lock",
        "readout",
        {
            **on_reclaim(shown.mark_culled("kept")),
            **on_reads(shown.frames_show("kept", page_flags.UNEVICTABLE, True)),
        },
    ),
    Fault(
        "node-vmstat-stuck",
        CHAPTER,
        "nr_mlock and nr_unevictable of a node's vmstat do not move",
        "readout",
        on_reads(
            shown.frozen("/sys/devices/system/node/.*/vmstat", b"nr_mlock", b"nr_unevictable")
        ),
    ),
    Fault(
        "zoneinfo-stuck",
        CHAPTER,
        "nr_mlock of zoneinfo does not move",
        "readout",
        on_reads(shown.frozen("/proc/zoneinfo", b" +nr_mlock")),
    ),
    Fault(
        "event-scanned-stuck",
        CHAPTER,
        "unevictable_pgs_scanned does not count",
        "readout",
        on_reads(shown.frozen("/proc/vmstat", b"unevictable_pgs_scanned")),
    ),
    Fault(
        "nr-mlock-counts-private",
        CHAPTER,
        "nr_mlock and Mlocked count locked private memory alone",
        "readout",
        on_reads(counters.leave_out(counters.MACHINE, conditions.shared)),
    ),
    Fault(
        "memcg-shared-not-unevictable",
        CHAPTER,
        "a cgroup's unevictable counter leaves out locked shared memory",
        "readout",
        on_reads(counters.leave_out(counters.CGROUP, conditions.shared)),
    ),
    Fault(
        "mlocked-counters-keep-exited",
        CHAPTER,
        "nr_mlock and Mlocked keep what a process has locked when it ends",
        "readout",
        {END: counters.keep_at_end, **on_reads(counters.show_kept(counters.MACHINE))},
    ),
    Fault(
        "mlocked-counters-keep-split",
        CHAPTER,
        "nr_mlock and Mlocked keep a part of a locked mapping that is given up",
        "readout",
        {
            **dict.fromkeys(("munmap", "mremap", "munlock"), counters.keep_part),
            **on_reads(counters.show_kept(counters.MACHINE)),
        },
    ),
    Fault(
        "memcg-keeps-exited",
        CHAPTER,
        "a cgroup's unevictable counter keeps what a process has locked when it ends",
        "readout",
        {END: counters.keep_at_end, **on_reads(counters.show_kept(counters.CGROUP))},
    ),
    Fault(
        "memcg-keeps-split",
        CHAPTER,
        "a cgroup's unevictable counter keeps a part of a locked mapping that is given up",
        "readout",
        {
            **dict.fromkeys(("munmap", "mremap", "munlock"), counters.keep_part),
            **on_reads(counters.show_kept(counters.CGROUP)),
        },
    ),
    Fault(
        "counters-keep-moved",
        CHAPTER,
        "Mlocked and unevictable keep locked pages that have been moved to another node",
        "readout",
        {
            "move_pages": counters.keep_moved,
            **on_reads(counters.show_kept(counters.EVERYWHERE)),
        },
    ),
    Fault(
        "unlockable-counted",
        CHAPTER,
        "a lock of memory that cannot be locked counts in Mlocked and unevictable",
        "readout",
        {
            **both_locks(counters.count_unlockable),
            "munlock": counters.uncount_unlockable,
            **on_reads(counters.show_kept(counters.EVERYWHERE)),
        },
    ),
    Fault(
        "memcg-nodes-stuck",
        CHAPTER,
        "unevictable of memory.numa_stat does not move",
        "readout",
        on_reads(counters.nodes_stuck),
    ),
    Fault(
        "smaps-swap-of-shared-zero",
        CHAPTER,
        "Swap in smaps knows nothing of shared memory",
        "readout",
        on_reads(
            shown.rewrite_proc_file("smaps", shown.field_where(b"Swap", _SHARED, lambda kb: 0))
        ),
    ),
    Fault(
        "vmswap-always-zero",
        CHAPTER,
        "VmSwap in status is 0",
        "readout",
        on_reads(shown.rewrite_proc_file("status", shown.renumber_field(b"VmSwap", lambda kb: 0))),
    ),
    Fault(
        "rollup-swap-zero",
        CHAPTER,
        "Swap in smaps_rollup is 0",
        "readout",
        on_reads(
            shown.rewrite_proc_file("smaps_rollup", shown.renumber_field(b"Swap", lambda kb: 0))
        ),
    ),
)
