# SPDX-License-Identifier: MIT
"""Kinds of memory, and what moves, shares or watches it (tests/memory_types)."""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

from helpers import memory, processes, syscalls
from helpers.machine import memory_blocks, mounts, undo
from helpers.memory import huge_pages
from helpers.observe import huge_mappings, vmstat
from helpers.processes import credentials, fuse_server
from helpers.requirements.facility import ROOT, Unavailable, unavailable_call
from helpers.syscalls import (
    PAGE,
    bpf,
    fail_nth,
    io_uring,
    numa,
    perf_event,
    process_vm,
    ptrace,
    userfaultfd,
    xdp,
)


def _thp() -> None:
    huge_pages.enable_thp()
    try:
        with huge_pages.thp_aligned_mapping() as region:
            syscalls.store(region.addr, b"x")
            if huge_mappings.is_huge(region):
                return
    except OSError as error:
        raise Unavailable(
            "no transparent huge pages", str(error), "a kernel with CONFIG_TRANSPARENT_HUGEPAGE=y"
        ) from None
    raise Unavailable(
        "a touch of advised memory gives no huge page", "",
        "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled; free memory",
    )  # fmt: skip


def _large_folios() -> None:
    sizes = huge_pages.mthp_sizes()
    if huge_pages.default_mthp_pages() not in sizes:
        raise Unavailable(
            "no large folios of anonymous memory", "",
            "a kernel from 6.8 on with CONFIG_TRANSPARENT_HUGEPAGE=y",
        )  # fmt: skip
    _writable(str(sizes[huge_pages.default_mthp_pages()]))


def _collapse() -> None:
    huge_pages.enable_thp()
    try:
        with huge_pages.thp_aligned_mapping(advise=False) as region:
            region.touch()
            syscalls.madvise(region.addr, region.size, syscalls.MADV_COLLAPSE)
    except OSError as error:
        raise Unavailable(
            "no MADV_COLLAPSE", str(error),
            "a kernel from 6.1 on with CONFIG_TRANSPARENT_HUGEPAGE=y; free memory",
        ) from None  # fmt: skip


def _shmem_collapse() -> None:
    huge_pages.enable_thp()
    fd = huge_pages.huge_memfd()
    try:
        with huge_pages.thp_aligned_mapping(fd=fd, advise=False) as region:
            region.touch()
            syscalls.madvise(region.addr, region.size, syscalls.MADV_COLLAPSE)
            if huge_mappings.is_huge(region):
                return
            raise Unavailable("shared memory is not collapsed to huge pages")
    except OSError as error:
        raise Unavailable(
            "shared memory is not collapsed to huge pages", str(error),
            "a kernel from 6.1 on; echo never (not deny) > "
            "/sys/kernel/mm/transparent_hugepage/shmem_enabled",
        ) from None  # fmt: skip
    finally:
        os.close(fd)


def _split_huge_pages() -> None:
    huge_pages.enable_thp()
    try:
        with huge_pages.thp_aligned_mapping() as region:
            syscalls.store(region.addr, b"x")
            huge_pages.split_huge_pages(region)
            if not huge_mappings.mapped_kb(region):
                return
    except OSError as error:
        raise Unavailable(
            "huge pages cannot be split by hand", str(error),
            f"{ROOT}, on a kernel from 5.13 on with CONFIG_DEBUG_FS=y and not in lockdown",
        ) from None  # fmt: skip
    raise Unavailable("huge pages cannot be split by hand", "", "a kernel from 5.13 on")


def _writable(path: str) -> None:
    """A setting can be written: done with the value that it has."""
    try:
        text = Path(path).read_text().strip()
        if "[" in text:  # the chosen one of several words
            text = text[text.index("[") + 1 : text.index("]")]
        Path(path).write_text(text)
    except OSError as error:
        raise Unavailable(f"{path} cannot be set", str(error.strerror), ROOT) from None


def _hugetlb_pool() -> None:
    _writable("/proc/sys/vm/nr_hugepages")


def _mergeable() -> None:
    with memory.mapping("private", 1) as page:
        try:
            syscalls.madvise(page.addr, PAGE, syscalls.MADV_MERGEABLE)
        except OSError as error:
            raise Unavailable("no KSM", str(error), "a kernel with CONFIG_KSM=y") from None


def _ksm() -> None:
    _mergeable()
    _writable("/sys/kernel/mm/ksm/run")


def _compaction() -> None:
    _writable("/proc/sys/vm/compact_unevictable_allowed")
    try:
        os.close(os.open("/proc/sys/vm/compact_memory", os.O_WRONLY))
    except OSError as error:
        raise Unavailable("memory cannot be compacted", str(error.strerror), ROOT) from None


