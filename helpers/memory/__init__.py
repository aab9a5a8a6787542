# SPDX-License-Identifier: MIT
"""Memory that a test locks: mappings of each kind, ranges of pages, ways to lock them."""

from helpers.memory.files import DISKS, find_file_dir, memfd, no_disk, scratch_file, write_file
from helpers.memory.kinds import MAPPING_KINDS
from helpers.memory.mappings import adopt_mapping, mapping, reserve
from helpers.memory.region import Region

__all__ = [
    "DISKS",
    "MAPPING_KINDS",
    "Region",
    "adopt_mapping",
    "find_file_dir",
    "mapping",
    "memfd",
    "no_disk",
    "reserve",
    "scratch_file",
    "write_file",
]
