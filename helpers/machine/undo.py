# SPDX-License-Identifier: MIT
"""How each kind of recorded change is undone."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import stat
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from helpers.machine import block_devices, timeouts
from helpers.machine.records import (
    FORMAT,
    RELEASE_TIMEOUT,
    RUN_NAME,
    boot_id,
    is_running,
    one_at_a_time,
    present_value,
    read_file,
)

_ENVELOPE: dict[str, type] = {"format": int, "boot": str, "kind": str, "by": int}


def read_record(path: Path) -> dict[str, object]:
    """A record of this format with exactly its kind's fields. Raises ValueError or OSError."""
    what = read_file(path)
    if what.get("format") != FORMAT:
        raise ValueError("a record of another version of the suite; left alone")
    kind = what.get("kind")
    if not isinstance(kind, str) or kind not in UNDO_BY_KIND:
        raise ValueError(f"unknown kind {str(kind)[:40]!r}; left alone")
    if {key: type(value) for key, value in what.items()} != _ENVELOPE | UNDO_BY_KIND[kind][0]:
        raise ValueError(f"not the fields of kind {kind}; left alone")
    return what


def undo_record(path: Path) -> None:
    try:
        what = read_record(path)
    except FileNotFoundError:
        return
    # What the kernel keeps ended with the boot; what is on a disk did not.
    if what["boot"] == boot_id() or what["kind"] == "folder":
        UNDO_BY_KIND[str(what["kind"])][1](path, what)
    path.unlink(missing_ok=True)


def _run_of(record: Path) -> str:
    return record.parent.name.removeprefix(".")


def _found(path: str) -> os.stat_result | None:
    """What lies at a path written in full; None if nothing does."""
    if os.path.normpath(path) != path or not os.path.isabs(path):
        raise ValueError(f"{path[:80]!r} is not a path in full; left alone")
    try:
        return os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _filesystems(found: os.stat_result) -> set[str]:
    """Types of the mounted file systems with that device number (mountinfo)."""
    device = f"{os.major(found.st_dev)}:{os.minor(found.st_dev)}"
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return {line.partition(" - ")[2].split()[0] for line in lines if line.split()[2] == device}


def _undo_process(record: Path, what: dict[str, object]) -> None:
    pid, started = int(str(what["pid"])), int(str(what["started"]))
    if pid <= 1 or pid == os.getpid() or not is_running(pid, started):
        return
    fd = os.pidfd_open(pid)
    try:
        if not is_running(pid, started):
            return
        if not _holds(pid, record):
            raise ValueError(f"process {pid} does not hold this record open; left alone")
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(fd, signal.SIGKILL)
    finally:
        os.close(fd)


def _holds(pid: int, path: Path) -> bool:
    wanted = path.stat()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            if os.path.samestat(link.stat(), wanted):
                return True
    return False


def _undo_cgroup(record: Path, what: dict[str, object]) -> None:
    path = Path(str(what["path"]))
    if not re.fullmatch(rf"{_run_of(record)}-\d+-[0-9a-f]{{4}}", path.name):
        raise ValueError(f"{path.name[:80]!r} is not a cgroup of this run; left alone")
    found = _found(str(path))
    if found is None:
        return
    if (
        not stat.S_ISDIR(found.st_mode)
        or found.st_uid != os.geteuid()
        or not _filesystems(found) & {"cgroup", "cgroup2"}
    ):
        raise ValueError(f"{path} is not a cgroup of ours; left alone")
    until = timeouts.until(RELEASE_TIMEOUT)
    while True:
        for folder in [*(p.parent for p in path.glob("**/cgroup.procs"))]:
            _kill_all(folder / "cgroup.procs")
        try:
            for folder in sorted((p.parent for p in path.glob("**/cgroup.procs")), reverse=True):
                folder.rmdir()
            return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.02)


def _kill_all(procs: Path) -> None:
    """SIGKILL to every process of a cgroup, and to no later one of the same number."""
    # 0 stands for a process of a PID namespace that is not seen from here.
    for number in {int(pid) for pid in procs.read_text().split()} - {0, os.getpid()}:
        try:
            fd = os.pidfd_open(number)
        except OSError:
            continue
        try:
            if str(number) in procs.read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(fd, signal.SIGKILL)
        finally:
            os.close(fd)


