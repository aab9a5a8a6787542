# SPDX-License-Identifier: MIT
"""Copy-on-write page by page: who gets a new page, and which pages stay PG_mlocked.

Pages may be migrated at any time, locked ones too, so PFNs are compared between parent and
child at one moment, never between two moments. The page that is left to the other process
after a copy is the one that was shared.
"""

import os

import pytest

from helpers import syscalls
from helpers.machine import kernel_version
from helpers.memory import Region, mapping
from helpers.observe import lru_batches, page_flags, pagemap, status
from helpers.processes import Child
from helpers.syscalls import PAGE

N = 8
pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs(f"lock:{N + 1}", "kpageflags", "kpagecount"),
    pytest.mark.source("fork(2)", "Documentation/mm/unevictable-lru.rst"),
]
PRIVATE = pytest.mark.parametrize("kind", ["private", "memfd-private"])
WRITTEN = pytest.mark.parametrize(
    "pages", [(0,), (N - 1,), (3, 4), (1, 3, 6), tuple(range(N))], ids=lambda p: str(list(p))
)


def filled(region: Region) -> None:
    """Page n holds byte n + 1; every page on its LRU list."""
    for page in range(region.pages):
        region.sub(page, 1).write(page + 1)
    lru_batches.mlock_drain_local()


def write_pages(region: Region, pages: tuple[int, ...], byte: int) -> None:
    for page in pages:
        region.sub(page, 1).write(byte)


def together(region: Region, child: Child) -> tuple[page_flags.Snapshot, page_flags.Snapshot]:
    """(parent, child) at one moment, after this CPU's batches are done."""
    lru_batches.mlock_drain_local()
    parent, other = page_flags.snapshot_processes(region.addr, region.pages, "self", child.pid)
    return parent, other


def shared(parent: page_flags.Snapshot, child: page_flags.Snapshot) -> list[bool]:
    return [a == b != 0 for a, b in zip(parent.pfns, child.pfns)]


def contents(pages: tuple[int, ...], byte: int) -> bytes:
    """First bytes of a filled range after ``pages`` were written."""
    return bytes(byte if page in pages else page + 1 for page in range(N))


EVERY = [True] * N
NONE = [False] * N

COUNTED = kernel_version.version() >= (5, 18, 0)


def sure(bits: list[bool], copied: tuple[int, ...]) -> list[bool]:
    """PG_mlocked without the pages that a locker copied, where that clears it for others.

    Before 5.18 a copy-on-write fault in locked memory cleared the old page's flag without
    looking for other lockers when one mapping was left, until reclaim (wp_page_copy and
    __munlock_isolated_page; lockers are counted since cea86fe246b6).
    """
    return bits if COUNTED else [bit for page, bit in enumerate(bits) if page not in copied]


@pytest.mark.claim("W20", "W13")
@PRIVATE
@pytest.mark.parametrize("locked", [True, False], ids=["locked", "unlocked"])
@pytest.mark.usefixtures("one_cpu")
@pytest.mark.detects("kpagecount-one-more")
def test_fork_shares_every_page(kind, locked):
    """After fork parent and child map the same pages, twice each; they are PG_mlocked if and only
    if the parent locked them."""
    with mapping(kind, N) as region:
        filled(region)
        if locked:
            syscalls.mlock(region.addr, region.size)
        with Child() as child:
            mine, theirs = together(region, child)
            assert shared(mine, theirs) == EVERY, "parent and child map the same page frames"
            assert list(mine.counts) == [2] * N, "each page is mapped twice"
            assert mine.mlocked == [locked] * N, "PG_mlocked as the parent's lock"
        lru_batches.mlock_drain_local()
        (alone,) = page_flags.snapshot_processes(region.addr, N, "self")
        assert list(alone.counts) == [1] * N, "each page is mapped once when the child is gone"
        assert alone.mlocked == [locked] * N, "PG_mlocked as before the child"


