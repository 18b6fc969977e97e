"""Files that are no recordings, of a later format, or made by somebody who means harm."""

from __future__ import annotations

import gzip
import json
import os
import pathlib
import subprocess
import sys
import zlib
from typing import Any, Tuple

import pytest

from execwatch import RecordingError, Stats, load, replay
from execwatch.formats import FORMAT
from tests.unit.recorded import HEADER_NOW, an_exec, every_format, needs, read, write


def header_line(**fields: Any) -> bytes:
    return json.dumps({"kind": "header", "format": FORMAT, "version": "1", **fields}).encode() + b"\n"


# -- No recordings ----------------------------------------------------------------------------

NO_RECORDINGS = {
    "empty": b"",
    "a line's end": b"\n",
    "text": b"Dear diary,\ntoday\n",
    "text without an end": b"Dear diary",
    "binary": bytes(range(256)) * 10,
    "ELF": b"\x7fELF\x02\x01\x01" + bytes(1000),
    "zeros": bytes(100_000),
    "gzip of text": gzip.compress(b"Dear diary,\n"),
    "gzip of nothing": gzip.compress(b""),
    "the beginning of gzip": b"\x1f\x8b",
    "gzip and garbage": b"\x1f\x8b\x08\x00" + bytes(range(256)),
    "gzip of another method": b"\x1f\x8b\x07" + bytes(100),
    "JSON": b"{}\n",
    "a list": b"[]\n",
    "a number": b"1\n",
    "null": b"null\n",
    "an event": json.dumps(an_exec().to_dict()).encode() + b"\n",
    "UTF-16": header_line().decode().encode("utf-16"),
    "CSV": b"kind,pid\nexec,7\n",
}


