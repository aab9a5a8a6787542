# SPDX-License-Identifier: MIT
"""Takes capabilities away, becomes another user, and runs the command."""

import ctypes
import os
import pwd
import sys

PR_CAPBSET_DROP = 24

user, drop = sys.argv[1], [int(number) for number in sys.argv[2].split(",") if number]
libc = ctypes.CDLL(None, use_errno=True)
for number in drop:
    if libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0):
        sys.exit(f"vm: cannot drop capability {number}: {os.strerror(ctypes.get_errno())}")
if user:
    entry = pwd.getpwnam(user)
    os.setgroups([])
    os.setresgid(entry.pw_gid, entry.pw_gid, entry.pw_gid)
    os.setresuid(entry.pw_uid, entry.pw_uid, entry.pw_uid)
    os.environ.update(HOME="/tmp", USER=user, LOGNAME=user)
os.execvp(sys.argv[3], sys.argv[3:])
