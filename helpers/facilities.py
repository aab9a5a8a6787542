"""What this machine offers, each found out by doing it once, outside any case.

A probe never exercises the behaviour under test: whether locking is allowed is read from
capability sets and limits, not tried with mlock, so that a kernel whose mlock fails is
reported as failing and not as unsuitable.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import importlib.util
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from helpers import (
    bare,
    hotplug,
    iouring,
    libc,
    memory,
    mounts,
    numa,
    outside,
    perf,
    privilege,
    process,
    thp,
    uffd,
    vdso,
)
from helpers.libc import PAGE
from helpers.observe import maps, mincore, pagemap, status, vmstat


@dataclass(frozen=True)
class Facility:
    """One answer: there, or why not (constant words), what was seen, and how to get it."""

    name: str
    available: bool
    reason: str = ""
    detail: str = ""
    remedy: str = ""


class Unavailable(Exception):
    """Raised by a probe: ``reason`` (constant), ``detail`` (what was seen), ``remedy``."""

    def __init__(self, reason: str, detail: str = "", remedy: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail, self.remedy = reason, detail, remedy


ROOT = "run as root"


def _lock_calls() -> None:
    # Each call with arguments that every kernel refuses as EINVAL before it looks at limits
    # or rights, so another answer comes from a filter in front of the kernel. Only a process
    # under seccomp is asked: without a filter the calls themselves are what we test.
    if status.fields().get("Seccomp", "0") == "0":
        return
    for name, args in (
        ("mlock2", (0, 0, -1)),
        ("mlockall", (0,)),
        ("munlock", (-PAGE, 1)),
    ):
        seen = libc.outcome(libc.syscall, name, *args)
        if seen in {"EPERM", "ENOSYS", "EACCES"}:
            raise Unavailable(
                "the mlock family is answered by a seccomp filter",
                f"{name}{args}: {seen}",
                "allow mlock, mlock2, munlock, mlockall, munlockall in the seccomp profile",
            )


def _pfn() -> None:
    with memory.mapping("private", 1) as page:
        page.touch()
        if not pagemap.pfns(page.addr, 1)[0]:
            raise Unavailable("PFNs in /proc/self/pagemap read 0", "", f"{ROOT}: CAP_SYS_ADMIN")


def _page_file(reader: Callable[[Sequence[int]], Sequence[int]], path: str) -> None:
    with memory.mapping("private", 1) as page:
        page.touch()
        numbers = pagemap.pfns(page.addr, 1)
        if not numbers[0]:
            raise Unavailable("PFNs in /proc/self/pagemap read 0", "", f"{ROOT}: CAP_SYS_ADMIN")
        try:
            reader(numbers)
        except FileNotFoundError:
            raise Unavailable(
                f"no {path}", "", "a kernel with CONFIG_PROC_PAGE_MONITOR=y"
            ) from None
        except OSError as error:
            raise Unavailable(f"{path} is not readable", str(error.strerror), ROOT) from None


def _kpageflags() -> None:
    _page_file(pagemap.flags, "/proc/kpageflags")


def _kpagecount() -> None:
    _page_file(pagemap.counts, "/proc/kpagecount")


def _other_user() -> None:
    if os.geteuid() != 0:
        # As an ordinary user we are already somebody else than root.
        return
    try:
        process.run(privilege.become)
    except OSError as error:
        raise Unavailable(
            "another user's ids cannot be taken", str(error), f"{ROOT}: CAP_SETUID, CAP_SETGID"
        ) from None


def _bare_process() -> None:
    if not bare.supported():
        raise Unavailable(
            "no machine code for a bare process", libc.architecture(),
            "add this architecture to _CODE in helpers/bare.py",
        )  # fmt: skip
    try:
        with bare.Bare():
            pass
    except (process.ChildError, OSError) as error:
        raise Unavailable(
            "a program in a memfd cannot be executed", str(error), "sysctl vm.memfd_noexec=0"
        ) from None


def _user_namespace() -> None:
    try:
        process.run(privilege.enter_user_namespace)
    except OSError as error:
        raise Unavailable(
            "a user namespace cannot be made", str(error),
            "sysctl user.max_user_namespaces > 0, no chroot, no seccomp filter on unshare(2)",
        ) from None  # fmt: skip


def _madvise(advice: int, name: str, since: str) -> None:
    with memory.mapping("private", 1) as page:
        page.touch()
        try:
            libc.madvise(page.addr, PAGE, advice)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            raise Unavailable(f"no {name}", str(error), f"a kernel from {since} on") from None


def _populate() -> None:
    _madvise(libc.MADV_POPULATE_WRITE, "MADV_POPULATE_WRITE", "5.14")


def _dontneed_locked() -> None:
    _madvise(libc.MADV_DONTNEED_LOCKED, "MADV_DONTNEED_LOCKED", "5.18")


def _guard() -> None:
    _madvise(libc.MADV_GUARD_INSTALL, "MADV_GUARD_INSTALL", "6.13")


def _pageout() -> None:
    _madvise(libc.MADV_COLD, "MADV_COLD and MADV_PAGEOUT", "5.4")


def _missing_call(name: str, error: OSError, since: str) -> Unavailable:
    if error.errno in {errno.ENOSYS, errno.EPERM} and status.fields().get("Seccomp") == "2":
        return Unavailable(
            f"{name} is not available", f"{error} (under a seccomp filter)",
            f"a kernel from {since} on, and a seccomp profile that lets {name} through",
        )  # fmt: skip
    return Unavailable(f"{name} is not available", str(error), f"a kernel from {since} on")


def _mseal() -> None:
    try:
        libc.syscall("mseal", 0, 0, 0)
    except OSError as error:
        raise _missing_call("mseal", error, "6.10") from None


def _droppable() -> None:
    how = libc.MAP_DROPPABLE | libc.MAP_ANONYMOUS
    try:
        libc.munmap(libc.mmap(0, PAGE, libc.PROT_RW, how), PAGE)
    except OSError as error:
        raise Unavailable("no MAP_DROPPABLE", str(error), "a kernel from 6.11 on") from None


def _remap_file_pages() -> None:
    fd = memory.memfd(2 * PAGE)
    try:
        with memory.mapping("memfd-shared", 2, fd=fd) as two:
            libc.syscall("remap_file_pages", two.addr, PAGE, 0, 1, 0)
    except OSError as error:
        raise _missing_call("remap_file_pages", error, "2.6") from None
    finally:
        os.close(fd)


def _process_madvise() -> None:
    with memory.mapping("private", 1) as page:
        page.touch()
        try:
            fd = os.pidfd_open(os.getpid())
        except OSError as error:
            raise _missing_call("pidfd_open", error, "5.3") from None
        try:
            vector = (ctypes.c_size_t * 2)(page.addr, PAGE)
            libc.syscall("process_madvise", fd, vector, 1, libc.MADV_COLD, 0)
        except OSError as error:
            raise _missing_call("process_madvise", error, "5.10") from None
        finally:
            os.close(fd)


def _sysv_shm() -> None:
    try:
        segment = libc.shmget(libc.IPC_PRIVATE, PAGE, libc.IPC_CREAT | 0o600)
    except OSError as error:
        raise Unavailable(
            "no SysV shared memory", str(error), "a kernel with CONFIG_SYSVIPC=y; kernel.shmmni"
        ) from None
    libc.shmctl(segment, libc.IPC_RMID, None)


def _map_vdso() -> None:
    try:
        vdso.map_again()
    except OSError as error:
        raise Unavailable(
            "the vdso cannot be mapped again", str(error),
            "x86-64 with CONFIG_CHECKPOINT_RESTORE=y",
        ) from None  # fmt: skip


def _huge_range() -> None:
    size = (1 << 32) * PAGE
    how = libc.MAP_PRIVATE | libc.MAP_ANONYMOUS | libc.MAP_NORESERVE
    try:
        libc.munmap(libc.mmap(0, size, libc.PROT_NONE, how), size)
    except OSError as error:
        raise Unavailable(
            "no room for a mapping of 2^32 pages", str(error),
            "a larger user address space; ulimit -v unlimited",
        ) from None  # fmt: skip


def _hugetlb() -> None:
    how = libc.MAP_PRIVATE | libc.MAP_ANONYMOUS | libc.MAP_HUGETLB
    try:
        size = vmstat.meminfo_kb("Hugepagesize") * 1024
        libc.munmap(libc.mmap(0, size, libc.PROT_RW, how), size)
    except (OSError, LookupError) as error:
        raise Unavailable(
            "no free huge page", str(error), "sysctl vm.nr_hugepages=8 while the suite runs"
        ) from None


def _secretmem() -> None:
    try:
        fd = libc.syscall("memfd_secret", 0)
    except OSError as error:
        raise Unavailable(
            "memfd_secret is not available", str(error),
            "a kernel from 5.14 on (before 6.5 booted with secretmem.enable=1), and no seccomp "
            "filter on it",
        ) from None  # fmt: skip
    try:
        os.ftruncate(fd, PAGE)
        libc.munmap(libc.mmap(0, PAGE, libc.PROT_RW, libc.MAP_SHARED, fd), PAGE)
    except OSError as error:
        raise Unavailable(
            "secret memory cannot be mapped", str(error), "CAP_IPC_LOCK or a larger ulimit -l"
        ) from None
    finally:
        os.close(fd)


def _io_uring() -> None:
    try:
        with memory.mapping("private", 1) as page, iouring.ring() as fd:
            iouring.register(fd, page.addr, PAGE)
            iouring.unregister(fd)
    except OSError as error:
        raise Unavailable(
            "io_uring is not available", str(error),
            "sysctl kernel.io_uring_disabled=0, and a seccomp profile that lets io_uring_setup "
            "through",
        ) from None  # fmt: skip


def _map_count() -> None:
    path = Path("/proc/sys/vm/max_map_count")
    try:
        limit = int(path.read_text())
    except OSError as error:
        raise Unavailable(f"{path} is not readable", str(error), "mount /proc") from None
    if limit > _MOST_MAPS:
        raise Unavailable(
            "vm.max_map_count is too high to be reached", f"{limit} > {_MOST_MAPS}",
            f"sysctl vm.max_map_count={_MOST_MAPS // 2} while the suite runs",
        )  # fmt: skip


def _mglru() -> None:
    path = Path("/sys/kernel/mm/lru_gen/enabled")
    try:
        path.read_text()
    except OSError as error:
        raise Unavailable(
            "no multi-gen LRU", f"{path}: {error.strerror}", "a kernel with CONFIG_LRU_GEN=y (6.1)"
        ) from None


_MOST_MAPS = 262144
_DISK = {"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs"}


def filesystem(directory: Path | str) -> str:
    """Type of the file system that holds ``directory``, from mountinfo (``"ext4"``)."""
    device = os.stat(directory).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    found = ""
    path = str(Path(directory).resolve())
    best = -1
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        fields = left.split()
        point = fields[4].replace("\\040", " ")
        inside = point == "/" or path == point or path.startswith(point + "/")
        if (fields[2] == wanted or inside) and inside and len(point) >= best:
            best, found = len(point), right.split()[0]
    return found


def _disk_file() -> None:
    where = tempfile.gettempdir()  # --file-dir, if given
    kind = filesystem(where)
    if kind not in _DISK:
        raise Unavailable(
            "no folder on a disk file system", f"{where} is {kind or 'unknown'}",
            "pass --file-dir on ext4, xfs or btrfs",
        )  # fmt: skip


def _stack_growth() -> None:
    if not any(v.name == "[stack]" for v in maps.vmas()):
        raise Unavailable("no [stack] VMA in /proc/self/maps", "", "run the suite natively")


def _smaps_flags() -> None:
    if not maps.smaps()[0].flags:
        raise Unavailable(
            "no VmFlags in /proc/self/smaps", "", "a kernel with CONFIG_PROC_PAGE_MONITOR=y"
        )


def _mincore() -> None:
    with memory.mapping("private", 1) as page:
        try:
            mincore.resident(page.addr, 1)
        except OSError as error:
            if error.errno in {errno.ENOSYS, errno.EPERM}:
                raise _missing_call("mincore", error, "2.4") from None


def _vfork() -> None:
    seen = ctypes.create_string_buffer(8)
    try:
        process.vforked("memset", ctypes.addressof(seen), 7, 4)
    except (LookupError, OSError, process.ChildError) as error:
        raise Unavailable(
            "a C function cannot be run in a vfork child", str(error), "run natively, with glibc"
        ) from None
    if seen.raw != b"\7\7\7\7\0\0\0\0":
        raise Unavailable("a C function cannot be run in a vfork child", f"memory {seen.raw!r}")


def _forced_write() -> None:
    # proc_mem.force_override=, CONFIG_PROC_MEM_* (6.12) and lockdown may forbid it.
    with memory.mapping("private", 1, prot=libc.PROT_READ) as page:
        try:
            memory.force(page.addr, b"x")
        except OSError as error:
            raise Unavailable(
                "/proc/self/mem does not write to read-only memory", str(error),
                "boot with proc_mem.force_override=always",
            ) from None  # fmt: skip


def _thp() -> None:
    thp.allow()
    try:
        with thp.aligned() as region:
            libc.write(region.addr, b"x")
            if thp.is_huge(region):
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
    sizes = thp.small_sizes()
    if thp.folio_pages() not in sizes:
        raise Unavailable(
            "no large folios of anonymous memory", "",
            "a kernel from 6.8 on with CONFIG_TRANSPARENT_HUGEPAGE=y",
        )  # fmt: skip
    _writable(str(sizes[thp.folio_pages()]))


def _collapse() -> None:
    thp.allow()
    try:
        with thp.aligned(advise=False) as region:
            region.touch()
            libc.madvise(region.addr, region.size, libc.MADV_COLLAPSE)
    except OSError as error:
        raise Unavailable(
            "no MADV_COLLAPSE", str(error),
            "a kernel from 6.1 on with CONFIG_TRANSPARENT_HUGEPAGE=y; free memory",
        ) from None  # fmt: skip


def _shmem_collapse() -> None:
    thp.allow()
    fd = thp.memfd()
    try:
        with thp.aligned(fd=fd, advise=False) as region:
            region.touch()
            libc.madvise(region.addr, region.size, libc.MADV_COLLAPSE)
            if thp.is_huge(region):
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
    thp.allow()
    try:
        with thp.aligned() as region:
            libc.write(region.addr, b"x")
            thp.split(region)
            if not thp.mapped_kb(region):
                return
    except OSError as error:
        raise Unavailable(
            "huge pages cannot be split by hand", str(error),
            f"{ROOT}; a kernel from 5.13 on with CONFIG_DEBUG_FS=y",
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
            libc.madvise(page.addr, PAGE, libc.MADV_MERGEABLE)
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


def _movable_block() -> None:
    try:
        hotplug.block_pages()
        blocks = hotplug.movable()
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
        here = numa.where(page)[0]
        there = next(node for node in found if node != here)
        try:
            moved = numa.move(page, there)
        except OSError as error:
            raise _missing_call("move_pages", error, "2.6.18") from None
        if moved != [there]:
            raise Unavailable("pages do not move between nodes", str(moved), "memory on both")


def _outside_memory() -> None:
    with memory.mapping("private", 1) as page, process.Child() as child:
        page.touch()
        try:
            outside.write(child.pid, page.addr, b"x")
            outside.force(child.pid, page.addr, b"x")
            with outside.traced(child.pid):
                outside.peek(child.pid, page.addr)
        except OSError as error:
            raise Unavailable(
                "a child's memory cannot be traced", str(error),
                "no seccomp filter on ptrace(2) and process_vm_writev(2) (podman, docker: "
                "--cap-add SYS_PTRACE); proc_mem.force_override=always",
            ) from None  # fmt: skip


def _forced_outside() -> None:
    _outside_memory()
    with memory.mapping("private", 1, prot=libc.PROT_READ) as page, process.Child() as child:
        try:
            with outside.traced(child.pid):
                outside.force(child.pid, page.addr, b"x")
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
        fd = perf.counter()
        libc.mmap(0, 2 * PAGE, libc.PROT_RW, libc.MAP_SHARED, fd)
    except OSError as error:
        raise Unavailable(
            "no perf event with a ring", str(error),
            "CAP_PERFMON, or sysctl kernel.perf_event_paranoid=2 (podman, docker: --privileged)",
        ) from None  # fmt: skip


def _mount() -> None:
    try:
        mounts.made("tmpfs")
    except OSError as error:
        raise Unavailable(
            "no file system can be mounted", str(error), f"{ROOT}: CAP_SYS_ADMIN"
        ) from None


def _mkfs(kind: str) -> None:
    # The case itself makes and mounts it: that takes longer than all probes.
    if shutil.which(f"mkfs.{kind}") is None or shutil.which("mount") is None:
        raise Unavailable(f"no mkfs.{kind}", "", f"install the package that has mkfs.{kind}")
    if not os.access("/dev/loop-control", os.W_OK):
        raise Unavailable("no loop devices", "/dev/loop-control", f"modprobe loop; {ROOT}")
    known = Path("/proc/filesystems").read_text().split()
    if kind in known:
        return
    if subprocess.run(["modprobe", "-n", "-q", kind], check=False).returncode:
        raise Unavailable(f"the kernel has no {kind}", "", f"modprobe {kind}")


def _perf_user() -> None:
    if os.geteuid() == 0:
        try:
            privilege.become()
        except OSError as error:
            raise Unavailable("another user's ids cannot be taken", str(error), ROOT) from None
    try:
        perf.free_kb()
        os.close(perf.counter())
    except OSError as error:
        raise Unavailable(
            "no perf event for a user without capabilities", str(error),
            "sysctl kernel.perf_event_paranoid=2 (podman, docker: --privileged)",
        ) from None  # fmt: skip


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
    seen = libc.outcome(libc.syscall, "io_setup", 0, ctypes.c_ulong())
    if seen != "EINVAL":
        raise Unavailable("no asynchronous I/O", f"io_setup: {seen}", "a kernel with CONFIG_AIO=y")


def _userfaultfd() -> None:
    try:
        with uffd.open_fd() as fd, memory.mapping("private", 1) as page:
            uffd.register(fd, page)
    except OSError as error:
        raise Unavailable(
            "no userfaultfd for faults in the kernel", str(error),
            "run as root with CAP_SYS_PTRACE, or sysctl vm.unprivileged_userfaultfd=1 (a kernel "
            "with CONFIG_USERFAULTFD=y; podman, docker: --privileged)",
        ) from None  # fmt: skip


def _uffd_user_mode() -> None:
    try:
        with uffd.open_fd(flags=uffd.USER_MODE_ONLY):
            pass
    except OSError as error:
        raise _missing_call("userfaultfd with UFFD_USER_MODE_ONLY", error, "5.11") from None


def _uffd_move() -> None:
    _userfaultfd()
    try:
        with uffd.open_fd(uffd.FEATURE_MOVE):
            pass
    except OSError as error:
        raise Unavailable("no UFFDIO_MOVE", str(error), "a kernel from 6.8 on") from None


def _uffd_minor() -> None:
    _userfaultfd()
    try:
        with uffd.open_fd(uffd.FEATURE_MINOR_SHMEM):
            pass
    except OSError as error:
        raise Unavailable(
            "userfaultfd reports no minor faults", str(error),
            "a kernel from 5.14 on, 64 bit (x86_64, aarch64)",
        ) from None  # fmt: skip


def _uffd_protect() -> None:
    _userfaultfd()
    with uffd.open_fd() as fd, memory.mapping("private", 1) as page:
        try:
            uffd.register(fd, page, uffd.WP)
        except OSError as error:
            raise Unavailable(
                "userfaultfd reports no writes", str(error), "x86_64 (aarch64 from 6.10 on)"
            ) from None


def _hypothesis() -> None:
    if importlib.util.find_spec("hypothesis") is None:
        raise Unavailable(
            "Hypothesis is not installed", "", "pip install 'hypothesis>=6.100' (group model)"
        )


PROBES: dict[str, Callable[[], None]] = {
    "lock-calls": _lock_calls,
    "smaps-flags": _smaps_flags,
    "pfn": _pfn,
    "kpageflags": _kpageflags,
    "kpagecount": _kpagecount,
    "mincore": _mincore,
    "other-user": _other_user,
    "user-namespace": _user_namespace,
    "bare-process": _bare_process,
    "disk-file": _disk_file,
    "map-count": _map_count,
    "stack-growth": _stack_growth,
    "pageout": _pageout,
    "populate": _populate,
    "dontneed-locked": _dontneed_locked,
    "guard": _guard,
    "process-madvise": _process_madvise,
    "remap-file-pages": _remap_file_pages,
    "mseal": _mseal,
    "sysv-shm": _sysv_shm,
    "map-vdso": _map_vdso,
    "huge-range": _huge_range,
    "hugetlb": _hugetlb,
    "secretmem": _secretmem,
    "io-uring": _io_uring,
    "droppable": _droppable,
    "mglru": _mglru,
    "forced-write": _forced_write,
    "vfork": _vfork,
    "aio": _aio,
    "packet-ring": _packet_ring,
    "mkfs-btrfs": functools.partial(_mkfs, "btrfs"),
    "mkfs-ext4": functools.partial(_mkfs, "ext4"),
    "mkfs-xfs": functools.partial(_mkfs, "xfs"),
    "mount": _mount,
    "perf": _perf,
    "perf-user": _perf_user,
    "zerocopy": _zerocopy,
    "compaction": _compaction,
    "hugetlb-pool": _hugetlb_pool,
    "ksm": _ksm,
    "large-folios": _large_folios,
    "mergeable": _mergeable,
    "movable-block": _movable_block,
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
    "hypothesis": _hypothesis,
}
"""Facility name → its probe, which returns, or raises :class:`Unavailable`."""


def probe(name: str) -> Facility:
    """Run one probe in a child; a probe that breaks counts as unavailable and says how."""
    try:
        found = process.run(lambda: _outcome(name))
    except (process.ChildError, OSError) as error:
        text = str(error).strip().splitlines()[-1]
        return Facility(name, False, f"the probe of {name} broke", text, "report this as a bug")
    return found


def _outcome(name: str) -> Facility:
    try:
        PROBES[name]()
    except Unavailable as why:
        return Facility(name, False, why.reason, why.detail, why.remedy)
    return Facility(name, True)


def survey() -> dict[str, Facility]:
    """Every facility of :data:`PROBES`, probed now."""
    return {name: probe(name) for name in PROBES}
