# SPDX-License-Identifier: MIT
"""This computer: what it is, and putting back what a run changed."""
