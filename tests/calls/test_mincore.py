# SPDX-License-Identifier: MIT
"""mincore's own contract: arguments, rounding, the vector, and holes.

What it says of locked, file-backed and swapped memory belongs to residency.
"""

import ctypes

import pytest

from helpers import syscalls
from helpers.memory import mapping
from helpers.memory.layouts import unmap_pages
from helpers.observe import maps
from helpers.pytest_plugin.parametrize import by_entry_point
from helpers.syscalls import PAGE, PROT_NONE, PROT_READ

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("mincore"),
    pytest.mark.source("mincore(2)"),
]

UNTOUCHED = 0xEE
"""A byte that mincore never writes."""
TOUCHED = [1, 0, 0, 1, 1, 0, 1, 0]
"""Pattern of pages that are written before: not symmetric in any way."""
ANONYMOUS = pytest.mark.parametrize("kind", ["private", "shared"])


def vector(entries, spare=4):
    """A vector with room for ``spare`` more entries, all of them filled with UNTOUCHED."""
    vec = (ctypes.c_ubyte * (entries + spare))()
    ctypes.memset(vec, UNTOUCHED, len(vec))
    return vec


def ask(calls, addr, length, vec):
    """Outcome of mincore into ``vec`` (an array, or an address)."""
    where = vec if isinstance(vec, int) else ctypes.addressof(vec)
    return syscalls.outcome(calls.mincore, addr, length, where)


def touch(region):
    """Write the pages of the pattern."""
    for page, wanted in enumerate(TOUCHED):
        if wanted:
            region.sub(page, 1).touch()


@by_entry_point()
@ANONYMOUS
@pytest.mark.detects("mincore-one-page-early")
def test_mincore_says_page_by_page_what_was_touched(calls, kind):
    """mincore writes one byte a page, exactly 1 for a page in memory and 0 for one that is
    not, in the order of the pages, and nothing behind the last."""
    with mapping(kind, 8) as region:
        touch(region)
        vec = vector(8)
        seen = ask(calls, region.addr, region.size, vec)
        assert seen == "ok", "the range is mapped"
        assert list(vec) == TOUCHED + [UNTOUCHED] * 4, "1 for each page that was written, else 0"


def test_mincore_of_part_of_a_mapping_begins_at_its_address():
    """The first byte of the vector is the page at the address, wherever the mapping begins."""
    with mapping("private", 8) as region:
        touch(region)
        seen = {}
        for first in range(8):
            for pages in range(1, 9 - first):
                vec = vector(pages, 1)
                syscalls.mincore(region.at(first), pages * PAGE, vec)
                seen[first, pages] = list(vec)
        wanted = {(f, n): [*TOUCHED[f : f + n], UNTOUCHED] for f, n in seen}
        assert seen == wanted, "each part reads as that part of the whole"


