# SPDX-License-Identifier: MIT
"""Limits, personalities and machine-wide settings, one at a time."""

from __future__ import annotations

import ctypes
import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

from helpers import syscalls
from helpers.environments.running import Environment, Unsuitable
from helpers.machine import journal
from helpers.observe import vmstat
from helpers.reclaim import cgroup, setup
from helpers.syscalls.call import DLL

_THP = Path("/sys/kernel/mm/transparent_hugepage")
# In bytes, by the names of prlimit(1).
_LIMITS = (
    ("memlock", resource.RLIMIT_MEMLOCK, (0, 1, 65537, 8389608, resource.RLIM_INFINITY)),
    ("stack", resource.RLIMIT_STACK, (256 << 10,)),
    ("as", resource.RLIMIT_AS, (4 << 30,)),
)
# include/uapi/linux/personality.h
PERSONALITIES = {
    "UNAME26": 0x0020000, "ADDR_NO_RANDOMIZE": 0x0040000, "FDPIC_FUNCPTRS": 0x0080000,
    "MMAP_PAGE_ZERO": 0x0100000, "ADDR_COMPAT_LAYOUT": 0x0200000,
    "READ_IMPLIES_EXEC": 0x0400000, "ADDR_LIMIT_32BIT": 0x0800000, "SHORT_INODE": 0x1000000,
    "WHOLE_SECONDS": 0x2000000, "STICKY_TIMEOUTS": 0x4000000, "ADDR_LIMIT_3GB": 0x8000000,
}  # fmt: skip
_SYSCTLS = (
    ("vm/overcommit_memory", ("0", "1", "2")),
    ("vm/max_map_count", ("2000", "2147483647")),
    ("vm/swappiness", ("0", "200")),
    ("vm/unprivileged_userfaultfd", ("0", "1")),
    ("vm/compact_unevictable_allowed", ("0", "1")),
    ("vm/legacy_va_layout", ("1",)),
    ("kernel/randomize_va_space", ("0", "1", "2")),
    ("kernel/numa_balancing", ("1",)),
    ("kernel/perf_event_paranoid", ("4",)),
    ("kernel/core_pattern", ("|/bin/true",)),
    ("user/max_user_namespaces", ("0",)),
)
_PROCESSES = 2000
_HUGE_PAGES = 8
_GROUP = 1 << 30
"""Bytes of the cgroup of which a neighbour takes nine tenths."""


def environments() -> Iterator[Environment]:
    """Every setting that this suite should not mind, or should name as its reason."""
    for title, which, sizes in _LIMITS:
        for size in sizes:
            shown = "unlimited" if size == resource.RLIM_INFINITY else size
            yield Environment(
                f"{title} {shown}", re.compile(r"ulimit|RLIMIT"), partial(_limit, which, size)
            )
    for name, flag in PERSONALITIES.items():
        yield Environment(f"personality {name}", re.compile(name), partial(personality, flag))
    yield Environment(
        f"{_PROCESSES} processes", re.compile("processes"), around=lambda run: _crowd(_PROCESSES)
    )
    crammed = _Crammed()
    yield Environment(
        "memory at 90 %", re.compile("memory"), enter=crammed.enter, around=crammed.around
    )
    for path, values in _SYSCTLS:
        for value in values:
            yield _setting(f"/proc/sys/{path}", value)
    for value in ("always", "madvise", "never"):
        yield _setting(str(_THP / "enabled"), value)
    for folder in sorted(_THP.glob("hugepages-*kB")):
        yield _setting(str(folder / "enabled"), "always")
    yield _setting(str(_THP / "khugepaged/scan_sleep_millisecs"), "0")
    yield _setting("/sys/kernel/mm/ksm/run", "1")
    yield Environment(
        "huge pages reserved", re.compile("huge page"), around=_reserved, machine=True
    )


def _setting(path: str, value: str) -> Environment:
    short = path.removeprefix("/proc/sys/").removeprefix("/sys/kernel/mm/")
    names = re.compile(re.escape(Path(path).name).replace("enabled", "transparent_hugepage"))
    return Environment(f"{short} {value}", names, around=partial(_set, path, value), machine=True)


@contextmanager
def _set(path: str, value: str, run: journal.ChangeJournal) -> Iterator[None]:
    if not Path(path).exists():
        raise Unsuitable(f"no {path} on this kernel")
    with setup.ReclaimSetup(run).setting(path, value):
        yield


def _limit(which: int, size: int) -> None:
    resource.setrlimit(which, (size, size))


def personality(flag: int) -> None:
    """Add a flag to this process's personality(2), for good. OSError if it is refused."""
    call = DLL.personality
    call.argtypes = [ctypes.c_ulong]
    now = call(0xFFFFFFFF)
    if now < 0 or call(now | flag) < 0:
        raise OSError(ctypes.get_errno(), "personality(2) refused")


# Each ends when its standard input does: with this process, however that ends.
_FORKS = """
import os, sys
for _ in range(int(sys.argv[1])):
    if os.fork() == 0:
        os.read(0, 1)
        os._exit(0)
"""
WRITES = """
import os, sys
kept = bytearray(int(sys.argv[1]))
for at in range(0, len(kept), 1 << 20):
    kept[at : at + (1 << 20)] = os.urandom(1 << 20)
"""
_HUGE = """
import mmap, sys
kept = mmap.mmap(-1, int(sys.argv[1]), flags=int(sys.argv[2]))
"""


@contextmanager
def neighbour(code: str, *arguments: int, group: cgroup.Cgroup | None = None) -> Iterator[None]:
    """A process that has run ``code`` and waits, for the block."""
    held = "\nimport os\nprint(flush=True)\nos.read(0, 1)"
    with subprocess.Popen(
        [sys.executable, "-S", "-c", "input()\n" + code + held, *map(str, arguments)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
    ) as child:  # fmt: skip
        assert child.stdin is not None
        assert child.stdout is not None
        if group is not None:
            group.add(child.pid)
        child.stdin.write("\n")
        child.stdin.flush()
        if not child.stdout.readline():
            raise Unsuitable(f"a neighbour ended with {child.wait()}")
        yield


def _crowd(number: int) -> AbstractContextManager[None]:
    return neighbour(_FORKS, number)


class _Crammed:
    """A memory cgroup of which a neighbour has taken nine tenths, for the run's own process."""

    def __init__(self) -> None:
        self._group: cgroup.Cgroup | None = None

    @contextmanager
    def around(self, run: journal.ChangeJournal) -> Iterator[None]:
        with cgroup.make(run, cgroup.find_parent(run), _GROUP) as group:
            with neighbour(WRITES, _GROUP // 10 * 9, group=group):
                self._group = group
                yield

    def enter(self) -> None:
        assert self._group is not None
        self._group.add(os.getpid())


@contextmanager
def _reserved(run: journal.ChangeJournal) -> Iterator[None]:
    path = "/proc/sys/vm/nr_hugepages"
    number = int(Path(path).read_text()) + _HUGE_PAGES
    with setup.ReclaimSetup(run).setting(path, str(number)):
        free = vmstat.meminfo_kb("HugePages_Free")
        how = syscalls.MAP_PRIVATE | syscalls.MAP_ANONYMOUS | syscalls.MAP_HUGETLB
        with neighbour(_HUGE, free * vmstat.huge_page_size(), how):
            yield