@pytest.mark.claim("W20")
@PRIVATE
@WRITTEN
@pytest.mark.usefixtures("one_cpu")
@pytest.mark.detects("fork-copies-locked-at-once")
def test_child_write_copies_that_page_alone(kind, pages):
    """A child's write gives the child a new page for each page written and no other; its copies
    are not PG_mlocked, the parent's pages all stay so."""
    with mapping(kind, N) as region:
        filled(region)
        syscalls.mlock(region.addr, region.size)
        with Child() as child:
            child.call(write_pages, region, pages, 0xC4)
            mine, theirs = together(region, child)
            untouched = [page not in pages for page in range(N)]
            assert shared(mine, theirs) == untouched, "all pages but those written are shared"
            assert theirs.present == EVERY, "every page of the child is mapped"
            once = [2 if same else 1 for same in untouched]
            assert list(mine.counts) == once, "mappings of the parent's pages"
            assert list(theirs.counts) == once, "mappings of the child's pages"
            assert mine.mlocked == EVERY, "all pages of the parent stay PG_mlocked"
            assert theirs.mlocked == untouched, "the child's copies are not PG_mlocked"
            assert child.call(region.first_bytes) == contents(pages, 0xC4), (
                "the child sees its writes"
            )
            assert region.first_bytes() == contents((), 0), "the parent does not"


@pytest.mark.claim("W20")
@PRIVATE
@WRITTEN
@pytest.mark.usefixtures("one_cpu")
def test_parent_write_copies_that_page_alone_and_leaves_the_child_an_unlocked_one(kind, pages):
    """A locked parent's write after fork gives the parent a new, PG_mlocked page for each page
    written and no other; the page left to the child is no longer PG_mlocked."""
    with mapping(kind, N) as region:
        filled(region)
        syscalls.mlock(region.addr, region.size)
        with Child() as child:
            write_pages(region, pages, 0xB3)
            mine, theirs = together(region, child)
            untouched = [page not in pages for page in range(N)]
            assert shared(mine, theirs) == untouched, "all pages but those written are shared"
            assert mine.mlocked == EVERY, "the parent's pages, new ones too, are PG_mlocked"
            assert theirs.mlocked == untouched, "pages left to the child are not PG_mlocked"
            once = [2 if same else 1 for same in untouched]
            assert list(mine.counts) == once, "mappings of the parent's pages"
            assert list(theirs.counts) == once, "mappings of the child's pages"
            assert region.first_bytes() == contents(pages, 0xB3), "the parent sees its writes"
            assert child.call(region.first_bytes) == contents((), 0), "the child does not"
            assert status.vmlck_pages() == N, "VmLck of the parent counts the range as before"


@pytest.mark.claim("W20")
@pytest.mark.usefixtures("one_cpu")
def test_writes_by_parent_and_child_copy_the_union():
    """Pages 1 and 3 written by the child, 3 and 5 by the parent: these three are not shared, all
    others are, and each process sees its own writes."""
    with mapping("private", N) as region:
        filled(region)
        syscalls.mlock(region.addr, region.size)
        with Child() as child:
            child.call(write_pages, region, (1, 3), 0xC4)
            write_pages(region, (3, 5), 0xB3)
            mine, theirs = together(region, child)
            untouched = [page not in (1, 3, 5) for page in range(N)]
            assert shared(mine, theirs) == untouched, "the pages either wrote are not shared"
            assert mine.mlocked == EVERY, "the parent's pages are PG_mlocked"
            assert theirs.mlocked == untouched, "the child's own pages are not"
            assert region.first_bytes() == contents((3, 5), 0xB3), "the parent's contents"
            assert child.call(region.first_bytes) == contents((1, 3), 0xC4), "the child's contents"


@pytest.mark.claim("W21")
@PRIVATE
@pytest.mark.usefixtures("one_cpu")
@pytest.mark.detects("kpagecount-never-above-one")
def test_reading_never_copies(kind):
    """Reads by child and parent, by the processor and by system calls, leave every page shared."""
    with mapping(kind, N) as region:
        filled(region)
        syscalls.mlock(region.addr, region.size)
        with Child() as child:
            assert child.call(region.first_bytes) == region.first_bytes(), (
                "parent and child read the same"
            )
            assert child.call(read_by_kernel, region) == region.read(), "so does write(2)"
            read_by_kernel(region)
            mine, theirs = together(region, child)
            assert shared(mine, theirs) == EVERY, "parent and child map the same page frames"
            assert list(mine.counts) == [2] * N, "each page is mapped twice"
            assert mine.mlocked == EVERY, "all pages stay PG_mlocked"


