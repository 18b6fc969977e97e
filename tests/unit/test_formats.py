"""What every format of a recording promises: an exact round trip, and files that nobody else reads."""

from __future__ import annotations

import errno
import os
import pathlib
import stat
import subprocess
import sys
import tempfile
from typing import List, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st

from execwatch import Namespaces, RecordingError, Session, StateError, Stats, formats
from execwatch.events import AnyEvent
from execwatch.formats import Header
from execwatch.testing import exec_event, lost_events
from tests.unit.recorded import (
    EVENTS,
    HEADER,
    HEADER_NOW,
    STATS,
    every_format,
    hide,
    needs,
    read,
    some_events,
    write,
)

each_format = pytest.mark.parametrize("suffix", every_format())
#: NDJSON is written and read by msgspec where that is installed.
each_json = pytest.mark.parametrize("fast", [pytest.param(True, marks=needs("msgspec")), False])


def check_round_trip(
    suffix: str, events: List[AnyEvent], header: Header = HEADER_NOW, stats: Optional[Stats] = None
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        back = read(write(pathlib.Path(folder, "x" + suffix), events, header, stats))
    assert back.events == events
    assert [type(event) for event in back.events] == [type(event) for event in events]
    assert back.header == header
    assert (back.stats, back.complete, back.skipped) == (stats, stats is not None, 0)


@each_format
@given(EVENTS, HEADER, st.none() | STATS)
def test_round_trip(suffix: str, events: List[AnyEvent], header: Header, stats: Optional[Stats]) -> None:
    check_round_trip(suffix, events, header, stats)


@given(EVENTS, HEADER, st.none() | STATS)
def test_round_trip_without_msgspec(events: List[AnyEvent], header: Header, stats: Optional[Stats]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        hide(patch, "msgspec")
        check_round_trip(".ndjson", events, header, stats)


@each_format
@pytest.mark.parametrize(
    "event",
    [
        # All columns of these are null, or empty.
        exec_event(session=Session(), namespaces=Namespaces()),
        exec_event(session=None, namespaces=None, creds=None, exe=None),
        exec_event(argv=(), argv_status="unreadable", env=(), env_status="complete"),
        exec_event(argv=("",), env=(("", ""),)),
        lost_events(cpu=None),
    ],
)
def test_nothing_is_not_taken_for_empty(suffix: str, event: AnyEvent) -> None:
    check_round_trip(suffix, [event])
    check_round_trip(suffix, [*some_events(7), event, *some_events(7)])


@each_format
def test_order_is_kept_across_many_pieces(suffix: str) -> None:
    """Of several kinds and lengths, more than any piece that is written or read at once."""
    events = [some_events(5)[number % 5] for number in range(40)] * 250
    check_round_trip(suffix, events)


@each_format
def test_written_in_many_calls(suffix: str, tmp_path: pathlib.Path) -> None:
    events = some_events(50)
    path = tmp_path / f"x{suffix}"
    with formats.open_writer(path, HEADER_NOW) as writer:
        for start in range(0, 50, 7):
            writer.write(events[start : start + 7])
            writer.write(())
        writer.close(Stats(argv_truncated=3))
    assert read(path)[1:4] == (events, Stats(argv_truncated=3), True)


@each_format
def test_empty(suffix: str, tmp_path: pathlib.Path) -> None:
    assert read(write(tmp_path / f"x{suffix}", [])) == (HEADER_NOW, [], Stats(), True, 0)


@each_format
def test_the_format_is_told_by_the_content(suffix: str, tmp_path: pathlib.Path) -> None:
    events = some_events(5)
    path = write(tmp_path / f"x{suffix}", events)
    assert read(path.rename(tmp_path / "any")).events == events


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.jsonl.gz", "x.json.gz"])
def test_other_names_of_ndjson(name: str, tmp_path: pathlib.Path) -> None:
    path = write(tmp_path / name, some_events(2))
    assert path.read_bytes().startswith(b"\x1f\x8b" if name.endswith(".gz") else b'{"kind":"header"')


@pytest.mark.parametrize("name", ["x", "x.gz", "x.csv", "ndjson", "x.parquet.gz", "x.NDJSON"])
def test_a_name_of_no_format(name: str, tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match=r"path: expected a name that ends with .*\.ndjson, .*\.parquet"):
        formats.open_writer(tmp_path / name, HEADER_NOW)
    assert not (tmp_path / name).exists()


# -- Whose file it is -------------------------------------------------------------------------


@each_format
def test_the_file_is_its_owners_alone(suffix: str, tmp_path: pathlib.Path) -> None:
    before = os.umask(0)
    try:
        path = write(tmp_path / f"x{suffix}", [])
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@each_format
def test_a_file_that_is_there_is_overwritten_and_keeps_its_permissions(
    suffix: str, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(b"x" * 100_000)
    path.chmod(0o640)
    events = some_events(3)
    assert read(write(path, events)).events == events
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert path.stat().st_size < 100_000


@each_format
@pytest.mark.parametrize("there", [True, False])
def test_a_symbolic_link_is_refused(suffix: str, there: bool, tmp_path: pathlib.Path) -> None:
    target, link = tmp_path / "target", tmp_path / f"x{suffix}"
    if there:
        target.write_text("precious")
    link.symlink_to(target)
    with pytest.raises(OSError) as raised:
        formats.open_writer(link, HEADER_NOW)
    assert raised.value.errno == errno.ELOOP
    assert target.exists() is there
    assert not there or target.read_text() == "precious"


@each_format
def test_where_no_file_can_be(suffix: str, tmp_path: pathlib.Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        formats.open_writer(tmp_path / "nowhere" / f"x{suffix}", HEADER_NOW)
    (tmp_path / f"y{suffix}").mkdir()
    with pytest.raises(IsADirectoryError):
        formats.open_writer(tmp_path / f"y{suffix}", HEADER_NOW)
    with pytest.raises(FileNotFoundError):
        formats.open_reader(tmp_path / f"none{suffix}")


# -- Writers and readers ----------------------------------------------------------------------


@each_format
def test_closing(suffix: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / f"x{suffix}"
    writer = formats.open_writer(path, HEADER_NOW)
    writer.write(some_events(2))
    writer.close(Stats())
    writer.close(None)
    with pytest.raises(StateError, match="closed"):
        writer.write(some_events(1))
    reader = formats.open_reader(path)
    assert len(list(reader)) == 2
    assert reader.complete
    assert list(reader) == []
    reader.close()
    reader.close()
    with pytest.raises(StateError, match="closed"):
        iter(reader)


@each_format
def test_a_reader_goes_on_where_it_stopped(suffix: str, tmp_path: pathlib.Path) -> None:
    events = some_events(20)
    with formats.open_reader(write(tmp_path / f"x{suffix}", events)) as reader:
        assert next(iter(reader)) == events[0]
        assert (reader.stats, reader.complete) == (None, False)
        assert list(reader) == events[1:]
        assert (reader.stats, reader.complete) == (Stats(), True)


@each_format
def test_left_by_an_error(suffix: str, tmp_path: pathlib.Path) -> None:
    """What was written is there; that it is not all, too."""
    path = tmp_path / f"x{suffix}"
    events = some_events(5)
    with pytest.raises(ZeroDivisionError), formats.open_writer(path, HEADER_NOW) as writer:
        writer.write(events)
        raise ZeroDivisionError
    assert read(path) == (HEADER_NOW, events, None, False, 0)


def check_refused(path: pathlib.Path, event: AnyEvent, message: str) -> None:
    """Nothing can be written behind it, and the file isn't complete."""
    events = some_events(3)
    with formats.open_writer(path, HEADER_NOW) as writer:
        writer.write(events)
        with pytest.raises(ValueError, match=message):
            writer.write([event] * 5000)
        with pytest.raises(StateError, match="failed"):
            writer.write(events)
        writer.close(Stats())
    if path.suffix != ".parquet":
        # With gzip the last second is still in the compressor.
        left = [] if path.suffix == ".gz" else events
        assert read(path) == (HEADER_NOW, left, None, False, 0)


@each_format
@each_json
@pytest.mark.parametrize("text", ["\ud800", "x\udfff", "a\udc7f"])
def test_text_that_stands_for_no_bytes(
    suffix: str, fast: bool, text: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not fast:
        hide(monkeypatch, "msgspec")
    for event in (exec_event(comm=text), exec_event(argv=("/bin/x", text))):
        check_refused(tmp_path / f"x{suffix}", event, "surrogates not allowed")


@each_format
@pytest.mark.parametrize("number", [2**64, -(2**63) - 1])
def test_numbers_that_are_too_large(
    suffix: str, number: int, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide(monkeypatch, "msgspec")
    check_refused(tmp_path / f"x{suffix}", exec_event(argc=number), "64")


@needs("msgspec")
@pytest.mark.parametrize("number", [2**64, -(2**63) - 1])
def test_msgspec_lets_them_pass_and_the_reader_refuses_them(number: int, tmp_path: pathlib.Path) -> None:
    path = write(tmp_path / "x.ndjson", [exec_event(), exec_event(argc=number)])
    with pytest.raises(RecordingError, match=f"line 3: .*argc: expected an integer of 64 bits, got {number}"):
        read(path)


_FORK = """
import os, sys
from execwatch import StateError, Stats, formats
from execwatch.testing import exec_event
from tests.unit.recorded import HEADER_NOW
writer = formats.open_writer(sys.argv[1], HEADER_NOW)
events = [exec_event() for _ in range(100)]
for _ in range(50):
    writer.write(events)
pid = os.fork()
if not pid and sys.argv[2] == "ends":
    sys.exit()
if not pid:
    try:
        writer.write(events)
    except StateError as exc:
        print(exc)
    writer.close(Stats())
    sys.exit()
os.waitpid(pid, 0)
writer.write(events)
writer.close(Stats())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks are those of Unix")
@each_format
@pytest.mark.parametrize("end", ["ends", "closes"])
def test_a_forked_child_writes_nothing(suffix: str, end: str, tmp_path: pathlib.Path) -> None:
    """Neither when it is asked to nor when it ends, which frees all that it inherited."""
    path = tmp_path / f"x{suffix}"
    # pyarrow has threads, of which Python 3.12 warns who forks.
    child = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", _FORK, str(path), end]
    done = subprocess.run(child, capture_output=True, text=True, check=True)
    said = "the recording is written by the process that forked\n" if end == "closes" else ""
    assert (done.stdout, done.stderr) == (said, "")
    back = read(path)
    assert (len(back.events), back.complete) == (5100, True)


# -- A disk that is full ----------------------------------------------------------------------

_FULL = """
import resource, sys
from execwatch import formats
from execwatch.testing import exec_event
from tests.unit.recorded import HEADER_NOW
path, limit = sys.argv[1], int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
writer = formats.open_writer(path, HEADER_NOW)
try:
    with writer:
        for number in range(200_000):
            event = exec_event(pid=number + 1, argv=(hex(hash(str(number))),))
            writer.write([event] * (4096 if path.endswith("parquet") else 1))
except OSError as exc:
    print(number, exc.errno)
    try:
        writer.write([])
    except Exception as exc:
        print(type(exc).__name__)
writer.close()
"""


@each_format
@pytest.mark.parametrize("limit", [20_000, 50_001])
def test_a_disk_that_gets_full(suffix: str, limit: int, tmp_path: pathlib.Path) -> None:
    """An OSError says so; what had room can be read up to the cut."""
    pytest.importorskip("resource", reason="limits are those of Unix")
    path = tmp_path / f"x{suffix}"
    child = [sys.executable, "-c", _FULL, str(path), str(limit)]
    done = subprocess.run(child, capture_output=True, text=True, check=True)
    number, code, after = done.stdout.split()
    assert (int(code), after, done.stderr) == (errno.EFBIG, "StateError", "")
    assert path.stat().st_size == limit
    if suffix == ".parquet":
        with pytest.raises(RecordingError, match="can be read only with its end"):
            read(path)
        return
    back = read(path)
    assert [event.pid for event in back.events] == list(range(1, len(back.events) + 1))  # type: ignore[union-attr]
    assert 0 < len(back.events) <= int(number)
    assert len(back.events) == int(number) or suffix == ".ndjson.gz"  # where some wait in the compressor
    assert (back.stats, back.complete) == (None, False)
