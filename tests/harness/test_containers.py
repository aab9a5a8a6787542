# SPDX-License-Identifier: MIT
"""The suite inside containers of four privilege settings, and the advice that it gives there.

The containers' root is this machine's /usr and Python, read-only: no registry, no download.
"""

import contextlib
import itertools
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest

from helpers.machine import timeouts
from helpers.processes import credentials
from helpers.requirements import remedies, requirement
from helpers.syscalls import PAGE

ROOT = Path(__file__).resolve().parents[2]
PART = [
    "tests/calls/test_rights.py",
    "tests/limits/test_lock_privilege.py",
    "tests/residency/test_page_marks.py::test_read_fault_marks_every_page_it_maps",
    "tests/reclaim/test_pressure.py",
]
SMALL = max(64 << 10, 16 * PAGE)
# What podman and docker leave of root's capabilities by default.
DEFAULT = (
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETFCAP",
    "CAP_NET_BIND_SERVICE", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
)  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """Rights of a container: all of the host's, or these capabilities; a limit in bytes."""

    name: str
    privileged: bool = False
    capabilities: tuple[str, ...] = ()
    uid: int = 0
    memlock: int = 8 << 20


SETTINGS = [
    Setting("privileged", privileged=True),
    Setting("default", capabilities=DEFAULT),
    Setting("nobody", uid=65534),
    Setting("ipc-lock", capabilities=(*DEFAULT, "CAP_IPC_LOCK"), memlock=SMALL),
]


