# SPDX-License-Identifier: MIT
"""Copy-on-write as any user can see it: contents, smaps' shared and private pages, faults."""

import pytest

from helpers import syscalls
from helpers.memory import Region, mapping
from helpers.observe import maps, page_faults, pagemap, status
from helpers.processes import Child
from helpers.syscalls import PAGE, PAGE_KB

N = 8
pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs(f"lock:{N}"),
    pytest.mark.source("fork(2)"),
]
WRITTEN = pytest.mark.parametrize(
    "pages", [(0,), (N - 1,), (3, 4), (1, 3, 6), tuple(range(N))], ids=lambda p: str(list(p))
)
PRIVATE = pytest.mark.parametrize("kind", ["private", "memfd-private"])
SHARED = pytest.mark.parametrize("kind", ["shared", "memfd-shared"])


def filled(region: Region) -> None:
    for page in range(region.pages):
        region.sub(page, 1).write(page + 1)


def write_pages(region: Region, pages: tuple[int, ...], byte: int) -> None:
    for page in pages:
        region.sub(page, 1).write(byte)


def contents(pages: tuple[int, ...], byte: int) -> bytes:
    """A filled range after ``pages`` were written."""
    return b"".join(bytes([byte if p in pages else p + 1]) * PAGE for p in range(N))


def sharing(region: Region) -> tuple[int, int]:
    """Pages of the range mapped by others too, and by this process alone (smaps)."""
    found = maps.smaps(low=region.addr, high=region.end)
    shared = sum(v.field_kb("Shared_Clean") + v.field_kb("Shared_Dirty") for v in found)
    private = sum(v.field_kb("Private_Clean") + v.field_kb("Private_Dirty") for v in found)
    return shared // PAGE_KB, private // PAGE_KB


@pytest.mark.claim("W20")
@PRIVATE
@WRITTEN
def test_child_writes_stay_in_the_child(kind, pages):
    """What a child writes to a locked parent's private memory is seen by the child alone, byte
    for byte; only the pages written cease to be shared; the parent's lock stays."""
    with mapping(kind, N) as region:
        filled(region)
        syscalls.mlock(region.addr, region.size)
        with Child() as child:
            assert sharing(region) == (N, 0), "after fork every page of the parent is shared"
            child.call(write_pages, region, pages, 0xC4)
            assert child.call(region.read) == contents(pages, 0xC4), "the child sees its writes"
            assert region.read() == contents((), 0), "the parent sees none of them"
            own = len(pages)
            assert sharing(region) == (N - own, own), "the parent's shared and own pages"
            assert child.call(sharing, region) == (N - own, own), "the child's"
        assert sharing(region) == (0, N), "all are the parent's own when the child is gone"
        assert status.vmlck_pages() == N, "VmLck of the parent is unchanged"


@pytest.mark.claim("W20")
@PRIVATE
@WRITTEN
def test_parent_writes_after_fork_stay_in_the_parent(kind, pages):
    """What the locked parent writes after fork the child does not see; only the pages written
    cease to be shared; the parent's pages stay present and its lock counted."""
    with mapping(kind, N) as region:
        filled(region)
        syscalls.mlock(region.addr, region.size)
        with Child() as child:
            write_pages(region, pages, 0xB3)
            assert region.read() == contents(pages, 0xB3), "the parent sees its writes"
            assert child.call(region.read) == contents((), 0), "the child sees none of them"
            own = len(pages)
            assert sharing(region) == (N - own, own), "the parent's shared and own pages"
            assert child.call(sharing, region) == (N - own, own), "the child's"
            assert pagemap.present_count(region.addr, N) == N, "the parent's pages are present"
            assert status.vmlck_pages() == N, "VmLck of the parent is unchanged"
            seen = maps.layout(region)
            assert seen == [(0, N, "lo")], "the parent's mapping is still one and locked"


@SHARED
def test_shared_memory_shows_writes_both_ways(kind):
    """Shared memory is never copied by a write, locked or not: parent and child see both writes,
    and every page is mapped by both."""
    with mapping(kind, N) as region:
        filled(region)
        syscalls.mlock(region.addr, region.size)
        with Child() as child:
            child.call(region.write, 0xC4)
            write_pages(region, (2, 5), 0xB3)
            expected = b"".join(bytes([0xB3 if p in (2, 5) else 0xC4]) * PAGE for p in range(N))
            assert region.read() == expected, "the parent sees both writes"
            assert child.call(region.read) == expected, "so does the child"
            assert sharing(region) == (N, 0), "every page of the parent is shared"
            assert child.call(sharing, region) == (N, 0), "and of the child"


@pytest.mark.claim("W21")
@PRIVATE
def test_reading_leaves_pages_shared(kind):
    """Reads by child and parent copy nothing: all pages stay shared, and the parent's reads do
    not fault."""
    with mapping(kind, N) as region:
        filled(region)
        syscalls.mlock(region.addr, region.size)
        with Child() as child:
            assert child.call(region.read) == contents((), 0), "the child reads the contents"
            faults = page_faults.faults_reading(region.addr, region.size)
            assert faults == page_faults.Faults(0, 0), (
                "reading locked memory after fork faults never"
            )
            assert sharing(region) == (N, 0), "every page of the parent is still shared"
            assert child.call(sharing, region) == (N, 0), "and of the child"


