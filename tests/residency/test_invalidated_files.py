# SPDX-License-Identifier: MIT
"""Locked file pages that others take: direct writes, fallocate, shared blocks; and who takes none.

A lock keeps a page from reclaim. It does not keep it in the page cache of its file: whoever changes
the file beneath the cache takes the page out of every mapping (invalidate_inode_pages2_range() in
mm/truncate.c), locked or not. Which call does so on which file system is not promised, so it is
judged beside an unlocked mapping of the same file.
"""

import fcntl
import os
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest

from helpers import memory, syscalls
from helpers.machine import kernel_version, mounts
from helpers.memory import mapping
from helpers.observe import folios, lru_batches, maps, mincore, page_faults, residency, status
from helpers.requirements.inconclusive import inconclusive
from helpers.syscalls import PAGE, aio, files, ioctls

N = 16
HALF = N // 2
BLOCK = 4 * PAGE
"""Bytes that begin and end at a block of each of the file systems."""

pytestmark = [
    pytest.mark.needs("lock:16", "smaps-flags"),
    pytest.mark.source("mm/truncate.c invalidate_inode_pages2_range()", "open(2) O_DIRECT"),
]
MOUNT = pytest.mark.needs("mount")
FILE_SYSTEMS = {
    "disk": pytest.mark.needs("disk-file"),
    "tmpfs": MOUNT,
    "overlay": pytest.mark.needs("mount", "CAP_DAC_OVERRIDE"),
    "ext4": pytest.mark.needs("mount", "mkfs-ext4"),
    "xfs": pytest.mark.needs("mount", "mkfs-xfs"),
    "btrfs": pytest.mark.needs("mount", "mkfs-btrfs"),
}
MAPPINGS = {
    "shared": ("file-shared", syscalls.PROT_RW, False),
    "private": ("file-private", syscalls.PROT_READ, False),
    "copies": ("file-private", syscalls.PROT_RW, True),
}


def file_systems(*names):
    return pytest.mark.parametrize(
        "kind", [pytest.param(name, marks=FILE_SYSTEMS[name]) for name in names]
    )


def folder_on(kind):
    """A folder on such a file system, for this process alone."""
    if kind == "disk":
        return None
    try:
        return mounts.mount_new(kind)
    except OSError as error:
        return inconclusive(f"no {kind} could be mounted: {error}")


def file_of(folder, at_once=False):
    """Descriptor of a file on disk whose page n holds byte n, written page by page or in one go."""
    if not at_once:
        return memory.scratch_file(N, folder)
    fd, path = tempfile.mkstemp(dir=folder or memory.files.file_dir or None)
    os.unlink(path)
    memory.write_file(fd, b"".join(bytes([page]) * PAGE for page in range(N)))
    os.fsync(fd)
    return fd


