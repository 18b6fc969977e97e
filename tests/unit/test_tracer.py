"""What a tracer promises its user, over a source that does what the test says."""

from __future__ import annotations

import asyncio
import functools
import gc
import math
import os
import select
import sys
import time
import warnings
from typing import Any, Callable, Dict, List

import pytest
from hypothesis import given
from hypothesis import strategies as st

from execwatch import ExecTracer, Filter, StateError, Stats, wire
from execwatch.testing import exec_event, lost_events

from .scripted import (
    Background,
    ScriptedSource,
    in_child,
    numbered,
    numbers,
    open_files,
    tracer_over,
    tracing,
    until,
)

#: Every call that needs a tracer that runs.
USES: Dict[str, Callable[[ExecTracer[Any]], object]] = {
    "events": lambda tracer: tracer.events(),
    "read": lambda tracer: tracer.read(timeout=0),
    "aread": lambda tracer: asyncio.run(tracer.aread(timeout=0)),
    "async for": lambda tracer: tracer.__aiter__(),
    "dispatch": lambda tracer: tracer.dispatch(timeout=0),
    "fileno": lambda tracer: tracer.fileno(),
    "stop": lambda tracer: tracer.stop(),
}
CONSUMERS = {name: use for name, use in USES.items() if name not in ("dispatch", "fileno", "stop")}


def identity(stats: Stats) -> bool:
    exec = stats.exec
    return (
        stats.seen == stats.delivered + stats.filtered + stats.lost + stats.pending
        and exec.seen == exec.delivered + exec.filtered + exec.lost + exec.pending
        and min(exec.delivered, exec.filtered, exec.lost, exec.pending) >= 0
    )


# -- Arguments --------------------------------------------------------------------------------

WRONG: Dict[str, List[Any]] = {
    "buffer_size": [
        (0, ValueError),
        (-1, ValueError),
        (2**31, ValueError),
        (1.0, TypeError),
        (True, TypeError),
    ],
    "argv_size": [(0, ValueError), (2**21 + 1, ValueError), ("1", TypeError), (None, TypeError)],
    "latency": [
        (-0.1, ValueError),
        (1.1, ValueError),
        (math.nan, ValueError),
        ("0", TypeError),
        (True, TypeError),
    ],
    "probe": [("tracepoints", ValueError), (None, ValueError)],
    "buffer": [("stack", ValueError), (1, ValueError)],
    "filter": [({"pids": 1}, TypeError), ("sh", TypeError)],
    "capture": [
        ("creds", TypeError),
        (b"creds", TypeError),
        (None, TypeError),
        (True, TypeError),
        ([b"creds"], TypeError),
        (["creds", None], TypeError),
        ({"creds": False}, TypeError),
        ([["creds"]], TypeError),
        (["creds", "env"], ValueError),
        ([""], ValueError),
        (["Creds"], ValueError),
    ],
    "env": [
        ("PATH", TypeError),
        (b"PATH", TypeError),
        (0, TypeError),
        (1.5, TypeError),
        ([b"PATH"], TypeError),
        (["PATH", None], TypeError),
        ([True], TypeError),
        ([], ValueError),
        (set(), ValueError),
        (iter(()), ValueError),
        ([""], ValueError),
        (["PATH", "A=B"], ValueError),
        (["A\0"], ValueError),
        (["\ud800"], ValueError),
        ({"PATH": 1}, TypeError),
    ],
}


@pytest.mark.parametrize(
    ("name", "value", "error"), [(name, *case) for name, cases in WRONG.items() for case in cases]
)
def test_arguments_are_checked_at_the_call(name: str, value: Any, error: type) -> None:
    with pytest.raises(error, match=f"^{name}: expected .* got "):
        ExecTracer(**{name: value})


def test_a_callback_for_containers_needs_them_captured() -> None:
    about = Filter(exclude=Filter(containers={"web"}))
    with pytest.raises(
        ValueError, match=r"^where: it names containers, which ExecTracer\(capture=...\) leaves"
    ):
        ExecTracer(capture=["exe"]).on_exec(print, where=about)
    ExecTracer(capture=["exe"], filter=Filter(containers=True)).on_exec(print, where=about)
    ExecTracer(capture=["container"]).on_exec(print, where=about)


