# SPDX-License-Identifier: MIT
"""The calls under test, their witnesses, and what most chapters stand on."""

from __future__ import annotations

import ctypes
import errno
import importlib.util
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from helpers import memory, processes, syscalls
from helpers.memory import files
from helpers.observe import maps, mincore, page_flags, pagemap, special_mappings, status, vmstat
from helpers.processes import credentials, namespaces, stub, stub_code
from helpers.requirements.facility import ROOT, Unavailable, unavailable_call
from helpers.syscalls import PAGE, io_uring, process_vm, sysv


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
        seen = syscalls.outcome(syscalls.syscall, name, *args)
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
    _page_file(page_flags.kpageflags, "/proc/kpageflags")


def _kpagecount() -> None:
    _page_file(page_flags.kpagecount, "/proc/kpagecount")


def _other_user() -> None:
    if os.geteuid() != 0:
        # As an ordinary user we are already somebody else than root.
        return
    try:
        processes.run(credentials.set_user)
    except OSError as error:
        raise Unavailable(
            "another user's ids cannot be taken", str(error), f"{ROOT}: CAP_SETUID, CAP_SETGID"
        ) from None


def _bare_process() -> None:
    if not stub_code.supported():
        raise Unavailable(
            "no machine code for a bare process", syscalls.architecture(),
            "add this architecture to _CODE in helpers/processes/stub.py",
        )  # fmt: skip
    try:
        with stub.StubProcess():
            pass
    except (processes.ChildError, OSError) as error:
        raise Unavailable(
            "a program in a memfd cannot be executed", str(error), "sysctl vm.memfd_noexec=0"
        ) from None


def _user_namespace() -> None:
    try:
        processes.run(namespaces.enter_user_namespace)
    except OSError as error:
        raise Unavailable(
            "a user namespace cannot be made", str(error),
            "sysctl user.max_user_namespaces > 0, no chroot, no seccomp filter on unshare(2), "
            "as root with CAP_SETFCAP",
        ) from None  # fmt: skip


def _madvise(advice: int, name: str, since: str) -> None:
    with memory.mapping("private", 1) as page:
        page.touch()
        try:
            syscalls.madvise(page.addr, PAGE, advice)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            raise Unavailable(f"no {name}", str(error), f"a kernel from {since} on") from None


def _populate() -> None:
    _madvise(syscalls.MADV_POPULATE_WRITE, "MADV_POPULATE_WRITE", "5.14")


def _dontneed_locked() -> None:
    _madvise(syscalls.MADV_DONTNEED_LOCKED, "MADV_DONTNEED_LOCKED", "5.18")


def _guard() -> None:
    _madvise(syscalls.MADV_GUARD_INSTALL, "MADV_GUARD_INSTALL", "6.13")


def _pageout() -> None:
    _madvise(syscalls.MADV_COLD, "MADV_COLD and MADV_PAGEOUT", "5.4")


def _mseal() -> None:
    try:
        syscalls.syscall("mseal", 0, 0, 0)
    except OSError as error:
        raise unavailable_call("mseal", error, "6.10") from None


def _droppable() -> None:
    how = syscalls.MAP_DROPPABLE | syscalls.MAP_ANONYMOUS
    try:
        syscalls.munmap(syscalls.mmap(0, PAGE, syscalls.PROT_RW, how), PAGE)
    except OSError as error:
        raise Unavailable("no MAP_DROPPABLE", str(error), "a kernel from 6.11 on") from None


def _remap_file_pages() -> None:
    fd = memory.memfd(2 * PAGE)
    try:
        with memory.mapping("memfd-shared", 2, fd=fd) as two:
            syscalls.syscall("remap_file_pages", two.addr, PAGE, 0, 1, 0)
    except OSError as error:
        raise unavailable_call("remap_file_pages", error, "2.6") from None
    finally:
        os.close(fd)


def _process_madvise() -> None:
    with memory.mapping("private", 1) as page:
        page.touch()
        try:
            fd = os.pidfd_open(os.getpid())
        except OSError as error:
            raise unavailable_call("pidfd_open", error, "5.3") from None
        try:
            vector = (ctypes.c_size_t * 2)(page.addr, PAGE)
            syscalls.syscall("process_madvise", fd, vector, 1, syscalls.MADV_COLD, 0)
        except OSError as error:
            raise unavailable_call("process_madvise", error, "5.10") from None
        finally:
            os.close(fd)


def _process_mrelease() -> None:
    # Of no process at all, which is refused.
    try:
        process_vm.process_mrelease(-1)
    except OSError as error:
        if error.errno != errno.EBADF:
            raise unavailable_call("process_mrelease", error, "5.15") from None


def _sysv_shm() -> None:
    try:
        segment = sysv.shmget(syscalls.IPC_PRIVATE, PAGE, syscalls.IPC_CREAT | 0o600)
    except OSError as error:
        raise Unavailable(
            "no SysV shared memory", str(error), "a kernel with CONFIG_SYSVIPC=y; kernel.shmmni"
        ) from None
    sysv.shmctl(segment, syscalls.IPC_RMID, None)


