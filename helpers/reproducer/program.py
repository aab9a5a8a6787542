# SPDX-License-Identifier: MIT
"""A C program from the record of a case: the same calls on the same shapes, the same checks."""

from __future__ import annotations

import errno
import json
import re
import signal
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from helpers.reproducer.c_names import (
    BY_NUMBER,
    CALLS,
    HEADERS,
    KB,
    KEYWORDS,
    MAP,
    NEW,
    NUMBERS,
    POINTERS,
    PROT,
)
from helpers.reproducer.c_text import (
    as_bits,
    indented,
    leaves,
    loops,
    mentions,
    names_used,
    piece,
    quoted,
    runs,
    sections,
    times,
    without_strings,
)
from helpers.reproducer.case_source import Messages
from helpers.syscalls import constants

PRELUDE = Path(__file__).with_name("prelude.c")
MOST = 1500
"""Statements of a program that a person still reads, loops folded."""
_TOP = 1 << constants.WORD_BITS


class CannotReproduce(Exception):
    """The case cannot be put into C: why, in one line."""


@dataclass
class _Area:
    """Memory that the case mapped, by its name in C."""

    name: str
    start: int
    size: int


@dataclass
class _Actor:
    """A process or a thread."""

    index: int
    name: str
    pid: int
    areas: list[_Area] = field(default_factory=list)
    fds: dict[int, str] = field(default_factory=dict)
    effective: int = 0
    locks_all: bool = False
    thread: bool = False
    over: bool = False


