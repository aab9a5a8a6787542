# SPDX-License-Identifier: MIT
"""The witnesses: parsers on golden text, bulk readers against one read a page."""

import ctypes
import os

import pytest

from helpers import memory, processes, syscalls
from helpers.machine import kernel_version
from helpers.observe import evidence, maps, page_faults, page_flags, status
from helpers.processes import credentials, rlimits
from helpers.syscalls import PAGE, native_chain, numbers

SMAPS = """\
55d0c0a00000-55d0c0a21000 rw-p 00000000 00:00 0                          [heap]
Size:                132 kB
KernelPageSize:        4 kB
Rss:                  12 kB
Pss:                  12 kB
Pss_Dirty:            12 kB
Locked:               12 kB
THPeligible:           0
ProtectionKey:         0
VmFlags: rd wr mr mw me lo ac sd
7f0000000000-7f0000003000 r--s 00001000 fe:00 131 /tmp/with space: and colon (deleted)
Size:                 12 kB
Rss:                   0 kB
Locked:                0 kB
VmFlags: rd sh mr mw me ms lo lf sd
7f0000003000-7f0000004000 ---p 00000000 00:00 0
Size:                  4 kB
Rss:                   0 kB
VmFlags: mr mw me ?? lo sd
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
Size:                  4 kB
VmFlags: ex
"""


def test_smaps_parser_reads_every_field():
    """Headers, counters and flags are told apart whatever the file's name holds."""
    heap, file, none, gate = maps.parse_smaps(SMAPS)
    assert (heap.start, heap.kb, heap.perms, heap.name) == (0x55D0C0A00000, 132, "rw-p", "[heap]")
    assert heap.locked
    assert not heap.onfault
    assert heap.field_kb("Locked") == 12
    assert (file.offset, file.device, file.inode) == (0x1000, "fe:00", 131)
    assert file.name == "/tmp/with space: and colon (deleted)"
    assert file.onfault
    assert none.onfault, "lf reads ?? before 6.2"
    assert not gate.locked
    assert gate.field_kb("Rss") == 0, "an absent counter is 0"