PARTS = ("creds", "session", "namespaces", "exe", "cwd", "container")


@pytest.mark.parametrize("value", [case[0] for case in WRONG["capture"]], ids=repr)
def test_a_wrong_part_is_told_beside_those_there_are(value: Any) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        ExecTracer(capture=value)
    assert all(repr(part) in str(caught.value).partition(", got ")[0] for part in PARTS)


@pytest.mark.parametrize("name", ["capture", "env"])
@pytest.mark.parametrize("value", ["exe", b"exe"])
def test_bare_text_is_refused_whole(name: str, value: Any) -> None:
    """It could be iterated over: "got 'e'" would puzzle."""
    with pytest.raises(TypeError, match=f"^{name}: expected .* got {value!r}$"):
        ExecTracer(**{name: value})


def opened_with(monkeypatch: pytest.MonkeyPatch, **arguments: Any) -> Dict[str, Any]:
    """What a tracer with these arguments asks of the kernel."""
    asked: Dict[str, Any] = {}

    def open_kernel(filter: Any, **options: Any) -> ScriptedSource:
        asked.update(options)
        return ScriptedSource()

    monkeypatch.setattr("execwatch.tracer._open_kernel", open_kernel)
    with ExecTracer(**arguments):
        return asked


@pytest.mark.parametrize(
    ("capture", "parts"),
    [
        ((), set()),
        (["exe"], {"exe"}),
        (("exe", "cwd", "exe"), {"exe", "cwd"}),
        (iter(PARTS), set(PARTS)),
    ],
    ids=["nothing", "list", "twice", "iterator"],
)
def test_what_is_captured_is_any_collection_of_parts(
    monkeypatch: pytest.MonkeyPatch, capture: Any, parts: Any
) -> None:
    assert opened_with(monkeypatch, capture=capture)["capture"] == parts


def test_all_but_the_session_and_the_environment_is_captured_by_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = opened_with(monkeypatch)
    assert asked["capture"] == set(PARTS) - {"session"}
    assert set(PARTS) == set(wire.CAPTURE)
    assert asked["env"] is False


@pytest.mark.parametrize(
    ("env", "names"),
    [
        (None, False),
        (False, False),
        (True, True),
        (["PATH"], {"PATH"}),
        (("A B", "\udcff", "A B"), {"A B", "\udcff"}),
        (iter(["PATH", "HOME"]), {"PATH", "HOME"}),
    ],
    ids=["none", "false", "true", "list", "odd", "iterator"],
)
def test_an_environment_is_asked_for_whole_or_by_names(
    monkeypatch: pytest.MonkeyPatch, env: Any, names: Any
) -> None:
    asked = opened_with(monkeypatch, env=env)["env"]
    assert asked == names
    assert isinstance(asked, (bool, frozenset))


@pytest.mark.parametrize(
    ("value", "error"), [(-1, ValueError), (math.nan, ValueError), ("1", TypeError), (True, TypeError)]
)
@pytest.mark.parametrize("call", ["events", "read", "dispatch", "aread"])
def test_timeouts_are_checked_at_the_call(call: str, value: Any, error: type) -> None:
    with tracing(ScriptedSource()) as tracer:
        if call == "dispatch":
            tracer.on_exec(print)
        with pytest.raises(error, match="^timeout: expected .* got "):
            result = getattr(tracer, call)(timeout=value)
            asyncio.run(result)


@pytest.mark.parametrize(
    ("value", "error"), [(-1, ValueError), (1.0, TypeError), ("1", TypeError), (True, TypeError)]
)
def test_a_count_is_checked_at_the_call(value: Any, error: type) -> None:
    with tracing(ScriptedSource()) as tracer, pytest.raises(error, match="^count: expected .* got "):
        tracer.events(count=value)


# -- States -----------------------------------------------------------------------------------


