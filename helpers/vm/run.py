# SPDX-License-Identifier: MIT
"""One guest from start to end: boot, results, verdict."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import gzip
import io
import os
import shutil
import sys
import tarfile
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

from helpers.vm.apt import PackageCache
from helpers.vm.architectures import Arch
from helpers.vm.config import GuestConfig
from helpers.vm.console import Console
from helpers.vm.errors import VmError
from helpers.vm.guest_exit import BROKEN, Outcome, classify_exit, unwritten
from helpers.vm.kernels import Kernel
from helpers.vm.payload import write_suite
from helpers.vm.precompile import pyc_cache
from helpers.vm.qemu import Guest, choose_accel, qemu_command
from helpers.vm.rootfs import ensure_rootfs

FILES = (
    "exit-code", "console.log", "junit.xml", "dmesg.txt", "kernel.txt", "outcome.json",
    "result.json", "result.ktap", "results.yaml",
)  # fmt: skip
ROOM = 1 << 20
"""Bytes that results and the console's log may need."""


def require_qemu(arch: Arch) -> None:
    """Raise :class:`Problem` if what emulates this architecture is not installed."""
    if not shutil.which(arch.qemu):
        raise VmError(f"{arch.qemu} is not there: apt install {arch.package}", everywhere=True)


def run(kernel: Kernel, config: GuestConfig, source: PackageCache, out: Path) -> Outcome:
    """Boot a kernel, run the suite, bring the results home and judge how the guest ended.

    Raises :class:`Problem` where the guest could not be started.
    """
    require_qemu(kernel.arch)
    base = ensure_rootfs(config.userland, kernel.arch, source) / "base.cpio"
    started = time.monotonic()
    with source.cache.scratch() as scratch:
        initrd, results, errors = scratch / "initrd", scratch / "results.tar", scratch / "qemu.err"
        accel = choose_accel(kernel, config, source)
        source.cache.room(256)
        with initrd.open("wb") as stream:
            for part in (base, kernel.modules):
                if part:
                    with part.open("rb") as handle:
                        shutil.copyfileobj(handle, stream, 1 << 20)
            write_suite(config, kernel, stream, pyc_cache(config.userland, source), accel)
        prepare(out)
        results.touch()
        with (
            Console(out / "console.log", sys.stdout.buffer, started) as console,
            Guest(qemu_command(kernel, config, initrd, results, accel), errors) as guest,
        ):
            late = guest.listen(console, {"init": config.boot_timeout, "end": config.timeout})
            status = guest.process.wait() if not late else None
        outcome = classify_exit(
            kernel.label, console, late, config, errors.read_text(errors="replace"), status
        )
        outcome.seconds = time.monotonic() - started
        outcome.folder = out
        try:
            whole = unpack_results(console, results, out)
        except OSError as error:
            outcome.lose(error)
        else:
            if console.unwritten:
                outcome.lose(console.unwritten)
            elif not whole and outcome.code != BROKEN:
                outcome.verdict += ", but its results were cut off on their way out of the guest"
                outcome.code = BROKEN
    return outcome


@contextlib.contextmanager
def claimed(out: Path) -> Iterator[None]:
    """Hold the folder for results, with room in it, for the block: no other run writes there.

    Raises :class:`Problem`.
    """
    with contextlib.ExitStack() as stack:
        try:
            out.mkdir(parents=True, exist_ok=True)
            folder = os.open(out, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, folder)
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with tempfile.TemporaryFile(dir=out, buffering=0) as probe:
                left = ROOM
                while left:
                    left -= probe.write(bytes(left))
        except BlockingIOError:
            raise VmError(
                f"{out}: another run writes its results there: wait for its end or give another "
                "folder with --out"
            ) from None
        except OSError as error:
            raise VmError(unwritten(out, error)) from None
        yield


def prepare(out: Path) -> None:
    """Make the folder for results, empty of what an older run left. Raises :class:`Problem`."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            (out / name).unlink(missing_ok=True)
    except OSError as error:
        raise VmError(unwritten(out, error)) from None


def unpack_results(console: Console, results: Path, out: Path) -> bool:
    """Unpack what the guest sent; say if all of it came. A piece is better than nothing."""
    with contextlib.ExitStack() as stack:
        try:
            if "inline" in console.said:
                data = base64.b64decode(console.said["inline"].partition(" ")[2])
                archive = stack.enter_context(tarfile.open(fileobj=io.BytesIO(data)))
            else:
                archive = stack.enter_context(tarfile.open(results))
            for member in archive:
                name = Path(member.name)
                if member.isfile() and not name.is_absolute() and ".." not in name.parts:
                    (out / name.parent).mkdir(parents=True, exist_ok=True)
                    content = archive.extractfile(member)
                    if content:
                        (out / name).write_bytes(content.read())
        except (tarfile.TarError, gzip.BadGzipFile, EOFError, ValueError, zlib.error):
            return False
    return True
