"""What a reader waits on, and what it shows to others who wait."""

from __future__ import annotations

import contextlib
import os
import select
from typing import Optional


class Pipe:
    """A pipe that never blocks and is closed when the last reference goes.

    So stop() in one thread may write while close() in another lets go: the
    descriptor can't become somebody else's file in between.
    """

    read_end: int = -1
    write_end: int = -1

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe()
        for end in (self.read_end, self.write_end):
            os.set_blocking(end, False)

    def fill(self) -> None:
        """Be readable."""
        with contextlib.suppress(BlockingIOError):  # full: it is readable
            os.write(self.write_end, b"\0")

    def drain(self) -> None:
        """Be readable no more."""
        with contextlib.suppress(BlockingIOError):  # empty
            os.read(self.read_end, 4096)

    def __del__(self) -> None:
        if self.read_end >= 0:
            os.close(self.read_end)
            os.close(self.write_end)


class Wake:
    """What a reader waits on: the source's descriptor, and a pipe that stop writes to.

    Args:
        source: The source's descriptor, or None where all is there from the start:
            then nobody waits, and no pipe is needed.
    """

    def __init__(self, source: Optional[int]) -> None:
        self._source = source
        self._stop: Optional[Pipe] = None
        # Readable while events wait in the queue; made when somebody asks for fileno().
        self._queue: Optional[Pipe] = None
        self._told = False
        self._epoll: Optional[select.epoll] = None
        if source is not None:
            self._stop = Pipe()
            self._poll, self._poll_stop = select.poll(), select.poll()
            self._poll.register(source, select.POLLIN)
            for poll in (self._poll, self._poll_stop):
                poll.register(self._stop.read_end, select.POLLIN)

    def wait(self, timeout: Optional[float]) -> bool:
        """Wait for the source or stop; False at the timeout."""
        # poll() takes no more than 24 days; who waits comes again after a wait in vain.
        return bool(self._poll.poll(None if timeout is None else min(timeout, 86400.0) * 1000))

    def wait_stop(self, timeout: float) -> None:
        """Wait for stop alone."""
        self._poll_stop.poll(timeout * 1000)

    def stop(self) -> None:
        """Be readable from now on."""
        pipe = self._stop
        if pipe is not None:
            pipe.fill()

    def export(self) -> int:
        """Return a descriptor that is readable with the source, the queue, or stop."""
        if self._epoll is None:
            self._queue = Pipe()
            epoll = select.epoll()
            epoll.register(self._queue.read_end, select.EPOLLIN)
            if self._source is not None and self._stop is not None:
                epoll.register(self._source, select.EPOLLIN)
                epoll.register(self._stop.read_end, select.EPOLLIN)
            self._epoll = epoll
        return self._epoll.fileno()

    def tell(self, waiting: bool) -> None:
        """Make the exported descriptor readable, or not, for the sake of the queue."""
        queue = self._queue  # another thread may close
        if queue is None or waiting == self._told:
            return
        # In this order, so that Ctrl-C in between can only leave it readable in vain.
        if waiting:
            queue.fill()
            self._told = True
        else:
            self._told = False
            queue.drain()

    def close(self) -> None:
        """Let go of everything."""
        if self._epoll is not None:
            self._epoll.close()
        self._stop = self._queue = self._epoll = None
