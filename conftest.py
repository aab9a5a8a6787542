# SPDX-License-Identifier: MIT
"""The suite's pytest plugin."""

import sys
from pathlib import Path

# Also under settings that are not ours.
sys.path.insert(0, str(Path(__file__).parent))

from helpers.pytest_plugin import PLUGINS

pytest_plugins = PLUGINS
