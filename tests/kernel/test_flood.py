"""Floods, stops and kills: what is lost is counted, what matters is not lost."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import threading
from typing import Callable, Iterator

import pytest

from execwatch import ExecEvent, ExecTracer, FailedExecEvent, Filter

from .conftest import EMULATED, Reason, scaled, skip, until
from .test_storm import loaded_programs, stop_when_done, storm

Programs = Callable[[str], str]

REAL = 200


@contextlib.contextmanager
def flood(programs: Programs) -> Iterator[None]:
    """Two processes that fail to execute, some hundred thousand times a second."""
    processes = [subprocess.Popen([programs("flood")]) for _ in range(2)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.mark.parametrize("round", range(5))
def test_a_flood_of_failures_costs_no_exec(round: int, programs: Programs, tracer_buffer: str) -> None:
    """In a perf buffer there is no room set aside; then losses are counted."""
    nothing = programs("nothing")
    with ExecTracer(failed=True) as tracer:
        events: list[object] = []
        reader = threading.Thread(target=lambda: events.extend(keep(tracer)))
        reader.start()
        with flood(programs):
            until(lambda: tracer.stats().failed.seen > 10_000, "the flood")
            subprocess.run([programs("storm"), str(REAL), "0", nothing], check=True)
        tracer.stop()
        reader.join(100)
        stats = tracer.stats()
    numbers = [int(event.argv[1]) for event in events if isinstance(event, ExecEvent)]
    if tracer_buffer == "perf":
        assert REAL - stats.exec.lost <= len(numbers) <= REAL
    else:
        assert numbers == list(range(REAL))
        assert stats.exec.lost == 0
    assert stats.failed.seen == stats.failed.delivered + stats.failed.filtered + stats.failed.lost
    assert stats.failed.pending == 0
    assert stats.failed.delivered > 0


def keep(tracer: ExecTracer) -> Iterator[object]:  # type: ignore[type-arg]
    """What the test needs of a million events."""
    for event in tracer.events():
        if isinstance(event, ExecEvent) and event.comm == "nothing":
            yield event


def test_what_a_flood_loses_is_counted_by_kind(programs: Programs) -> None:
    with ExecTracer(Filter(comms={"flood"}), failed=True, lost=True, buffer_size=1 << 16) as tracer:
        with flood(programs):
            until(lambda: tracer.stats().failed.lost > 10_000, "losses")
        tracer.stop()
        delivered = lost = 0
        for event in tracer.events():
            if isinstance(event, FailedExecEvent):
                assert (event.filename, event.error) == ("/no/such/program", "ENOENT")
                delivered += 1
            elif event.kind == "lost" and event.of == "failed_exec":  # type: ignore[attr-defined]
                lost += event.count  # type: ignore[attr-defined]
        stats = tracer.stats()
    assert stats.failed.delivered == delivered > 0
    assert stats.failed.lost == lost
    assert stats.failed.seen == delivered + lost + stats.failed.filtered
    assert stats.exec.lost == 0


_STOPPED = """
import sys
from execwatch import ExecTracer, Filter
with ExecTracer(Filter(comms={"nothing"}), buffer_size=1 << 18) as tracer:
    print("ready", flush=True)
    delivered, done = 0, False
    while not done:
        events = tracer.read(timeout=0.05)
        delivered += len(events)
        done = any(event.argv[1] == "last" for event in events)
    stats = tracer.stats()