def _memory_failure() -> None:
    # Nothing is tried: a frame that is poisoned is taken from the machine until it is unpoisoned.
    known = Path("/proc/meminfo").read_text()
    if "HardwareCorrupted:" not in known or not os.access(undo.UNPOISON, os.W_OK):
        raise Unavailable(
            "pages cannot be poisoned and unpoisoned", str(undo.UNPOISON),
            f"{ROOT}, a kernel with CONFIG_MEMORY_FAILURE=y and CONFIG_HWPOISON_INJECT "
            "(modprobe hwpoison-inject), debugfs mounted on /sys/kernel/debug",
        )  # fmt: skip


def _fail_nth() -> None:
    files = (Path(fail_nth.FILE), *fail_nth.WAITING)
    missing = [str(path) for path in files if not os.access(path, os.W_OK)]
    if missing:
        raise Unavailable(
            "allocations cannot be made to fail", ", ".join(missing),
            f"{ROOT}, a kernel with CONFIG_FAILSLAB=y, CONFIG_FAIL_PAGE_ALLOC=y and "
            "CONFIG_FAULT_INJECTION_DEBUG_FS=y, debugfs mounted on /sys/kernel/debug",
        )  # fmt: skip
    fail_nth.failing(1 << 20, lambda: None)


def _numa_balancing() -> None:
    _two_nodes()
    _writable("/proc/sys/kernel/numa_balancing")


def _movable_block() -> None:
    try:
        memory_blocks.block_pages()
        blocks = memory_blocks.movable_blocks()
    except OSError as error:
        raise Unavailable(
            "no memory hotplug", str(error), "a kernel with CONFIG_MEMORY_HOTREMOVE=y"
        ) from None
    if not blocks:
        raise Unavailable(
            "no block of memory may be taken away", "none is in ZONE_MOVABLE alone",
            "boot with movablecore=256M (tox run -e vm -- --append movablecore=256M KERNEL)",
        )  # fmt: skip
    for folder in blocks.values():
        if not os.access(folder / "state", os.W_OK):
            raise Unavailable("blocks of memory are not ours to take away", str(folder), ROOT)


def _two_nodes() -> None:
    found = numa.nodes()
    if len(found) < 2:
        raise Unavailable(
            "memory is on one node", f"nodes with memory: {found}",
            "a machine with two NUMA nodes (tox run -e vm -- --numa KERNEL)",
        )  # fmt: skip
    with memory.mapping("private", 1) as page:
        page.touch()
        here = numa.page_nodes(page)[0]
        there = next(node for node in found if node != here)
        try:
            moved = numa.move_pages(page, there)
        except OSError as error:
            raise unavailable_call("move_pages", error, "2.6.18") from None
        if moved != [there]:
            raise Unavailable("pages do not move between nodes", str(moved), "memory on both")


def _outside_memory() -> None:
    with memory.mapping("private", 1) as page, processes.Child() as child:
        page.touch()
        try:
            process_vm.process_vm_writev(child.pid, page.addr, b"x")
            process_vm.write_proc_mem(child.pid, page.addr, b"x")
            with ptrace.ptrace_stopped(child.pid):
                ptrace.peekdata(child.pid, page.addr)
        except OSError as error:
            raise Unavailable(
                "a child's memory cannot be traced", str(error),
                "no seccomp filter on ptrace(2) and process_vm_writev(2) (podman, docker: "
                "--cap-add SYS_PTRACE); proc_mem.force_override=always",
            ) from None  # fmt: skip


def _forced_outside() -> None:
    _outside_memory()
    with memory.mapping("private", 1, prot=syscalls.PROT_READ) as page, processes.Child() as child:
        try:
            with ptrace.ptrace_stopped(child.pid):
                process_vm.write_proc_mem(child.pid, page.addr, b"x")
        except OSError as error:
            raise Unavailable(
                "/proc/PID/mem does not write to read-only memory", str(error),
                "boot with proc_mem.force_override=ptrace or always",
            ) from None  # fmt: skip


def _clear_refs() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("1")
    except OSError as error:
        raise Unavailable(
            "no /proc/PID/clear_refs", str(error.strerror),
            "a kernel with CONFIG_PROC_PAGE_MONITOR=y",
        ) from None  # fmt: skip


def _perf() -> None:
    try:
        fd = perf_event.open_dummy_event()
        syscalls.mmap(0, 2 * PAGE, syscalls.PROT_RW, syscalls.MAP_SHARED, fd)
    except OSError as error:
        raise Unavailable(
            "no perf event with a ring", str(error),
            "CAP_PERFMON, or sysctl kernel.perf_event_paranoid=2 (podman, docker: --privileged)",
        ) from None  # fmt: skip


