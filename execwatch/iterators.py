"""The two iterators over a stream, and the waiting of the asynchronous one."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, AsyncIterator, Iterator, NoReturn, Optional

from execwatch.events import AnyEvent
from execwatch.stream import Stream

if TYPE_CHECKING:
    import asyncio


#: Events that an asynchronous iterator hands over before it lets others run.
_TURN = 256


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
        self.finished: bool = False

    def __next__(self) -> AnyEvent:
        stream = self._stream
        if not self._begun:
            stream.claim(self)
        if self._left is not None and self._left <= 0:
            self._finish()
        # A barrier hands over all that it found, however long that takes; else something at least.
        timed = self._deadline is not None and not self._barrier and self._begun
        if timed and time.monotonic() >= (self._deadline or 0.0):
            self._finish()
        self._begun = True
        while True:
            try:
                event = stream.pop()
                if self._left is not None:
                    self._left -= 1
                return event
            except IndexError:
                pass  # and not wait in here: Ctrl-C would show this error as well
            if self._last or stream.ended():
                self._finish()
            # What comes after a barrier, while its events are handed over, is not waited for.
            self._last = self._barrier
            if not stream.fill(self._deadline, barrier=self._barrier):
                self._finish()

    def _finish(self) -> NoReturn:
        self.finished = True
        raise StopIteration


class AsyncEvents(AsyncIterator[Any]):
    """Not an async generator: a cancelled ``__anext__`` loses nothing and ends nothing."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._handed = 0
        self.finished: bool = False

    async def __anext__(self) -> AnyEvent:
        if self._handed == 0:
            self._stream.claim(self)
        self._handed += 1
        if self._handed % _TURN == 0:
            await _sleep(0.0)
        while True:
            try:
                return self._stream.pop()
            except IndexError:  # as above
                pass
            if self._stream.ended() or not await fill(self._stream, None):
                self.finished = True
                raise StopAsyncIteration


async def fill(stream: Stream, deadline: Optional[float], barrier: bool = False) -> bool:
    """:meth:`Stream.fill`, waiting in the running event loop."""
    waiter, waited = object(), False
    stream.start_awaiting(waiter)
    try:
        pause = 0.0 if barrier else stream.pause(deadline)
        if pause > 0:
            waited = True
            await _sleep(pause)
        while True:
            late = deadline is not None and time.monotonic() >= deadline
            filled = stream.fill(time.monotonic(), barrier=barrier, waiter=waiter)
            if filled or late or stream.ended():
                if not waited:
                    await _sleep(0.0)  # let others run
                return filled
            waited = True
            await _readable(stream, deadline)
    finally:
        stream.end_awaiting()


async def _sleep(seconds: float) -> None:
    """Let others run: a flood must not keep other tasks, timeouts and cancellation from the loop."""
    import asyncio

    await asyncio.sleep(seconds)


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
