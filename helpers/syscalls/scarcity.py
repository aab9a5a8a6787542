# SPDX-License-Identifier: MIT
"""A resource that ran out while a case was set up, and by which limit it can be had.

What the kernel answers to a call on memory is what we test, whatever the error number: only
where a limit that the run was started with proves to refuse the call is that no finding.
"""

from __future__ import annotations

import errno
import os
import resource
import signal
from pathlib import Path

_PROT_WRITE, _MAP_PRIVATE = 2, 2
_GROWING = {"mmap": 1, "mmap64": 1, "mremap": 2, "mprotect": 1}
"""Calls that may meet RLIMIT_AS or RLIMIT_DATA, and which argument is the length."""

ADVICE = {
    errno.EMFILE: (resource.RLIMIT_NOFILE, "more open files: ulimit -n 1024"),
    errno.ENFILE: (None, "more open files on the machine: sysctl fs.file-max"),
    errno.EFBIG: (resource.RLIMIT_FSIZE, "larger files: ulimit -f unlimited"),
    errno.ENOSPC: (None, "room: free some, or name another folder by --file-dir"),
    errno.EDQUOT: (None, "a larger quota, or another folder by --file-dir"),
}
"""What no case asserts on: descriptors, room for files → limit and how to have more of it."""

SIGNALS: dict[int, str] = {
    signal.SIGXFSZ: "larger files: ulimit -f unlimited",
    signal.SIGXCPU: "more CPU time: ulimit -t unlimited",
}
"""Signals that the kernel sends for a limit alone."""

_COMMANDS = {resource.RLIMIT_AS: "ulimit -v", resource.RLIMIT_DATA: "ulimit -d"}
_GIVEN = {limit: resource.getrlimit(limit)[0] for limit in _COMMANDS}


class SetupError(OSError):
    """The case could not be set up: the text names what ran out and how to supply it."""


def _advised(code: int) -> str:
    limit, advice = ADVICE[code]
    if limit is None:
        return f"wants {advice}"
    soft = resource.getrlimit(limit)[0]
    return f"the limit is {soft}; wants {advice}"


def reason(error: BaseException) -> str:
    """Why the error says that a resource ran out, or ``""`` for any other error.

    An OSError counts if Python's own call raised it (open, pipe, write …), whose text is the
    C library's, and not one of :mod:`helpers.syscalls.call`.
    """
    if isinstance(error, SetupError):
        return str(error.strerror)
    if isinstance(error, OSError) and error.errno in ADVICE:
        if error.strerror == os.strerror(error.errno):
            return f"{error.strerror}: {_advised(error.errno)}"
    elif isinstance(error, MemoryError):
        # How much it asked for is not known, so that the limit is there must do.
        for limit, command in _COMMANDS.items():
            if (size := _GIVEN[limit]) != resource.RLIM_INFINITY:
                return f"the interpreter has no memory: {command} is {size >> 10} kB; wants more"
    elif isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        return f"no new thread; {_PROCESSES}"
    elif error.__cause__ is not None and not isinstance(error, AssertionError):
        return reason(error.__cause__)
    return ""


_PROCESSES = "wants more processes (ulimit -u, pids.max) or address space (ulimit -v)"


def of_call(name: str, args: tuple[object, ...], code: int, pid: int = 0) -> str:
    """The same of a call that failed with error number ``code`` in process ``pid`` (0: this)."""
    if name in _GROWING:
        if code != errno.ENOMEM:
            return ""
        numbers = [a for a in args if isinstance(a, int)]
        length = numbers[_GROWING[name]]
        if name == "mremap":
            length -= numbers[1]
        elif name == "mprotect":
            return _refused(length, bool(numbers[2] & _PROT_WRITE), pid, mapped=True)
        data = name == "mremap" or bool(numbers[2] & _PROT_WRITE and numbers[3] & _MAP_PRIVATE)
        return _refused(length, data, pid)
    if name == "clone" and code == errno.EAGAIN:
        return _PROCESSES
    # The mlock family, madvise … have no such answer: one that gives it has failed.
    return _advised(code) if code in ADVICE and name in _OPENING else ""


_OPENING = {
    "bpf", "fsopen", "io_uring_setup", "memfd_create", "memfd_secret", "mount", "perf_event_open",
    "pidfd_open", "shmget", "timer_create", "userfaultfd",
}  # fmt: skip
"""System calls that make a descriptor, or a thing of which there may be only so many."""


def _refused(length: int, data: bool, pid: int = 0, mapped: bool = False) -> str:
    """Which limit given to the run has no room for ``length`` bytes (may_expand_vm(), mm/vma.c).

    ``data``: they are private and writable; ``mapped``: they are there already.
    """
    kinds = [] if mapped else [(resource.RLIMIT_AS, "VmSize")]
    kinds += [(resource.RLIMIT_DATA, "VmData")] if data else []
    for limit, field in kinds:
        size, command = _GIVEN[limit], _COMMANDS[limit]
        if size == resource.RLIM_INFINITY:
            continue
        try:
            if resource.prlimit(pid, limit)[0] != size:
                continue  # the case set another
            text = Path(f"/proc/{pid or 'self'}/status").read_text()
        except OSError:
            continue
        used = int(text.partition(f"\n{field}:")[2].split()[0]) << 10
        if used + length > size:
            return (
                f"{command} is {size >> 10} kB and {field} {used >> 10} kB, wants {command} "
                "unlimited"
            )
    return ""


def fork() -> int:
    """fork(2) for a set-up. Raises SetupError."""
    try:
        return os.fork()
    except OSError as error:
        raise SetupError(error.errno, f"fork: {error.strerror}; {_PROCESSES}") from None


def withheld(error: BaseException | None) -> BaseException | None:
    """What ran out of descriptors, processes or threads on the way to this error, or None.

    The machine lacks nothing then: an answer from it was not to be had.
    """
    while error is not None:
        if getattr(error, "errno", errno.EAGAIN) in _WITHHELD and reason(error):
            return error
        error = error.__cause__ or error.__context__
    return None


_WITHHELD = {errno.EMFILE, errno.ENFILE, errno.EAGAIN}
_SPARE = 16


def check_descriptors(number: int) -> None:
    """So many more descriptors are to be had: tried. Raises SetupError."""
    held: list[int] = []
    try:
        for _ in range(number):
            held.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        raise SetupError(error.errno, reason(error) or str(error)) from None
    finally:
        for fd in held:
            os.close(fd)


def check_spare() -> None:
    """Some descriptors and a process are to be had: tried. Raises SetupError."""
    check_descriptors(_SPARE)
    if (pid := fork()) == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def raise_soft_limits() -> None:
    """Raise the soft limits of open files and of file sizes to the hard ones.

    No case asserts on either; what a soft limit withholds is had by default.
    """
    for limit, enough in ((resource.RLIMIT_NOFILE, 4096), (resource.RLIMIT_FSIZE, 1 << 40)):
        soft, hard = resource.getrlimit(limit)
        wanted = enough if hard == resource.RLIM_INFINITY else min(hard, enough)
        if resource.RLIM_INFINITY != soft < wanted:
            resource.setrlimit(limit, (wanted, hard))
