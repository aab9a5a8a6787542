# SPDX-License-Identifier: MIT
"""What an item left behind in a process that it shares with the next one.

Not looked at, because lawful: growth of the heap, number of VMAs, minor faults.
"""

from __future__ import annotations

import contextlib
import os
import resource
import time

from helpers import syscalls
from helpers.machine import timeouts
from helpers.observe import status
from helpers.syscalls import MS_ASYNC, MS_INVALIDATE, PAGE

_STATUS = (
    "VmLck", "Uid", "Gid", "CapEff", "CapPrm", "Threads", "Cpus_allowed_list", "NoNewPrivs",
    "Seccomp", "SigBlk", "SigIgn",
)  # fmt: skip


def _future_is_on() -> bool:
    """MCL_FUTURE is on: a fresh page is locked (VmLck 0 alone would not show it).

    msync(2): MS_INVALIDATE gives EBUSY on locked memory.
    """
    addr = syscalls.mmap(0, PAGE)
    try:
        return syscalls.outcome(syscalls.msync, addr, PAGE, MS_ASYNC | MS_INVALIDATE) == "EBUSY"
    finally:
        syscalls.munmap(addr, PAGE)


def _descriptors() -> dict[str, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the folder's own descriptor
            found[name] = os.readlink(f"/proc/self/fd/{name}")
    return found


def _children() -> str:
    try:
        info = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT | os.WNOHANG)
    except ChildProcessError:
        return "none"
    return f"pid {info.si_pid} has ended" if info else "running"


def _namespace(name: str) -> str:
    try:
        return os.readlink(f"/proc/self/ns/{name}")
    except OSError:
        return "none"


def wait_for_threads(count: str) -> None:
    """Wait, a second at most, for threads that were joined and have not left the kernel yet."""
    until = timeouts.until(1)
    while str(len(os.listdir("/proc/self/task"))) != count and time.monotonic() < until:
        time.sleep(0.001)


def read() -> dict[str, str]:
    """State of this process that a case must put back, by name."""
    fields = status.fields()
    found = {name: " ".join(fields.get(name, "").split()) for name in _STATUS}
    found["MCL_FUTURE"] = "on" if _future_is_on() else "off"
    found["RLIMIT_MEMLOCK"] = str(resource.getrlimit(resource.RLIMIT_MEMLOCK))
    found["children"] = _children()
    for name in ("user", "ipc", "mnt"):
        found[f"{name} namespace"] = _namespace(name)
    with contextlib.suppress(OSError), open("/proc/self/cgroup") as file:
        found["cgroup"] = " ".join(file.read().split())
    for name, option in (
        ("PR_GET_THP_DISABLE", syscalls.PR_GET_THP_DISABLE),
        ("PR_GET_MEMORY_MERGE", syscalls.PR_GET_MEMORY_MERGE),
    ):
        try:
            found[name] = str(syscalls.prctl(option, 0, 0, 0, 0))
        except OSError:
            found[name] = "not there"
    found |= {f"fd {number}": target for number, target in _descriptors().items()}
    return found


def since(before: dict[str, str]) -> list[str]:
    """One line for each difference from ``before`` (:func:`read`)."""
    wait_for_threads(before["Threads"])
    now = read()
    lines = []
    for name in {**before, **now}:
        was, is_ = before.get(name, "closed"), now.get(name, "closed")
        if was != is_:
            lines.append(f"{name} is {is_} (was {was})")
    return lines