def sharing_runs(root: Path, control: Path, but: Path | None = None) -> list[str]:
    """What each run's record of enabling memory there says there was before."""
    found = []
    for path in root.glob("*/[0-9]*.json"):
        if path != but and RUN_NAME.fullmatch(path.parent.name):
            with contextlib.suppress(OSError, ValueError):
                what = read_record(path)
                if (what["kind"], what["boot"], what.get("path")) == (
                    "subtree", boot_id(), str(control),
                ):  # fmt: skip
                    found.append(str(what["had"]))
    return found


def _undo_subtree(record: Path, what: dict[str, object]) -> None:
    path = Path(str(what["path"]))
    found = _found(str(path))
    if found is None:
        return
    if (
        path.name != "cgroup.subtree_control"
        or not stat.S_ISREG(found.st_mode)
        or found.st_ino != what["inode"]
        or "cgroup2" not in _filesystems(found)
    ):
        raise ValueError(f"{path} is not the cgroup.subtree_control we changed; left alone")
    with one_at_a_time(record.parent.parent):
        ours = {*str(what["had"]).split(), "memory"}
        if set(path.read_text().split()) == ours and not sharing_runs(
            record.parent.parent, path, record
        ):
            path.write_text("-memory")
        record.unlink(missing_ok=True)


def _undo_swap(record: Path, what: dict[str, object]) -> None:

    path = Path(str(what["path"]))
    found = _found(str(path))
    if path.parent.name != _run_of(record):
        raise ValueError(f"{path} does not carry this run's name; left alone")
    if found is None or not block_devices.is_on(str(path)):
        return
    if not stat.S_ISREG(found.st_mode) or found.st_ino != what["inode"]:
        raise ValueError(f"{path} is not the swap file we made; left alone")
    block_devices.swapoff(str(path))


def _undo_swap_device(record: Path, what: dict[str, object]) -> None:

    device, backing = str(what["device"]), Path(str(what["backing"]))
    if not re.fullmatch(r"/dev/loop\d+", device) or backing.parent.name != _run_of(record):
        raise ValueError(f"{device[:80]!r} is not a loop device of this run; left alone")
    found = _found(str(backing))
    if found is not None and found.st_ino != what["inode"]:
        raise ValueError(f"{backing} is not the file we made; left alone")
    block_devices.release_device(device, backing)


def _undo_zram(record: Path, what: dict[str, object]) -> None:

    name = str(what["name"])
    if not re.fullmatch(r"zram\d+", name):
        raise ValueError(f"{name[:80]!r} is no zram device; left alone")
    label = _run_of(record)[-16:]
    block_devices.release_zram(name, label, int(str(what["inode"])), int(str(what["size"])))


def _undo_folder(record: Path, what: dict[str, object]) -> None:
    path = Path(str(what["path"]))
    if path.name != _run_of(record):
        raise ValueError(f"{path} does not carry this run's name; left alone")
    found = _found(str(path))
    if found is None:
        return
    if not stat.S_ISDIR(found.st_mode):
        raise ValueError(f"{path} is not a folder of a run; left alone")
    if found.st_uid != os.geteuid():
        raise ValueError(f"{path} belongs to somebody else; left alone")
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if not os.path.samestat(os.fstat(fd), found):
            raise ValueError(f"{path} changed while it was looked at; left alone")
        # Nothing but the swap file is ever made there: no tree is removed on a record's word.
        if others := set(os.listdir(fd)) - {"swap"}:
            raise ValueError(f"{path} holds {min(others)[:80]!r}, which is not ours; left alone")
        with contextlib.suppress(FileNotFoundError):
            os.unlink("swap", dir_fd=fd)
    finally:
        os.close(fd)
    path.rmdir()


SETTINGS = re.compile(
    r"/proc/sys/vm/[a-z_]+"
    r"|/proc/sys/kernel/(core_pattern|numa_balancing|randomize_va_space)"
    r"|/proc/sys/kernel/perf_event_(mlock_kb|paranoid)"
    r"|/proc/sys/user/max_user_namespaces"
    r"|/sys/kernel/debug/(failslab|fail_page_alloc)/ignore-gfp-wait"
    r"|/sys/kernel/mm/(lru_gen|ksm|transparent_hugepage)/\w+"
    r"|/sys/kernel/mm/transparent_hugepage/hugepages-\d+kB/enabled"
    r"|/sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs"
)


