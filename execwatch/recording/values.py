"""A recording: events, and the answers that they hold."""

from __future__ import annotations

import os
from collections import Counter
from typing import (
    TYPE_CHECKING,
    Any,
    Dict,
    Iterable,
    Iterator,
    List,
    Optional,
    Sequence,
    Tuple,
    Union,
    cast,
    overload,
)

import attrs
from typing_extensions import final

from execwatch import render
from execwatch.events import AnyEvent, Event, ExecEvent, FailedExecEvent, LostEvents, Stats
from execwatch.filters import Filter, Matcher

if TYPE_CHECKING:
    import subprocess

    import pandas
    import pyarrow

    from execwatch.formats import Header
    from execwatch.processes import Process, ProcessTable, ProcessTree

#: So many of a kind a summary names.
_TOP = 10


@final
class Recording(Sequence[AnyEvent]):
    """Events in the order in which they happened, and what they tell.

    Made by :func:`~execwatch.run`, :func:`~execwatch.record` and :func:`~execwatch.load`, or of
    any events. It doesn't change.

    Args:
        events: In order.
        stats: The tracer's last counters, if there was one.
        complete: Whether nothing is missing at its end.
        header: What a file says of where and how it was recorded.
        result: What became of the command, of :func:`~execwatch.run`.
        still_running: Processes that had not ended when the recording did.

    Raises:
        TypeError: Something in ``events`` is no event.

    Attributes:
        stats, complete, header, result, still_running: As above. ``complete`` is False for a
            file that was cut, or whose recorder was killed; ``lost`` is another matter.
    """

    def __init__(
        self,
        events: Iterable[Event],
        *,
        stats: Optional[Stats] = None,
        complete: bool = True,
        header: Optional[Header] = None,
        result: Optional[subprocess.CompletedProcess[Any]] = None,
        still_running: Sequence[Process] = (),
    ) -> None:
        self._events: Tuple[AnyEvent, ...] = tuple(cast("Iterable[AnyEvent]", events))
        for event in self._events:
            if not isinstance(event, Event):
                raise TypeError(f"events: expected events, got {event!r}")
        self.stats = stats
        self.complete = complete
        self.header = header
        self.result = result
        self.still_running: Tuple[Process, ...] = tuple(still_running)
        self._table: Optional[ProcessTable] = None

    # -- A sequence -----------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._events)

    def __iter__(self) -> Iterator[AnyEvent]:
        return iter(self._events)

    @overload
    def __getitem__(self, index: int) -> AnyEvent: ...

    @overload
    def __getitem__(self, index: slice) -> Tuple[AnyEvent, ...]: ...

    def __getitem__(self, index: Union[int, slice]) -> Union[AnyEvent, Tuple[AnyEvent, ...]]:
        return self._events[index]

    def __eq__(self, other: object) -> bool:
        """Whether both hold the same events."""
        return self._events == other._events if isinstance(other, Recording) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._events)

    def __repr__(self) -> str:
        cut = "" if self.complete else ", cut"
        lost = f", {self.lost} lost" if self.lost else ""
        return f"<Recording of {len(self)} events{lost}{cut}>"

    # -- Asking ---------------------------------------------------------------------

    @property
    def execs(self) -> Tuple[ExecEvent, ...]:
        """The programs that started."""
        return tuple(event for event in self._events if isinstance(event, ExecEvent))

    @property
    def failed(self) -> Tuple[FailedExecEvent, ...]:
        """The attempts that the kernel refused, where they were recorded."""
        return tuple(event for event in self._events if isinstance(event, FailedExecEvent))

    @property
    def lost(self) -> int:
        """How many events are missing: those that the tracer counted as lost."""
        if self.stats is not None:
            return self.stats.lost
        return sum(event.count for event in self._events if isinstance(event, LostEvents))

    @property
    def processes(self) -> Tuple[Process, ...]:
        """The processes, in the order of their start: program, times, end, true parent."""
        return tuple(sorted(self._processes(), key=_start))

    def tree(self) -> ProcessTree:
        """Return the processes below each other."""
        return self._processes().tree()

    def filter(self, filter: Optional[Filter] = None, **fields: Any) -> Recording:
        """Return the recording of those events that match; lost events always do.

        Args:
            filter: Which; or instead of it
            fields: those of a :class:`~execwatch.Filter`: ``recording.filter(comms={"cc1"})``.

        Raises:
            TypeError: Both or none are given; or as Filter says.
            ValueError: As Filter says.
        """
        if (filter is None) == (not fields):
            raise TypeError("filter: expected a Filter, or its fields")
        chosen = Filter(**fields) if filter is None else filter
        if not isinstance(chosen, Filter):
            raise TypeError(f"filter: expected a Filter, got {filter!r}")
        matches = Matcher(chosen).matches
        return Recording(
            [event for event in self._events if matches(event)],
            stats=self.stats,
            complete=self.complete,
            header=self.header,
        )

    def summary(self) -> Summary:
        """Return the counts, the longest, the most frequent and the failed."""
        return Summary.of(self)

    def _processes(self) -> ProcessTable:
        if self._table is None:
            from execwatch.processes import ProcessTable

            # All are kept, however many.
            table = ProcessTable(dead=len(self._events) + 1, seconds=float("inf"))
            for event in self._events:
                table.feed(event)
            self._table = table
        return self._table

    def _repr_html_(self) -> str:
        """For notebooks: a row a program, and one where events are missing; the first 50 of them."""
        from execwatch.recording import pages

        return pages.recording(self)

    # -- Elsewhere --------------------------------------------------------------------

    def save(self, path: Union[str, os.PathLike[str]]) -> None:
        """Write it to a file, in the format that its name ends with.

        ``.ndjson``, ``.jsonl`` and ``.json``: a JSON object a line, with ``.gz`` behind it compressed;
        ``.parquet`` needs ``pip install 'execwatch[arrow]'``. The file can be read by its owner alone;
        one that is there already is overwritten, and keeps its owner and permissions. What is not
        ``complete`` is not complete when it is loaded again.

        Raises:
            ValueError: The name ends otherwise; or an event holds what no event of the kernel's does.
            MissingExtraError: pyarrow is not there.
            OSError: The file can't be written; ELOOP: it is a symbolic link.
        """
        from execwatch import formats
        from execwatch.recording import origin

        header = self.header if self.header is not None else formats.Header(version=origin.version())
        with formats.open_writer(os.fspath(path), header) as writer:
            writer.write(self._events)
            if self.complete:
                writer.close(self.stats or _counted(self._events))

    def to_dicts(self) -> List[Dict[str, Any]]:
        """Return each event as :meth:`Event.to_dict <execwatch.ExecEvent.to_dict>` does."""
        return [event.to_dict() for event in self._events]

    def to_arrow(self) -> pyarrow.Table:
        """Return a table with a row an event: nested values joined by ``_``, times with a time zone.

        The schema is the same for every recording, an empty one too. Text is valid Unicode; where
        that loses bytes, the true ones stand in ``raw`` (see :meth:`ExecEvent.to_dict
        <execwatch.ExecEvent.to_dict>`).

        Raises:
            MissingExtraError: pyarrow is not there.
            ValueError: An event holds what no event of the kernel's does: a number that doesn't fit
                into its column, or text with a surrogate that stands for no byte.
        """
        from execwatch.formats import columns

        return columns.table(self._events)

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        """Hand the table to what knows the Arrow PyCapsule interface: ``pyarrow.table(recording)``, DuckDB.

        polars takes every sequence for rows of its own: ``polars.DataFrame(recording.to_arrow())``.
        """
        return self.to_arrow().__arrow_c_stream__(requested_schema)

    def to_pandas(self) -> pandas.DataFrame:
        """Return :meth:`to_arrow` as a data frame, of types that know what is not there.

        Whole numbers stay whole (``Int64``), ``time`` is a timestamp in UTC, ``argv`` and ``env`` are lists.

        Raises:
            MissingExtraError: pandas or pyarrow is not there.
            ValueError: As of :meth:`to_arrow`.
        """
        from execwatch.formats import frames

        return frames.data_frame(self._events)