@pytest.mark.parametrize(
    ("length", "entries"),
    [(1, 1), (PAGE - 1, 1), (PAGE, 1), (PAGE + 1, 2), (PAGE + PAGE // 2, 2), (3 * PAGE - 1, 3)],
)
@pytest.mark.detects(
    "mincore-last-page-absent", "mincore-length-rounded-down", "mincore-one-page-refused"
)
def test_mincore_length_rounds_up(length, entries):
    """A length that ends inside a page includes that page; nothing is written behind its
    byte."""
    with mapping("private", 4) as region:
        region.touch()
        vec = vector(entries)
        seen = ask(syscalls.RAW, region.addr, length, vec)
        assert seen == "ok", "the range is mapped"
        assert list(vec) == [1] * entries + [UNTOUCHED] * 4, "one byte for each page begun"


@by_entry_point()
@pytest.mark.detects("mincore-zero-length-einval")
def test_mincore_zero_length_is_noop(calls):
    """Length 0 succeeds and writes nothing, whatever address and vector."""
    with mapping("private", 2) as region:
        unmap_pages(region, 1)
        vec = vector(1)
        seen = {
            "mapped": ask(calls, region.addr, 0, vec),
            "hole": ask(calls, region.at(1), 0, vec),
            "NULL": ask(calls, 0, 0, 0),
            "NULL vector": ask(calls, region.addr, 0, 0),
            "unmapped vector": ask(calls, region.addr, 0, region.at(1)),
        }
        assert seen == dict.fromkeys(seen, "ok"), "nothing to say is no error"
        assert list(vec) == [UNTOUCHED] * 5, "the vector is untouched"


@by_entry_point()
@pytest.mark.detects("mincore-unaligned-accepted")
def test_mincore_unaligned_address_gives_einval(calls):
    """An address inside a page gives EINVAL before anything else is looked at."""
    with mapping("private", 4) as region:
        region.touch()
        unmap_pages(region, 3)
        vec = vector(2)
        seen = {
            "offset 1": ask(calls, region.addr + 1, PAGE, vec),
            "middle": ask(calls, region.addr + PAGE // 2, PAGE, vec),
            "last byte": ask(calls, region.at(1) - 1, PAGE, vec),
            "length 0": ask(calls, region.addr + 1, 0, vec),
            "unmapped": ask(calls, region.at(3) + 1, 8, vec),
            "bad vector": ask(calls, region.addr + 1, PAGE, 0),
            "length −1": ask(calls, region.addr + 1, syscalls.SIZE_MAX, vec),
        }
        assert seen == dict.fromkeys(seen, "EINVAL"), "the address is not a multiple of the page"
        assert list(vec) == [UNTOUCHED] * 6, "the vector is untouched"


@by_entry_point()
@pytest.mark.detects("mincore-bad-vector-enomem")
def test_mincore_bad_vector_gives_efault(calls):
    """A vector that is NULL, unmapped, read-only, inaccessible or the kernel's gives EFAULT."""
    with mapping("private", 2) as region, mapping("private", 4) as store:
        region.touch()
        syscalls.mprotect(store.at(1), PAGE, PROT_READ)
        syscalls.mprotect(store.at(2), PAGE, PROT_NONE)
        unmap_pages(store, 3)
        seen = {
            "NULL": ask(calls, region.addr, region.size, 0),
            "read-only": ask(calls, region.addr, region.size, store.at(1)),
            "inaccessible": ask(calls, region.addr, region.size, store.at(2)),
            "unmapped": ask(calls, region.addr, region.size, store.at(3)),
            "last page": ask(calls, region.addr, region.size, syscalls.ULONG_MAX & -PAGE),
            "second byte read-only": ask(calls, region.addr, region.size, store.at(1) - 1),
            "one page, good vector": ask(calls, region.addr, PAGE, store.at(1) - 1),
        }
        assert seen == {**dict.fromkeys(seen, "EFAULT"), "one page, good vector": "ok"}, (
            "the vector must be writable for every page asked about"
        )


HOLES = {"first": 0, "second": 1, "middle": 4, "last": 7}


@pytest.mark.parametrize("where", HOLES.values(), ids=HOLES)
@pytest.mark.detects("mincore-hole-not-reported")
def test_mincore_over_hole_gives_enomem(where):
    """A hole anywhere in the range gives ENOMEM; pages before it have been reported by then,
    those behind it never are."""
    with mapping("private", 8) as region:
        touch(region)
        unmap_pages(region, where)
        vec = vector(8)
        seen = ask(syscalls.RAW, region.addr, region.size, vec)
        assert seen == "ENOMEM", "a page of the range is not mapped"
        assert list(vec) == TOUCHED[:where] + [UNTOUCHED] * (12 - where), (
            "bytes for the pages before the hole only"
        )


@by_entry_point()
def test_mincore_last_byte_in_a_hole_gives_enomem(calls):
    """One byte that lies in a hole is enough for ENOMEM; a range that ends at the hole or
    begins behind it is fine."""
    with mapping("private", 6) as region:
        region.touch()
        unmap_pages(region, 3)
        vec = vector(4)
        seen = {
            "into the hole": ask(calls, region.at(1), 2 * PAGE + 1, vec),
            "up to the hole": ask(calls, region.at(1), 2 * PAGE, vec),
            "behind the hole": ask(calls, region.at(4), 2 * PAGE, vec),
            "the hole": ask(calls, region.at(3), 1, vec),
        }
        assert seen == {
            "into the hole": "ENOMEM",
            "up to the hole": "ok",
            "behind the hole": "ok",
            "the hole": "ENOMEM",
        }, "every page that holds a byte of the range must be mapped"


def test_mincore_hole_is_reported_before_a_bad_vector():
    """A range that begins in a hole gives ENOMEM even if the vector is bad as well."""
    with mapping("private", 2) as region:
        unmap_pages(region, 1)
        seen = [ask(syscalls.RAW, region.at(1), PAGE, bad) for bad in (0, region.at(1))]
        assert seen == ["ENOMEM", "ENOMEM"], "the range is looked at first"


@by_entry_point()
def test_mincore_past_the_address_space_gives_enomem(calls):
    """A length that leaves the address space gives ENOMEM: mincore has no length that wraps
    to nothing, as mlock has."""
    with mapping("private", 4) as region:
        region.touch()
        vec = vector(4)
        seen = {
            "length −1": ask(calls, region.addr, syscalls.SIZE_MAX, vec),
            "length −P": ask(calls, region.addr, syscalls.SIZE_MAX - PAGE + 1, vec),
            "up to address 0": ask(calls, region.addr, syscalls.ULONG_MAX - region.addr + 1, vec),
            "last page": ask(calls, syscalls.ULONG_MAX & -PAGE, PAGE, vec),
            "NULL, length −1": ask(calls, 0, syscalls.SIZE_MAX, vec),
        }
        if not maps.vmas(high=PAGE):  # the personality MMAP_PAGE_ZERO maps it
            seen["NULL page"] = ask(calls, 0, PAGE, vec)
        assert seen == dict.fromkeys(seen, "ENOMEM"), "part of the range is no user memory"
        assert list(vec) == [UNTOUCHED] * 8, "the vector is untouched"


def test_mincore_crosses_mappings_of_every_protection():
    """mincore needs no access to the memory it reports on, and goes on from one mapping into
    the next."""
    with mapping("private", 8) as region:
        touch(region)
        syscalls.mprotect(region.at(2), 2 * PAGE, PROT_READ)
        syscalls.mprotect(region.at(4), PAGE, PROT_NONE)
        syscalls.mprotect(region.at(5), PAGE, syscalls.PROT_WRITE)
        vec = vector(8)
        seen = ask(syscalls.RAW, region.addr, region.size, vec)
        assert seen == "ok", "no permission is needed"
        assert list(vec) == TOUCHED + [UNTOUCHED] * 4, "the pattern, across five mappings"


def test_mincore_counts_a_page_that_was_only_read():
    """A page that was read but never written, and so shows zeros, is in memory."""
    with mapping("private", 3) as region:
        syscalls.load(region.at(1), 1)
        vec = vector(3, 1)
        seen = ask(syscalls.RAW, region.addr, region.size, vec)
        assert seen == "ok", "the range is mapped"
        assert list(vec) == [0, 1, 0, UNTOUCHED], "the page that was read is mapped to memory"


CHUNK = PAGE
"""The kernel fills the vector a page of bytes, so this many pages, at a time."""


def large(pages):
    """Address of a mapping that costs nothing however large it is: read-only memory is not
    accounted, and reading it maps the zero page."""
    return syscalls.mmap(0, pages * PAGE, PROT_READ)


def test_mincore_vector_longer_than_a_page():
    """A vector of more than a page of bytes is right on both sides of every page's end."""
    pages = 2 * CHUNK + 3
    start = large(pages)
    wanted = [0, CHUNK - 1, CHUNK + 1, 2 * CHUNK - 1, 2 * CHUNK + 2]
    for page in wanted:
        syscalls.load(start + page * PAGE, 1)
    vec = vector(pages)
    seen = ask(syscalls.RAW, start, pages * PAGE, vec)
    assert seen == "ok", "the range is mapped"
    resident = [page for page, byte in enumerate(vec) if byte == 1]
    absent = bytes(vec).count(0)
    assert resident == wanted, "exactly the pages that were read"
    assert absent == pages - len(wanted), "every other page has its byte 0"
    assert list(vec[pages:]) == [UNTOUCHED] * 4, "nothing is written behind the last"


def test_mincore_vector_that_ends_too_early_gives_efault():
    """A vector whose second page is not writable gives EFAULT; its first page is filled by
    then."""
    pages = CHUNK + 2
    start = large(pages)
    syscalls.load(start + PAGE, 1)
    with mapping("private", 2) as store:
        store.write(UNTOUCHED)
        syscalls.mprotect(store.at(1), PAGE, PROT_READ)
        seen = ask(syscalls.RAW, start, pages * PAGE, store.addr)
        filled = syscalls.load(store.addr, PAGE)
        assert seen == "EFAULT", "the last two bytes have no place"
        assert [n for n, byte in enumerate(filled) if byte] == [1], "the first page is right"
        assert syscalls.load(store.at(1), 4) == bytes([UNTOUCHED] * 4), (
            "read-only memory is as before"
        )
