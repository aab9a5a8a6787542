# SPDX-License-Identifier: MIT
"""Files and calls that describe a process's memory."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

from helpers import memory, syscalls
from helpers.observe import numa_maps, pagemap, pagemap_scan, procmap_query
from helpers.requirements.facility import Unavailable


def _pagemap_scan() -> None:
    with memory.mapping("private", 1) as page:
        try:
            pagemap_scan.categories(page, pagemap_scan.PRESENT)
        except OSError as error:
            if error.errno not in {errno.ENOTTY, errno.EINVAL}:
                raise
            raise Unavailable("no PAGEMAP_SCAN", str(error), "a kernel from 6.7 on") from None


def _procmap_query() -> None:
    with memory.mapping("private", 1) as page:
        try:
            procmap_query.vmas(page)
        except OSError as error:
            if error.errno != errno.ENOTTY:
                raise
            raise Unavailable("no PROCMAP_QUERY", str(error), "a kernel from 6.11 on") from None


def _numa_maps() -> None:
    with memory.mapping("private", 1) as page:
        try:
            numa_maps.lines(page)
        except FileNotFoundError:
            raise Unavailable("no /proc/PID/numa_maps", "", "CONFIG_NUMA=y") from None


def _map_files() -> None:
    with memory.mapping("memfd-shared", 1) as page:
        try:
            os.stat(f"/proc/self/map_files/{page.addr:x}-{page.end:x}")
        except OSError as error:
            raise Unavailable(
                "links of /proc/self/map_files cannot be followed", str(error),
                "root: CAP_SYS_ADMIN; CONFIG_CHECKPOINT_RESTORE=y",
            ) from None  # fmt: skip


def _soft_dirty() -> None:
    with memory.mapping("private", 2) as pages:
        pages.touch()
        try:
            Path("/proc/self/clear_refs").write_text("4")
        except OSError as error:
            raise Unavailable("clear_refs takes no 4", str(error.strerror)) from None
        pages.sub(0, 1).touch()
        words = pagemap.entries(pages.addr, 2)
    if [bool(w & pagemap.SOFT_DIRTY) for w in words] != [True, False]:
        raise Unavailable("pages have no soft-dirty mark", "", "CONFIG_MEM_SOFT_DIRTY=y")


def _ipc_namespace() -> None:
    try:
        syscalls.unshare(syscalls.CLONE_NEWIPC)
    except OSError as error:
        raise Unavailable(
            "no IPC namespace can be made", str(error), "root: CAP_SYS_ADMIN; CONFIG_IPC_NS=y"
        ) from None


PROBES: dict[str, Callable[[], None]] = {
    "ipc-namespace": _ipc_namespace,
    "map-files": _map_files,
    "numa-maps": _numa_maps,
    "pagemap-scan": _pagemap_scan,
    "procmap-query": _procmap_query,
    "soft-dirty": _soft_dirty,
}
"""Facility name → its probe, which returns, or raises :class:`Unavailable`."""
