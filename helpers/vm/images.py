# SPDX-License-Identifier: MIT
"""Kernel images: what they are, by their headers, and the folders that hold them."""

from __future__ import annotations

import contextlib
import gzip
import lzma
import shutil
import struct
import subprocess
from pathlib import Path

from helpers.vm.architectures import ARCHES, Arch
from helpers.vm.errors import VmError


def arch_of(image: Path) -> tuple[Arch, str]:
    """Tell architecture and release of a kernel image by its header; refuse what is no kernel."""
    try:
        with image.open("rb") as handle:
            head = handle.read(0x10000)
    except OSError as error:
        raise VmError(f"{image} cannot be read ({error.strerror})") from error
    if head[:2] == b"\x1f\x8b":
        with contextlib.suppress(OSError, EOFError), gzip.open(image) as unpacked:
            head = unpacked.read(0x10000)
    if head[0x202:0x206] == b"HdrS":
        offset = struct.unpack_from("<H", head, 0x20E)[0] + 0x200
        release = (
            head[offset : offset + 200].split(b"\0")[0].split(b" ")[0].decode("ascii", "replace")
        )
        return ARCHES["amd64"], release
    if head[0x38:0x3C] == b"ARM\x64" or (head[:2] == b"MZ" and head[4:8] == b"zimg"):
        return ARCHES["arm64"], ""
    if head[:4] == b"\x7fELF":
        machine = struct.unpack_from("<H" if head[5] == 1 else ">H", head, 18)[0]
        if machine == 21:
            return ARCHES["ppc64el"], ""
        raise VmError(
            f"{image} is an ELF file and no bootable image: "
            "give arch/x86/boot/bzImage instead of vmlinux"
        )
    raise VmError(
        f"{image} is no kernel: give a vmlinuz or bzImage, a build tree, a folder with an unpacked "
        "kernel package, or a name such as debian:trixie"
    )


def bootable(image: Path, scratch: Path) -> Path:
    """Unwrap an EFI zboot image, which QEMU cannot load by itself; leave all others as they are."""
    with image.open("rb") as handle:
        head = handle.read(64)
        if not (head[:2] == b"MZ" and head[4:8] == b"zimg"):
            return image
        offset, size = struct.unpack_from("<II", head, 8)
        method = head[24:56].split(b"\0")[0].decode()
        handle.seek(offset)
        payload = handle.read(size)
    target = scratch / "Image"
    target.write_bytes(decompress(payload, method))
    return target


def unpack_bzimage(image: Path, target: Path) -> None:
    """Write the vmlinux inside an xz-packed bzImage that can be started without its wrapping.

    Emulation spends three seconds on unpacking it at every boot; QEMU starts the inner one by
    its PVH note.
    """
    data = image.read_bytes()
    if data[0x202:0x206] != b"HdrS":
        return
    offset, size = struct.unpack_from("<II", data, 0x248)
    payload = data[(data[0x1F1] + 1) * 512 + offset :][:size]
    if payload[:6] == b"\xfd7zXZ\0":
        inner = lzma.LZMADecompressor().decompress(payload)
        if inner[:4] == b"\x7fELF" and b"\4\0\0\0\x08\0\0\0\x12\0\0\0Xen\0" in inner:
            target.write_bytes(inner)


def decompress(data: bytes, method: str) -> bytes:
    """Decompress what a kernel or module is packed with."""
    if method in ("gz", "gzip"):
        return gzip.decompress(data)
    if method in ("xz", "lzma"):
        return lzma.decompress(data)
    tool = {"zst": "zstd", "zstd": "zstd", "zstd22": "zstd", "lz4": "lz4"}.get(method)
    if tool is None or not shutil.which(tool):
        needed = f"apt install {tool}" if tool else "give it unpacked"
        raise VmError(f"the kernel's files are packed with {method}: {needed}")
    return subprocess.run([tool, "-dc"], input=data, capture_output=True, check=True).stdout


IMAGES = (
    ("boot/vmlinu[xz]*", "usr/lib/modules/*/vmlinuz", "lib/modules/*/vmlinuz"),  # a package
    ("arch/*/boot/bzImage", "arch/*/boot/Image"),  # a build tree
    ("vmlinu[xz]*", "bzImage*", "Image*"),
)
"""Where images lie in a folder; the first kind that is there counts."""


def kernel_in_folder(folder: Path) -> tuple[Path, Path | None, Path | None]:
    """Find image, module folder and configuration in an unpacked kernel package or a build tree.

    Raises :class:`Problem` if there is no image, or more than one.
    """
    images: list[Path] = []
    for patterns in IMAGES:
        images = images or sorted(path for each in patterns for path in folder.glob(each))
    if not images:
        raise VmError(
            f"{folder} has no kernel: looked for {', '.join(each[0] for each in IMAGES)} and such"
        )
    if len({image.resolve() for image in images}) > 1:
        several = ", ".join(str(image) for image in images[:3])
        raise VmError(f"{folder} has several kernels: name one of {several}")
    installed = [*folder.glob("lib/modules/*"), *folder.glob("usr/lib/modules/*")]
    modules = sorted(path for path in installed if any(path.rglob("*.ko*")))
    configs = [
        path
        for each in ("boot/config-*", "usr/lib/modules/*/config", ".config")
        for path in sorted(folder.glob(each))
    ]
    return images[0], modules[0] if modules else None, configs[0] if configs else None