def _undo_setting(record: Path, what: dict[str, object]) -> None:
    path, value = str(what["path"]), str(what["value"])
    if not SETTINGS.fullmatch(path) or not re.fullmatch(r"[\w.|/%@ -]{1,128}", value):
        raise ValueError(f"{path[:80]!r} is not a setting we change; left alone")
    found = _found(path)
    if found is None:
        return
    if not stat.S_ISREG(found.st_mode) or not _filesystems(found) & {"debugfs", "proc", "sysfs"}:
        raise ValueError(f"{path} is not a setting; left alone")
    # What somebody else has set since is theirs.
    if _is_what_we_wrote(path, str(what["wrote"]), value):
        Path(path).write_text(value)


def _is_what_we_wrote(path: str, wrote: str, before: str) -> bool:
    now = present_value(path)
    if path.endswith("/lru_gen/enabled") and wrote in {"y", "n"}:  # shows which of its parts are on
        return (int(now, 16) != 0) == (wrote == "y")
    if path.endswith("/nr_hugepages"):  # the kernel does as much of it as it can
        ends = sorted((int(wrote), int(before)))
        return ends[0] <= int(now) <= ends[1]
    return now == wrote


BLOCK = re.compile(r"/sys/devices/system/memory/memory\d+/state")


def _undo_memory_block(record: Path, what: dict[str, object]) -> None:
    path = str(what["path"])
    if not BLOCK.fullmatch(path):
        raise ValueError(f"{path[:80]!r} is no block of memory; left alone")
    found = _found(path)
    if found is None or Path(path).read_text().strip() != "offline":
        return
    if found.st_ino != what["inode"] or "sysfs" not in _filesystems(found):
        raise ValueError(f"{path} is not the block we took; left alone")
    Path(path).write_text("online_movable")


def _undo_module(record: Path, what: dict[str, object]) -> None:
    if what["name"] != "zram":
        raise ValueError(f"{str(what['name'])[:80]!r} is not a module we load; left alone")
    if not list(Path("/sys/block").glob("zram*")):  # else somebody has a use for it by now
        subprocess.run(["modprobe", "-r", "zram"], check=False, capture_output=True)


UNPOISON = Path("/sys/kernel/debug/hwpoison/unpoison-pfn")


def _undo_poisoned_frame(record: Path, what: dict[str, object]) -> None:
    frame = int(str(what["pfn"]))
    if frame > 0 and _is_poisoned(frame):  # nobody else poisons: a frame is taken for good
        UNPOISON.write_text(f"{frame:#x}")
        if _is_poisoned(frame):
            raise ValueError(f"page frame {frame:#x} is in use still; left poisoned")


def _is_poisoned(frame: int) -> bool:
    with Path("/proc/kpageflags").open("rb", 0) as file:
        (word,) = struct.unpack("=Q", os.pread(file.fileno(), 8, frame * 8))
    return bool(word >> 19 & 1)  # KPF_HWPOISON


Action = Callable[[Path, dict[str, object]], None]
UNDO_BY_KIND: dict[str, tuple[dict[str, type], Action]] = {
    "process": ({"pid": int, "started": int}, _undo_process),
    "cgroup": ({"path": str}, _undo_cgroup),
    "subtree": ({"path": str, "inode": int, "had": str}, _undo_subtree),
    "swap": ({"path": str, "inode": int}, _undo_swap),
    "swap-device": ({"device": str, "backing": str, "inode": int}, _undo_swap_device),
    "zram": ({"name": str, "inode": int, "size": int}, _undo_zram),
    "folder": ({"path": str}, _undo_folder),
    "setting": ({"path": str, "value": str, "wrote": str}, _undo_setting),
    "memory-block": ({"path": str, "inode": int}, _undo_memory_block),
    "module": ({"name": str}, _undo_module),
    "poisoned-frame": ({"pfn": int}, _undo_poisoned_frame),
}
"""Kind of record → its fields, and how it is undone, which proves first that the thing is ours."""
