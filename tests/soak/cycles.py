"""What a soak does, one of them a cycle: each returns what was wrong."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import pathlib
import random
import subprocess
import threading
import time
from typing import Any, Callable, Dict, Iterator, List, NamedTuple

from watching import PATIENCE, WAYS, Tally, Watched, stats_faults, totals

import execwatch
from execwatch import ExecTracer, Filter
from execwatch.tracer import CAPTURE

_PROGRAMS = pathlib.Path(__file__).parent.parent / "kernel" / "programs"
#: Execs of each of a storm's two processes.
LEAST, MOST = 400, 4000
#: Attempts that fail in a flood.
_FLOOD = 20_000


class Storms:
    """Makes storms, and remembers how many execs they were. Each exec has a number of its own.

    Args:
        folder: For the programs, and for files.

    Attributes:
        execs: In all.
        least: Of each process, for a storm.
        nothing, storm, flood: Paths of programs.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.nothing, self.storm, self.flood = (self._compile(name) for name in ("nothing", "storm", "flood"))
        self.execs = self._told = 0
        self.least = MOST
        with ExecTracer(Filter(descendants_of=os.getpid())) as tracer:
            subprocess.run([self.nothing], check=True)
            (event,) = tracer.read(timeout=0)
        #: Whether all that is started here runs in a container.
        self.contained = event.container is not None

    def _compile(self, name: str) -> str:
        target = str(self.folder / name)
        options = ["-nostdlib"] if name == "nothing" else []
        command = ["cc", "-O2", "-static", *options, "-o", target, str(_PROGRAMS / f"{name}.c")]
        subprocess.run(command, check=True)
        return target

    def command(self, each: int) -> List[str]:
        """Return the command of one process's part of a storm."""
        first = self.execs
        self.execs += each
        return [self.storm, str(each), str(first), self.nothing]

    def run(self, chance: random.Random) -> range:
        """Let two processes execute; return the numbers of their execs."""
        each, first = chance.randint(self.least, MOST), self.execs
        processes = [subprocess.Popen(self.command(each)) for _ in range(2)]
        failed = [process.args for process in processes if process.wait(PATIENCE) != 0]
        if failed:
            raise AssertionError(f"a storm failed: {failed}")
        return range(first, self.execs)

    def since(self) -> range:
        """Return the numbers since the last call."""
        first, self._told = self._told, self.execs
        return range(first, self.execs)

    @contextlib.contextmanager
    def failures(self) -> Iterator[None]:
        """Two processes that fail to execute, without end."""
        processes = [subprocess.Popen([self.flood]) for _ in range(2)]
        try:
            yield
        finally:
            for process in processes:
                process.kill()
                process.wait()


class Choice(NamedTuple):
    """A filter, and which numbers of a storm pass it."""

    filter: Any
    wanted: Callable[[int], bool]


def _filters(storms: Storms) -> List[Choice]:
    def every(number: int) -> bool:
        return True

    def none(number: int) -> bool:
        return False

    mine, name = os.getpid(), {"nothing"}
    sevens = Filter(args={"*7"})
    return [
        Choice(None, every),
        Choice(Filter(comms=name), every),
        Choice(Filter(descendants_of=mine), every),
        Choice(Filter(descendants_of=mine, comms=name), every),
        Choice(Filter(uids=os.getuid(), paths={storms.nothing}), every),
        Choice(Filter(comms=name, args={"*3"}), lambda number: number % 10 == 3),
        Choice(Filter(comms=name, exclude=sevens), lambda number: number % 10 != 7),
        Choice(Filter(exclude=Filter(comms=name)), none),
        Choice(Filter(pids=1), none),
        Choice(Filter(containers=True), every if storms.contained else none),
        Choice(Filter(containers=False), none if storms.contained else every),
        Choice(Filter(containers={"0123456789ab"}), none),
    ]


