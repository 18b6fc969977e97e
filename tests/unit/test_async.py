"""Asynchronous consumers, over a source that does what the test says."""

from __future__ import annotations

import asyncio
import select
import time
from typing import Any, Awaitable, Callable, Dict, List

import pytest

from execwatch import ExecTracer, StateError, replay
from execwatch.testing import exec_event

from .scripted import Background, ScriptedSource, numbered, numbers, tracer_over, tracing, until


async def waiting(source: ScriptedSource) -> None:
    """Let other tasks go on until a reader has found nothing."""
    deadline = time.monotonic() + 20
    while not source.idle.is_set():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.001)
    await asyncio.sleep(0)


async def collect(tracer: ExecTracer[Any], count: int) -> List[Any]:
    found: List[Any] = []
    async for event in tracer:
        found.append(event)
        if len(found) == count:
            break
    return found


CONSUMERS: Dict[str, Callable[[ExecTracer[Any]], Awaitable[Any]]] = {
    "async for": lambda tracer: collect(tracer, 1),
    "aread": lambda tracer: tracer.aread(),
}


def test_async_for_hands_over_all_and_ends_with_the_stream() -> None:
    async def main() -> List[Any]:
        async with tracer_over(ScriptedSource(numbered(10), batch=3)) as tracer:
            tracer.stop()
            return [event async for event in tracer]

    assert numbers(asyncio.run(main())) == list(range(10))


def test_what_one_loop_leaves_the_next_gets() -> None:
    async def main() -> List[List[int]]:
        async with tracer_over(ScriptedSource(numbered(6))) as tracer:
            first = numbers(await collect(tracer, 2))
            second = numbers([await tracer.__aiter__().__anext__()])
            return [first, second, numbers(await tracer.aread())]

    assert asyncio.run(main()) == [[0, 1], [2], [3, 4, 5]]


def test_synchronous_and_asynchronous_consumers_take_turns() -> None:
    async def main() -> List[Any]:
        return await collect(tracer, 2)

    with tracing(ScriptedSource(numbered(6))) as tracer:
        assert numbers(tracer.events(count=2)) == [0, 1]
        assert numbers(asyncio.run(main())) == [2, 3]
        assert numbers(tracer.read()) == [4, 5]


@pytest.mark.parametrize("name", CONSUMERS)
def test_other_tasks_go_on_while_one_waits(name: str) -> None:
    source = ScriptedSource()

    async def main() -> List[Any]:
        async with tracer_over(source) as tracer:
            task = asyncio.ensure_future(CONSUMERS[name](tracer))
            await waiting(source)
            assert not task.done()
            source.put(*numbered(1))
            return list(await asyncio.wait_for(task, 20))

    assert numbers(asyncio.run(main())) == [0]
    assert source.misuse == []


def test_latency_lets_events_join() -> None:
    source = ScriptedSource()

    async def main() -> List[Any]:
        async with tracer_over(source, latency=0.5) as tracer:
            task = asyncio.ensure_future(tracer.aread())
            await waiting(source)
            for number in range(20):
                source.put(exec_event(cpu=number))
                await asyncio.sleep(0)
            return await asyncio.wait_for(task, 20)

    assert numbers(asyncio.run(main())) == list(range(20))


def test_a_timeout_ends_with_an_empty_list() -> None:
    async def main() -> None:
        async with tracer_over(ScriptedSource()) as tracer:
            begin = time.monotonic()
            assert await tracer.aread(timeout=0.05) == []
            assert 0.05 <= time.monotonic() - begin < 5

    asyncio.run(main())


@pytest.mark.parametrize("name", CONSUMERS)
def test_a_cancelled_consumer_loses_nothing(name: str) -> None:
    """It is cancelled at each of its steps in turn, while events come."""
    source = ScriptedSource()
    total = 60

    async def main() -> List[Any]:
        found: List[Any] = []
        async with tracer_over(source, latency=0.002) as tracer:
            for steps in range(total):
                task = asyncio.ensure_future(CONSUMERS[name](tracer))
                for step in range(steps % 12):
                    if step == 2:
                        source.put(*numbered(1, first=len(source.events)))
                    await asyncio.sleep(0.0005)
                task.cancel()
                result = (await asyncio.gather(task, return_exceptions=True))[0]
                if isinstance(result, list):
                    found += result
                else:
                    assert isinstance(result, asyncio.CancelledError)
            return found + await tracer.aread(timeout=0)

    found = asyncio.run(main())
    assert len(found) == len(source.events) > 20
    assert numbers(found) == list(range(len(found)))
    assert source.misuse == []


def test_one_iterator_survives_its_cancellation() -> None:
    source = ScriptedSource()

    async def main() -> List[Any]:
        async with tracer_over(source) as tracer:
            iterator = tracer.__aiter__()
            for _ in range(3):
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(iterator.__anext__(), 0.01)
            source.put(*numbered(2))
            return [await iterator.__anext__(), await iterator.__anext__()]

    assert numbers(asyncio.run(main())) == [0, 1]