def read_by_kernel(region: Region) -> bytes:
    """The range through /proc/self/mem (read by the kernel's get_user_pages)."""
    with open("/proc/self/mem", "rb", buffering=0) as memory:
        memory.seek(region.addr)
        return memory.read(region.size) or b""


@pytest.mark.claim("W6")
@PRIVATE
@pytest.mark.usefixtures("one_cpu")
def test_child_mlock_breaks_copy_on_write_of_the_range_locked(kind):
    """A child that locks part of inherited writable memory gets its own PG_mlocked pages there,
    with the contents; the rest stays shared, and the parent's pages stay PG_mlocked."""
    with mapping(kind, N) as region:
        filled(region)
        syscalls.mlock(region.addr, region.size)
        copied = (2, 3, 4, 5)
        with Child() as child:
            child.call(syscalls.mlock, region.at(2), 4 * PAGE)
            mine, theirs = together(region, child)
            outside = [page not in copied for page in range(N)]
            assert shared(mine, theirs) == outside, "the pages the child locked are its own"
            assert theirs.mlocked == EVERY, "locked by the child, or shared with the parent"
            kept = sure(EVERY, copied)
            assert sure(mine.mlocked, copied) == kept, "the parent's pages stay PG_mlocked"
            assert list(mine.counts) == [2 if o else 1 for o in outside], "mappings"
            assert child.call(region.first_bytes) == contents((), 0), "contents are copied"
            child.call(syscalls.munlock, region.addr, region.size)
            mine, theirs = together(region, child)
            assert theirs.mlocked == outside, "the child's own pages, once unlocked, are not"
            assert sure(mine.mlocked, copied) == kept, "the parent's pages stay PG_mlocked"


@pytest.mark.usefixtures("one_cpu")
def test_child_mlock_of_pages_its_unlocked_parent_shares():
    """A child's lock of memory that its parent did not lock copies it and marks the copies."""
    with mapping("private", N) as region:
        filled(region)
        with Child() as child:
            child.call(syscalls.mlock, region.addr, region.size)
            mine, theirs = together(region, child)
            assert shared(mine, theirs) == NONE, "the child has pages of its own"
            assert theirs.mlocked == EVERY, "the child's pages are PG_mlocked"
            assert mine.mlocked == NONE, "the parent's are not"


@pytest.mark.claim("W6")
@pytest.mark.parametrize("parent_locks", [True, False], ids=["locked", "unlocked"])
@pytest.mark.usefixtures("one_cpu")
def test_child_onfault_lock_copies_only_what_is_written(parent_locks):
    """A fault-lock in the child leaves inherited pages shared, PG_mlocked now for the child's
    sake too; only a page it then writes is copied, and the copy is PG_mlocked."""
    with mapping("private", N) as region:
        filled(region)
        if parent_locks:
            syscalls.mlock(region.addr, region.size)
        copied = (2, 5)
        with Child() as child:
            child.call(syscalls.mlock2, region.addr, region.size, syscalls.MLOCK_ONFAULT)
            mine, theirs = together(region, child)
            assert shared(mine, theirs) == EVERY, "the fault-lock copies nothing"
            # Before 5.18 a fault-lock marks no page that it would have to copy (FOLL_MLOCK).
            if parent_locks or COUNTED:
                assert theirs.mlocked == EVERY, "shared pages present are PG_mlocked"
            child.call(write_pages, region, copied, 0xC4)
            mine, theirs = together(region, child)
            untouched = [page not in copied for page in range(N)]
            assert shared(mine, theirs) == untouched, "the pages written are the child's own"
            assert [theirs.mlocked[page] for page in copied] == [True, True], "and PG_mlocked"
            if parent_locks:
                left = sure(EVERY, copied)
                assert sure(mine.mlocked, copied) == left, "pages left to the locked parent"
            elif COUNTED:
                assert mine.mlocked == untouched, "pages left to the unlocked parent are not"
            child.call(syscalls.munlock, region.addr, region.size)
            mine, theirs = together(region, child)
            left = sure([parent_locks] * N, copied)
            assert sure(mine.mlocked, copied) == left, "the child's unlock, seen by the parent"
            kept = untouched if parent_locks else NONE
            assert theirs.mlocked == kept, "only pages shared with a locker stay PG_mlocked"


