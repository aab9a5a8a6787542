# SPDX-License-Identifier: MIT
"""A guest from outside: the line that starts QEMU, and the process that must not outlive us."""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from helpers.machine import timeouts
from helpers.vm.apt import PackageCache
from helpers.vm.architectures import HOST
from helpers.vm.config import GuestConfig, parameters, parse_size
from helpers.vm.console import Console
from helpers.vm.errors import VmError
from helpers.vm.initramfs import Cpio
from helpers.vm.kernels import Kernel
from helpers.vm.rootfs import compiler_root


def qemu_command(
    kernel: Kernel, config: GuestConfig, initrd: Path, results: Path, accel: str
) -> list[str]:
    """Write the line that starts QEMU."""
    arch = kernel.arch
    memory = parse_size(config.memory or arch.memory)
    machine = list(arch.machine)
    if kernel.cpu:
        machine[-1] = kernel.cpu
    if accel == "kvm":
        machine[-1] = "host"
    command = [arch.qemu, *machine, "-accel", accel, "-smp", str(config.cpus), "-m", f"{memory}M"]
    if config.numa:
        half = memory // 2 // 256 * 256 if memory >= 512 else memory // 2
        split = max(1, config.cpus // 2)
        for node, size in enumerate((memory - half, half)):
            cpus = (0, split - 1) if node == 0 else (split, config.cpus - 1)
            which = f",cpus={cpus[0]}-{cpus[1]}" if cpus[0] <= cpus[1] else ""
            command += [
                "-object",
                f"memory-backend-ram,id=ram{node},size={size}M",
                "-numa",
                f"node,nodeid={node},memdev=ram{node}{which}",
            ]
    append = f"console={arch.console} quiet rdinit=/init panic=-1 {arch.append}"
    return [
        *command,
        "-display", "none", "-no-reboot", "-nodefaults", "-serial", "stdio",
        *(part.format(results=results) for part in arch.extra),
        "-kernel", str(kernel.unpacked or kernel.image), "-initrd", str(initrd),
        "-append", f"{append} {parameters(config)}",
    ]  # fmt: skip


class Guest:
    """A running QEMU, or what starts one, that does not outlive this program."""

    def __init__(
        self, command: Sequence[str], errors: Path | None = None, path: str | None = None
    ) -> None:
        """Start it; its errors go to a file, or to the console, and ``path`` is its PATH."""
        if shutil.which("setpriv"):  # dies with us even if we are killed
            command = ["setpriv", "--pdeathsig", "KILL", *command]
        with contextlib.ExitStack() as stack:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stack.enter_context(errors.open("wb")) if errors else subprocess.STDOUT,
                start_new_session=True,
                env=os.environ | {"PATH": path or os.environ.get("PATH", os.defpath)},
            )

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()

    def listen(self, console: Console, deadlines: Mapping[str, float], until: str = "") -> str:
        """Read the console until the guest ends (empty answer) or a deadline passes (its name).

        Deadlines are named after the mark that must have come by then.
        """
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while not until or until not in console.marks:
                ahead = [(at, name) for name, at in deadlines.items() if name not in console.marks]
                last = (console.marks.get("end", 0.0) + 20, "exit")
                at, name = min(ahead, key=lambda each: each[0], default=last)
                left = console.started + at - time.monotonic()
                if left <= 0:
                    return name
                if selector.select(left):
                    data = os.read(self.process.stdout.fileno(), 65536)
                    if not data:
                        return ""
                    console.feed(data)
        return ""


TRIAL = b"#!/bin/busybox sh\nprintf '\\033_vm:init\\033\\\\\\n'\n/bin/busybox sleep 5\n"
TRIAL_SECONDS = 20


def choose_accel(kernel: Kernel, config: GuestConfig, source: PackageCache) -> str:
    """Say kvm where a trial boot shows that it works (a device node proves nothing), else tcg.

    The answer is kept until the host boots again. Raises :class:`Problem` where KVM is asked for
    and cannot be had.
    """
    usable = kernel.arch.debian == HOST and os.access("/dev/kvm", os.R_OK | os.W_OK)
    if config.accel == "kvm" and not usable:
        raise VmError(
            "--accel kvm: /dev/kvm cannot be opened or is for another architecture; use --accel tcg"
        )
    if config.accel != "auto" or not usable:
        return "tcg" if config.accel == "auto" else config.accel
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    kept = source.cache.root / "kvm"
    known = kept.read_text().split() if kept.exists() else []
    if known[:1] == [boot]:
        return known[1]
    with source.cache.scratch() as scratch:
        initrd = scratch / "initrd"
        with initrd.open("wb") as stream, Cpio(stream) as cpio:
            cpio.folder("dev")
            cpio.device("dev/console", 5, 1)
            cpio.copy(compiler_root(config.userland, source) / "usr/bin/busybox", "bin/busybox")
            cpio.file("init", TRIAL, 0o755)
        command = qemu_command(kernel, config, initrd, scratch / "results", "kvm")
        with (
            open(os.devnull, "wb") as nowhere,
            Console(scratch / "console.log", nowhere) as console,
            Guest(command, scratch / "errors") as guest,
        ):
            guest.listen(console, {"init": timeouts.scaled(TRIAL_SECONDS)}, until="init")
    answer = "kvm" if "init" in console.marks else "tcg"
    kept.write_text(f"{boot} {answer}\n")
    return answer