def _options(chance: random.Random) -> Dict[str, Any]:
    """Return options of a tracer, by chance."""
    perf = chance.random() < 0.3
    return {
        "failed": os.uname().machine == "x86_64" and chance.random() < 0.3,
        "forks": chance.random() < 0.4,
        "exits": chance.random() < 0.4,
        "lost": chance.random() < 0.5,
        "buffer": "perf" if perf else "ring",
        "buffer_size": 1 << chance.choice((18, 20, 22, 23)),
        "argv_size": chance.choice((512, 16384) if perf else (512, 16384, 1 << 16)),
        "latency": chance.choice((0, 0.01, 0.05)),
        "capture": chance.sample(CAPTURE, chance.randint(0, len(CAPTURE))),
        "env": chance.choice((None, None, True, {"PATH"})),
    }


def _watched(chance: random.Random, storms: Storms, choice: Choice) -> Watched:
    """Return a tracer of this filter, and all else by chance."""
    options, tally, way = _options(chance), Tally(storms.nothing), chance.choice(list(WAYS))
    tracer: ExecTracer[Any] = ExecTracer(choice.filter, **options)
    if way == "dispatch":
        tracer.on_exec(tally.take)
        for option, register in (
            ("failed", tracer.on_failed),
            ("forks", tracer.on_fork),
            ("exits", tracer.on_exit),
            ("lost", tracer.on_lost),
        ):
            if options[option]:
                register(tally.take)
    if chance.random() < 0.3:
        tracer.processes  # noqa: B018  from here on it is kept
    return Watched(tracer, tally, way, lost=options["lost"])


# -- The cycles -----------------------------------------------------------------------------------


def drained(chance: random.Random, storms: Storms) -> List[str]:
    """Up to three tracers at once, each read all the time; somebody asks for their counters meanwhile."""
    choices = chance.sample(_filters(storms), chance.randint(1, 3))
    watched = [_watched(chance, storms, choice) for choice in choices]
    faults = []
    done = threading.Event()

    def ask() -> None:
        while not done.wait(0.01):
            for each in watched:
                faults.extend(stats_faults(each.tracer.stats()))

    with contextlib.ExitStack() as stack:
        for each in watched:
            stack.enter_context(each)
        asking = threading.Thread(target=ask)
        asking.start()
        try:
            numbers = storms.run(chance)
        finally:
            done.set()
            asking.join()
    for each, choice in zip(watched, choices):
        wrong = [*each.faults(), *each.tally.faults(numbers, choice.wanted, each.stats)]
        faults += [f"{choice.filter}: {fault}" for fault in wrong]
    return faults


def late(chance: random.Random, storms: Storms) -> List[str]:
    """Read only when storms are over, out of a buffer that is too small; and again."""
    choice = Choice(Filter(descendants_of=os.getpid(), comms={"nothing"}), lambda number: True)
    tally, faults, first = Tally(storms.nothing), [], storms.execs
    options = {**_options(chance), "failed": False, "forks": False, "exits": False, "lost": True}
    with ExecTracer(choice.filter, **options) as tracer:
        for _ in range(chance.randint(1, 3)):
            storms.run(chance)
            for event in tracer.events(timeout=0):
                tally.take(event)
            stats = tracer.stats()
            numbers = range(first, storms.execs)
            faults += [*tally.faults(numbers, choice.wanted, stats), *tally.stats_faults(stats, True)]
            missing = tally.missing(numbers, choice.wanted)
            if missing != stats.lost:
                faults.append(f"{missing} execs are missing, {stats.lost} counted as lost")
    totals.tracers += 1
    totals.delivered += stats.delivered
    totals.lost += stats.lost
    return faults


def abandoned(chance: random.Random, storms: Storms) -> List[str]:
    """Close in the middle of an iteration: what was left counts as lost."""
    tally = Tally(storms.nothing)
    with ExecTracer(Filter(descendants_of=os.getpid(), comms={"nothing"})) as tracer:
        numbers = storms.run(chance)
        for event in tracer.events(count=chance.randrange(100)):
            tally.take(event)
    stats = tracer.stats()
    totals.tracers += 1
    totals.delivered += stats.delivered
    totals.lost += stats.lost
    faults = tally.stats_faults(stats, False) + tally.faults(numbers, lambda number: True, stats)
    if stats.seen - stats.filtered != len(numbers):
        faults.append(f"{stats.seen - stats.filtered} of {len(numbers)} execs counted")
    return faults


