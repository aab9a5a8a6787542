# SPDX-License-Identifier: MIT
"""Scarce resources: a case that could not be set up is a broken set-up, never a failure."""

import json
import os
import resource

import pytest

from helpers import memory, processes, syscalls
from helpers.processes import credentials
from helpers.requirements import remedies, requirement

SCARCE = """
from helpers import memory
from helpers import processes
from helpers import syscalls
from helpers.processes import stub
import os, resource, signal, subprocess, threading
import pytest

def limit(which, soft):
    resource.setrlimit(which, (soft, resource.getrlimit(which)[1]))

def open_many():
    limit(resource.RLIMIT_NOFILE, 32)
    return [os.open("/dev/null", os.O_RDONLY) for _ in range(64)]

def test_descriptors():
    open_many()

def test_descriptors_of_a_child():
    with processes.Child() as child:
        child.call(open_many)

def test_descriptors_of_a_closure():
    processes.run(open_many)

def test_descriptors_before_a_program():
    processes.run_program("true", before=open_many)

def test_descriptor_by_number():
    limit(resource.RLIMIT_NOFILE, 3)
    syscalls.syscall("userfaultfd", 1)  # UFFD_USER_MODE_ONLY

def test_file_size():
    limit(resource.RLIMIT_FSIZE, 4096)
    memory.scratch_file(32)

def test_file_size_as_an_outcome():
    limit(resource.RLIMIT_FSIZE, 4096)
    assert syscalls.outcome(memory.memfd, 8192) == "EAGAIN"

def test_cause():
    try:
        open_many()
    except OSError as error:
        raise RuntimeError("no descriptors") from error

def test_file_size_signal():
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    limit(resource.RLIMIT_FSIZE, 4096)
    memory.scratch_file(32)

def test_full():
    memory.write_file(os.open("/dev/full", os.O_WRONLY), b"x" * 8)

def test_processes():
    limit(resource.RLIMIT_NPROC, 0)
    os.setresuid(65534, 65534, 65534)
    processes.Child()

def test_bare_processes():
    limit(resource.RLIMIT_NPROC, 0)
    os.setresuid(65534, 65534, 65534)
    stub.StubProcess()

def test_threads():
    limit(resource.RLIMIT_NPROC, 0)
    os.setresuid(65534, 65534, 65534)
    threading.Thread(target=print).start()
"""

SUBJECT = """
from helpers import memory
from helpers import processes
from helpers import syscalls
from helpers.memory import layouts
import ctypes, errno, os, resource
import pytest

def lied(name, code):
    ctypes.set_errno(code)
    raise syscalls.call_failed(name, (4096, 4096, 3, 2))

@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENOMEM, errno.EAGAIN, errno.ENOSPC])
@pytest.mark.parametrize("name", ["mlock", "mlock2", "mlockall", "munlock", "mmap", "mremap",
                                  "madvise", "mprotect"])
def test_call(name, code):
    lied(name, code)

def test_call_of_a_child():
    with processes.Child() as child:
        child.call(lied, "mlock", errno.EMFILE)

def test_outcome():
    assert syscalls.outcome(lied, "mlock", errno.EMFILE) == "ok"

def test_lock_of_nothing():
    with memory.mapping("private", 4) as region:
        layouts.unmap_pages(region, 1)
        syscalls.mlock(region.addr, region.size)

def test_limit_that_the_case_set():
    resource.setrlimit(resource.RLIMIT_AS, (1 << 20, resource.getrlimit(resource.RLIMIT_AS)[1]))
    syscalls.mmap(0, 1 << 20)

def test_lock_limit_of_the_heap():
    os.setresuid(65534, 65534, 65534)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (1 << 26, 1 << 26))
    syscalls.mlockall(syscalls.MCL_CURRENT | syscalls.MCL_FUTURE)
    kept = [bytearray(1 << 20) for _ in range(100)]

def test_other_error():
    os.open("/nowhere/at/all", os.O_RDONLY)

def test_assertion():
    assert os.strerror(errno.EMFILE) == ""
"""

root = pytest.mark.skipif(os.geteuid() != 0, reason="needs another user's ids: run as root")


def verdicts(suite, *options, **extra):
    done = suite.run("--report=result", *options, **extra)
    rows = json.loads((suite.path / "result" / "result.json").read_text())["behaviours"]
    assert "Traceback" not in done.stdout + done.stderr, done.stdout + done.stderr
    return done, {row["id"].partition("::")[2]: row for row in rows}


