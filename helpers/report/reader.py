# SPDX-License-Identifier: MIT
"""What others wrote, read: a file's bytes, and JSON of the shape that schema.json states.

The schema is the only statement of that shape: its words are turned into types of msgspec, which
decodes and validates in one pass (a million behaviours: 0.8 s; json and fastjsonschema took 4.4 s
and five times the memory). Members that the schema does not name are passed over: a later suite
may add some. Numbers are finite: JSON has no others.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, Required, TypedDict

import msgspec

from helpers.report.files import InvalidResult, read_bytes

_ANY = msgspec.json.Decoder(dict[str, Any])
_NUMBER: msgspec.json.Decoder[Any] = msgspec.json.Decoder(
    TypedDict("Any", {"schema": Required[int]})  # type: ignore[operator]
)
_SIMPLE = {"string": str, "boolean": bool, "null": None}
_SURROGATE = re.compile(
    rb"\\(?:u[dD][89abAB]..\\u[dD][c-fC-F]..|(?P<lone>u[dD][89a-fA-F]..)|.)", re.DOTALL
)


def _type(schema: Mapping[str, Any], name: str) -> Any:
    """The msgspec type of what a schema describes, for the words that ours uses."""
    if "const" in schema:
        return Literal[schema["const"]]
    if "enum" in schema:
        return Literal[tuple(schema["enum"])]
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    found: Any = None
    for number, kind in enumerate(kinds):
        made = _kind(kind, schema, name)
        found = made if not number else found | made
    return found


def _kind(kind: str, schema: Mapping[str, Any], name: str) -> Any:
    if kind in _SIMPLE:
        return _SIMPLE[kind]
    if kind in {"integer", "number"}:
        within = msgspec.Meta(ge=schema.get("minimum"), le=schema.get("maximum"))
        whole: Any = Annotated[int, within]
        return whole if kind == "integer" else whole | Annotated[float, within]
    if kind == "array":
        item = _type(schema["items"], name)
        return list[item]  # type: ignore[valid-type]
    if "properties" not in schema:
        rest = schema.get("additionalProperties")
        value = _type(rest, name) if rest else Any
        return dict[str, value]  # type: ignore[valid-type]
    return TypedDict(name, _members(schema))  # type: ignore[operator]


def _members(schema: Mapping[str, Any]) -> dict[str, Any]:
    required = schema.get("required", ())
    return {
        key: (Required if key in required else NotRequired)[_type(inner, key)]
        for key, inner in schema["properties"].items()
    }


@functools.cache
def _schema() -> dict[str, Any]:
    text = (Path(__file__).parent / "schema.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


@functools.cache
def _result() -> msgspec.json.Decoder[Any]:
    members = _members(_schema())
    # A row is decoded when it is wanted, and let go: a million at once are gigabytes.
    members["behaviours"] = Required[list[msgspec.Raw]]
    return msgspec.json.Decoder(TypedDict("result", members))  # type: ignore[operator]


@functools.cache
def _row() -> msgspec.json.Decoder[Any]:
    schema = _schema()["properties"]["behaviours"]["items"]
    empty = {"string": "", "array": (), "integer": 0}
    fields = [
        (key, _type(inner, key))
        if key in schema["required"]
        else (key, _type(inner, key), empty[inner["type"]])
        for key, inner in schema["properties"].items()
    ]
    return msgspec.json.Decoder(msgspec.defstruct("Row", fields, kw_only=True, gc=False))


@functools.cache
def _matrix() -> msgspec.json.Decoder[Any]:
    schema = _schema()["properties"]["sensitivity"]
    return msgspec.json.Decoder(_type(schema, "sensitivity"))


def _decoded(decoder: msgspec.json.Decoder[Any], data: bytes, path: Path) -> Any:
    """Raises Unreadable for what is not JSON, msgspec.ValidationError for another shape."""
    if not data or data.isspace():
        raise InvalidResult(f"{path}: empty")
    try:
        return decoder.decode(data)
    except msgspec.ValidationError:
        raise
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidResult(f"{path}: truncated or not JSON ({error})") from None


def _characters(data: bytes) -> bytes:
    """Half a surrogate pair (an argument that is not UTF-8) is no character: U+FFFD for it."""
    if b"\\ud" not in data and b"\\uD" not in data:
        return data
    return _SURROGATE.sub(lambda m: b"\\ufffd" if m["lone"] else m[0], data)


def result(path: Path, newest: int) -> dict[str, Any]:
    """A result, checked but for its rows, which stay encoded. Raises Unreadable."""
    data = _characters(read_bytes(path))
    try:
        value: dict[str, Any] = _decoded(_result(), data, path)
    except msgspec.ValidationError as error:
        raise InvalidResult(f"{path}: {_other(data, newest, error)}") from None
    return value


def _other(data: bytes, newest: int, error: Exception) -> str:
    """What a file is that is no result of this schema."""
    try:
        number = _NUMBER.decode(data)["schema"]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return f"not a result of memlock-tests ({error})"
    if number > newest:
        return f"schema {min(number, 10**9)} is newer than this suite's {newest}; update it"
    return f"not a result of schema {newest} ({error})"


def row() -> Callable[[Any], Any]:
    """What decodes a row."""
    return _row().decode


def unrun(rows: Sequence[Any], path: Path) -> int:
    """Check all rows; how many of them were not run. Raises Unreadable."""
    checked = found = 0
    try:
        for each in map(row(), rows):
            found += each.verdict == "not run"
            checked += 1
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidResult(f"{path}: behaviour {checked + 1}: {error}") from None
    return found


def matrix(path: Path) -> dict[str, Any]:
    """A matrix as it is kept. Raises Unreadable."""
    try:
        value: dict[str, Any] = _decoded(_matrix(), _characters(read_bytes(path)), path)
    except msgspec.ValidationError as error:
        raise InvalidResult(f"{path}: not a fault matrix of this suite ({error})") from None
    return value


def whole(path: Path) -> dict[str, Any]:
    """A JSON object with all that is in it, named in the schema or not. Raises Unreadable."""
    try:
        value: dict[str, Any] = _decoded(_ANY, _characters(read_bytes(path)), path)
    except msgspec.ValidationError as error:
        raise InvalidResult(f"{path}: {error}") from None
    return value
