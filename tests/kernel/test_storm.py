"""Completeness under load, against known counts."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import resource
import subprocess
import sys
import threading
from collections import Counter
from typing import Callable, Iterator

import pytest

from execwatch import ExecEvent, ExecTracer, Filter, LostEvents

from .conftest import EMULATED, scaled, until

Programs = Callable[[str], str]

EACH = scaled(20_000)


@contextlib.contextmanager
def storm(
    programs: Programs, each: int = EACH, name: str = "nothing"
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Two processes that execute at full speed, with arguments 0 to 2 * each - 1."""
    command = [programs("storm"), str(each)]
    target = programs(name)
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(subprocess.Popen([*command, str(half * each), target])) for half in (0, 1)
        ]
        yield processes
        for process in processes:
            assert process.wait(timeout=100) == 0


def stop_when_done(tracer: ExecTracer, processes: list[subprocess.Popen[bytes]]) -> threading.Thread:
    def wait() -> None:
        for process in processes:
            process.wait(timeout=100)
        tracer.stop()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_forty_thousand_of_forty_thousand_with_default_settings(programs: Programs) -> None:
    with ExecTracer() as tracer, storm(programs) as processes:
        thread = stop_when_done(tracer, processes)
        events = [event for event in tracer.events() if event.comm == "nothing"]
        thread.join(10)
        stats = tracer.stats()
    numbers = Counter(int(event.argv[1]) for event in events)
    assert numbers == Counter(range(2 * EACH))
    times = [event.boottime_ns for event in events]
    back = [(a - b) for a, b in zip(times, times[1:]) if b < a]
    # DESIGN: between batches time may step back by less than a millisecond.
    assert all(step < 1_000_000 for step in back)
    assert len(back) < len(times) // 1000
    assert stats.lost == stats.pending == 0
    assert stats.seen == stats.delivered


def test_in_order_for_each_parent(programs: Programs) -> None:
    with ExecTracer(Filter(comms={"nothing"})) as tracer, storm(programs, EACH) as processes:
        thread = stop_when_done(tracer, processes)
        by_parent: dict[int | None, list[int]] = {}
        for event in tracer.events():
            by_parent.setdefault(event.ppid, []).append(int(event.argv[1]))
        thread.join(10)
    assert sorted(by_parent.values()) == [list(range(EACH)), list(range(EACH, 2 * EACH))]


def test_a_small_buffer_loses_and_tells_where(programs: Programs) -> None:
    """Nothing is read until the storm is over; what did not fit is one gap a CPU, told by count."""
    with ExecTracer(Filter(comms={"nothing"}), buffer_size=4096, lost=True) as tracer:
        with storm(programs, 499):
            pass
        events = tracer.read(timeout=0)
        subprocess.run([programs("nothing"), "after"], check=True)
        after = tracer.read(timeout=0)
        stats = tracer.stats()
    lost = [event for event in [*events, *after] if isinstance(event, LostEvents)]
    execs = [event for event in events if isinstance(event, ExecEvent)]
    assert sum(event.count for event in lost) + len(execs) == 998
    assert {(event.reason, event.of) for event in lost} == {("buffer_full", "exec")}
    assert len({event.cpu for event in lost}) == len(lost) <= (os.cpu_count() or 1)
    assert [event.argv[1] for event in after if isinstance(event, ExecEvent)] == ["after"]
    assert stats.lost == stats.exec.lost_by_reason.buffer_full == 998 - len(execs)
    assert stats.seen == stats.delivered + stats.filtered + stats.lost
    assert stats.pending == 0


