"""Files that were cut, and files that are damaged."""

from __future__ import annotations

import contextlib
import errno
import gzip
import io
import json
import os
import pathlib
import random
import zlib
from typing import Any, List

import pytest

from execwatch import RecordingError, Stats, formats, load, replay
from tests.unit.recorded import HEADER_NOW, every_format, hide, needs, read, some_events, write


def whole_lines(data: bytes, suffix: str) -> int:
    """How many lines are whole, as zlib alone tells."""
    if suffix.endswith(".gz"):
        data = zlib.decompressobj(16 + zlib.MAX_WBITS).decompress(data)
    return data.count(b"\n")


@pytest.mark.parametrize("suffix", [".ndjson", ".ndjson.gz"])
@pytest.mark.parametrize("fast", [pytest.param(True, marks=needs("msgspec")), False])
def test_cut_at_every_byte(
    suffix: str, fast: bool, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All up to the last whole record is there, and that it is not all, is said."""
    if not fast:
        hide(monkeypatch, "msgspec")
    events = some_events(40)
    data = write(tmp_path / f"whole{suffix}", events, stats=Stats(argv_truncated=1)).read_bytes()
    assert len(data) > 2048
    path = tmp_path / f"x{suffix}"
    found = set()
    for size in range(len(data) - 1024, len(data)):
        path.write_bytes(data[:size])
        whole = whole_lines(data[:size], suffix) - 1
        recording = load(path)
        assert list(recording) == events[:whole], size
        assert recording.complete is False
        # With gzip the checksum stands behind the end.
        assert recording.stats == (Stats(argv_truncated=1) if whole > len(events) else None)
        assert recording.header == HEADER_NOW
        found.add(whole)
    assert {len(events), len(events) - 1} <= found
    path.write_bytes(data)
    assert load(path).complete


@pytest.mark.parametrize("suffix", [".ndjson", ".ndjson.gz"])
def test_cut_in_the_header(suffix: str, tmp_path: pathlib.Path) -> None:
    data = write(tmp_path / f"whole{suffix}", []).read_bytes()
    path = tmp_path / "x"
    sizes = [size for size in range(len(data)) if not whole_lines(data[:size], suffix)]
    assert sizes[-1] > 100
    for size in sizes:
        path.write_bytes(data[:size])
        with pytest.raises(RecordingError, match=r"x': line 1: .*header"):
            load(path)


@needs("pyarrow")
def test_parquet_cut_at_every_byte(tmp_path: pathlib.Path) -> None:
    """Where everything is stands at its end: there is nothing to read, and that is said."""
    data = write(tmp_path / "x.parquet", some_events(20)).read_bytes()
    path = tmp_path / "cut"
    for size in (*range(4, 64), *range(len(data) - 1024, len(data))):
        path.write_bytes(data[:size])
        with pytest.raises(RecordingError, match="cut': .*a Parquet file can be read only with its end"):
            load(path)
    for size in range(4):
        path.write_bytes(data[:size])
        with pytest.raises(RecordingError, match=r"cut': line 1: .*header"):
            load(path)


@pytest.mark.parametrize("suffix", [".ndjson", ".ndjson.gz"])
def test_a_cut_file_is_replayed_up_to_the_cut(suffix: str, tmp_path: pathlib.Path) -> None:
    events = some_events(600)
    path = write(tmp_path / f"x{suffix}", events)
    path.write_bytes(path.read_bytes()[:-1000])
    with replay(path) as tracer:
        back = list(tracer.events())
    assert back == events[: len(back)]
    assert 500 < len(back) < 600


def test_what_is_cut_stays_so_when_it_is_saved(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path / "x.ndjson", some_events(3), stats=None)
    load(path).save(tmp_path / "y.ndjson.gz")
    back = load(tmp_path / "y.ndjson.gz")
    assert (list(back), back.complete, back.stats) == (list(load(path)), False, None)


# -- Damage -----------------------------------------------------------------------------------


def test_a_fault_is_told_where_it_is(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path / "x.ndjson", some_events(400))
    lines = path.read_bytes().split(b"\n")
    lines[300] = b"fault"
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(RecordingError, match=r"x\.ndjson': line 301: expected JSON: .* at character 1$"):
        load(path)


def test_replay_hands_over_what_is_before_a_fault(tmp_path: pathlib.Path) -> None:
    events = some_events(400)
    path = write(tmp_path / "x.ndjson", events)
    lines = path.read_bytes().split(b"\n")
    lines[300] = b"fault"
    path.write_bytes(b"\n".join(lines))
    with replay(path) as tracer:
        back: List[Any] = []
        with pytest.raises(RecordingError, match="line 301"):
            back += tracer.events()
        assert back == events[:299]
        with pytest.raises(RecordingError, match="line 301"):
            tracer.read()
    for barrier in (True, False):
        with replay(path) as tracer:
            back = []
            with pytest.raises(RecordingError, match="line 301"):
                while True:
                    back += tracer.read(timeout=0 if barrier else None)
            assert back == events[:299]
            assert tracer.stats().delivered == sum(event.kind != "lost" for event in back)


@pytest.mark.parametrize("suffix", [".ndjson", ".ndjson.gz"])
def test_nothing_may_follow_the_end(suffix: str, tmp_path: pathlib.Path) -> None:
    events = some_events(2)
    path = write(tmp_path / f"x{suffix}", events)
    twice = (gzip.decompress(path.read_bytes()) if suffix.endswith("gz") else path.read_bytes()) * 2
    for data in (twice, twice[: len(twice) // 2 + 10]):
        path.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
        with pytest.raises(RecordingError, match="line 5: expected nothing behind the end"):
            load(path)


def test_a_header_stands_only_at_the_beginning(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path / "x.ndjson", [], stats=None)
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(RecordingError, match="line 2: expected an event"):
        load(path)


def test_gzip_in_several_members(tmp_path: pathlib.Path) -> None:
    """As ``cat`` joins them."""
    events = some_events(4)
    path = write(tmp_path / "x.ndjson", events)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(map(gzip.compress, lines)))
    assert read(path) == (HEADER_NOW, events, Stats(), True, 0)


def test_gzip_that_is_damaged(tmp_path: pathlib.Path) -> None:
    """Anything may be wrong with it: what is loaded is true, or it is refused."""
    events = some_events(20)
    path = write(tmp_path / "x.ndjson.gz", events)
    data = path.read_bytes()
    chance = random.Random(1)
    refused = 0
    for _ in range(300):
        damaged = bytearray(data)
        damaged[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        try:
            recording = load(path)
        except RecordingError as exc:
            refused += str(exc).startswith(f"{str(path)!r}: line ")
            continue
        # Only what is no part of the content: name, time, system; or it looks as if it was cut.
        assert list(recording) == events or not recording.complete
    assert refused > 200


def test_a_checksum_that_is_wrong(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path / "x.ndjson.gz", some_events(2))
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(RecordingError, match=r"line 5: damaged: CRC"):
        load(path)
    path.write_bytes(write(tmp_path / "y.ndjson.gz", []).read_bytes() + b"garbage")
    with pytest.raises(RecordingError, match=r"line 3: damaged: Not a gzipped file"):
        load(path)


@needs("pyarrow")
def test_parquet_that_is_damaged(tmp_path: pathlib.Path) -> None:
    """What is loaded is true, or it is refused: every page has its checksum."""
    events = some_events(50)
    path = write(tmp_path / "x.parquet", events)
    data = path.read_bytes()
    end = len(data) - 8 - int.from_bytes(data[-8:-4], "little")  # where the pages end
    chance = random.Random(1)
    for _ in range(300):
        damaged = bytearray(data)
        damaged[chance.randrange(4, end)] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        with contextlib.suppress(RecordingError):
            assert list(load(path)) == events


@needs("pyarrow")
def test_what_is_wrong_with_parquet_is_told_on_one_printable_line(tmp_path: pathlib.Path) -> None:
    """What pyarrow says of the end quotes it, and has several lines."""
    path = write(tmp_path / "x.parquet", some_events(50))
    data = path.read_bytes()
    begin = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    chance = random.Random(1)
    told = set()
    for _ in range(300):
        damaged = bytearray(data)
        damaged[chance.randrange(begin, len(data))] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        try:
            load(path)
        except RecordingError as exc:
            told.add(str(exc))
    assert len(told) > 10
    assert all(map(str.isprintable, told))


class _Failing(io.FileIO):
    """A file on a disk that fails at some time."""

    broken = False

    def readinto(self, buffer: Any) -> int:
        if self.broken:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().readinto(buffer) or 0


@pytest.mark.parametrize("suffix", every_format())
def test_the_disk_fails(suffix: str, tmp_path: pathlib.Path) -> None:
    """That is the machine's fault, not the file's."""
    path = write(tmp_path / f"x{suffix}", some_events(5000))
    raw = _Failing(path)
    file: Any = io.BufferedReader(raw, 1000)
    reader = formats._reader(file, "x")
    raw.broken = True
    with reader, pytest.raises(OSError, match="Input/output error") as raised:
        list(reader)
    assert not isinstance(raised.value, RecordingError)
    assert raised.value.errno == errno.EIO


def test_stats_that_are_none(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path / "x.ndjson", [], stats=None)
    faults: List[Any] = [None, [], {"exec": 1}, {"exec": {"seen": 2**64}}]
    for stats in faults:
        end = json.dumps({"kind": "end", "stats": stats}).encode()
        (tmp_path / "y").write_bytes(path.read_bytes() + end + b"\n")
        with pytest.raises(RecordingError, match="line 2: stats: "):
            load(tmp_path / "y")
