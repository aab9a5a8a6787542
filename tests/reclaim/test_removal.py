# SPDX-License-Identifier: MIT
"""Taking locked pages away: truncation, holes, unmapping and death leave no page mlocked."""

import os

import pytest

from helpers import syscalls
from helpers.memory import mapping
from helpers.observe import lru_batches, page_flags, pagemap
from helpers.processes import Child
from helpers.syscalls import PAGE, vmsplice

SIZE = vmsplice.PIPE_PAGES


pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("kpageflags", "lock:16"),
    pytest.mark.source("unevictable-lru.rst"),
    pytest.mark.claim("W18"),
]

ON_DISK = [
    pytest.param(kind, marks=pytest.mark.needs("disk-file"))
    for kind in ("file-private", "file-shared")
]


def hold_marked(pipe, region):
    """Lock the region, hold its frames beyond their last mapping, and return them."""
    region.touch()
    lru_batches.mlock_drain_local()
    syscalls.mlock(region.addr, region.size)
    lru_batches.mlock_drain_local()
    vmsplice.pin_in_pipe(pipe, region.addr, region.pages)
    now = page_flags.snapshot(region.addr, region.pages)
    return list(now.pfns), now.count_with(page_flags.MLOCKED)


def marked(frames):
    """How many of these frames are mlocked."""
    lru_batches.mlock_drain_local()
    return sum(1 for f in page_flags.kpageflags(frames) if f & page_flags.MLOCKED)


@pytest.mark.parametrize("kind", ["memfd-private", "memfd-shared", *ON_DISK])
@pytest.mark.parametrize("way", ["truncate", "hole"])
@pytest.mark.usefixtures("one_cpu")
@pytest.mark.detects("truncated-stays-mlocked")
def test_file_pages_taken_away_are_not_left_mlocked(kind, way):
    """Truncating a file under a lock takes its pages and copies, a hole its pages: all unmarked."""
    with mapping(kind, SIZE) as region, vmsplice.frame_pipe() as pipe:
        frames, before = hold_marked(pipe, region)
        assert before == SIZE, "locked pages are mlocked"
        if way == "truncate":
            os.ftruncate(region.fd, 0)
        else:
            syscalls.punch_hole(region.fd, 0, region.size)
        kept = SIZE if way == "hole" and kind.endswith("private") else 0
        # A private mapping's own copies outlive a hole in the file, not its truncation.
        assert pagemap.present_count(region.addr, SIZE) == kept, "pages of the mapping left"
        assert marked(frames) == kept, "what was taken away is not mlocked"


@pytest.mark.parametrize("kind", ["private", "shared", "memfd-shared", *ON_DISK])
@pytest.mark.parametrize("end", ["munmap", "exit", "SIGKILL", "exec", "DONTNEED"])
@pytest.mark.usefixtures("one_cpu")
@pytest.mark.detects("munmap-keeps-mlocked")
def test_locked_pages_are_not_left_mlocked_by_the_end_of_their_mapping(kind, end):
    """munmap, exit, a kill, exec and MADV_DONTNEED_LOCKED leave no page of a lock mlocked."""
    with mapping(kind, SIZE) as region, vmsplice.frame_pipe() as pipe, Child() as child:
        frames, before = child.call(hold_marked, pipe, region)
        assert before == SIZE, "locked pages are mlocked"
        if end == "munmap":
            child.call(syscalls.munmap, region.addr, region.size)
        elif end == "DONTNEED":
            try:
                child.call(
                    syscalls.madvise, region.addr, region.size, syscalls.MADV_DONTNEED_LOCKED
                )
            except OSError:
                pytest.skip("needs MADV_DONTNEED_LOCKED: a kernel from 5.18 on")
        else:
            child.end_by(end)
        if end in {"munmap", "DONTNEED"}:
            child.call(lru_batches.mlock_drain_local)
        assert marked(frames) == 0, "no frame is mlocked"


@pytest.mark.parametrize("kind", ["private", "memfd-shared"])
@pytest.mark.usefixtures("one_cpu")
def test_mapping_over_locked_pages_leaves_none_mlocked(kind):
    """MAP_FIXED over part of a locked range unmarks exactly the pages it replaces."""
    with mapping(kind, SIZE) as region, vmsplice.frame_pipe() as pipe:
        frames, before = hold_marked(pipe, region)
        assert before == SIZE, "locked pages are mlocked"
        how = syscalls.MAP_PRIVATE | syscalls.MAP_ANONYMOUS | syscalls.MAP_FIXED
        syscalls.mmap(region.at(4), 4 * PAGE, syscalls.PROT_RW, how)
        lru_batches.mlock_drain_local()
        now = [bool(f & page_flags.MLOCKED) for f in page_flags.kpageflags(frames)]
        expected = [not 4 <= page < 8 for page in range(SIZE)]
        assert now == expected, "pages 4 to 7 were replaced and are not mlocked"
