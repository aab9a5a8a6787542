# SPDX-License-Identifier: MIT
"""Where what a case cites can be read: manual pages, kernel documents and files, commits."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable

_TREE = "https://git.kernel.org/pub/scm/linux/kernel/git/torvalds/linux.git/tree/"
_FOLDERS = {
    "unevictable-lru": "mm", "process_addrs": "mm", "overcommit-accounting": "mm",
    "hugetlbpage": "admin-guide/mm", "transhuge": "admin-guide/mm", "ksm": "admin-guide/mm",
    "multigen_lru": "admin-guide/mm", "memory-hotplug": "admin-guide/mm",
    "cgroup-v2": "admin-guide", "cgroup-v1/memory": "admin-guide", "sysctl/vm": "admin-guide",
}  # fmt: skip
"""Below Documentation/, of documents that are cited by their name alone."""
_CITED = re.compile(
    r"""
      (?P<man> \b[a-z_]\w*\([1-8]\) )
    | (?P<document> (?:Documentation/)? [\w/-]+\.rst\b )
    | (?P<file> \b(?:arch|drivers|fs|include|io_uring|ipc|kernel|lib|mm|net|security|tools)
        /[\w/.-]+\.[chS]\b )
    | (?P<commit> \b(?=[0-9a-f]*\d)[0-9a-f]{12,40}\b )
    | (?P<cve> \bCVE-\d{4}-\d{4,}\b )
    | (?P<posix> \bPOSIX\ [a-z_]+\b (?:\(\))? )
    | (?P<ltp> \bLTP\ [a-z_]+\d*\d\d\b )
    | (?P<gvisor> \bgVisor\b )
    """,
    re.VERBOSE,
)


def _man(cited: str) -> str:
    name, section = cited[:-3], cited[-2]
    return f"https://man7.org/linux/man-pages/man{section}/{name}.{section}.html"


def _document(cited: str) -> str:
    path = cited.removesuffix(".rst")
    if path.startswith("Documentation/"):
        return f"https://docs.kernel.org/{path.removeprefix('Documentation/')}.html"
    folder = _FOLDERS.get(path)
    return f"https://docs.kernel.org/{folder}/{path}.html" if folder else ""


def _posix(cited: str) -> str:
    name = cited.removesuffix("()").rpartition(" ")[2]
    return f"https://pubs.opengroup.org/onlinepubs/9799919799/functions/{name}.html"


def _ltp(cited: str) -> str:
    folder = cited.removeprefix("LTP ")[:-2]
    tree = "https://github.com/linux-test-project/ltp/tree/master/testcases/kernel/syscalls"
    return f"{tree}/{folder}"


_PLACES: dict[str, Callable[[str], str]] = {
    "man": _man,
    "document": _document,
    "file": lambda cited: _TREE + cited,
    "commit": lambda cited: f"https://git.kernel.org/linus/{cited}",
    "cve": lambda cited: f"https://www.cve.org/CVERecord?id={cited}",
    "posix": _posix,
    "ltp": _ltp,
    "gvisor": lambda cited: "https://github.com/google/gvisor/tree/master/test/syscalls/linux",
}


@functools.lru_cache(maxsize=4096)
def linked(text: str) -> tuple[tuple[str, str], ...]:
    """The text in pieces, each with the address of what it cites, or without one."""
    pieces, end = [], 0
    for found in _CITED.finditer(text):
        address = _PLACES[found.lastgroup or ""](found[0])
        if address:
            pieces += [(text[end : found.start()], ""), (found[0], address)]
            end = found.end()
    return tuple(piece for piece in [*pieces, (text[end:], "")] if piece[0])
