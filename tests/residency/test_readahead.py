# SPDX-License-Identifier: MIT
"""Locks of files that the kernel does not read ahead: slower to populate, never left waiting."""

import os
from pathlib import Path

import pytest

from helpers import memory, syscalls
from helpers.machine import mounts
from helpers.memory import mapping
from helpers.observe import maps, page_faults, residency, status
from helpers.processes import Child
from helpers.requirements.inconclusive import inconclusive
from helpers.syscalls import PAGE

N = 64

pytestmark = [
    pytest.mark.needs("disk-file", "lock:64", "mincore", "smaps-flags"),
    pytest.mark.source("mm/filemap.c do_async_mmap_readahead()", "posix_fadvise(2)", "madvise(2)"),
]


def evict(fd):
    os.fdatasync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    with mapping("file-shared", N, fd=fd) as look:
        if "1" in residency.mincore_bits(look):
            inconclusive("the file's pages stayed in the page cache after eviction")


def settings():
    return set(Path("/sys/class/bdi").glob("btrfs-*/read_ahead_kb"))


def mounted():
    """A btrfs of our own, and its setting, which goes with it (a loop device's would stay)."""
    before = settings()
    try:
        folder = mounts.mount_new("btrfs")
    except OSError as error:
        inconclusive(f"no btrfs could be mounted: {error}")
    return folder, settings() - before  # and of who mounts one at this very moment


def locked_in_child(child, region):
    child.call(syscalls.mlock, region.addr, region.size, deadline=4)
    return child.call(residency.mapped_bits, region), child.call(status.vmlck_pages)


WAYS = {
    "read-ahead": (),
    "fadvise-random": (),
    "madvise-random": (),
    "none-on-this-file-system": (pytest.mark.needs("mount", "mkfs-btrfs"),),
}


@pytest.mark.parametrize("way", [pytest.param(way, marks=marks) for way, marks in WAYS.items()])
@pytest.mark.parametrize("cached", ["nothing", "marked-for-readahead"])
@pytest.mark.detects("mlock-hangs-without-readahead", "mlock-file-not-populated")
def test_lock_of_a_file_that_is_not_read_ahead_returns(way, cached):
    """mlock of a file on disk returns with every page there, whether or not the kernel reads ahead
    for it, also where pages in the page cache are marked to start the next readahead."""
    folder, own = mounted() if way.startswith("none") else (None, ())
    fd = memory.scratch_file(N, folder)
    evict(fd)
    if cached == "marked-for-readahead":
        # Read in order by another descriptor, the kernel reads ahead and marks where to go on.
        reader = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
        for page in range(N // 4):
            os.pread(reader, PAGE, page * PAGE)
        os.close(reader)
    for setting in own:
        setting.write_text("0")
    # A descriptor keeps the amount that there was when it was opened (file_ra_state_init()).
    used = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
    if way == "fadvise-random":
        os.posix_fadvise(used, 0, 0, os.POSIX_FADV_RANDOM)
    with mapping("file-shared", N, fd=used) as region, mapping("file-shared", N, fd=used) as look:
        if way == "madvise-random":
            syscalls.madvise(region.addr, region.size, syscalls.MADV_RANDOM)
        before = residency.mincore_bits(look)
        assert ("1" in before) == (cached != "nothing"), "what the cache has before"
        with Child() as child:
            assert locked_in_child(child, region) == ("1" * N, N), "every page, and VmLck"
            seen = child.call(page_faults.faults_reading, region.addr, region.size)
            assert seen == page_faults.Faults(0, 0), "no faults"
            assert maps.layout(region, child.pid) == [(0, N, "lo")], "locked"
        assert region.first_bytes() == bytes(range(N)), "contents"
    os.close(used)
    os.close(fd)
