# SPDX-License-Identifier: MIT
"""pytest hooks, and nothing else."""

# In order of import, so that pytest can rewrite each one's assertions. The last one registered
# is the first one asked.
PLUGINS = (
    "helpers.pytest_plugin.signals",
    "helpers.pytest_plugin.machine_setup",
    "helpers.pytest_plugin.shared_process",
    "helpers.pytest_plugin.runner",
    "helpers.pytest_plugin.fault_injection",
    "helpers.pytest_plugin.recording",
    "helpers.pytest_plugin.options",
    "helpers.pytest_plugin.requirements",
    "helpers.pytest_plugin.fixtures",
    "helpers.pytest_plugin.header",
    "helpers.pytest_plugin.summary",
    "helpers.pytest_plugin.progress",
    "helpers.pytest_plugin.results",
    "helpers.pytest_plugin.start",
)
