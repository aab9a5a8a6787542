# SPDX-License-Identifier: MIT
"""JUnit XML of a result, a suite a chapter: what pytest's ``--junitxml`` says of the same run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from xml.sax.saxutils import escape, quoteattr

from helpers.report.ktap import printable
from helpers.report.result import Result
from helpers.report.verdicts import CaseResult, Verdict

_ELEMENTS = {
    Verdict.FAILED: "failure", Verdict.BROKEN: "error", Verdict.NOT_RUN: "error",
    Verdict.DEVIATES: "skipped", Verdict.NOT_VERIFIED: "skipped", Verdict.INCONCLUSIVE: "skipped",
}  # fmt: skip
_TYPES = {"skipped": "pytest.skip"} | {Verdict.DEVIATES: "pytest.xfail"}


def _text(text: str) -> str:
    return escape(printable(text, keep="\n\t"))


def _attributes(**values: object) -> str:
    return "".join(f" {k}={quoteattr(printable(str(v)))}" for k, v in values.items())


def _case(b: CaseResult) -> Iterator[str]:
    file, _, name = b.id.partition("::")
    where = file.removesuffix(".py").replace("/", ".")
    place = {"file": file, "line": b.line} if b.line else {"file": file}
    yield f"<testcase{_attributes(classname=where, name=name, time=f'{b.duration:.6f}', **place)}>"
    told = {"statement": b.statement, "source": b.source, "claim": b.claims, "verdict": b.verdict}
    yield "<properties>"
    for key, value in told.items():
        if value:
            yield f"<property{_attributes(name=key, value=value)}/>"
    yield "</properties>"
    if (element := _ELEMENTS.get(b.verdict)) is not None:
        kind = _TYPES.get(b.verdict, _TYPES.get(element, b.verdict.value))
        why = b.reason or b.verdict.value
        said = _attributes(message=" ".join(why.split())[:1000], type=kind)
        inner = "\n\n".join(f"{title}:\n{text}" for title, text in b.evidence) or b.detail
        yield f"<{element}{said}>{_text(inner)}</{element}>"
    yield "</testcase>\n"


def _count(rows: Iterable[CaseResult]) -> dict[str, int]:
    found = [_ELEMENTS.get(b.verdict) for b in rows]
    count = {f"{name}s": found.count(name) for name in ("failure", "error")}
    return {"tests": len(found), **count, "skipped": found.count("skipped")}


def junit(result: Result) -> Iterator[str]:
    """The document, piece by piece."""
    chapters: dict[str, list[CaseResult]] = {}
    for b in result.behaviours.values():
        chapters.setdefault(b.chapter or "other", []).append(b)
    begun = datetime.fromtimestamp(min(result.run["started"], 1 << 36), UTC).isoformat()
    every = _count(result.behaviours.values())
    yield '<?xml version="1.0" encoding="utf-8"?>\n'
    yield f"<testsuites{_attributes(name='memlock-tests', **every)}>\n"
    for chapter, rows in chapters.items():
        took = f"{sum(b.duration for b in rows):.3f}"
        head = _attributes(name=chapter, **_count(rows), time=took, timestamp=begun)
        yield f"<testsuite{head}>\n<properties>"
        yield f"<property{_attributes(name='kernel', value=result.label)}/></properties>\n"
        for b in rows:
            yield from _case(b)
        yield "</testsuite>\n"
    yield "</testsuites>\n"
