"""The two iterators over a stream, and the waiting of the asynchronous one."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, AsyncIterator, Iterator, Optional

from execwatch.events import AnyEvent
from execwatch.stream import Stream

if TYPE_CHECKING:
    import asyncio


class Events(Iterator[Any]):
    """Not a generator: what it took and did not hand over is in the stream, whatever happens to it."""

    def __init__(
        self, stream: Stream, deadline: Optional[float], count: Optional[int], barrier: bool
    ) -> None:
        self._stream = stream
        self._deadline = deadline
        self._left = count
        self._barrier = barrier
        self._begun = False
        self._last = False

    def __next__(self) -> AnyEvent:
        stream = self._stream
        if self._left is not None:
            if self._left <= 0:
                raise StopIteration
            self._left -= 1
        # A barrier hands over all that it found, however long that takes; else something at least.
        if self._deadline is not None and not self._barrier:
            if self._begun and time.monotonic() >= self._deadline:
                raise StopIteration
            self._begun = True
        while True:
            try:
                return stream.pop()
            except IndexError:
                if self._last or stream.ended():
                    raise StopIteration from None
                # What comes after a barrier, while its events are handed over, is not waited for.
                self._last = self._barrier
                if not stream.fill(self._deadline, barrier=self._barrier):
                    raise StopIteration from None


class AsyncEvents(AsyncIterator[Any]):
    """Not an async generator: a cancelled ``__anext__`` loses nothing and ends nothing."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    async def __anext__(self) -> AnyEvent:
        while True:
            try:
                return self._stream.pop()
            except IndexError:
                if self._stream.ended() or not await fill(self._stream, None):
                    raise StopAsyncIteration from None


async def fill(stream: Stream, deadline: Optional[float], barrier: bool = False) -> bool:
    """:meth:`Stream.fill`, waiting in the running event loop."""
    waiter = object()
    stream.start_awaiting(waiter)
    try:
        while True:
            late = deadline is not None and time.monotonic() >= deadline
            filled = stream.fill(time.monotonic(), barrier=barrier, waiter=waiter)
            if filled or late or stream.ended():
                return filled
            await _readable(stream, deadline)
    finally:
        stream.end_awaiting()


async def _readable(stream: Stream, deadline: Optional[float]) -> None:
    """Wait for the first event, then for others to join it; or for stop."""
    import asyncio

    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    fd = stream.fileno()
    loop.add_reader(fd, _resolve, ready)
    try:
        timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
        done, _ = await asyncio.wait([ready], timeout=timeout)
    finally:
        loop.remove_reader(fd)
    if done and not stream.ended():
        await asyncio.sleep(stream.latency(deadline))


def _resolve(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