def _mount() -> None:
    try:
        mounts.mount_new("tmpfs")
    except OSError as error:
        raise Unavailable(
            "no file system can be mounted", str(error), f"{ROOT}: CAP_SYS_ADMIN"
        ) from None


def _fuse() -> None:
    try:
        with fuse_server.fuse_file(1, keep_cache=True) as served:
            served.path.read_bytes()
    except OSError as error:
        raise Unavailable(
            "no FUSE file system can be mounted", str(error),
            f"{ROOT}: CAP_SYS_ADMIN, /dev/fuse (modprobe fuse)",
        ) from None  # fmt: skip


def _mkfs(kind: str) -> None:
    # The case itself makes and mounts it: that takes longer than all probes.
    if shutil.which(f"mkfs.{kind}") is None or shutil.which("mount") is None:
        raise Unavailable(f"no mkfs.{kind}", "", f"install the package that has mkfs.{kind}")
    if not os.access("/dev/loop-control", os.W_OK):
        raise Unavailable("no loop devices", "/dev/loop-control", f"modprobe loop; {ROOT}")
    known = Path("/proc/filesystems").read_text().split()
    if kind in known:
        return
    tried = shutil.which("modprobe") and subprocess.run(["modprobe", "-n", "-q", kind], check=False)
    if not tried or tried.returncode:
        raise Unavailable(f"the kernel has no {kind}", "", f"modprobe {kind}")


def _perf_user() -> None:
    if os.geteuid() == 0:
        try:
            credentials.set_user()
        except OSError as error:
            raise Unavailable(
                "another user's ids cannot be taken", str(error), f"{ROOT}: CAP_SETUID, CAP_SETGID"
            ) from None
    try:
        perf_event.perf_event_mlock_kb()
        os.close(perf_event.open_dummy_event())
    except OSError as error:
        raise Unavailable(
            "no perf event for a user without capabilities", str(error),
            "sysctl kernel.perf_event_paranoid=2 (podman, docker: --privileged)",
        ) from None  # fmt: skip


def _perf_limited() -> None:
    _perf()
    perf_event.perf_event_mlock_kb()
    if (paranoid := perf_event.perf_event_paranoid()) < 0:
        raise Unavailable(
            "perf rings are free of any limit", f"kernel.perf_event_paranoid={paranoid}",
            "sysctl kernel.perf_event_paranoid=2",
        )  # fmt: skip


def _io_uring_user() -> None:
    if os.geteuid() == 0:
        credentials.set_user()
    try:
        os.close(io_uring.create())
    except OSError as error:
        raise Unavailable(
            "no io_uring for a user without capabilities", str(error),
            "sysctl kernel.io_uring_disabled=0, and a seccomp profile that lets io_uring_setup "
            "through",
        ) from None  # fmt: skip


def _xdp() -> None:
    try:
        with memory.mapping("private", 1) as page, xdp.create() as where:
            xdp.register(where, page.addr, page.size)
    except OSError as error:
        raise Unavailable(
            "no AF_XDP socket with a umem", str(error),
            f"{ROOT}: CAP_NET_RAW; a kernel with CONFIG_XDP_SOCKETS=y",
        ) from None  # fmt: skip


def _bpf() -> None:
    try:
        os.close(bpf.create_array(PAGE))
    except OSError as error:
        raise Unavailable(
            "no BPF map", str(error), f"{ROOT}: CAP_BPF; a kernel with CONFIG_BPF_SYSCALL=y"
        ) from None


def _zerocopy() -> None:
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as server:
            server.bind(("127.0.0.1", 0))
            server.listen(1)
            with socket.create_connection(server.getsockname()) as client:
                client.setsockopt(socket.SOL_SOCKET, _SO_ZEROCOPY, 1)
    except OSError as error:
        raise Unavailable(
            "no zero-copy sends over loopback", str(error),
            "a kernel from 4.14 on, and 127.0.0.1 up (ip link set lo up)",
        ) from None  # fmt: skip


_SO_ZEROCOPY = 60


def _packet_ring() -> None:
    try:
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0).close()
    except OSError as error:
        raise Unavailable(
            "no packet socket",
            str(error),
            f"{ROOT}: CAP_NET_RAW; CONFIG_PACKET (modprobe af_packet)",
        ) from None


def _aio() -> None:
    # Of no events at all, which is refused: a context takes a grace period to end.
    seen = syscalls.outcome(syscalls.syscall, "io_setup", 0, ctypes.c_ulong())
    if seen != "EINVAL":
        raise Unavailable("no asynchronous I/O", f"io_setup: {seen}", "a kernel with CONFIG_AIO=y")