def load(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The head of a record, and its events."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    if not lines or lines[0].get("kind") != "head":
        raise CannotReproduce("the case was not recorded: it was skipped, or its set-up failed")
    return lines[0], lines[1:]


class Program:
    """One record on its way to C."""

    def __init__(self, head: dict[str, Any], events: list[dict[str, Any]]) -> None:
        self.head, self.events = head, events
        self.page = int(head["page"])
        self.failed = any(e["kind"] == "failed" for e in events)
        self.messages = Messages(head["file"])
        self.prelude = sections(PRELUDE.read_text())
        self.used_names: set[str] = set(KEYWORDS) | set(self.prelude)
        self.constants: set[str] = set()
        self.lines: list[tuple[int, str]] = []
        self.shared: dict[str, str] = {}
        self.segments: dict[int, str] = {}
        self.actors: list[_Actor] = []
        self.by_pid: dict[int, _Actor] = {}
        self.by_tid: dict[int, _Actor] = {}
        self.looks: dict[str, dict[str, Any]] = {}
        self.variables: dict[Any, str] = {}
        self.calls: dict[str, dict[str, Any]] = {}
        self.checks = 0
        self.compares: dict[str, list[dict[str, Any]]] = {}
        self._prepare()

    # What the record says as a whole.

    def _prepare(self) -> None:
        last_call: dict[str, Any] | None = None
        seen: set[str] = set()
        for event in self.events:
            if event["kind"] == "call":
                last_call = event
            elif event["kind"] == "outcome" and last_call is not None:
                self.calls[event["id"]] = last_call
                last_call.setdefault("outcome", event["id"])
            elif event["kind"] == "look":
                self.looks[event["id"]] = event
            elif event["kind"] == "cannot":
                raise CannotReproduce(f"it is about {event['why']}")
            elif event["kind"] == "compare":
                key = json.dumps([event["op"], event["of"], event["other"]])
                event["again"] = key in seen
                seen.add(key)
                for origin in leaves(event["of"]) | leaves(event["other"]):
                    self.compares.setdefault(origin, []).append(event)
        pids = {e["pid"] for e in self.events} | {
            e["child"] for e in self.events if e["kind"] == "fork"
        }
        tids = {e["tid"] for e in self.events if "tid" in e}
        self.alone = len(pids | tids) <= 1

    def _wanted(self, origin: str, value: Any) -> Any:
        """What a reading has to be: what it was, or what a failed assertion expected of it."""
        rows = [e for e in self.compares.get(origin, ()) if e["of"] == origin]
        for event in rows:
            if self.failed and event["op"] == "==" and not event["held"]:
                return event["other"]
        if self.failed and not any(e["held"] and e["op"] == "==" for e in rows):
            return None
        return value

    # Names and numbers.

    def _name(self, wanted: str) -> str:
        wanted = re.sub(r"\W", "_", wanted) or "value"
        name, count = wanted, 1
        while name in self.used_names:
            count += 1
            name = f"{wanted}{count}"
        self.used_names.add(name)
        return name

    def _size(self, n: int) -> str:
        """A number of bytes, by pages where it is near some."""
        page = self.page
        if n < 0 or n >= _TOP // 2:
            n = n % _TOP - _TOP
            if -n < page:
                return f"(size_t)-{-n}"
            pages, rest = divmod(-n, page)
            less = f" - {rest}" if rest else ""
            return f"(size_t)0 - {times(pages)}{less}"
        pages, rest = divmod(n, page)
        if rest == 0 and pages:
            return times(pages)
        if page - rest <= 64 and n > 64:
            return f"{times(pages + 1)} - {page - rest}"
        if pages:
            return f"{times(pages)} + {rest}"
        return f"\x01{n}\x02"

    def _find(self, actor: _Actor, addr: int, near: bool = True) -> tuple[_Area, int] | None:
        for area in reversed(actor.areas):
            if area.start <= addr < area.start + area.size:
                return area, addr - area.start
        for area in reversed(actor.areas if near else []):
            if area.start - self.page <= addr <= area.start + area.size + self.page:
                return area, addr - area.start
        return None

    def _place(self, actor: _Actor, addr: int) -> str:
        """An address in C."""
        if addr == 0:
            return "NULL"
        tag, low = "", addr
        found = self._find(actor, addr)
        if found is None and constants.WORD_BITS == 64 and addr >> 56:
            low = addr & ((1 << 56) - 1)
            found = self._find(actor, low)
            if found:
                tag = f"{addr ^ low:#x}UL"
        if found is None:
            if addr >= _TOP - (1 << 20):
                n = _TOP - addr
                pages, rest = divmod(n, self.page)
                below = " - ".join(
                    ([times(pages)] if pages else []) + ([str(rest)] if rest else [])
                )
                return f"(void *)(0 - {below})"
            if addr >= 1 << 47 or addr < 1 << 16:
                if addr == (_TOP // 2 - 1) & -self.page:
                    return "(void *)(LONG_MAX & -page)"
                return f"(void *){addr:#x}UL"
            raise CannotReproduce(
                "it uses memory of the interpreter, its stack or its heap, that it did not map"
            )
        area, offset = found
        pages, rest = divmod(offset, self.page)
        if rest and self.page - rest <= 64 and rest > 64:
            pages, rest = pages + 1, rest - self.page
        text = f"{area.name}\x03{pages}\x04"
        if rest:
            text += f" {'+' if rest > 0 else '-'} {abs(rest)}"
        return f"(void *)((unsigned long)({text}) | {tag})" if tag else text

    def _flags(self, names: dict[int, str], value: int, zero: str = "0") -> str:
        left, found = value & 0xFFFFFFFF, []
        for bit, name in sorted(names.items()):
            if bit and bit & (bit - 1) == 0 and left & bit:
                found.append(name)
                left &= ~bit
        if left and (left & (left - 1) or found or names is not MAP):
            found.append(f"\x01{left:#x}\x02")
        elif left:
            found.append(f"{left:#x}")
        self.constants |= set(found) & NEW
        return " | ".join(found) or zero

    def _argument(self, actor: _Actor, kind: Any, value: Any) -> str:
        if isinstance(value, str):
            if kind == "v":
                return "vector"
            if value == "<NoneType>":
                return "NULL"
            raise CannotReproduce("a system call is given a structure of the suite's own")
        if isinstance(kind, dict):
            zero = "PROT_NONE" if kind is PROT else "0"
            return self._flags(kind, value, zero)
        if isinstance(kind, tuple):
            name = kind[1].get(value, f"\x01{value}\x02")
            self.constants |= {name} & NEW
            return str(name)
        if kind == "a":
            return self._place(actor, value % _TOP)
        if kind == "v":
            if value == 0:
                return "NULL"
            nobodys = value < 1 << 16 or value >= 1 << 47
            if nobodys or self._find(actor, value):
                return f"(unsigned char *)({self._place(actor, value)})"
            return "vector"
        if kind == "n":
            found = self._find(actor, -value % _TOP, False) if value % _TOP > _TOP // 2 else None
            if found:
                return f"(size_t)0 - (size_t)({self._place(actor, -value % _TOP)})"
            return self._size(value)
        if kind in ("f", "s"):
            if value in (-1, _TOP - 1):
                return "-1"
            if value in actor.fds:
                return actor.fds[value]
            if kind == "s" and value in self.segments:
                return self.segments[value]
            if kind == "f" and value == 1 << 20:
                return str(value)  # no file, on purpose
            raise CannotReproduce("it uses a file that was opened by the suite")
        if kind == "o":
            return f"0{value:o}"
        return self._size(value) if value > 1 << 20 else f"\x01{value}\x02"

    # Statements.

    def _say(self, actor: _Actor, text: str) -> None:
        self.lines.append((actor.index, text))

    def _set(self, actor: _Actor, kind: str, name: str, value: str) -> None:
        """A variable's first value."""
        star = "" if kind.endswith("*") else " "
        if self.alone:
            self._say(actor, f"\x05{name}\x06{kind}{star}{name} = {value};")
        else:
            self.shared[name] = f"{kind}{star}{name}"
            self._say(actor, f"{name} = {value};")

    def _actor(self, event: dict[str, Any]) -> _Actor:
        if "actor" in event:
            return self.by_pid[event["actor"]]
        if event["pid"] != event["tid"]:
            if event["tid"] not in self.by_tid:
                parent = self.by_pid[event["pid"]]
                made = self._new("THREAD", event["pid"])
                made.thread, made.areas, made.fds = True, parent.areas, parent.fds
                made.effective = parent.effective
                self.by_tid[event["tid"]] = made
                self._say(parent, f"thread_actor({made.name});")
            return self.by_tid[event["tid"]]
        return self.by_pid[event["pid"]]

    def _new(self, word: str, pid: int) -> _Actor:
        count = sum(a.name.rstrip("0123456789") == word for a in self.actors)
        name = word if not count else f"{word}{count + 1}"
        made = _Actor(len(self.actors), name, pid)
        self.actors.append(made)
        return made

    def _fork(self, parent_pid: int, child: int) -> None:
        if child in self.by_pid:
            return
        parent = self.by_pid[parent_pid]
        made = self._new("CHILD", child)
        made.areas = [_Area(a.name, a.start, a.size) for a in parent.areas]
        made.fds, made.effective = dict(parent.fds), parent.effective
        self.by_pid[child] = made
        self._say(parent, f"fork_actor({made.name});")

    def write(self) -> str:
        """The program. Raises CannotReproduce."""
        main = self._new("PARENT", self.head["pid"])
        main.effective = self.head["effective"]
        self.by_pid[main.pid] = main
        if {"map-count", "vmas"} & {n.partition(":")[0] for n in self.head["needs"]}:
            raise CannotReproduce("it is about how many VMAs the interpreter has already")
        for at, event in enumerate(self.events):
            handle = getattr(self, f"_on_{event['kind']}", None)
            if event["kind"] == "failed":
                continue
            if handle is None:
                raise CannotReproduce(f"it does something that has no C here: {event['kind']}")
            handle(event, at)
        if not self.checks:
            raise CannotReproduce("what it asserts is computed from more than these readings")
        if self.failed and not self._shows():
            raise CannotReproduce("what its failed assertion compares was computed in Python")
        return self._render()

    def _shows(self) -> bool:
        return any(
            e["kind"] == "compare" and not e["held"] and e["op"] == "==" for e in self.events
        )

    def _on_fork(self, event: dict[str, Any], at: int) -> None:
        self._fork(event["parent"], event["child"])

    def _on_pass(self, event: dict[str, Any], at: int) -> None:
        pass

    def _on_outcome(self, event: dict[str, Any], at: int) -> None:
        pass

    def _on_user_namespace(self, event: dict[str, Any], at: int) -> None:
        self._say(self._actor(event), "MUST(user_namespace());")

    def _on_affinity(self, event: dict[str, Any], at: int) -> None:
        if event["cpus"] == 1:
            self._say(self._actor(event), "one_cpu();")

    def _on_drain(self, event: dict[str, Any], at: int) -> None:
        self._say(self._actor(event), "drain();")

    def _on_read(self, event: dict[str, Any], at: int) -> None:
        follows = self.events[at + 1 : at + 2]
        if not follows or follows[0]["kind"] != "look" or follows[0]["pid"] != event["pid"]:
            actor = self._actor(event)
            where = self._place(actor, event["addr"])
            self._say(actor, f"read_all({where}, {self._size(event['size'])});")

    def _on_memset(self, event: dict[str, Any], at: int) -> None:
        actor = self._actor(event)
        where, byte = self._place(actor, event["addr"]), event["byte"]
        if event["size"] == 1:
            self._say(actor, f"*(volatile char *)({where}) = \x01{byte:#x}\x02;")
        else:
            self._say(actor, f"memset({where}, \x01{byte:#x}\x02, {self._size(event['size'])});")

    def _on_touch(self, event: dict[str, Any], at: int) -> None:
        actor = self._actor(event)
        where = self._place(actor, event["addr"])
        self._say(actor, f"touch({where}, {self._size(event['size'])}, (char){event['byte']:#x});")

    def _on_store(self, event: dict[str, Any], at: int) -> None:
        actor, data = self._actor(event), bytes.fromhex(event["data"])
        where = self._place(actor, event["addr"])
        same = list(re.finditer(rb"(.)\1*", data, re.DOTALL))
        if len(same) <= 64:
            for part in same:
                there = self._place(actor, event["addr"] + part.start())
                self._say(actor, f"memset({there}, {part[1][0]:#x}, {self._size(len(part[0]))});")
        elif len(data) <= 64:
            text = "".join(f"\\x{b:02x}" for b in data)
            self._say(actor, f'memcpy({where}, "{text}", {len(data)});')
        else:
            raise CannotReproduce("it writes contents that are no repeated byte")

    def _on_write_proc(self, event: dict[str, Any], at: int) -> None:
        actor, data = self._actor(event), bytes.fromhex(event["data"])
        if data != data[:1] * len(data):
            raise CannotReproduce("it writes contents that are no repeated byte")
        where = self._place(actor, event["addr"])
        size = self._size(len(data))
        self._say(actor, f"SUCCEEDS(write_proc_mem({where}, {data[0]:#x}, {size}));")

    def _on_memfd(self, event: dict[str, Any], at: int) -> None:
        actor = self._actor(event)
        actor.fds[event["fd"]] = name = self._name("file")
        self._set(actor, "int", name, f"memory_file({self._size(event['size'])})")

    def _on_secret(self, event: dict[str, Any], at: int) -> None:
        actor = self._actor(event)
        actor.fds[event["fd"]] = name = self._name("secret")
        self._set(actor, "int", name, f"secret_file({self._size(event['size'])})")

    def _on_opened_to_read(self, event: dict[str, Any], at: int) -> None:
        actor = self._actor(event)
        of = self._argument(actor, "f", event["of"])
        actor.fds[event["fd"]] = name = self._name("readable")
        self._set(actor, "int", name, f"opened_to_read({of})")

    def _on_uffd(self, event: dict[str, Any], at: int) -> None:
        actor, words = self._actor(event), event["words"]
        file = self._argument(actor, "f", event["fd"])
        if event["name"] == "enable":
            self._say(actor, f"MUST(uffd_enable({file}, {words[0]:#x}));")
            return
        where, size = self._place(actor, words[0]), self._size(words[1])
        self._say(actor, f"MUST(uffd_register({file}, {where}, {size}, {words[2]}));")

    def _opened(self, actor: _Actor, event: dict[str, Any]) -> None:
        path, flags = event["args"][0], event["args"][1]
        if path not in ("/", "/proc/self/exe", "/dev/zero") or "error" in event:
            raise CannotReproduce("it opens a file by itself")
        modes = {0: "O_RDONLY", 1: "O_WRONLY", 2: "O_RDWR"}
        actor.fds[event["value"]] = name = self._name("file")
        how = f"{modes[flags & 3]} | O_CLOEXEC"
        self._set(actor, "int", name, f'MUST(open("{path}", {how}))')

    def _on_file(self, event: dict[str, Any], at: int) -> None:
        actor = self._actor(event)
        actor.fds[event["fd"]] = name = self._name("file")
        self._set(actor, "int", name, f"temporary_file({event['pages']})")

    def _on_pwrite(self, event: dict[str, Any], at: int) -> None:
        self._fill(self._actor(event), event["fd"], bytes.fromhex(event["data"]), event["offset"])

    def _fill(self, actor: _Actor, fd: int, data: bytes, offset: int) -> None:
        if data != data[:1] * len(data):
            raise CannotReproduce("it writes contents that are no repeated byte")
        where = self._argument(actor, "f", fd)
        byte = data[0] if data else 0
        text = f"{where}, {byte:#x}, {self._size(len(data))}, {self._size(offset)}"
        self._say(actor, f"MUST(fill_file({text}));")

    def _on_os(self, event: dict[str, Any], at: int) -> None:
        actor, name, args = self._actor(event), event["name"], event["args"]
        if name == "open":
            self._opened(actor, event)
            return
        if name in ("pipe", "sched_yield", "pidfd_open", "memfd_create", "posix_spawnp"):
            raise CannotReproduce(f"it calls {name} by itself")
        if name == "close":
            if args[0] in actor.fds:
                self._say(actor, f"close({actor.fds[args[0]]});")
            return
        if name == "setgroups":
            self._say(actor, "MUST(setgroups(0, NULL));")
            return
        if name == "posix_fadvise":
            names = {4: "POSIX_FADV_DONTNEED", 3: "POSIX_FADV_WILLNEED", 1: "POSIX_FADV_RANDOM"}
            file, advice = self._argument(actor, "f", args[0]), names.get(args[3], args[3])
            shown = f"{file}, {self._size(args[1])}, {self._size(args[2])}, {advice}"
            self._say(actor, f"posix_fadvise({shown});")
            return
        if name in ("setuid", "seteuid", "setresuid", "setresgid"):
            shown = ", ".join(map(str, args))
            self._say(actor, f"SUCCEEDS({name}({shown}));")
            actor.effective = event["effective"]  # a change of the user may take them all
            return
        if name == "pwrite" and "error" not in event:
            self._fill(actor, args[0], bytes.fromhex(args[1]), args[2])
            return
        if name == "pread":
            size, data = self._size(args[1]), bytes.fromhex(event["value"])
            file = self._argument(actor, "f", args[0])
            call = f"file_contents({file}, {size}, {self._size(args[2])})"
            self._check_text(actor, event, "contents of the file", call, self._contents(data))
            return
        if name in ("ftruncate", "fsync", "fdatasync", "dup", "fchmod") and "error" not in event:
            kinds = {"ftruncate": "fn", "fchmod": "fo"}.get(name, "f")
            shown = ", ".join(self._argument(actor, k, a) for k, a in zip(kinds, args))
            if name == "dup":
                actor.fds[event["value"]] = made = self._name("file")
                self._set(actor, "int", made, f"dup({shown})")
            else:
                self._say(actor, f"SUCCEEDS({name}({shown}));")
            return
        raise CannotReproduce(f"it calls {name} by itself")

    def _on_capset(self, event: dict[str, Any], at: int) -> None:
        from helpers.processes.credentials import CAPABILITIES

        actor = self._actor(event)
        changed = actor.effective ^ event["effective"]
        for name, number in CAPABILITIES.items():
            if changed >> number & 1:
                on = event["effective"] >> number & 1
                self._say(actor, f"MUST(capability({name}, {on}));")
        actor.effective = event["effective"]

    def _on_lower(self, event: dict[str, Any], at: int) -> None:
        for name in event["names"]:
            self._say(self._actor(event), f"MUST(capability({name}, 0));")

    def _on_rlimit(self, event: dict[str, Any], at: int) -> None:
        actor = self._actor(event)
        if event["which"] == 4:  # RLIMIT_CORE: a case that is to crash leaves no core
            return
        if event["which"] != 8:  # RLIMIT_MEMLOCK
            raise CannotReproduce("it sets a limit other than RLIMIT_MEMLOCK")
        of = "0"
        if event["of"]:
            of = self._pid(actor, event["of"])
        soft = "RLIM_INFINITY" if event["soft"] == -1 else self._size(event["soft"])
        hard, given = event["hard"], self.head["memlock"][1]
        if hard in (given, event["soft"]):
            self._say(actor, f"SUCCEEDS(memlock_limit({of}, {soft}));")
        else:
            shown = "RLIM_INFINITY" if hard == -1 else self._size(hard)
            self._say(actor, f"SUCCEEDS(memlock_limits({of}, {soft}, {shown}));")

    def _on_vfork(self, event: dict[str, Any], at: int) -> None:
        actor, name = self._actor(event), event["function"]
        call = self._call_text(actor, name, event["args"])
        self._say(actor, f"if (vfork() == 0) {{\n\t{call};\n\t_exit(0);\n}}")
        self._say(actor, "wait(NULL);")

    def _on_exec(self, event: dict[str, Any], at: int) -> None:
        actor = self._actor(event)
        after = next((e for e in self.events[at + 1 :] if e["pid"] == event["pid"]
                      and e["tid"] == event["tid"] and "actor" not in e), None)  # fmt: skip
        if after is not None and after["kind"] == "exec_failed":
            path = event["path"]
            if not path.startswith("/nonexistent"):
                raise CannotReproduce("it executes a file of its own making")
            name = errno.errorcode[after["error"]]
            self._say(actor, f'FAILS(execl("{path}", "{path}", NULL), {name});')
            return
        if actor.index == 0:
            raise CannotReproduce("the case itself executes another program")
        self._say(actor, "exec_actor();")
        actor.areas, actor.locks_all = [], False

    def _on_exec_failed(self, event: dict[str, Any], at: int) -> None:
        pass

    def _pid(self, actor: _Actor, pid: Any) -> str:
        if pid in ("self", 0, actor.pid) and not actor.thread:
            return "0"
        if pid == "self":
            return "0"
        if pid in self.by_pid:
            return f"pids[{self.by_pid[pid].name}]"
        raise CannotReproduce("it looks at a process that is not of its own making")

    def _on_kill(self, event: dict[str, Any], at: int) -> None:
        actor = self._actor(event)
        if event["child"] not in self.by_pid or self.by_pid[event["child"]].over:
            return
        name = signal.Signals(event["signal"]).name
        self._say(actor, f"kill({self._pid(actor, event['child'])}, {name});")
        self.by_pid[event["child"]].over = event["signal"] == signal.SIGKILL

    def _on_wait(self, event: dict[str, Any], at: int) -> None:
        actor, child = self._actor(event), self.by_pid.get(event["child"])
        if child is None:
            return
        number = event["status"] & 0x7F
        if not number and not child.over:
            self._say(child, "_exit(0);")
        name = signal.Signals(number).name if number else "0"
        if number == signal.SIGKILL and child.over:
            self._say(actor, f"waitpid(pids[{child.name}], NULL, 0);")
        else:
            what = "the signal that ended the child" if number else "the child leaves by itself"
            self._say(actor, f'check_end("{what}", {child.name}, {name});')
        child.over = True

    # System calls.

    def _call_text(self, actor: _Actor, name: str, args: Sequence[Any]) -> str:
        name = {"mmap64": "mmap", "fallocate64": "fallocate"}.get(name, name)
        if name not in CALLS:
            raise CannotReproduce(f"it calls {name}, which has no C here")
        kinds = CALLS[name]
        if len(kinds) != len(args):
            args = [*args, *[0] * (len(kinds) - len(args))][: len(kinds)]
        if name == "mremap":
            args = list(args)
            # A C library reads the fifth argument for either flag, or for the first alone.
            takes = constants.MREMAP_FIXED | constants.MREMAP_DONTUNMAP
            if not args[3] & takes and args[4] == 0:
                kinds, args = kinds[:4], args[:4]
        shown = ", ".join(
            self._argument(actor, "i" if k == "I" else k, a) for k, a in zip(kinds, args)
        )
        if name == "mlock2":
            return f"sys_mlock2({shown})"
        if name in BY_NUMBER:
            number = "462 /* mseal */" if name == "mseal" else f"SYS_{name}"
            return f"syscall({number}{', ' if shown else ''}{shown})"
        return f"{name}({shown})"

    def _on_call(self, event: dict[str, Any], at: int) -> None:
        actor, name = self._actor(event), event["name"]
        args, result = event["args"], event["result"]
        name = {"mmap64": "mmap"}.get(name, name)
        if event.get("skip") or (name == "prctl" and args[0] in (1, 0x59616D61)):
            return
        if name in ("exit", "exit_group"):
            self._say(actor, f"_exit({args[0]});")
            return
        failed = not re.fullmatch(r"0x[0-9a-f]+|-?\d+", result)
        if name == "mlockall" and not failed:
            actor.locks_all = True
        if name == "munlockall" and not failed:
            actor.locks_all = False
        if name == "mmap" and not failed and self._fenced(actor, event, at):
            return
        if name == "uring_create" and not failed:
            actor.fds[int(result, 0)] = made = self._name("ring")
            self._set(actor, "int", made, f"MUST({self._call_text(actor, name, args)})")
            return
        if name == "userfaultfd" and not failed:
            actor.fds[int(result, 0)] = made = self._name("handler")
            self._set(actor, "int", made, f"MUST(syscall(SYS_userfaultfd, {args[0]:#x}))")
            return
        if name == "shmget" and not failed:
            self.segments[int(result, 0)] = made = self._name("segment")
            self._set(actor, "int", made, f"MUST({self._call_text(actor, name, args)})")
            return
        text = self._call_text(actor, name, args)
        wanted = self._result(event, "success" if not failed else result)
        if wanted is None:  # nobody has said yet what is right
            self._place_result(actor, event, text, False)
            return
        if wanted not in ("success", "ok"):
            self._say(actor, f"FAILS({text}, {wanted});")
            self.checks += "outcome" in event
            return
        self.checks += "outcome" in event
        if failed:  # and should not
            self._say(actor, f"SUCCEEDS({text});")
            return
        self._place_result(actor, event, text, True)

    def _result(self, event: dict[str, Any], seen: str) -> str | None:
        """What the call is to return: an errno's name, or success. None: not known."""
        if "outcome" not in event:
            return seen
        wanted = self._wanted(event["outcome"], "ok" if seen == "success" else seen)
        return None if wanted is None else str(wanted)

    def _place_result(self, actor: _Actor, event: dict[str, Any], text: str, check: bool) -> None:
        name = {"mmap64": "mmap"}.get(event["name"], event["name"])
        result, args = event["result"], event["args"]
        numeric = re.fullmatch(r"0x[0-9a-f]+|-?\d+", result)
        if name in POINTERS and numeric:
            value = int(result, 0)
            if name in ("brk", "sbrk"):
                raise CannotReproduce("it moves the program break, where the interpreter's heap is")
            size = args[1] if name == "mmap" else args[2] if name == "mremap" else 1 << 20
            size = -(-size // self.page) * self.page
            if name == "shmat":
                size = self._segment_size(args[0])
            known = self._find(actor, value, False)
            fixed = (name == "mmap" and args[3] & (constants.MAP_FIXED | 0x100000)) or (
                name == "mremap" and (args[0] == value or args[3] & constants.MREMAP_FIXED)
            ) or (name == "shmat" and args[1])  # fmt: skip
            if known and fixed:
                for area in actor.areas:
                    if area is known[0] and area.start <= value:
                        area.size = max(area.size, value + size - area.start)
                self._say(actor, f"{'SUCCEEDS' if check else '(void)!'}({text});")
                return
            variable = self._name({"mmap": "area", "mremap": "moved", "shmat": "attached"}[name])
            actor.areas.append(_Area(variable, value, size))
            self._set(actor, "char *", variable, f"(char *)MUST({text})")
            return
        if check:
            self._say(actor, f"SUCCEEDS({text});")
        else:
            self._say(actor, f"{text};")

    def _segment_size(self, number: int) -> int:
        for event in self.events:
            if event["kind"] == "call" and event["name"] == "shmget":  # noqa: SIM102
                if event["result"] in (str(number), hex(number)):
                    return -(-int(event["args"][1]) // self.page) * self.page
        return self.page

    def _fenced(self, actor: _Actor, event: dict[str, Any], at: int) -> bool:
        """mappings.mapping: a PROT_NONE mapping, and what is mapped in its middle."""
        addr, size, prot, flags, fd, _ = event["args"]
        base = int(event["result"], 0)
        if fd != -1 or prot != 0 or flags != constants.MAP_PRIVATE | constants.MAP_ANONYMOUS:
            return False
        if addr and self._find(actor, addr):
            return False
        following = next((e for e in self.events[at + 1 :] if e["kind"] != "compare"), None)
        if following and following["kind"] == "call" and following["name"].startswith("mmap"):
            there, inner, prot, flags, fd, offset = following["args"]
            fits = there == base + self.page and inner == size - 2 * self.page
            if fits and following["result"] == hex(there) and flags & constants.MAP_FIXED:
                name = self._name("region")
                given = ", ".join([
                    self._size(inner), self._flags(PROT, prot, "PROT_NONE"),
                    self._flags(MAP, flags & ~constants.MAP_FIXED),
                    self._argument(actor, "f", fd), self._size(offset),
                ])  # fmt: skip
                actor.areas.append(_Area(name, there, inner))
                self._set(actor, "char *", name, f"fenced({given})")
                following["skip"] = True
                return True
        if not addr or addr >= 1 << 33:
            name = self._name("range")
            actor.areas.append(_Area(name, base, size))
            self._set(actor, "char *", name, f"inaccessible({self._size(size)})")
            return True
        return False

    # Looks.

    def _label(self, event: dict[str, Any], default: str) -> str:
        return self.messages.message(event["line"]) or default

    def _check_text(
        self, actor: _Actor, event: dict[str, Any], label: str, call: str, wanted: str
    ) -> None:
        shown = quoted(self._label(event, label))
        self._say(actor, f"check_text({shown}, {call}, {quoted(wanted)});")
        self.checks += 1

    def _contents(self, data: bytes) -> str:
        parts, at = [], 0
        while at < len(data):
            end = at
            while end < len(data) and data[end] == data[at]:
                end += 1
            same = end - at
            unit = f"{same // self.page} pages" if same % self.page == 0 else f"{same} bytes"
            parts.append(f"{unit} {data[at]:02x}")
            at = end
        text = ", ".join(parts)
        if len(text) > 400:
            raise CannotReproduce("it compares contents that are no repeated bytes")
        return text

    def _range(self, actor: _Actor, at: dict[str, Any]) -> tuple[str, str]:
        whose = actor
        if at.get("pid") in self.by_pid:
            whose = self.by_pid[at["pid"]]
        if "region" in at:
            low, size = at["region"]
        elif "low" in at:
            low, size = at["low"], at["high"] - at["low"]
        else:
            low = at["addr"]
            size = at["pages"] * self.page if "pages" in at else at.get("size", 1)
        return self._place(whose, low), self._size(size)

    def _on_look(self, event: dict[str, Any], at: int) -> None:
        actor, name, data = self._actor(event), event["name"], event["at"]
        value, origin = event["value"], event["id"]
        if data.get("unit") not in (None, 1, self.page):
            raise CannotReproduce("it counts a range in units other than pages")
        if name in NUMBERS:
            self._number(actor, event)
            return
        if name == "frames":
            self._frames(actor, event)
            return
        where, size = self._range(actor, data)
        pid = self._pid(actor, data.get("pid", "self")) if "pid" in data else "0"
        if name == "bytes":
            if not self.failed:
                whole = bytes.fromhex(value)
                if len(whole) < data["size"]:
                    raise CannotReproduce("it compares more contents than are kept")
                call = f"contents({where}, {size})"
                self._check_text(actor, event, "contents", call, self._contents(whole))
            else:
                self._say(actor, f"read_all({where}, {size});")
            return
        if name == "first_bytes":
            if self.failed:
                self._say(actor, f"read_all({where}, {size});")
            else:
                call = f"first_bytes({where}, {size})"
                self._check_text(actor, event, "first byte of each page", call, value)
            return
        if name in ("faults_writing", "faults_reading"):
            more = f", {data['byte']:#x}" if name == "faults_writing" else ""
            call = f"{name}({where}, {size}{more})"
            minor = self._wanted_part("minor", origin, value[0])
            if minor is None:
                self._say(actor, f"{call};")
            else:
                text = f"{minor} minor, {value[1]} major"
                self._check_text(actor, event, "page faults", call, text)
            return
        if name == "accounting":
            self._accounting(actor, event, pid, where, size)
            return
        if name == "vma":
            if not self.failed:
                text = f"{value[1]} {value[0] or '-'}"
                self._check_text(actor, event, "the VMA", f"vma_lock({pid}, {where})", text)
            return
        if name == "vmas":
            if not self.failed:
                text = ", ".join(
                    f"{a // self.page}-{b // self.page} {perms}" for a, b, perms in value
                )
                self._check_text(actor, event, "VMAs", f"mappings({pid}, {where}, {size})", text)
            return
        wanted = self._wanted(origin, value)
        if wanted is None:
            return
        if name in ("layout", "locks", "pieces"):
            text = ", ".join(piece(row) for row in wanted)
            label = "VMAs and their locks"
        else:
            text = runs(as_bits(wanted))
            label = {"present": "present pages", "anonymous": "anonymous pages",
                     "mincore": "resident pages", "letters": "the lock of each page",
                     "mlocked": "PG_mlocked"}[name]  # fmt: skip
        function = {"mincore": "resident"}.get(name, name)
        args = f"{where}, {size}" if name == "mincore" else f"{pid}, {where}, {size}"
        self._check_text(actor, event, label, f"{function}({args})", text)

    def _wanted_part(self, part: str, origin: str, value: Any) -> Any:
        rows = [e for e in self.compares.get(origin, ()) if e["of"] == [part, origin]]
        for event in rows:
            if self.failed and event["op"] == "==" and not event["held"]:
                return event["other"]
        if self.failed and not any(e["held"] for e in rows):
            return None
        return value

    def _accounting(
        self, actor: _Actor, event: dict[str, Any], pid: str, where: str, size: str
    ) -> None:
        origin, value = event["id"], event["value"]
        whose = self.by_pid.get(event["at"].get("pid"), actor)
        wanted = self._wanted(origin, value)
        for part in ("vmlck", "lo"):
            used = [e for e in self.compares.get(origin, ()) if mentions(e, [part, origin])]
            if used:
                variable = self._name(part)
                self.variables[json.dumps([part, origin])] = variable
                call = f"vmlck_pages({pid})" if part == "vmlck" else f"lo_kb({pid}) * 1024 / page"
                self._set(actor, "long", variable, call)
        letters = self._wanted_part("letters", origin, value.rpartition(" ")[2])
        whole = any(e["of"] == origin for e in self.compares.get(origin, ()))
        if wanted is not None and whole and not whose.locks_all:
            call = f"accounting({pid}, {where}, {size})"
            head, _, pages = str(wanted).rpartition(" ")
            self._check_text(actor, event, "accounts", call, f"{head} {runs(pages)}")
        elif letters is not None:
            call = f"letters({pid}, {where}, {size})"
            self._check_text(actor, event, "the lock of each page", call, runs(str(letters)))

    def _frames(self, actor: _Actor, event: dict[str, Any]) -> None:
        if self.failed:
            raise CannotReproduce("its failed assertion is about page frames")
        at, value = event["at"], event["value"]
        pids = at["pids"]
        for index, pid in enumerate(pids):
            whose = self.by_pid.get(pid, actor)
            where, size = self._place(whose, at["addr"]), self._size(at["pages"] * self.page)
            who = self._pid(actor, pid)
            of = "" if len(pids) == 1 else " of the parent" if who == "0" else " of the child"
            text = runs(value["mlocked"][index])
            self._check_text(actor, {**event, "line": 0}, f"PG_mlocked{of}",
                             f"mlocked({who}, {where}, {size})", text)  # fmt: skip
            counts = value["counts"][index]
            if counts and max(counts) < 10:
                digits = runs("".join(map(str, counts)))
                self._check_text(actor, {**event, "line": 0}, f"mappings of the pages{of}",
                                 f"map_counts({who}, {where}, {size})", digits)  # fmt: skip
            if index:
                first = self._pid(actor, pids[0])
                self._check_text(actor, {**event, "line": 0}, "pages in common",
                                 f"shared_frames({first}, {who}, {where}, {size})",
                                 runs(value["shared"][index - 1]))  # fmt: skip

    def _number(self, actor: _Actor, event: dict[str, Any]) -> None:
        name, data, origin, value = event["name"], event["at"], event["id"], event["value"]
        pid = self._pid(actor, data["pid"]) if "pid" in data else "0"
        if name == "present_count":
            call = "present_pages({}, {}, {})".format(pid, *self._range(actor, data))
        elif name == "mincore_count":
            call = "resident_pages({}, {})".format(*self._range(actor, data))
        elif name in ("status_kb", "rollup_kb"):
            call = f'{name}({pid}, "{data.get("name", "Locked")}")'
        else:
            call = {"vmlck": "vmlck_pages", "vmlck_kb": "vmlck_kb", "locked_kb": "lo_kb"}[name]
            call += f"({pid})"
        used = self.compares.get(origin, ())
        if not used:
            if name in ("present_count", "mincore_count") and not self.failed:
                label = quoted(self._label(event, "pages there"))
                self._say(actor, f"check_number({label}, {call}, {value});")
                self.checks += 1
            return
        variable = self._name(self.messages.name(event["line"]) or name)
        self.variables[json.dumps(origin)] = variable
        event["whose"] = self.by_pid.get(data.get("pid"), actor)
        event["volatile"] = event["whose"].locks_all
        self._set(actor, "long", variable, call)

    def _expression(self, origin: Any) -> tuple[str, bool, int]:
        """C, whether it is in kB, and how many readings of a process that locks all are in it."""
        key = json.dumps(origin)
        if key in self.variables:
            event = self.looks[origin if isinstance(origin, str) else origin[1]]
            kb = isinstance(origin, str) and event["name"] in KB
            return self.variables[key], kb, int(bool(event.get("volatile")))
        if isinstance(origin, int):
            return str(origin), False, 0
        if isinstance(origin, list) and origin[0] in ("+", "-", "*", "/"):
            left, kb1, n1 = self._expression(origin[1])
            right, kb2, n2 = self._expression(origin[2])
            pages = str(self.page // 1024)
            if origin[0] in "*/" and right == pages:
                right, kb1 = "(page / 1024)", origin[0] == "*"
                return f"{left} {origin[0]} {right}", kb1, n1
            if kb1 and isinstance(origin[2], int):
                right = self._kb(origin[2])
            left = f"({left})" if origin[0] in "*/" and " " in left else left
            right = f"({right})" if " " in right and origin[0] != "+" else right
            return f"{left} {origin[0]} {right}", kb1 or kb2, n1 + n2
        raise KeyError(key)

    def _kb(self, value: int) -> str:
        unit = self.page // 1024
        pages, rest = divmod(value, unit)
        return str(value) if rest or not pages else f"{pages} * (page / 1024)"

    def _on_compare(self, event: dict[str, Any], at: int) -> None:
        origin, other = event["of"], event["other"]
        if isinstance(origin, str) and self.looks.get(origin, {}).get("name") not in NUMBERS:
            return
        if event["again"]:
            return
        actor = self._actor(event)
        try:
            left, kb, volatile = self._expression(origin)
            if isinstance(other, list) and other and other[0] == "@":
                right, _, more = self._expression(other[1])
                volatile += 2 if more else 0
            elif isinstance(other, int) and not isinstance(other, bool):
                right = self._kb(other) if kb else str(other)
                if volatile == 1 and other:
                    return  # a sum over all that the interpreter has
            else:
                return
        except KeyError:
            return
        held = event["held"]
        if event["op"] == "!=" and not held:
            event = event | {"op": "=="}
            held = True
        if self.failed and not held:
            if event["op"] != "==":
                return
            held = True
        label = quoted(self._label(event, "VmLck"))
        if event["op"] == "==" and held:
            self._say(actor, f"check_number({label}, {left}, {right});")
        else:
            self._say(actor, f"check_number({label}, {left} {event['op']} {right}, {int(held)});")
        self.checks += 1

    # The text.

    def _render(self) -> str:
        body = self._fold(self._trimmed())
        if sum(len(block) for _, block in body) > MOST:
            raise CannotReproduce("its program would be longer than anybody reads")
        text = "\n".join(line for _, block in body for line in block)
        code: list[str] = []
        if self.alone:
            for _, block in body:
                code += [indented(line, 1) for line in block]
        else:
            for index, block in body:
                code.append(f"\tBY({self.actors[index].name}) {{")
                code += [indented(line, 2) for line in block]
                code.append("\t}")
        vector = "\tstatic unsigned char vector[1 << 16];\n\n" if "vector" in text else ""
        needed = {"page", "failures", "verdict", "crashed", *names_used(text)}
        if not self.alone:
            needed |= {"actors"}
            if "exec_actor" in text:
                needed.add("after_exec")
        parts = self._parts(needed)
        script = "\n".join(code)
        main = self._main(parts, script, vector)
        return "\n".join([self._head(), *self._top(parts, script), main])

    def _parts(self, needed: set[str]) -> list[str]:
        wanted: set[str] = set()
        queue = [n for n in self.prelude if n in needed]
        while queue:
            name = queue.pop()
            if name in wanted:
                continue
            wanted.add(name)
            queue += [
                n for n in names_used(self.prelude[name]) if n in self.prelude and n not in wanted
            ]
        return [n for n in self.prelude if n in wanted]

    def _top(self, parts: list[str], script: str) -> list[str]:
        lines = ["#define _GNU_SOURCE"]
        code = without_strings(
            "\n".join([self.prelude[n] for n in parts] + [script, "signal prctl"])
        )
        words = set(re.findall(r"\w+", code)) | {"SIGSEGV"}
        words |= {"atoi"} if "after_exec" in parts else set()
        lines += [
            f"#include <{name}>"
            for name, names in sorted(HEADERS.items())
            if any(re.fullmatch(names, word) for word in words)
        ]
        lines.append("")
        for name in sorted(self.constants):
            lines += [f"#ifndef {name}", f"#define {name} {getattr(constants, name):#x}", "#endif"]
        shared = "static" if self.alone else 'static __attribute__((section("shared"), used))'
        if not self.alone:
            names = ", ".join(a.name for a in self.actors)
            lines.append(f"enum {{ {names}, ACTORS }};")
        lines += [f"#define SHARED {shared}", ""]
        if "thread_actor" in parts:
            lines.append("static void script(void);")
        for name in parts:
            lines.append(self.prelude[name].rstrip() + "\n")
        for declared in self.shared.values():
            lines.append(f"SHARED {declared};")
        return lines

    def _main(self, parts: list[str], script: str, vector: str) -> str:
        crash = "\tfirst_process = getpid();\n" + "".join(
            f"\tsignal({name}, crashed);\n" for name in ("SIGSEGV", "SIGBUS")
        )
        start = (
            "\tpage = sysconf(_SC_PAGESIZE);\n\tsetvbuf(stdout, NULL, _IONBF, 0);\n"
            "\tprctl(PR_SET_THP_DISABLE, 1, 0, 0, 0); /* no huge pages: a touch is one page */\n"
        )
        if self.alone:
            body = f"{vector}{start}{crash}\n{script}"
            return f"\nint main(void)\n{{\n{body}\n\treturn verdict();\n}}\n"
        again = ""
        arguments = "void"
        if "after_exec" in parts:
            arguments = "int argc, char **argv"
            again = (
                "\tif (argc > 2) {\n\t\tafter_exec(atoi(argv[1]), atoi(argv[2]));\n"
                "\t\tscript();\n\t\tpause();\n\t}\n"
            )
        leave = "\twhile (self() != 0)\n\t\tpause(); /* until the parent ends */\n"
        return (
            f"\nstatic void script(void)\n{{\n{vector}{script}\n}}\n"
            f"\nint main({arguments})\n{{\n{start}{again}{crash}\topen_pipes();\n\tscript();\n"
            f"{leave}\treturn verdict();\n}}\n"
        )

    def _head(self) -> str:
        node = self.head["node"]
        rows = textwrap.wrap(self.head["statement"], 92)
        rows += ["", f"Case:   {node}"]
        rows += [f"Source: {text}" for text in self.head["source"]]
        rows += [f"Known:  {text}" for text in self.head.get("deviation", ())]
        rows += [
            "",
            "cc -O2 -Wall -Wextra -Werror -static case.c -o case && ./case",
            "1: the fault is there, 0: it is not, 2: the program could not be set up.",
            "What it does and checks is at the end of this file; before it, what reads /proc.",
        ]
        inner = "\n".join(f" * {row}".rstrip() for row in rows).replace("*/", "* /")
        return f"// SPDX-License-Identifier: MIT\n/*\n{inner}\n */"

    def _trimmed(self) -> list[tuple[int, str]]:
        """Without what comes after the last check, and without variables that nobody reads."""
        lines = self.lines
        checks = ("check_", "FAILS", "SUCCEEDS")
        last = max(
            i
            for i, (_, text) in enumerate(lines)
            if text.startswith(checks) and "munmap" not in text
        )
        lines = lines[: last + 1]
        while True:
            text = without_strings("\n".join(t for _, t in lines))
            kept: list[tuple[int, str]] = []
            for index, line in lines:
                match = re.match(r"\x05(\w+)\x06", line)
                name = match[1] if match else None
                if name is None and not self.alone:
                    match = re.match(r"(\w+) = ", line)
                    name = match[1] if match and match[1] in self.shared else None
                if name and len(re.findall(rf"(?<!\x05)\b{name}\b", text)) == 1:
                    value = line.split(" = ", 1)[1]
                    self.shared.pop(name, None)
                    if re.match(r"(vmlck|lo_kb|status_kb|rollup|present_p|resident_p)", value):
                        continue
                    line = f"(void){value}"
                kept.append((index, line))
            if kept == lines:
                break
            lines = kept
        return [(i, re.sub(r"^\x05\w+\x06", "", t)) for i, t in self._inlined(lines)]

    def _inlined(self, lines: list[tuple[int, str]]) -> list[tuple[int, str]]:
        """A reading that is used once, in the next line, stands there."""
        text = without_strings("\n".join(t for _, t in lines))
        found: list[tuple[int, str]] = []
        for index, line in lines:
            if found and found[-1][0] == index and line.startswith("check_number"):
                before = found[-1][1]
                match = re.match(r"(?:\x05\w+\x06)?(?:long )?(\w+) = (.*);$", before)
                name = match[1] if match else ""
                uses = len(re.findall(rf"(?<!\x05)\b{name}\b", text)) if name else 0
                simple = match and re.match(r"(vmlck|lo_kb|status_kb|rollup|present_p|resident_p)",
                                            match[2])  # fmt: skip
                label, _, rest = line.partition('", ')
                if simple and uses == 2 and re.search(rf"\b{name}\b", rest):
                    assert match is not None
                    value = match[2].replace("\\", r"\\")
                    found[-1] = (index, f'{label}", ' + re.sub(rf"\b{name}\b", value, rest))
                    self.shared.pop(name, None)
                    continue
            found.append((index, line))
        return found

    def _fold(self, lines: list[tuple[int, str]]) -> list[tuple[int, list[str]]]:
        """Blocks of one actor, each with like lines that follow one another as loops."""
        blocks: list[tuple[int, list[str]]] = []
        for index, line in lines:
            # What is forked or executed goes on behind the block in which that was done.
            left = blocks and blocks[-1][1][-1].startswith(("exec_actor(", "fork_actor("))
            if not blocks or blocks[-1][0] != index or left:
                blocks.append((index, []))
            blocks[-1][1].append(line)
        return [(index, loops(block)) for index, block in blocks]


def from_record(path: Path) -> tuple[str, bool]:
    """The C program of a record, and whether it must find a fault. Raises CannotReproduce."""
    head, events = load(path)
    try:
        made = Program(head, events)
        return made.write(), made.failed
    except (KeyError, IndexError, ValueError) as error:
        why = f"{type(error).__name__}: {error}"
        raise CannotReproduce(f"its record cannot be followed ({why})") from None
