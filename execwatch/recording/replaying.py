"""Events that are there already: in a file, in a list."""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING, Dict, Iterable, Iterator, List, Optional, Union, cast

from execwatch.errors import RecordingError
from execwatch.events import AnyEvent, Event
from execwatch.filters import Filter, Matcher
from execwatch.recording.values import Recording
from execwatch.source import COUNTED, Batch, Counts, KindCounts, ListSource
from execwatch.tracer import ExecTracer

if TYPE_CHECKING:
    from execwatch.formats import Reader
    from execwatch.processes import Process

Path = Union[str, "os.PathLike[str]"]

#: Events of a file that are read at once.
_CHUNK = 256


def load(path: Path) -> Recording:
    """Return the recording in a file, whole, in memory.

    A file that was cut is read up to the cut; then ``complete`` is False. (A Parquet file
    that was cut can't be read; and one made by somebody who means harm may take any amount of memory.)

    Args:
        path: What :meth:`Recording.save`, :func:`~execwatch.record` or the command wrote. The
            format is told by the content.

    Raises:
        RecordingError: It is no recording, or one of a newer format, or holds what no
            recording can: says what and where.
        MissingExtraError: A Parquet file, and pyarrow is not there.
        OSError: The file can't be read.
    """
    from execwatch import formats

    with formats.open_reader(os.fspath(path)) as reader:
        events = list(reader)
        return Recording(events, stats=reader.stats, complete=reader.complete, header=reader.header)


def replay(source: Union[Path, Iterable[Event]], filter: Optional[Filter] = None) -> ExecTracer[Event]:
    """Return a tracer that hands over events which are there already: no root, any operating system.

    It starts, iterates and closes as a live one, and ends after the last event::

        with replay("build.ndjson", Filter(comms={"sh"})) as tracer:
            for event in tracer.events(): ...

    Args:
        source: The path of a recording, which is then read as the events are asked for, however large it
            is; or events in the order in which they happened, such as a :class:`Recording`.
        filter: Which of them; lost events always pass.

    Raises:
        TypeError: Something in ``source`` is no event.
        RecordingError, OSError: Of a file, when the tracer starts or comes to the fault.
    """
    if filter is not None and not isinstance(filter, Filter):
        raise TypeError(f"filter: expected a Filter or None, got {filter!r}")
    if isinstance(source, (str, os.PathLike)):
        path = os.fspath(source)
        return ExecTracer[Event]._over(lambda: _FileSource(path, filter))
    listed = _list(source, filter)
    return ExecTracer[Event]._over(lambda: listed)


def _list(events: Iterable[Event], filter: Optional[Filter]) -> ListSource:
    matcher = Matcher(filter) if filter else None
    passed: List[AnyEvent] = []
    every: List[AnyEvent] = []
    filtered: Dict[str, int] = {}
    for event in cast("Iterable[AnyEvent]", events):
        if not isinstance(event, Event):
            raise TypeError(f"events: expected events, got {event!r}")
        every.append(event)
        if matcher is None or matcher.matches(event):
            passed.append(event)
        else:
            filtered[event.kind] = filtered.get(event.kind, 0) + 1
    return ListSource(passed, filtered, every)


class _FileSource:
    """A recording in a file, read as it is asked for. A position is a number of events.

    Args:
        path: Of the file.
        filter: Which events to let through.
    """

    start = 0

    def __init__(self, path: str, filter: Optional[Filter]) -> None:
        self._path = path
        self._filter = filter
        self._tracking = False
        self._open()

    def _open(self) -> None:
        from execwatch import formats

        self._reader: Reader = formats.open_reader(self._path)
        self._matcher = Matcher(self._filter) if self._filter else None
        self._at = 0
        self._whole = True
        self._fault: Optional[Exception] = None
        self._seen = dict.fromkeys(COUNTED, 0)
        #: By kind: for want of room, and because a program did not run.
        self._lost = {kind: [0, 0] for kind in COUNTED}

    def fileno(self) -> None:
        return None

    def read(self, position: int, barrier: bool) -> Batch:
        if not self._whole or position != self._at:
            # Ctrl-C came while it was reading: again from the beginning, up to there.
            self._reader.close()
            self._open()
            self._more(position)
        return self._more(None if barrier else _CHUNK)

    def _more(self, limit: Optional[int]) -> Batch:
        """Read so many events, or all.

        Raises:
            RecordingError, OSError: At the fault; what is before it came with the read before.
        """
        if self._fault is not None:
            raise self._fault
        events: List[AnyEvent] = []
        history: List[AnyEvent] = []
        filtered: Dict[str, int] = {}
        at = self._at
        self._whole = False
        for event in self._up_to_a_fault(limit):
            at += 1
            if self._tracking:
                history.append(event)
            if event.kind == "lost":
                if event.of in COUNTED:
                    self._lost[event.of][event.reason == "skipped"] += event.count
            else:
                self._seen[event.kind] += 1
            if self._matcher is None or self._matcher.matches(event):
                events.append(event)
            else:
                filtered[event.kind] = filtered.get(event.kind, 0) + 1
        moved, self._at = at > self._at, at
        self._whole = True
        if self._fault is not None and not moved:
            raise self._fault
        return Batch(events, at, filtered, history=history)

    def _up_to_a_fault(self, limit: Optional[int]) -> Iterator[AnyEvent]:
        try:
            yield from itertools.islice(self._reader, limit)
        except (RecordingError, OSError) as exc:
            self._fault = exc

    def gaps(self, position: int) -> Batch:
        return Batch((), position)

    def track(self) -> Iterable[Process]:
        self._tracking = True
        return ()

    def release(self, position: int) -> None:
        pass

    def counts(self) -> Counts:
        return Counts(
            {
                kind: KindCounts(seen + sum(self._lost[kind]), 0, *self._lost[kind])
                for kind, seen in self._seen.items()
            }
        )

    def detach(self) -> None:
        pass

    def close(self) -> None:
        self._reader.close()
