"""Parquet: what other programs find in it, and what is refused of what they made."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
from typing import Any, Callable, Dict, List

import attrs
import pytest

from execwatch import RecordingError, Session, Stats, formats, load
from execwatch.formats import FORMAT
from execwatch.testing import exec_event, exit_event, failed_exec_event, fork_event
from tests.unit.recorded import HEADER_NOW, read, some_events, stream, write

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed: an extra")
pq = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "x.parquet"


# -- What others find -------------------------------------------------------------------------


def test_what_others_find(path: pathlib.Path) -> None:
    event = exec_event(argv=("/bin/sh", "\udcff"), cwd="/\udc80", session=Session(), cgroup_id=2**64 - 1)
    write(path, [event, exit_event(exit_code=3)])
    table = pq.read_table(path)
    first, second = table.to_pylist()
    assert (first["kind"], second["kind"]) == ("exec", "exit")
    assert first["argv"] == ["/bin/sh", "\ufffd"]
    assert json.loads(first["raw"]) == {"argv": [None, "/w=="], "cwd": "L4A=", "session": {}}
    assert second["raw"] is None
    assert first["cgroup_id"] == 2**64 - 1
    assert (first["creds_euid"], second["creds_euid"]) == (event.creds.euid, None)  # type: ignore[union-attr]
    assert (first["exit_code"], second["exit_code"]) == (None, 3)
    assert table["time"].type == pa.timestamp("ns", tz="UTC")
    assert table["time"].cast(pa.int64())[0].as_py() == event.time_ns
    metadata = table.schema.metadata
    assert json.loads(metadata[b"execwatch"]) == {
        "kind": "header",
        **attrs.asdict(HEADER_NOW),
    }
    assert json.loads(pq.ParquetFile(path).metadata.metadata[b"execwatch.stats"])["argv_truncated"] == 0


def test_groups(path: pathlib.Path) -> None:
    """Rows are written together in large groups, and a reader may skip those of other times."""
    write(path, list(stream(3000)) * 25)
    metadata = pq.ParquetFile(path).metadata
    rows = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    assert rows == [16384] * 4 + [75_000 - 4 * 16384]
    columns = {
        column.path_in_schema: column
        for column in map(metadata.row_group(0).column, range(metadata.num_columns))
    }
    assert columns["time"].statistics.has_min_max
    assert "DELTA_BINARY_PACKED" in columns["time"].encodings
    assert "RLE_DICTIONARY" in columns["argv.list.element"].encodings
    assert "RLE_DICTIONARY" in columns["env.list.element.name"].encodings
    assert {column.compression for column in columns.values()} == {"ZSTD"}


def test_groups_of_large_events_are_smaller(path: pathlib.Path) -> None:
    """What waits is bounded in bytes too: 16 KiB of argv for each of 32,768 were half a gigabyte."""
    with formats.open_writer(path, HEADER_NOW) as writer:
        for number in range(3):
            writer.write([exec_event(argv=("/bin/true", f"{number}" * 10_000))] * 4096)
    metadata = pq.ParquetFile(path).metadata
    rows = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    assert rows == [4096, 4096, 4096]


def test_nothing_is_left_of_a_writer_that_was_killed(path: pathlib.Path) -> None:
    code = (
        "import os, sys; from execwatch import formats; from execwatch.testing import exec_event;"
        "from tests.unit.recorded import HEADER_NOW;"
        "writer = formats.open_writer(sys.argv[1], HEADER_NOW); writer.write([exec_event()] * 200_000);"
        "os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)]).returncode == -9
    assert path.stat().st_size > 10_000
    with pytest.raises(RecordingError, match="can be read only with its end"):
        load(path)


# -- What others made -------------------------------------------------------------------------


def rewritten(path: pathlib.Path, change: Callable[[Any], Any], metadata: Any = None) -> pathlib.Path:
    """Write what ``change`` makes of a recording's table, by pyarrow alone."""
    write(path, [exec_event(), exit_event(), exec_event(env=(("a", "b"),), env_status="complete")])
    table = change(pq.read_table(path))
    if metadata is not None:
        table = table.replace_schema_metadata({**table.schema.metadata, **metadata})
    pq.write_table(table, path)
    return path


