# SPDX-License-Identifier: MIT
"""Runs on the guest's Python and pytest: compiles modules as that pytest would.

Reads lines "KEY<tab>PATH<tab>PATH IN GUEST"; leaves KEY (byte code), KEY.rewritten (with pytest's
assertions) and tags in the current folder.
"""

import ast
import json
import marshal
import sys
from importlib.util import MAGIC_NUMBER
from pathlib import Path

from _pytest.assertion.rewrite import PYTEST_TAG, rewrite_asserts

Path("tags").write_text(json.dumps([MAGIC_NUMBER.hex(), sys.implementation.cache_tag, PYTEST_TAG]))
for line in sys.stdin:
    key, path, name = line.rstrip("\n").split("\t")
    source = Path(path).read_bytes()
    try:
        tree = ast.parse(source, filename=name)
        rewrite_asserts(tree, source, name, None)
        for ending, module in ("", source), (".rewritten", tree):
            code = compile(module, name, "exec", dont_inherit=True)
            Path(key + ending).write_bytes(marshal.dumps(code))
    except SyntaxError:  # the guest will tell
        continue
