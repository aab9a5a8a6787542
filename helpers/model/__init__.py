# SPDX-License-Identifier: MIT
"""An address space by the manual, compared with the kernel call by call."""
