# SPDX-License-Identifier: MIT
"""The suite on another kernel: what is missing is one line, and a guest that broke is told apart
from a failing case. A stand-in for QEMU says on its console what guests say."""

import io
import json
import lzma
import os
import re
import shutil
import signal
import stat
import struct
import subprocess
import sys
import tarfile
from pathlib import Path

import psutil
import pytest

from helpers.machine import timeouts
from helpers.report import result
from helpers.report.verdicts import CaseResult, Verdict
from helpers.vm import cli, images, kernels, modules, virtme
from helpers.vm.apt import Apt, PackageCache
from helpers.vm.architectures import ARCHES, HOST
from helpers.vm.cache import LAYOUT, Cache
from helpers.vm.config import capability_numbers, parse_size
from helpers.vm.console import Console
from helpers.vm.errors import VmError
from helpers.vm.initramfs import Cpio

ROOT = Path(__file__).resolve().parents[2]


def bzimage(release: str = "6.9.0-made") -> bytes:
    """A header by which a kernel image is known, and nothing behind it."""
    head = bytearray(0x1000)
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", head, 0x20E, 0x400)
    head[0x600 : 0x600 + len(release) + 9] = release.encode() + b" (me) #1\0"
    return bytes(head)


class Bench:
    """A cache with an empty userland, a made-up kernel, and a PATH with a stand-in for QEMU."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cache = folder / "cache"
        self.out = folder / "out"
        for arch in ARCHES:
            kept = self.cache / f"userland-{LAYOUT}" / f"bookworm-{arch}"
            kept.mkdir(parents=True)
            (kept / "base.cpio").touch()
        self.kernel = folder / "bzImage"
        self.kernel.write_bytes(bzimage())
        self.suite = folder / "suite"
        self.suite.mkdir()
        self.path = folder / "bin"
        self.path.mkdir()

    def qemu(self, body: str) -> None:
        """Let this shell script stand in for QEMU."""
        file = self.path / ARCHES["amd64"].qemu
        file.write_text(
            "#!/bin/sh\nmark() { printf '\\033_vm:%s\\033\\\\' \"$*\"; }\n"
            f"for each; do case $each in file,id=results,path=*) R=${{each#*path=}};; esac; done\n"
            f"{body}\n"
        )
        file.chmod(0o755)

    def command(self, *words: object) -> list[str]:
        """The command line, on this bench."""
        bench = ("--cache", self.cache, "--out", self.out, "--suite", self.suite, "--accel", "tcg")
        return [sys.executable, "-m", "helpers.vm", *map(str, (*bench, *words))]

    def environment(self, path: str | None = None) -> dict[str, str]:
        """What it runs in: only our PATH, before the host's or instead."""
        found = f"{self.path}:{os.environ['PATH']}" if path is None else path
        return os.environ | {"PATH": found, "PYTHONPATH": str(ROOT)}

    def run(self, *words: object, path: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        return subprocess.run(
            self.command(*words), env=self.environment(path), cwd=self.folder,
            capture_output=True, text=True, timeout=timeouts.scaled(50), check=False,
        )  # fmt: skip

    def left(self) -> list[str]:
        """Folders and processes that outlived it."""
        found = [str(path) for path in (self.cache / "tmp").glob("*")]
        for process in psutil.process_iter(["cmdline"]):
            if str(self.folder) in " ".join(process.info["cmdline"] or []):
                found.append(" ".join(process.info["cmdline"]))
        return found


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def one_line(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Nothing could be started: 4, and one line with these words."""
    assert done.returncode == 4, done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.endswith(" ...")]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("vm: ")
    for word in words:
        assert word in lines[0], lines[0]


# What cannot be started.


BAD_WORDS = {
    "nothing": ([], "no KERNEL given"),
    "options only": (["-q", "debian:trixie"], "debian:trixie belongs before -q"),
    "ours too late": (["debian:trixie", "-q", "--cpus", "2"], "--cpus belongs before -q"),
    "no such path": (["/nowhere/bzImage"], "/nowhere/bzImage does not exist: give a path"),
    "no such suite": (["debian:potato"], "SUITE one of bullseye"),
    "no such flavour": (["debian:sid/m68k"], "FLAVOUR one of amd64"),
    "no such family": (["fedora:41"], "fedora:41 is no kernel that we know"),
    "memory": (["--memory", "some", "debian:sid"], "--memory some: say for example 1G"),
    "cpus": (["--cpus", "0", "debian:sid"], "--cpus: from 1 to 64"),
    "capability": (["--drop-cap", "cap_fly", "debian:sid"], "--drop-cap cap_fly: say one of"),
    "cgroup": (["--cgroup", "v3", "debian:sid"], "--cgroup"),
    "suite folder": (["--suite", "/nowhere", "debian:sid"], "--suite /nowhere: no such folder"),
    "cache is a file": (["--cache", "/dev/null", "debian:sid"], "give another one with --cache"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_WORDS)
def test_bad_words_are_one_line(bench, name):
    """A command line that makes no sense says so before anything is fetched or started."""
    words, expected = BAD_WORDS[name]
    one_line(bench.run(*words), expected)
    assert bench.left() == []


def elf(machine: int) -> bytes:
    """The beginning of a little-endian ELF file for a machine."""
    return b"\x7fELF\2\1" + bytes(12) + struct.pack("<H", machine) + bytes(0x1000)


BAD_FILES = {
    "text": (b"#!/bin/sh\n", "is no kernel: give a vmlinuz or bzImage"),
    "empty": (b"", "is no kernel"),
    "vmlinux": (elf(62), "give arch/x86/boot/bzImage instead of vmlinux"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_file_that_is_no_kernel_is_one_line(bench, name):
    """What is no bootable image is refused by its header."""
    content, expected = BAD_FILES[name]
    bench.kernel.write_bytes(content)
    one_line(bench.run(bench.kernel), str(bench.kernel), expected)


def test_folder_without_one_kernel_is_one_line(bench):
    """A folder must hold exactly one kernel."""
    folder = bench.folder / "package"
    (folder / "boot").mkdir(parents=True)
    one_line(bench.run(folder), "has no kernel: looked for boot/vmlinu[xz]*")
    for release in ("6.1", "6.2"):
        (folder / "boot" / f"vmlinuz-{release}").write_bytes(bzimage(release))
    one_line(bench.run(folder), "has several kernels: name one of", "boot/vmlinuz-6.1")


def test_no_qemu_is_one_line(bench):
    """Without QEMU the line names the package, and nothing is left."""
    one_line(bench.run(bench.kernel, path=""), "apt install qemu-system-x86")
    assert bench.left() == []


def test_no_apt_is_one_line(bench):
    """Without apt a kernel by name cannot be had."""
    one_line(bench.run("debian:trixie", path=str(bench.path)), "apt-get is not there")
    assert bench.left() == []


@pytest.mark.skipif(not shutil.which("apt-get"), reason="needs apt-get")
@pytest.mark.skipif(not Path(Apt.KEYRING).exists(), reason="needs debian-archive-keyring")
def test_no_network_is_one_line(bench):
    """A mirror that does not answer is named, with what to do."""
    done = bench.run("--mirror", "http://127.0.0.1:9/debian", "debian:trixie")
    one_line(done, "cannot fetch trixie/", "127.0.0.1:9", "check the network, or name a mirror")
    assert bench.left() == []


def test_no_space_is_refused_before_fetching(tmp_path, monkeypatch):
    """The file system of the cache must have room for what is about to be unpacked."""
    usage = shutil.disk_usage(tmp_path)._replace(free=100 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(VmError, match="needs 3072 MiB of space and has 100: make room or give"):
        kernels.prepare_kernel("debian:trixie", PackageCache(Cache(tmp_path / "cache")), tmp_path)
    assert list((tmp_path / "cache" / "tmp").iterdir()) == []


def test_space_that_runs_out_is_one_line(bench):
    """A file system that fills up in the middle says so in a line (here: a limit on file sizes)."""
    bench.qemu("exit 0")
    done = subprocess.run(
        ["prlimit", "--fsize=1024", *bench.command(bench.kernel)],
        env=bench.environment(), cwd=bench.folder, capture_output=True, text=True,
        timeout=timeouts.scaled(50), check=False,
    )  # fmt: skip
    one_line(done, "File too large")
    assert bench.left() == []


def test_virtme_without_vng_is_one_line(bench):
    """--virtme without virtme-ng says how to get it."""
    done = bench.run("--virtme", bench.kernel, path=str(bench.path))
    if (Path(sys.executable).parent / "vng").exists():
        pytest.skip("vng is installed beside this Python")
    one_line(done, "vng is not there: pipx install virtme-ng")


def test_virtme_needs_9p(tmp_path, monkeypatch):
    """A kernel whose modules lack 9p cannot mount this host's files."""
    if HOST != "amd64":
        pytest.skip("needs x86_64: the kernel made here is for that")
    monkeypatch.setattr(virtme, "vng", lambda: "vng")
    (tmp_path / "boot").mkdir()
    (tmp_path / "boot/vmlinuz-6.9.0-made").write_bytes(bzimage())
    folder = tmp_path / "lib/modules/6.9.0-made/kernel"
    folder.mkdir(parents=True)
    (folder / "zram.ko").touch()
    source = PackageCache(Cache(tmp_path / "cache"))
    with pytest.raises(VmError, match=r"has no 9p \(CONFIG_9P_FS, CONFIG_NET_9P_VIRTIO\)"):
        virtme.tree(str(tmp_path), source)
    (folder / "9pnet_virtio.ko").touch()
    assert virtme.tree(str(tmp_path), source).release == "6.9.0-made"
    with pytest.raises(VmError, match="wants a amd64 kernel"):
        virtme.tree("debian:trixie/arm64", source)


# How a guest ended.


def test_exit_code_of_pytest_is_ours(bench):
    """A failing case is pytest's code; what it wrote comes home, the console's marks do not."""
    with tarfile.open(bench.folder / "results.tar.gz", "w:gz") as tar:
        for name in ("junit.xml", "../escaped"):
            entry = tarfile.TarInfo(name)
            entry.size = 5
            tar.addfile(entry, io.BytesIO(b"<xml>"))
    bench.qemu(
        f"mark init 6.9; echo booting; mark pytest; echo 1 failed; mark end 1\n"
        f'cat {bench.folder}/results.tar.gz >"$R"'
    )
    done = bench.run(bench.kernel)
    assert done.returncode == 1, done.stderr
    assert done.stdout == "1 failed\n"
    assert "pytest ended with 1" in done.stderr
    folder = bench.out / "bzImage-6.9.0-made"
    assert (folder / "junit.xml").read_text() == "<xml>"
    assert not (bench.out / "escaped").exists()
    assert (folder / "console.log").read_text() == "booting\n1 failed\n"
    assert json.loads((folder / "outcome.json").read_text())["code"] == 1
    assert bench.left() == []


PANIC = "[    9.1] Kernel panic - not syncing: sysrq triggered crash"
BROKEN = {
    "panic": (f"mark init 6.9; mark pytest; echo '{PANIC}'", "panicked while pytest ran: Kernel p"),
    "early panic": (f"echo '{PANIC}'", "the guest panicked before pytest started"),
    "hang": ("mark init 6.9; mark pytest; echo deaf; exec sleep 999", "ran out of time (1 s"),
    "no init": ("echo '[ 1.0] Linux'; exec sleep 999", "never reached its /init within 1 s"),
    "no console": ("exec sleep 999", "nothing on its console"),
    "gone": ("mark init 6.9; mark pytest", "the guest was gone while pytest ran without a word"),
    "cut off": ("mark init 6.9; mark pytest; mark end 0; echo tar >$R", "results were cut off"),
    "killed": ("mark init 6.9; mark pytest; mark end 137", "pytest was killed by SIGKILL"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_guest_that_broke_is_told_apart(bench, name):
    """A guest that panics, hangs or vanishes is 70, one verdict, and the end of its console."""
    body, verdict = BROKEN[name]
    bench.qemu(body)
    done = bench.run("--timeout", 1, bench.kernel)
    assert done.returncode == 70, done.stderr
    assert verdict in done.stderr
    assert ("    | " + PANIC in done.stderr) == ("panic" in name)
    assert bench.left() == []


def test_qemu_that_gives_up_is_one_line(bench):
    """What QEMU itself complains about is passed on."""
    bench.qemu("echo 'qemu: no such machine' >&2; exit 1")
    one_line(bench.run(bench.kernel), "QEMU gave up (qemu: no such machine)")


def test_guest_without_v1_is_one_line(bench):
    """What the guest cannot offer is told by the guest."""
    bench.qemu('mark init 6.9; mark error "this kernel has no cgroup v1 memory controller"')
    one_line(bench.run("--cgroup", "v1", bench.kernel), "no cgroup v1 memory controller")


def test_signal_ends_the_guest(bench):
    """SIGTERM ends the guest with us, and leaves nothing."""
    bench.qemu("mark init 6.9; mark pytest; echo here; exec sleep 999")
    with subprocess.Popen(
        bench.command(bench.kernel), env=bench.environment(), cwd=bench.folder,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as run:  # fmt: skip
        assert run.stdout.readline() == "here\n"
        run.terminate()
        _, told = run.communicate(timeout=timeouts.scaled(20))
    assert run.returncode == 128 + signal.SIGTERM
    assert "stopped by SIGTERM" in told
    assert bench.left() == []


def test_two_runs_do_not_share_a_folder(bench):
    """A run into a folder that another one writes to is one line; the other goes on."""
    second = bench.folder / "other" / "bzImage"
    second.parent.mkdir()
    second.write_bytes(bzimage("6.10.0-made"))
    bench.qemu(
        f"mark init 6.9; mark pytest\ncase $* in *other*) mark end 0; exit;; esac\n"
        f"echo here; while [ ! -e {bench.folder}/go ]; do sleep 0.1; done\n"
        f"echo 1 passed; mark end 0"
    )
    with subprocess.Popen(
        bench.command(bench.kernel), env=bench.environment(), cwd=bench.folder,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as run:  # fmt: skip
        assert run.stdout.readline() == "here\n"
        folder = bench.out / "bzImage-6.9.0-made"
        for kernels_ in ([bench.kernel], [second, bench.kernel]):
            done = bench.run(*kernels_)
            one_line(done, f"{folder}: another run writes its results there", "--out")
        assert not (bench.out / "bzImage-6.10.0-made" / "outcome.json").exists()
        assert "pytest ended with 0" in bench.run(second).stderr, "beside it there is room"
        (bench.folder / "go").touch()
        said, told = run.communicate(timeout=timeouts.scaled(20))
    assert said == "1 passed\n"
    assert "pytest ended with 0" in told
    assert (folder / "console.log").read_text() == "here\n1 passed\n"
    assert bench.run(bench.kernel).returncode != 4, "the folder is free again"


def on_small_disk(bench, size: str) -> subprocess.CompletedProcess[str]:
    """Run with --out on a file system of that size."""
    bench.out.mkdir()
    mount = 'mount -t tmpfs -o "size=$1" none "$2" && shift 2 && exec "$@"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", mount, "sh", size, bench.out, *bench.command(bench.kernel)],
        env=bench.environment(), cwd=bench.folder, capture_output=True, text=True,
        timeout=timeouts.scaled(50), check=False,
    )  # fmt: skip
    if "unshare failed" in done.stderr or "mount: " in done.stderr:
        pytest.skip(f"needs a mount of its own (CAP_SYS_ADMIN): {done.stderr.splitlines()[0]}")
    return done


def test_results_on_a_full_disk_are_one_line(bench):
    """Where there is no room for results no guest is started, and the advice names --out."""
    bench.qemu(f"touch {bench.folder}/started")
    one_line(
        on_small_disk(bench, "64k"), f"{bench.out}/bzImage-6.9.0-made cannot be written (No space",
        "make room there or give another folder with --out",
    )  # fmt: skip
    assert not (bench.folder / "started").exists()
    assert bench.left() == []


@pytest.mark.parametrize("what", ["log", "results", "outcome"])
def test_disk_that_fills_up_is_no_result(bench, what):
    """Results that cannot be kept are 70 and one line; what pytest says is shown to its end."""
    with tarfile.open(bench.folder / "results.tar", "w") as tar:
        entry = tarfile.TarInfo("junit.xml")
        entry.size = (1 << 20) if what == "results" else 5
        tar.addfile(entry, io.BytesIO(bytes(entry.size)))
    room = {"log": 0, "results": 16, "outcome": 16}[what]
    bench.qemu(
        f"mark init 6.9; mark pytest\n"
        f"dd if=/dev/zero of={bench.out}/fill bs=1k count=3000 2>/dev/null\n"
        f"truncate -s -{room}k {bench.out}/fill\n"
        f"for n in 1 2 3 4 5 6 7 8 9; do printf '%01000d\\n' $n; done\n"
        f"test {what} = log && rm {bench.out}/fill\n"
        f"cat {bench.folder}/results.tar >$R; echo 1 passed; mark end 0"
    )
    done = on_small_disk(bench, "2m")
    assert done.returncode == 70, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "cannot be written" in line]
    assert "pytest ended with 0, but " in line
    assert "make room there or give another folder with --out" in line
    assert line.count("make room") == 1
    assert done.stdout.endswith("1 passed\n")
    assert "Traceback" not in done.stderr
    assert bench.left() == []


def test_folder_of_a_killed_run_is_swept(bench):
    """What SIGKILL left is removed by the next run, and the guest dies with its starter."""
    bench.qemu("mark init 6.9; mark pytest; echo here; exec sleep 999")
    with subprocess.Popen(
        bench.command(bench.kernel), env=bench.environment(), cwd=bench.folder,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    ) as run:  # fmt: skip
        assert run.stdout.readline() == "here\n"
        (guest,) = psutil.Process(run.pid).children()
        run.kill()
        run.stdout.read()  # its end: nobody holds the console any more
    assert psutil.wait_procs([guest], timeout=timeouts.scaled(20))[1] == []
    assert list((bench.cache / "tmp").iterdir()), "there is something to sweep"
    Cache(bench.cache)
    assert bench.left() == []


def test_several_kernels_are_compared(bench):
    """Two kernels end in what changed verdict between them, which leaves the exit code alone."""
    second = bench.folder / "other" / "bzImage"
    second.parent.mkdir()
    second.write_bytes(bzimage("6.10.0-made"))
    for release, verdict in (("6.9.0", Verdict.VERIFIED), ("6.10.0", Verdict.FAILED)):
        writer = result.ResultWriter(bench.folder / release, [])
        writer.run["kernel"] |= {"release": release}
        writer.finish([CaseResult("tests/calls/test_a.py::a", "calls", verdict=verdict)], 0)
        with tarfile.open(bench.folder / f"{release}.tar", "w") as tar:
            tar.add(writer.path, "result.json")
    bench.qemu(
        'mark init x; mark pytest; mark end 0\ncase "$*" in *other*) N=6.10.0;; *) N=6.9.0;; esac\n'
        f'cat {bench.folder}/$N.tar >"$R"'
    )
    done = bench.run(bench.kernel, second, "-q")
    assert done.returncode == 0, "pytest's codes decide"
    assert re.search(r"^6.9.0 .*  ->  6.10.0 ", done.stdout, re.MULTILINE)
    assert "broken (1):" in done.stdout


BISECTED = {
    "good": (("a", Verdict.VERIFIED), "mark end 0", 0, "good): 1 verified"),
    "failed": (("a", Verdict.FAILED), "mark end 1", 1, "bad): failed: tests/calls/test_a.py::a"),
    "deviates": (("a", Verdict.DEVIATES), "mark end 0", 1, "bad): deviates:"),
    "skipped": (("a", Verdict.NOT_VERIFIED), "mark end 0", 125, "cannot be judged): not verified"),
    "inconclusive": (("a", Verdict.INCONCLUSIVE), "mark end 0", 125, "cannot be judged)"),
    "no such case": ((), "mark end 4", 125, "cannot be judged)"),
    "panic": ((), f"echo '{PANIC}'", 125, "the guest panicked"),
}


@pytest.mark.parametrize("name", BISECTED)
def test_bisect_judges_a_kernel(bench, name):
    """With --bisect a guest is 0, 1 or 125 for git bisect run, and a line says why."""
    case, ending, code, said = BISECTED[name]
    if case:
        writer = result.ResultWriter(bench.folder / "made", [])
        writer.finish(
            [CaseResult(f"tests/calls/test_a.py::{case[0]}", "calls", verdict=case[1])], 0
        )
        with tarfile.open(bench.folder / "made.tar", "w") as tar:
            tar.add(writer.path, "result.json")
        ending += f'; cat {bench.folder}/made.tar >"$R"'
    bench.qemu(f"mark init x; mark pytest; {ending}")
    done = bench.run("--bisect", bench.kernel, "-q")
    assert done.returncode == code, done.stderr
    assert said in done.stderr.splitlines()[-1]


def test_bisect_skips_a_kernel_and_ends_at_a_wrong_command_line(bench):
    """A kernel that was not built is skipped; what would go wrong with each ends the bisection."""
    done = bench.run("--bisect", bench.folder / "no-bzImage", "-q")
    assert done.returncode == 125, done.stderr
    for words in (("--bisect", bench.kernel), ("--bisect", "--cpus", 0, bench.kernel, "-q")):
        done = bench.run(*words)
        assert done.returncode == 255, done.stderr
        assert "the bisection ends" in done.stderr
    done = bench.run("--bisect", bench.kernel, "-q", path="/nowhere")
    assert done.returncode == 255, done.stderr


# The parts.


SPLITS = {
    "debian:sid -q tests": (["debian:sid"], ["-q", "tests"]),
    "--cpus 2 debian:sid --numa -- --cgroup /x": (
        ["--cpus", "2", "debian:sid", "--numa"], ["--cgroup", "/x"],
    ),
    "--cpus=2 debian:sid tests/harness -x": (
        ["--cpus=2", "debian:sid"], ["tests/harness", "-x"],
    ),
    "a b tests/harness/test_vm.py::x": (["a", "b"], ["tests/harness/test_vm.py::x"]),
    "--append -q k": (["--append", "-q", "k"], []),
    "k -q -- --cpus": (["k"], ["-q", "--cpus"]),
}  # fmt: skip


@pytest.mark.parametrize("line", SPLITS)
def test_words_are_parted(line):
    """Our options and kernels come first, pytest's words behind them."""
    _, names = cli.parser()
    ours, theirs = SPLITS[line]
    assert cli.split(line.split(), names, ROOT) == (ours, tuple(theirs))


def test_names_and_sizes():
    """Names of kernels, sizes, capabilities."""
    assert kernels.debian_name("debian:sid/arm64-16k") == ("sid", "arm64-16k")
    assert kernels.debian_name("debian:trixie-backports/amd64") == ("trixie-backports", "amd64")
    assert (parse_size("1G"), parse_size("1536M")) == (1024, 1536)
    assert capability_numbers(["cap_ipc_lock", "SYS_ADMIN"]) == (14, 21)


def entries(data: bytes) -> dict[str, tuple[int, bytes]]:
    """Read a newc archive: mode and content by name."""
    found, position = {}, 0
    while True:
        assert data[position : position + 6] == b"070701"
        fields = [int(data[position + 6 + 8 * n :][:8], 16) for n in range(13)]
        start = position + 110
        name = data[start : start + fields[11] - 1].decode()
        body = start + fields[11] + -(110 + fields[11]) % 4
        if name == "TRAILER!!!":
            return found
        assert name not in found, "an entry stands once"
        found[name] = (fields[1], data[body : body + fields[6]])
        position = body + fields[6] + -fields[6] % 4


def test_archive_reads_back(tmp_path):
    """What is written is there, with the folders above it, before it, and with its kind."""
    source = tmp_path / "script"
    source.write_bytes(b"#!/bin/sh\n")
    source.chmod(0o700)
    stream = io.BytesIO()
    with Cpio(stream) as cpio:
        cpio.file("a/b/c", b"hello")
        cpio.copy(source, "a/script")
        cpio.link("a/link", "b/c")
        cpio.device("dev/console", 5, 1)
    assert len(stream.getvalue()) % 512 == 0
    found = entries(stream.getvalue())
    assert list(found) == ["a", "a/b", "a/b/c", "a/script", "a/link", "dev", "dev/console"]
    assert found["a/b/c"] == (stat.S_IFREG | 0o644, b"hello")
    assert found["a/script"] == (stat.S_IFREG | 0o755, b"#!/bin/sh\n")
    assert found["a/link"] == (stat.S_IFLNK | 0o777, b"b/c")
    assert found["dev/console"][0] == stat.S_IFCHR | 0o600


def test_images_are_known_by_their_headers(tmp_path):
    """Architecture and release come from the image itself, whatever its name."""
    image = tmp_path / "image"
    for content, arch, release in (
        (bzimage("6.1.0"), "amd64", "6.1.0"),
        (bytes(0x38) + b"ARM\x64" + bytes(0x1000), "arm64", ""),
        (elf(21), "ppc64el", ""),
    ):
        image.write_bytes(content)
        found, told = images.arch_of(image)
        assert (found.debian, told) == (arch, release)


def test_xz_image_is_unpacked_where_it_can_be_started(tmp_path):
    """The vmlinux inside is used only if it carries the note by which QEMU starts it."""
    note = b"\4\0\0\0\x08\0\0\0\x12\0\0\0Xen\0"
    for inner, expected in ((elf(62) + note, True), (elf(62), False)):
        payload = lzma.compress(inner)
        head = bytearray(bzimage())
        head[0x1F1] = 7
        struct.pack_into("<II", head, 0x248, 0, len(payload))
        image, target = tmp_path / "bz", tmp_path / f"vmlinux-{expected}"
        image.write_bytes(bytes(head) + payload)
        images.unpack_bzimage(image, target)
        assert target.exists() == expected
    assert (tmp_path / "vmlinux-True").read_bytes() == elf(62) + note


def test_modules_load_behind_what_they_need(tmp_path):
    """modules.dep names what a module needs, in modprobe's order, however deep."""
    for name, needs in (
        ("zram", "zsmalloc,lzo-x"),
        ("zsmalloc", "base"),
        ("lzo-x", ""),
        ("base", ""),
    ):
        (tmp_path / f"{name}.ko").write_bytes(b"\0depends=" + needs.encode() + b"\0")
    target = tmp_path / "modules.cpio"
    modules.module_archive(tmp_path, "6.9", target, {"boot/config-6.9": b"CONFIG_SWAP=y\n"})
    found = entries(target.read_bytes())
    lines = found["usr/lib/modules/6.9/modules.dep"][1].decode().splitlines()
    (zram,) = (line for line in lines if line.startswith("kernel/zram.ko:"))
    assert zram.split()[1:] == ["kernel/lzo-x.ko", "kernel/zsmalloc.ko", "kernel/base.ko"]
    assert found["boot/config-6.9"][1] == b"CONFIG_SWAP=y\n"


def test_console_takes_marks_out_wherever_they_are_cut(tmp_path):
    """Marks split over reads are still marks, and what is no mark is passed on unharmed."""
    text = (
        b"boot\r\n\x1b_vm:init 6.1\x1b\\\x1b_vm:pytest\x1b\\\x1b[31mred\x1b[0m\n\x1b_vm:end 0\x1b\\"
    )
    for size in (1, 2, 7, 1000):
        shown = io.BytesIO()
        with Console(tmp_path / "log", shown) as console:
            for start in range(0, len(text), size):
                console.feed(text[start : start + size])
        assert console.said == {"init": "6.1", "pytest": "", "end": "0"}
        assert shown.getvalue() == b"\x1b[31mred\x1b[0m\n"
        assert (tmp_path / "log").read_bytes() == b"boot\n\x1b[31mred\x1b[0m\n"


# Real guests.


CASES = '''
from helpers import syscalls
from helpers.memory import mapping
from helpers.observe import status
from pathlib import Path


def test_locks():
    """mlock of one page is one page of VmLck."""
    with mapping("private", 1) as page:
        syscalls.mlock(page.addr, page.size)
        assert status.vmlck_pages() == 1, "VmLck in pages"


def test_fails():
    """A statement that is false on every kernel."""
    assert syscalls.PAGE == 1, "page size"
'''
CRASH = (
    CASES
    + '''

def test_crashes():
    """The kernel goes down."""
    Path("/proc/sysrq-trigger").write_text("c")
'''
)


def booted(folder: Path, cases: str) -> subprocess.CompletedProcess[str]:
    """Run cases on Debian 12's kernel; skip where neither it nor QEMU can be had."""
    if not HOST:
        pytest.skip("needs x86_64, arm64 or ppc64le: no guest userland for this architecture")
    if not shutil.which(ARCHES[HOST].qemu):
        pytest.skip(f"needs QEMU: apt install {ARCHES[HOST].package}")
    for name in ("conftest.py", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "helpers", folder / "helpers")
    chapter = folder / "tests" / "calls"
    chapter.mkdir(parents=True)
    (chapter / "test_case.py").write_text(cases)
    done = subprocess.run(
        [sys.executable, "-m", "helpers.vm", "--suite", folder, "--out", folder / "out",
         "debian:bookworm", "-q", "tests"],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, cwd=folder,
        capture_output=True, text=True, timeout=timeouts.scaled(280), check=False,
    )  # fmt: skip
    if done.returncode == 4:
        pytest.skip(f"needs Debian 12's kernel: {done.stderr.strip().splitlines()[-1]}")
    return done


@pytest.mark.deadline(300)
def test_guest_runs_the_suite(tmp_path):
    """A kernel in QEMU verifies and fails as the host would, and its result comes home."""
    done = booted(tmp_path, CASES)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "pytest ended with 1" in done.stderr
    (folder,) = (tmp_path / "out").iterdir()
    value = json.loads((folder / "result.json").read_text())
    assert value["run"]["kernel"]["release"].startswith("6.1.")
    verdicts = {b["id"].split("::")[1]: b["verdict"] for b in value["behaviours"]}
    assert verdicts == {"test_locks": "verified", "test_fails": "failed"}


@pytest.mark.deadline(300)
def test_guest_that_panics_is_no_failing_case(tmp_path):
    """A kernel that goes down in the middle of a run is 70, with its last words."""
    done = booted(tmp_path, CRASH)
    assert done.returncode == 70, done.stdout + done.stderr
    assert "panicked while pytest ran: Kernel panic - not syncing: sysrq triggered" in done.stderr
