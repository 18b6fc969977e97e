"""NDJSON: what other programs read of it, what msgspec changes (only the time), what may be unknown."""

from __future__ import annotations

import gzip
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from typing import Any, Dict, List

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from execwatch import Namespaces, RecordingError, Stats, event_from_dict, formats
from execwatch.events import AnyEvent
from execwatch.formats import FORMAT, Header, ndjson
from execwatch.testing import exec_event
from tests.unit.recorded import (
    EVENT,
    EVENTS,
    HEADER,
    HEADER_NOW,
    an_exec,
    hide,
    needs,
    read,
    some_events,
    write,
)

JQ = shutil.which("jq")


def content(events: List[AnyEvent], header: Header = HEADER_NOW) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return write(pathlib.Path(folder, "x.ndjson"), events, header).read_bytes()


def plain_content(events: List[AnyEvent], header: Header = HEADER_NOW) -> bytes:
    """As it is without msgspec."""
    with pytest.MonkeyPatch.context() as patch:
        hide(patch, "msgspec")
        return content(events, header)


# -- What is written --------------------------------------------------------------------------


@given(EVENTS, HEADER)
def test_every_line_is_what_to_dict_says(events: List[AnyEvent], header: Header) -> None:
    lines = content(events, header).decode("utf-8").split("\n")
    assert lines.pop() == ""
    first, *others, last = map(json.loads, lines)
    assert (first["kind"], first["format"]) == ("header", FORMAT)
    assert others == [event.to_dict() for event in events]
    assert last["kind"] == "end"


@given(EVENTS, HEADER)
def test_no_control_character(events: List[AnyEvent], header: Header) -> None:
    """None of ASCII but the ends of lines, none of Unicode (whose CSI a terminal obeys too)."""
    text = content(events, header).decode("utf-8")
    assert not [c for c in text if c != "\n" and (c < " " or "\x7f" <= c <= "\x9f")]


@needs("msgspec")
@given(EVENTS)
def test_msgspec_writes_the_same_bytes(events: List[AnyEvent]) -> None:
    assert content(events) == plain_content(events)


@pytest.mark.skipif(JQ is None, reason="jq is not installed")
@settings(max_examples=30)
@given(EVENTS)
def test_jq_reads_it(events: List[AnyEvent]) -> None:
    program = 'select(.kind != "header" and .kind != "end") | [.kind, .comm, .argv, .filename, .env, .raw]'
    done = subprocess.run([str(JQ), "-c", program], input=content(events), capture_output=True, check=True)
    names = ("kind", "comm", "argv", "filename", "env", "raw")
    expected = [[event.to_dict().get(name) for name in names] for event in events]
    assert [json.loads(line) for line in done.stdout.splitlines()] == expected


def test_written_is_handed_to_the_operating_system(tmp_path: pathlib.Path) -> None:
    path, events = tmp_path / "x.ndjson", some_events(10)
    writer = formats.open_writer(path, HEADER_NOW)
    for number, event in enumerate(events, 1):
        writer.write([event])
        assert read(path) == (HEADER_NOW, events[:number], None, False, 0)
    writer.close(Stats())


