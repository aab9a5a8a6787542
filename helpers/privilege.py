"""Capabilities, resource limits, ids and user namespaces: scoped, restored to what was saved.

Only what can be undone in this process is offered as a context manager: lowering an
*effective* capability or a *soft* limit. The rest (ids, bounding sets, hard limits, user
namespaces) is one-way and belongs in a child (:mod:`helpers.process`).
"""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from helpers import libc
from helpers.observe import status

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
INFINITE = resource.RLIM_INFINITY
CAPABILITY_VERSION_3 = 0x20080522
_INIT_USER_NS = 0xEFFFFFFD  # PROC_USER_INIT_INO, include/linux/proc_ns.h


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
    libc.syscall("capget", _Header(CAPABILITY_VERSION_3, pid), data)
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
    libc.syscall("capset", _Header(CAPABILITY_VERSION_3, 0), data)


def _bit(name: str) -> int:
    if name not in CAPABILITIES:
        raise ValueError(f"unknown capability {name}; add it to CAPABILITIES")
    return 1 << CAPABILITIES[name]


def has(name: str) -> bool:
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
        return "bounding" if libc.prctl(libc.PR_CAPBSET_READ, CAPABILITIES[name], 0, 0, 0) else ""
    except OSError:  # EINVAL: this kernel does not know it
        return ""


def in_initial_user_namespace() -> bool:
    """This process lives in the initial user namespace (its inode number is fixed)."""
    try:
        return os.stat("/proc/self/ns/user").st_ino == _INIT_USER_NS
    except FileNotFoundError:  # CONFIG_USER_NS=n: there is only one
        return True


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
        libc.prctl(libc.PR_CAPBSET_DROP, CAPABILITIES[name], 0, 0, 0)
    now, mask = capabilities(), 0
    for name in names:
        mask |= _bit(name)
    left = [held & ~mask for held in (now.effective, now.permitted, now.inheritable)]
    set_capabilities(CapabilitySets(*left))


def pass_on(name: str) -> None:
    """Let a permitted capability outlive the execve(2) of a user other than root.

    Such a user keeps only ambient capabilities (capabilities(7)).
    """
    now = capabilities()
    held = CapabilitySets(now.effective, now.permitted, now.inheritable | _bit(name))
    set_capabilities(held)
    libc.prctl(libc.PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, CAPABILITIES[name], 0, 0)


@contextmanager
def without(*names: str) -> Iterator[None]:
    """The block runs with these capabilities not effective; afterwards as before."""
    saved = capabilities()
    lower_effective(*names)
    try:
        yield
    finally:
        set_capabilities(saved)


def memlock_limit() -> tuple[int, int]:
    """RLIMIT_MEMLOCK (soft, hard) in bytes; INFINITE is -1."""
    return resource.getrlimit(resource.RLIMIT_MEMLOCK)


def hard_for(soft: int, hard: int) -> int:
    """The hard limit to set with ``soft``: the same as now, unless that would be below."""
    return soft if hard != INFINITE and (soft == INFINITE or soft > hard) else hard


def set_memlock(soft: int) -> None:
    """Set the soft RLIMIT_MEMLOCK in bytes, for good; the hard one only if it would be below.

    Raises ValueError above the hard limit without CAP_SYS_RESOURCE.
    """
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (soft, hard_for(soft, memlock_limit()[1])))


@contextmanager
def memlock(soft: int) -> Iterator[None]:
    """The block runs under a soft RLIMIT_MEMLOCK of ``soft`` bytes; afterwards as before."""
    saved = memlock_limit()
    set_memlock(soft)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, saved)


@contextmanager
def limited(soft: int) -> Iterator[None]:
    """An ordinary locker: no effective CAP_IPC_LOCK, soft limit of ``soft`` bytes."""
    with without("CAP_IPC_LOCK"), memlock(soft):
        yield


def may_lock(size: int) -> bool:
    """Kernel rules let this process lock ``size`` bytes beyond what it has locked now.

    From the capability set and the limit alone: asking mlock itself would hide its faults.
    """
    soft = memlock_limit()[0]
    return has("CAP_IPC_LOCK") or soft == INFINITE or status.vmlck_kb() * 1024 + size <= soft


def become(uid: int = NOBODY, gid: int = NOBODY) -> None:
    """Take another user's ids for good; all capabilities go when root leaves uid 0.

    Raises OSError without CAP_SETUID and CAP_SETGID.
    """
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def enter_user_namespace() -> None:
    """Move into a new user namespace as its root, for good (user_namespaces(7)).

    Raises OSError where the machine does not allow it.
    """
    uid, gid = os.geteuid(), os.getegid()
    libc.unshare(libc.CLONE_NEWUSER)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
    Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