@root
@pytest.mark.parametrize("workers", [(), ("-n", "1")], ids=["alone", "worker"])
def test_scarce_resource_is_a_broken_set_up(suite, workers):
    """Descriptors, file sizes, room, processes, threads that end: broken set-up, with advice."""
    suite.case(SCARCE)
    done, rows = verdicts(suite, *workers)
    assert done.returncode == 1
    assert {name for name, row in rows.items() if row["verdict"] != "broken set-up"} == set(), rows
    assert all("could not be set up: " in row["reason"] for row in rows.values()), rows
    assert all("wants " in row["reason"] for row in rows.values()), rows
    assert "SIGXFSZ" in rows["test_file_size_signal"]["reason"]
    assert " errors in " in done.stdout
    assert " failed" not in done.stdout.splitlines()[-1]


@root
def test_answer_of_a_call_under_test_stays_a_failure(suite):
    """Whatever a call on memory answers is the subject, as is what a case's own limit refuses."""
    suite.case(SUBJECT)
    done, rows = verdicts(suite)
    assert done.returncode == 1
    assert {name for name, row in rows.items() if row["verdict"] != "failed"} == set(), rows


INHERITED = """
from helpers import memory
from helpers import processes
from helpers import syscalls
from helpers.memory import layouts
from helpers.processes import stub
import pytest

def test_mapping():
    with memory.mapping("private", (1 << 30) // syscalls.PAGE):
        pass

def test_outcome():
    assert syscalls.outcome(syscalls.mmap, 0, 1 << 30) == "ok"

def test_mapping_of_a_child():
    with processes.Child() as child:
        child.call(syscalls.mmap, 0, 1 << 30)

def test_mapping_of_a_bare_process():
    with stub.StubProcess() as other:
        other.mmap((1 << 30) // syscalls.PAGE)

def test_interpreter():
    kept = bytearray(1 << 30)

def test_control():
    with memory.mapping("private", 4) as region:
        layouts.unmap_pages(region, 1)
        syscalls.mlock(region.addr, region.size)
"""


@pytest.mark.parametrize("limit", ["--as=900000000", "--data=300000000"])
def test_address_space_of_the_run_is_proved_to_be_the_cause(suite, monkeypatch, limit):
    """Under a small RLIMIT_AS or RLIMIT_DATA a large mapping is a broken set-up, mlock's ENOMEM a
    failure."""
    plain = suite.command
    monkeypatch.setattr(suite, "command", lambda *o: ["prlimit", limit, *plain(*o)])
    suite.case(INHERITED)
    _, rows = verdicts(suite)
    seen = {name: row["verdict"] for name, row in rows.items()}
    assert seen.pop("test_control") == "failed", rows
    if "data" in limit:  # what replaces a reserved range is not held against RLIMIT_DATA
        assert seen.pop("test_mapping") == "verified", rows
    assert set(seen.values()) == {"broken set-up"}, rows


def test_too_few_descriptors_for_any_case_are_said_by_case(suite, monkeypatch):
    """Where not even a case's pipe can be had, each case is a broken set-up and the run goes on."""
    plain = suite.command
    monkeypatch.setattr(suite, "command", lambda *o: ["prlimit", "--nofile=14:14", *plain(*o)])
    suite.case(
        "def test_one():\n    pass\n\ndef test_two():\n    with open('/dev/null'):\n        pass\n"
    )
    done = suite.run()
    said = done.stdout + done.stderr
    assert "INTERNALERROR" not in said, said
    assert "2 passed" in said or ("ulimit -n" in said and done.returncode), said


def test_soft_limits_are_raised_to_the_hard_ones(suite, monkeypatch):
    """A soft limit of descriptors or file sizes withholds nothing from the cases."""
    plain = suite.command
    limits = ["prlimit", "--nofile=20:512", "--fsize=8192:unlimited"]
    monkeypatch.setattr(suite, "command", lambda *o: [*limits, *plain(*o)])
    suite.case(
        "import os\nfrom helpers import memory\n\ndef test_many():\n"
        "    memory.scratch_file(64)\n"
        "    [os.open('/dev/null', os.O_RDONLY) for _ in range(300)]\n"
    )
    done = suite.run()
    assert "1 passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("place", ["/proc", "/sys", "/dev/null", "full"])
def test_file_dir_without_room_is_one_line(suite, monkeypatch, place):
    """--file-dir where no file can be written ends the run before it begins, saying why."""
    suite.case("def test_fine():\n    pass\n")
    if place == "full":
        plain = suite.command
        script = 'mount -t tmpfs -o size=16k none /mnt && exec "$@"'
        monkeypatch.setattr(
            suite, "command", lambda *o: ["unshare", "-m", "sh", "-c", script, "_", *plain(*o)]
        )
    done = suite.run(f"--file-dir={'/mnt' if place == 'full' else place}")
    if "unshare:" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"needs a mount namespace: {done.stderr.strip()}; run as root")
    assert done.returncode == 4, done.stdout + done.stderr
    assert "is not a folder we can write to" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    if place == "full":
        assert "No space left on device" in done.stderr


