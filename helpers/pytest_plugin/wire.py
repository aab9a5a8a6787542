# SPDX-License-Identifier: MIT
"""Length-prefixed JSON over a pipe, between pytest and the forked children that run cases."""

from __future__ import annotations

import json
import os
import struct
from typing import Any

from helpers.machine.timeouts import Deadline

_HEAD = struct.Struct("=Q")


def send(fd: int, value: object) -> None:
    """Write one frame. Raises BrokenPipeError where nobody reads any more."""
    data = json.dumps(value, default=repr).encode(errors="surrogateescape")
    data = _HEAD.pack(len(data)) + data
    while data:
        data = data[os.write(fd, data) :]


def receive(fd: int) -> Any:
    """The next frame, waited for; None at the end of file."""
    head = _exactly(fd, _HEAD.size)
    if head is None:
        return None
    body = _exactly(fd, *_HEAD.unpack(head))
    return None if body is None else json.loads(body)


def _exactly(fd: int, size: int) -> bytes | None:
    data = b""
    while len(data) < size:
        got = os.read(fd, size - len(data))
        if not got:
            return None
        data += got
    return data


def receive_until(fd: int, pid: int, until: Deadline) -> tuple[Any, bool]:
    """The next frame from process ``pid``, or None; and whether it was silent at the deadline."""
    try:
        # Its descriptor shows the end even when a grandchild holds the pipe open.
        ended = os.pidfd_open(pid)
    except OSError:
        ended = -1
    watched = [fd] if ended < 0 else [fd, ended]
    data, size = b"", -1
    try:
        while size < 0 or len(data) < size:
            ready = until.wait(watched)
            if not ready:
                return None, True
            if fd in ready:
                got = os.read(fd, 1 << 20)
                if not got:
                    return None, False
                data += got
                if size < 0 and len(data) >= _HEAD.size:
                    size = _HEAD.size + _HEAD.unpack(data[: _HEAD.size])[0]
            elif ended in ready:
                return None, False
        return json.loads(data[_HEAD.size :]), False
    finally:
        if ended >= 0:
            os.close(ended)
