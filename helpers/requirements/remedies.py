# SPDX-License-Identifier: MIT
"""Whether this run is inside a container, and which of its options supplies what is missing.

Each option below was tried (``tests/harness/test_containers.py``, ``docs/containers.md``).
"""

from __future__ import annotations

import os
from pathlib import Path

from helpers.processes import credentials, namespaces

_PID_INIT_INO = 0xEFFFFFFC  # include/linux/proc_ns.h
_DISK = "-v DIR:/data with DIR on ext4, xfs or btrfs, and --file-dir=/data"
_SECCOMP = "--security-opt seccomp=unconfined"

# Requirement → options of `podman run` and `docker run`. {bytes}: a limit that is enough;
# {native}: what the kernel or the machine must offer besides; {user}: for others than root;
# {added}: the same where what is added becomes effective for root alone (podman makes it ambient).
_OCI = {
    "lock": "{added}--cap-add IPC_LOCK or --ulimit memlock={bytes}",
    "lock-all": "{added}--cap-add IPC_LOCK or --ulimit memlock=-1",
    "lock-calls": _SECCOMP,
    "limit": "--ulimit memlock={bytes}",
    "limit-infinite": "--ulimit memlock=-1",
    "root-user": "--user 0",
    "other-user": "{user}--cap-add SETUID --cap-add SETGID",
    "user-namespace": f"{_SECCOMP} or --privileged",
    "pfn": "{user}--cap-add SYS_ADMIN",
    "kpageflags": "{user}--cap-add SYS_ADMIN",
    "kpagecount": "{user}--cap-add SYS_ADMIN",
    "process-madvise": f"{_SECCOMP} ({{native}})",
    "process-mrelease": f"{_SECCOMP} ({{native}})",
    "mseal": f"{_SECCOMP} ({{native}})",
    "io-uring": f"{_SECCOMP} ({{native}})",
    "secretmem": f"{_SECCOMP} ({{native}})",
    "disk-file": _DISK,
    "cgroup": "{user}--privileged",
    "swap": "{user}--privileged -v DIR:/var/tmp with DIR on ext4 or xfs",
    "swap-area": "{user}--privileged -v DIR:/var/tmp with DIR on ext4 or xfs",
    "hugetlb": "on the host: {native}",
}
_NSPAWN = {
    "lock": "--capability=CAP_IPC_LOCK or --rlimit=MEMLOCK={bytes}",
    "lock-all": "--capability=CAP_IPC_LOCK",
    "lock-calls": "--system-call-filter=@memlock",
    "limit": "--rlimit=MEMLOCK={bytes}",
    "limit-infinite": "--rlimit=MEMLOCK=infinity",
    "disk-file": "--bind=DIR:/data with DIR on ext4, xfs or btrfs, and --file-dir=/data",
    "hugetlb": "on the host: {native}",
}


_RIGHTS = {
    "lock": "CAP_IPC_LOCK", "lock-all": "CAP_IPC_LOCK", "pfn": "CAP_SYS_ADMIN",
    "kpageflags": "CAP_SYS_ADMIN", "kpagecount": "CAP_SYS_ADMIN",
}  # fmt: skip
"""Requirement → the capability that it is about."""


def _bounding_only(name: str) -> bool:
    return (
        namespaces.in_initial_user_namespace()
        and not credentials.has_capability(name)
        and credentials.short_of(name) == "bounding"
    )


def container_engine() -> str:
    """``podman``, ``docker``, ``systemd-nspawn`` …: what this process is contained by, or ``""``.

    A machine whose image was made by a container engine keeps its marks, so they count only
    outside the initial PID namespace.
    """
    try:
        if os.stat("/proc/self/ns/pid").st_ino == _PID_INIT_INO:
            return ""
    except OSError:
        return ""
    if named := os.environ.get("container"):  # noqa: SIM112 (systemd.io/CONTAINER_INTERFACE)
        return named
    try:
        for variable in Path("/proc/1/environ").read_bytes().split(b"\0"):
            if variable.startswith(b"container="):
                return variable.removeprefix(b"container=").decode(errors="replace")
    except OSError:
        pass  # process 1 is another user's
    if Path("/run/.containerenv").exists():
        return "podman"
    return "docker" if Path("/.dockerenv").exists() else ""


def remedy(requirement: str, native: str, size: int = 0, inside: str | None = None) -> str:
    """What to do about a missing requirement: ``native``, or the option of this container.

    ``size`` is the amount in bytes that the requirement is about; ``inside`` replaces
    :func:`engine`.
    """
    inside = container_engine() if inside is None else inside
    options = _NSPAWN if inside == "systemd-nspawn" else _OCI
    if not inside or inside not in {"podman", "docker", "oci", "systemd-nspawn"}:
        return native
    name = requirement.partition(":")[0]
    user = "--user 0 " if os.geteuid() else ""
    right = name if name in credentials.CAPABILITIES else _RIGHTS.get(name, "")
    if user and right and options is _OCI and _bounding_only(right):
        short = right.removeprefix("CAP_").lower()
        text = (
            f"--user 0 ({right} is in the bounding set only: for another user it must be ambient, "
            f"or a file capability of the program, setcap cap_{short}+ep)"
        )
        if name in {"lock", "lock-all"}:
            text += f" or --ulimit memlock={size if name == 'lock' else -1}"
    elif name in credentials.CAPABILITIES:
        short = name.removeprefix("CAP_")
        text = f"--capability={name}" if options is _NSPAWN else f"{user}--cap-add {short}"
    elif name in options:
        added = user if inside == "docker" else ""
        text = options[name].format(bytes=size, native=native, user=user, added=added)
    else:
        return native
    rootless = "" if namespaces.in_initial_user_namespace() else ", in a container that root starts"
    return f"{inside}: {text}{rootless}"