@pytest.mark.parametrize("use", USES)
def test_nothing_works_before_start(use: str) -> None:
    tracer = tracer_over(ScriptedSource())
    if use == "dispatch":
        tracer.on_exec(print)
    with pytest.raises(StateError, match="not started"):
        USES[use](tracer)


@pytest.mark.parametrize("use", USES)
def test_nothing_works_after_close(use: str) -> None:
    tracer = tracer_over(ScriptedSource())
    if use == "dispatch":
        tracer.on_exec(print)
    tracer.start()
    tracer.close()
    with pytest.raises(StateError, match="closed"):
        USES[use](tracer)
    with pytest.raises(StateError, match="closed"):
        tracer.on_exec(print)


def test_a_tracer_starts_once() -> None:
    with tracing(ScriptedSource()) as tracer, pytest.raises(StateError, match="once"):
        tracer.start()
    for _ in range(2):
        with pytest.raises(StateError, match="once"):
            tracer.start()


def test_a_tracer_that_was_closed_before_it_started_stays_closed() -> None:
    tracer = tracer_over(ScriptedSource())
    tracer.close()
    with pytest.raises(StateError, match="once"):
        tracer.start()
    assert tracer.closed


def test_close_is_idempotent_and_always_allowed() -> None:
    source = ScriptedSource()
    tracer = tracer_over(source)
    assert not tracer.closed
    tracer.start()
    assert not tracer.closed
    for _ in range(3):
        tracer.close()
        assert tracer.closed
    assert source.closes == 1


def test_an_error_at_the_start_leaves_nothing_to_close() -> None:
    def fail() -> Any:
        raise OSError("no")

    tracer = tracer_over(ScriptedSource())
    tracer._open_source = fail
    with pytest.raises(OSError, match="no"), tracer:
        pass
    assert tracer.stats() == Stats()
    tracer.close()


def test_repr_tells_the_state() -> None:
    tracer = tracer_over(ScriptedSource())
    assert repr(tracer) == "<ExecTracer new>"
    with tracer:
        assert repr(tracer) == "<ExecTracer started>"
    assert repr(tracer) == "<ExecTracer closed>"


def test_a_tracer_that_was_never_closed_warns_and_is_closed() -> None:
    source = ScriptedSource()
    before = open_files()
    tracer = tracer_over(source)
    tracer.start()
    tracer.fileno()
    with pytest.warns(ResourceWarning, match="<ExecTracer started> was never closed"):
        del tracer
        gc.collect()
    assert source.closes == 1
    assert open_files() < before