@pytest.mark.parametrize("data", NO_RECORDINGS.values(), ids=NO_RECORDINGS)
@pytest.mark.parametrize("name", ["x.ndjson", "x"])
def test_no_recording(data: bytes, name: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    for attempt in (load, lambda path: replay(path).start()):
        with pytest.raises(RecordingError, match=r"line 1: (.*header|damaged: )") as raised:
            attempt(path)
        assert str(raised.value).startswith(repr(str(path)))
        assert len(str(raised.value)) < 300
        assert str(raised.value).isprintable()


def test_a_folder(tmp_path: pathlib.Path) -> None:
    with pytest.raises(RecordingError, match=f"{tmp_path}': expected a file, got a folder"):
        load(tmp_path)


@needs("pyarrow")
@pytest.mark.parametrize("size", [4, 8, 11, 12, 100, 5000])
def test_no_parquet(size: int, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"PAR1" + bytes(size))
    with pytest.raises(RecordingError, match="x': cut: "):
        load(path)
    path.write_bytes(b"PAR1" + bytes(size) + b"PAR1")
    with pytest.raises(RecordingError, match="x': "):
        load(path)


# -- Headers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", every_format())
def test_a_later_format(suffix: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"x{suffix}"
    monkeypatch.setattr("execwatch.formats.header.FORMAT", FORMAT + 1)
    write(path, [])
    monkeypatch.undo()
    message = f"format {FORMAT + 1} is newer than {FORMAT}, .*: pip install --upgrade execwatch$"
    with pytest.raises(RecordingError, match=message) as raised:
        load(path)
    assert str(raised.value).startswith(repr(str(path)))


@pytest.mark.parametrize("number", [None, 0, -1, 1.0, True, "1", [], 10**18])
def test_a_format_that_is_none(number: Any, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(header_line(format=number))
    with pytest.raises(RecordingError, match=r"x': line 1: .*format"):
        load(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (header_line(version=7), "version: expected text, got 7"),
        (header_line(host=["a"]), "host: expected text"),
        (header_line(clock_offset_ns="a"), "clock_offset_ns: expected an integer"),
        (header_line(started_ns=2**64), "started_ns: expected an integer of 64 bits"),
        (header_line(filter=[]), "filter: expected an object"),
        (header_line(options=None), "options: expected an object, got None"),
        (header_line(raw=3), "raw: expected an object"),
        (b'{"kind":"header","format":1}\n', "version: missing"),
        (b'{"kind":"header","format":1,"format":2,"version":""}\n', "'format' stands there twice"),
        (b'{"kind":"header","format":' + b"1" * 10_000 + b"}\n", "a number of 10000 digits"),
        (b'{"kind":"header","x":' + b"[" * 1_000_000 + b"\n", "nested too deeply"),
        (b'{"kind":"header","x":' + b'{"a":' * 100_000 + b"\n", "nested too deeply"),
    ],
    ids=range(12),
)
def test_a_header_that_is_none(line: bytes, message: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(line)
    with pytest.raises(RecordingError, match=rf"x': line 1: not the header of a recording: .*{message}"):
        load(path)


def test_names_are_quoted(tmp_path: pathlib.Path) -> None:
    """Whose file it is may have named it; and what is in it was written by anybody."""
    path = tmp_path / "x\n\x1b[31m"
    path.write_bytes(header_line() + b'{"kind":"\\u001b[31m\\n"\n')
    with pytest.raises(RecordingError) as raised:
        load(path)
    assert str(raised.value).isprintable()
    path.write_bytes(
        header_line() + json.dumps({**an_exec().to_dict(), "argv_status": "\x1b"}).encode() + b"\n"
    )
    with pytest.raises(RecordingError, match="line 2") as raised:
        load(path)
    assert str(raised.value).isprintable()


# -- Much out of little -----------------------------------------------------------------------

_LOAD = """
import sys
from execwatch import RecordingError, replay
from execwatch.formats import open_reader
try:
    with open_reader(sys.argv[1]) as reader:
        print(sum(1 for _ in reader), reader.skipped, reader.complete)
except RecordingError as exc:
    print(exc)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM:")))
"""


def read_in_a_child(path: pathlib.Path) -> Tuple[str, int]:
    """Return what became of it, and the most memory that it took, in MiB."""
    child = [sys.executable, "-c", _LOAD, str(path)]
    outcome, peak = subprocess.run(child, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    return outcome, int(peak) >> 10


def bomb(path: pathlib.Path, *parts: Tuple[bytes, int]) -> None:
    """Write a gzip file of parts, each so many times."""
    compress = zlib.compressobj(1, zlib.DEFLATED, 31)
    with path.open("wb") as file:
        for part, times in parts:
            for _ in range(times):
                file.write(compress.compress(part))
        file.write(compress.flush())


needs_proc = pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="the peak is told by /proc")
_MIB = 1 << 20


@needs_proc
@pytest.mark.parametrize("head", [b"", header_line()], ids=["header", "event"])
def test_a_line_without_end(head: bytes, tmp_path: pathlib.Path) -> None:
    """Many megabytes of one line, out of one."""
    path = tmp_path / "x"
    bomb(path, (head, 1), (b'{"kind":"exec","comm":"' + b"a" * _MIB, 1), (b"a" * _MIB, 250))
    assert path.stat().st_size < 2 * _MIB
    outcome, peak = read_in_a_child(path)
    assert outcome == f"{str(path)!r}: line {2 if head else 1}: expected at most {32 * _MIB} bytes"
    assert peak < 150


@needs_proc
def test_lines_without_end(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "x"
    unknown = b'{"kind":"weather","report":"%s"}\n' % (b"a" * 1000)
    end = json.dumps({"kind": "end", "stats": {}}).encode() + b"\n"
    bomb(path, (header_line(), 1), (unknown * 1000, 100), (end, 1))
    outcome, peak = read_in_a_child(path)
    assert outcome == "0 100000 True"
    assert peak < 60


@needs_proc
@pytest.mark.parametrize("value", [b"[],", b"{},", b'"",', b"1,"])
def test_a_line_of_much_in_little(value: bytes, tmp_path: pathlib.Path) -> None:
    """What JSON makes of the longest line is many times as large, but no more than that."""
    path = tmp_path / "x"
    many = value * (8 * _MIB // len(value))
    line = b'{"kind":"exec","x":[' + many + b"0]}\n"
    bomb(path, (header_line(), 1), (line, 1))
    outcome, peak = read_in_a_child(path)
    assert "line 2: not an event of kind 'exec': " in outcome
    assert peak < 400


def test_replay_takes_a_file_piece_by_piece(tmp_path: pathlib.Path) -> None:
    """Of a large one the first events are there before the rest is read."""
    path = tmp_path / "x"
    line = json.dumps(an_exec().to_dict()).encode() + b"\n"
    path.write_bytes(header_line() + line * 10_000 + b"fault\n")
    with replay(path) as tracer:
        assert sum(1 for _ in tracer.events(count=5000)) == 5000
        with pytest.raises(RecordingError, match="line 10002"):
            tracer.read(timeout=0)
            tracer.read(timeout=0)


def test_what_is_meant_well(tmp_path: pathlib.Path) -> None:
    """The lines that the faults above were made of."""
    path = tmp_path / "x"
    event = json.dumps(an_exec().to_dict()).encode() + b"\n"
    end = json.dumps({"kind": "end", "stats": {}}).encode() + b"\n"
    path.write_bytes(header_line() + event + end)
    back = read(path)
    assert (back.events, back.stats, back.complete) == ([an_exec()], Stats(), True)
    assert back.header.version == "1" != HEADER_NOW.version
