"""One consumer at a time: what is queued is no way around it. And nobody starves the event loop."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, List

import pytest

from execwatch import ExecTracer, Filter, StateError, stream
from execwatch.testing import exec_event, fake_tracer, fork_event

from .scripted import Background, ScriptedSource, numbered, numbers, tracer_over, tracing


def test_a_second_thread_is_refused_while_the_first_iterates_what_is_queued() -> None:
    with tracing(ScriptedSource(numbered(10))) as tracer:
        first = tracer.events()
        next(first)
        for use in (lambda: next(tracer.events()), lambda: tracer.read(timeout=0)):
            with pytest.raises(StateError, match="another thread or task"):
                Background(use).result()
        assert len(list(tracer.events(timeout=0))) == 9


def test_an_iteration_that_ended_or_was_dropped_excludes_nobody() -> None:
    with tracing(ScriptedSource(numbered(10))) as tracer:
        ended = tracer.events(count=2)
        assert len(list(ended)) == 2
        dropped = tracer.events()
        next(dropped)
        del dropped
        assert len(Background(lambda: tracer.read(timeout=0)).result()) == 7


def test_a_second_task_is_refused_while_the_first_iterates_what_is_queued() -> None:
    async def main() -> None:
        with tracing(ScriptedSource(numbered(10))) as tracer:
            begun, done = asyncio.Event(), asyncio.Event()

            async def first() -> None:
                async for _ in tracer:
                    begun.set()
                    await done.wait()
                    break

            task = asyncio.create_task(first())
            await begun.wait()
            with pytest.raises(StateError, match="another thread or task"):
                async for _ in tracer:
                    pass
            with pytest.raises(StateError, match="another thread or task"):
                await tracer.aread(timeout=0)
            done.set()
            await task
            assert len(await tracer.aread(timeout=0)) == 9

    asyncio.run(main())


def test_a_flood_keeps_neither_timeout_nor_other_tasks_from_the_loop() -> None:
    class Endless(ScriptedSource):
        def read(self, position: Any, barrier: bool) -> Any:
            self.put(*numbered(300))
            return super().read(position, barrier)

    async def main() -> int:
        ticks = 0
        with tracing(Endless(numbered(1))) as tracer:

            async def tick() -> None:
                nonlocal ticks
                while True:
                    ticks += 1
                    await asyncio.sleep(0)

            async def consume() -> None:
                async for _ in tracer:
                    pass

            async def read() -> None:
                while True:
                    await tracer.aread()

            ticker = asyncio.create_task(tick())
            for consumer in (consume, read):
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(consumer(), 0.1)
            ticker.cancel()
        return ticks

    assert asyncio.run(asyncio.wait_for(main(), 20)) > 10


def test_a_callbacks_filter_has_the_history_of_all_kinds() -> None:
    child, grandchild = fork_event(pid=11, ppid=10), fork_event(pid=12, ppid=11)
    child_key = child.process_key
    grandchild = fork_event(pid=12, ppid=11, parent_key=child_key)
    executed = exec_event(
        pid=12, ppid=11, process_key=grandchild.process_key, parent_key=child_key, argv=("found",)
    )
    seen: List[str] = []
    with fake_tracer([child, grandchild, executed, exec_event(pid=13, ppid=1)]) as tracer:
        tracer.on_exec(lambda event: seen.append(event.argv[0]), where=Filter(descendants_of=10))
        tracer.dispatch()
    assert seen == ["found"]


def test_a_start_that_fails_closes_the_source(monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> None:
        raise OSError(24, "Too many open files")

    source = ScriptedSource()
    tracer = tracer_over(source)
    monkeypatch.setattr("os.pipe", full)
    with pytest.raises(OSError, match="Too many open files"):
        tracer.start()
    assert source.closes == 1


def test_a_count_is_of_events_that_were_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    with tracing(ScriptedSource(numbered(5))) as tracer:
        events = tracer.events(count=2)
        stream = tracer._stream
        assert stream is not None
        with monkeypatch.context() as patch:

            def interrupted() -> None:
                raise KeyboardInterrupt

            patch.setattr(stream, "pop", interrupted)
            with pytest.raises(KeyboardInterrupt):
                next(events)
        assert numbers(events) == [0, 1]


@pytest.mark.parametrize("name", ["failed", "forks", "exits", "lost"])
@pytest.mark.parametrize("value", [1, None, "yes", []])
def test_options_are_true_or_false(name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=f"^{name}: expected True or False, got "):
        ExecTracer(**{name: value})


def test_an_interrupt_while_it_waits_shows_no_other_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> bool:
        raise KeyboardInterrupt

    async def iterate(tracer: ExecTracer[Any]) -> None:
        async for _ in tracer:
            pass

    with tracing(ScriptedSource([])) as tracer:
        monkeypatch.setattr(stream.Stream, "fill", interrupt)
        with pytest.raises(KeyboardInterrupt) as raised:
            next(tracer.events())
        assert raised.value.__context__ is None
        with pytest.raises(KeyboardInterrupt) as raised:
            asyncio.run(iterate(tracer))
        assert not isinstance(raised.value.__context__, IndexError)
