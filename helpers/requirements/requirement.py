# SPDX-License-Identifier: MIT
"""What a case needs, declared by ``@pytest.mark.needs(...)`` and judged before it runs.

A requirement is a facility's name (:data:`helpers.requirements.probing.PROBES`), a capability
(``CAP_IPC_LOCK``: effective now), or one with an amount:

``lock:N``     kernel rules allow to lock N pages here (capability, or soft RLIMIT_MEMLOCK)
``lock-all``   the same for the whole address space, as mlockall needs
``limit:N``    a soft RLIMIT_MEMLOCK of N pages can be set (the hard limit is not below it, or
               CAP_SYS_RESOURCE lets a case raise it)
``limit-infinite``  the soft limit can be set to unlimited (the hard one is)
``budget:N``   N pages are within --memory-budget
``space:N``    N pages of address space are free, and within RLIMIT_AS
``vmas:N``     N VMAs more are within vm.max_map_count
``allow-sysctl``  --allow-sysctl was given
``cgroup``, ``swap``, ``swap-area``  set up by :mod:`helpers.pytest_plugin.machine_setup`
``root-user``  the effective user id is 0, whatever the capabilities
"""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from helpers import syscalls
from helpers.processes import credentials, namespaces, rlimits
from helpers.requirements import remedies
from helpers.requirements.facility import Facility
from helpers.requirements.probing import PROBES
from helpers.syscalls import PAGE

RECLAIM = ("cgroup", "swap", "swap-area", "allow-sysctl")
SLACK = 1024
"""Bytes that a limit is advised above what a case locks: what is locked already."""
AMOUNTS = ("lock", "limit", "budget", "space", "vmas")
_OWN_VMAS = 1000
"""VMAs that an interpreter may have for itself."""
WITHOUT_AMOUNT = ("lock-all", "limit-infinite", "root-user")


class UnknownRequirement(ValueError):
    """A name that is no facility, capability or amount."""


@dataclass(frozen=True)
class Unmet:
    """A requirement that is not met: name, constant reason, what was seen, remedy."""

    name: str
    reason: str
    detail: str
    remedy: str
    broken: bool = False
    """Whether it is met could not be found out."""

    @property
    def constant(self) -> str:
        """The part of the reason that is the same on every machine."""
        return f"needs {self.name}: {self.reason}"

    def __str__(self) -> str:
        detail = f" ({self.detail})" if self.detail else ""
        remedy = f"; {self.remedy}" if self.remedy else ""
        return f"{self.constant}{detail}{remedy}"


def names() -> list[str]:
    """Every requirement name that ``--require`` and ``needs`` know, without amounts."""
    return sorted([*PROBES, *RECLAIM, *credentials.CAPABILITIES, *AMOUNTS, *WITHOUT_AMOUNT])


def name_of(requirement: str) -> str:
    """The name without its amount. Raises UnknownRequirement with the nearest names."""
    name, colon, amount = requirement.partition(":")
    if name in AMOUNTS:
        if not (colon and amount.isdigit() and int(amount) > 0):
            what = "VMAs" if name == "vmas" else "pages"
            raise UnknownRequirement(f"{name} wants an amount of {what}: {name}:8")
    elif colon or name not in names():
        raise UnknownRequirement(
            f"unknown requirement {requirement!r}; known: {', '.join(names())}"
        )
    return name


def parse_require_option(option: str | None) -> frozenset[str]:
    """The names in a ``--require`` option (``all`` stands for every name; None: not given).

    Raises UnknownRequirement.
    """
    found: set[str] = set()
    for name in (part.strip() for part in option.split(",")) if option is not None else ():
        if not name:
            raise UnknownRequirement(f"{option!r} has an empty name (an unset variable?)")
        if name == "all":
            found.update(names())
        elif name in AMOUNTS:
            found.add(name)
        else:
            found.add(name_of(name))
    return frozenset(found)


def _capability(name: str) -> Unmet | None:
    if credentials.has_capability(name):
        return None
    if not namespaces.in_initial_user_namespace():
        return Unmet(name, "capability not effective", "it counts only in a user namespace", (
            "run as root with it"))  # fmt: skip
    return Unmet(name, "capability not effective", *_standing(name))


def _standing(name: str) -> tuple[str, str]:
    """Where a capability that is not effective stands, and how to make it effective."""
    short = name.removeprefix("CAP_").lower()
    where = credentials.short_of(name)
    if where == "permitted":
        return "it is permitted", f"raise it: setcap cap_{short}+ep on the program, or capset(2)"
    if where == "bounding" and os.geteuid():
        return "it is in the bounding set only", (
            f"run as root, or give it as a file capability (setcap cap_{short}+ep) or an ambient "
            f"one (setpriv --inh-caps +{short} --ambient-caps +{short})"
        )
    if where == "bounding":
        return "it is in the bounding set only", "start the run anew as root"
    return "it is not in the bounding set", "run as root without dropping it"


def _kilobytes(size: int) -> str:
    return "unlimited" if size == rlimits.RLIM_INFINITY else f"{size // 1024} kB"


