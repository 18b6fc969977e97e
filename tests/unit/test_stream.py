"""Waiting, stopping, closing and interrupts, with threads and signals."""

from __future__ import annotations

import contextlib
import gc
import select
import signal
import sys
import threading
import time
from typing import Any, Callable, Dict, List, Sequence, Set, Type

import pytest

from execwatch import ExecTracer, StateError
from execwatch.events import ExecEvent
from execwatch.processes import Process, ProcessTable
from execwatch.source import Batch
from execwatch.testing import exec_event

from .scripted import (
    Background,
    Flag,
    Position,
    ScriptedSource,
    handling,
    in_child,
    numbered,
    numbers,
    open_files,
    storm_of_interrupts,
    tracer_over,
    tracing,
    until,
)

#: What blocks until there is an event, and returns a list of those it got.
BLOCKING: Dict[str, Callable[[ExecTracer[Any]], List[Any]]] = {
    "read": lambda tracer: tracer.read(),
    "events": lambda tracer: list(tracer.events()),
    "timeout": lambda tracer: list(tracer.events(timeout=1000)),
}


# -- Waiting ----------------------------------------------------------------------------------


def test_a_waiting_reader_is_woken_by_an_event() -> None:
    source = ScriptedSource()
    with tracing(source) as tracer:
        consumer = Background(tracer.read)
        source.idle.wait()
        source.put(*numbered(1))
        assert numbers(consumer.result()) == [0]


def test_nobody_is_woken_for_nothing() -> None:
    source = ScriptedSource()
    with tracing(source) as tracer:
        assert tracer.read(timeout=0.05) == []
        assert len(source.reads) <= 3


def test_events_that_come_close_together_are_read_at_once() -> None:
    """Many wake-ups cost the traced programs more than one."""
    source = ScriptedSource()
    with tracing(source, latency=1.0) as tracer:
        consumer = Background(tracer.read)
        source.idle.wait()
        for number in range(50):
            source.put(exec_event(cpu=number))
        assert numbers(consumer.result()) == list(range(50))
        assert len(source.reads) == 2


def test_without_latency_an_event_is_read_at_once() -> None:
    source = ScriptedSource()
    with tracing(source) as tracer:
        found: List[Any] = []
        consumer = Background(lambda: found.extend(tracer.events()))
        for number in range(5):
            source.idle.wait()
            source.put(exec_event(cpu=number))
            until(lambda number=number: len(found) > number, "the event")
        tracer.stop()
        consumer.result()
        assert len(source.reads) >= 6


def test_latency_never_outlasts_the_timeout() -> None:
    source = ScriptedSource()
    with tracing(source, latency=1.0) as tracer:
        begin = time.monotonic()
        consumer = Background(lambda: tracer.read(timeout=0.05))
        source.idle.wait()
        source.put(*numbered(1))
        found = consumer.result()
        assert time.monotonic() - begin < 0.9
        assert numbers(found + tracer.read(timeout=0)) == [0]


def test_latency_never_outlasts_stop() -> None:
    source = ScriptedSource()
    with tracing(source, latency=1.0) as tracer:
        consumer = Background(lambda: list(tracer.events()))
        source.idle.wait()
        begin = time.monotonic()
        source.put(*numbered(1))
        tracer.stop()
        assert numbers(consumer.result()) == [0]
        assert time.monotonic() - begin < 0.9


def test_what_is_there_already_is_not_waited_for() -> None:
    with tracing(ScriptedSource(numbered(3)), latency=1.0) as tracer:
        begin = time.monotonic()
        assert len(tracer.read()) == 3
        assert time.monotonic() - begin < 0.9


# -- One reader at a time ---------------------------------------------------------------------


@pytest.mark.parametrize("second", BLOCKING)
@pytest.mark.parametrize("first", BLOCKING)
def test_a_second_reader_in_another_thread_is_refused(first: str, second: str) -> None:
    source = ScriptedSource()
    with tracing(source) as tracer:
        consumer = Background(lambda: BLOCKING[first](tracer))
        source.idle.wait()
        for _ in range(3):
            with pytest.raises(StateError, match="one at a time"):
                BLOCKING[second](tracer)
        source.put(*numbered(1))
        tracer.stop()
        assert numbers(consumer.result()) == [0]


