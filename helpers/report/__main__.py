# SPDX-License-Identifier: MIT
"""``python -m helpers.report``: compare results, make a page of them, hand them to others."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from helpers.report import compare, result
from helpers.report.files import InvalidResult, replaced_file
from helpers.report.result import Result
from helpers.report.tool import USAGE, Parser, complain, ended, say

ROOT = Path(__file__).resolve().parents[2]


def _each(paths: Sequence[str], use: Callable[[Result], None]) -> int:
    """Load each result and use it; those that cannot be used are named in one line, and counted."""
    problems = []
    for path in paths:
        try:
            use(result.load(Path(path)))
        except InvalidResult as error:
            problems.append(str(error))
    if problems:
        complain("; ".join(problems))
    return len(problems)


def _compare(options: argparse.Namespace) -> int:
    if len(options.results) < 2:
        raise InvalidResult("compare wants two results or more")
    matrix = compare.Matrix()
    bad = _each(options.results, matrix.add)
    if len(matrix.columns) < 2:
        if not bad:
            raise InvalidResult("compare wants two results or more")
        return USAGE
    if len(options.results) == 2:
        found = compare.compare_pair(matrix)
        form = compare.as_json if options.json else compare.markdown
        say((form if options.json or options.markdown else compare.text)(found))
    elif options.json:
        say(matrix.as_json())
    else:
        say(matrix.markdown() if options.markdown else matrix.text())
    return USAGE if bad else int(matrix.lost)


def _html(options: argparse.Namespace) -> int:
    from helpers.report.html import Page  # jinja2

    page = Page()
    bad = _each(options.results, page.add)
    if not page.results:
        return USAGE
    with replaced_file(Path(options.output)) as file:
        page.write(file)
    return USAGE if bad else 0


def _carry(options: argparse.Namespace) -> int:
    result.attach_matrix(Path(options.result), Path(options.matrix))
    return 0


def _behaviours(options: argparse.Namespace) -> int:
    from helpers.report import reference

    folder = Path(options.folder)
    kept = folder / reference.TABLE
    table = reference.load(kept) if kept.exists() else reference.Table()
    bad = _each(options.results, table.add)
    text = reference.document(Path(options.tests), table)
    if options.results and not bad:
        with replaced_file(kept) as file:
            file.write(table.text())
    if not bad:
        with replaced_file(folder / reference.DOCUMENT) as file:
            file.write(text)
    return USAGE if bad else 0


def _ktap(made: Result, options: argparse.Namespace) -> Iterable[str]:
    from helpers.report.ktap import ktap

    return [ktap(made.behaviours.values())]


def _tmt(made: Result, options: argparse.Namespace) -> Iterable[str]:
    from helpers.report.tmt import tmt

    return [tmt(made.behaviours.values())]


def _junit(made: Result, options: argparse.Namespace) -> Iterable[str]:
    from helpers.report.junit import junit

    return junit(made)


def _kcidb(made: Result, options: argparse.Namespace) -> Iterable[str]:
    from helpers.report.kcidb import kcidb

    return [kcidb(made, options.origin, options.build)]


FORMS: dict[str, tuple[str, str, Callable[[Result, argparse.Namespace], Iterable[str]]]] = {
    "kcidb": ("KCIDB's JSON, schema 5", "kcidb.json", _kcidb),
    "ktap": ("KTAP, for kunit.py parse and LAVA", "result.ktap", _ktap),
    "junit": ("JUnit XML", "junit.xml", _junit),
    "tmt": ("tmt's results.yaml", "results.yaml", _tmt),
}
"""Forms of a result that others read: what it is, its usual file, and what makes it."""


def _form(options: argparse.Namespace) -> int:
    pieces = FORMS[options.form][2](result.load(Path(options.result)), options)
    if options.output == "-":
        say("".join(pieces).removesuffix("\n"))
        return 0
    with replaced_file(Path(options.output)) as file:
        file.writelines(pieces)
    return 0


def _github(options: argparse.Namespace) -> int:
    from helpers.report import github

    def summarise(made: Result) -> None:
        told = github.publish(
            made.behaviours.values(), f"Memory locking on Linux {made.label}", Path.cwd()
        )
        if told:
            raise InvalidResult(told)

    if not github.is_there():
        raise InvalidResult("GITHUB_STEP_SUMMARY is not set: this is no job of GitHub Actions")
    return USAGE if _each(options.results, summarise) else 0


def _reproduce(options: argparse.Namespace) -> int:
    from helpers.report import reproduce

    text = reproduce.program_of(result.load(Path(options.result)), options.case)
    if options.output == "-":
        say(text.removesuffix("\n"))
        return 0
    with replaced_file(Path(options.output)) as file:
        file.write(text)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0, 1 if something verified no longer is, 4 on input that cannot be used."""
    parser = Parser(prog="python -m helpers.report", description=__doc__)
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    action = actions.add_parser("compare", help="what changed verdict between results")
    action.add_argument("results", nargs="+", metavar="RESULT", help="result.json or its folder")
    form = action.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true")
    form.add_argument("--markdown", action="store_true")
    action.set_defaults(run=_compare)
    action = actions.add_parser("html", help="one self-contained page")
    action.add_argument("results", nargs="+", metavar="RESULT", help="result.json or its folder")
    action.add_argument("-o", "--output", default="report.html")
    action.set_defaults(run=_html)
    action = actions.add_parser("carry", help="put a fault matrix into a result, for its page")
    action.add_argument("result", metavar="RESULT", help="result.json or its folder")
    action.add_argument("matrix", metavar="MATRIX", help="the folder of --fault-matrix")
    action.set_defaults(run=_carry)
    action = actions.add_parser("behaviours", help="docs/behaviours.md, of the tests and results")
    action.add_argument("results", nargs="*", metavar="RESULT", help="kernels to put into it")
    action.add_argument("--folder", default=ROOT / "docs", help="where it is (default: docs)")
    action.add_argument("--tests", default=ROOT, help="the folder that has tests/")
    action.set_defaults(run=_behaviours)
    for name, (what, usual, _) in FORMS.items():
        action = actions.add_parser(name, help=what)
        action.add_argument("result", metavar="RESULT", help="result.json or its folder")
        action.add_argument(
            "-o", "--output", default=usual, help=f"- is standard output (default: {usual})"
        )
        if name == "kcidb":
            action.add_argument("--origin", default="memlock_tests", help="the CI system's name")
            action.add_argument("--build", default="", metavar="ORIGIN:ID", help="a known build")
        action.set_defaults(run=_form, form=name)
    action = actions.add_parser("github", help="the job's summary and annotations, in Actions")
    action.add_argument("results", nargs="+", metavar="RESULT", help="result.json or its folder")
    action.set_defaults(run=_github)
    action = actions.add_parser("reproduce", help="a C program that does what a case does")
    action.add_argument("result", metavar="RESULT", help="result.json or its folder")
    action.add_argument("case", metavar="ID", help="the id of a case in it")
    action.add_argument(
        "-o", "--output", default="case.c", help="- is standard output (default: case.c)"
    )
    action.set_defaults(run=_reproduce)
    options = parser.parse_args(arguments)
    return ended(lambda: options.run(options))


if __name__ == "__main__":
    sys.exit(main())
