"""Never run: what type checkers make of the public API."""

from __future__ import annotations

from typing import AsyncIterator, Iterator, List, Optional, Tuple

from typing_extensions import assert_type

from execwatch import Event, ExecEvent, ExecTracer, Filter, LostEvents, Recording, check, replay
from execwatch.preflight import Problem
from execwatch.testing import exec_event, fake_tracer


def kinds_follow_from_the_arguments(flag: bool) -> None:
    assert_type(ExecTracer(), ExecTracer[ExecEvent])
    assert_type(ExecTracer(Filter(uids={"root", 0}), latency=0), ExecTracer[ExecEvent])
    assert_type(ExecTracer(lost=False), ExecTracer[ExecEvent])
    assert_type(ExecTracer(lost=True), ExecTracer[Event])
    assert_type(ExecTracer(lost=flag), ExecTracer[Event])


def consumers_give_those_kinds(tracer: ExecTracer, every: ExecTracer[Event]) -> None:
    assert_type(tracer.events(timeout=1), Iterator[ExecEvent])
    assert_type(tracer.read(), List[ExecEvent])
    assert_type(tracer.__aiter__(), AsyncIterator[ExecEvent])
    assert_type(every.read(timeout=0), List[Event])
    with tracer as entered:
        assert_type(entered, ExecTracer[ExecEvent])


def a_tracer_of_less_is_one_of_more(tracer: ExecTracer[ExecEvent]) -> ExecTracer[Event]:
    return tracer


def kinds_are_told_apart(event: Event) -> Optional[int]:
    if isinstance(event, ExecEvent):
        assert_type(event.argv, Tuple[str, ...])
        assert_type(event.ppid, Optional[int])
        return event.pid
    return event.count if isinstance(event, LostEvents) else None


def decorators_keep_the_function(tracer: ExecTracer[Event]) -> None:
    @tracer.on_exec
    def plain(event: ExecEvent) -> int:
        return event.pid

    @tracer.on_exec(where=Filter(comms={"sh"}))
    def chosen(event: ExecEvent) -> None: ...

    assert_type(plain(exec_event()), int)
    tracer.on_lost(lambda gap: None)


def elsewhere(every: List[Event]) -> None:
    assert_type(replay([exec_event()]), ExecTracer[Event])
    assert_type(fake_tracer([]), ExecTracer[Event])
    assert_type(replay(every), ExecTracer[Event])
    assert_type(len(Recording(every).still_running), int)
    assert_type(check().problems, Tuple[Problem, ...])
