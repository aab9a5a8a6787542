# SPDX-License-Identifier: MIT
"""What the kernel says: one module a file or call of the kernel. Nothing here asserts."""
