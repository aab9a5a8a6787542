# SPDX-License-Identifier: MIT
"""What a result says of the machine it was measured on."""

from __future__ import annotations

import gzip
import os
import platform
import sys
from importlib import metadata
from pathlib import Path

import psutil

from helpers import syscalls
from helpers.machine import kernel_version
from helpers.observe import status
from helpers.processes import credentials, namespaces, rlimits

CONFIG_FACTS = (
    "CONFIG_MEMCG", "CONFIG_SWAP", "CONFIG_NUMA", "CONFIG_TRANSPARENT_HUGEPAGE", "CONFIG_KSM",
    "CONFIG_HUGETLBFS", "CONFIG_SECRETMEM", "CONFIG_LRU_GEN", "CONFIG_LRU_GEN_ENABLED",
    "CONFIG_USERFAULTFD", "CONFIG_USER_NS", "CONFIG_PROC_PAGE_MONITOR", "CONFIG_COMPACTION",
    "CONFIG_MIGRATION", "CONFIG_ZSWAP", "CONFIG_ZRAM", "CONFIG_MEM_SOFT_DIRTY", "CONFIG_PREEMPT_RT",
)  # fmt: skip
"""Kernel options that decide what can be verified, or how."""


def _text(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace").strip()
    except OSError:
        return ""


def config_facts() -> dict[str, str]:
    """The options of :data:`CONFIG_FACTS` that the kernel's configuration sets; else empty."""
    try:
        text = gzip.decompress(Path("/proc/config.gz").read_bytes()).decode()
    except OSError:
        text = _text(f"/boot/config-{kernel_version.release()}")
    pairs = (line.partition("=")[::2] for line in text.splitlines() if line.startswith("CONFIG_"))
    return {name: value for name, value in pairs if name in CONFIG_FACTS}


def _cpu_model() -> str:
    for line in _text("/proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip().lower() in {"model name", "cpu", "cpu model", "hardware"}:
            return value.strip()
    return platform.processor() or platform.machine()


def _virtualised() -> str:
    for path in ("/sys/class/dmi/id/product_name", "/proc/device-tree/model"):
        if name := _text(path).strip("\0"):
            return name
    flags = _text("/proc/cpuinfo").splitlines()
    return "hypervisor" if any("hypervisor" in f.split() for f in flags) else ""


def _limit(value: int) -> int | None:
    return None if value == rlimits.RLIM_INFINITY else value


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("pytest", "pytest-forked", "pytest-xdist", "psutil"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = ""
    return found


def describe() -> dict[str, object]:
    """Kernel, machine, rights and tools, as plain JSON values. Sizes are bytes."""
    uname = os.uname()
    soft, hard = rlimits.memlock_limit()
    held = credentials.capabilities().effective
    return {
        "kernel": {
            "release": kernel_version.release(),
            "version": uname.version,
            "cmdline": _text("/proc/cmdline"),
            "config": config_facts(),
        },
        "architecture": syscalls.architecture(),
        "page_size": syscalls.PAGE,
        "word_bits": syscalls.WORD_BITS,
        "machine": {
            "node": uname.nodename,
            "cpu": _cpu_model(),
            "cpus": psutil.cpu_count() or 0,
            "memory": psutil.virtual_memory().total,
            "virtual": _virtualised(),
        },
        "rights": {
            "uid": os.geteuid(),
            "effective": f"{held:#x}",
            "capabilities": [n for n in credentials.CAPABILITIES if credentials.has_capability(n)],
            "initial_user_namespace": namespaces.in_initial_user_namespace(),
            "seccomp": status.fields().get("Seccomp", ""),
            "memlock_soft": _limit(soft),
            "memlock_hard": _limit(hard),
        },
        "tools": _versions(),
        "command": sys.argv,
    }