def test_a_reader_in_a_signal_handler_is_refused() -> None:
    source = ScriptedSource()
    answers: List[Any] = []

    def handler() -> None:
        if not source.idle.is_set():
            return
        try:
            answers.append(tracer.read(timeout=0))
        except StateError as exc:
            answers.append(exc)
        tracer.stop()

    with tracing(source) as tracer, handling(signal.SIGUSR1, handler):
        assert list(tracer.events()) == []
    assert isinstance(answers[0], StateError)


def test_readers_may_take_turns() -> None:
    with tracing(ScriptedSource(numbered(4))) as tracer:
        assert numbers(Background(lambda: list(tracer.events(count=2))).result()) == [0, 1]
        assert numbers(Background(tracer.read).result()) == [2, 3]


# -- Stop -------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", BLOCKING)
def test_stop_wakes_a_waiting_reader(how: str) -> None:
    source = ScriptedSource()
    with tracing(source) as tracer:
        consumer = Background(lambda: BLOCKING[how](tracer))
        source.idle.wait()
        tracer.stop()
        assert consumer.result() == []
        assert source.detached


def test_what_is_buffered_at_the_stop_is_still_delivered() -> None:
    source = ScriptedSource(numbered(10), batch=2)
    with tracing(source) as tracer:
        iterator = tracer.events()
        next(iterator)
        Background(tracer.stop).result()
        assert numbers(iterator) == list(range(1, 10))
        assert tracer.stats().delivered == 10
        with pytest.raises(StopIteration):
            next(iterator)


def test_events_until_the_stop_are_delivered_to_a_waiting_reader() -> None:
    """They come in the same instant as the stop, again and again."""
    for _ in range(50):
        source = ScriptedSource()
        with tracing(source) as tracer:
            consumer = Background(lambda tracer=tracer: list(tracer.events()))
            source.idle.wait()
            source.put(*numbered(3))
            tracer.stop()
            assert numbers(consumer.result()) == [0, 1, 2]


def test_stop_may_be_called_again_and_again_and_never_waits() -> None:
    with tracing(ScriptedSource()) as tracer:
        Background(lambda: [tracer.stop() for _ in range(70_000)]).result()
        assert tracer.read() == []


@pytest.mark.parametrize("end", ["stop", "close"])
def test_the_end_may_come_from_a_signal_handler(end: str) -> None:
    for _ in range(10):
        source = ScriptedSource()
        tracer = tracer_over(source)

        def handler(source: ScriptedSource = source, tracer: ExecTracer[Any] = tracer) -> None:
            if source.idle.is_set() and not tracer.closed:
                getattr(tracer, end)()

        with tracer, handling(signal.SIGUSR1, handler):
            assert list(tracer.events()) == []
        assert (source.closes, source.misuse) == (1, [])


# -- Close ------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", BLOCKING)
def test_close_wakes_a_waiting_reader_which_frees(how: str) -> None:
    source = ScriptedSource()
    before = open_files()
    with tracing(source) as tracer:
        consumer = Background(lambda: BLOCKING[how](tracer))
        source.idle.wait()
        tracer.close()
        assert consumer.result() == []
        assert source.closes == 1
    assert open_files() <= before


def test_close_discards_what_was_not_handed_over_and_counts_it() -> None:
    source = ScriptedSource(numbered(5), batch=3)
    with tracing(source) as tracer:
        iterator = tracer.events()
        next(iterator)
        tracer.close()
        assert list(iterator) == []
        stats = tracer.stats()
        assert (stats.delivered, stats.exec.lost_by_reason.closed, stats.pending) == (1, 4, 0)


class Gate(ScriptedSource):
    """Its reads wait for the test."""

    def __init__(self, events: List[Any]) -> None:
        super().__init__(events)
        self.inside_read = threading.Event()
        self.go_on = threading.Event()

    def read(self, position: Position, barrier: bool) -> Batch:
        self.inside_read.set()
        assert self.go_on.wait(20)
        return super().read(position, barrier)


