"""``Recording.save``, ``load`` and ``replay`` over every format."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any, List, Optional

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import execwatch
from execwatch import Filter, KindStats, LostCounts, Recording, Stats, load, replay
from execwatch.events import AnyEvent
from execwatch.formats import Header
from execwatch.testing import exec_event, exit_event, fork_event, lost_events
from tests.unit.recorded import EVENTS, HEADER, STATS, every_format, some_events, write

each_format = pytest.mark.parametrize("suffix", every_format())


@each_format
@settings(max_examples=40)
@given(EVENTS, HEADER, STATS, st.booleans())
def test_saved_and_loaded(
    suffix: str, events: List[AnyEvent], header: Header, stats: Stats, complete: bool
) -> None:
    recording = Recording(events, stats=stats, header=header, complete=complete)
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/x{suffix}"
        recording.save(path)
        back = load(path)
        with replay(path) as tracer:
            assert list(tracer.events()) == events
    assert list(back) == events
    assert back == recording
    assert (back.header, back.complete) == (header, complete)
    assert back.stats == (stats if complete else None)


@each_format
def test_saved_again_it_is_the_same(suffix: str, tmp_path: pathlib.Path) -> None:
    first, second = tmp_path / f"x{suffix}", tmp_path / f"y{suffix}"
    Recording(some_events(20)).save(first)
    load(first).save(second)
    assert load(first) == load(second)
    if suffix != ".ndjson.gz":
        assert first.read_bytes() == second.read_bytes()


@each_format
def test_without_counters_the_events_are_counted(suffix: str, tmp_path: pathlib.Path) -> None:
    gaps = [lost_events(count=5), lost_events(of="weather", count=9)]
    events: List[Any] = [exec_event(), exec_event(), exit_event(), *gaps]
    path = tmp_path / f"x{suffix}"
    Recording(events).save(path)
    back = load(path)
    lost = KindStats(seen=7, delivered=2, lost_by_reason=LostCounts(buffer_full=5))
    assert back.stats == Stats(exec=lost, exit=KindStats(seen=1, delivered=1))
    assert (back.lost, back.complete) == (5, True)
    assert back.header is not None
    assert back.header.version == execwatch.__version__
    assert back.header.host is None  # it was not recorded here


@each_format
@pytest.mark.parametrize("path_type", [str, pathlib.Path, os.fspath])
def test_paths(suffix: str, path_type: type, tmp_path: pathlib.Path) -> None:
    events = some_events(3)
    path = path_type(tmp_path / f"x\udcff é{suffix}")
    Recording(events).save(path)
    assert list(load(path)) == events
    with replay(path) as tracer:
        assert list(tracer.events()) == events


@each_format
def test_replay_with_a_filter(suffix: str, tmp_path: pathlib.Path) -> None:
    """As over the events themselves."""
    makers = (fork_event, exec_event, exit_event)
    events: List[Any] = [make(pid=number + 1) for number in range(400) for make in makers]
    events[5:5] = [lost_events(count=3)]
    path = write(tmp_path / f"x{suffix}", events)
    wanted = Filter(pids={7, 300, 400})
    with replay(path, wanted) as tracer, replay(events, wanted) as other:
        found = list(tracer.events())
        assert found == list(other.events())
        assert [getattr(event, "pid", None) for event in found] == [None, *[7] * 3, *[300] * 3, *[400] * 3]
        assert tracer.stats() == other.stats()
        assert tracer.stats().exec == KindStats(
            seen=403, delivered=3, filtered=397, lost_by_reason=LostCounts(buffer_full=3)
        )


@each_format
def test_replay_knows_the_processes(suffix: str, tmp_path: pathlib.Path) -> None:
    life = dict(pid=7, start_boottime_ns=10**10)
    fork = fork_event(**life, boottime_ns=10**10)
    program = exec_event(**life, boottime_ns=10**10 + 5)
    events: List[Any] = [fork, program, exit_event(**life, boottime_ns=10**10 + 9)]
    with replay(write(tmp_path / f"x{suffix}", events)) as tracer:
        lives = []
        processes = tracer.processes
        for _ in tracer.events():
            process = processes.get(fork.process_key)
            assert process is not None
            lives.append((process.argv, process.exit_boottime_ns))
    assert lives == [(None, None), (("/bin/true",), None), (("/bin/true",), 10**10 + 9)]


@each_format
def test_replay_goes_on_where_it_stopped(suffix: str, tmp_path: pathlib.Path) -> None:
    events = some_events(1000)
    with replay(write(tmp_path / f"x{suffix}", events)) as tracer:
        back: List[Any] = list(tracer.events(count=3))
        back += tracer.read()
        back += tracer.events(count=300)
        back += tracer.read(timeout=0)
        assert back == events
        assert tracer.read() == []


def interrupted(events: List[AnyEvent], path: pathlib.Path, at: int) -> Optional[List[AnyEvent]]:
    """Replay, with a Ctrl-C when the file's event ``at`` is read."""
    with replay(path) as tracer:
        reader = tracer._stream._source._reader  # type: ignore[union-attr]
        original = reader._events

        def once() -> object:
            for number, event in enumerate(original):
                if number == at:
                    raise KeyboardInterrupt
                yield event

        reader._events = once()
        back: List[Any] = []
        with pytest.raises(KeyboardInterrupt):
            back += tracer.events()
        back += tracer.events()
        return back


@each_format
@pytest.mark.parametrize("at", [0, 1, 255, 256, 700])
def test_an_interrupt_loses_nothing(suffix: str, at: int, tmp_path: pathlib.Path) -> None:
    events = some_events(1000)
    assert interrupted(events, write(tmp_path / f"x{suffix}", events), at) == events


_PEAK = """
import sys
from execwatch import formats, replay
from tests.unit.recorded import HEADER_NOW, stream
path, times = sys.argv[1], int(sys.argv[2])
batch = list(stream(300))
with formats.open_writer(path, HEADER_NOW) as writer:
    for _ in range(times):
        writer.write(batch)
with replay(path) as tracer:
    assert sum(1 for _ in tracer.events()) == 300 * times
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM:")))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="the peak is told by /proc")
@each_format
def test_memory_stays_flat(suffix: str, tmp_path: pathlib.Path) -> None:
    """Both ways, however many events: the peak of several times as many is the same."""
    peaks = []
    # A thread writes Parquet beside: how much is on its way at most depends on the time.
    for times in (480, 1440) if suffix == ".parquet" else (20, 200):
        child = [sys.executable, "-c", _PEAK, str(tmp_path / f"x{suffix}"), str(times)]
        peaks.append(int(subprocess.run(child, stdout=subprocess.PIPE, check=True).stdout) / 1024)
    # The greater file has 290,000 events more (54,000 in the other formats), of a kilobyte each.
    assert peaks[1] - peaks[0] < 25
