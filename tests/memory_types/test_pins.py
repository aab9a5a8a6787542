# SPDX-License-Identifier: MIT
"""Locked pages pinned for long, right behind the touch, and in memory that must stay movable."""

import os

import pytest

from helpers import syscalls
from helpers.machine import kernel_version, memory_blocks
from helpers.memory import mapping
from helpers.observe import lock_accounting, page_faults, page_flags, pagemap, status
from helpers.processes import cpus
from helpers.requirements.inconclusive import inconclusive
from helpers.syscalls import io_uring

N = 16

pytestmark = [
    pytest.mark.needs("io-uring", "kpageflags", "lock:32", "smaps-flags"),
    pytest.mark.source("io_uring_register(2)", "mm/gup.c collect_longterm_unpinnable_folios()"),
]
MOVES = kernel_version.version() >= (5, 13, 0)
"""d1e153fea2a8: before, a page in ZONE_MOVABLE is pinned where it lies."""


def in_movable_block(numbers):
    size = memory_blocks.block_pages()
    blocks = memory_blocks.movable_blocks()
    return [number // size in blocks for number in numbers]


VARIANTS = [
    (kind, lf, touched, cpu)
    for kind in ("private", "memfd-shared")
    for lf in (0, syscalls.MLOCK_ONFAULT)
    for touched in (True, False)
    for cpu in (0, 1)
]
"""Kind of memory, how it is locked, whether it was touched before the pin faults it in, and whether
another CPU pins: pages that wait in a batch of the first are held by it."""


def pin(region, ring, lf, touched, cpu):
    """Lock, touch and pin at once: the answer, and the frames before."""
    allowed = sorted(os.sched_getaffinity(0))
    try:
        os.sched_setaffinity(0, {allowed[0]})
        syscalls.mlock2(region.addr, region.size, lf)
        if touched:
            region.touch(0x21)
        os.sched_setaffinity(0, {allowed[cpu % len(allowed)]})
        before = pagemap.pfns(region.addr, N)
        return syscalls.outcome(io_uring.register, ring, region.addr, region.size), before
    finally:
        os.sched_setaffinity(0, set(allowed))


BEFORE_5_18 = kernel_version.version() < (5, 18, 0)
"""cea86fe246b6: before, a fault left pages that are not private to be marked by reclaim."""


def expect_locked(region, lf, touched, what):
    assert lock_accounting.read(region).pages == ("F" if lf else "L") * N, f"{what}: locked"
    assert status.vmlck_pages() == N, f"{what}: VmLck"
    cpus.mlock_drain_all()
    if not (lf and BEFORE_5_18 and region.kind.endswith("shared")):
        assert page_flags.mlocked(region) == "1" * N, f"{what}: mlocked"
    assert region.first_bytes() == bytes([0x21 if touched else 0]) * N, f"{what}: contents"
    fault = page_faults.faults_reading(region.addr, region.size)
    assert fault == page_faults.Faults(0, 0), f"{what}: no faults"


@pytest.mark.parametrize(("kind", "lf", "touched", "cpu"), VARIANTS, ids=[
    f"{kind}-{'on-fault' if lf else 'full'}-{'touched' if touched else 'untouched'}"
    f"-{'other' if cpu else 'same'}-cpu"
    for kind, lf, touched, cpu in VARIANTS
])  # fmt: skip
@pytest.mark.detects("pin-of-locked-enomem", "pin-of-locked-unlocks")
def test_page_just_locked_can_be_pinned_for_long(kind, lf, touched, cpu):
    """A fixed buffer of io_uring over pages that were locked, or touched under a lock, this very
    moment is taken, from the CPU that touched them and from another; they stay locked, mlocked,
    present and intact, and are so when the buffer is given up."""
    with mapping(kind, N) as region, io_uring.io_uring_instance() as ring:
        answer, _ = pin(region, ring, lf, touched, cpu)
        assert answer == "ok", "pinned"
        pinned = pagemap.pfns(region.addr, N)
        assert 0 not in pinned, "all present"
        expect_locked(region, lf, touched, "pinned")
        assert pagemap.pfns(region.addr, N) == pinned, "in the frames that are pinned"
        io_uring.unregister(ring)
        expect_locked(region, lf, touched, "given up")


@pytest.mark.needs("movable-block")
@pytest.mark.deviation("fresh-lock-unpinnable")
@pytest.mark.source(
    "mm/gup.c collect_longterm_unpinnable_folios()", "20250815101858.24352-1-will@kernel.org"
)
@pytest.mark.detects("pin-of-locked-enomem")
def test_locked_page_is_pinned_outside_of_movable_memory():
    """Locked pages in ZONE_MOVABLE are moved out of it and pinned (since 5.13), however fresh lock
    and touch are; they stay locked, mlocked and intact."""
    inside = 0
    for kind, lf, touched, cpu in VARIANTS:
        what = f"{kind}, {lf}, {touched}, {cpu}"
        with mapping(kind, N) as region, io_uring.io_uring_instance() as ring:
            answer, before = pin(region, ring, lf, touched, cpu)
            inside += sum(in_movable_block(before))
            assert answer == "ok", f"{what}: pinned"
            if MOVES:
                pinned = pagemap.pfns(region.addr, N)
                assert not any(in_movable_block(pinned)), f"{what}: outside of it"
            expect_locked(region, lf, touched, what)
    if not inside:
        inconclusive("no page lay in ZONE_MOVABLE before it was pinned")
