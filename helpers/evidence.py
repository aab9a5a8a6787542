"""What the kernel said of the memory under test, kept for a failure's report.

A report is made after the case's blocks have been left and their memory unmapped, so the
state is taken while the exception passes. Each entry is plain text.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

records: list[str] = []
"""Evidence of this case so far, newest last. A forked case starts with an empty list."""

wanted = True
"""Whether evidence is taken at all: not where nobody will read the report."""

MOST_PAGES = 16


def describe(addr: int, size: int, label: str) -> str:
    """VMA lines and page bits of ``size`` bytes from ``addr``, one page beyond each end.

    At most :data:`MOST_PAGES` pages are listed. Never raises: evidence that cannot be had
    says so.
    """
    from helpers.libc import PAGE
    from helpers.observe import maps, pagemap

    lines = [f"{label} {addr:#x}-{addr + size:#x} ({size // PAGE} pages)"]
    try:
        around = maps.smaps(low=addr - PAGE, high=addr + size + PAGE)
        lines += [
            f"  {v.line}  VmFlags: {' '.join(sorted(v.flags))}  "
            f"Rss {v.field_kb('Rss')} kB  Locked {v.field_kb('Locked')} kB"
            for v in around
        ]
        count = min(size // PAGE, MOST_PAGES)
        lines += [f"  {text}" for text in pagemap.describe(addr, count)]
        if count < size // PAGE:
            lines.append(f"  … {size // PAGE - count} more pages")
    except OSError as error:
        lines.append(f"  not readable: {error}")
    return "\n".join(lines)


@contextmanager
def watching(addr: int, size: int, label: str) -> Iterator[None]:
    """Record the range if an exception passes through the block."""
    try:
        yield
    except Exception:
        if wanted:
            records.append(describe(addr, size, label))
        raise
