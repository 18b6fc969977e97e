"""From ``import execwatch`` to attached, and the memory of a process that traces."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Iterator

from benchmarks.measure import Figure, Programs

_START = """
import time
started = time.perf_counter()
from execwatch import ExecTracer
{prepare}
tracer = ExecTracer()
tracer.start()
print(time.perf_counter() - started)
resident = int(open("/proc/self/smaps_rollup").read().split("Rss:")[1].split()[0])
ring = 0
for part in open("/proc/self/smaps").read().split("VmFlags")[:-1]:
    if "bpf-map" in part:
        ring += int(part.split("\\nRss:")[1].split()[0])
print(resident - ring)
tracer.close()
"""

_NO_OFFSETS = "from execwatch.kernel import offsets; offsets.kernel_build_id = lambda: None"
_NO_IMAGE = (
    "from execwatch.build import images; from execwatch.kernel import cache\n"
    "images._shipped = lambda *_: None; cache.default_directory = lambda: None"
)


def run(programs: Programs, rounds: int) -> Iterator[Figure]:
    """Yield start-up times in ms, and resident memory in MiB, the ring's own pages aside."""
    cases = {
        "import to attached, offsets remembered": ("", 110),
        "import to attached, kernel never seen": (_NO_OFFSETS, 200),
        "import to attached, BCC compiles": (_NO_IMAGE, 800),
    }
    times: dict[str, list[float]] = {name: [] for name in cases}
    memory: list[float] = []
    for turn in range(rounds + 1):
        for name, (prepare, _) in cases.items():
            seconds, resident = start(prepare)
            if turn:  # the first warms the caches
                times[name].append(seconds * 1000)
                if not prepare:
                    memory.append(resident / 1024)
    for name, (_, limit) in cases.items():
        yield Figure(name, times[name], "ms", limit)
    yield Figure("resident memory while tracing, without the ring", memory, "MiB", 24)


def start(prepare: str) -> tuple[float, float]:
    code = _START.format(prepare=prepare)
    # With bytecode, as an installed package has it.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    seconds, resident = done.stdout.split()
    return float(seconds), float(resident)