def _lock(name: str, size: int) -> Unmet | None:
    if rlimits.may_lock(size):
        return None
    soft = _kilobytes(rlimits.memlock_limit()[0])
    where, how = _lock_right()
    return Unmet(
        name, "may not lock that much",
        f"RLIMIT_MEMLOCK is {soft}, CAP_IPC_LOCK not effective: {where}",
        f"ulimit -l {size // 1024 + 1} or more, or CAP_IPC_LOCK: {how}",
    )  # fmt: skip


def _lock_right() -> tuple[str, str]:
    if not namespaces.in_initial_user_namespace():
        return "it counts only in a user namespace", "in the initial user namespace"
    return _standing("CAP_IPC_LOCK")


def _limit(name: str, size: int) -> Unmet | None:
    hard = rlimits.memlock_limit()[1]
    if hard == resource.RLIM_INFINITY or hard >= size != rlimits.RLIM_INFINITY:
        return None
    if credentials.has_capability("CAP_SYS_RESOURCE"):  # a case may raise it, in its own process
        return None
    much = "unlimited" if size == rlimits.RLIM_INFINITY else f"{size // 1024} or more"
    return Unmet(
        name, "the hard RLIMIT_MEMLOCK is too low for the case", _kilobytes(hard),
        f"ulimit -H -l {much}",
    )  # fmt: skip


def _space(name: str, size: int) -> Unmet | None:
    how = syscalls.MAP_PRIVATE | syscalls.MAP_ANONYMOUS | syscalls.MAP_NORESERVE
    try:
        if size > syscalls.SIZE_MAX:
            raise OSError(errno.ENOMEM, f"{size} bytes are more than a word counts")
        syscalls.munmap(syscalls.mmap(0, size, syscalls.PROT_NONE, how), size)
    except OSError as error:
        return Unmet(
            name, "no room for a mapping of that size", str(error),
            "a larger user address space; ulimit -v unlimited",
        )  # fmt: skip
    return None


def _vmas(name: str, number: int) -> Unmet | None:
    path = Path("/proc/sys/vm/max_map_count")
    most = int(path.read_text()) if path.exists() else 0
    if number + _OWN_VMAS <= most:
        return None
    return Unmet(
        name, "vm.max_map_count is too low for the case", str(most),
        f"sysctl vm.max_map_count={number + _OWN_VMAS} or more",
    )  # fmt: skip


def unmet(requirement: str, survey: Mapping[str, Facility], budget: int) -> Unmet | None:
    """Why the requirement is not met here, or None. ``budget`` is in bytes.

    Inside a container the remedy is the container's option, where it has one.
    """
    name, _, amount = requirement.partition(":")
    size = int(amount or 0) * PAGE
    found = _missing(requirement, name, size, survey, budget)
    return found and replace(found, remedy=remedies.remedy(found.name, found.remedy, size + SLACK))


def _missing(
    requirement: str, name: str, size: int, survey: Mapping[str, Facility], budget: int
) -> Unmet | None:
    if name in credentials.CAPABILITIES:
        return _capability(name)
    if name == "lock":
        return _facility("lock-calls", survey) or _lock(requirement, size)
    if name == "lock-all":
        # An address space is never larger than this in practice; unlimited or capable.
        if (
            credentials.has_capability("CAP_IPC_LOCK")
            or rlimits.memlock_limit()[0] == rlimits.RLIM_INFINITY
        ):
            return _facility("lock-calls", survey)
        where, how = _lock_right()
        return Unmet(
            name, "may not lock the whole address space", f"CAP_IPC_LOCK not effective: {where}",
            f"ulimit -l unlimited, or CAP_IPC_LOCK: {how}",
        )  # fmt: skip
    if name == "limit":
        return _facility("lock-calls", survey) or _limit(requirement, size)
    if name == "limit-infinite":
        return _facility("lock-calls", survey) or _limit(requirement, rlimits.RLIM_INFINITY)
    if name == "space":
        return _space(requirement, size)
    if name == "vmas":
        return _vmas(requirement, int(requirement.partition(":")[2]))
    if name == "root-user":
        if os.geteuid() == 0:
            return None
        return Unmet(name, "not user 0", f"uid {os.geteuid()}", "run as root")
    if name == "budget":
        if size <= budget:
            return None
        return Unmet(
            requirement, "more than the memory budget", f"{size // 1024} kB of {budget // 1024} kB",
            f"--memory-budget {size // (1 << 20) + 1}M",
        )  # fmt: skip
    return _facility(name, survey)


def _facility(name: str, survey: Mapping[str, Facility]) -> Unmet | None:
    found = survey[name]
    if found.available:
        return None
    return Unmet(name, found.reason, found.detail, found.remedy, found.broken)


def first_unmet(
    requirements: Iterable[str], survey: Mapping[str, Facility], budget: int
) -> Unmet | None:
    """The first requirement that is not met, or None."""
    for requirement in requirements:
        if found := unmet(requirement, survey, budget):
            return found
    return None