def test_close_never_waits_for_a_reader_and_never_frees_under_it() -> None:
    source = Gate(numbered(3))
    with tracing(source) as tracer:
        consumer = Background(lambda: list(tracer.events()))
        assert source.inside_read.wait(20)
        tracer.close()
        assert source.closes == 0
        assert tracer.closed
        source.go_on.set()
        assert consumer.result() == []
        assert source.closes == 1
        assert tracer.stats().exec.lost_by_reason.closed == 3


def test_closes_from_many_threads_close_once() -> None:
    for _ in range(20):
        source = ScriptedSource(numbered(3))
        with tracing(source) as tracer:
            consumer = Background(lambda tracer=tracer: list(tracer.events()))
            start = threading.Barrier(3)

            def close(tracer: ExecTracer[Any] = tracer, start: threading.Barrier = start) -> None:
                start.wait(20)
                tracer.close()

            closers = [Background(close) for _ in range(3)]
            for thread in (*closers, consumer):
                thread.result()


def test_close_while_another_thread_iterates_over_what_it_has() -> None:
    for _ in range(20):
        source = ScriptedSource(numbered(2000))
        with tracing(source) as tracer:
            found: List[Any] = []
            consumer = Background(lambda found=found, tracer=tracer: found.extend(tracer.events()))
            until(lambda found=found: found, "the first event")
            tracer.close()
            consumer.result()
            assert numbers(found) == list(range(len(found)))
            stats = tracer.stats()
            assert stats.seen == stats.delivered + stats.lost == 2000
            # The counters are read in the instant of closing: one may be on its way.
            assert 0 <= len(found) - stats.delivered <= 1


def test_a_close_that_was_interrupted_is_made_good() -> None:
    class Interrupted(ScriptedSource):
        def detach(self) -> None:
            if not self.detached:
                super().detach()
                raise KeyboardInterrupt

    source = Interrupted()
    before = open_files()
    tracer = tracer_over(source)
    tracer.start()
    with pytest.raises(KeyboardInterrupt):
        tracer.close()
    assert source.closes == 0
    with pytest.warns(ResourceWarning):
        del tracer
        gc.collect()
    assert source.closes == 1
    assert open_files() < before