def test_a_reader_that_sleeps_through_a_storm(programs: Programs) -> None:
    """Memory stays bounded, and delivered + lost is what was executed."""
    pause = threading.Event()
    with ExecTracer(
        Filter(comms={"nothing"}), buffer_size=1 << 16 if EMULATED else 1 << 20, lost=True
    ) as tracer:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with storm(programs):
            pause.wait(10)  # the sleep is the test's subject
        delivered = lost = 0
        for event in tracer.events(timeout=0):
            if isinstance(event, LostEvents):
                lost += event.count
            else:
                delivered += 1
        stats = tracer.stats()
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert delivered + lost == 2 * EACH
    assert lost > 0
    assert delivered > 100
    assert (stats.delivered, stats.lost, stats.pending) == (delivered, lost, 0)
    assert grown < 32 * 1024  # KiB: the events of a full ring of 1 MiB


def test_without_lost_events_a_warning_is_logged_once(
    programs: Programs, caplog: pytest.LogCaptureFixture
) -> None:
    with ExecTracer(buffer_size=4096) as tracer:
        for _ in range(2):
            with storm(programs, 199):
                pass
            tracer.read(timeout=0)
        assert tracer.stats().lost > 0
    warnings = [record for record in caplog.records if record.name == "execwatch"]
    assert len(warnings) == 1
    assert "buffer_size" in warnings[0].getMessage()


_INTERRUPTED = """
import os, signal, sys
from execwatch import ExecTracer, Filter
interrupts, seen = 0, []
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
with ExecTracer(Filter(comms={"nothing"}), buffer_size=1 << 24) as tracer:
    print("ready", flush=True)
    while interrupts < 40:
        try:
            # Outside of the try none may come: the next is sent when this one is told.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
            for event in tracer.events():
                seen.append(event.argv[1])
        except KeyboardInterrupt:
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
            interrupts += 1
            print(interrupts, flush=True)
    print("done", flush=True)
    sys.stdin.readline()
    for event in tracer.events(timeout=0):
        seen.append(event.argv[1])
    stats = tracer.stats()
print(len(seen), len(set(seen)), stats.lost, stats.pending)
"""


def test_forty_of_forty_interrupts_are_raised_under_load(programs: Programs) -> None:
    """And of the events at most the one in the user's hands goes with each."""
    with subprocess.Popen(
        [sys.executable, "-c", _INTERRUPTED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as tracer:
        assert tracer.stdout is not None
        assert tracer.stdout.readline() == "ready\n"
        with storm(programs, scaled(10_007)):
            for number in range(1, 41):
                tracer.send_signal(2)
                assert tracer.stdout.readline() == f"{number}\n"
            assert tracer.stdout.readline() == "done\n"
        output, _ = tracer.communicate("go\n", timeout=60)
    seen, different, lost, pending = map(int, output.split())
    assert (lost, pending) == (0, 0)
    assert seen == different, "an event was handed over twice"
    # An interrupt between the hand-over and the append is the program's to mind.
    assert 2 * scaled(10_007) - 40 <= seen <= 2 * scaled(10_007)
    assert tracer.returncode == 0


def test_a_tracer_that_is_killed_leaves_no_program(programs: Programs) -> None:
    code = (
        "import sys; from execwatch import ExecTracer\n"
        "with ExecTracer(): print('R', flush=True); sys.stdin.read()"
    )
    with ExecTracer() as probe:  # knows which programs are its own
        before = loaded_programs()
        with subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as tracer:
            assert tracer.stdout is not None
            tracer.stdout.read(1)
            assert len(loaded_programs()) > len(before)
            tracer.kill()
        until(lambda: loaded_programs() == before, "the kernel to let go")
        probe.stop()


def loaded_programs() -> set[int]:
    """Ids of all BPF programs: BPF_PROG_GET_NEXT_ID (11) of bpf(2), from the one before to the next."""
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    number = {"x86_64": 321, "aarch64": 280}[os.uname().machine]
    attributes = ctypes.create_string_buffer(128)
    found: set[int] = set()
    while syscall(ctypes.c_long(number), ctypes.c_int(11), attributes, ctypes.c_uint(128)) == 0:
        following = attributes.raw[4:8]
        found.add(int.from_bytes(following, "little"))
        attributes = ctypes.create_string_buffer(following, 128)
    assert ctypes.get_errno() == errno.ENOENT
    return found
