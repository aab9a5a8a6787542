# SPDX-License-Identifier: MIT
"""Kinds of memory that a mapping can be of."""

from __future__ import annotations

MAPPING_KINDS = (
    "private",
    "shared",
    "memfd-private",
    "memfd-shared",
    "file-private",
    "file-shared",
)
"""Kinds :func:`mapping` makes: anonymous, over a memfd, over a file on disk."""