def opened(chance: random.Random, storms: Storms) -> List[str]:
    """Open and close again and again; while somebody reads, and without ever reading or starting."""
    faults: List[str] = []
    for _ in range(20):
        tracer: ExecTracer[Any] = ExecTracer(chance.choice(_filters(storms)).filter, **_options(chance))
        if chance.random() < 0.1:
            tracer.close()
            continue
        totals.tracers += 1
        with tracer:
            if chance.random() < 0.5:
                subprocess.run(storms.command(1), check=True)
            if chance.random() < 0.3:
                tracer.fileno()
            reader = threading.Thread(target=tracer.read) if chance.random() < 0.3 else None
            if reader is not None:
                reader.start()
        if reader is not None:
            reader.join(PATIENCE)
            if reader.is_alive():
                faults.append("a reader did not end when its tracer was closed")
        faults += stats_faults(tracer.stats())
    return faults


def flooded(chance: random.Random, storms: Storms) -> List[str]:
    """Execs among failures that come much faster."""
    if os.uname().machine != "x86_64":
        return []
    tally = Tally(storms.nothing)
    options = {**_options(chance), "failed": True, "buffer": "ring"}
    watched = Watched(ExecTracer(**options), tally, "read", lost=options["lost"])
    with watched:
        with storms.failures():
            deadline = time.monotonic() + PATIENCE
            while watched.tracer.stats().failed.seen < _FLOOD and time.monotonic() < deadline:
                time.sleep(0.01)
            numbers = storms.run(chance)
        flood = watched.tracer.stats().failed.seen
    faults = watched.faults() + tally.faults(numbers, lambda number: True, watched.stats)
    return faults if flood >= _FLOOD else [*faults, f"{flood} failures counted in {PATIENCE:g} s of a flood"]


def recorded(chance: random.Random, storms: Storms, name: str = "") -> List[str]:
    """A recorder, into memory or a file; what it holds, replayed."""
    path = storms.folder / name if name else None
    with execwatch.record(path=path) as recorder:
        numbers = storms.run(chance)
    totals.tracers += 1
    recording = recorder.recording
    assert recording.stats is not None
    faults = _recording_faults(storms, recording, numbers)
    chosen, tally = Filter(comms={"nothing"}, args={"*3"}), Tally(storms.nothing)
    with execwatch.replay(recording if path is None else path, chosen) as tracer:
        tracer.processes  # noqa: B018  from here on it is kept
        for event in tracer.events():
            tally.take(event)
        stats = tracer.stats()
    faults += stats_faults(stats)
    again = {number for number in _numbers(storms, recording).numbers if number % 10 == 3}
    if set(tally.numbers) != again:
        faults.append(f"{len(tally.numbers)} execs replayed, {len(again)} recorded")
    if path is not None:
        path.unlink()
    totals.delivered += recording.stats.delivered
    totals.lost += recording.stats.lost
    return faults


def ran(chance: random.Random, storms: Storms) -> List[str]:
    """A command, and all that it executed."""
    first = storms.execs
    recording = execwatch.run(storms.command(chance.randint(storms.least, MOST)), check=True)
    totals.tracers += 1
    assert recording.stats is not None
    faults = _recording_faults(storms, recording, range(first, storms.execs))
    if recording.still_running:
        faults.append(f"run(): {len(recording.still_running)} processes are said to run still")
    return faults


def _numbers(storms: Storms, recording: Any) -> Tally:
    tally = Tally(storms.nothing)
    for event in recording:
        tally.take(event)
    return tally


def _recording_faults(storms: Storms, recording: Any, numbers: range) -> List[str]:
    faults = stats_faults(recording.stats)
    faults += _numbers(storms, recording).faults(numbers, lambda number: True, recording.stats)
    return faults if recording.complete else [*faults, "the recording is not complete"]


Cycle = Callable[[random.Random, Storms], List[str]]

CYCLES: Dict[str, Cycle] = {
    "drained": drained,
    "late": late,
    "abandoned": abandoned,
    "opened": opened,
    "flooded": flooded,
    "recorded": recorded,
    "ndjson": functools.partial(recorded, name="x.ndjson"),
    "gzip": functools.partial(recorded, name="x.ndjson.gz"),
    "ran": ran,
}
if importlib.util.find_spec("pyarrow"):
    CYCLES["parquet"] = functools.partial(recorded, name="x.parquet")
