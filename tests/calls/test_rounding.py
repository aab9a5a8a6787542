"""Bytes in, whole pages out: how the calls round address and length."""

import pytest

from helpers import libc
from helpers.libc import PAGE
from helpers.memory import mapping
from helpers.observe import maps, status

pytestmark = [pytest.mark.needs("lock:8"), pytest.mark.source("mlock(2) NOTES")]

BOTH = pytest.mark.parametrize("calls", [libc.RAW, libc.GLIBC], ids=repr)


@BOTH
@pytest.mark.claim("W5")
def test_range_rounds_outward_to_whole_pages(calls):
    """mlock of two bytes across a page boundary locks both pages, and nothing beside them."""
    with mapping("private", 4) as region:
        before = status.vmlck_pages()
        calls.mlock(region.at(2) - 1, 2)
        assert maps.layout(region.addr, region.end, PAGE) == [
            (0, 1, ""),
            (1, 3, "lo"),
            (3, 4, ""),
        ], "pages 1 and 2 are lo, pages 0 and 3 are not"
        assert status.vmlck_pages() - before == 2, "VmLck grows by two pages"
