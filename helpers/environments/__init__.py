# SPDX-License-Identifier: MIT
"""The suite under other rights, limits and settings of this machine."""
