# SPDX-License-Identifier: MIT
"""Locked pages of a file that a FUSE server serves: they stay as long as the server lets them.

On such a file system others end residency without touching the file: open(2) of it by anybody, and
the server's word at any time (fs/fuse/file.c, fs/fuse/inode.c fuse_reverse_inval_inode()).
"""

import os

import pytest

from helpers import syscalls
from helpers.memory import mapping
from helpers.observe import maps, page_faults, residency, status
from helpers.processes import fuse_server
from helpers.requirements.inconclusive import inconclusive

N = 8
MAPPINGS = {
    "shared": ("file-shared", syscalls.PROT_READ, False),
    "private": ("file-private", syscalls.PROT_READ, False),
    "copies": ("file-private", syscalls.PROT_RW, True),
}

pytestmark = [
    pytest.mark.needs("fuse", "lock:8", "smaps-flags"),
    pytest.mark.source("fs/fuse/inode.c fuse_reverse_inval_inode()", "include/uapi/linux/fuse.h"),
]


@pytest.mark.parametrize("how", MAPPINGS)
@pytest.mark.parametrize("lf", [0, syscalls.MLOCK_ONFAULT], ids=["full", "on-fault"])
@pytest.mark.parametrize("keep", [True, False], ids=["kept-at-open", "dropped-at-open"])
@pytest.mark.claim("W1", "W3")
@pytest.mark.detects("served-file-unlocked", "served-file-taken")
def test_server_takes_locked_pages_of_its_file(how, lf, keep):
    """What opening a FUSE file again or its server's notification takes from an unlocked mapping it
    takes from a locked one, and no private copy; lock and VmLck stay whole, what was taken comes
    back with the server's new contents, by major faults, and what stayed costs none."""
    kind, prot, copied = MAPPINGS[how]
    with fuse_server.fuse_file(N, keep) as served:
        fd = os.open(served.path, os.O_RDONLY)
        with (
            mapping(kind, N, fd=fd, prot=prot) as region,
            mapping(kind, N, fd=fd, prot=prot) as control,
        ):
            syscalls.mlock2(region.addr, region.size, lf)
            for each in (region, control):
                if copied:
                    each.touch(0xC0)
                each.first_bytes()
            shown = bytes([0xC0] * N) if copied else bytes(range(N))
            assert region.first_bytes() == shown, "contents"
            for step, shift in (("opened again", 0x20), ("notified", 0x40)):
                served.set_shift(shift)
                if step == "notified":
                    served.invalidate()
                else:
                    os.close(os.open(served.path, os.O_RDONLY))
                left = residency.mapped_bits(region)
                assert left == residency.mapped_bits(control), f"{step}: as the unlocked mapping"
                assert maps.layout(region) == [(0, N, "lo lf" if lf else "lo")], f"{step}: locked"
                assert status.vmlck_pages() == N, f"{step}: VmLck"
                if copied or (keep and step == "opened again"):
                    assert left == "1" * N, f"{step}: nothing was taken"
                elif left == "1" * N:
                    inconclusive(f"{step}: the kernel kept the file's pages")
                shown = bytes(
                    before if there == "1" else page + shift
                    for page, (before, there) in enumerate(zip(shown, left))
                )
                seen = page_faults.faults_reading(region.addr, region.size)
                assert (seen.major > 0) == ("0" in left), f"{step}: waits for the server"
                assert region.first_bytes() == shown, f"{step}: contents"
                assert control.first_bytes() == shown, f"{step}: the unlocked mapping's"
            assert page_faults.faults_reading(region.addr, region.size) == page_faults.Faults(
                0, 0
            ), "back: no faults"
        os.close(fd)
