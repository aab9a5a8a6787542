# SPDX-License-Identifier: MIT
"""``python -m helpers.faults``: the matrix of who notices which fault.

list                              every fault with its statement
matrix [--out DIR] [pytest …]     run the suite (or what is named) under every fault
merge OUT DIR…                    matrices of several chapters as one
run NAME -- PROGRAM [ARGUMENT …]  any program, in any language, under a fault
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from helpers import processes
from helpers.faults import catalogue, client
from helpers.faults.fault import UnknownFault
from helpers.report import detection_matrix
from helpers.report.files import InvalidResult
from helpers.report.tool import Parser, complain, ended, say
from helpers.syscalls import ptrace

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
    alone = commands.add_parser("run", help="a program of your own under a fault; its exit code")
    alone.add_argument("name", metavar="NAME", help="a fault, or none: supervised and not changed")
    alone.add_argument("program", nargs=argparse.REMAINDER, metavar="-- PROGRAM [ARGUMENT …]")
    given, rest = parser.parse_known_args(arguments)
    processes.default_signals(keep_job_control=True)
    if rest and given.command != "matrix":
        parser.error(f"{given.command} has no argument {rest[0]}")
    if given.command == "matrix" and not given.out:
        parser.error("matrix --out wants a folder")
    if given.command == "run":
        words = given.program[given.program[:1] == ["--"] :]
        if not words:
            parser.error("run wants a program behind --")
        return ended(lambda: _run(given.name, words))
    if given.command == "list":
        return ended(_list)
    if given.command == "merge":
        return ended(lambda: _merge(given.out, given.parts))
    import pytest

    options = [] if any(o.startswith(("-n", "--numprocesses")) for o in rest) else ["-n", WORKERS]
    if not any(o.startswith("--model-steps") for o in rest):
        options.append(f"--model-steps={STEPS}")
    return int(pytest.main([*options, f"--fault-matrix={given.out}", *rest]))


def _run(name: str, words: list[str]) -> int:
    """A program under a fault: its exit code, 128 + N if signal N ended it."""
    try:
        fault = catalogue.get_fault(name)
        if shutil.which(words[0]) is None:
            raise InvalidResult(f"{words[0]} is no program that can be executed")
        status, observer = client.run_program([fault.name] if fault else [], words)
    except (UnknownFault, ptrace.TracingUnavailable) as error:
        raise InvalidResult(f"nothing was run: {error}") from None
    for text in observer.problems:
        complain(f"the fault could not be told: {text}")
    if fault:
        acted = observer.acted.get(name, 0)
        what = f"acted {acted} times" if acted else "never acted: no call that it changes was made"
        complain(f"fault {name} ({fault.statement}): {what}")
    return 128 - status if status < 0 else status


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
