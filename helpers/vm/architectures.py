# SPDX-License-Identifier: MIT
"""How QEMU is started for each architecture, and what its guests call their serial ports."""

from __future__ import annotations

import platform
from dataclasses import dataclass


@dataclass(frozen=True)
class Arch:
    """How QEMU is started for one architecture, and what its guest calls its serial ports."""

    debian: str
    qemu: str
    package: str
    machine: tuple[str, ...]
    console: str
    results: str
    memory: str
    triplet: str
    loader: str
    extra: tuple[str, ...] = ()
    append: str = ""


ARCHES: dict[str, Arch] = {
    "amd64": Arch(
        debian="amd64",
        qemu="qemu-system-x86_64",
        package="qemu-system-x86",
        machine=("-M", "pc", "-cpu", "max,la57=off"),
        console="ttyS0",
        results="ttyS1",
        memory="1G",
        triplet="x86_64-linux-gnu",
        loader="lib64/ld-linux-x86-64.so.2",
        extra=("-chardev", "file,id=results,path={results}", "-serial", "chardev:results"),
        append="no_timer_check tsc=reliable",
    ),
    "arm64": Arch(
        debian="arm64",
        qemu="qemu-system-aarch64",
        package="qemu-system-arm",
        machine=("-M", "virt,gic-version=3", "-cpu", "cortex-a57"),
        console="ttyAMA0",
        results="ttyS0",
        memory="1G",
        triplet="aarch64-linux-gnu",
        loader="lib/ld-linux-aarch64.so.1",
        extra=(
            "-chardev",
            "file,id=results,path={results}",
            "-device",
            "pci-serial,chardev=results",
        ),
    ),
    "ppc64el": Arch(
        debian="ppc64el",
        qemu="qemu-system-ppc64",
        package="qemu-system-ppc",
        machine=(
            "-M",
            "pseries,cap-cfpc=broken,cap-sbbc=broken,cap-ibs=broken,cap-ccf-assist=off",
            "-cpu",
            "power9",
        ),
        console="hvc0",
        results="hvc1",
        memory="2G",
        triplet="powerpc64le-linux-gnu",
        loader="lib64/ld64.so.2",
        extra=("-chardev", "file,id=results,path={results}", "-serial", "chardev:results"),
    ),
}

HOST = {"x86_64": "amd64", "aarch64": "arm64", "ppc64le": "ppc64el"}.get(platform.machine(), "")
