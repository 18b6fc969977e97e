"""NDJSON: the header, an event a line as :meth:`Event.to_dict` has it, the final counters.

After ``kind`` an event's keys are in alphabetical order. No control character is
written but the ends of lines. With msgspec (``pip install 'execwatch[fast]'``) it is
several times faster, and the same.
"""

from __future__ import annotations

import gzip
import json
import re
import time
import zlib
from io import BufferedReader, FileIO
from typing import Callable, Dict, Iterator, Optional, Sequence, Union

from execwatch.errors import RecordingError
from execwatch.events import KINDS, AnyEvent, Stats, event_from_dict
from execwatch.formats import jsontext
from execwatch.formats.base import Reader, Writer, create
from execwatch.formats.header import Header, header_from_dict, header_to_dict, stats_from_dict
from execwatch.plain import short, to_plain

#: Bytes of the longest line. The longest event is half of that: 2 MiB of argv, all of it control
#: characters but for one byte that is not UTF-8.
MAX_LINE = 32 << 20

#: Events that are written at once: what bounds the memory for it.
_CHUNK = 128

#: Seconds that written events may wait in the compressor.
_GZIP_WAIT = 1.0
#: Of 1 to 9. The next ones take twice the time and more, for a tenth of the size.
_GZIP_LEVEL = 1

#: DEL, and the controls of Unicode that are no ASCII (CSI among them), which JSON would let stand.
_CONTROLS = re.compile(rb"\x7f|\xc2[\x80-\x9f]")

#: A number that may have more than 64 bits, which msgspec lets pass. (Also when it is written; the kernel
#: has none such, and to look for them would take as long as the rest.)
_LARGE_NUMBER = re.compile(rb":(?:-\d{19}|\d{20})").search

#: Of the line of an event, up to the first comma.
_BEGINS: Dict[type, bytes] = {cls: b'{"kind":"%s"' % kind.encode() for kind, cls in KINDS.items()}

Encoder = Callable[[AnyEvent], bytes]
Decoder = Callable[[bytes], AnyEvent]


# -- Writing ----------------------------------------------------------------------


class NdjsonWriter(Writer):
    """Writes NDJSON; what was written has been handed to the operating system.

    Args:
        path: Of the file.
        header: Of the recording.
        compressed: With gzip. Then events may wait for up to a second, and until the next
            write, which may be an empty one.
    """

    def __init__(self, path: str, header: Header, compressed: bool) -> None:
        super().__init__()
        first = jsontext.dumps(header_to_dict(header)) + b"\n"
        self._encode = encoder()
        self._file = create(path)
        try:
            self._sink = _Gzip(self._file) if compressed else _Plain(self._file)
            self._sink.write(first)
        except BaseException:
            self._file.close()
            raise

    def _write(self, events: Sequence[AnyEvent]) -> None:
        for start in range(0, max(len(events), 1), _CHUNK):
            self._sink.write(self._lines(events[start : start + _CHUNK]))

    def _lines(self, events: Sequence[AnyEvent]) -> bytes:
        data = b"".join(map(self._encode, events))
        if not data.isascii() or b"\x7f" in data:
            data = _CONTROLS.sub(lambda found: b"\\u%04x" % found[0][-1], data)
        if len(data) > MAX_LINE and any(len(line) > MAX_LINE for line in data.splitlines()):
            raise ValueError(f"events: expected at most {MAX_LINE} bytes of JSON for each")
        return data

    def _end(self, stats: Optional[Stats]) -> None:
        if stats is not None:
            self._sink.write(jsontext.dumps({"kind": "end", "stats": to_plain(stats)[0]}) + b"\n")
        self._sink.finish()

    def _release(self) -> None:
        self._file.close()


class _Plain:
    def __init__(self, file: FileIO) -> None:
        self._file = file

    def write(self, data: bytes) -> None:
        self._file.write(data)

    def finish(self) -> None:
        pass


class _Gzip:
    def __init__(self, file: FileIO) -> None:
        self._file = file
        self._compress = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
        self._due = 0.0
        self._waiting = False

    def write(self, data: bytes) -> None:
        out = self._compress.compress(data)
        self._waiting = self._waiting or bool(data)
        if self._waiting and time.monotonic() >= self._due:
            out += self._compress.flush(zlib.Z_SYNC_FLUSH)
            self._due = time.monotonic() + _GZIP_WAIT
            self._waiting = False
        self._file.write(out)

    def finish(self) -> None:
        self._file.write(self._compress.flush())


