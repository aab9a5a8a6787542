# SPDX-License-Identifier: MIT
"""execve(2) and posix_spawn(3): locks and MCL_FUTURE end with the address space, limits stay."""

import os
import resource

import pytest

from helpers import memory, syscalls
from helpers.memory import Region, mapping
from helpers.observe import maps, pagemap, status
from helpers.processes import Child, rlimits, run_program
from helpers.syscalls import MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT, PAGE

N = 6
pytestmark = [
    pytest.mark.share_process,
    pytest.mark.source("execve(2)", "mlock(2) NOTES: locks are removed on execve"),
]
FUTURES = pytest.mark.parametrize(
    "flags",
    [
        # MCL_FUTURE alone locks only what the interpreter maps from then on.
        pytest.param(MCL_FUTURE, marks=pytest.mark.needs(f"lock:{(4 << 20) // PAGE}")),
        pytest.param(MCL_CURRENT | MCL_FUTURE, marks=pytest.mark.needs("lock-all")),
        pytest.param(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT, marks=pytest.mark.needs("lock-all")),
    ],
    ids=["future", "current-future", "current-future-onfault"],
)


def vmlck_kb(text: str) -> int:
    (line,) = [row for row in text.splitlines() if row.startswith("VmLck:")]
    return int(line.split()[1])


def lock_flags(text: str) -> set[str]:
    """Lock flags that any mapping in this smaps carries."""
    found: set[str] = set()
    for vma in maps.parse_smaps(text):
        found |= vma.flags & {"lo", "lf"}
    return found