@pytest.mark.parametrize("second", CONSUMERS)
@pytest.mark.parametrize("first", CONSUMERS)
def test_a_second_task_is_refused(first: str, second: str) -> None:
    source = ScriptedSource()

    async def main() -> List[Any]:
        async with tracer_over(source) as tracer:
            task = asyncio.ensure_future(CONSUMERS[first](tracer))
            await waiting(source)
            with pytest.raises(StateError, match="task"):
                await CONSUMERS[second](tracer)
            with pytest.raises(StateError, match="task"):
                tracer.read(timeout=0)
            source.put(*numbered(1))
            return list(await asyncio.wait_for(task, 20))

    assert numbers(asyncio.run(main())) == [0]


def test_a_task_is_refused_while_a_thread_waits() -> None:
    source = ScriptedSource()

    async def main(tracer: ExecTracer[Any]) -> None:
        with pytest.raises(StateError, match="thread"):
            await tracer.aread()

    with tracing(source) as tracer:
        consumer = Background(tracer.read)
        source.idle.wait()
        asyncio.run(main(tracer))
        source.put(*numbered(1))
        assert numbers(consumer.result()) == [0]


@pytest.mark.parametrize("end", ["stop", "close"])
@pytest.mark.parametrize("where", ["task", "thread"])
def test_a_waiting_task_ends_with_stop_and_close(end: str, where: str) -> None:
    source = ScriptedSource()

    async def main() -> List[Any]:
        tracer = tracer_over(source)
        tracer.start()
        task = asyncio.ensure_future(collect(tracer, 99))
        await waiting(source)
        if where == "task":
            getattr(tracer, end)()
        else:
            Background(getattr(tracer, end)).result()
        found = await asyncio.wait_for(task, 20)
        tracer.close()
        return found

    assert asyncio.run(main()) == []
    assert source.closes == 1
    assert source.misuse == []


def test_what_is_buffered_at_the_stop_is_still_delivered() -> None:
    source = ScriptedSource()

    async def main() -> List[Any]:
        async with tracer_over(source) as tracer:
            task = asyncio.ensure_future(collect(tracer, 99))
            await waiting(source)
            source.put(*numbered(3))
            tracer.stop()
            return await asyncio.wait_for(task, 20)

    assert numbers(asyncio.run(main())) == [0, 1, 2]


def test_aclose_closes() -> None:
    source = ScriptedSource()

    async def main() -> None:
        tracer = tracer_over(source)
        tracer.start()
        await tracer.aclose()
        await tracer.aclose()
        assert tracer.closed

    asyncio.run(main())
    assert source.closes == 1


def test_each_loop_of_a_process_can_use_the_same_tracer() -> None:
    """It owns none, as inside a notebook."""
    source = ScriptedSource()
    with tracing(source) as tracer:
        for number in range(3):
            source.put(exec_event(cpu=number))
            assert numbers(asyncio.run(tracer.aread())) == [number]
        assert asyncio.run(tracer.aread(timeout=0.01)) == []


def test_nothing_is_left_in_the_loop() -> None:
    source = ScriptedSource()

    async def main() -> None:
        async with tracer_over(source) as tracer:
            await tracer.aread(timeout=0.01)
            fd = tracer.fileno()
            loop = asyncio.get_running_loop()
            assert not loop.remove_reader(fd)
            assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


def test_an_event_loop_can_watch_the_descriptor_itself() -> None:
    source = ScriptedSource()
    found: List[Any] = []

    async def main() -> None:
        done = asyncio.Event()
        with tracing(source) as tracer:

            def ready() -> None:
                batch = tracer.read(timeout=0)
                assert batch, "woken for nothing"
                found.extend(batch)
                if len(found) == 10:
                    done.set()

            asyncio.get_running_loop().add_reader(tracer.fileno(), ready)
            for number in range(10):
                source.put(exec_event(cpu=number))
                await asyncio.sleep(0)
            await asyncio.wait_for(done.wait(), 20)
            asyncio.get_running_loop().remove_reader(tracer.fileno())

    asyncio.run(main())
    assert numbers(found) == list(range(10))


def test_a_replay_works_the_same() -> None:
    async def main() -> List[Any]:
        async with replay(numbered(5)) as tracer:
            return [event async for event in tracer]

    assert numbers(asyncio.run(main())) == list(range(5))


def test_the_descriptor_works_with_select_in_a_thread() -> None:
    source = ScriptedSource()
    with tracing(source) as tracer:
        fd = tracer.fileno()
        waiter = Background(lambda: select.select([fd], [], [], 20)[0])
        until(lambda: True, "nothing")
        source.put(*numbered(1))
        assert waiter.result() == [fd]
