# SPDX-License-Identifier: MIT
"""A swap area of our own: a file where the file system allows it, else a loop device or zram."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from helpers import syscalls
from helpers.machine.block_devices import (
    _LOOP_CTL_GET_FREE,
    _LOOP_SET_FD,
    _LOOP_SET_STATUS64,
    _loop_config,
    header,
    make_file,
    swapon,
)
from helpers.machine.journal import ChangeJournal
from helpers.syscalls import PAGE


@dataclass(frozen=True)
class Area:
    """A swap area that is on. ``ours``: made by this run, so its blocks may be read."""

    path: str
    size: int
    how: str
    ours: bool = True
    instead: tuple[str, ...] = ()
    """Why the ways tried before this one did not serve."""


class NoSwap(OSError):
    """No swap area can be made here; the text says why each way failed."""


def _own_folder(run: ChangeJournal, directory: Path, stack: ExitStack) -> Path:
    folder = directory.resolve() / run.name  # as the kernel names it
    stack.enter_context(run.change("folder", path=str(folder)))
    folder.mkdir(mode=0o700)
    return folder


def _as_file(run: ChangeJournal, directory: Path, size: int, stack: ExitStack) -> Area:
    folder = _own_folder(run, directory, stack)
    path = folder / "swap"
    make_file(path, size)
    stack.enter_context(run.change("swap", path=str(path), inode=path.stat().st_ino))
    swapon(str(path))
    return Area(str(path), size, f"file on {syscalls.filesystem_type(directory)}")


def _as_loop(
    run: ChangeJournal,
    directory: Path,
    size: int,
    stack: ExitStack,
    use: Callable[[str], object] = swapon,
) -> Area:
    folder = _own_folder(run, directory, stack)
    backing = folder / "swap"
    make_file(backing, size)
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        number = fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
    finally:
        os.close(control)
    device = f"/dev/loop{number}"
    inode = backing.stat().st_ino
    stack.enter_context(run.change("swap-device", device=device, backing=str(backing), inode=inode))
    fd, file = os.open(device, os.O_RDWR | os.O_CLOEXEC), os.open(backing, os.O_RDWR)
    try:
        fcntl.ioctl(fd, _LOOP_SET_FD, file)
        fcntl.ioctl(fd, _LOOP_SET_STATUS64, _loop_config(backing))
        use(device)
    finally:
        os.close(fd)
        os.close(file)
    return Area(device, size, f"loop device over a file on {syscalls.filesystem_type(directory)}")


def _as_zram(run: ChangeJournal, directory: Path, size: int, stack: ExitStack) -> Area:
    control = Path("/sys/class/zram-control/hot_add")
    if not control.exists() and shutil.which("modprobe"):
        stack.enter_context(run.change("module", name="zram"))
        subprocess.run(["modprobe", "zram", "num_devices=0"], check=False, capture_output=True)
    # Reading hot_add makes a device, on a read-only /sys too (a container's): only what can be
    # removed again is made.
    if not os.access(control.with_name("hot_remove"), os.W_OK):
        raise OSError(errno.EROFS, "/sys/class/zram-control/hot_remove cannot be written")
    name = f"zram{control.read_text().strip()}"
    label = run.name[-16:]
    block = Path("/sys/block") / name
    stack.enter_context(run.change("zram", name=name, inode=block.stat().st_ino, size=size))
    (block / "disksize").write_text(str(size))
    device = f"/dev/{name}"
    if not stat.S_ISBLK(os.stat(device).st_mode):
        raise OSError(errno.ENOTBLK, f"{device} is no block device")
    fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.pwrite(fd, header(size // PAGE, label), 0)
        os.fsync(fd)
    finally:
        os.close(fd)
    swapon(device)
    return Area(device, size, "zram")


@contextmanager
def block_device(
    run: ChangeJournal, size: int, use: Callable[[str], object], directory: str = "/var/tmp"
) -> Iterator[Area]:
    """A loop device of our own for the block, swapped to as ``use(device)`` does. OSError."""
    with ExitStack() as stack:
        yield _as_loop(run, Path(directory), size, stack, use)


@contextmanager
def area(run: ChangeJournal, size: int, directory: str | None = None) -> Iterator[Area]:
    """A swap area of our own of ``size`` bytes for the block.

    A file in ``directory`` (default: /var/tmp, then the temporary folder), else a loop device over
    such a file, else zram. Raises :class:`NoSwap` with each reason.
    """
    places = [Path(directory)] if directory else [Path("/var/tmp"), Path(tempfile.gettempdir())]
    reasons: list[str] = []
    for make in (_as_file, _as_loop, _as_zram):
        for place in places:
            stack = ExitStack()
            try:
                made = make(run, place, size, stack)
            except OSError as error:
                stack.close()
                kind = syscalls.filesystem_type(place) if place.is_dir() else "not there"
                way = make.__name__.removeprefix("_as_")
                reason = f"{way} in {place} ({kind}): {error.strerror or error}"
                if reason not in reasons:
                    reasons.append(reason)
                continue
            with stack:
                yield replace(made, instead=tuple(reasons))
            return
    raise NoSwap(0, "; ".join(reasons))


def occurrences(path: str, needles: list[bytes], chunk: int = 1 << 20) -> list[int]:
    """How often each needle stands in the blocks of a swap area.

    Read with O_DIRECT: swap-out writes to the blocks underneath a file, and its page cache
    never learns of it (a buffered read finds nothing, for ever). Needles must not span pages.
    """
    counts = [0] * len(needles)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    addr = syscalls.mmap(0, chunk)
    try:
        buffer = (ctypes.c_char * chunk).from_address(addr)
        offset = 0
        while got := os.preadv(fd, [buffer], offset):
            data = ctypes.string_at(addr, got)
            for index, needle in enumerate(needles):
                counts[index] += data.count(needle)
            offset += got
    finally:
        os.close(fd)
        syscalls.munmap(addr, chunk)
    return counts
