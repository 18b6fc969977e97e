"""What an event costs in the process, for pytest-benchmark: ``pytest benchmarks/test_inprocess.py``.

Each round is one batch, as it comes out of the ring; ``--benchmark-compare`` compares with an earlier run.
How these grow with what there is more of: ``python -m benchmarks growth``.
"""

from __future__ import annotations

import importlib.util
import os
import pathlib
from typing import Any, Callable, Dict, Iterator, List

import pytest

from benchmarks import growth, made
from execwatch import Filter, decoder, formats, replay
from execwatch.cli import rows, screen
from execwatch.events import ExecEvent
from execwatch.filters import Matcher
from execwatch.formats import Header
from execwatch.processes import ProcessTable
from tests.unit.records import CLOCK

Benchmark = Callable[..., Any]

_LIVE = 1000
_FILTERS: Dict[str, Dict[str, Any]] = {
    "comms": {"comms": {"make", "cc1", "as"}},
    "pids": {"pids": range(1_000_000, 1_010_000)},
    "paths": {"paths": {"/usr/*/cc1", "/opt/*"}},
    "args": {"args": {"*.cpp"}},
    "descendants_of": {"descendants_of": 1},
    "exclude": {"exclude": Filter(comms={"gcc"}, args={"*.c"})},
}


@pytest.fixture
def execs() -> List[Any]:
    (events,) = made.execs(made.BATCH)
    return events


def test_decode(benchmark: Benchmark) -> None:
    ((data, starts),) = made.records(made.BATCH)
    events = benchmark(lambda: decoder.decode_all(data, starts, CLOCK).events)
    assert {event.comm for event in events} == {"gcc"}


def test_hand_over(benchmark: Benchmark, execs: List[Any]) -> None:
    def read() -> int:
        with replay(execs) as tracer:
            return sum(1 for _ in tracer.events())

    assert benchmark(read) == made.BATCH


@pytest.mark.parametrize("name", _FILTERS)
def test_filter(benchmark: Benchmark, execs: List[Any], name: str) -> None:
    matches = Matcher(Filter(**_FILTERS[name])).matches
    assert not any(benchmark(lambda: [matches(event) for event in execs]))


def test_feed_the_table_of_processes(benchmark: Benchmark) -> None:
    batches: Iterator[List[Any]] = made.lives(101 * made.BATCH, first=_LIVE)
    table = growth.filled(_LIVE)

    def feed(events: List[Any]) -> None:
        for event in events:
            table.feed(event)

    benchmark.pedantic(feed, setup=lambda: ((next(batches),), {}), rounds=100)  # type: ignore[attr-defined]
    assert len(table) == _LIVE + growth.DEAD


@pytest.fixture
def table() -> ProcessTable:
    return growth.filled(_LIVE)


def test_make_the_tree(benchmark: Benchmark, table: ProcessTable) -> None:
    assert len(benchmark(table.tree)) == _LIVE


def test_draw_the_tree(benchmark: Benchmark, table: ProcessTable) -> None:
    assert benchmark(str, table.tree()).count("\n") == _LIVE - 1


def test_line_of_the_table(benchmark: Benchmark, execs: List[Any]) -> None:
    row = rows.table_row(0, time_of_day=True, seconds=True)

    def show() -> None:
        for event in execs:
            out.line(row(event))
        out.flush()

    with open(os.devnull, "w") as file:
        out = screen.Screen(file)
        benchmark(show)


def test_to_dict(benchmark: Benchmark, execs: List[Any]) -> None:
    assert benchmark(lambda: [ExecEvent.to_dict(event) for event in execs])[0]["kind"] == "exec"


def test_line_of_json(benchmark: Benchmark, execs: List[Any]) -> None:
    assert all(line.endswith("\n") for line in benchmark(lambda: [rows.json_line(event) for event in execs]))


_SUFFIXES = [".ndjson", ".ndjson.gz", *([".parquet"] if importlib.util.find_spec("pyarrow") else [])]


@pytest.mark.parametrize("suffix", _SUFFIXES)
def test_write(benchmark: Benchmark, execs: List[Any], suffix: str, tmp_path: pathlib.Path) -> None:
    """Parquet converts some thousands at a time: so many are a round."""
    events = execs * 10

    def write() -> None:
        with formats.open_writer(tmp_path / f"x{suffix}", Header(version="0")) as writer:
            writer.write(events)

    benchmark(write)
    with formats.open_reader(tmp_path / f"x{suffix}") as reader:
        assert list(reader) == events


@pytest.mark.skipif(".parquet" not in _SUFFIXES, reason="needs pyarrow")
def test_make_an_arrow_table(benchmark: Benchmark, execs: List[Any]) -> None:
    from execwatch.formats import columns

    assert benchmark(columns.table, execs * 10).num_rows == 10 * made.BATCH