@pytest.mark.usefixtures("one_cpu")
def test_child_lock_of_read_only_memory_marks_the_shared_page():
    """A child's lock of a read-only inherited mapping copies nothing and sets PG_mlocked on the
    pages shared with the unlocked parent; the parent's write then gets an unlocked copy."""
    with mapping("private", N) as region:
        filled(region)
        syscalls.mprotect(region.addr, region.size, syscalls.PROT_READ)
        with Child() as child:
            child.call(syscalls.mlock, region.addr, region.size)
            mine, theirs = together(region, child)
            assert shared(mine, theirs) == EVERY, "a read-only lock copies nothing"
            assert mine.mlocked == EVERY, "the shared pages are PG_mlocked"
            assert status.vmlck_pages() == 0, "the parent has no lock"
            syscalls.mprotect(region.addr, region.size, syscalls.PROT_RW)
            write_pages(region, (2, 5), 0xB3)
            mine, theirs = together(region, child)
            untouched = [page not in (2, 5) for page in range(N)]
            assert shared(mine, theirs) == untouched, "the parent's writes are copied"
            assert mine.mlocked == untouched, "the parent's copies are not PG_mlocked"
            assert theirs.mlocked == EVERY, "the child's pages stay so"
            child.call(syscalls.munlock, region.addr, region.size)
            mine, theirs = together(region, child)
            seen = mine.mlocked, theirs.mlocked
            assert seen == (NONE, NONE), "no page is PG_mlocked after the only unlock"


@pytest.mark.claim("W3")
@pytest.mark.usefixtures("one_cpu")
def test_parents_second_mlock_takes_back_its_own_pages():
    """mlock again after fork breaks copy-on-write for the parent, though its VMA is locked
    already: no page is shared any more, the parent's are PG_mlocked, the child's are not."""
    with mapping("private", N) as region:
        filled(region)
        syscalls.mlock(region.addr, region.size)
        with Child() as child:
            syscalls.mlock(region.addr, region.size)
            mine, theirs = together(region, child)
            assert shared(mine, theirs) == NONE, "parent and child have their own pages"
            assert mine.mlocked == EVERY, "the parent's pages are PG_mlocked"
            assert theirs.mlocked == NONE, "pages left to the child are not"
            assert child.call(region.first_bytes) == contents((), 0), "the child's contents stay"


def let_go(child: Child, call: str, region: Region) -> None:
    if call == "exit":
        child.exit()
    elif call == "SIGKILL":
        child.kill()
    elif call == "exec":
        child.exec("cat")
    else:
        child.call(getattr(syscalls, call), region.addr, region.size)


@pytest.mark.claim("W13", "W15")
@pytest.mark.parametrize("written", [(), (1, 4)], ids=["read", "wrote"])
@pytest.mark.parametrize("call", ["munlock", "munmap", "exec", "exit", "SIGKILL"])
@pytest.mark.usefixtures("one_cpu")
def test_child_letting_go_leaves_the_parents_pages_mlocked(call, written):
    """When a child that shares a locked parent's pages, and fault-locked them too, lets them go,
    every page of the parent stays PG_mlocked; pages the parent left to it are gone with it."""
    with mapping("private", N) as region:
        filled(region)
        syscalls.mlock(region.addr, region.size)
        with Child() as child:
            child.call(syscalls.mlock2, region.addr, region.size, syscalls.MLOCK_ONFAULT)
            child.call(write_pages, region, written, 0xC4)
            lru_batches.mlock_drain_local()
            let_go(child, call, region)
            lru_batches.mlock_drain_local()
            (mine,) = page_flags.snapshot_processes(region.addr, N, "self")
            left = sure(EVERY, written)
            assert sure(mine.mlocked, written) == left, f"the parent's pages after {call}"
            assert mine.present == EVERY, "all present"
            shared_still = call == "munlock"
            mapped = [2 if shared_still and page not in written else 1 for page in range(N)]
            assert list(mine.counts) == mapped, "mappings of the parent's pages"
            assert region.first_bytes() == contents((), 0), "contents of the parent"


