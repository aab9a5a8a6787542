# SPDX-License-Identifier: MIT
"""What the kernel says of the memory under test, kept for a failure's report.

A report is made after the case's blocks have been left and their memory unmapped, so the
state is taken while the exception passes (:data:`helpers.memory.mappings.on_error`), and with
it the calls that led there: what the case's own clean-up calls is not among them.
"""

from __future__ import annotations

from helpers.memory import mappings
from helpers.observe import maps, page_flags
from helpers.syscalls import PAGE, log

captured: list[str] = []
"""State of each region of this case so far, innermost first, as plain text."""
regions: list[tuple[str, int, int]] = []
"""(name, address, bytes) of the ranges in :data:`captured`, by which calls are decoded."""
calls: list[tuple[str, tuple[object, ...], str]] = []
"""The calls made when the exception passed the innermost region."""
enabled = True
"""Whether evidence is taken at all: not where nobody will read the report."""

MOST_PAGES = 16


def reset() -> None:
    """Forget everything: a new case."""
    captured.clear()
    regions.clear()
    calls.clear()


def describe(addr: int, size: int, label: str) -> str:
    """VMA lines and page bits of ``size`` bytes from ``addr``, one page beyond each end.

    At most :data:`MOST_PAGES` pages are listed. Never raises: evidence that cannot be had
    says so.
    """
    lines = [f"{label} {addr:#x}-{addr + size:#x} ({size // PAGE} pages)"]
    try:
        around = maps.smaps(low=addr - PAGE, high=addr + size + PAGE)
        lines += [
            f"  {v.line}  VmFlags: {' '.join(sorted(v.flags))}  "
            f"Rss {v.field_kb('Rss')} kB  Locked {v.field_kb('Locked')} kB"
            for v in around
        ]
        count = min(size // PAGE, MOST_PAGES)
        lines += [f"  {text}" for text in page_flags.describe(addr, count)]
        if count < size // PAGE:
            lines.append(f"  … {size // PAGE - count} more pages")
    except OSError as error:
        lines.append(f"  not readable: {error}")
    return "\n".join(lines)


def capture(addr: int, size: int, label: str) -> None:
    """Keep the state of a range through whose block an exception passes."""
    if not enabled:
        return
    if not captured:
        calls[:] = log.calls
    name = "region" if not regions else f"region{len(regions) + 1}"
    regions.append((name, addr, size))
    captured.append(describe(addr, size, f"{name}: {label}"))


def call_lines() -> list[str]:
    """The calls that led to the failure, decoded and relative to the regions."""
    return log.lines(regions, calls or None)


mappings.on_error.append(capture)