def with_column(name: str, values: List[Any], type_: Any = None) -> Callable[[Any], Any]:
    def change(table: Any) -> Any:
        index = table.schema.get_field_index(name)
        return table.set_column(index, name, pa.array(values, type_ or table.schema.field(index).type))

    return change


def test_without_the_final_counters(path: pathlib.Path) -> None:
    """pyarrow keeps the header, and not what was added at the end."""
    back = read(rewritten(path, lambda table: table))
    assert (back.header, len(back.events), back.stats, back.complete) == (HEADER_NOW, 3, None, False)


def test_what_only_a_later_version_knows_is_left_out(path: pathlib.Path) -> None:
    def change(table: Any) -> Any:
        table = table.append_column("weather", pa.array([["fine"], None, []], pa.list_(pa.string())))
        table = table.append_column("creds_weather", pa.array([1, 2, None]))
        return with_column("kind", ["exec", "weather", "exec"])(table)

    back = read(rewritten(path, change))
    assert ([event.kind for event in back.events], back.skipped) == (["exec", "exec"], 1)


def test_what_an_earlier_version_did_not_know_is_none(path: pathlib.Path) -> None:
    def change(table: Any) -> Any:
        return table.drop_columns(
            [
                name
                for name in table.column_names
                if name.startswith(("exe_", "session_", "cwd", "raw", "exit_"))
            ]
        )

    first, second, _ = read(rewritten(path, change)).events
    assert (first.exe, first.session, first.cwd, second.exit_code) == (None, None, None, None)  # type: ignore[union-attr]
    assert first.creds is not None  # type: ignore[union-attr]


def drop(*names: str) -> Callable[[Any], Any]:
    return lambda table: table.drop_columns(list(names))


def retype(name: str, type_: Any) -> Callable[[Any], Any]:
    return lambda table: with_column(name, table[name].to_pylist(), type_)(table)


def twice(table: Any) -> Any:
    return table.append_column("pid", table["pid"])


def not_utf_8(table: Any) -> Any:
    data = pa.array([b"\xff", b"a", b"a"], pa.binary())
    text = pa.Array.from_buffers(pa.string(), 3, data.buffers())
    return table.set_column(table.schema.get_field_index("comm"), "comm", text)


_CODED = pa.dictionary(pa.int8(), pa.string())
_ENV = pa.list_(pa.struct([("name", pa.string()), ("value", pa.string())]))

FAULTS: Dict[str, Any] = {
    "kind: missing": (drop("kind"), "column 'kind': missing"),
    "kind: null": (with_column("kind", ["exec", None, "exec"]), "column 'kind': expected text, got null"),
    "kind: coded": (
        retype("kind", pa.dictionary(pa.int8(), pa.string())),
        "column 'kind': expected string, got",
    ),
    "pid: missing": (drop("pid"), "column 'pid': missing"),
    "pid: null": (with_column("pid", [1, None, 3]), "column 'pid': expected no null"),
    "pid: text": (with_column("pid", ["1"] * 3, pa.string()), "column 'pid': expected int64, got 'string'"),
    "pid: double": (retype("pid", pa.float64()), "column 'pid': expected int64, got 'double'"),
    "pid: twice": (twice, "column 'pid': there twice"),
    "time: seconds": (retype("time", pa.timestamp("ms")), "column 'time': expected timestamp.*UTC.*, got"),
    "time: null": (with_column("time", [None] * 3), "column 'time': expected no null"),
    "comm: large": (retype("comm", pa.large_string()), "column 'comm': expected string, got 'large_string'"),
    "comm: no UTF-8": (not_utf_8, "column 'comm': expected UTF-8|UTF"),
    "argv: text": (with_column("argv", ["a"] * 3, pa.string()), "column 'argv': expected list"),
    "argv: null": (with_column("argv", [["a"], None, None]), "column 'argv': expected no null"),
    "argv: null in it": (
        with_column("argv", [["a", None], None, []]),
        "column 'argv': expected no null in a list",
    ),
    "env: null in it": (
        with_column("env", [[None], None, []], _ENV),
        "column 'env': expected no null in a list",
    ),
    "env: half": (
        with_column("env", [[{"name": "a", "value": None}], None, []], _ENV),
        "column 'env': expected no null in a list",
    ),
    "argv_status: odd": (
        with_column("argv_status", ["complete", None, "odd"]),
        "column 'argv_status': expected one of complete, truncated, unreadable, got 'odd'",
    ),
    "creds: half": (with_column("creds_uid", [None, None, 1]), "columns of creds: uid: expected an integer"),
    "creds: less": (drop("creds_uid"), "columns of creds: uid: missing"),
    "exe: half": (
        with_column("exe_memfd", [None, None, True]),
        "columns of exe: memfd: expected true",
    ),
    "raw: no JSON": (with_column("raw", ["{", None, None]), "column 'raw': expected JSON"),
    "raw: a list": (with_column("raw", ["[]", None, None]), "column 'raw': .*expected an object"),
    "raw: no base64": (
        with_column("raw", ['{"comm":"?"}', None, None]),
        "column 'raw': .*comm: expected",
    ),
    "raw: a number": (with_column("raw", ['{"pid":1}', None, None]), "column 'raw': .*pid: expected"),
    "raw: deep": (with_column("raw", ["[" * 10**5, None, None]), "column 'raw': .*nested too deeply"),
}


