# SPDX-License-Identifier: MIT
"""tmt's results.yaml."""

from __future__ import annotations

import json
from collections.abc import Iterable

from helpers.report.ktap import unique_ktap_ids
from helpers.report.verdicts import CaseResult, Verdict

# tmt's exit code tells a warn from a pass, ours a known deviation from neither: so info.
_TMT = {
    Verdict.VERIFIED: "pass", Verdict.DEVIATES: "info", Verdict.FAILED: "fail",
    Verdict.BROKEN: "error", Verdict.NOT_VERIFIED: "skip", Verdict.INCONCLUSIVE: "info",
    Verdict.NOT_RUN: "error",
}  # fmt: skip


def tmt(behaviours: Iterable[CaseResult]) -> str:
    """tmt's results.yaml for ``result: custom`` (JSON is YAML): a row a behaviour."""
    behaviours = list(behaviours)
    names = unique_ktap_ids(behaviours)
    rows = [
        {
            "name": "/" + names[b.id].replace(".", "/"),
            "result": _TMT[b.verdict],
            "note": ["not run"] * (b.verdict is Verdict.NOT_RUN) + [b.reason] * bool(b.reason),
            "duration": f"{int(b.duration) // 3600:02}:{int(b.duration) // 60 % 60:02}"
            f":{int(b.duration) % 60:02}",
        }
        for b in behaviours
    ]
    return json.dumps(rows, indent=1) + "\n"
