"""What a storm of execs pays for being traced: two processes, a static binary."""

from __future__ import annotations

import pathlib
import subprocess
import threading
import time
from typing import Any, Iterator

from benchmarks.measure import Figure, Programs
from execwatch import ExecTracer

_EACH = 10_000


def run(programs: Programs, rounds: int) -> Iterator[Figure]:
    """Yield the storm's time traced over untraced, and what it cost whom."""
    ratios, reader, calls, failed = [], [], [], []
    storm(programs)
    for _ in range(rounds):
        bare = storm(programs)
        traced, cpu = traced_storm(programs)
        ratios.append(traced / bare)
        reader.append(cpu * 1e6)
        bare, traced, slowed = system_calls(programs)
        calls.append(traced / bare)
        failed.append(slowed - bare)
    yield Figure("storm of 2 processes, traced and drained / untraced", ratios, "x", 1.08)
    yield Figure("CPU time of the reader for an exec in it", reader, "us")
    yield Figure("getppid, traced / untraced", calls, "x", 1.03)
    yield Figure("any system call, added by failed=True", failed, "ns")
    yield Figure(
        "BPF program for an exec, by bpf_stats", [kernel_time(programs) for _ in range(rounds)], "us", 5
    )


def storm(programs: Programs) -> float:
    """Return the seconds that the storm takes."""
    command = [programs("storm"), str(_EACH)]
    target = programs("nothing")
    started = time.perf_counter()
    processes = [subprocess.Popen([*command, str(half * _EACH), target]) for half in (0, 1)]
    for process in processes:
        if process.wait() != 0:
            raise AssertionError("the storm failed")
    return time.perf_counter() - started


def traced_storm(programs: Programs) -> tuple[float, float]:
    """Return its seconds while a thread drains, and the reader's CPU seconds for an exec."""
    with ExecTracer() as tracer:
        seen = 0
        cpu = 0.0
        target = programs("nothing")

        def drain() -> None:
            nonlocal seen, cpu
            started = time.thread_time()
            for event in tracer.events():
                seen += event.filename == target
            cpu = time.thread_time() - started

        thread = threading.Thread(target=drain)
        thread.start()
        seconds = storm(programs)
        tracer.stop()
        thread.join()
        stats = tracer.stats()
    if seen != 2 * _EACH or stats.lost:
        raise AssertionError(f"{seen} of {2 * _EACH} seen, {stats.lost} lost")
    return seconds, cpu / stats.delivered


def system_calls(programs: Programs) -> tuple[float, float, float]:
    """Return the ns of a system call: untraced, with a tracer attached, and with failed attempts."""

    def measure() -> float:
        return float(subprocess.run([programs("getppid")], stdout=subprocess.PIPE, check=True).stdout)

    bare = measure()
    with ExecTracer():
        traced = measure()
    with ExecTracer(failed=True):
        slowed = measure()
    return bare, traced, slowed


def kernel_time(programs: Programs, **options: Any) -> float:
    """Return the microseconds that the BPF program runs for an exec, as the kernel counts them.

    Args:
        options: Of the tracer.
    """
    switch = pathlib.Path("/proc/sys/kernel/bpf_stats_enabled")
    before = switch.read_text()
    switch.write_text("1")
    try:
        with ExecTracer(**options) as tracer:
            thread = threading.Thread(target=lambda: [None for _ in tracer.events()])
            thread.start()
            storm(programs)
            image = tracer._stream._source._image  # type: ignore[union-attr]
            (fd,) = image.programs.values()
            lines = pathlib.Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
            info = dict(line.split(":\t") for line in lines)
            tracer.stop()
            thread.join()
    finally:
        switch.write_text(before)
    return int(info["run_time_ns"]) / int(info["run_cnt"]) / 1000
