# SPDX-License-Identifier: MIT
"""mmap with MAP_LOCKED: its length, what it locks, and how it fails."""

import pytest

from helpers import syscalls
from helpers.memory import MAPPING_KINDS, mapping
from helpers.observe import maps, pagemap, status
from helpers.processes import rlimits
from helpers.syscalls import PAGE

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("smaps-flags", "lock:8"),
    pytest.mark.source("mmap(2) MAP_LOCKED, ERRORS"),
]

ANONYMOUS = syscalls.MAP_PRIVATE | syscalls.MAP_ANONYMOUS
LOCKED = ANONYMOUS | syscalls.MAP_LOCKED


def shape(region):
    return maps.locks(region.addr, region.end, PAGE)


@pytest.mark.parametrize("kind", MAPPING_KINDS)
@pytest.mark.detects("maplocked-ignored")
def test_map_locked_locks_counts_and_populates(kind):
    """mmap(MAP_LOCKED) returns with the whole mapping locked, counted and resident; munlock
    undoes the lock."""
    before = status.vmlck_pages()
    with mapping(kind, 8, flags=syscalls.MAP_LOCKED) as region:
        counted = status.vmlck_pages() - before
        present = pagemap.present_count(region.addr, 8)
        assert shape(region) == [(0, 8, "lo")], "the mapping is lo"
        assert counted == 8, "VmLck grows by its length"
        assert present == 8, "every page is resident"
        syscalls.munlock(region.addr, region.size)
        assert shape(region) == [(0, 8, "")], "munlock takes the lock off"
        assert status.vmlck_pages() == before, "VmLck is back where it was"


@pytest.mark.parametrize(("length", "pages"), [(1, 1), (PAGE, 1), (PAGE + 1, 2), (3 * PAGE - 1, 3)])
@pytest.mark.detects("maplocked-length-rounded-down")
def test_map_locked_rounds_its_length_up(length, pages):
    """mmap(MAP_LOCKED) of any length locks the whole pages it maps."""
    with mapping("private", 6) as region:
        before = status.vmlck_pages()
        syscalls.mmap(region.at(1), length, syscalls.PROT_RW, LOCKED | syscalls.MAP_FIXED)
        counted = status.vmlck_pages() - before
        assert shape(region) == [(0, 1, ""), (1, 1 + pages, "lo"), (1 + pages, 6, "")], (
            "the new pages are lo, their neighbours are not"
        )
        assert counted == pages, "VmLck grows by whole pages"
        assert pagemap.present(region.addr, 6) == [0 < p <= pages for p in range(6)], (
            "the new pages are resident"
        )


@pytest.mark.detects("maplocked-bad-arguments-efault")
def test_map_locked_argument_errors_lock_nothing():
    """mmap(MAP_LOCKED) with arguments that no mmap takes fails as any mmap does, and counts
    nothing."""
    before = status.vmlck_pages()
    file_locked = syscalls.MAP_PRIVATE | syscalls.MAP_LOCKED
    with mapping("memfd-shared", 2) as region:
        seen = {
            "length 0": syscalls.outcome(syscalls.mmap, 0, 0, syscalls.PROT_RW, LOCKED),
            "length SIZE_MAX": syscalls.outcome(
                syscalls.mmap, 0, syscalls.SIZE_MAX, syscalls.PROT_RW, LOCKED
            ),
            "length −P": syscalls.outcome(
                syscalls.mmap, 0, syscalls.SIZE_MAX - PAGE, syscalls.PROT_RW, LOCKED
            ),
            "no descriptor": syscalls.outcome(
                syscalls.mmap, 0, PAGE, syscalls.PROT_RW, file_locked, -1
            ),
            "odd offset": syscalls.outcome(
                syscalls.mmap, 0, PAGE, syscalls.PROT_RW, file_locked, region.fd, PAGE // 2
            ),
            "fixed, odd address": syscalls.outcome(
                syscalls.mmap, region.addr + 1, PAGE, syscalls.PROT_RW, LOCKED | syscalls.MAP_FIXED
            ),
        }
        assert seen == {
            "length 0": "EINVAL",
            "length SIZE_MAX": "ENOMEM",
            "length −P": "ENOMEM",
            "no descriptor": "EBADF",
            "odd offset": "EINVAL",
            "fixed, odd address": "EINVAL",
        }, "the errors of any mmap"
        assert shape(region) == [(0, 2, "")], "the mapping in its place is as before"
        assert status.vmlck_pages() == before, "VmLck is unchanged"


@pytest.mark.needs("limit:4")
@pytest.mark.parametrize(("limit", "error"), [(0, "EPERM"), (1, "EAGAIN"), (4 * PAGE, "EAGAIN")])
def test_refused_map_locked_leaves_what_was_there(limit, error):
    """mmap(MAP_LOCKED | MAP_FIXED) that is refused for lack of right (EPERM) or limit (EAGAIN)
    leaves the mapping in its place alone."""
    with mapping("private", 8) as region:
        region.touch()
        pfns = pagemap.present(region.addr, 8)
        contents = region.first_bytes()
        with rlimits.unprivileged_with_limit(limit):
            seen = syscalls.outcome(
                syscalls.mmap, region.addr, 5 * PAGE, syscalls.PROT_RW, LOCKED | syscalls.MAP_FIXED
            )
        assert seen == error, "EPERM at a limit of 0 bytes, EAGAIN beyond any other"
        assert shape(region) == [(0, 8, "")], "nothing is locked"
        assert pagemap.present(region.addr, 8) == pfns, "the old pages are still there"
        assert region.first_bytes() == contents, "with their contents"
        assert status.vmlck_pages() == 0, "VmLck stays 0"
