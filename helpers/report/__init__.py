# SPDX-License-Identifier: MIT
"""Results on disk and on paper."""
