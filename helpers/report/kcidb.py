# SPDX-License-Identifier: MIT
"""A result for KCIDB, the kernel's database of test results (docs.kernelci.org/kcidb).

A known deviation is a failed test of which an incident of a known issue says that it is known.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Any

from helpers.report.files import InvalidResult
from helpers.report.ktap import ktap_id, printable, unique_ktap_ids
from helpers.report.result import Result
from helpers.report.verdicts import CaseResult, Verdict

ORIGIN = "memlock_tests"
_STATUS = {
    Verdict.VERIFIED: "PASS", Verdict.DEVIATES: "FAIL", Verdict.FAILED: "FAIL",
    Verdict.BROKEN: "ERROR", Verdict.NOT_VERIFIED: "SKIP", Verdict.INCONCLUSIVE: "DONE",
    Verdict.NOT_RUN: "MISS",
}  # fmt: skip
_LONGEST = 16384
"""Characters of a log_excerpt."""


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(min(seconds, 1 << 36), UTC).isoformat()


def _path(name: str) -> str:
    """Words with dots between them, none of which is empty."""
    return ".".join(["memlock", *(part for part in name.split(".") if part)])


def _id(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.+-]+", "-", text) or "none"


def kcidb(result: Result, origin: str = ORIGIN, build: str = "") -> str:
    """JSON of KCIDB's schema 5. ``build``: the id of a build that KCIDB has already.

    Raises InvalidResult for an origin or a build that KCIDB would refuse.
    """
    if not re.fullmatch(r"[a-z0-9_]+", origin):
        raise InvalidResult(f"--origin {origin}: small letters, digits and _ only")
    if build and not re.fullmatch(r"[a-z0-9_]+:\S+", build):
        raise InvalidResult(f"--build {build}: an origin, a colon and an id")
    run = result.run
    value: dict[str, Any] = {"version": {"major": 5, "minor": 0}}
    if not build:
        ours = f"{origin}:{_id(result.id)}"
        build, kernel = ours, run["kernel"]
        value["checkouts"] = [
            {
                "id": ours, "origin": origin, "valid": True,
                "git_commit_name": printable(kernel["release"]),
                "comment": printable(f"{kernel['release']} {kernel['version']}"),
            }
        ]  # fmt: skip
        architecture = re.sub(r"[^a-z0-9_]", "_", run["architecture"].lower())
        value["builds"] = [
            {
                "id": ours, "checkout_id": ours, "origin": origin, "status": "PASS",
                "architecture": architecture, "comment": result.label,
                "misc": {"config": _printable(kernel["config"])},
            }
        ]  # fmt: skip
    machine = run["machine"]
    words = (f"{machine['cpu']}, {machine['cpus']} CPUs, {machine['memory'] >> 20} MiB",
             machine["virtual"])  # fmt: skip
    environment = {
        "comment": printable(", ".join(filter(None, words))),
        "misc": {"page_size": run["page_size"], "memory": machine["memory"]},
    }
    names = unique_ktap_ids(result.behaviours.values())
    begun = _time(run["started"])
    value["tests"] = tests = []
    issues: dict[str, dict[str, Any]] = {}
    incidents: list[dict[str, Any]] = []
    for b in result.behaviours.values():
        test = f"{origin}:{_id(result.id)}:{names[b.id]}"
        tests.append(_test(b, names[b.id]) | {
            "id": test, "build_id": build, "origin": origin, "start_time": begun,
            "environment": environment,
        })  # fmt: skip
        if b.verdict is Verdict.DEVIATES:
            why = printable(b.detail or b.reason)
            name = ktap_id(why.partition(":")[0])[:100] or "deviation"
            issue = f"{origin}:{name}"
            issues[issue] = {
                "id": issue, "version": 1, "origin": origin, "comment": why,
                "culprit": {"code": True, "tool": False, "harness": False},
            }  # fmt: skip
            incidents.append({
                "id": f"{test}:{name}", "origin": origin, "issue_id": issue, "issue_version": 1,
                "test_id": test, "present": True,
            })  # fmt: skip
    if incidents:
        value |= {"issues": [*issues.values()], "incidents": incidents}
    return json.dumps(value, indent=1) + "\n"


def _printable(values: dict[str, str]) -> dict[str, str]:
    return {printable(k): printable(v) for k, v in values.items()}


def _test(b: CaseResult, name: str) -> dict[str, Any]:
    told = {"id": b.id, "statement": b.statement, "source": b.source, "verdict": b.verdict.value}
    why = b.detail or b.reason
    texts = [*([why] if why else []), *(f"{title}:\n{text}" for title, text in b.evidence)]
    found: dict[str, Any] = {
        "path": _path(name), "status": _STATUS[b.verdict], "duration": b.duration,
        "comment": printable(b.statement or b.id), "misc": _printable(told),
    }  # fmt: skip
    if texts and b.verdict is not Verdict.VERIFIED:
        found["log_excerpt"] = printable("\n\n".join(texts), keep="\n\t")[:_LONGEST]
    return found