def grandchild_together(region: Region, child_pages: tuple[int, ...], pid: int) -> tuple:
    """In the child: write, fork, and let the grandchild write page 6: three snapshots."""
    write_pages(region, child_pages, 0xC4)
    with Child() as grandchild:
        grandchild.call(write_pages, region, (6,), 0xD5)
        return tuple(page_flags.snapshot_processes(region.addr, N, pid, "self", grandchild.pid))


@pytest.mark.usefixtures("one_cpu")
def test_three_generations_share_page_by_page():
    """Pages 1 written by the child before it forks, 6 by the grandchild: page 1 is shared by
    those two, 6 by parent and child, all others by the three, and only pages of the locked
    parent are PG_mlocked."""
    with mapping("private", N) as region:
        filled(region)
        syscalls.mlock(region.addr, region.size)
        lru_batches.mlock_drain_local()
        with Child() as child:
            a, b, c = child.call(grandchild_together, region, (1,), os.getpid())
        for page in range(N):
            seen = a.counts[page], b.counts[page], c.counts[page]
            expected = {1: (1, 2, 2), 6: (2, 2, 1)}.get(page, (3, 3, 3))
            assert seen == expected, f"mappings of page {page} in the three generations"
        assert a.mlocked == EVERY, "the parent's pages are PG_mlocked"
        assert b.mlocked == [page != 1 for page in range(N)], "the child's but for its copy"
        assert c.mlocked == [page not in (1, 6) for page in range(N)], "the grandchild's too"


@pytest.mark.parametrize("kind", ["shared", "memfd-shared"])
@pytest.mark.usefixtures("one_cpu")
def test_shared_memory_is_not_copied(kind):
    """Writes of parent and child to shared memory reach the same locked pages: same page frames,
    two mappings, PG_mlocked, both see both."""
    with mapping(kind, N) as region:
        filled(region)
        syscalls.mlock(region.addr, region.size)
        with Child() as child:
            child.call(region.touch, 0xC4)
            write_pages(region, (2, 5), 0xB3)
            mine, theirs = together(region, child)
            assert shared(mine, theirs) == EVERY, "parent and child map the same page frames"
            assert list(mine.counts) == [2] * N, "each page is mapped twice"
            assert mine.mlocked == EVERY, "all pages stay PG_mlocked"
            seen = bytes(0xB3 if page in (2, 5) else 0xC4 for page in range(N))
            assert (region.first_bytes(), child.call(region.first_bytes)) == (seen, seen), (
                "one memory"
            )


@pytest.mark.needs("forced-write")
@pytest.mark.usefixtures("one_cpu")
def test_forced_write_to_locked_read_only_memory_copies_into_a_locked_page():
    """Writing a locked read-only private file mapping through /proc/self/mem gives it an
    anonymous, PG_mlocked copy of that page alone; the file's page is no longer PG_mlocked."""
    with mapping("memfd-shared", N) as file:
        filled(file)
        with mapping("memfd-private", N, prot=syscalls.PROT_READ, fd=file.fd) as region:
            syscalls.mlock(region.addr, region.size)
            with open("/proc/self/mem", "r+b", buffering=0) as memory:
                memory.seek(region.at(3))
                memory.write(b"\xee")
            lru_batches.mlock_drain_local()
            mine = page_flags.snapshot(region.addr, N)
            theirs = page_flags.snapshot(file.addr, N)
            untouched = [page != 3 for page in range(N)]
            anonymous = pagemap.anonymous(region.addr, N)
            assert anonymous == [not u for u in untouched], "page 3 alone is anonymous"
            assert mine.mlocked == EVERY, "every page of the locked mapping is PG_mlocked"
            assert theirs.mlocked == untouched, "the file's page that was replaced is not"
            assert region.first_bytes() == contents((3,), 0xEE), "the mapping shows the write"
            assert file.first_bytes() == contents((), 0), "the file does not"
