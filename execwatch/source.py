"""What a stream of events is drawn from: the kernel, a file, a list.

A source never moves by itself. Its reader holds a position, asks for what is
behind it, and tells the source when it may forget: so an interrupt at any point
loses nothing and repeats nothing.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Dict, Iterable, List, Mapping, NamedTuple, Optional, Sequence

from typing_extensions import Protocol

from execwatch.events import AnyEvent

if TYPE_CHECKING:
    from execwatch.processes import Process

#: The kinds that are counted, each with its name in ``Stats``.
COUNTED = {"exec": "exec", "failed_exec": "failed", "fork": "fork", "exit": "exit"}

#: A number for each kind in COUNTED that has one.
Tally = Mapping[str, int]

NONE: Tally = MappingProxyType({})


class Batch(NamedTuple):
    """What one read brought.

    Attributes:
        events: In the order of ``boottime_ns``; ``LostEvents`` where the gap is.
        position: Where the next read goes on.
        filtered: Records left out by the source, because the kernel could not decide.
        undecodable: Records that were not understood.
        history: Where the source tracks processes: these events and the others that it
            needs to know for that, in order.
    """

    events: Sequence[AnyEvent]
    position: Any
    filtered: Tally = NONE
    undecodable: int = 0
    history: Sequence[AnyEvent] = ()


class KindCounts(NamedTuple):
    """A source's own counters of one kind of event since the start.

    Attributes:
        seen: Happened.
        filtered: Left out before they were records.
        buffer_full: Lost, no room.
        skipped: Lost, the program did not run.
    """

    seen: int = 0
    filtered: int = 0
    buffer_full: int = 0
    skipped: int = 0

    @property
    def submitted(self) -> int:
        """Became records."""
        return self.seen - self.filtered - self.buffer_full - self.skipped


class Counts(NamedTuple):
    """A source's own counters since the start.

    Attributes:
        kinds: By kind.
        subtree_full: Processes that the kernel had no room to follow.
        argv_truncated, argv_unreadable: Execs whose argv is not complete.
    """

    kinds: Mapping[str, KindCounts]
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

    def track(self) -> Iterable[Process]:
        """Have every process in ``history`` from now on; return those that there are already."""

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
        filtered: How many were left out before, by kind.
        history: All of them, with those that were left out.
    """

    start = 0

    def __init__(self, events: List[AnyEvent], filtered: Tally, history: Sequence[AnyEvent] = ()) -> None:
        self._events = events
        self._history = history
        self._tracking = False
        present = count(events)
        lost = dict.fromkeys(COUNTED, 0), dict.fromkeys(COUNTED, 0)
        for event in events:
            if event.kind == "lost" and event.of in COUNTED:
                lost[event.reason == "skipped"][event.of] += event.count
        full, skipped = lost
        self._counts = Counts(
            {
                kind: KindCounts(
                    seen=present.get(kind, 0) + filtered.get(kind, 0) + full[kind] + skipped[kind],
                    filtered=filtered.get(kind, 0),
                    buffer_full=full[kind],
                    skipped=skipped[kind],
                )
                for kind in COUNTED
            }
        )

    def fileno(self) -> None:
        return None

    def read(self, position: int, barrier: bool) -> Batch:
        events = self._events[position:]
        history = self._history if self._tracking and position == 0 else ()
        return Batch(events, position + len(events), history=history)

    def gaps(self, position: int) -> Batch:
        return Batch((), position)

    def track(self) -> Iterable[Process]:
        self._tracking = True
        return ()

    def release(self, position: int) -> None:
        pass

    def counts(self) -> Counts:
        return self._counts

    def detach(self) -> None:
        pass

    def close(self) -> None:
        pass


def count(events: Sequence[AnyEvent]) -> Dict[str, int]:
    """Return how many events there are of each kind."""
    totals: Dict[str, int] = {}
    for event in events:
        totals[event.kind] = totals.get(event.kind, 0) + 1
    return totals
