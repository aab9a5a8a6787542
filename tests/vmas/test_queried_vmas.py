# SPDX-License-Identifier: MIT
"""maps, smaps, PROCMAP_QUERY and map_files show the same VMAs, where a lock split them."""

import os
import re
from pathlib import Path

import pytest

from helpers import syscalls
from helpers.memory import every_kind
from helpers.observe import maps, procmap_query
from helpers.pytest_plugin.parametrize import by_memory_kind

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("smaps-flags"),
    pytest.mark.source("proc_pid_maps(5)", "proc_pid_map_files(5)", "fs/proc/task_mmu.c"),
]


def lock_middle(region, kind, flags):
    middle = (region.addr + kind.unit, 2 * kind.unit)
    syscalls.outcome(syscalls.mlock2, *middle, flags)


def pieces(kind):
    """How many VMAs a lock of units 1 and 2 makes."""
    return 3 if kind.lock and kind.id != "secret" else 1


@by_memory_kind(4)
@pytest.mark.needs("procmap-query")
@pytest.mark.parametrize("flags", [0, syscalls.MLOCK_ONFAULT], ids=["mlock", "onfault"])
@pytest.mark.detects("procmap-query-locked-longer")
def test_query_by_address_finds_the_vmas_of_maps(kind, flags):
    """PROCMAP_QUERY gives each VMA that a lock makes with the bounds, rights, offset, file and
    size of page that maps and smaps give it, before the lock, under it and after munlock."""
    with every_kind.mapping_of(kind, 4) as region:

        def compare(step, count):
            wanted = [
                (v.start, v.end, v.perms, v.field_kb("KernelPageSize") * 1024,
                 v.offset, v.inode, v.device)
                for v in maps.smaps(low=region.addr, high=region.end)
            ]  # fmt: skip
            seen = [
                (q.start, q.end, q.perms, q.page_size, q.offset, q.inode, q.device)
                for q in procmap_query.vmas(region)
            ]
            assert seen == wanted, f"PROCMAP_QUERY and smaps, {step}"
            if count:
                assert len(seen) == count, f"VMAs, {step}"

        compare("mapped", 1)
        lock_middle(region, kind, flags)
        compare("locked", pieces(kind))
        syscalls.munlock(region.addr, region.size)
        # Into one or not: kernels differ in when they join neighbours faulted in apart.
        compare("unlocked", None)


@by_memory_kind(4, only=("memfd-private", "memfd-shared", "file-private", "file-shared", "sysv"))
@pytest.mark.needs("map-files")
def test_map_files_has_a_link_for_each_vma_of_a_file(kind):
    """map_files has a link for each VMA of a file, by its bounds, which leads to the file; a lock
    that splits the mapping makes three of one."""
    with every_kind.mapping_of(kind, 4) as region:
        for count in (1, pieces(kind)):
            inside = [
                name for name in os.listdir("/proc/self/map_files")
                if region.addr <= int(name.partition("-")[0], 16) < region.end
            ]  # fmt: skip
            vmas = maps.vmas(low=region.addr, high=region.end)
            assert sorted(inside) == [f"{v.start:x}-{v.end:x}" for v in vmas], "names"
            assert len(inside) == count, "one for each VMA"
            for name, vma in zip(sorted(inside), vmas):
                target = re.sub(r" \(deleted\)$", "", os.readlink(f"/proc/self/map_files/{name}"))
                assert target == re.sub(r" \(deleted\)$", "", vma.name), "the file's name"
                assert Path(f"/proc/self/map_files/{name}").stat().st_ino == vma.inode, "its inode"
            lock_middle(region, kind, 0)
