# SPDX-License-Identifier: MIT
"""A case as a C program: its system calls and what it looked at are recorded and written down."""