@final
@attrs.frozen(kw_only=True, weakref_slot=False)
class Summary:
    """A recording in short; ``str()`` prints it.

    Attributes:
        processes: How many there were.
        execs: How many programs started.
        failed_execs: How many attempts failed, where they were recorded.
        lost: Events that are missing.
        duration_ns: From the first event to the last.
        most_often: Names of programs, each with the number of its starts: the first ten.
        slowest: The ten processes that took longest.
        failures: Processes that ended with a code other than 0, or by a signal: the first ten.
        failed_processes: How many there were of them.
    """

    processes: int
    execs: int
    failed_execs: int
    lost: int
    duration_ns: int
    most_often: Tuple[Tuple[str, int], ...]
    slowest: Tuple[Process, ...]
    failures: Tuple[Process, ...]
    failed_processes: int

    @classmethod
    def of(cls, recording: Recording) -> Summary:
        """Return the summary of a recording."""
        processes = recording.processes
        failures = [process for process in processes if process.exit_code or process.signal]
        timed = [process for process in processes if process.duration_ns is not None]
        times = [event.boottime_ns for event in recording]
        return cls(
            processes=len(processes),
            execs=len(recording.execs),
            failed_execs=len(recording.failed),
            lost=recording.lost,
            duration_ns=max(times) - min(times) if times else 0,
            most_often=tuple(Counter(event.comm for event in recording.execs).most_common(_TOP)),
            slowest=tuple(sorted(timed, key=lambda process: -(process.duration_ns or 0))[:_TOP]),
            failures=tuple(failures[:_TOP]),
            failed_processes=len(failures),
        )

    def __str__(self) -> str:
        """A few sections of lines, hostile text quoted."""
        counts = [render.count(self.processes, "process", "processes"), render.count(self.execs, "exec")]
        counts += [render.count(self.failed_execs, "failed attempt")] if self.failed_execs else []
        counts += [f"{render.count(self.lost, 'event')} lost"] if self.lost else []
        lines = [f"{', '.join(counts)} in {self.duration_ns / 1e9:.3f} s"]
        if self.slowest:
            lines += ["", "slowest:"]
            lines += [
                f"  {(p.duration_ns or 0) / 1e9:9.3f} s  {p.pid} {p.command_line}" for p in self.slowest
            ]
        if self.most_often:
            lines += ["", "most often:"]
            lines += [f"  {count:9}    {render.escape(comm)}" for comm, count in self.most_often]
        if self.failures:
            lines += ["", f"failed ({self.failed_processes}):"]
            lines += [f"  {_end(p):>11}  {p.pid} {p.command_line}" for p in self.failures]
        return "\n".join(lines)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """For IPython in a terminal."""
        printer.text(str(self))

    def _repr_html_(self) -> str:
        """For notebooks: the same, each section in a table."""
        from execwatch.recording import pages

        return pages.summary(self)


def _end(process: Process) -> str:
    return f"signal {process.signal}" if process.signal else f"exit {process.exit_code}"


def _start(process: Process) -> Tuple[int, int]:
    return process.start_boottime_ns or 0, process.pid


def _counted(events: Sequence[AnyEvent]) -> Stats:
    """The counters of events that no tracer counted."""
    from execwatch.recording.replaying import replay

    with replay(events) as tracer:
        tracer.read(timeout=0)
        return tracer.stats()