class Pair:
    """A locked mapping of a file and an unlocked one beside it, with the same pages in both."""

    def __init__(self, stack, how, fd):
        kind, prot, copied = MAPPINGS[how]
        self.fd, self.copied = fd, copied
        self.locked, self.control = (
            stack.enter_context(mapping(kind, N, fd=fd, prot=prot)) for _ in range(2)
        )
        self.before = status.vmlck_pages()
        syscalls.mlock(self.locked.addr, self.locked.size)
        for region in (self.locked, self.control):
            if copied:
                for page in range(N):
                    syscalls.store(region.at(page), bytes([0x80 + page]))
            region.first_bytes()
        assert residency.mapped_bits(self.locked) == "1" * N, "all there before"

    def expect_lock_and_contents(self, what):
        """Lock and count are whole, both mappings lost the same, and show what they must.

        The pages that are left in the locked one.
        """
        left = residency.mapped_bits(self.locked)
        assert maps.layout(self.locked) == [(0, N, "lo")], f"{what}: locked as before"
        assert status.vmlck_pages() - self.before == N, f"{what}: VmLck"
        assert left == residency.mapped_bits(self.control), f"{what}: as the unlocked mapping"
        ends = min(N, -(-os.fstat(self.fd).st_size // PAGE))
        now = os.pread(self.fd, N * PAGE, 0)[::PAGE]
        expected = bytes(
            0x80 + page if self.copied and left[page] == "1" else now[page] for page in range(ends)
        )
        assert self.locked.sub(0, ends).first_bytes() == expected, f"{what}: contents"
        seen = residency.mapped_bits(self.locked)[:ends]
        assert seen == "1" * ends, f"{what}: back where it was read"
        self.control.sub(0, ends).first_bytes()
        return left


DIRECT = {"pwrite": syscalls.write_from_address, "io_submit": aio.write}


def direct(fd):
    """A descriptor for direct I/O on the same file; no verdict where its file system has none."""
    try:
        return syscalls.open_direct(fd)
    except OSError as error:
        return pytest.skip(f"needs direct I/O on this file system ({error}); tmpfs: from 6.6 on")


def write_directly(fd, page, byte, way="pwrite"):
    other = direct(fd)
    with mapping("private", 1) as buffer:
        buffer.write(byte)
        assert DIRECT[way](other, buffer.addr, PAGE, page * PAGE) == PAGE, "written"
    os.close(other)


@file_systems("disk", "tmpfs", "overlay", "ext4", "xfs", "btrfs")
@pytest.mark.parametrize("at_once", [False, True], ids=["by-page", "at-once"])
@pytest.mark.parametrize("way", [
    "pwrite", pytest.param("io_submit", marks=pytest.mark.needs("aio")),
])  # fmt: skip
@pytest.mark.detects("direct-write-lost", "direct-write-stale", "direct-write-takes-locked")
def test_direct_write_is_seen_through_the_lock(kind, at_once, way):
    """A direct write to a locked file by another descriptor is what the next read of the locked
    mapping shows; private copies stay; lock and VmLck stay whole, and the lock loses the pages
    that an unlocked mapping loses and no other."""
    folder = folder_on(kind)
    for how in MAPPINGS:
        fd = file_of(folder, at_once)
        with ExitStack() as stack:
            pair = Pair(stack, how, fd)
            write_directly(fd, 2, 0x77, way)
            assert os.pread(fd, 1, 2 * PAGE) == b"\x77", f"{how}: the file has it"
            left = pair.expect_lock_and_contents(how)
            if how == "copies":
                assert left == "1" * N, "copies stay"
            write_directly(fd, 2, 0x78, way)
            pair.expect_lock_and_contents(f"{how}, written again")
        os.close(fd)


@file_systems("disk", "ext4", "xfs")
@pytest.mark.parametrize("lf", [0, syscalls.MLOCK_ONFAULT], ids=["full", "on-fault"])
@pytest.mark.claim("W1", "W3")
@pytest.mark.detects("direct-write-unlocks")
@pytest.mark.usefixtures("one_cpu")
def test_read_of_a_locked_page_written_directly_waits_for_the_disk(kind, lf):
    """Where a direct write by another descriptor takes a page out of a locked mapping, the next
    read of it is a major fault, no other page of the lock faults, and it is locked again."""
    fd = file_of(folder_on(kind))
    with mapping("file-shared", N, fd=fd) as region:
        syscalls.mlock2(region.addr, region.size, lf)
        region.first_bytes()
        write_directly(fd, 2, 0x77)
        left = residency.mapped_bits(region)
        if left == "1" * N:
            inconclusive("this file system took nothing")
        present = [page for page in range(N) if left[page] == "1"]
        for page in present:
            seen = page_faults.faults_reading(region.at(page), PAGE)
            assert seen == page_faults.Faults(0, 0), f"page {page} is there"
        seen = page_faults.faults_reading(region.at(2), PAGE)
        assert seen.major >= 1, "the page that was written waits for the disk"
        assert region.first_bytes() == bytes(0x77 if p == 2 else p for p in range(N)), "contents"
        assert maps.layout(region) == [(0, N, "lo lf" if lf else "lo")], "locked as before"
        assert status.vmlck_pages() == N, "VmLck"
        assert page_faults.faults_reading(region.addr, region.size) == page_faults.Faults(0, 0), (
            "no further faults"
        )
    os.close(fd)


@pytest.mark.needs("kpageflags")
@file_systems("disk", "ext4", "xfs", "btrfs")
@pytest.mark.detects("invalidated-stays-unmarked")
@pytest.mark.usefixtures("one_cpu")
def test_page_that_comes_back_is_mlocked(kind):
    """A page of a lock that a hole or a direct write took is mlocked when it is there again."""
    if kernel_version.version() < (5, 18, 0):
        pytest.skip(
            "needs a kernel from 5.18 on: before commit cea86fe246b6 a page of a file faulted into "
            "locked memory was marked by reclaim only"
        )
    fd = file_of(folder_on(kind))
    with mapping("file-shared", N, fd=fd) as region:
        syscalls.mlock(region.addr, region.size)
        write_directly(fd, 2, 0x77)
        syscalls.punch_hole(fd, HALF * PAGE, BLOCK)
        lru_batches.mlock_drain_local()
        region.first_bytes()
        lru_batches.mlock_drain_local()
        if set(folios.sizes(region)) != {1}:
            inconclusive("the file's pages came back in large folios, whose mark is not a page's")
        assert residency.bits(folios.mlocked(region)) == "1" * N, "mlocked"
        syscalls.munlock(region.addr, region.size)
        lru_batches.mlock_drain_local()
        assert residency.bits(folios.mlocked(region)) == "0" * N, "unlocked: none is"
    os.close(fd)


def other_file(folder, contents):
    fd, path = tempfile.mkstemp(dir=folder or memory.files.file_dir or None)
    os.unlink(path)
    memory.write_file(fd, contents)
    os.fsync(fd)
    return fd


def clone(fd, folder):
    source = other_file(folder, b"\x77" * BLOCK)
    ioctls.clone_range(source, fd, BLOCK)
    os.close(source)


def dedupe(fd, folder):
    source = other_file(folder, os.pread(fd, BLOCK, 0))
    ioctls.dedupe_range(source, fd, BLOCK)
    os.close(source)


CHANGES = {
    "truncate": lambda fd, _: (os.ftruncate(fd, HALF * PAGE), os.ftruncate(fd, N * PAGE)),
    "punch-hole": lambda fd, _: syscalls.punch_hole(fd, BLOCK, BLOCK),
    "zero-range": lambda fd, _: syscalls.fallocate(fd, files.FALLOC_FL_ZERO_RANGE, BLOCK, BLOCK),
    "insert-range": lambda fd, _: syscalls.fallocate(fd, files.FALLOC_FL_INSERT_RANGE, 0, BLOCK),
    "collapse-range": lambda fd, _: syscalls.fallocate(
        fd, files.FALLOC_FL_COLLAPSE_RANGE, 0, BLOCK
    ),
    "clone-range": clone,
    "dedupe-range": dedupe,
}
EVERYWHERE = {"truncate", "punch-hole"}


@file_systems("disk", "tmpfs", "ext4", "xfs", "btrfs")
@pytest.mark.detects("file-change-unlocks", "file-change-takes-locked", "clone-takes-copies")
@pytest.mark.source("fallocate(2)", "ioctl_ficlonerange(2)", "ioctl_fideduperange(2)")
def test_changes_of_a_file_leave_its_lock(kind):
    """Truncation, each mode of fallocate, cloned and deduplicated ranges take from a locked mapping
    what they take from an unlocked one; lock and VmLck stay whole, and the next read shows the file
    as it is then."""
    folder = folder_on(kind)
    done = set()
    for way, change in CHANGES.items():
        for how in MAPPINGS:
            fd = file_of(folder)
            with ExitStack() as stack:
                pair = Pair(stack, how, fd)
                answer = syscalls.outcome(change, fd, folder)
                if answer == "ok":
                    done.add(way)
                left = pair.expect_lock_and_contents(f"{way} ({answer}), {how}")
                if answer != "ok":
                    assert left == "1" * N, f"{way} refused: nothing is lost"
                elif (way, how) in {("punch-hole", "shared"), ("truncate", "shared")}:
                    assert left != "1" * N, f"{way}: the page cache was emptied there"
            os.close(fd)
    assert done >= EVERYWHERE, "every file system can"


def own_device(folder):
    """The loop device below a mounted file system of our own."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        if left.split()[4] == str(folder):
            return right.split()[1]
    raise LookupError(f"{folder} is not mounted")


def read_directly(fd, _):
    other = direct(fd)
    with mapping("private", 4) as buffer:
        assert os.lseek(other, 0, os.SEEK_SET) == 0
        assert syscalls.read_to_address(other, buffer.addr, buffer.size) == buffer.size
        assert buffer.first_bytes() == bytes(range(4)), "read"
    os.close(other)


def flush_device(_, folder):
    fd = os.open(own_device(folder), os.O_RDONLY | os.O_CLOEXEC)
    ioctls.flush_block_device(fd)
    os.close(fd)


_FIFREEZE, _FITHAW = (0xC0045877, 0xC0045878)


def freeze_and_thaw(_, folder):
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _FIFREEZE, 0)
        fcntl.ioctl(fd, _FITHAW, 0)
    finally:
        os.close(fd)


REQUESTS = {
    "fadvise": lambda fd, _: os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED),
    "syncfs": lambda _, folder: os.sync() if folder is None else subprocess.run(
        ["sync", "-f", str(folder)], check=True
    ),
    "direct-read": read_directly,
    "flush-device": flush_device,
    "freeze": freeze_and_thaw,
}  # fmt: skip


@file_systems("ext4", "xfs", "btrfs")
@pytest.mark.detects("fadvise-drops-locked")
@pytest.mark.source(
    "posix_fadvise(2)", "mm/truncate.c invalidate_mapping_pages()", "ioctl(2) BLKFLSBUF"
)
def test_requests_to_empty_the_cache_leave_locked_pages(kind):
    """posix_fadvise(DONTNEED), sync, BLKFLSBUF, freezing the file system and direct reads take no
    page of a lock, on fault or not, nor its contents; what nobody maps goes."""
    folder = folder_on(kind)
    fd = file_of(folder)
    with mapping("file-shared", N, fd=fd) as look:
        with mapping("file-shared", HALF, fd=fd) as region:
            syscalls.mlock2(region.addr, region.size, syscalls.MLOCK_ONFAULT)
            region.first_bytes()
            syscalls.store(region.at(1) + 1, b"dirty")
            for way, request in REQUESTS.items():
                request(fd, folder)
                assert residency.mapped_bits(region) == "1" * HALF, f"{way}: there"
                assert page_faults.faults_reading(region.addr, region.size) == (
                    page_faults.Faults(0, 0)
                ), f"{way}: no faults"
            assert region.first_bytes() == bytes(range(HALF)), "contents"
            assert syscalls.load(region.at(1) + 1, 5) == b"dirty", "what was written"
            assert maps.layout(region) == [(0, HALF, "lo lf")], "locked"
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            rest = look.sub(HALF, HALF)
            if mincore.resident_count(rest.addr, rest.pages) == HALF:
                inconclusive("nothing of the file was dropped")
            assert residency.mapped_bits(region) == "1" * HALF, "locked: there"
    os.close(fd)
