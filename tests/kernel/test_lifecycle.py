"""Start, stop, close, fork, wait: with the real kernel behind."""

from __future__ import annotations

import asyncio
import gc
import os
import pathlib
import select
import signal
import subprocess
import sys
import threading
import time
from typing import Callable

import pytest

from execwatch import ExecEvent, ExecTracer, Filter, StateError, wire
from execwatch.kernel import procfs
from execwatch.processes import Process

from .conftest import COUNT, open_files
from .test_exec import execute, mine

Programs = Callable[[str], str]


def resident() -> int:
    """Resident memory of this process now, in KiB."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE") // 1024


def test_a_hundred_open_and_close_cycles_leave_nothing_behind(programs: Programs) -> None:
    nothing = programs("nothing").encode()
    files, memory = open_files(), 0
    for cycle in range(100):
        with ExecTracer(mine()) as tracer:
            execute([nothing, str(cycle).encode()])
            assert [event.argv[1] for event in tracer.read(timeout=0)] == [str(cycle)]
        if cycle == 10:
            gc.collect()
            memory = resident()
    gc.collect()
    assert open_files() == files
    assert resident() - memory < 512, "KiB that ninety cycles added"


def consume(tracer: ExecTracer, seen: list[object]) -> None:
    seen.extend(tracer.events())


def test_events_are_decoded_whole_as_long_as_a_program_asks_for_all(programs: Programs) -> None:
    nothing = programs("nothing").encode()

    def batch(tracer: ExecTracer[ExecEvent]) -> list[ExecEvent]:
        for number in range(COUNT):
            execute([nothing, str(number).encode()])
        return tracer.read(timeout=0)

    def not_whole(events: list[ExecEvent]) -> list[int]:
        return [number for number, event in enumerate(events) if hasattr(event, "rest_")]

    with ExecTracer(mine()) as tracer:
        first = batch(tracer)
        assert not_whole(first) == list(range(COUNT))
        assert len({event.process_key for event in first}) == COUNT
        assert not_whole(first) == []
        second = batch(tracer)
        assert not_whole(second) == [0]
        assert second[0].process_key
        assert tracer.read(timeout=0) == []  # of which nothing follows
        third = batch(tracer)
        assert not_whole(third) == [0]
        # Nobody has asked this time.
        assert not_whole(batch(tracer)) == list(range(COUNT))
        keys = [event.process_key for event in (*first, *second, *third)]
    assert len(set(keys)) == 3 * COUNT
    # Also when the tracer is closed.
    assert [event.argv[1] for event in third] == [str(number) for number in range(COUNT)]
    assert third[0].exe == first[0].exe


def test_a_hundred_closes_from_another_thread(programs: Programs) -> None:
    """Each while the consumer waits, or is busy with what two shells execute."""
    files = open_files()
    load = subprocess.Popen(["sh", "-c", f"while :; do {programs('nothing')}; done"])
    try:
        for cycle in range(100):
            tracer = ExecTracer(
                Filter(comms={"nothing"}, descendants_of=os.getpid())
                if cycle % 2
                else Filter(comms={"never"})
            )
            tracer.start()
            seen: list[object] = []
            consumer = threading.Thread(target=consume, args=(tracer, seen))
            consumer.start()
            while cycle % 2 and not seen:
                pass
            tracer.close()
            consumer.join(10)
            assert not consumer.is_alive()
            stats = tracer.stats()
            assert stats.pending == 0
            assert stats.seen == stats.delivered + stats.filtered + stats.lost
    finally:
        load.kill()
        load.wait()
    del tracer
    gc.collect()
    assert open_files() == files


def test_a_barrier_returns_what_was_complete_whatever_the_latency(programs: Programs) -> None:
    nothing = programs("nothing").encode()
    with ExecTracer(mine(), latency=1.0) as tracer:
        for number in range(COUNT):
            execute([nothing, str(number).encode()])
            assert [event.argv[1] for event in tracer.read(timeout=0)] == [str(number)]


def test_events_wait_out_the_latency_together(programs: Programs, tracer_buffer: str) -> None:
    if tracer_buffer == "perf":
        pytest.skip("KERNEL: a perf buffer is looked at by a timer, whoever came first")
    nothing = programs("nothing").encode()
    latency = 1.0
    with ExecTracer(mine(), latency=latency) as tracer:
        for _ in range(10):
            started = time.monotonic()
            for _ in range(COUNT):
                execute([nothing])
            in_time = time.monotonic() - started < latency / 2
            events = tracer.read(timeout=10)
            if in_time:
                break
            events += tracer.read(timeout=0)  # a slow moment of the machine: once more
            assert len(events) == COUNT
        assert len(events) == COUNT
        assert in_time, "never"


def test_a_timeout_bounds_the_whole_call(programs: Programs) -> None:
    with ExecTracer(Filter(comms={"never"})) as tracer:
        for consume in (tracer.read, lambda timeout: list(tracer.events(timeout=timeout))):
            started = time.monotonic()
            assert consume(0.2) == []
            assert 0.2 <= time.monotonic() - started < 5


def test_stop_hands_over_what_is_buffered_and_lets_nothing_more_in(programs: Programs) -> None:
    nothing = programs("nothing").encode()
    with ExecTracer(mine()) as tracer:
        execute([nothing, b"before"])
        tracer.stop()
        execute([nothing, b"after"])
        assert [event.argv[1] for event in tracer.events()] == ["before"]
        assert tracer.read() == []
        assert tracer.stats().seen - tracer.stats().filtered == 1


def test_stop_in_a_signal_handler_ends_a_waiting_consumer() -> None:
    with ExecTracer(Filter(comms={"never"})) as tracer:
        previous = signal.signal(signal.SIGALRM, lambda *_: tracer.stop())
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            assert list(tracer.events(timeout=30)) == []
        finally:
            signal.signal(signal.SIGALRM, previous)
        assert tracer.events(timeout=30) is not None
        assert tracer.read(timeout=30) == []


def test_the_descriptor_is_readable_exactly_when_there_is_something(programs: Programs) -> None:
    nothing = programs("nothing").encode()
    with ExecTracer(mine()) as tracer:
        assert select.select([tracer], [], [], 0)[0] == []
        for _ in range(3):
            execute([nothing])
        assert select.select([tracer], [], [], 10)[0] == [tracer]
        assert len(list(tracer.events(count=1))) == 1
        # Two are in the queue, none in the ring.
        assert select.select([tracer], [], [], 0)[0] == [tracer]
        assert len(tracer.read(timeout=0)) == 2
        assert select.select([tracer], [], [], 0)[0] == []
        tracer.stop()
        assert select.select([tracer], [], [], 0)[0] == [tracer]
        assert tracer.read() == []
        assert select.select([tracer], [], [], 0)[0] == [tracer]


def test_in_a_forked_child_it_is_closed_and_the_parent_goes_on(programs: Programs) -> None:
    nothing = programs("nothing").encode()
    before = set(open_files())
    with ExecTracer(Filter(comms={"nothing"}, descendants_of=os.getpid())) as tracer:
        mine = set(open_files()) - before
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                problems = [f"descriptor {fd} is open" for fd in mine & set(open_files())]
                if "bpf-map" in pathlib.Path("/proc/self/maps").read_text():
                    problems.append("a map is mapped")
                try:
                    tracer.read(timeout=0)
                    problems.append("read worked")
                except StateError:
                    pass
                tracer.close()
                os.write(write, "; ".join(problems).encode() or b"fine")
            finally:
                os._exit(0)
        os.close(write)
        assert os.waitpid(child, 0)[1] == 0
        with os.fdopen(read) as answer:
            assert answer.read() == "fine"
        execute([nothing, b"still"])
        assert [event.argv[1] for event in tracer.read(timeout=0)] == ["still"]


def test_a_child_that_exits_normally_does_not_end_the_parents_stream(programs: Programs) -> None:
    code = (
        "import os, sys\n"
        "from execwatch import ExecTracer, Filter\n"
        "with ExecTracer(Filter(comms={'nothing'}, descendants_of=os.getpid())) as tracer:\n"
        "    if os.fork() == 0:\n"
        "        sys.exit()\n"
        "    os.wait()\n"
        f"    os.posix_spawn({programs('nothing')!r}, ['x'], {{}}); os.wait()\n"
        "    print(len(tracer.read(timeout=0)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("1\n", "")


def test_async_for_in_a_running_loop(programs: Programs) -> None:
    async def main() -> list[str]:
        async with ExecTracer(Filter(comms={"nothing"}, descendants_of=os.getpid())) as tracer:
            for number in range(COUNT):
                process = await asyncio.create_subprocess_exec(programs("nothing"), str(number))
                await process.wait()
            numbers: list[str] = []
            async for event in tracer:
                numbers.append(event.argv[1])
                if len(numbers) == COUNT:
                    break
            assert await tracer.aread(timeout=0.05) == []
            return numbers

    assert asyncio.run(main()) == [str(number) for number in range(COUNT)]


def test_a_cancelled_task_loses_nothing(programs: Programs) -> None:
    async def main() -> list[str]:
        tracer = ExecTracer(Filter(comms={"nothing"}, descendants_of=os.getpid()))
        tracer.start()
        numbers: list[str] = []

        async def collect() -> None:
            async for event in tracer:
                numbers.append(event.argv[1])

        for number in range(COUNT):
            task = asyncio.create_task(collect())
            process = await asyncio.create_subprocess_exec(programs("nothing"), str(number))
            await process.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        numbers += [event.argv[1] for event in await tracer.aread(timeout=0)]
        await tracer.aclose()
        return numbers

    assert asyncio.run(main()) == [str(number) for number in range(COUNT)]


def test_callbacks(programs: Programs) -> None:
    nothing = programs("nothing").encode()
    seen: list[str] = []
    with ExecTracer(mine()) as tracer:

        @tracer.on_exec(where=Filter(args={"1"}))
        def _one(event: object) -> None:
            raise RuntimeError("the user's own")

        tracer.on_exec(lambda event: seen.append(event.argv[1]))
        for number in range(3):
            execute([nothing, str(number).encode()])
        with pytest.raises(RuntimeError, match="the user's own"):
            tracer.dispatch(timeout=0)
        tracer.dispatch(timeout=0)
        with pytest.raises(StateError, match="callbacks"):
            tracer.read(timeout=0)
    assert seen == ["0", "2"]


def test_what_was_not_read_is_lost_as_closed(programs: Programs) -> None:
    nothing = programs("nothing").encode()
    tracer = ExecTracer(mine())
    tracer.start()
    for _ in range(COUNT):
        execute([nothing])
    assert len(list(tracer.events(count=4))) == 4
    assert tracer.stats().pending == COUNT - 4
    tracer.close()
    tracer.close()
    stats = tracer.stats()
    assert stats.exec.lost_by_reason.closed == stats.lost == COUNT - 4
    assert stats.delivered == 4
    assert stats.pending == 0
    assert stats.seen == stats.delivered + stats.filtered + stats.lost


def bpf_files() -> list[str]:
    """What this process has open of BPF: programs, maps, links."""
    return sorted(name for name in open_files().values() if "bpf" in name)


@pytest.mark.parametrize("end", ["stop", "close"])
@pytest.mark.parametrize("at", [1, 2])
def test_an_end_while_the_table_of_processes_is_made_leaves_nothing(
    end: str, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = bpf_files()
    real, count = procfs.scan, 0

    def scan(clock: wire.Clock) -> dict[str, Process]:
        nonlocal count
        count += 1
        if count == at:
            # From another thread, so that nothing of it is this one's luck.
            thread = threading.Thread(target=getattr(tracer, end))
            thread.start()
            thread.join()
        return real(clock)

    monkeypatch.setattr(procfs, "scan", scan)
    with ExecTracer(Filter(comms={"never"})) as tracer:
        with pytest.raises(StateError, match="stopped" if end == "stop" else "closed"):
            _ = tracer.processes
        if end == "stop":
            assert not [name for name in bpf_files() if "link" in name or "raw-tracepoint" in name]
            assert tracer.read() == []
        else:
            assert bpf_files() == before
    assert bpf_files() == before


def test_after_the_stop_nothing_is_attached_for_the_table_of_processes() -> None:
    with ExecTracer(Filter(comms={"never"})) as tracer:
        tracer.stop()
        files = bpf_files()
        with pytest.raises(StateError, match="stopped"):
            _ = tracer.processes
        assert bpf_files() == files
        assert tracer.read() == []
    with pytest.raises(StateError, match="closed"):
        _ = tracer.processes


@pytest.mark.parametrize("at", [1, 2])
def test_a_start_that_fails_behind_the_attaching_leaves_nothing(
    at: int, monkeypatch: pytest.MonkeyPatch, programs: Programs
) -> None:
    before = open_files()
    tracer = ExecTracer(mine())
    table = tracer.processes
    real, count = procfs.scan, 0

    def scan(clock: wire.Clock) -> dict[str, Process]:
        nonlocal count
        count += 1
        if count == at:
            raise PermissionError("/proc")
        return real(clock)

    monkeypatch.setattr(procfs, "scan", scan)
    with pytest.raises(PermissionError), tracer:
        pass
    assert open_files() == before
    assert (tracer.closed, len(table)) == (False, 0)
    nothing = programs("nothing").encode()
    with tracer:
        execute([nothing])
        (event,) = tracer.read(timeout=0)
        assert event.process_key in table


def test_starting_while_another_thread_starts_programs(programs: Callable[[str], str]) -> None:
    """The verifier gives up where a signal is pending, and each child's end is one."""
    stop = threading.Event()

    def start_programs() -> None:
        while not stop.is_set():
            execute([programs("nothing").encode()])

    thread = threading.Thread(target=start_programs)
    thread.start()
    try:
        for _ in range(COUNT):
            with ExecTracer() as tracer:
                assert tracer.read(timeout=30)
    finally:
        stop.set()
        thread.join()
