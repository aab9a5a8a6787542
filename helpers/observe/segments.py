# SPDX-License-Identifier: MIT
"""What shmctl(2) says of SysV segments: one by its id or its index, and all of a namespace."""

from __future__ import annotations

import ctypes
import platform
import struct

from helpers.syscalls import sysv

_IPC_STAT, _SHM_STAT, _SHM_INFO, _SHM_STAT_ANY = 2, 13, 14, 15
BY = {"IPC_STAT": _IPC_STAT, "SHM_STAT": _SHM_STAT, "SHM_STAT_ANY": _SHM_STAT_ANY}
"""Command by its name: the first takes an id, the others an index."""
_LONG = struct.calcsize("@l")
# struct shmid64_ds behind struct ipc64_perm (include/uapi/asm-generic, arch/powerpc).
if _LONG == 4:
    _LAYOUT = "=i5I12x L24x 2i L"
elif platform.machine().lower().startswith("ppc"):
    _LAYOUT = "=i5I24x 24x Q 2i Q"
else:
    _LAYOUT = "=i5I24x Q24x 2i Q"
_FIELDS = ("key", "uid", "gid", "cuid", "cgid", "perms", "size", "cpid", "lpid", "nattch")


def stat(number: int, command: str = "IPC_STAT") -> dict[str, int]:
    """The fields of a segment, by the titles of /proc/sysvipc/shm. OSError as shmctl(2).

    ``number`` is an id for IPC_STAT, for the others the index of :func:`index`.
    """
    buffer = ctypes.create_string_buffer(512)
    told = sysv.shmctl(number, BY[command], ctypes.addressof(buffer))
    found = dict(zip(_FIELDS, struct.unpack_from(_LAYOUT, buffer)))
    return {"shmid": number if command == "IPC_STAT" else told, **found}


def index(number: int) -> int:
    """The index of a segment's id, its place in the kernel's table: the low 15 bits, or 24 under
    ``ipcmni_extend``. LookupError if neither is."""
    for bits in (15, 24):
        place = number & (1 << bits) - 1
        try:
            if stat(place, "SHM_STAT_ANY")["shmid"] == number:
                return place
        except OSError:
            continue
    raise LookupError(f"no index has segment {number}")


def totals() -> dict[str, int]:
    """SHM_INFO of this IPC namespace: segments, and pages of them all; ``last`` is the highest
    index in use."""
    buffer = ctypes.create_string_buffer(128)
    last = sysv.shmctl(0, _SHM_INFO, ctypes.addressof(buffer))
    used, total, rss, swap = struct.unpack_from("@i3L", buffer)
    return {"segments": used, "pages": total, "rss": rss, "swap": swap, "last": last}