def encoder() -> Encoder:
    """Return what makes a line of an event; with msgspec or without the same.

    DEL and the controls beyond ASCII still stand in it as they are.
    """
    try:
        from msgspec.json import Encoder
    except ImportError:
        return _line
    encode = Encoder(order="sorted").encode

    def line(event: AnyEvent) -> bytes:
        getattr(event, "process_key", None)  # msgspec takes what is there: see Event
        try:
            return b"%s,%s\n" % (_BEGINS[type(event)], encode(event)[1:])
        except (UnicodeEncodeError, TypeError):  # bytes that are not UTF-8; or still not whole
            return _line(event)

    return line


def _line(event: AnyEvent) -> bytes:
    data = event.to_dict()
    del data["kind"]
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    return b"%s,%s\n" % (_BEGINS[type(event)], text[1:].encode("utf-8"))


# -- Reading ----------------------------------------------------------------------


class NdjsonReader(Reader):
    """Reads NDJSON, compressed or not.

    Args:
        file: At its beginning; closed with the reader.
        path: For messages.
        compressed: With gzip.

    Raises:
        RecordingError: The first line is no header, or that of a newer format.
    """

    def __init__(self, file: BufferedReader, path: str, compressed: bool) -> None:
        super().__init__(path)
        self._file = file
        self._text: Union[BufferedReader, gzip.GzipFile] = gzip.GzipFile(fileobj=file) if compressed else file
        self._number = 0
        self._cut = False
        self._lines = self._whole_lines()
        self._encode = encoder()
        self._decoders = _decoders()
        first = next(self._lines, None)
        if first is None:
            self._number = 1
            raise self._error("expected a header; the file is empty, or was cut in its first line")
        try:
            self.header: Header = header_from_dict(jsontext.loads(first))
        except ValueError as exc:
            raise self._error(f"not the header of a recording: {exc}") from None

    def _read(self) -> Iterator[AnyEvent]:
        for line in self._lines:
            if self.stats is not None:
                raise self._error("expected nothing behind the end")
            event = self._quick(line) or self._careful(line)
            if event is not None:
                yield event
        self.complete: bool = self.stats is not None and not self._cut
        self._file.close()

    def _release(self) -> None:
        self._file.close()

    def _error(self, what: object) -> RecordingError:
        return super()._error(f"line {self._number}: {what}")

    def _whole_lines(self) -> Iterator[bytes]:
        """Yield every line that has its end; what follows the last one was cut."""
        while True:
            self._number += 1
            line = self._line()
            if not line.endswith(b"\n"):
                break
            yield line
        if len(line) > MAX_LINE:
            raise self._error(f"expected at most {MAX_LINE} bytes")
        if line and self.stats is not None:
            raise self._error("expected nothing behind the end")

    def _line(self) -> bytes:
        try:
            return self._text.readline(MAX_LINE + 1)
        except EOFError:  # within the compressed data, or the checksum that follows them
            self._cut = True
            return b""
        except (zlib.error, gzip.BadGzipFile) as exc:
            raise self._error(f"damaged: {exc}") from None

    def _quick(self, line: bytes) -> Optional[AnyEvent]:
        """Return the event, or None where somebody has to look closer.

        That is wherever the line is not exactly what is written of the event: msgspec takes
        more than JSON is, and of that only what it knows.
        """
        decode = self._decoders.get(line[: line.find(b",")])
        if decode is None or _LARGE_NUMBER(line):
            return None
        try:
            event = decode(line)
            return event if self._encode(event) == line else None
        except Exception:  # what is wrong, the careful way tells
            return None

    def _careful(self, line: bytes) -> Optional[AnyEvent]:
        """Return the event; None where it is another line, or an event of an unknown kind."""
        try:
            data = jsontext.loads(line)
            kind = data.get("kind") if type(data) is dict else None
            if type(kind) is not str or kind == "header":
                raise ValueError(f'expected an event, {{"kind": ...}}, got {short(data)}')
            if kind == "end":
                self.stats: Optional[Stats] = stats_from_dict(data.get("stats"))
            elif kind in KINDS:
                return event_from_dict(data)
            else:
                self.skipped += 1
        except ValueError as exc:
            raise self._error(exc) from None
        return None


def _decoders() -> Dict[bytes, Decoder]:
    """For how the line of an event begins, what decodes it; nothing without msgspec."""
    try:
        from msgspec.json import Decoder
    except ImportError:
        return {}
    try:
        return {begin: Decoder(cls).decode for cls, begin in _BEGINS.items()}
    except TypeError:  # typing_extensions' own Literal, before Python 3.10.1
        return {}
