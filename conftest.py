"""Hands the run to its rooms: the forked runner, options and gating, faults, the report."""

# In order of import, so that pytest can rewrite each one's assertions.
pytest_plugins = (
    "helpers.signals",
    "helpers.pressure.session",
    "helpers.forked",
    "helpers.faults.plugin",
    "helpers.gating",
    "helpers.report.terminal",
    "helpers.report.progress",
    "helpers.report.writing",
    "pytester",
)
