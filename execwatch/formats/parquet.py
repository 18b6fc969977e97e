"""Parquet: a row an event, see :mod:`execwatch.formats.columns`; header and final counters are metadata.

The place of everything stands at the end of such a file: what was cut, or whose
writer was killed, nobody can read.
"""

from __future__ import annotations

import contextlib
import functools
import os
from io import BufferedReader
from typing import Iterator, List, Optional, Sequence

from execwatch import render
from execwatch.events import AnyEvent, Stats
from execwatch.formats import columns, jsontext, rows
from execwatch.formats.arrow import pa, pq
from execwatch.formats.base import Reader, Writer, create
from execwatch.formats.beside import Beside
from execwatch.formats.header import Header, header_from_dict, header_to_dict, stats_from_dict
from execwatch.formats.layout import PAIRS, SCHEMA, TEXTS, TYPES
from execwatch.plain import to_plain

#: A file begins with it, and ends.
MAGIC = b"PAR1"

_HEADER = b"execwatch"
_STATS = b"execwatch.stats"

#: Rows of a group, which are written together: about 10 MB; fewer where their text is longer.
#: There are three at times: one being made, and one put in order while it is encoded.
_GROUP = 16384
_GROUP_BYTES = 16 << 20
#: Groups after which memory that is free goes back to the system: of each thread's pyarrow keeps more and
#: more. After every single one it would take a tenth of the time.
_KEPT = 4
#: Of the file, mostly more than a group takes: at each write a thread waits for the interpreter.
_BUFFER = 1 << 20

#: Numbers that grow: their differences take half the room, and less time than looking each up.
_GROWING = (
    "time", "boottime_ns", "pid", "tid", "host_pid", "ppid", "start_boottime_ns", "exec_boottime_ns",
    "namespaces_vpid", "session_pgid",
)  # fmt: skip
#: By these a reader may skip groups; for all columns it would take a tenth of the time.
_SOUGHT = ("kind", "time", "boottime_ns", "pid", "ppid", "uid")


class ParquetWriter(Writer):
    """Writes Parquet: a group of rows at a time, the rest at the end.

    A thread encodes and writes a group while the next one is made: else that took half as long
    again. So an error may come with a later write.

    Args:
        path: Of the file.
        header: Of the recording.
    """

    def __init__(self, path: str, header: Header) -> None:
        super().__init__()
        schema = SCHEMA.with_metadata({_HEADER: jsontext.dumps(header_to_dict(header))})
        self._waiting: List[AnyEvent] = []
        self._pieces: List[columns.Piece] = []
        self._rows = self._bytes = self._groups = 0
        self._beside = Beside()
        self._file = create(path)
        self._sink = pa.output_stream(self._file, buffer_size=_BUFFER)
        try:
            self._writer = pq.ParquetWriter(
                self._sink,
                schema,
                compression="zstd",
                use_dictionary=[path for path in _paths() if path not in _GROWING],
                column_encoding=dict.fromkeys(_GROWING, "DELTA_BINARY_PACKED"),
                write_statistics=list(_SOUGHT),
                write_page_checksum=True,
            )
        except BaseException:
            self._sink.close()
            raise

    def _write(self, events: Sequence[AnyEvent]) -> None:
        self._waiting += events
        whole = len(self._waiting) // columns.CHUNK * columns.CHUNK
        for start in range(0, whole, columns.CHUNK):
            self._convert(self._waiting[start : start + columns.CHUNK])
        del self._waiting[:whole]

    def _convert(self, events: Sequence[AnyEvent]) -> None:
        """Make columns of events, which take less room."""
        piece = columns.piece(events)
        self._pieces.append(piece)
        self._rows += len(events)
        self._bytes += piece.nbytes
        if self._rows >= _GROUP or self._bytes >= _GROUP_BYTES:
            self._hand_over()

    def _hand_over(self) -> None:
        """Have what there is written as a group, beside."""
        pieces, self._pieces, self._rows, self._bytes = self._pieces, [], 0, 0
        self._beside.do(functools.partial(self._write_group, pieces))

    def _write_group(self, pieces: List[columns.Piece]) -> None:
        rows = columns.joined(pieces)
        pieces.clear()
        self._writer.write_table(rows, row_group_size=rows.num_rows)
        self._sink.flush()
        del rows
        self._groups += 1
        if self._groups % _KEPT == 0:
            pa.default_memory_pool().release_unused()

    def _end(self, stats: Optional[Stats]) -> None:
        if self._waiting:
            self._convert(self._waiting)
        if self._pieces:
            self._hand_over()
        self._beside.wait()
        if stats is not None:
            self._writer.add_key_value_metadata({_STATS: jsontext.dumps(to_plain(stats)[0])})
        self._writer.close()
        self._sink.close()

    def _release(self) -> None:
        try:
            self._beside.close()
        finally:
            # After a failure: it would write an end behind what may be cut.
            self._writer.is_open = False
            with contextlib.suppress(OSError):
                self._sink.close()
            self._file.close()