def test_a_tracer_is_closed_where_warnings_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    raised: List[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", raised.append)
    source = ScriptedSource()
    tracer = tracer_over(source)
    tracer.start()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del tracer
        gc.collect()
    assert [entry.exc_type for entry in raised] == [ResourceWarning]
    assert source.closes == 1
    raised.clear()


@pytest.mark.parametrize("started", [False, True])
def test_a_tracer_that_was_closed_or_never_started_does_not_warn(started: bool) -> None:
    tracer = tracer_over(ScriptedSource())
    if started:
        tracer.start()
        tracer.close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del tracer
        gc.collect()


# -- Handing over -----------------------------------------------------------------------------


def test_all_events_come_once_and_in_order() -> None:
    source = ScriptedSource(numbered(10), batch=3)
    with tracing(source) as tracer:
        tracer.stop()
        assert numbers(tracer.events()) == list(range(10))
        assert tracer.read() == []
        assert list(tracer.events()) == []


def test_read_returns_a_batch() -> None:
    source = ScriptedSource(numbered(5), batch=3)
    with tracing(source) as tracer:
        assert numbers(tracer.read()) == [0, 1, 2]
        assert numbers(tracer.read(timeout=5)) == [3, 4]


def test_a_count_ends_the_iteration_and_the_rest_stays_for_the_next() -> None:
    with tracing(ScriptedSource(numbered(10))) as tracer:
        assert numbers(tracer.events(count=3)) == [0, 1, 2]
        assert numbers(tracer.events(count=0)) == []
        for event in tracer.events():
            if event.cpu == 4:
                break
        assert numbers(tracer.events(count=1, timeout=0)) == [5]
        assert numbers(tracer.read()) == [6, 7, 8, 9]


def test_two_iterators_in_turn_draw_on_one_queue() -> None:
    with tracing(ScriptedSource(numbered(4))) as tracer:
        one, other = tracer.events(), tracer.events()
        assert numbers([next(one), next(other), next(one), next(other)]) == [0, 1, 2, 3]


def test_the_end_of_an_iteration_stays_the_end() -> None:
    with tracing(ScriptedSource()) as tracer:
        iterator = tracer.events(timeout=0)
        for _ in range(2):
            with pytest.raises(StopIteration):
                next(iterator)


def test_an_iterator_of_a_closed_tracer_ends() -> None:
    with tracing(ScriptedSource(numbered(3))) as tracer:
        iterator = tracer.events()
        next(iterator)
    assert list(iterator) == []


# -- Timeouts ---------------------------------------------------------------------------------


def test_zero_never_waits() -> None:
    with tracing(ScriptedSource(), latency=1.0) as tracer:
        begin = time.monotonic()
        assert tracer.read(timeout=0) == []
        assert list(tracer.events(timeout=0)) == []
        assert asyncio.run(tracer.aread(timeout=0)) == []
        tracer.on_exec(print)
        tracer.dispatch(timeout=0)
        assert time.monotonic() - begin < 0.9


def test_zero_is_a_barrier() -> None:
    source = ScriptedSource(numbered(9), batch=2)
    with tracing(source, latency=1.0) as tracer:
        assert numbers(tracer.read(timeout=0)) == list(range(9))
        source.put(*numbered(3, first=9))
        assert numbers(tracer.events(timeout=0)) == [9, 10, 11]
        source.put(*numbered(3, first=12))
        assert numbers(asyncio.run(tracer.aread(timeout=0))) == [12, 13, 14]
        assert all(barrier for _, barrier in source.reads)


def test_a_barrier_includes_what_was_taken_before() -> None:
    source = ScriptedSource(numbered(2))
    with tracing(source) as tracer:
        next(tracer.events())
        source.put(*numbered(2, first=2))
        assert numbers(tracer.read(timeout=0)) == [1, 2, 3]


@pytest.mark.parametrize("call", ["read", "events", "dispatch", "aread"])
def test_a_timeout_is_waited_for_and_is_no_error(call: str) -> None:
    with tracing(ScriptedSource()) as tracer:
        if call == "dispatch":
            tracer.on_exec(print)
        begin = time.monotonic()
        result = getattr(tracer, call)(timeout=0.05)
        if call == "aread":
            result = asyncio.run(result)
        assert list(result or ()) == []
        assert 0.05 <= time.monotonic() - begin < 5


def test_the_timeout_of_an_iteration_counts_from_the_call() -> None:
    with tracing(ScriptedSource()) as tracer:
        iterator = tracer.events(timeout=0.05)
        begin = time.monotonic()
        until(lambda: time.monotonic() > begin + 0.05, "the timeout to pass")
        begin = time.monotonic()
        assert list(iterator) == []
        assert time.monotonic() - begin < 0.04


class Endless(ScriptedSource):
    """A storm: there is always another event."""

    def read(self, position: Any, barrier: bool) -> Any:
        self.put(*numbered(1, first=len(self.events)))
        return super().read(position, barrier)


@pytest.mark.parametrize("timeout", [0, 0.02])
def test_an_iteration_ends_at_its_timeout_whatever_comes(timeout: float) -> None:
    source = Endless()
    with tracing(source) as tracer:
        found = []
        for event in tracer.events(timeout=timeout):
            found.append(event)
            assert len(found) < 200_000, "it goes on for ever"
        assert numbers(found) == list(range(len(found)))
        assert tracer.stats().delivered == len(found)


def test_a_timeout_bounds_an_iteration_whose_body_is_slow() -> None:
    source = ScriptedSource(numbered(1000))
    with tracing(source) as tracer:
        deadline = time.monotonic() + 0.02
        found = []
        for event in tracer.events(timeout=0.02):
            found.append(event)
            until(lambda: time.monotonic() > deadline, "the timeout to pass")
        assert 1 <= len(found) <= 2
        assert numbers(found + tracer.read()) == list(range(1000))


def test_a_timeout_bounds_dispatch() -> None:
    source = Endless()
    with tracing(source) as tracer:
        tracer.on_exec(lambda event: None)
        tracer.dispatch(timeout=0.02)
        delivered = tracer.stats().delivered
        tracer.dispatch(timeout=0)
        assert tracer.stats().delivered > delivered > 0


@pytest.mark.parametrize("timeout", [math.inf, 1e10, 10**6 * 86400])
@pytest.mark.parametrize("call", ["read", "aread"])
def test_a_very_long_timeout_is_no_error(call: str, timeout: float) -> None:
    source = ScriptedSource()
    with tracing(source) as tracer:

        def consume() -> Any:
            result = getattr(tracer, call)(timeout=timeout)
            return asyncio.run(result) if call == "aread" else result

        consumer = Background(consume)
        source.idle.wait()
        source.put(*numbered(1))
        assert numbers(consumer.result()) == [0]


# -- Callbacks --------------------------------------------------------------------------------


def test_callbacks_get_the_events_in_the_thread_that_dispatches() -> None:
    import threading

    source = ScriptedSource(numbered(3))
    seen: List[Any] = []
    with tracing(source) as tracer:
        tracer.on_exec(lambda event: seen.append((event.cpu, threading.current_thread())))
        assert seen == []
        tracer.dispatch(timeout=0)
    assert seen == [(number, threading.current_thread()) for number in range(3)]


def test_decorators_return_the_function() -> None:
    with tracing(ScriptedSource(numbered(2))) as tracer:

        @tracer.on_exec
        def one(event: Any) -> None:
            seen.append(("one", event.cpu))

        @tracer.on_exec()
        def two(event: Any) -> None:
            seen.append(("two", event.cpu))

        @tracer.on_exec(where=Filter(uids={77}))
        def three(event: Any) -> None:
            seen.append(("three", event.cpu))

        seen: List[Any] = []
        tracer.dispatch(timeout=0)
        assert seen == [("one", 0), ("two", 0), ("one", 1), ("two", 1)]
        assert [function.__name__ for function in (one, two, three)] == ["one", "two", "three"]


def test_where_limits_a_callback_and_follows_descendants() -> None:
    events = [
        exec_event(pid=p, ppid=q, process_key=f"b-{p}-1", parent_key=f"b-{q}-1")
        for p, q in ((5, 1), (6, 5), (7, 6), (8, 1))
    ]
    seen: List[int] = []
    with tracing(ScriptedSource(events)) as tracer:
        tracer.on_exec(lambda event: seen.append(event.pid), where=Filter(descendants_of={5}))
        tracer.dispatch(timeout=0)
    assert seen == [5, 6, 7]


def test_gaps_have_a_callback_of_their_own() -> None:
    seen: List[Any] = []
    events = [exec_event(), lost_events(count=5), exec_event()]
    with tracing(ScriptedSource(events)) as tracer:
        tracer.on_lost(lambda lost: seen.append(lost.count))
        tracer.dispatch(timeout=0)
    assert seen == [5]


def test_gaps_have_to_be_asked_for() -> None:
    with tracing(ScriptedSource(), lost=False) as tracer:
        with pytest.raises(StateError, match="lost=True"):
            tracer.on_lost(print)
        with pytest.raises(StateError, match="lost=True"):
            tracer.on_lost()


@pytest.mark.parametrize(
    ("register", "option"),
    [("on_failed", "failed"), ("on_fork", "forks"), ("on_exit", "exits"), ("on_lost", "lost")],
)
def test_further_kinds_have_to_be_asked_for(register: str, option: str) -> None:
    with pytest.raises(StateError, match=rf"{register} needs ExecTracer\({option}=True\)"):
        getattr(ExecTracer(), register)(print)
    assert getattr(ExecTracer(**{option: True}), register)(print) is print


def test_what_a_callback_raises_leaves_dispatch_which_can_go_on() -> None:
    seen: List[int] = []

    def callback(event: Any) -> None:
        seen.append(event.cpu)
        if event.cpu % 2:
            raise RuntimeError(event.cpu)

    with tracing(ScriptedSource(numbered(4))) as tracer:
        tracer.on_exec(callback)
        for number in (1, 3):
            with pytest.raises(RuntimeError, match=str(number)):
                tracer.dispatch(timeout=0)
        tracer.dispatch(timeout=0)
        assert tracer.stats().delivered == 4
    assert seen == [0, 1, 2, 3]


def test_a_callback_may_stop_the_tracer_and_dispatch_returns() -> None:
    seen: List[int] = []
    with tracing(ScriptedSource(numbered(3))) as tracer:

        @tracer.on_exec
        def callback(event: Any) -> None:
            seen.append(event.cpu)
            tracer.stop()

        Background(tracer.dispatch).result()
    assert seen == [0, 1, 2]


def test_a_callback_may_close_the_tracer_and_dispatch_returns() -> None:
    seen: List[int] = []
    with tracing(ScriptedSource(numbered(3))) as tracer:

        @tracer.on_exec
        def callback(event: Any) -> None:
            seen.append(event.cpu)
            tracer.close()

        Background(tracer.dispatch).result()
        assert tracer.stats().lost == 2
    assert seen == [0]


def test_a_callback_may_register_another() -> None:
    seen: List[str] = []
    with tracing(ScriptedSource(numbered(2))) as tracer:

        def late(event: Any) -> None:
            seen.append(f"late {event.cpu}")

        @tracer.on_exec
        def callback(event: Any) -> None:
            seen.append(f"early {event.cpu}")
            if event.cpu == 0:
                tracer.on_exec(late)

        tracer.dispatch(timeout=0)
    assert seen == ["early 0", "early 1", "late 1"]


def test_dispatch_needs_a_callback() -> None:
    with tracing(ScriptedSource()) as tracer, pytest.raises(StateError, match="on_exec"):
        tracer.dispatch(timeout=0)


@pytest.mark.parametrize("name", CONSUMERS)
def test_other_consumers_are_refused_while_there_are_callbacks(name: str) -> None:
    with tracing(ScriptedSource()) as tracer:
        tracer.on_exec(print)
        with pytest.raises(StateError, match="callbacks"):
            CONSUMERS[name](tracer)


async def coroutine(event: Any) -> None: ...


class AsyncCallable:
    async def __call__(self, event: Any) -> None: ...


@pytest.mark.parametrize(
    "function",
    [coroutine, functools.partial(coroutine), AsyncCallable(), AsyncCallable().__call__, 5, "print"],
    ids=["function", "partial", "callable", "method", "number", "text"],
)
@pytest.mark.parametrize("register", ["on_exec", "on_lost"])
def test_what_can_not_be_called_from_here_is_refused(register: str, function: Any) -> None:
    with tracing(ScriptedSource()) as tracer:
        with pytest.raises(TypeError, match="^fn: "):
            getattr(tracer, register)(function)
        with pytest.raises(StateError):
            tracer.dispatch(timeout=0)


@pytest.mark.parametrize(
    "function", [print, len, [].append, functools.partial(print), type("C", (), {"__call__": print})()]
)
def test_any_other_callable_is_accepted(function: Any) -> None:
    with tracing(ScriptedSource()) as tracer:
        assert tracer.on_exec(function) is function


def test_where_is_a_filter() -> None:
    with tracing(ScriptedSource()) as tracer, pytest.raises(TypeError, match="^where: "):
        tracer.on_exec(print, where="sh")  # type: ignore[call-overload]


# -- The descriptor ---------------------------------------------------------------------------


def readable(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


def test_the_descriptor_is_readable_while_there_is_something() -> None:
    source = ScriptedSource()
    with tracing(source) as tracer:
        fd = tracer.fileno()
        assert tracer.fileno() == fd
        assert not readable(fd)
        source.put(*numbered(3))
        assert readable(fd)
        assert readable(fd)
        assert len(tracer.read(timeout=0)) == 3
        assert not readable(fd)


@pytest.mark.parametrize("asked", ["before", "after"])
def test_the_descriptor_is_readable_for_what_was_taken_and_not_handed_over(asked: str) -> None:
    source = ScriptedSource(numbered(2))
    with tracing(source) as tracer:
        if asked == "before":
            tracer.fileno()
        next(tracer.events())
        assert source.released == 2
        assert readable(tracer.fileno())
        tracer.read(timeout=0)
        assert not readable(tracer.fileno())


def test_the_descriptor_is_not_readable_when_the_last_event_was_iterated() -> None:
    source = ScriptedSource(numbered(2))
    with tracing(source) as tracer:
        fd = tracer.fileno()
        assert len(list(tracer.events(count=2))) == 2
        assert not readable(fd)
        source.put(*numbered(1, first=2))
        assert readable(fd)
        assert numbers(tracer.events(count=1)) == [2]
        assert not readable(fd)


def test_the_descriptor_stays_readable_at_the_end() -> None:
    source = ScriptedSource(numbered(1))
    with tracing(source) as tracer:
        fd = tracer.fileno()
        tracer.read(timeout=0)
        assert not readable(fd)
        tracer.stop()
        for _ in range(3):
            assert readable(fd)
            assert tracer.read(timeout=0) == []


def test_an_interrupted_read_leaves_the_descriptor_readable(monkeypatch: pytest.MonkeyPatch) -> None:
    source = ScriptedSource(numbered(2))
    with tracing(source) as tracer:
        fd = tracer.fileno()
        stream = tracer._stream
        assert stream is not None
        wake, tell = stream._wake, stream._wake.tell

        def interrupted(waiting: bool) -> None:
            tell(waiting)
            if not waiting:
                monkeypatch.setattr(wake, "tell", tell)
                raise KeyboardInterrupt

        monkeypatch.setattr(wake, "tell", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tracer.read(timeout=0)
        assert readable(fd)
        assert numbers(tracer.read(timeout=0)) == [0, 1]
        assert not readable(fd)


# -- Counting ---------------------------------------------------------------------------------


def test_counters_add_up_at_every_step() -> None:
    source = ScriptedSource(drop=lambda event: event.cpu in (1, 5))
    tracer = tracer_over(source)
    steps: List[Stats] = []

    def look() -> Stats:
        steps.append(tracer.stats())
        assert identity(steps[-1])
        return steps[-1]

    assert look() == Stats()
    tracer.start()
    assert look() == Stats()
    source.put(*numbered(4), None, lost_events(count=7))
    source.dropped_early = 2
    stats = look()
    assert (stats.seen, stats.pending, stats.filtered, stats.lost) == (14, 5, 2, 7)
    next(tracer.events())
    stats = look()
    assert (stats.delivered, stats.filtered, stats.pending) == (1, 3, 2)
    assert (stats.exec.lost_by_reason.undecodable, stats.exec.lost_by_reason.buffer_full) == (1, 7)
    tracer.read(timeout=0)
    assert look().pending == 0
    source.lose(3)
    assert look().exec.lost_by_reason.buffer_full == 10
    assert [event.count for event in tracer.read(timeout=0)] == [3]
    source.put(*numbered(4, first=4))
    next(tracer.events())
    source.put(*numbered(2, first=8))
    tracer.stop()
    stats = look()
    assert (stats.delivered, stats.filtered, stats.pending) == (4, 4, 4)
    tracer.close()
    stats = look()
    assert (stats.pending, stats.exec.lost_by_reason.closed) == (0, 4)
    assert stats.delivered == 4
    assert look() == stats


ACTIONS = st.lists(
    st.sampled_from(["put", "many", "bad", "gap", "lose", "early", "next", "read", "barrier", "stop"]),
    max_size=30,
)


@given(ACTIONS, st.integers(1, 4))
def test_counters_add_up_whatever_happens(actions: List[str], batch: int) -> None:
    source = ScriptedSource(batch=batch, drop=lambda event: event.cpu % 5 == 4)
    delivered = 0
    with tracing(source) as tracer:
        for action in [*actions, "stop", "barrier"]:
            number = len(source.events)
            if action == "put":
                source.put(*numbered(1, first=number))
            elif action == "many":
                source.put(*numbered(7, first=number))
            elif action == "bad":
                source.put(None)
            elif action == "gap":
                source.put(lost_events(count=3))
            elif action == "lose":
                source.lose(2)
            elif action == "early":
                source.dropped_early += 1
            elif action == "next":
                delivered += sum(e.kind == "exec" for e in tracer.events(count=1, timeout=0))
            elif action in ("read", "barrier"):
                if action == "barrier" or tracer.stats().pending:
                    delivered += sum(e.kind == "exec" for e in tracer.read(timeout=0))
            else:
                tracer.stop()
            stats = tracer.stats()
            assert identity(stats)
            assert stats.delivered == delivered
        assert stats.pending == 0
    assert identity(tracer.stats())
    assert tracer.stats().exec.lost_by_reason.closed == 0


def test_the_counters_stay_after_close_and_are_never_changed() -> None:
    with tracing(ScriptedSource(numbered(3))) as tracer:
        next(tracer.events())
        before = tracer.stats()
        tracer.read(timeout=0)
    after = tracer.stats()
    assert (before.delivered, after.delivered) == (1, 3)


# -- Fork -------------------------------------------------------------------------------------


def test_in_a_forked_child_all_but_close_is_refused() -> None:
    def child() -> None:
        for name, use in {**USES, "start": lambda t: t.start(), "stats": lambda t: t.stats()}.items():
            with pytest.raises(StateError):
                use(tracer)
                pytest.fail(f"{name} was allowed")
        tracer.close()
        assert tracer.closed

    with tracing(ScriptedSource(numbered(1))) as tracer:
        assert in_child(child) == ""
        assert len(tracer.read()) == 1


def test_a_forked_child_has_none_of_the_descriptors() -> None:
    before = open_files()

    def child() -> None:
        assert {name for name in open_files() - before if "pipe" not in name} == set()
        mine = {
            os.readlink(f"/proc/self/fd/{fd}")
            for fd in os.listdir("/proc/self/fd")
            if os.path.exists(f"/proc/self/fd/{fd}")
        }
        assert not mine & opened

    source = ScriptedSource(numbered(1))
    with tracing(source) as tracer:
        tracer.fileno()
        opened = {entry.split(" ", 1)[1] for entry in open_files() - before} - {"anon_inode:[eventpoll]"}
        assert len(opened) == 3
        assert in_child(child) == ""
        assert readable(tracer.fileno())
        assert len(tracer.read()) == 1


def test_a_forked_child_gets_no_copies_of_events() -> None:
    def child() -> None:
        with pytest.raises(StateError):
            next(iterator)

    with tracing(ScriptedSource(numbered(3))) as tracer:
        iterator = tracer.events()
        next(iterator)
        assert in_child(child) == ""
        assert numbers([next(iterator), next(iterator)]) == [1, 2]


def test_the_parent_goes_on_whatever_the_child_does() -> None:
    def child() -> None:
        nonlocal tracer
        tracer.close()
        del tracer
        gc.collect()

    source = ScriptedSource(numbered(2))
    with tracing(source) as tracer:
        fd = tracer.fileno()
        assert in_child(child) == ""
        assert readable(fd)
        assert numbers(tracer.read()) == [0, 1]
        assert tracer.stats().delivered == 2


def test_a_forked_child_can_trace_with_a_tracer_of_its_own() -> None:
    def child() -> None:
        with tracing(ScriptedSource(numbered(2))) as own:
            assert numbers(own.read()) == [0, 1]

    with tracing(ScriptedSource()):
        assert in_child(child) == ""


def test_a_child_does_not_warn_of_the_parents_tracer() -> None:
    def child() -> None:
        nonlocal tracer
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            del tracer
            gc.collect()
        assert caught == []

    tracer = tracer_over(ScriptedSource())
    tracer.start()
    assert in_child(child) == ""
    tracer.close()
