"""What a stream of events is drawn from: the kernel, a file, a list.

A source never moves by itself. Its reader holds a position, asks for what is
behind it, and tells the source when it may forget: so an interrupt at any point
loses nothing and repeats nothing.
"""

from __future__ import annotations

from typing import Any, List, NamedTuple, Optional, Sequence

from typing_extensions import Protocol

from execwatch.events import AnyEvent


class Batch(NamedTuple):
    """What one read brought.

    Attributes:
        events: In the order of ``boottime_ns``; ``LostEvents`` where the gap is.
        position: Where the next read goes on.
        taken: Records read, those that are no event included.
        filtered: Of them: left out by the source, because the kernel could not decide.
        undecodable: Of them: not understood.
    """

    events: Sequence[AnyEvent]
    position: Any
    taken: int
    filtered: int = 0
    undecodable: int = 0


class Counts(NamedTuple):
    """A source's own counters since the start, of execs.

    Attributes:
        seen: Happened.
        filtered: Left out before they were records.
        buffer_full: Lost, no room.
        skipped: Lost, the program did not run.
        subtree_full: Processes that the kernel had no room to follow.
        argv_truncated, argv_unreadable: Execs whose argv is not complete.
    """

    seen: int = 0
    filtered: int = 0
    buffer_full: int = 0
    skipped: int = 0
    subtree_full: int = 0
    argv_truncated: int = 0
    argv_unreadable: int = 0


class Source(Protocol):
    """The seam between events and where they come from."""

    @property
    def start(self) -> Any:
        """The first position."""

    def fileno(self) -> Optional[int]:
        """A descriptor that polls readable when there is something; None: everything is there."""

    def read(self, position: Any, barrier: bool) -> Batch:
        """Return what is behind ``position``; with ``barrier`` all that was complete before the call."""

    def gaps(self, position: Any) -> Batch:
        """Return losses that no record will tell of."""

    def release(self, position: Any) -> None:
        """Allow the source to forget what is before ``position``."""

    def counts(self) -> Counts:
        """Return the counters; after close the last ones."""

    def detach(self) -> None:
        """Let nothing more come in. From any thread or signal handler; takes no lock."""

    def close(self) -> None:
        """Free everything. Nobody may be reading."""


class ListSource:
    """Events that are there already.

    Args:
        events: In order.
        filtered: How many were left out before.
    """

    start = 0

    def __init__(self, events: List[AnyEvent], filtered: int = 0) -> None:
        self._events = events
        self._filtered = filtered
        self._execs = sum(event.kind == "exec" for event in events)
        self._lost = {"buffer_full": 0, "skipped": 0}
        for event in events:
            if event.kind == "lost":
                self._lost[event.reason] += event.count

    def fileno(self) -> None:
        return None

    def read(self, position: int, barrier: bool) -> Batch:
        events = self._events[position:]
        return Batch(events, position + len(events), sum(event.kind == "exec" for event in events))

    def gaps(self, position: int) -> Batch:
        return Batch((), position, 0)

    def release(self, position: int) -> None:
        pass

    def counts(self) -> Counts:
        seen = self._execs + self._filtered + sum(self._lost.values())
        return Counts(seen=seen, filtered=self._filtered, **self._lost)

    def detach(self) -> None:
        pass

    def close(self) -> None:
        pass