def test_maps_and_smaps_agree_here():
    """Both files list the same VMAs of this process."""
    with memory.mapping("private", 4) as region:
        syscalls.mprotect(region.at(1), PAGE, syscalls.PROT_READ)
        plain = maps.vmas(low=region.addr, high=region.end)
        full = maps.smaps(low=region.addr, high=region.end)
    assert [v.line for v in plain] == [v.line for v in full]
    assert [v.kb for v in plain] == [PAGE // 1024, PAGE // 1024, 2 * PAGE // 1024]


@pytest.mark.parametrize(
    ("release", "version"),
    [
        ("6.12.107+deb13-amd64", (6, 12, 107)),
        ("5.10.0-33-amd64", (5, 10, 0)),
        ("7.2-rc3", (7, 2, 0)),
        ("6.18.44-fc-v595", (6, 18, 44)),
    ],
)
def test_release_becomes_a_version(release, version):
    """Distribution suffixes do not disturb the numbers."""
    assert kernel_version.parse(release) == version


def test_foreign_release_is_refused():
    """A release that is none raises instead of comparing as 0."""
    with pytest.raises(ValueError, match="not a kernel release"):
        kernel_version.parse("unknown")


@pytest.mark.parametrize(
    ("machine", "bits", "name"),
    [
        ("x86_64", 64, "x86_64"),
        ("i686", 64, "x86_64"),
        ("x86_64", 32, "i386"),
        ("aarch64", 64, "aarch64"),
        ("armv8l", 32, "arm"),
        ("aarch64", 32, "arm"),
        ("ppc64le", 64, "ppc64le"),
        ("riscv64", 64, "riscv64"),
    ],
)
def test_architecture_follows_the_word_size(machine, bits, name):
    """uname -m lies under setarch and for compat processes; the word size does not."""
    assert syscalls.architecture(machine, bits) == name


def test_numbers_are_known_for_every_call_and_architecture():
    """Every call has a number, or none on purpose, in every column, and no column has one twice."""
    for name, row in numbers.NUMBERS.items():
        assert len(row) == len(numbers._COLUMNS), name
    for column in zip(*numbers.NUMBERS.values()):
        there = [number for number in column if number is not None]
        assert len(set(there)) == len(there)


@pytest.mark.parametrize(
    ("pfns", "segments", "ranges"),
    [
        ([], 0, []),
        ([7], 1, [(7, 1)]),
        ([7, 8, 9], 1, [(7, 3)]),
        ([9, 8, 7], 1, [(7, 3)]),
        ([5, 6, 9, 8, 7], 2, [(5, 5)]),
        ([5, 0, 0, 6], 3, [(5, 2)]),
        ([1, 2, 5, 100], 3, [(1, 5), (100, 1)]),
        ([4, 4, 4], 1, [(4, 1)]),
        ([0, 0, 0], 1, []),
        ([4, 5, 4, 4], 4, [(4, 2)]),
        ([10, 20, 30], 3, [(10, 1), (20, 1), (30, 1)]),
    ],
)
def test_pfns_become_runs(pfns, segments, ranges):
    """Neighbours join, forwards and backwards; small gaps are bridged; absent pages (0) are not
    read."""
    found = page_flags.contiguous_pfns(pfns)
    assert [first + step * n for first, _, length, step in found for n in range(length)] == pfns
    assert len(found) == segments
    assert page_flags.read_ranges(found, bridge=4) == ranges


@pytest.mark.needs("kpageflags")
@pytest.mark.parametrize("step", [1, 3])
def test_bulk_flags_equal_one_read_a_page(step):
    """Bulk reading gives the very words that one pread a page gives, holes included."""
    with memory.mapping("private", 300) as region:
        for page in range(0, 300, step):
            region.sub(page, 1).touch()
        seen = page_flags.snapshot(region.addr, region.pages)
        fd = os.open("/proc/kpageflags", os.O_RDONLY)
        single = [
            int.from_bytes(os.pread(fd, 8, pfn * 8), os.sys.byteorder) if pfn else 0
            for pfn in seen.pfns
        ]
        os.close(fd)
    steady = ~(1 << page_flags.KPF["REFERENCED"] | 1 << page_flags.KPF["ACTIVE"] | page_flags.LRU)
    assert [f & steady for f in seen.flags] == [f & steady for f in single]
    assert sum(seen.present) == len(range(0, 300, step))


def test_fault_counter_counts_exactly():
    """Writing and then rewriting untouched pages costs a fault each, then none."""
    with memory.mapping("private", 16) as region:
        first = page_faults.faults_writing(region.addr, region.size)
        again = page_faults.faults_writing(region.addr, region.size)
        read = page_faults.faults_reading(region.addr, region.size)
    assert (first.minor, first.major) == (16, 0)
    assert (again.minor, read.minor) == (0, 0)


def test_status_is_read_from_the_named_process():
    """status.fields(pid) is about that process."""
    assert status.fields(os.getpid())["Pid"] == str(os.getpid())
    assert status.fields()["Pid"] == str(os.getpid())


def test_evidence_describes_the_memory_of_a_failure():
    """An exception through a mapping's block leaves its VMAs and pages behind."""

    evidence.captured.clear()
    with pytest.raises(RuntimeError), memory.mapping("private", 2) as region:
        region.sub(0, 1).touch()
        raise RuntimeError
    (record,) = evidence.captured
    evidence.captured.clear()
    assert f"{region.addr:x}" in record
    assert "page 0" in record
    assert "present" in record
    assert "page 1" in record
    assert "absent" in record


def test_privileges_are_restored_to_what_they_were():
    """Scoped changes of limit and capabilities leave no trace."""
    sets, limits = credentials.capabilities(), rlimits.memlock_limit()
    with rlimits.unprivileged_with_limit(min(limits[1], 2 * PAGE) if limits[1] >= 0 else 2 * PAGE):
        assert not credentials.has_capability("CAP_IPC_LOCK")
    assert (credentials.capabilities(), rlimits.memlock_limit()) == (sets, limits)


def test_move_to_another_cpu_is_no_fault():
    """A thread that the scheduler moves in the middle of a count faults no more for it, though a
    fork left every page of it copy-on-write (restartable sequences, rseq(2))."""
    allowed = os.sched_getaffinity(0)
    if len(allowed) < 2 or not native_chain.available:
        pytest.skip("needs two CPUs and makecontext(3)")
    everywhere = cpu_set(allowed)
    for cpu in sorted(allowed)[:2] * 8:  # the kernel may have written before: about every second
        there = cpu_set({cpu})
        with processes.Child():
            moved = page_faults._alone(
                "sched_setaffinity",
                (0, ctypes.sizeof(everywhere), ctypes.addressof(everywhere)),
                (0, ctypes.sizeof(there), ctypes.addressof(there)),
            )
        assert moved == page_faults.Faults(0, 0), f"no fault of the move to CPU {cpu}"


def cpu_set(cpus: set[int]) -> ctypes.Array[ctypes.c_ulong]:
    """The cpu_set_t of these CPUs."""
    words = [0] * 128
    for cpu in cpus:
        words[cpu // syscalls.WORD_BITS] |= 1 << cpu % syscalls.WORD_BITS
    return (ctypes.c_ulong * len(words))(*words)
