# SPDX-License-Identifier: MIT
"""What a case needs of the machine, and what excuses it."""
