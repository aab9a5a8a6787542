# SPDX-License-Identifier: MIT
"""Kernels by name, file or folder."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from helpers.vm.apt import Apt, PackageCache
from helpers.vm.architectures import ARCHES, HOST, Arch
from helpers.vm.cache import LAYOUT
from helpers.vm.errors import VmError, status
from helpers.vm.images import arch_of, bootable, kernel_in_folder, unpack_bzimage
from helpers.vm.modules import MODULES, module_archive

# Kernels that Debian ships, by suite, and their flavours: (architecture, meta package's ending).
SUITES = (
    "bullseye",
    "bookworm",
    "bookworm-backports",
    "trixie",
    "trixie-backports",
    "forky",
    "sid",
)
FLAVOURS: dict[str, tuple[str, str]] = {
    "amd64": ("amd64", "amd64"),
    "cloud-amd64": ("amd64", "cloud-amd64"),
    "rt-amd64": ("amd64", "rt-amd64"),
    "arm64": ("arm64", "arm64"),
    "arm64-16k": ("arm64", "arm64-16k"),
    "cloud-arm64": ("arm64", "cloud-arm64"),
    "ppc64el": ("ppc64el", "powerpc64le"),
    "ppc64el-64k": ("ppc64el", "powerpc64le-64k"),
}
CPU_OF_FLAVOUR = {"arm64-16k": "neoverse-n1"}


@dataclass
class Kernel:
    """A kernel to boot: its image, what it is, and an archive with its modules."""

    label: str
    image: Path
    arch: Arch
    release: str
    modules: Path | None = None
    cpu: str | None = None
    unpacked: Path | None = None


def prepare_kernel(name: str, source: PackageCache, scratch: Path) -> Kernel:
    """Make a kernel ready to boot from a name, a file or a folder.

    ``scratch`` must live as long as the kernel is used. Raises :class:`Problem`.
    """
    if is_name(name):
        return _named(name, source)
    path = Path(name)
    if not path.exists():
        raise VmError(
            f"{name} does not exist: give a path to a kernel or a name such as debian:trixie "
            "(--list shows them)"
        )
    return _from_folder(path, scratch) if path.is_dir() else _from_file(path, scratch)


def word(text: str) -> str:
    """Make a folder's name of a text."""
    return re.sub(r"[^\w.+-]", "_", text)


def _from_file(path: Path, scratch: Path) -> Kernel:
    arch, release = arch_of(path)
    real = path.resolve()
    tree = real.parents[3] if real.match("*/arch/*/boot/*") else real.parent
    told = tree / "include/config/kernel.release"
    if not release and told.is_file():
        release = told.read_text().strip()
    label = word(path.name if release in path.name else f"{path.name}-{release}")
    kernel = Kernel(label, bootable(path, scratch), arch, release)
    bases = (tree / "lib/modules", tree.parent / "lib/modules", Path("/lib/modules"))
    modules = [base / release for base in bases if release and (base / release).is_dir()]
    if release and (tree / "modules.order").exists():  # modules lie where they were built
        modules = [tree]
    configs = (tree / ".config", tree / f"config-{release}", Path(f"/boot/config-{release}"))
    if modules:
        config = next((each for each in configs if each.is_file()), None)
        _add_modules(kernel, modules[0], config, scratch)
    return kernel


def _from_folder(folder: Path, scratch: Path) -> Kernel:
    image, modules, config = kernel_in_folder(folder)
    if modules is None and (folder / "modules.order").exists():
        return _from_file(image, scratch)
    arch, release = arch_of(image)
    release = release or (modules.name if modules else image.name.partition("-")[2])
    kernel = Kernel(word(release or folder.name), bootable(image, scratch), arch, release)
    if modules:
        _add_modules(kernel, modules, config, scratch)
    return kernel


def _add_modules(kernel: Kernel, folder: Path, config: Path | None, scratch: Path) -> None:
    kernel.modules = scratch / "modules.cpio"
    extra = {f"boot/config-{kernel.release}": config.read_bytes()} if config else {}
    module_archive(folder, kernel.release, kernel.modules, extra)


def debian_name(name: str) -> tuple[str, str]:
    """Suite and flavour of a name such as debian:sid/arm64. Raises :class:`Problem`."""
    match = re.fullmatch(r"debian:([a-z-]+)(?:/([a-z0-9-]+))?", name)
    suite, flavour = (match[1], match[2] or HOST or "amd64") if match else ("", "")
    if suite not in SUITES or flavour not in FLAVOURS:
        raise VmError(
            f"{name} is no kernel that we know: debian:SUITE[/FLAVOUR], "
            f"SUITE one of {', '.join(SUITES)}, FLAVOUR one of {', '.join(FLAVOURS)}"
        )
    return suite, flavour


def is_name(name: str) -> bool:
    """Say if this is meant as the name of a distribution's kernel."""
    return re.match(r"[a-z]+:", name) is not None and not os.path.exists(name)


def _named(name: str, source: PackageCache) -> Kernel:
    suite, flavour = debian_name(name)
    debian, _ = FLAVOURS[flavour]
    key = hashlib.sha256(" ".join(MODULES).encode()).hexdigest()[:8]
    kept = source.cache.root / f"kernels-{LAYOUT}-{key}" / f"debian-{suite}-{flavour}"
    with source.cache.lock():
        if source.stale(kept, "facts.json"):
            source.fresh.add(kept)
            _fetch(suite, flavour, source, kept)
    known = json.loads((kept / "facts.json").read_text())
    unpacked = kept / "vmlinux"
    return Kernel(
        f"debian-{suite}-{flavour}",
        kept / "vmlinuz",
        ARCHES[debian],
        known["release"],
        kept / "modules.cpio",
        CPU_OF_FLAVOUR.get(flavour),
        unpacked if unpacked.exists() else None,
    )


def unpack(suite: str, flavour: str, source: PackageCache, scratch: Path) -> dict[str, object]:
    """Unpack a distribution's kernel into ``scratch / "root"``; tell what it is."""
    debian, ending = FLAVOURS[flavour]
    meta = f"linux-image-{ending}"
    status(f"fetching {meta} of {suite} ...")
    source.cache.room(3072)
    apt = Apt(scratch / "apt", suite, debian, source.mirror)
    packages = apt.kernel_packages(meta)
    apt.unpack(packages, scratch / "root")
    return {"packages": packages, "version": apt.field(meta, "Version")}


def _fetch(suite: str, flavour: str, source: PackageCache, kept: Path) -> None:
    with source.cache.scratch() as scratch:
        facts = unpack(suite, flavour, source, scratch)
        made = scratch / "ready"
        made.mkdir()
        image, modules, config = kernel_in_folder(scratch / "root")
        if modules is None:
            raise VmError(f"debian:{suite}/{flavour} has no modules in {facts['packages']}")
        release = modules.name
        plain = bootable(image, scratch)
        shutil.copyfile(plain, made / "vmlinuz")
        unpack_bzimage(plain, made / "vmlinux")
        extra = {f"boot/config-{release}": config.read_bytes()} if config else {}
        module_archive(modules, release, made / "modules.cpio", extra)
        (made / "facts.json").write_text(json.dumps(facts | {"release": release}, indent=1))
        shutil.rmtree(kept, ignore_errors=True)
        kept.parent.mkdir(exist_ok=True)
        made.rename(kept)