def _paths() -> Iterator[str]:
    """Yield the names by which Parquet knows the columns; of a list, what is in it."""
    for name, type_ in TYPES.items():
        if type_ == PAIRS:
            yield from (f"{name}.list.element.{part.name}" for part in type_.value_type)
        else:
            yield f"{name}.list.element" if type_ == TEXTS else name


class ParquetReader(Reader):
    """Reads Parquet, a part of a group at a time.

    Args:
        file: That can seek; closed with the reader.
        path: For messages.

    Raises:
        RecordingError: It was cut, or is no recording, or one of a newer format.
    """

    def __init__(self, file: BufferedReader, path: str) -> None:
        super().__init__(path)
        self._file = file
        with self._refused():
            self._check_end()
            self._parquet = pq.ParquetFile(file, page_checksum_verification=True)
            metadata = self._parquet.schema_arrow.metadata or {}
            if _HEADER not in metadata:
                raise ValueError("not a recording: its metadata has no 'execwatch'")
            self.header: Header = header_from_dict(jsontext.loads(metadata[_HEADER]))
            rows.check(self._parquet.schema_arrow)

    def _check_end(self) -> None:
        size = self._file.seek(0, os.SEEK_END)
        self._file.seek(max(size - len(MAGIC), 0))
        if size < 3 * len(MAGIC) or self._file.read() != MAGIC:
            raise ValueError(
                "cut: a Parquet file can be read only with its end, so nothing is left of this one"
            )
        self._file.seek(0)

    def _read(self) -> Iterator[AnyEvent]:
        known = [name for name in self._parquet.schema_arrow.names if name in SCHEMA.names]
        batches = self._parquet.iter_batches(columns.CHUNK, columns=known)
        left = self._parquet.metadata.num_rows
        while True:
            with self._refused():
                batch = next(batches, None)
                events = rows.batch_events(batch) if batch is not None else []
            if batch is None:
                break
            left -= batch.num_rows
            self.skipped += batch.num_rows - len(events)
            yield from events
        if left:  # pages that are none for it, pyarrow passes over
            raise self._error(f"damaged: {left} of {self._parquet.metadata.num_rows} rows are not there")
        with self._refused():
            stats = (self._parquet.metadata.metadata or {}).get(_STATS)
            self.stats: Optional[Stats] = None if stats is None else stats_from_dict(jsontext.loads(stats))
        self.complete: bool = self.stats is not None
        self._release()

    def _release(self) -> None:
        self._file.close()

    @contextlib.contextmanager
    def _refused(self) -> Iterator[None]:
        """Turn what is raised for the file's content into a RecordingError."""
        try:
            yield
        except (ValueError, pa.ArrowException) as exc:
            raise self._error(_printable(exc)) from None
        except OSError as exc:
            if exc.errno is not None:
                raise
            raise self._error(f"damaged: {_printable(exc)}") from None


def _printable(error: Exception) -> str:
    """pyarrow quotes the file as it is, over several lines."""
    text = " ".join(str(error).split())
    return text if text.isprintable() else render.escape(text)