def _userfaultfd() -> None:
    try:
        with userfaultfd.open_fd() as fd, memory.mapping("private", 1) as page:
            userfaultfd.register(fd, page)
    except OSError as error:
        raise Unavailable(
            "no userfaultfd for faults in the kernel", str(error),
            "run as root with CAP_SYS_PTRACE, or sysctl vm.unprivileged_userfaultfd=1 (a kernel "
            "with CONFIG_USERFAULTFD=y; podman, docker: --privileged)",
        ) from None  # fmt: skip


def _uffd_user_mode() -> None:
    try:
        with userfaultfd.open_fd(flags=userfaultfd.USER_MODE_ONLY):
            pass
    except OSError as error:
        raise unavailable_call("userfaultfd with UFFD_USER_MODE_ONLY", error, "5.11") from None


def _uffd_move() -> None:
    _userfaultfd()
    try:
        with userfaultfd.open_fd(userfaultfd.FEATURE_MOVE):
            pass
    except OSError as error:
        raise Unavailable("no UFFDIO_MOVE", str(error), "a kernel from 6.8 on") from None


def _uffd_minor() -> None:
    _userfaultfd()
    try:
        with userfaultfd.open_fd(userfaultfd.FEATURE_MINOR_SHMEM):
            pass
    except OSError as error:
        raise Unavailable(
            "userfaultfd reports no minor faults", str(error),
            "a kernel from 5.14 on, 64 bit (x86_64, aarch64)",
        ) from None  # fmt: skip


def _uffd_protect() -> None:
    _userfaultfd()
    with userfaultfd.open_fd() as fd, memory.mapping("private", 1) as page:
        try:
            userfaultfd.register(fd, page, userfaultfd.WP)
        except OSError as error:
            raise Unavailable(
                "userfaultfd reports no writes", str(error), "x86_64 (aarch64 from 6.10 on)"
            ) from None


def _hugetlb_mapping() -> None:
    how = syscalls.MAP_PRIVATE | syscalls.MAP_ANONYMOUS | syscalls.MAP_NORESERVE
    size = vmstat.huge_page_size()
    try:
        syscalls.munmap(syscalls.mmap(0, size, flags=how | syscalls.MAP_HUGETLB), size)
    except OSError as error:
        raise Unavailable(
            "no mapping of huge pages", str(error), "a kernel with CONFIG_HUGETLBFS=y"
        ) from None


def _pkey_mprotect() -> None:
    with memory.mapping("private", 1) as page:
        try:
            syscalls.syscall("pkey_mprotect", page.addr, PAGE, syscalls.PROT_READ, -1)
        except OSError as error:
            raise Unavailable(
                "no pkey_mprotect", str(error), "a kernel with CONFIG_ARCH_HAS_PKEYS=y (x86)"
            ) from None


PROBES: dict[str, Callable[[], None]] = {
    "hugetlb-mapping": _hugetlb_mapping,
    "pkey-mprotect": _pkey_mprotect,
    "aio": _aio,
    "packet-ring": _packet_ring,
    "mkfs-btrfs": functools.partial(_mkfs, "btrfs"),
    "mkfs-ext4": functools.partial(_mkfs, "ext4"),
    "mkfs-xfs": functools.partial(_mkfs, "xfs"),
    "fuse": _fuse,
    "mount": _mount,
    "perf": _perf,
    "perf-user": _perf_user,
    "perf-limited": _perf_limited,
    "io-uring-user": _io_uring_user,
    "xdp": _xdp,
    "bpf": _bpf,
    "zerocopy": _zerocopy,
    "compaction": _compaction,
    "hugetlb-pool": _hugetlb_pool,
    "ksm": _ksm,
    "large-folios": _large_folios,
    "mergeable": _mergeable,
    "fail-nth": _fail_nth,
    "memory-failure": _memory_failure,
    "movable-block": _movable_block,
    "numa-balancing": _numa_balancing,
    "two-nodes": _two_nodes,
    "clear-refs": _clear_refs,
    "forced-outside": _forced_outside,
    "outside-memory": _outside_memory,
    "thp": _thp,
    "collapse": _collapse,
    "shmem-collapse": _shmem_collapse,
    "split-huge-pages": _split_huge_pages,
    "uffd-minor": _uffd_minor,
    "uffd-move": _uffd_move,
    "uffd-protect": _uffd_protect,
    "uffd-user-mode": _uffd_user_mode,
    "userfaultfd": _userfaultfd,
}
"""Facility name → its probe, which returns, or raises :class:`Unavailable`."""
