# SPDX-License-Identifier: MIT
"""A guest by virtme-ng, on the files of this host: for kernel developers who want their own."""

from __future__ import annotations

import dataclasses
import os
import shlex
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from helpers.machine import timeouts
from helpers.vm.apt import PackageCache
from helpers.vm.architectures import ARCHES, HOST
from helpers.vm.cache import LAYOUT
from helpers.vm.config import GuestConfig, parameters, parse_size
from helpers.vm.console import Console
from helpers.vm.errors import VmError
from helpers.vm.guest_exit import Outcome, classify_exit
from helpers.vm.images import arch_of, kernel_in_folder
from helpers.vm.kernels import FLAVOURS, debian_name, is_name, unpack, word
from helpers.vm.payload import SWAP_SIZE, multiplier, thorough_options
from helpers.vm.qemu import Guest
from helpers.vm.rootfs import INSIDE
from helpers.vm.run import prepare

FILES = "/run/memlock-files"
"""Where the guest mounts a disk: a folder of its own, for /var/tmp may hold the results."""


@dataclass(frozen=True)
class VirtmeKernel:
    """An image, and the folder where virtme-ng finds its modules."""

    label: str
    image: Path
    release: str


def _path() -> str:
    """Where programs are looked for: beside this Python too; vng itself looks for virtme-run."""
    return f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}"


def vng() -> str:
    """Find virtme-ng. Raises :class:`Problem`."""
    found = shutil.which("vng", path=_path())
    if not found:
        raise VmError(
            "vng is not there: pipx install virtme-ng (1.42 or newer), tox run -e vm-virtme, "
            "or leave --virtme out"
        )
    return found


def tree(name: str, source: PackageCache) -> VirtmeKernel:
    """Make a kernel of this host's architecture ready for virtme-ng, with all its modules.

    Raises :class:`Problem`.
    """
    vng()
    if not is_name(name):
        return _tree_at(Path(name))
    suite, flavour = debian_name(name)
    if FLAVOURS[flavour][0] != HOST:
        raise VmError(f"{name}: --virtme runs this host's programs, so it wants a {HOST} kernel")
    kept = source.cache.root / f"trees-{LAYOUT}" / f"debian-{suite}-{flavour}"
    with source.cache.lock():
        if source.stale(kept, "."):
            source.fresh.add(kept)
            with source.cache.scratch() as scratch:
                unpack(suite, flavour, source, scratch)
                shutil.rmtree(kept, ignore_errors=True)
                kept.parent.mkdir(exist_ok=True)
                (scratch / "root").rename(kept)
    return dataclasses.replace(_tree_at(kept), label=kept.name)


def _tree_at(path: Path) -> VirtmeKernel:
    if not path.exists():
        raise VmError(
            f"{path} does not exist: give a path to a kernel or a name such as debian:trixie"
        )
    image, modules, _ = kernel_in_folder(path) if path.is_dir() else (path, None, None)
    arch, release = arch_of(image)
    if arch.debian != HOST:
        raise VmError(f"{image}: --virtme runs this host's programs, so it wants a {HOST} kernel")
    if modules and not list(modules.rglob("9pnet_virtio.ko*")) and not _built_in(modules, "9p"):
        raise VmError(
            f"{image} has no 9p (CONFIG_9P_FS, CONFIG_NET_9P_VIRTIO): take a generic kernel, or "
            "leave --virtme out"
        )
    return VirtmeKernel(word(release or image.name), image.resolve(), release)


def _built_in(modules: Path, name: str) -> bool:
    builtin = modules / "modules.builtin"
    return builtin.is_file() and f"/{name}.ko" in builtin.read_text()


def run(kernel: VirtmeKernel, config: GuestConfig, out: Path) -> Outcome:
    """Boot a kernel on this host's files, run the suite and judge how the guest ended."""
    started = time.monotonic()
    out = out.resolve()
    prepare(out)
    with (
        tempfile.TemporaryDirectory(dir=out, prefix=".vm-") as scratch,
        Console(out / "console.log", sys.stdout.buffer, started) as console,
        Guest(
            command(kernel, config, out, script(config, out, Path(scratch))), path=_path()
        ) as guest,
    ):
        late = guest.listen(console, {"init": config.boot_timeout, "end": config.timeout})
        status = guest.process.wait() if not late else None
    said = console.lines(1)
    outcome = classify_exit(kernel.label, console, late, config, said[0] if said else "", status)
    outcome.seconds = time.monotonic() - started
    outcome.folder = out
    if console.unwritten:
        outcome.lose(console.unwritten)
    return outcome


def script(config: GuestConfig, out: Path, folder: Path) -> Path:
    """Write what the guest shall run; a file, for the kernel's command line is short."""
    settings: dict[str, object] = {
        "VM_SWAP": config.swap,
        "VM_SWAP_SIZE": SWAP_SIZE,
        "VM_DISK": config.disk,
        "VM_FILES": FILES,
        "VM_HUGEPAGES": "" if config.hugepages is None else config.hugepages,
        "VM_INSIDE": INSIDE,
        "VM_SUITE": config.suite,
        "VM_RESULTS": out,
    }
    lines = [f"{name}={shlex.quote(str(value))}" for name, value in settings.items()]
    lines.append(f"export CI=1 PYTHONDONTWRITEBYTECODE=1 PYTHONPATH={shlex.quote(str(INSIDE))}")
    if not sys.stdout.isatty():  # the guest's console is a terminal, what reads it may not be
        lines.append("export NO_COLOR=1")
    lines.append(f"export {timeouts.VARIABLE}={multiplier(config.accel)}")
    settings_file = folder / "config"
    settings_file.write_text("\n".join(lines) + "\n")
    pytest = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "memlock_guest"]
    pytest += [*thorough_options(str(out), FILES), *config.pytest]
    written = folder / "command"
    written.write_text(
        f"exec sh {shlex.join([str(INSIDE / 'virtme'), str(settings_file), *pytest])}\n"
    )
    return written


def command(kernel: VirtmeKernel, config: GuestConfig, out: Path, script: Path) -> list[str]:
    """Write the line that starts virtme-ng."""
    memory = parse_size(config.memory or ARCHES[HOST].memory)
    line = [vng(), "-v", "-r", str(kernel.image), "--user", "root", "--force-9p"]
    if config.accel != "kvm":
        line.append("--disable-kvm")
    line += ["--cpus", str(config.cpus), "--memory", f"{memory}M", "--rwdir", str(out)]
    if config.numa:
        line += ["--numa", f"{memory // 2}M,cpus=0", "--numa", f"{memory // 2}M"]
    return [*line, "--append", parameters(config), "--exec", f"sh {script}"]
