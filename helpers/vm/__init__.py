# SPDX-License-Identifier: MIT
"""The suite on another kernel, in QEMU."""
