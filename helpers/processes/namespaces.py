# SPDX-License-Identifier: MIT
"""User namespaces."""

from __future__ import annotations

import os
from pathlib import Path

from helpers import syscalls

_INIT_USER_NS = 0xEFFFFFFD  # PROC_USER_INIT_INO, include/linux/proc_ns.h


def in_initial_user_namespace() -> bool:
    """This process lives in the initial user namespace (its inode number is fixed)."""
    try:
        return os.stat("/proc/self/ns/user").st_ino == _INIT_USER_NS
    except FileNotFoundError:  # CONFIG_USER_NS=n: there is only one
        return True


def enter_user_namespace() -> None:
    """Move into a new user namespace as its root, for good (user_namespaces(7)).

    Raises OSError where the machine does not allow it.
    """
    uid, gid = os.geteuid(), os.getegid()
    syscalls.unshare(syscalls.CLONE_NEWUSER)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
    Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
