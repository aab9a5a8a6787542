# SPDX-License-Identifier: MIT
"""Device and special mappings: not the kernel's to lock, whatever is asked."""

import ctypes
import os
import socket
import struct

import pytest

from helpers import syscalls
from helpers.memory import Region, adopt_mapping, mapping
from helpers.observe import lock_accounting, maps, residency, special_mappings, status
from helpers.processes import Child
from helpers.syscalls import PAGE, io_uring, perf_event

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("lock:16"),
    pytest.mark.source("mlock(2)", "mm/mlock.c mlock_fixup (VM_SPECIAL)"),
]


SOL_PACKET, PACKET_RX_RING = 263, 5


def mapped(fd, size, addr):
    """The descriptor mapped, at ``addr`` unless that is 0, for as long as this process lives."""
    how = syscalls.MAP_SHARED | (syscalls.MAP_FIXED if addr else 0)
    return Region(syscalls.mmap(addr, size, syscalls.PROT_RW, how, fd), size)


def perf_ring(addr=0):
    return mapped(perf_event.open_dummy_event(), 2 * PAGE, addr)


def uring():
    return mapped(io_uring.create(), PAGE, 0)


def packet_ring(addr=0):
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)  # protocol 0: receives nothing
    size = 4 * PAGE
    # struct tpacket_req: bytes in a block, blocks, bytes in a frame, frames.
    request = struct.pack("IIII", size, 1, PAGE, size // PAGE)
    sock.setsockopt(SOL_PACKET, PACKET_RX_RING, request)
    return mapped(sock.detach(), size, addr)


def aio_ring(addr=0):
    context = ctypes.c_ulong()
    syscalls.syscall("io_setup", 8, context)
    found = maps.at(context.value)
    if addr:
        how = syscalls.MREMAP_MAYMOVE | syscalls.MREMAP_FIXED
        syscalls.mremap(found.start, found.size, found.size, how, addr)
    return Region(addr or found.start, found.size)


ROOM = 16
"""Pages for a ring, the largest of which is an aio ring, and one on each side."""


def named(name):
    for vma in maps.vmas():
        if vma.name == name:
            return Region(vma.start, vma.size)
    raise LookupError(f"no {name} in /proc/self/maps")


def vvar():
    return named("[vvar]")


MAKERS = [
    pytest.param(perf_ring, marks=pytest.mark.needs("perf"), id="perf"),
    pytest.param(uring, marks=pytest.mark.needs("io-uring"), id="io_uring"),
    pytest.param(packet_ring, marks=pytest.mark.needs("packet-ring"), id="packet"),
    pytest.param(aio_ring, marks=pytest.mark.needs("aio"), id="aio"),
]
SPECIAL = pytest.mark.parametrize("make", MAKERS)


@pytest.mark.own_process
@SPECIAL
@pytest.mark.parametrize("flags", [0, syscalls.MLOCK_ONFAULT], ids=["mlock", "onfault"])
def test_ring_of_the_kernel_is_never_locked(make, flags):
    """mlock of a ring shared with the kernel succeeds and marks and counts nothing; nor does
    munlock take anything away."""
    region = make()
    with mapping("private", 3) as plain:
        syscalls.mlock2(plain.addr, plain.size, flags)
        before = status.vmlck_pages()
        assert before == 3, "control: plain memory counts"
        assert syscalls.outcome(syscalls.mlock2, region.addr, region.size, flags) == "ok", "mlock"
        assert status.vmlck_pages() == before, "VmLck"
        assert maps.at(region.addr).lock == "", "not lo"
        syscalls.munlock(region.addr, region.size)
        assert status.vmlck_pages() == before, "VmLck after munlock"
        syscalls.munmap(region.addr, region.size)
        assert status.vmlck_pages() == before, "VmLck after munmap"
        syscalls.munlock(plain.addr, plain.size)
        assert status.vmlck_pages() == 0, "control: plain memory is unlocked"


@SPECIAL
@pytest.mark.needs("lock-all")
def test_ring_made_under_future_is_never_locked(make):
    """A ring mapped under MCL_FUTURE is not lo and does not count; unmapping it takes nothing
    out of VmLck."""
    with Child() as child:
        child.call(syscalls.mlockall, syscalls.MCL_FUTURE)
        plain = child.call(syscalls.mmap, 0, PAGE)
        assert maps.at(plain, child.pid).lock == "lo", "control: plain memory is lo"
        region = child.call(make)
        assert maps.at(region.addr, child.pid).lock == "", "not lo"
        assert maps.locked_kb(child.pid) == status.vmlck_kb(child.pid), "VmLck: sum of lo"
        child.call(syscalls.munmap, region.addr, region.size)
        assert maps.locked_kb(child.pid) == status.vmlck_kb(child.pid), "after munmap"


@SPECIAL
@pytest.mark.needs("lock-all")
def test_mlockall_passes_over_rings(make):
    """mlockall(MCL_CURRENT) locks all around a ring and not the ring."""
    with Child() as child:
        region = child.call(make)
        plain = child.call(syscalls.mmap, 0, PAGE)
        child.call(syscalls.mlockall, syscalls.MCL_CURRENT)
        assert maps.at(plain, child.pid).lock == "lo", "control: plain memory is lo"
        assert maps.at(region.addr, child.pid).lock == "", "not lo"
        assert maps.locked_kb(child.pid) == status.vmlck_kb(child.pid), "VmLck: sum of lo"
        child.call(syscalls.munlockall)
        assert status.vmlck_kb(child.pid) == 0, "munlockall"


# io_uring's rings go where the kernel wants them, and nowhere else.
@pytest.mark.own_process
@pytest.mark.parametrize("make", [m for m in MAKERS if m.id != "io_uring"])
def test_lock_across_a_ring_takes_what_is_around_it(make):
    """mlock over locked memory, a ring and more memory locks both sides and passes over the ring:
    it stops neither the lock nor the walk."""
    base = syscalls.mmap(0, ROOM * PAGE)
    ring = make(base + PAGE)
    region = Region(base, 2 * PAGE + ring.size)
    assert syscalls.outcome(syscalls.mlock, region.addr, region.size) == "ok", "mlock"
    middle = "-" * (ring.size // PAGE)
    assert lock_accounting.page_letters(region) == f"L{middle}L", "both sides are lo"
    assert status.vmlck_pages() == 2, "VmLck"
    syscalls.munlock(region.addr, region.size)
    assert lock_accounting.page_letters(region) == f"-{middle}-", "munlock too"


def test_vvar_is_never_locked():
    """[vvar] can be given to mlock and munlock and is never lo or counted."""
    try:
        region = vvar()
    except LookupError as error:
        pytest.skip(str(error))
    with mapping("private", 1) as plain:
        syscalls.mlock(plain.addr, plain.size)
        syscalls.outcome(syscalls.mlock, region.addr, region.size)  # part of it may be absent
        assert maps.at(region.addr).lock == "", "not lo"
        assert status.vmlck_pages() == 1, "VmLck counts the plain page alone"


@pytest.mark.parametrize("how", ["private", "shared"])
def test_dev_zero_is_locked_as_anonymous_memory(how):
    """A mapping of /dev/zero, private or shared, is locked, counted and populated like anonymous
    memory."""
    flags = syscalls.MAP_PRIVATE if how == "private" else syscalls.MAP_SHARED
    fd = os.open("/dev/zero", os.O_RDWR)
    with adopt_mapping(syscalls.mmap(0, 8 * PAGE, syscalls.PROT_RW, flags, fd), 8 * PAGE) as region:
        syscalls.mlock(region.addr, region.size)
        assert lock_accounting.read(region) == lock_accounting.expect("L" * 8, 8), (
            "locked, counted, resident"
        )
        assert residency.anon_bits(region) == ("1" if how == "private" else "0") * 8, (
            "its own pages"
        )
        syscalls.munlock(region.at(2), 2 * PAGE)
        assert lock_accounting.read(region) == lock_accounting.expect("LL--LLLL", 6), (
            "unlocked in part"
        )
    os.close(fd)


@pytest.mark.needs("lock-all", "map-vdso")
@pytest.mark.deviation("special-mapping-locked")
@pytest.mark.parametrize("flags", [syscalls.MCL_FUTURE, syscalls.MCL_FUTURE | syscalls.MCL_ONFAULT])
def test_special_mapping_goes_without_a_trace_under_future(flags):
    """The vdso mapped and unmapped under MCL_FUTURE is never lo, and leaves VmLck as it was."""
    with Child() as child:
        child.call(syscalls.mlockall, flags)
        plain = child.call(syscalls.mmap, 0, PAGE)
        assert maps.at(plain, child.pid).locked, "control: plain memory is lo"
        low, high = child.call(special_mappings.remap_special_mappings)
        assert [v.lock for v in maps.smaps(child.pid, low, high) if v.lock] == [], "not lo"
        child.call(syscalls.munmap, low, high - low)
        assert maps.locked_kb(child.pid) == status.vmlck_kb(child.pid), "VmLck: sum of lo"
