"""``python -m helpers.report``: compare results, and make a page of them."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from helpers.report import compare, result
from helpers.report.result import Result, Unreadable


def _complain(message: object) -> None:
    print(f"memlock-tests: {message}", file=sys.stderr)


def _loaded(paths: Sequence[str], problems: list[str]) -> Iterator[Result]:
    for path in paths:
        try:
            yield result.load(Path(path))
        except Unreadable as error:
            problems.append(str(error))
            _complain(error)


def _compare(options: argparse.Namespace) -> int:
    if len(options.results) < 2:
        _complain("compare wants two results or more")
        return 4
    problems: list[str] = []
    if len(options.results) == 2:
        both = list(_loaded(options.results, problems))
        if problems:
            return 4
        found = compare.two(*both)
        form = compare.as_json if options.json else compare.markdown
        print((form if options.json or options.markdown else compare.text)(found))
        return int(found.lost)
    matrix = compare.Matrix()
    for each in _loaded(options.results, problems):
        try:
            matrix.add(each)
        except Unreadable as error:
            problems.append(str(error))
            _complain(error)
    if len(matrix.labels) < 2:
        _complain("fewer than two results are left to compare")
        return 4
    if options.json:
        print(matrix.as_json())
    elif options.markdown:
        print(matrix.markdown())
    else:
        print(matrix.text())
    return 4 if problems else int(matrix.lost)


def _html(options: argparse.Namespace) -> int:
    try:
        from helpers.report.html import page
    except ModuleNotFoundError as error:
        _complain(f"html needs {error.name}: pip install jinja2")
        return 4
    problems: list[str] = []
    loaded: dict[str, Result] = {}
    for each in _loaded(options.results, problems):
        if each.id in loaded:
            problems.append(f"{loaded[each.id].path} and {each.path}: two files of the same run")
            _complain(problems[-1])
        else:
            loaded[each.id] = each
    if not loaded:
        return 4
    try:
        Path(options.output).write_text(page(list(loaded.values())))
    except OSError as error:
        _complain(f"{options.output} cannot be written: {error.strerror}")
        return 4
    return 4 if problems else 0


def _carry(options: argparse.Namespace) -> int:
    try:
        result.carry(Path(options.result), Path(options.matrix))
    except (Unreadable, OSError) as error:
        _complain(error)
        return 4
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0, 1 if something verified no longer is, 4 on input that cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m helpers.report", description=__doc__)
    parser.exit_on_error = True
    actions = parser.add_subparsers(required=True, metavar="compare|html|carry")
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
    options = parser.parse_args(arguments)
    try:
        code: int = options.run(options)
        sys.stdout.flush()
    except Unreadable as error:
        _complain(error)
        return 4
    except BrokenPipeError:  # the reader (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    return code


if __name__ == "__main__":
    sys.exit(main())
