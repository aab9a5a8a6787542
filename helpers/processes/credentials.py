# SPDX-License-Identifier: MIT
"""Capabilities, resource limits, ids and user namespaces: scoped, restored to what was saved.

Only what can be undone in this process is offered as a context manager: lowering an
*effective* capability or a *soft* limit. The rest (ids, bounding sets, hard limits, user
namespaces) is one-way and belongs in a child (:mod:`helpers.processes.child`).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from helpers import syscalls
from helpers.processes.namespaces import in_initial_user_namespace

# include/uapi/linux/capability.h, in order of their numbers: all that a kernel from 5.9 on has.
_NAMES = (
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID",
    "SETPCAP", "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW",
    "IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT",
    "SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD",
    "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG",
    "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF", "CHECKPOINT_RESTORE",
)  # fmt: skip
CAPABILITIES = {f"CAP_{name}": number for number, name in enumerate(_NAMES)}
NOBODY = 65534
_PR_CAP_AMBIENT_RAISE = 2
_PR_SET_KEEPCAPS = 8
CAPABILITY_VERSION_3 = 0x20080522


class _Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _Data(ctypes.Structure):
    _fields_ = [
        ("effective", ctypes.c_uint32 * 1),
        ("permitted", ctypes.c_uint32 * 1),
        ("inheritable", ctypes.c_uint32 * 1),
    ]


@dataclass(frozen=True)
class CapabilitySets:
    """The three sets of capget(2), as bit masks."""

    effective: int
    permitted: int
    inheritable: int


def capabilities(pid: int = 0) -> CapabilitySets:
    """Capability sets of this thread, or of process ``pid`` (capget(2))."""
    data = (_Data * 2)()
    syscalls.syscall("capget", _Header(CAPABILITY_VERSION_3, pid), data)
    low, high = data
    return CapabilitySets(
        low.effective[0] | high.effective[0] << 32,
        low.permitted[0] | high.permitted[0] << 32,
        low.inheritable[0] | high.inheritable[0] << 32,
    )


def set_capabilities(sets: CapabilitySets) -> None:
    """capset(2) for this thread. OSError if it would raise what is not permitted."""
    data = (_Data * 2)()
    for index in range(2):
        for name in ("effective", "permitted", "inheritable"):
            word = getattr(sets, name) >> (32 * index) & 0xFFFFFFFF
            getattr(data[index], name)[0] = word
    syscalls.syscall("capset", _Header(CAPABILITY_VERSION_3, 0), data)


def _bit(name: str) -> int:
    if name not in CAPABILITIES:
        raise ValueError(f"unknown capability {name}; add it to CAPABILITIES")
    return 1 << CAPABILITIES[name]


def has_capability(name: str) -> bool:
    """The capability is effective, and counts in the initial user namespace.

    Root of a child user namespace shows full sets; the mlock family asks the initial one.
    """
    return bool(capabilities().effective & _bit(name)) and in_initial_user_namespace()


def short_of(name: str) -> str:
    """Of a capability that is not effective, the widest set it is in.

    ``"permitted"``, ``"bounding"`` (as for a container's user other than root), or ``""``.
    """
    if capabilities().permitted & _bit(name):
        return "permitted"
    try:
        return (
            "bounding"
            if syscalls.prctl(syscalls.PR_CAPBSET_READ, CAPABILITIES[name], 0, 0, 0)
            else ""
        )
    except OSError:  # EINVAL: this kernel does not know it
        return ""


def raise_effective(name: str) -> None:
    """Make a permitted capability effective. OSError EPERM where it is not permitted."""
    now = capabilities()
    set_capabilities(CapabilitySets(now.effective | _bit(name), now.permitted, now.inheritable))


def lower_effective(*names: str) -> None:
    """Take capabilities out of the effective set (no-op where they are not in it)."""
    now, mask = capabilities(), 0
    for name in names:
        mask |= _bit(name)
    if now.effective & mask:
        set_capabilities(CapabilitySets(now.effective & ~mask, now.permitted, now.inheritable))


def drop(*names: str) -> None:
    """Give capabilities up for good, in this process and in whatever it executes.

    Out of the bounding, inheritable and ambient sets, and out of those that are held. Raises
    OSError without CAP_SETPCAP.
    """
    for name in names:
        syscalls.prctl(syscalls.PR_CAPBSET_DROP, CAPABILITIES[name], 0, 0, 0)
    now, mask = capabilities(), 0
    for name in names:
        mask |= _bit(name)
    left = [held & ~mask for held in (now.effective, now.permitted, now.inheritable)]
    set_capabilities(CapabilitySets(*left))


def make_ambient(name: str) -> None:
    """Let a permitted capability outlive the execve(2) of a user other than root.

    Such a user keeps only ambient capabilities (capabilities(7)).
    """
    now = capabilities()
    held = CapabilitySets(now.effective, now.permitted, now.inheritable | _bit(name))
    set_capabilities(held)
    syscalls.prctl(syscalls.PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, CAPABILITIES[name], 0, 0)


@contextmanager
def without_capabilities(*names: str) -> Iterator[None]:
    """The block runs with these capabilities not effective; afterwards as before."""
    saved = capabilities()
    lower_effective(*names)
    try:
        yield
    finally:
        set_capabilities(saved)


def set_user(uid: int = NOBODY, gid: int = NOBODY, *, keep: str = "") -> None:
    """Take another user's ids for good; all capabilities but ``keep`` go when root leaves uid 0.

    Raises OSError without CAP_SETUID and CAP_SETGID.
    """
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    if keep:
        syscalls.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0)
    os.setresuid(uid, uid, uid)
    if keep:
        mask = _bit(keep)
        set_capabilities(CapabilitySets(mask, mask, 0))