def _map_vdso() -> None:
    try:
        special_mappings.remap_special_mappings()
    except (OSError, LookupError) as error:
        raise Unavailable(
            "the vdso cannot be mapped again", str(error),
            "x86-64 with CONFIG_CHECKPOINT_RESTORE=y, and glibc",
        ) from None  # fmt: skip


def _hugetlb() -> None:
    how = syscalls.MAP_PRIVATE | syscalls.MAP_ANONYMOUS | syscalls.MAP_HUGETLB
    try:
        size = vmstat.huge_page_size()
        syscalls.munmap(syscalls.mmap(0, size, syscalls.PROT_RW, how), size)
    except OSError as error:
        raise Unavailable(
            "no free huge page", str(error), "sysctl vm.nr_hugepages=8 while the suite runs"
        ) from None


def _secretmem() -> None:
    try:
        fd = syscalls.syscall("memfd_secret", 0)
    except OSError as error:
        raise Unavailable(
            "memfd_secret is not available", str(error),
            "a kernel from 5.14 on (before 6.5 booted with secretmem.enable=1), and no seccomp "
            "filter on it",
        ) from None  # fmt: skip
    try:
        os.ftruncate(fd, PAGE)
        syscalls.munmap(syscalls.mmap(0, PAGE, syscalls.PROT_RW, syscalls.MAP_SHARED, fd), PAGE)
    except OSError as error:
        raise Unavailable(
            "secret memory cannot be mapped", str(error), "CAP_IPC_LOCK or a larger ulimit -l"
        ) from None
    finally:
        os.close(fd)


def _io_uring() -> None:
    try:
        with memory.mapping("private", 1) as page, io_uring.io_uring_instance() as fd:
            io_uring.register(fd, page.addr, PAGE)
            io_uring.unregister(fd)
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


def _disk_file() -> None:
    if why := memory.no_disk(files.file_dir or tempfile.gettempdir()):
        raise Unavailable(
            "no folder on a disk file system", why, "pass --file-dir on ext4, xfs or btrfs"
        )


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
                raise unavailable_call("mincore", error, "2.4") from None


def _vfork() -> None:
    seen = ctypes.create_string_buffer(8)
    try:
        processes.call_in_vfork_child("memset", ctypes.addressof(seen), 7, 4)
    except (LookupError, OSError, processes.ChildError) as error:
        raise Unavailable(
            "a C function cannot be run in a vfork child", str(error), "run natively, with glibc"
        ) from None
    if seen.raw != b"\7\7\7\7\0\0\0\0":
        raise Unavailable("a C function cannot be run in a vfork child", f"memory {seen.raw!r}")


def _forced_write() -> None:
    # proc_mem.force_override=, CONFIG_PROC_MEM_* (6.12) and lockdown may forbid it.
    with memory.mapping("private", 1, prot=syscalls.PROT_READ) as page:
        try:
            syscalls.write_proc_self_mem(page.addr, b"x")
        except OSError as error:
            raise Unavailable(
                "/proc/self/mem does not write to read-only memory", str(error),
                "boot with proc_mem.force_override=always",
            ) from None  # fmt: skip


def _hypothesis() -> None:
    if importlib.util.find_spec("hypothesis") is None:
        raise Unavailable(
            "Hypothesis is not installed", "", "pip install 'hypothesis>=6.100' (group model)"
        )


def _two_cpus() -> None:
    saved = os.sched_getaffinity(0)
    if len(saved) < 2:
        raise Unavailable(
            "a process may use one CPU only", f"CPU {min(saved)}", "two CPUs (taskset, cpuset)"
        )
    try:
        os.sched_setaffinity(0, {max(saved)})
        os.sched_setaffinity(0, saved)
    except OSError as error:
        raise unavailable_call("sched_setaffinity", error, "2.6") from None


PROBES: dict[str, Callable[[], None]] = {
    "lock-calls": _lock_calls,
    "smaps-flags": _smaps_flags,
    "pfn": _pfn,
    "kpageflags": _kpageflags,
    "kpagecount": _kpagecount,
    "mincore": _mincore,
    "two-cpus": _two_cpus,
    "other-user": _other_user,
    "user-namespace": _user_namespace,
    "stub-process": _bare_process,
    "disk-file": _disk_file,
    "map-count": _map_count,
    "stack-growth": _stack_growth,
    "pageout": _pageout,
    "populate": _populate,
    "dontneed-locked": _dontneed_locked,
    "guard": _guard,
    "process-madvise": _process_madvise,
    "process-mrelease": _process_mrelease,
    "remap-file-pages": _remap_file_pages,
    "mseal": _mseal,
    "sysv-shm": _sysv_shm,
    "map-vdso": _map_vdso,
    "hugetlb": _hugetlb,
    "secretmem": _secretmem,
    "io-uring": _io_uring,
    "droppable": _droppable,
    "mglru": _mglru,
    "forced-write": _forced_write,
    "vfork": _vfork,
    "hypothesis": _hypothesis,
}
"""Facility name → its probe, which returns, or raises :class:`Unavailable`."""
