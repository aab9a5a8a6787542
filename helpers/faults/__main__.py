# SPDX-License-Identifier: MIT
"""``python -m helpers.faults``: the matrix of who notices which fault.

list                              every fault with its statement
matrix [--out DIR] [pytest …]     run the suite (or what is named) under every fault
merge OUT DIR…                    matrices of several chapters as one
"""

from __future__ import annotations

import sys
from pathlib import Path

from helpers import processes
from helpers.faults import catalogue
from helpers.report import detection_matrix
from helpers.report.tool import Parser, ended, say

WORKERS = "2"
STEPS = 100
"""Of the random comparisons with the model, which are run once a fault."""


def main(arguments: list[str]) -> int:
    """The command line; pytest's exit code, 1 if a fault or a case is left over, 4 on nonsense."""
    parser = Parser("python -m helpers.faults", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="every fault with its statement")
    run = commands.add_parser("matrix", help="run the suite under every fault")
    run.add_argument("--out", default="fault-matrix", metavar="DIR")
    merge = commands.add_parser("merge", help="matrices of several chapters as one")
    merge.add_argument("out", type=Path, metavar="OUT")
    merge.add_argument("parts", nargs="+", type=Path, metavar="DIR")
    given, rest = parser.parse_known_args(arguments)
    processes.default_signals(keep_job_control=True)
    if rest and given.command != "matrix":
        parser.error(f"{given.command} has no argument {rest[0]}")
    if given.command == "matrix" and not given.out:
        parser.error("matrix --out wants a folder")
    if given.command == "list":
        return ended(_list)
    if given.command == "merge":
        return ended(lambda: _merge(given.out, given.parts))
    import pytest

    options = [] if any(o.startswith(("-n", "--numprocesses")) for o in rest) else ["-n", WORKERS]
    if not any(o.startswith("--model-steps") for o in rest):
        options.append(f"--model-steps={STEPS}")
    return int(pytest.main([*options, f"--fault-matrix={given.out}", *rest]))


def _list() -> int:
    say(catalogue.listing())
    return 0


def _merge(out: Path, parts: list[Path]) -> int:
    data = detection_matrix.merge([detection_matrix.load(part) for part in parts])
    detection_matrix.write(data, out)
    say("\n".join(detection_matrix.lines(data)))
    return int(not detection_matrix.count(data).whole)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