def test_an_interrupt_behind_the_stop_of_a_close_is_made_good(monkeypatch: pytest.MonkeyPatch) -> None:
    source = ScriptedSource()
    tracer = tracer_over(source)
    tracer.start()
    stream = tracer._stream
    assert stream is not None
    free = stream._free

    def interrupted() -> None:
        monkeypatch.setattr(stream, "_free", free)  # noqa: F821
        raise KeyboardInterrupt

    monkeypatch.setattr(stream, "_free", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tracer.close()
    del tracer, stream
    gc.collect()
    assert source.closes == 1


# -- Ctrl-C -----------------------------------------------------------------------------------


class Storm(ScriptedSource):
    """Many events, a few a read, and a descriptor that is always readable."""

    def __init__(self, events: List[Any]) -> None:
        super().__init__(events[:1], batch=7)
        self.events += events[1:]

    def release(self, position: Position) -> None:
        self.released = position.index


COUNT = 30_000

#: Hand over what comes, as far as it goes; the list is filled event by event.
HAND_OVER: Dict[str, Callable[[ExecTracer[Any], List[Any]], Any]] = {
    "count": lambda tracer, found: found.extend(tracer.events(count=100)),
    "timeout": lambda tracer, found: found.extend(tracer.events(timeout=0.001)),
    "read": lambda tracer, found: found.extend(tracer.read(timeout=0.001)),
}


#: Before 3.11 the interpreter also raises between the end of a call and what follows, in
#: the middle of a with statement too: rarely an event that is being returned is lost,
#: or the reader's lock stays locked.
EXACT = sys.version_info >= (3, 11)


def hand_over(
    tracer: ExecTracer[Any], ways: List[Callable[[ExecTracer[Any], List[Any]], Any]], count: int
) -> List[ExecEvent]:
    """Consume so many events, one way after the other, whatever interrupts it."""
    found: List[ExecEvent] = []
    stream = tracer._stream
    assert stream is not None
    delivered = rounds = 0
    while delivered < count:
        if not EXACT and stream._reading.locked():
            stream._reading.release()
        with contextlib.suppress(KeyboardInterrupt):
            ways[rounds % len(ways)](tracer, found)
        rounds += 1
        with contextlib.suppress(KeyboardInterrupt):
            delivered = tracer.stats().delivered
    return found


def check_all_came_once(found: List[ExecEvent], count: int, interrupts: int) -> None:
    assert interrupts > 20, "too few to tell anything"
    if EXACT:
        assert numbers(found) == list(range(count))
    else:
        assert numbers(found) == sorted(set(numbers(found)))
        assert count - len(found) <= interrupts // 20


def test_ctrl_c_loses_nothing_and_repeats_nothing() -> None:
    """Every consumer in turn, interrupted wherever it is in the library."""
    ways = [HAND_OVER[name] for name in ("count", "timeout", "read")]
    with tracing(Storm(numbered(COUNT))) as tracer:
        with storm_of_interrupts() as interrupts:
            found = hand_over(tracer, ways, COUNT)
        check_all_came_once(found, COUNT, interrupts.raised)
        assert tracer.stats().seen == tracer.stats().delivered == COUNT
        assert tracer.read(timeout=0) == []


def test_ctrl_c_while_waiting_loses_nothing() -> None:
    count = 300
    source = ScriptedSource()
    with tracing(source) as tracer:

        def feed() -> None:
            for number in range(count):
                source.put(exec_event(cpu=number))
                until(lambda number=number: tracer.stats().delivered > number, "the event")

        feeder = Background(feed)
        with storm_of_interrupts() as interrupts:
            found = hand_over(tracer, [HAND_OVER["timeout"]], count)
        feeder.result()
    check_all_came_once(found, count, interrupts.raised)


def test_ctrl_c_before_the_release_does_not_block_a_full_buffer() -> None:
    class Full(ScriptedSource):
        """Takes nothing in until what was read is released; the first release is interrupted."""

        interrupted = False

        def release(self, position: Position) -> None:
            if not self.interrupted:
                self.interrupted = True
                raise KeyboardInterrupt
            super().release(position)

    source = Full(numbered(2))
    with tracing(source) as tracer:
        with pytest.raises(KeyboardInterrupt):
            tracer.read(timeout=0)
        assert numbers(tracer.read(timeout=0)) == [0, 1]
        assert source.released == 2


def test_ctrl_c_wakes_a_waiting_reader() -> None:
    source = ScriptedSource()
    interrupted = Flag()

    def handler() -> None:
        if source.idle.is_set() and not interrupted.is_set():
            interrupted.set()
            raise KeyboardInterrupt

    with tracing(source) as tracer, handling(signal.SIGINT, handler):
        with pytest.raises(KeyboardInterrupt):
            tracer.read()
        source.put(*numbered(2))
        assert numbers(tracer.events(count=2)) == [0, 1]


def test_the_source_is_not_closed_by_ctrl_c() -> None:
    source = ScriptedSource()
    with pytest.raises(KeyboardInterrupt), tracer_over(source) as tracer:
        source.put(*numbered(1))
        for _ in tracer.events():
            raise KeyboardInterrupt
    assert source.closes == 1
    assert tracer.stats().delivered == 1


# -- The table of processes -------------------------------------------------------------------


class Tracked(ScriptedSource):
    """One that tells of processes; ``tracking`` is called in the middle of that, at each attempt."""

    def __init__(self, events: Sequence[Any] = (), *, tracking: Callable[[], object] = bool) -> None:
        super().__init__(events)
        self.processes = [Process(key=f"p{pid}", pid=pid, comm="x") for pid in range(1, 6)]
        self.attempts = 0
        self._tracking = tracking
        self._history = False

    def track(self) -> List[Process]:
        self.attempts += 1
        self._history = True
        self._tracking()
        if self.closes:
            self.misuse.append("closed while it tracked")
        return self.processes

    def read(self, position: Position, barrier: bool) -> Batch:
        batch = super().read(position, barrier)
        return batch._replace(history=batch.events if self._history else ())


def executed(pid: int) -> Any:
    return exec_event(pid=pid, process_key=f"p{pid}", argv=("new",))


@pytest.mark.parametrize("how", BLOCKING)
def test_the_table_can_be_asked_for_while_another_thread_waits(how: str) -> None:
    source = Tracked()
    with tracing(source) as tracer:
        consumer = Background(lambda: BLOCKING[how](tracer))
        source.idle.wait()
        table = tracer.processes
        assert {process.pid for process in table} == set(range(1, 6))
        source.put(executed(3), executed(9))
        tracer.stop()
        assert [event.pid for event in consumer.result()] == [3, 9]
        assert [table.get(key).argv for key in ("p3", "p9")] == [("new",)] * 2  # type: ignore[union-attr]
        assert tracer.processes is table


def test_what_is_read_while_the_table_is_made_is_in_it() -> None:
    read = Flag()

    def wait_for_a_reader() -> None:
        source.put(executed(3), executed(9))
        read.wait()

    source = Tracked(tracking=wait_for_a_reader)
    with tracing(source) as tracer:

        def consume() -> List[Any]:
            events = tracer.read()
            read.set()
            return events

        consumer = Background(consume)
        source.idle.wait()
        table = tracer.processes
        assert [event.pid for event in consumer.result()] == [3, 9]
        # It was handed over before there was a table: told with the next that is read.
        assert tracer.read(timeout=0) == []
        assert [table.get(key).argv for key in ("p3", "p9")] == [("new",)] * 2  # type: ignore[union-attr]


@pytest.mark.parametrize("count", [0, 5])
def test_threads_that_ask_at_once_get_the_same_table(count: int) -> None:
    gate = threading.Barrier(4)
    source = Tracked(tracking=lambda: until(lambda: len(trackers()) == 4, "all threads"))
    del source.processes[count:]
    with tracing(source) as tracer:

        def trackers() -> Set[int]:
            return tracer._stream._trackers  # type: ignore[union-attr]

        def ask() -> Any:
            gate.wait(20)
            return tracer.processes

        threads = [Background(ask) for _ in range(4)]
        tables = [thread.result() for thread in threads]
        assert all(table is tracer.processes for table in tables)
        assert len(tables[0]) == count
        assert source.attempts == 1


def test_a_signal_handler_that_asks_while_the_table_is_made_is_refused() -> None:
    answers: List[Any] = []

    def ask() -> None:
        try:
            answers.append(tracer.processes)
        except StateError as exc:
            answers.append(str(exc))

    # As in a handler: in the same thread, inside.
    with tracing(Tracked(tracking=ask)) as tracer:
        assert len(tracer.processes) == 5
        assert answers == ["the table of processes is being made: not from a signal handler"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, PermissionError])