def lock_some() -> None:
    """Lock N pages for good in this process; an exception if VmLck does not say so."""
    addr = syscalls.mmap(0, N * PAGE)
    syscalls.mlock(addr, N // 2 * PAGE)
    syscalls.mlock2(addr + N // 2 * PAGE, (N - N // 2) * PAGE, syscalls.MLOCK_ONFAULT)
    if status.vmlck_pages() != N:
        raise RuntimeError("not locked before execve")


@pytest.mark.needs(f"lock:{N}")
@pytest.mark.detects("exec-keeps-vmlck")
def test_execve_drops_locks():
    """A program executed by a process with locked memory starts with VmLck 0 and no lo mapping."""
    state = run_program("cat", "/proc/self/status", before=lock_some)
    smaps = run_program("cat", "/proc/self/smaps", before=lock_some)
    assert vmlck_kb(state) == 0, "VmLck of the executed program"
    assert lock_flags(smaps) == set(), "lock flags of the executed program's mappings"


def mlockall_checked(flags: int) -> None:
    syscalls.mlockall(flags)
    with mapping("private", N) as region:
        if not maps.at(region.addr).locked:
            raise RuntimeError("MCL_FUTURE does not act before execve")


@FUTURES
@pytest.mark.detects("exec-keeps-future")
def test_execve_drops_mcl_future(flags):
    """A program executed under MCL_FUTURE has VmLck 0 and no lo mapping, though it mapped its
    libraries, heap and stack after execve."""
    state = run_program("cat", "/proc/self/status", before=lambda: mlockall_checked(flags))
    smaps = run_program("cat", "/proc/self/smaps", before=lambda: mlockall_checked(flags))
    assert vmlck_kb(state) == 0, "VmLck of the executed program"
    assert lock_flags(smaps) == set(), "lock flags of the executed program's mappings"
    assert len(maps.parse_smaps(smaps)) > 3, "the executed program's mappings were listed"


def memlock_of(text: str) -> tuple[int, int]:
    """Soft and hard RLIMIT_MEMLOCK in a limits file, as resource.getrlimit has them."""
    (line,) = [row for row in text.splitlines() if row.startswith("Max locked memory")]
    soft, hard = line.removeprefix("Max locked memory").split()[:2]
    numbers = [rlimits.RLIM_INFINITY if v == "unlimited" else int(v) for v in (soft, hard)]
    return numbers[0], numbers[1]


@pytest.mark.needs("limit:2")
@pytest.mark.source("getrlimit(2): limits are preserved over execve")
@pytest.mark.parametrize("soft", [0, PAGE, 2 * PAGE - 1, 2 * PAGE])
@pytest.mark.detects("exec-raises-limit")
def test_execve_keeps_the_soft_limit(soft):
    """Soft RLIMIT_MEMLOCK passes execve to the byte, lower than the hard one, which stays too."""
    hard = rlimits.memlock_limit()[1]
    seen = run_program("cat", "/proc/self/limits", before=lambda: rlimits.set_soft_memlock(soft))
    assert memlock_of(seen) == (soft, hard), "soft and hard RLIMIT_MEMLOCK after execve, bytes"


@pytest.mark.needs("limit:2")
def test_execve_keeps_the_hard_limit():
    """A lowered hard RLIMIT_MEMLOCK passes execve."""

    def lower() -> None:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (PAGE, 2 * PAGE))

    seen = run_program("cat", "/proc/self/limits", before=lower)
    assert memlock_of(seen) == (PAGE, 2 * PAGE), "soft and hard RLIMIT_MEMLOCK after execve"


def locks(region: Region, pid: int | str = "self") -> tuple[int, list]:
    return status.vmlck_pages(pid), maps.layout(region, pid)


ALL = (N, [(0, N, "lo")])


@pytest.mark.needs(f"lock:{N}")
@pytest.mark.parametrize("kind", ["private", "memfd-shared"])
def test_execve_by_a_child_that_locked_leaves_the_parents_locks(kind):
    """Of two processes that locked the same memory, one executes a program: its VmLck is 0, the
    other's lock, pages and contents stay."""
    with mapping(kind, N, flags=syscalls.MAP_LOCKED) as region:
        region.write(0x42)
        with Child() as child:
            child.call(syscalls.mlock, region.addr, region.size)
            assert child.call(status.vmlck_pages) == N, "the child locked too"
            child.exec("cat")
            assert status.vmlck_pages(child.pid) == 0, "VmLck of the program is 0"
            assert locks(region) == ALL, "the parent's lock stays"
            assert pagemap.present(region.addr, N) == [True] * N, "its pages stay present"
            assert region.read() == b"\x42" * region.size, "contents stay"


def failing_execve(region: Region, path: str) -> tuple[str, tuple[int, list], list]:
    syscalls.mlock(region.addr, region.size)
    seen = syscalls.outcome(os.execv, path, [path])
    return seen, locks(region), pagemap.present(region.addr, N)


@pytest.mark.own_process
@pytest.mark.needs(f"lock:{N}")
@pytest.mark.parametrize("error", ["ENOENT", "EACCES", "ENOEXEC"])
@pytest.mark.detects("exec-failed-unlocks")
def test_failed_execve_keeps_locks(error):
    """A call of execve that fails leaves locks, VmLck and pages as they were."""
    path = "/nonexistent/program"
    if error != "ENOENT":
        file = memory.scratch_file(0)
        os.write(file, b"no program\n")
        os.fchmod(file, 0o755 if error == "ENOEXEC" else 0o644)
        # What is open for writing would be refused for that (ETXTBSY).
        path = f"/proc/self/fd/{os.open(f'/proc/self/fd/{file}', os.O_RDONLY)}"
        os.close(file)
    with mapping("private", N) as region:
        with Child() as child:
            seen, after, present = child.call(failing_execve, region, path)
        # A folder mounted noexec refuses first.
        expected = {error, "EACCES"} if error == "ENOEXEC" else {error}
        assert seen in expected, "execve fails"
        assert after == ALL, "locks after the failed call"
        assert present == [True] * N, "present pages after the failed call"


def failing_execve_under_future(path: str) -> tuple[str, list]:
    syscalls.mlockall(MCL_FUTURE)
    seen = syscalls.outcome(os.execv, path, [path])
    with mapping("private", N) as region:
        return seen, maps.layout(region)


@pytest.mark.needs(f"lock:{(4 << 20) // PAGE}")
@pytest.mark.detects("exec-failed-cancels-future")
def test_failed_execve_keeps_mcl_future():
    """MCL_FUTURE still acts after a call of execve that failed."""
    with Child() as child:
        seen = child.call(failing_execve_under_future, "/nonexistent/program")
    assert seen == ("ENOENT", [(0, N, "lo")]), "execve, and a mapping made after it"


def spawned(*command: str) -> str:
    """What a program prints that posix_spawn (clone with CLONE_VM | CLONE_VFORK) started."""
    read_end, write_end = os.pipe()
    actions = [(os.POSIX_SPAWN_DUP2, write_end, 1)]
    pid = os.posix_spawnp(command[0], command, os.environ, file_actions=actions)
    os.close(write_end)
    text = b""
    while got := os.read(read_end, 1 << 16):
        text += got
    os.close(read_end)
    if os.waitpid(pid, 0)[1]:
        raise RuntimeError(f"{command} failed")
    return text.decode()


@pytest.mark.needs(f"lock:{N}")
@pytest.mark.source("posix_spawn(3)")
def test_posix_spawn_starts_without_locks_and_leaves_the_parents():
    """A program started by posix_spawn has no lock, and the parent, whose address space its child
    shared until execve, keeps lock, pages and contents."""
    with mapping("private", N, flags=syscalls.MAP_LOCKED) as region:
        region.write(0x42)
        state, smaps = spawned("cat", "/proc/self/status"), spawned("cat", "/proc/self/smaps")
        assert vmlck_kb(state) == 0, "VmLck of the program is 0"
        assert lock_flags(smaps) == set(), "lock flags of the program's mappings"
        assert locks(region) == ALL, "the parent's lock stays"
        assert pagemap.present(region.addr, N) == [True] * N, "its pages stay present"
        assert region.read() == b"\x42" * region.size, "contents stay"


def spawn_under_future(flags: int) -> tuple[int, set[str], list]:
    syscalls.mlockall(flags)
    state, smaps = spawned("cat", "/proc/self/status"), spawned("cat", "/proc/self/smaps")
    with mapping("private", N) as region:
        shape = maps.layout(region)
    return vmlck_kb(state), lock_flags(smaps), shape


@FUTURES
def test_posix_spawn_does_not_pass_on_mcl_future(flags):
    """A program started by posix_spawn under MCL_FUTURE has no lock; MCL_FUTURE stays with the
    parent."""
    with Child() as child:
        vmlck, seen, shape = child.call(spawn_under_future, flags)
    assert vmlck == 0, "VmLck of the program is 0"
    assert seen == set(), "lock flags of the program's mappings"
    lock = "lo lf" if flags & MCL_ONFAULT else "lo"
    assert shape == [(0, N, lock)], "a mapping made by the parent afterwards"