@pytest.mark.claim("W22", "W3", "W6")
@pytest.mark.parametrize("who", ["parent", "child"])
@pytest.mark.parametrize(("first", "pages"), [(0, 1), (5, 3), (0, N)])
def test_writes_after_fork_fault_once_a_page(who, first, pages):
    """The first write to each page after fork costs one minor fault, though the parent's memory
    is locked; a second write costs none, and pages not written are not prepaid."""
    with mapping("private", N) as region:
        filled(region)
        syscalls.mlock(region.addr, region.size)
        with Child() as child:
            part = region.sub(first, pages)

            def writing(addr: int, size: int) -> page_faults.Faults:
                if who == "parent":
                    return page_faults.faults_writing(addr, size)
                return child.call(page_faults.faults_writing, addr, size)

            once = writing(part.addr, part.size)
            again = writing(part.addr, part.size)
            all_pages = writing(region.addr, region.size)
            assert once == page_faults.Faults(pages, 0), "one minor fault for each page written"
            assert again == page_faults.Faults(0, 0), "none for the second write"
            rest = page_faults.Faults(N - pages, 0)
            assert all_pages == rest, "one for each of the other pages when they are written"


@pytest.mark.claim("W3", "W22")
def test_parents_writes_fault_even_when_the_child_has_ended():
    """The parent's locked pages stay write-protected after the child's end: the first write to
    each still faults; mlock again takes these faults in advance."""
    with mapping("private", N) as region:
        filled(region)
        syscalls.mlock(region.addr, region.size)
        with Child() as child:
            child.exit()
        half = region.sub(0, N // 2)
        assert page_faults.faults_writing(half.addr, half.size) == page_faults.Faults(N // 2, 0), (
            "one minor fault for each page first written after fork"
        )
        syscalls.mlock(region.addr, region.size)
        assert page_faults.faults_writing(region.addr, region.size) == page_faults.Faults(0, 0), (
            "none after the range was locked again"
        )


@pytest.mark.claim("W3", "W6")
def test_mlock_again_after_fork_ends_the_faults():
    """A second mlock by the parent after fork breaks copy-on-write of its locked pages: no page
    is shared with the child, and its writes fault no more."""
    with mapping("private", N) as region:
        filled(region)
        syscalls.mlock(region.addr, region.size)
        with Child() as child:
            syscalls.mlock(region.addr, region.size)
            assert sharing(region) == (0, N), "every page of the parent is its own"
            faults = page_faults.faults_writing(region.addr, region.size)
            assert faults == page_faults.Faults(0, 0), "writing locked memory faults no more"
            assert child.call(region.read) == contents((), 0), "the child's contents stay"


@pytest.mark.claim("W3", "W6")
def test_child_mlock_ends_its_faults():
    """mlock by the child of inherited memory gives it pages of its own at once: its writes fault
    no more, those of its locked parent still do not see them."""
    with mapping("private", N) as region:
        filled(region)
        syscalls.mlock(region.addr, region.size)
        with Child() as child:
            child.call(syscalls.mlock, region.at(2), 4 * PAGE)
            assert sharing(region) == (4, 4), "pages the child locked are shared no more"
            faults = child.call(page_faults.faults_writing, region.at(2), 4 * PAGE)
            assert faults == page_faults.Faults(0, 0), "the child's writes to what it locked"
            faults = child.call(page_faults.faults_writing, region.addr, 2 * PAGE)
            assert faults == page_faults.Faults(2, 0), "its writes to what it did not lock"
            assert region.read() == contents((), 0), "the parent sees none of the writes"


@pytest.mark.claim("W6")
def test_child_onfault_lock_leaves_pages_shared():
    """A fault-lock by the child copies nothing in advance: pages stay shared, and each first
    write faults."""
    with mapping("private", N) as region:
        filled(region)
        syscalls.mlock(region.addr, region.size)
        with Child() as child:
            child.call(syscalls.mlock2, region.addr, region.size, syscalls.MLOCK_ONFAULT)
            assert sharing(region) == (N, 0), "every page is still shared"
            faults = child.call(page_faults.faults_writing, region.at(1), 3 * PAGE)
            assert faults == page_faults.Faults(3, 0), "one minor fault for each page written"
            assert sharing(region) == (N - 3, 3), "the three written are copied"


@SHARED
def test_shared_locked_memory_does_not_fault_after_fork(kind):
    """Writing locked shared memory after fork costs the parent no fault: nothing is copied."""
    with mapping(kind, N) as region:
        filled(region)
        syscalls.mlock(region.addr, region.size)
        with Child():
            faults = page_faults.faults_writing(region.addr, region.size)
            assert faults == page_faults.Faults(0, 0), "faults of the parent's writes"
