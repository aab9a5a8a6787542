# SPDX-License-Identifier: MIT
"""Reading every page of a region: a C loop with one pread a page beside the bulk reader."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from helpers import memory, syscalls
from helpers.observe import page_flags, pagemap

C_LOOP = """
#include <stdint.h>
#include <unistd.h>
long flags_or(int map, int flags, uint64_t first, long pages)
{
    uint64_t entry, word, all = 0;
    for (long i = 0; i < pages; i++) {
        if (pread(map, &entry, 8, (first + i) * 8) != 8) return -1;
        if (pread(flags, &word, 8, (entry & ((1ULL << 55) - 1)) * 8) != 8) return -1;
        all |= word;
    }
    return (long)(all >> 5 & 1);
}
"""


@pytest.fixture
def c_loop(tmp_path: Path):
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler: install gcc")
    source, library = tmp_path / "loop.c", tmp_path / "loop.so"
    source.write_text(C_LOOP)
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", library, source], check=True)
    function = ctypes.CDLL(str(library)).flags_or
    function.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_uint64, ctypes.c_long]
    function.restype = ctypes.c_long

    def loop(addr: int, pages: int) -> int:
        maps, flags = (os.open(p, os.O_RDONLY) for p in ("/proc/self/pagemap", "/proc/kpageflags"))
        try:
            return function(maps, flags, addr // syscalls.PAGE, pages)
        finally:
            os.close(maps)
            os.close(flags)

    return loop


def cpu(function, *args) -> float:
    started = time.process_time()
    function(*args)
    return time.process_time() - started


@pytest.mark.needs("kpageflags")
@pytest.mark.parametrize("mib", [64, 256, 1024])
def test_state_of_a_region(benchmark, c_loop, capsys, mib):
    """CPU of both on the same region; linear if the time a page is the same at every size."""
    size = mib << 20
    if size > psutil.virtual_memory().available // 4:
        pytest.skip(f"needs {4 * mib} MiB of available memory")
    syscalls.prctl(syscalls.PR_SET_THP_DISABLE, 1, 0, 0, 0)
    pages = size // syscalls.PAGE
    with memory.mapping("private", pages) as region:
        region.write()
        page_flags.snapshot(region.addr, pages)
        in_c = min(cpu(c_loop, region.addr, pages) for _ in range(3))
        bulk = min(cpu(page_flags.snapshot, region.addr, pages) for _ in range(3))
        benchmark.pedantic(page_flags.snapshot, (region.addr, pages), rounds=3, iterations=1)
        parts = len(page_flags.contiguous_pfns(pagemap.pfns(region.addr, pages)))
    benchmark.extra_info |= {"ratio": bulk / in_c, "segments": parts}
    with capsys.disabled():
        print(
            f"\n{mib} MiB ({pages} pages in {parts} PFN segments): one pread a page in C "
            f"{in_c:.3f} s, bulk {bulk:.3f} s (ratio {bulk / in_c:.2f}, "
            f"{bulk / pages * 1e6:.2f} µs a page)"
        )
