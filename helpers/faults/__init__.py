# SPDX-License-Identifier: MIT
"""A kernel that misbehaves on demand: a ptrace supervisor changes what a case's calls do."""
