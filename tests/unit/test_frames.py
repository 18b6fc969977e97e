"""A recording as a table: Arrow, the C stream that others read, pandas."""

from __future__ import annotations

import datetime
import pathlib
from typing import Any, List

import pytest
from hypothesis import given

from execwatch import MissingExtraError, Recording, Session, load
from execwatch.events import AnyEvent
from execwatch.testing import exec_event, exit_event, fork_event, lost_events
from tests.unit.recorded import EVENTS, hide, needs, some_events

#: What the columns are called is a promise: those of a kind, nested ones joined by "_".
COLUMNS = [
    "kind",
    "time",
    "boottime_ns",
    "cpu",
    "pid",
    "comm",
    "process_key",
    "host_pid",
    "ppid",
    "parent_comm",
    "parent_key",
    "uid",
    "gid",
    "start_boottime_ns",
    "cgroup_id",
    "cgroup_path",
    "container_id",
    "container_runtime",
    "container_pod_uid",
    "container_injected",
    "namespaces_mnt",
    "namespaces_pid",
    "namespaces_net",
    "namespaces_uts",
    "namespaces_ipc",
    "namespaces_cgroup",
    "namespaces_user",
    "namespaces_time",
    "namespaces_vpid",
    "tid",
    "argv",
    "argv_status",
    "argc",
    "retval",
    "filename",
    "interp",
    "creds_uid",
    "creds_gid",
    "creds_euid",
    "creds_egid",
    "creds_suid",
    "creds_sgid",
    "creds_fsuid",
    "creds_fsgid",
    "creds_cap_effective",
    "creds_cap_permitted",
    "creds_cap_inheritable",
    "creds_cap_ambient",
    "creds_loginuid",
    "creds_sessionid",
    "creds_setuid",
    "creds_setgid",
    "creds_file_capabilities",
    "creds_secureexec",
    "session_sid",
    "session_pgid",
    "session_tty_major",
    "session_tty_minor",
    "exe_path",
    "exe_inode",
    "exe_device",
    "exe_mode",
    "exe_size",
    "exe_ctime_ns",
    "exe_memfd",
    "exe_deleted",
    "cwd",
    "env",
    "env_status",
    "exit_code",
    "signal",
    "core_dumped",
    "exec_boottime_ns",
    "count",
    "reason",
    "of",
    "raw",
]


@given(EVENTS)
def test_to_dicts(events: List[AnyEvent]) -> None:
    assert Recording(events).to_dicts() == [event.to_dict() for event in events]


# -- Arrow ------------------------------------------------------------------------------------

arrow = needs("pyarrow")


@arrow
def test_the_schema_is_always_the_same() -> None:
    import pyarrow as pa

    empty = Recording([]).to_arrow().schema
    assert empty.names == COLUMNS
    for events in ([lost_events()], [fork_event()], some_events(5), some_events(5000)):
        assert Recording(events).to_arrow().schema.equals(empty, check_metadata=True)
    assert empty.field("time").type == pa.timestamp("ns", tz="UTC")
    assert empty.field("argv").type == pa.list_(pa.string())
    assert {str(empty.field(name).type) for name in COLUMNS if name not in ("time", "argv", "env")} == {
        "string",
        "int64",
        "uint64",
        "bool",
    }


def expected_rows(events: List[AnyEvent]) -> List[Any]:
    """The rows, from what to_dict says."""
    rows = []
    for event in events:
        row = dict.fromkeys(COLUMNS)
        data = event.to_dict()
        row["time"] = data.pop("time_ns")
        data.pop("raw", None)
        env = data.pop("env", None)
        row["env"] = env and [{"name": name, "value": value} for name, value in env] if env != [] else []
        for name, value in data.items():
            if isinstance(value, dict):
                row.update({f"{name}_{inner}": item for inner, item in value.items()})
            elif name in row:
                row[name] = value
        rows.append(row)
    return rows


@arrow
@given(EVENTS)
def test_rows(events: List[AnyEvent]) -> None:
    import pyarrow as pa

    table = Recording(events).to_arrow()
    table.validate(full=True)
    times = table["time"].cast(pa.int64())
    table = table.set_column(table.schema.get_field_index("time"), "time", times)
    raws = table["raw"].to_pylist()
    assert [{**row, "raw": None} for row in table.to_pylist()] == expected_rows(events)
    blank = [getattr(event, "session", None) == Session() for event in events]
    for event, raw, empty in zip(events, raws, blank):
        assert (raw is not None) or not (empty or "raw" in event.to_dict())