@pytest.mark.parametrize(("change", "message"), FAULTS.values(), ids=FAULTS)
def test_faults(change: Callable[[Any], Any], message: str, path: pathlib.Path) -> None:
    rewritten(path, change)
    with pytest.raises(RecordingError, match=message) as raised:
        load(path)
    assert str(raised.value).startswith(f"{str(path)!r}: ")
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({b"execwatch": b""}, "expected JSON"),
        ({b"execwatch": b"\xff"}, "expected UTF-8"),
        ({b"execwatch": b"[]"}, "expected a header"),
        ({b"execwatch": b'{"kind":"header","format":1}'}, "version: missing"),
        ({b"execwatch": b'{"kind":"header","format":%d}' % (FORMAT + 1)}, "newer"),
        ({b"execwatch.stats": b"7"}, "stats: expected an object"),
        ({b"execwatch.stats": b'{"exec":{"seen":"a"}}'}, r"stats: exec\.seen: expected an integer"),
    ],
)
def test_metadata_that_is_none(metadata: Any, message: str, path: pathlib.Path) -> None:
    rewritten(path, lambda table: table, metadata)
    with pytest.raises(RecordingError, match=rf"x\.parquet': .*{message}"):
        load(path)


def test_any_other_parquet(path: pathlib.Path) -> None:
    pq.write_table(pa.table({"kind": ["exec"]}), path)
    with pytest.raises(RecordingError, match="not a recording: its metadata has no 'execwatch'"):
        load(path)


def test_a_pipe(path: pathlib.Path) -> None:
    """NDJSON can be read from one, what has to be read from its end cannot."""
    code = "import execwatch; print(len(execwatch.load('/dev/stdin')))"
    for name, outcome in (("x.ndjson", "3\n"), ("x.ndjson.gz", "3\n"), ("x.parquet", "")):
        file = write(path.with_name(name), some_events(3))
        command = f"cat '{file}' | '{sys.executable}' -c \"{code}\""
        done = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
        assert done.stdout == outcome
        assert ("RecordingError: '/dev/stdin': " in done.stderr) is (not outcome), done.stderr


def test_order_of_kinds(path: pathlib.Path) -> None:
    """Pieces of one kind, of all kinds in blocks, and in turn."""
    one, two, three, four = (
        [make() for _ in range(3000)] for make in (exec_event, exit_event, fork_event, failed_exec_event)
    )
    turns = [event for together in zip(one, two, three, four) for event in together]
    events: List[Any] = [*one, *two, *three, *four, *turns]
    assert read(write(path, events))[1:4] == (events, Stats(), True)
