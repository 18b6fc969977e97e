"""What the writers have in common, and the readers."""

from __future__ import annotations

import abc
import os
from io import FileIO
from os import getpid as _getpid  # a test may put something else in its place
from types import TracebackType
from typing import Any, Iterator, Optional, Sequence, Type

from typing_extensions import Self

from execwatch.errors import RecordingError, StateError
from execwatch.events import AnyEvent, Stats
from execwatch.formats.header import Header


class Writer(abc.ABC):
    """A recording that is being written, see :func:`open_writer`.

    For one thread at a time. In a forked child it writes nothing.
    """

    def __init__(self) -> None:
        self._closed = False
        self._failed = False
        self._pid = _getpid()

    def write(self, events: Sequence[AnyEvent]) -> None:
        """Add events.

        Where it fails, some of them may be in the file, the last of them cut. Nothing can be
        written behind that.

        Raises:
            OSError: The file can't be written.
            ValueError: An event holds what the format has no place for. (A number of more than 64 bits
                may pass; then its reader refuses it.)
            StateError: The writer is closed, or has failed, or is the parent process's.
        """
        if self._closed or self._failed:
            raise StateError("the recording is closed" if self._closed else "an earlier write has failed")
        if _getpid() != self._pid:
            raise StateError("the recording is written by the process that forked")
        try:
            self._write(events)
        except BaseException:
            self._failed = True
            raise

    def close(self, stats: Optional[Stats] = None) -> None:
        """Write the end and close the file; the second time do nothing.

        Args:
            stats: The final counters. None, and after a failed write always: it ended without;
                who reads it is told that it is not complete.

        Raises:
            OSError: The end can't be written; the file is closed all the same.
            ValueError: As of :meth:`write`: some formats look at events late.
        """
        if self._closed:
            return
        self._closed = True
        try:
            if not self._failed and _getpid() == self._pid:
                self._end(stats)
        finally:
            self._release()

    @abc.abstractmethod
    def _write(self, events: Sequence[AnyEvent]) -> None:
        """Write the events, to a file that :func:`create` has opened; of none let go of what is held back."""

    @abc.abstractmethod
    def _end(self, stats: Optional[Stats]) -> None:
        """Write what is to come after the last event."""

    @abc.abstractmethod
    def _release(self) -> None:
        """Close the file, without writing anything more where that can be helped."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: Optional[Type[BaseException]],
        exc: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self.close()


class Reader(abc.ABC):
    """A recording that is being read, see :func:`open_reader`. Iterate over it for the events.

    It reads on where it stopped, however many iterations it takes.

    Attributes:
        header: What the file begins with.
        stats: The final counters, once all was read; None until then, and where the file
            has none.
        complete: Whether all was read, up to the final counters.
        skipped: Events left out so far, because this version doesn't know their kind.
    """

    header: Header

    def __init__(self, path: str) -> None:
        self.stats: Optional[Stats] = None
        self.complete = False
        self.skipped = 0
        self._path = path
        self._closed = False
        self._events = self._read()

    def __iter__(self) -> Iterator[AnyEvent]:
        """Yield the events that were not yet read.

        Raises:
            RecordingError: The file holds what no recording can; says what and where.
            OSError: It can't be read.
            StateError: The reader is closed.
        """
        if self._closed:
            raise StateError("the reader is closed")
        return self._events

    def close(self) -> None:
        """Close the file."""
        self._closed = True
        self._release()

    @abc.abstractmethod
    def _read(self) -> Iterator[AnyEvent]:
        """Yield the events, and set ``stats``, ``complete`` and ``skipped``.

        A file that was cut is no error: it ends there, and is not ``complete``. What no cut
        explains is one.
        """

    @abc.abstractmethod
    def _release(self) -> None:
        """Close the file."""

    def _error(self, what: object) -> RecordingError:
        return RecordingError(f"{self._path!r}: {what}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: Optional[Type[BaseException]],
        exc: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self.close()


def create(path: str) -> FileIO:
    """Return a new or emptied file; a new one is for its owner alone: argv and env hold secrets.

    A symbolic link in its place is refused (ELOOP): in a folder that others can write to, it
    leads a recorder that is root to any file. An existing file keeps its owner and permissions.
    What is written is handed to the operating system, all of it or an OSError says so.
    """
    return _File(path)


class _File(FileIO):
    def __init__(self, path: str) -> None:
        super().__init__(path, "w", opener=_open)
        self._pid = _getpid()

    def write(self, data: Any) -> int:
        """Write all of it; in a forked child nothing.

        What is freed there, such as pyarrow's writer, would put its end into the middle of what
        the parent writes.
        """
        rest = memoryview(data)
        while rest and _getpid() == self._pid:
            rest = rest[super().write(rest) or 0 :]
        return len(data)


def _open(name: str, flags: int) -> int:
    return os.open(name, flags | getattr(os, "O_NOFOLLOW", 0), 0o600)