@arrow
def test_columns_are_built_at_once() -> None:
    """Not row by row: a hundred times the events take no hundred times the pieces."""
    recording = Recording([exec_event(pid=number + 1) for number in range(20_000)])
    table = recording.to_arrow()
    assert table["pid"].to_pylist() == list(range(1, 20_001))
    assert table["pid"].num_chunks <= 10


@arrow
def test_the_c_stream() -> None:
    """As polars, DuckDB and pandas ask for it."""
    import pyarrow as pa

    for events in ([], some_events(5), some_events(5000)):
        recording = Recording(events)
        expected = recording.to_arrow()
        assert pa.table(recording).equals(expected)
        reader = pa.RecordBatchReader.from_stream(recording)
        assert reader.read_all().equals(expected)
        schema = pa.schema([("pid", pa.int64())])
        with pytest.raises((pa.ArrowException, ValueError, NotImplementedError)):
            recording.__arrow_c_stream__(schema.__arrow_c_schema__())


@arrow
@pytest.mark.parametrize(
    ("event", "message"),
    [
        (exec_event(pid=2**63), "column 'pid' holds int64"),
        (exec_event(cgroup_id=-1), "column 'cgroup_id' holds uint64"),
        (exec_event(comm="\ud800"), "surrogates not allowed"),
    ],
)
def test_what_no_column_has_room_for(event: AnyEvent, message: str) -> None:
    for events in ([event], [event, *some_events(5)]):
        with pytest.raises(ValueError, match=message):
            Recording(events).to_arrow()


# -- pandas -----------------------------------------------------------------------------------


@needs("pandas")
def test_pandas() -> None:
    import pandas

    events: List[Any] = [
        exec_event(argv=("/bin/sh", "a"), time_ns=1_700_000_000_123_456_789, env=(("A", "1"),), ppid=None),
        exit_event(exit_code=3, time_ns=-1),
        exec_event(argv=(), cgroup_id=2**64 - 1),
        lost_events(),
    ]
    frame = Recording(events).to_pandas()
    assert list(frame.columns) == COLUMNS
    assert frame["pid"].tolist()[:3] == [event.pid for event in events[:3]]
    assert {name: str(frame[name].dtype) for name in ("pid", "cgroup_id", "core_dumped", "comm", "argv")} == {
        "pid": "Int64",
        "cgroup_id": "UInt64",
        "core_dumped": "boolean",
        "comm": "string",
        "argv": "object",
    }
    assert frame["ppid"].isna().tolist() == [True, False, False, True]
    assert frame["cgroup_id"][2] == 2**64 - 1
    assert str(frame["time"].dtype) == "datetime64[ns, UTC]"
    assert frame["time"][0] == pandas.Timestamp(1_700_000_000_123_456_789, tz="UTC")
    assert frame["time"][0].nanosecond == 789
    assert frame["time"][0].utcoffset() == datetime.timedelta(0)
    assert frame["argv"].tolist() == [["/bin/sh", "a"], None, [], None]
    assert frame["env"][0] == [{"name": "A", "value": "1"}]
    assert frame["exit_code"][1] == 3
    assert frame["exit_code"].isna().sum() == 3
    # What people ask of it.
    assert frame[frame.exit_code != 0].pid.tolist() == [events[1].pid]
    assert frame.groupby("kind").size().to_dict() == {"exec": 2, "exit": 1, "lost": 1}


@needs("pandas")
def test_pandas_when_empty() -> None:
    empty, full = Recording([]).to_pandas(), Recording(some_events(5)).to_pandas()
    assert empty.dtypes.equals(full.dtypes)
    assert list(empty.columns) == COLUMNS
    assert len(empty) == 0


# -- Where they are not installed ---------------------------------------------------------------


def test_without_pyarrow(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "y.parquet").write_bytes(b"PAR1" * 10)
    hide(monkeypatch, "pyarrow")
    recording = Recording([exec_event()])
    for attempt in (
        recording.to_arrow,
        recording.__arrow_c_stream__,
        lambda: recording.save(tmp_path / "x.parquet"),
        lambda: load(tmp_path / "y.parquet"),
    ):
        with pytest.raises(MissingExtraError, match=r"pip install 'execwatch\[arrow\]'"):
            attempt()
    assert not (tmp_path / "x.parquet").exists()
    recording.save(tmp_path / "x.ndjson")


def test_without_pandas(monkeypatch: pytest.MonkeyPatch) -> None:
    recording = Recording([exec_event()])
    hide(monkeypatch, "pandas")
    with pytest.raises(MissingExtraError, match=r"pip install 'execwatch\[pandas\]'"):
        recording.to_pandas()
    # It brings pyarrow along: one command for both.
    hide(monkeypatch, "pyarrow")
    with pytest.raises(MissingExtraError, match=r"pip install 'execwatch\[pandas\]'"):
        recording.to_pandas()
