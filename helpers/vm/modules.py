# SPDX-License-Identifier: MIT
"""The modules of a kernel that a guest wants, as an archive that is unpacked at boot."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from helpers.vm.images import decompress
from helpers.vm.initramfs import Cpio

# Modules worth having in the guest, where the kernel has them as modules; with what they need.
MODULES = (
    "zram", "lzo_rle", "lzo", "lz4", "zstd", "loop", "brd", "null_blk", "ext4", "ext2", "xfs",
    "overlay", "fuse", "crc32c_generic", "crc32c_intel", "crc32c", "virtio_blk", "virtio_pci",
    "virtio_console", "virtio_scsi", "sd_mod", "hwpoison_inject", "udmabuf", "vfio_pci",
    "af_packet", "dax_pmem", "device_dax", "kmem", "nd_pmem", "nd_e820", "ksm_tests",
)  # fmt: skip


@dataclass(frozen=True)
class Module:
    """A module by its own words (.modinfo): what must be loaded before, and its other names."""

    file: str
    data: bytes
    needs: tuple[str, ...]
    aliases: tuple[str, ...]


def _name(text: str) -> str:
    return text.split(".ko")[0].replace("-", "_")


def read(path: Path) -> Module:
    """Read a module, unpacked. Raises :class:`Problem` where nothing here unpacks it."""
    data = path.read_bytes()
    if path.suffix != ".ko":
        data = decompress(data, path.suffix[1:])
    needs: list[str] = []
    aliases: list[str] = []
    for key, value in re.findall(rb"\0(depends|alias|softdep)=([^\0]*)", data):
        words = value.decode("ascii", "replace")
        if key == b"alias":
            aliases.append(words)
        elif key == b"depends":
            needs += filter(None, words.split(","))
        elif words.startswith("pre:"):
            needs += words[4:].split("post:")[0].split()
    file = f"kernel/{path.name.split('.ko')[0]}.ko"
    return Module(file, data, tuple(dict.fromkeys(map(_name, needs))), tuple(aliases))


def choose(folder: Path) -> dict[str, Module]:
    """Read the wanted modules in a folder, and those they need."""
    files: dict[str, Path] = {}
    for path in sorted(folder.rglob("*.ko*")):
        files.setdefault(_name(path.name), path)
    chosen: dict[str, Module] = {}
    todo = list(MODULES)
    while todo:
        name = todo.pop()
        if name in files and name not in chosen:
            chosen[name] = read(files[name])
            todo += chosen[name].needs
    return chosen


def order(name: str, modules: Mapping[str, Module], before: tuple[str, ...] = ()) -> list[str]:
    """Name the modules to load for one, each behind those it needs, itself last."""
    found: list[str] = []
    for need in modules[name].needs:
        if need in modules and need not in before:
            deeper = order(need, modules, (*before, name))
            found += [each for each in deeper if each not in found]
    return [*found, name]


def module_archive(folder: Path, release: str, target: Path, extra: Mapping[str, bytes]) -> None:
    """Write an archive with modules below lib/modules/RELEASE, as modprobe finds them."""
    chosen = choose(folder)
    base = f"usr/lib/modules/{release}"  # /lib is a link in the base archive
    with target.open("wb") as stream, Cpio(stream) as cpio:
        depends = aliases = ""
        for name, module in chosen.items():
            cpio.file(f"{base}/{module.file}", module.data)
            first = [chosen[need].file for need in reversed(order(name, chosen)[:-1])]
            depends += f"{module.file}: {' '.join(first)}\n"
            aliases += "".join(f"alias {alias} {name}\n" for alias in module.aliases)
        cpio.file(f"{base}/modules.dep", depends.encode())
        cpio.file(f"{base}/modules.alias", aliases.encode())
        for name, data in extra.items():
            cpio.file(name, data)
