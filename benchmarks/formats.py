"""A million events to a file and back, in each format: events a second, and memory.

They are written a batch at a time, as a recorder does, and read one by one, each way in a
process of its own.
"""

from __future__ import annotations

import importlib
import itertools
import json
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Dict, Iterator, List, Optional, Tuple

import attrs

from benchmarks.measure import Figure, Programs
from execwatch import Namespaces, Recording, Session, formats
from execwatch.events import AnyEvent
from execwatch.formats import Header
from execwatch.testing import exec_event, exit_event, fork_event

_EVENTS = 1_000_000
#: Events that come out of the ring at once, and those that lie there ready: making them isn't measured.
_BATCH, _READY = 512, 24 * 512
#: MiB by which memory may grow, whatever the number of events; the most of it is pyarrow's own.
_GROWTH = 96

#: A file's suffix, whether with msgspec, and how many events are to be written a second.
_CASES: Dict[str, Tuple[str, bool, Optional[float]]] = {
    "NDJSON": (".ndjson", True, 100_000),
    "NDJSON, gzip": (".ndjson.gz", True, None),
    "NDJSON, no msgspec": (".ndjson", False, None),
    "Parquet": (".parquet", True, 500_000),
}


def run(programs: Programs, rounds: int) -> Iterator[Figure]:
    """Yield for each format and both ways the rates, by the clock and by CPU time, and the memory."""
    with tempfile.TemporaryDirectory() as folder:
        for name, (suffix, fast, limit) in _CASES.items():
            path = pathlib.Path(folder, f"x{suffix}")
            for way in ("written", "read"):
                wall, cpu, growth = zip(*(_child(way, path, fast) for _ in range(rounds)))
                what = f"{name}: events {way} a"
                yield Figure(
                    f"{what} second", wall, "events/s", limit if way == "written" else None, at_least=True
                )
                yield Figure(f"{what} second of CPU time", cpu, "events/s")
                yield Figure(f"{name}: memory, while they are {way}", growth, "MiB", _GROWTH)
            path.unlink()


def _child(way: str, path: pathlib.Path, fast: bool) -> Tuple[float, float, float]:
    """Return events a second, events a second of CPU time, and the MiB by which memory grew."""
    command = [sys.executable, "-m", __name__, way, str(path), "fast" if fast else "slow"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    wall, cpu, growth = json.loads(done.stdout)
    return wall, cpu, growth


# -- In the child -----------------------------------------------------------------------------


def _main(way: str, path: str, speed: str) -> None:
    if speed == "slow":
        sys.modules["msgspec"] = None  # type: ignore[assignment]
    elif path.endswith("json"):
        importlib.import_module("msgspec.json")
    if path.endswith(".parquet"):
        Recording([exec_event()]).to_arrow()  # pyarrow imports pandas now, where that is there
    events = list(itertools.islice(_build(), _READY)) if way == "written" else []
    before = _memory("VmRSS")
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak is from now on
    wall, cpu = time.perf_counter(), time.process_time()
    if way == "written":
        _write(path, events)
    else:
        _read(path)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(json.dumps([_EVENTS / wall, _EVENTS / cpu, _memory("VmHWM") - before]))


def _write(path: str, events: List[AnyEvent]) -> None:
    batches = itertools.cycle([events[start : start + _BATCH] for start in range(0, len(events), _BATCH)])
    with formats.open_writer(path, Header(version="0")) as writer:
        for _ in range(_EVENTS // _BATCH):
            writer.write(next(batches))
        writer.write(next(batches)[: _EVENTS % _BATCH])


def _read(path: str) -> None:
    with formats.open_reader(path) as reader:
        count = sum(1 for _ in reader)
    if count != _EVENTS:
        raise AssertionError(f"{count} of {_EVENTS} events")


def _memory(name: str) -> float:
    """Return a line of /proc/self/status, in MiB."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split(f"{name}:")[1].split()[0]) / 1024


def _build() -> Iterator[AnyEvent]:
    """Yield what a build does: processes that start, execute and end.

    As a tracer hands it over: what a process doesn't have alone, its events share with others.
    """
    programs = (
        "/usr/bin/gcc",
        "/usr/libexec/gcc/x86_64-linux-gnu/14/cc1",
        "/usr/bin/as",
        "/bin/sh",
        "/usr/bin/make",
    )
    samples = {path: exec_event(argv=(path,), pid=1) for path in programs}
    host = Namespaces(mnt=4026531841)
    for number, path in enumerate(itertools.cycle(programs), 2000):
        sample = samples[path]
        start = number * 3_000_000 + number * 7919 % 1_000_000
        process = {
            "pid": number,
            "ppid": number - 1 - number % 7,
            "cpu": number % 8,
            "start_boottime_ns": start,
        }
        yield attrs.evolve(fork_event(boottime_ns=start, **process), namespaces=host, parent_comm="make")
        program = exec_event(
            boottime_ns=start + 400_000 + number % 1000,
            argv=(
                path,
                "-O2",
                "-Wall",
                "-Iinclude",
                "-c",
                f"src/{number % 977}.c",
                "-o",
                f"build/{number}.o",
            ),
            **process,
        )
        yield attrs.evolve(
            program,
            parent_comm="make",
            creds=sample.creds,
            exe=sample.exe,
            session=Session(sid=1000, pgid=number, tty_major=136, tty_minor=0),
        )
        end = exit_event(boottime_ns=start + 9_000_000 + number % 100_000, comm=program.comm, **process)
        yield attrs.evolve(end, namespaces=host, parent_comm="make")


if __name__ == "__main__":
    _main(*sys.argv[1:])