DISK = """
from helpers import memory
from helpers.memory import files
import pytest

@pytest.mark.needs("disk-file")
def test_disk():
    with memory.mapping("file-private", 4) as region:
        assert files.file_dir == "/var/tmp"
"""


@pytest.mark.parametrize("workers", [(), ("-n", "1")], ids=["alone", "worker"])
def test_files_go_to_a_disk_where_tmp_is_none(suite, workers):
    """With the temporary folder on a tmpfs files go to /var/tmp, and the header says so."""
    if syscalls.filesystem_type("/dev/shm") != "tmpfs" or memory.no_disk("/var/tmp"):
        pytest.skip(f"needs a tmpfs on /dev/shm and a disk: {memory.no_disk('/var/tmp')}")
    suite.case(DISK)
    done = suite.run("-v", *workers, env={"TMPDIR": "/dev/shm"})
    assert "1 passed" in done.stdout, done.stdout + done.stderr
    assert f"files on {syscalls.filesystem_type('/var/tmp')}, in /var/tmp" in done.stdout


def test_full_disk_is_no_place_for_files(monkeypatch):
    """A folder on a disk with no room is passed over, saying why."""
    monkeypatch.setattr(syscalls, "filesystem_type", lambda folder: "ext4")

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
        return memory.no_disk("/var/tmp"), memory.find_file_dir()

    why, found = processes.run(limited)
    assert "File too large" in why
    assert "ulimit -f" in why
    assert found == ""


@root
def test_file_system_is_named_where_mountinfo_has_no_mount(tmp_path):
    """In a chroot, whose own mount is not in mountinfo, statfs(2) names the file system."""

    def confined():
        syscalls.unshare_mounts()
        (tmp_path / "proc").mkdir()
        syscalls.mount("/proc", str(tmp_path / "proc"), "", 4096)  # MS_BIND
        os.chroot(tmp_path)
        os.chdir("/")
        return syscalls.filesystem_type("/"), syscalls.filesystem_type("/proc")

    try:
        seen = processes.run(confined)
    except OSError as error:
        pytest.skip(f"needs chroot and a mount namespace: {error}; run as root")
    assert seen == (syscalls.filesystem_type(tmp_path), "proc")


def standing(*lower, bounding=True, user=False, inside=""):
    """In a child with CAP_IPC_LOCK taken away: details and remedies of what it lacks then."""
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
    if not bounding:
        number = credentials.CAPABILITIES["CAP_IPC_LOCK"]
        syscalls.prctl(syscalls.PR_CAPBSET_DROP, number, 0, 0, 0)
    if user:
        credentials.set_user()
    elif bounding:
        credentials.lower_effective("CAP_IPC_LOCK")
    else:
        now = credentials.capabilities()
        mask = ~(1 << credentials.CAPABILITIES["CAP_IPC_LOCK"])
        sets = (now.effective & mask, now.permitted & mask, now.inheritable & mask)
        credentials.set_capabilities(credentials.CapabilitySets(*sets))
    engine = remedies.container_engine
    remedies.container_engine = lambda: inside
    try:
        survey = {"lock-calls": type("Here", (), {"available": True})}
        return [str(requirement.unmet(n, survey, 0)) for n in ("CAP_IPC_LOCK", "lock:8",
                                                                  "lock-all")]  # fmt: skip
    finally:
        remedies.container_engine = engine


@root
@pytest.mark.parametrize("inside", ["", "docker", "podman"])
def test_capability_that_is_not_effective_says_where_it_is(inside):
    """Permitted, in the bounding set only, or in none: each has its own advice."""
    bounded = processes.run(lambda: standing(user=True, inside=inside))
    permitted = processes.run(lambda: standing(inside=inside))
    dropped = processes.run(lambda: standing(bounding=False, inside=inside))
    assert all("in the bounding set only" in text for text in bounded), bounded
    assert all("setcap cap_ipc_lock+ep" in text for text in bounded), bounded
    assert all("it is permitted" in text for text in permitted), permitted
    assert all("not in the bounding set" in text for text in dropped), dropped
    if inside:
        assert all("--user 0" in text and "--cap-add" not in text for text in bounded), bounded
        assert all("--cap-add IPC_LOCK" in text for text in dropped), dropped
    else:
        assert all("run as root" in text for text in bounded + dropped), bounded
