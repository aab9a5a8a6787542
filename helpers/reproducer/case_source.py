# SPDX-License-Identifier: MIT
"""What a case's source says of its values: the text of each assertion, the name of a variable."""

from __future__ import annotations

import ast
from pathlib import Path


class Messages:
    """The text of each assertion, and what the case calls a value, by line."""

    def __init__(self, file: str) -> None:
        self.asserts: list[tuple[int, int, str]] = []
        self.assigned: list[tuple[int, int, str]] = []
        try:
            tree = ast.parse(Path(file).read_text())
        except (OSError, SyntaxError):
            return
        for node in ast.walk(tree):
            if isinstance(node, ast.Assert) and node.msg is not None:
                text = ast.unparse(node.msg) if not isinstance(node.msg, ast.Constant) else str(
                    node.msg.value)  # fmt: skip
                if isinstance(node.msg, ast.JoinedStr):
                    parts = node.msg.values
                    text = "".join(
                        str(v.value) if isinstance(v, ast.Constant) else "…" for v in parts
                    )
                self.asserts.append((node.lineno, node.end_lineno or node.lineno, text))
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                self.assigned.append(
                    (node.lineno, node.end_lineno or node.lineno, node.targets[0].id)
                )

    @staticmethod
    def _at(rows: list[tuple[int, int, str]], line: int) -> str:
        return next((text for first, last, text in rows if first <= line <= last), "")

    def message(self, line: int) -> str:
        """What is asserted on this line."""
        return self._at(self.asserts, line)

    def name(self, line: int) -> str:
        """The variable that this line sets."""
        return self._at(self.assigned, line)