def test_with_gzip_after_a_second(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("execwatch.formats.ndjson.time.monotonic", lambda: now)
    path, (first, second, third) = tmp_path / "x.ndjson.gz", some_events(3)
    writer = formats.open_writer(path, HEADER_NOW)
    assert read(path).header == HEADER_NOW
    writer.write([first])
    writer.write([second])
    now += 0.9
    writer.write([])
    assert read(path).events == []
    now += 0.2
    writer.write([])
    assert read(path).events == [first, second]
    size = path.stat().st_size
    now += 5
    writer.write([])  # nothing waits
    assert path.stat().st_size == size
    writer.write([third])
    assert read(path).events == [first, second, third]
    writer.close(Stats())
    assert gzip.decompress(path.read_bytes()).count(b"\n") == 5


def test_an_event_larger_than_any_line(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "x.ndjson"
    with formats.open_writer(path, HEADER_NOW) as writer:
        writer.write([an_exec()])
        with pytest.raises(ValueError, match=f"events: expected at most {ndjson.MAX_LINE} bytes"):
            writer.write([exec_event(argv=("/bin/true", "x" * ndjson.MAX_LINE))])
    assert read(path).events == [an_exec()]


def test_the_largest_event_of_all(tmp_path: pathlib.Path) -> None:
    """2 MiB of argv, which JSON makes most of: control characters, and bytes that are not UTF-8."""
    event = exec_event(argv=("/bin/true", "\udcff" + "\x01" * (1 << 21)))
    path = write(tmp_path / "x.ndjson", [event])
    assert path.stat().st_size > 6 << 21
    assert read(path).events == [event]


# -- What is read -----------------------------------------------------------------------------


def change(event: AnyEvent, **fields: Any) -> bytes:
    return json.dumps({**event.to_dict(), **fields}).encode() + b"\n"


#: Lines that a decoder might understand otherwise than JSON does.
SPELLINGS = [
    change(an_exec(), raw=None),
    change(an_exec(), raw={"comm": "/w=="}),
    change(an_exec(), weather={"fine": [1.5, None, {"argv": 7}]}),
    change(an_exec(), pid=2**63),
    change(an_exec(), pid=2**64 - 1),
    change(an_exec(), pid=-(2**63)),
    change(an_exec()).replace(b'"pid":', b'"p\\u0069d":'),
    change(an_exec()).replace(b'"pid":', b'  "pid" : '),
    change(an_exec()).replace(b"\n", b"\r\n"),
    change(an_exec()).replace(b'"bash"', b'"b\\u0061sh"'),
    change(exec_event(comm="\x7f\x9b")),
    json.dumps(exec_event(comm="\x7f\x9bé").to_dict(), ensure_ascii=False).encode() + b"\n",
]
FAULTS = [
    change(an_exec(), pid=2**64),
    change(an_exec(), pid=-(2**63) - 1),
    change(an_exec(), pid=7.0),
    change(an_exec(), pid=True),
    change(an_exec(), pid="7"),
    change(an_exec(), pid=None),
    change(an_exec(), argv="/bin/true"),
    change(an_exec(), argv=None),
    change(an_exec(), argv=[1]),
    change(an_exec(), argv_status="odd"),
    change(an_exec(), creds=[]),
    change(an_exec(), creds={"uid": 0}),
    change(an_exec(), env=[["a"]]),
    change(an_exec(), comm="\ud800"),
    change(an_exec(), raw={"comm": "?"}),
    change(an_exec(), raw={"pid": "AA=="}),
    change(an_exec(), raw=[]),
    change(an_exec()).replace(b'"pid":', b'"pid":7,"pid":'),
    change(an_exec()).replace(b'"pid":', b'"x":{"y":1,"y":1},"pid":'),
    change(an_exec()).replace(b'"pid":', b'"kind":"exit","pid":'),
    change(an_exec()).replace(b'"pid":', b'"kind" : "exit","pid":'),
    change(an_exec()).replace(b'"pid":', b'"x":NaN,"pid":'),
    change(an_exec()).replace(b'"pid":', b'"x":-Infinity,"pid":'),
    change(an_exec()).replace(b'"pid":', b'"x":1e999,"pid":'),
    change(an_exec()).replace(b'"pid":', b'"x":%s,"pid":' % (b"9" * 5000)),
    change(an_exec()).replace(b'"pid":', b'"x":%s,"pid":' % (b"[" * 100_000)),
    change(an_exec()).replace(b'"pid":', b'"x":"\xff","pid":'),
    change(an_exec()).replace(b'"true"', b'"\x00"').replace(b"/bin/true", b"\x00"),
    change(an_exec()).replace(b"/bin/true", b"\xed\xa0\x80"),
    change(an_exec()).replace(b"}\n", b"} {}\n"),
    change(an_exec()).replace(b'{"kind"', b'[{"kind"').replace(b"}\n", b"}]\n"),
]


def understood(line: bytes) -> Any:
    """What a line means, an event or the fault."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "x.ndjson")
        path.write_bytes(plain_content([]).split(b"\n")[0] + b"\n" + line)
        try:
            return read(path).events
        except RecordingError as exc:
            return str(exc).replace(folder, "")


@pytest.mark.parametrize("line", SPELLINGS)
def test_spellings(line: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [event_from_dict(json.loads(line))]
    assert understood(line) == expected
    hide(monkeypatch, "msgspec")
    assert understood(line) == expected


@pytest.mark.parametrize("line", FAULTS, ids=range(len(FAULTS)))
def test_faults_are_the_same_with_msgspec_and_without(line: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    found = understood(line)
    assert isinstance(found, str)
    assert found.startswith("'/x.ndjson': line 2: ")
    assert len(found) < 400
    hide(monkeypatch, "msgspec")
    assert understood(line) == found


@given(EVENT, st.data())
def test_any_change_means_the_same_with_msgspec_and_without(event: AnyEvent, data: st.DataObject) -> None:
    line = bytearray(content([event]).split(b"\n")[1])
    at = data.draw(st.integers(0, len(line) - 1))
    line[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    found = understood(bytes(line) + b"\n")
    with pytest.MonkeyPatch.context() as patch:
        hide(patch, "msgspec")
        assert understood(bytes(line) + b"\n") == found


def test_what_only_a_later_version_knows_is_left_out(tmp_path: pathlib.Path) -> None:
    events = some_events(5)
    path = write(tmp_path / "x.ndjson", events)
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    for line in lines:
        line["weather"] = "fine"
    lines[0]["header2"] = {}
    lines[-1]["stats"]["weather"] = 1
    lines[1]["exe"]["weather"] = [1]
    lines.insert(3, {"kind": "weather", "pid": "fine"})
    lines.insert(3, {"kind": "climate"})
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    assert read(path) == (HEADER_NOW, events, Stats(), True, 2)


def test_what_an_earlier_version_did_not_know_is_none(tmp_path: pathlib.Path) -> None:
    """Of a field that may be None, and of a nested one."""
    path = write(tmp_path / "x.ndjson", [an_exec()])
    lines: List[Dict[str, Any]] = [json.loads(line) for line in path.read_bytes().splitlines()]
    del lines[0]["boot_id"], lines[1]["session"], lines[1]["creds"]["sessionid"], lines[2]["stats"]["exit"]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    (event,) = read(path).events
    assert event.session is None  # type: ignore[union-attr]
    assert event.creds.sessionid is None  # type: ignore[union-attr]
    assert event.namespaces == an_exec().namespaces != Namespaces()  # type: ignore[union-attr]
    assert read(path).header.boot_id is None


@needs("msgspec")
def test_msgspec_is_used_where_it_is_there(tmp_path: pathlib.Path) -> None:
    """It says how fast, and no other test would see that it isn't."""
    events = [exec_event(argv=("/bin/true", str(number))) for number in range(3000)]
    path = tmp_path / "x.ndjson"

    def seconds() -> float:
        started = time.process_time()
        assert len(read(write(path, events)).events) == 3000
        return time.process_time() - started

    with_it = min(seconds() for _ in range(3))
    with pytest.MonkeyPatch.context() as patch:
        hide(patch, "msgspec")
        assert with_it < seconds() / 2


def test_nothing_else_is_imported_for_it() -> None:
    """Neither to write nor to read."""
    code = (
        "import sys, execwatch; from execwatch.testing import exec_event;"
        "execwatch.Recording([exec_event()]).save(sys.argv[1]); execwatch.load(sys.argv[1]);"
        "print(*sys.modules)"
    )
    with tempfile.TemporaryDirectory() as folder:
        child = [sys.executable, "-c", code, f"{folder}/x.ndjson"]
        modules = subprocess.run(child, stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    assert not {"pyarrow", "pandas", "numpy"} & set(modules)
