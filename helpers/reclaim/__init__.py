# SPDX-License-Identifier: MIT
"""Memory pressure in a cgroup of our own, and swap areas of our own."""