class Box:
    """A root folder, the files that a run needs in it, and where its results go."""

    def __init__(self, path: Path) -> None:
        self.path, self.root = path, path / "root"
        self.read_only = [Path("/usr"), *self._libraries()]
        for prefix in {Path(sys.prefix), Path(sys.base_prefix)}:
            if not prefix.is_relative_to("/usr"):
                self.read_only.append(prefix)
        self.writable = {path / "out": "/out", path / "vartmp": "/var/tmp"}
        for name in ("proc", "sys", "dev", "tmp", "run", "etc", "suite", "out", "var/tmp", "usr"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        (self.root / "tmp").chmod(0o1777)
        for path in self.read_only:  # a runtime would make what is above it for root alone
            (self.root / path.relative_to("/")).mkdir(parents=True, exist_ok=True)
        for name in ("passwd", "group", "ld.so.cache", "os-release"):
            if Path("/etc", name).exists():
                shutil.copy(f"/etc/{name}", self.root / "etc")
        for folder in self.writable:
            folder.mkdir()
            folder.chmod(0o1777)

    def _libraries(self) -> list[Path]:
        # Symbolic links into /usr, or folders of their own.
        self.root.mkdir(parents=True)
        found = []
        for path in [Path("/bin"), Path("/sbin"), *Path("/").glob("lib*")]:
            if path.is_symlink():
                (self.root / path.name).symlink_to(path.readlink())
            elif path.is_dir():
                found.append(path)
        return found

    def environment(self) -> dict[str, str]:
        return {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONDONTWRITEBYTECODE": "1",
                "LANG": "C.UTF-8", "HOME": "/"}  # fmt: skip

    def command(self) -> list[str]:
        return [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--report",
                "/out", *PART]  # fmt: skip

    def result(self) -> list[dict[str, str]]:
        return json.loads((self.path / "out" / "result.json").read_text())["behaviours"]


def limited(setting: Setting) -> list[str]:
    return ["prlimit", f"--memlock={setting.memlock}:{setting.memlock}"]


class Podman:
    """podman with state and locks of its own, so that nothing of it outlives the test."""

    engine = "podman"
    binary = "podman"

    def __init__(self, box: Box) -> None:
        self.box = box
        (box.path / "containers.conf").write_text(
            '[engine]\nlock_type="file"\ncgroup_manager="cgroupfs"\nevents_logger="none"\n'
        )

    def start(self, setting: Setting, *command: str) -> subprocess.CompletedProcess[str]:
        """Run in the container, by the OCI runtime that runs here (podman's own codes: 125 on)."""
        runtimes = [name for name in ("crun", "runc") if shutil.which(name)] or ["crun"]
        for runtime in runtimes:
            done = self.run(runtime, setting, *command)
            if done.returncode < 125:
                break
        return done

    def run(self, runtime: str, setting: Setting, *command: str):
        box = self.box
        limits = {"memlock": setting.memlock}
        for name in ("nofile", "nproc"):  # podman's own defaults may be above what is allowed
            hard = resource.getrlimit(getattr(resource, f"RLIMIT_{name.upper()}"))[1]
            limits[name] = 4096 if hard == resource.RLIM_INFINITY else min(hard, 4096)
        options = [f"--ulimit={name}={limit}:{limit}" for name, limit in limits.items()]
        options += [f"--env={name}={value}" for name, value in box.environment().items()]
        options += [f"--volume={path}:{path}:ro" for path in box.read_only]
        options += [f"--volume={path}:{inside}" for path, inside in box.writable.items()]
        if setting.privileged:
            options.append("--privileged")
        else:
            options += ["--cap-drop=all", *(f"--cap-add={c}" for c in setting.capabilities)]
        with removed_cgroups(), state_folder() as short:
            state = [f"--{name}={short}/{name}" for name in ("root", "runroot", "tmpdir")]
            return called(
                ["podman", *state, "--storage-driver=vfs", f"--runtime={runtime}", "run", "--rm",
                 "--network=none", "--timeout=45", f"--user={setting.uid}:{setting.uid}", *options,
                 "--tmpfs=/tmp", f"--volume={ROOT}:/suite:ro", "--workdir=/suite", "--rootfs",
                 str(box.root), *command],
                {"CONTAINERS_CONF": str(box.path / "containers.conf")},
            )  # fmt: skip


class Nspawn:
    """systemd-nspawn without a running systemd."""

    engine = "systemd-nspawn"
    binary = "systemd-nspawn"

    def __init__(self, box: Box) -> None:
        self.box = box

    def start(self, setting: Setting, *command: str) -> subprocess.CompletedProcess[str]:
        box = self.box
        options = [f"--setenv={name}={value}" for name, value in box.environment().items()]
        options += [f"--bind-ro={path}" for path in box.read_only]
        options += [f"--bind={path}:{inside}" for path, inside in box.writable.items()]
        environment = {}
        if setting.privileged:
            options.append("--capability=all")
            environment = {"SYSTEMD_SECCOMP": "0", "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "1"}
        elif "CAP_IPC_LOCK" in setting.capabilities:
            options.append("--capability=CAP_IPC_LOCK")
        name = f"memlock-{os.getpid()}"
        with removed_folders(name):
            return called(
                ["systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--as-pid2",
                 "--private-network", f"--machine={name}", f"--directory={box.root}",
                 f"--bind-ro={ROOT}:/suite", "--chdir=/suite",
                 f"--rlimit=MEMLOCK={setting.memlock}",
                 *options, *as_user(setting), *command],
                environment,
            )  # fmt: skip


class Bubblewrap:
    """bwrap in new namespaces, all but the user's."""

    engine = ""
    binary = "bwrap"

    def __init__(self, box: Box) -> None:
        self.box = box

    def start(self, setting: Setting, *command: str) -> subprocess.CompletedProcess[str]:
        box = self.box
        options = ["--bind", str(box.root), "/", "--proc", "/proc"]
        for path in box.read_only:
            options += ["--ro-bind", str(path), str(path)]
        for path, inside in box.writable.items():
            options += ["--bind", str(path), inside]
        for name, value in box.environment().items():
            options += ["--setenv", name, value]
        if setting.privileged:
            options += ["--dev-bind", "/dev", "/dev", "--bind", "/sys", "/sys"]
        else:
            options += ["--dev", "/dev", "--ro-bind", "/sys", "/sys", "--cap-drop", "ALL"]
            kept = setting.capabilities or DEFAULT
            options += itertools.chain.from_iterable(("--cap-add", c) for c in kept)
        return called(
            [*limited(setting), "bwrap", "--unshare-pid", "--unshare-ipc", "--unshare-uts",
             "--unshare-net", "--die-with-parent", "--clearenv", *options, "--ro-bind", str(ROOT),
             "/suite", "--chdir", "/suite", *as_user(setting), *command],
            {},
        )  # fmt: skip


def as_user(setting: Setting) -> list[str]:
    if not setting.uid:
        return []
    return ["setpriv", f"--reuid={setting.uid}", f"--regid={setting.uid}", "--clear-groups",
            "--inh-caps=-all", "--bounding-set=-all", "--"]  # fmt: skip


def called(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=timeouts.scaled(50),
        env={"PATH": os.environ["PATH"], **environment}, stdin=subprocess.DEVNULL,
    )  # fmt: skip


@contextlib.contextmanager
def state_folder():
    """A folder for podman's state (50 characters at most), gone when podman has cleaned up."""
    with tempfile.TemporaryDirectory(prefix="podman-") as folder:
        try:
            yield folder
        finally:  # conmon, which becomes podman's own clean-up
            everyone = psutil.process_iter(["cmdline"])
            psutil.wait_procs([p for p in everyone if folder in " ".join(p.info["cmdline"] or [])])


@contextlib.contextmanager
def removed_cgroups():
    """What podman leaves in the cgroup tree goes again, if it was not there before."""

    def found() -> set[Path]:
        return set(Path("/sys/fs/cgroup").glob("**/libpod_parent"))

    before = found()
    try:
        yield
    finally:
        for folder in found() - before:
            inside = (path for path in folder.rglob("*") if path.is_dir())  # conmon's, at least
            for path in [*sorted(inside, reverse=True), folder]:
                with contextlib.suppress(OSError):  # another podman has begun to use it
                    path.rmdir()


@contextlib.contextmanager
def removed_folders(machine: str):
    """What systemd-nspawn leaves of a machine in /run (where that is no tmpfs) goes again."""
    top = Path("/run/systemd/nspawn")
    before = set(top.glob("*")) | {top} if top.exists() else set()
    try:
        yield
    finally:
        for path in top.glob(f"*/*{machine}*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for folder in [*(set(top.glob("*")) - before), *({top} - before)]:
            with contextlib.suppress(OSError):  # another machine is in it, or was never made
                folder.rmdir()


# What is asked for first by the cases chosen, of what depends on rights alone.
RIGHTS = {"CAP_IPC_LOCK", "cgroup", "kpageflags", "lock-all", "lock-calls", "root-user"}
MISSING = {
    "privileged": set(),
    "default": {"CAP_IPC_LOCK", "cgroup", "kpageflags"},
    "nobody": {"CAP_IPC_LOCK", "cgroup", "kpageflags", "root-user"},
    "ipc-lock": {"cgroup", "kpageflags"},
}
# systemd-nspawn keeps CAP_SYS_ADMIN, never gives cgroups away, and filters the calls themselves
# unless CAP_IPC_LOCK is given.
NSPAWN = {
    "privileged": {"cgroup"},
    "default": {"CAP_IPC_LOCK", "cgroup", "lock-calls"},
    "nobody": {"CAP_IPC_LOCK", "cgroup", "lock-calls", "root-user"},
    "ipc-lock": {"cgroup"},
}


def not_verified(kind, setting: Setting, path: Path) -> dict[str, str]:
    """Run in a container, where nothing may fail: requirement → reason, of what is missing."""
    if not shutil.which(kind.binary):
        pytest.skip(f"needs {kind.binary}: not installed; apt install podman bubblewrap")
    lacking = {name for name in credentials.CAPABILITIES if not credentials.has_capability(name)}
    if lacking > {"CAP_SYS_RESOURCE"}:
        pytest.skip(f"needs {', '.join(lacking)} to give to a container; run as root")
    before = traces(path)
    box = Box(path)
    runtime = kind(box)
    done = runtime.start(setting, *box.command())
    if done.returncode and (tried := runtime.start(setting, "true")).returncode:
        pytest.skip(f"needs {kind.binary}: it does not run here: {tried.stderr.strip()[-300:]}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert traces(path) <= before, "the machine is as it was found"
    rows = box.result()
    assert {row["verdict"] for row in rows} <= {"verified", "deviates", "not verified"}
    missing: dict[str, str] = {}
    for row in rows:
        if row["verdict"] == "not verified":
            name = re.fullmatch(r"needs ([\w-]+)\S*: .*", row["detail"])[1]
            missing.setdefault(name, row["detail"])
    return missing


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: s.name)
@pytest.mark.parametrize("kind", [Podman, Nspawn, Bubblewrap], ids=lambda k: k.binary)
def test_run_in_a_container(kind, setting, tmp_path):
    """Nothing fails, what the setting allows is verified, and what it does not allow has a reason
    that names the container's own option; nothing is left behind."""
    missing = not_verified(kind, setting, tmp_path / "box")
    expected = (NSPAWN if kind is Nspawn else MISSING)[setting.name]
    assert set(missing) & RIGHTS == expected, missing
    if kind.engine:
        for name in expected - ({"cgroup", "root-user"} if kind is Nspawn else set()):
            assert f"; {kind.engine}: --" in missing[name], "the container's own option"


def test_advice_given_in_a_container_works(tmp_path):
    """A container that is given what a default one was advised to add lacks it no more."""
    (setting,) = (s for s in SETTINGS if s.name == "default")
    missing = not_verified(Podman, setting, tmp_path / "before")
    advised = {f"CAP_{c}" for c in re.findall(r"--cap-add (\w+)", " ".join(missing.values()))}
    assert advised == {"CAP_IPC_LOCK", "CAP_SYS_ADMIN"}
    again = replace(setting, capabilities=(*setting.capabilities, *sorted(advised)))
    assert set(not_verified(Podman, again, tmp_path / "after")) & RIGHTS == {"cgroup"}


def traces(path: Path) -> set[str]:
    """What container runtimes may leave on a machine; mounts only of this test's folder."""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    found = {line.split()[4] for line in mounts if str(path) in line or "/podman-" in line}
    found |= {str(folder) for folder in Path("/sys/fs/cgroup").glob("**/libpod_parent")}
    return found | {name for name in ("/run/systemd/nspawn",) if Path(name).exists()}


@pytest.mark.parametrize(
    ("marks", "inside", "words"),
    [
        ("lock:8", "podman", "podman: --cap-add IPC_LOCK or --ulimit memlock=33792"),
        ("lock-all", "docker", "docker: --cap-add IPC_LOCK or --ulimit memlock=-1"),
        ("CAP_IPC_LOCK", "podman", "--cap-add IPC_LOCK"),
        ("CAP_IPC_LOCK", "systemd-nspawn", "--capability=CAP_IPC_LOCK"),
        ("lock-calls", "systemd-nspawn", "--system-call-filter=@memlock"),
        ("mseal", "podman", "--security-opt seccomp=unconfined (a kernel)"),
        ("disk-file", "docker", "-v DIR:/data with DIR on ext4"),
        ("mglru", "podman", "a kernel"),
        ("lock:8", "lxc", "a kernel"),
        ("lock:8", "", "a kernel"),
    ],
)
def test_remedy_is_the_containers_option(marks, inside, words):
    """Inside a known container its option is named; elsewhere, and for what no option gives,
    the machine's own remedy stays."""
    text = remedies.remedy(marks, "a kernel", 8 * 4096 + requirement.SLACK, inside)
    assert words in text
    assert text == words or text.startswith(f"{inside}: "), text


def test_every_option_is_of_a_requirement():
    """The tables name requirements that exist."""
    for table in (remedies._OCI, remedies._NSPAWN):
        assert set(table) <= set(requirement.names())


def test_marks_of_a_container_count_only_inside_one(monkeypatch):
    """A file or variable that an image left behind does not make a machine a container."""
    monkeypatch.setenv("container", "podman")
    inside = os.stat("/proc/self/ns/pid").st_ino != remedies._PID_INIT_INO
    assert remedies.container_engine() == ("podman" if inside else "")
    there = os.stat_result([0o100444, 12345, *[0] * 8])
    monkeypatch.setattr(os, "stat", lambda *_, **__: there)
    assert remedies.container_engine() == "podman"