@pytest.mark.parametrize("where", ["source", "table"])
def test_a_first_use_that_failed_is_made_again(
    error: Type[BaseException], where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise error

    source = Tracked(numbered(1))
    with tracing(source) as tracer:
        with monkeypatch.context() as patch:
            if where == "source":
                patch.setattr(source, "_tracking", fail)
            else:
                patch.setattr(ProcessTable, "add", fail)
            for attempt in range(1, 3):
                with pytest.raises(error):
                    _ = tracer.processes
                assert source.attempts == attempt
        # What comes now is nobody's history.
        source.put(executed(7))
        tracer.read(timeout=0)
        assert len(tracer._stream._state.history) == 0  # type: ignore[union-attr]
        assert {process.pid for process in tracer.processes} == set(range(1, 6))
        assert source.attempts == 3
        source.put(executed(9))
        tracer.read(timeout=0)
        assert {process.pid for process in tracer.processes} == {1, 2, 3, 4, 5, 9}


@pytest.mark.parametrize("error", [KeyboardInterrupt, PermissionError])
def test_a_start_that_fails_for_the_table_leaves_nothing(error: Type[BaseException]) -> None:
    def fail() -> None:
        raise error

    before = open_files()
    sources = [Tracked(tracking=fail), Tracked()]
    made = iter(sources)
    tracer: ExecTracer[Any] = ExecTracer._over(lambda: next(made))
    table = tracer.processes
    with pytest.raises(error):
        tracer.start()
    assert (sources[0].closes, sources[0].misuse) == (1, [])
    assert repr(tracer) == "<ExecTracer new>"
    assert len(table) == 0
    with pytest.raises(StateError, match="not started"):
        tracer.read()
    with tracer:
        assert tracer.processes is table
        assert len(table) == 5
    assert sources[1].closes == 1
    assert open_files() <= before


def test_a_close_while_it_starts_leaves_nothing() -> None:
    source = ScriptedSource()

    def close_first() -> ScriptedSource:
        tracer.close()
        return source

    tracer: ExecTracer[Any] = ExecTracer._over(close_first)
    with pytest.raises(StateError, match="closed"):
        tracer.start()
    assert source.closes == 1


@pytest.mark.parametrize("end", ["stop", "close"])
@pytest.mark.parametrize("from_thread", [False, True])
def test_an_end_while_the_table_is_made_leaves_nothing(end: str, from_thread: bool) -> None:
    def finish() -> None:
        if from_thread:
            Background(getattr(tracer, end)).result()
        else:
            getattr(tracer, end)()

    source = Tracked(tracking=finish)
    before = open_files()
    with tracing(source) as tracer:
        with pytest.raises(StateError, match="stopped" if end == "stop" else "closed"):
            _ = tracer.processes
        assert source.closes == (end == "close")
        assert tracer.read(timeout=0) == [] if end == "stop" else tracer.closed
    assert open_files() <= before


def test_a_close_while_the_table_is_made_and_another_thread_reads() -> None:
    source = Tracked(tracking=lambda: tracer.close())
    with tracing(source) as tracer:
        consumer = Background(lambda: list(tracer.events()))
        source.idle.wait()
        with pytest.raises(StateError, match="closed"):
            _ = tracer.processes
        assert consumer.result() == []
        until(lambda: source.closes, "the last to leave")


@pytest.mark.parametrize("end", ["stop", "close"])
@pytest.mark.parametrize("used", [False, True])
def test_the_table_after_the_end_is_as_it_was_or_refused(end: str, used: bool) -> None:
    source = Tracked()
    with tracing(source) as tracer:
        table = tracer.processes if used else None
        source.put(executed(9))
        getattr(tracer, end)()
        if table is None:
            with pytest.raises(StateError, match="stopped" if end == "stop" else "closed"):
                _ = tracer.processes
            assert source.attempts == 0
        else:
            assert tracer.processes is table
            if end == "stop":
                assert [event.pid for event in tracer.events()] == [9]
            assert len(table) == 5 + (end == "stop")


def test_in_a_forked_child_neither_processes_nor_users_are_there() -> None:
    def child() -> None:
        for name in ("processes", "users"):
            with pytest.raises(StateError, match="forked"):
                getattr(tracer, name)

    for used in (False, True):
        with tracing(Tracked()) as tracer:
            if used:
                assert tracer.users is not None
                assert len(tracer.processes) == 5
            assert in_child(child) == ""


@pytest.mark.skipif(not EXACT, reason="before 3.11 an interrupt can leave any lock locked")
def test_ctrl_c_while_the_table_is_made() -> None:
    """It is complete, or it is not there; then it can be asked for again."""
    asking = Flag()

    def interrupt(number: int, frame: Any) -> None:
        if asking.is_set():
            interrupts(number, frame)

    made = 0
    with storm_of_interrupts() as interrupts:
        signal.signal(signal.SIGINT, interrupt)
        while interrupts.raised < 200:
            source = Tracked()
            with tracing(source) as tracer:
                table = None
                while table is None:
                    with contextlib.suppress(KeyboardInterrupt):
                        asking.set()
                        table = tracer.processes
                    asking.clear()
                assert len(table) == 5
                source.put(executed(9))
                tracer.read(timeout=0)
                assert len(table) == 6
            made += 1
    assert made > 20


# -- Waiting elsewhere ------------------------------------------------------------------------


def test_a_select_loop_sees_everything() -> None:
    source = ScriptedSource()
    found: List[Any] = []
    with tracing(source) as tracer:

        def feed() -> None:
            for number in range(100):
                source.put(exec_event(cpu=number))
                if number % 3 == 0:
                    until(lambda number=number: len(found) > number, "the event")
            tracer.stop()

        feeder = Background(feed)
        while True:
            select.select([tracer.fileno()], [], [], 20)
            batch = tracer.read(timeout=0)
            if not batch and tracer._stream is not None and tracer._stream.ended():
                break
            found += batch
        feeder.result()
    assert numbers(found) == list(range(100))