assert stats.seen == stats.delivered + stats.filtered + stats.lost + stats.pending
print(delivered, stats.lost, stats.pending)
"""


def test_a_tracer_that_was_stopped_counts_what_it_missed(
    programs: Programs, tracer_buffer: str, tracer_probe: str
) -> None:
    code = _STOPPED.replace("buffer_size", f"buffer={tracer_buffer!r}, probe={tracer_probe!r}, buffer_size")
    each = scaled(5003)
    code = code.replace("1 << 18", "1 << 14") if EMULATED else code
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as tracer:
        assert tracer.stdout is not None
        assert tracer.stdout.readline() == "ready\n"
        tracer.send_signal(signal.SIGSTOP)
        with storm(programs, each):
            pass
        tracer.send_signal(signal.SIGCONT)
        # When there is room again one is told of; until then these are lost, too.
        sent = 0
        while tracer.poll() is None and sent < 10_000:
            subprocess.run([programs("nothing"), "last"], check=True)
            sent += 1
        output = tracer.stdout.read()
    delivered, lost, pending = map(int, output.split())
    assert lost > 0
    assert delivered > 10
    # Those that were sent after it had gone are not among them.
    assert 2 * each < delivered + lost + pending <= 2 * each + sent


@pytest.mark.parametrize("forked", [False, True])
def test_a_killed_tracer_leaves_nothing_in_the_kernel(forked: bool, programs: Programs) -> None:
    code = (
        "import os, sys, time; from execwatch import ExecTracer, Filter\n"
        "with ExecTracer(Filter(descendants_of=1), failed=True, forks=True, exits=True):\n"
        f"    pid = os.fork() if {forked} else 1\n"
        "    if pid == 0:\n"
        "        sys.stdin.read(); os._exit(0)\n"
        "    print('R', flush=True); sys.stdin.read()\n"
    )
    before = loaded_programs()
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as tracer:
        assert tracer.stdout is not None
        assert tracer.stdin is not None
        assert tracer.stdout.read(1) == b"R"
        assert len(loaded_programs() - before) == 4
        tracer.kill()
        # The forked child is still there: it holds none of it.
        until(lambda: not loaded_programs() - before, "the kernel to let go")
        tracer.stdin.close()


@pytest.mark.usefixtures("root")
def test_a_cpu_that_goes_and_comes_back_loses_nothing_silently(programs: Programs) -> None:
    switch = pathlib.Path("/sys/devices/system/cpu/cpu1/online")
    if not switch.exists():
        skip(Reason.KERNEL, "a CPU that can be taken offline")
    with ExecTracer(Filter(comms={"nothing"})) as tracer:
        each = scaled(4001)
        events: list[ExecEvent] = []
        reader = threading.Thread(target=lambda: events.extend(tracer.events()))
        reader.start()
        try:
            with storm(programs, each):
                for state in ("0", "1", "0", "1"):
                    switch.write_text(state)
        finally:
            switch.write_text("1")
        # On the CPU that came back, for certain.
        subprocess.run(["taskset", "-c", "1", programs("nothing"), str(2 * each)], check=True)
        tracer.stop()
        reader.join(100)
        stats = tracer.stats()
    numbers = [int(event.argv[1]) for event in events]
    assert len(numbers) == len(set(numbers))
    assert len(numbers) + stats.lost == 2 * each + 1
    assert stats.pending == 0


def test_a_storm_with_everything_on(programs: Programs) -> None:
    """Each exec, fork and exit of the storm once, in an order that is causal for each process."""
    each = scaled(5003)
    with ExecTracer(Filter(descendants_of=os.getpid()), forks=True, exits=True, failed=True) as tracer:
        with storm(programs, each) as processes:
            thread = stop_when_done(tracer, processes)
            last: dict[str, str] = {}
            counts = {"fork": 0, "exec": 0, "exit": 0}
            for event in tracer.events():
                if event.kind in counts and event.comm in ("nothing", "storm"):  # type: ignore[attr-defined]
                    key = event.process_key  # type: ignore[attr-defined]
                    assert (last.get(key), event.kind) in ORDER
                    last[key] = event.kind
                    counts[event.kind] += 1
            thread.join(10)
        stats = tracer.stats()
    assert stats.lost == stats.pending == 0
    assert counts["exec"] == 2 * each + 2
    # The two shells of the storm were forked under another name.
    assert counts["fork"] == 2 * each
    assert counts["exit"] == 2 * each + 2


ORDER = {(None, "fork"), ("fork", "exec"), (None, "exec"), ("exec", "exit")}
