"""Tracers whose every event and every counter is checked against what is known."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Callable, List, Optional

from execwatch import ExecTracer, Stats

if TYPE_CHECKING:
    from cycles import Storms

#: Seconds that anything may take that has to come.
PATIENCE = 60.0


class Totals:
    """Of the whole run."""

    tracers = delivered = lost = 0


totals = Totals()


def stats_faults(stats: Stats) -> List[str]:
    """Return what in the counters can't be."""
    faults = []
    for name in ("exec", "failed", "fork", "exit"):
        kind = getattr(stats, name)
        parts = (kind.delivered, kind.filtered, kind.lost, kind.pending)
        if kind.seen != sum(parts) or min(parts) < 0:
            faults.append(f"{name}: seen {kind.seen} is not delivered, filtered, lost and pending: {parts}")
        if kind.lost_by_reason.undecodable:
            faults.append(f"{name}: {kind.lost_by_reason.undecodable} records were not understood")
    sums = stats.delivered + stats.filtered + stats.lost + stats.pending
    return faults if stats.seen == sums else [*faults, f"seen {stats.seen}, and in all {sums}"]


class Tally:
    """What came out of a tracer.

    Attributes:
        kinds: How many events of each kind.
        told: How many of each kind events say to be lost.
        numbers: How often each exec of a storm came.

    Args:
        program: What the storm executes.
    """

    def __init__(self, program: str) -> None:
        self._program = program
        self.kinds: Counter[str] = Counter()
        self.told: Counter[str] = Counter()
        self.numbers: Counter[int] = Counter()

    def take(self, event: Any) -> None:
        self.kinds[event.kind] += 1
        if event.kind == "lost":
            self.told[event.of] += event.count
        elif event.kind == "exec" and event.filename == self._program:
            self.numbers[int(event.argv[1])] += 1

    def missing(self, expected: range, wanted: Callable[[int], bool]) -> int:
        return sum(wanted(number) and number not in self.numbers for number in expected)

    def faults(self, expected: range, wanted: Callable[[int], bool], stats: Stats) -> List[str]:
        """Compare with a storm: each exec once, or counted as lost."""
        faults = []
        twice = [number for number, count in self.numbers.items() if count > 1]
        if twice:
            faults.append(f"{len(twice)} execs came more than once, such as {twice[0]}")
        wrong = [number for number in self.numbers if number not in expected or not wanted(number)]
        if wrong:
            faults.append(f"{len(wrong)} execs came that were not asked for, such as {wrong[0]}")
        missing = self.missing(expected, wanted)
        if missing > stats.exec.lost:
            faults.append(
                f"{missing} of {len(expected)} execs are missing, {stats.exec.lost} counted as lost"
            )
        return faults

    def stats_faults(self, stats: Stats, kinds_lost: bool) -> List[str]:
        """Compare with the counters of a tracer that has handed over all that it had.

        Args:
            kinds_lost: Losses are events, too.
        """
        faults = stats_faults(stats)
        for name, kind in (("exec", "exec"), ("failed", "failed_exec"), ("fork", "fork"), ("exit", "exit")):
            counted = getattr(stats, name)
            if counted.delivered != self.kinds[kind]:
                faults.append(f"{self.kinds[kind]} of {kind} came, {counted.delivered} counted as delivered")
            if kinds_lost and counted.lost != self.told[kind]:
                faults.append(f"{self.told[kind]} of {kind} told as lost, {counted.lost} counted so")
        if stats.pending:
            faults.append(f"{stats.pending} pending, and nothing more came")
        return faults


class Watched:
    """A tracer that is read by a thread from the block's beginning to its end.

    Args:
        tracer: A new one.
        tally: Of its events.
        way: How it is read, see WAYS.
        lost: Its losses are events, too.

    Attributes:
        stats: The last counters, after the block.
    """

    def __init__(self, tracer: ExecTracer[Any], tally: Tally, way: str, *, lost: bool) -> None:
        self.tracer = tracer
        self.tally = tally
        self.stats = Stats()
        self._way, self._lost = WAYS[way], lost
        self._thread = threading.Thread(target=self._read)
        self._error: Optional[BaseException] = None

    def _read(self) -> None:
        try:
            self._way(self.tracer, self.tally.take)
        except BaseException as exc:
            self._error = exc

    def __enter__(self) -> Watched:
        self.tracer.start()
        self._thread.start()
        totals.tracers += 1
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.tracer.stop()
        self._thread.join(PATIENCE)
        self.stats = self.tracer.stats()
        self.tracer.close()
        totals.delivered += self.stats.delivered
        totals.lost += self.stats.lost

    def faults(self) -> List[str]:
        """Return what was wrong with it, whatever it was to see."""
        if self._error is not None:
            return [f"reading: {type(self._error).__name__}: {self._error}"]
        if self._thread.is_alive():
            return [f"its reader did not end within {PATIENCE:g} s of stop()"]
        faults = self.tally.stats_faults(self.stats, self._lost)
        if self.tracer.stats() != self.stats:
            faults.append("close() changed the counters though nothing was left")
        return faults


def _iterate(tracer: ExecTracer[Any], take: Callable[[Any], None]) -> None:
    for event in tracer.events():
        take(event)


def _read(tracer: ExecTracer[Any], take: Callable[[Any], None]) -> None:
    for events in iter(tracer.read, []):
        for event in events:
            take(event)


def _dispatch(tracer: ExecTracer[Any], take: Callable[[Any], None]) -> None:
    tracer.dispatch()


def _async(tracer: ExecTracer[Any], take: Callable[[Any], None]) -> None:
    async def read() -> None:
        async for event in tracer:
            take(event)

    asyncio.run(read())


WAYS = {"events": _iterate, "read": _read, "dispatch": _dispatch, "async": _async}


class Companion:
    """A tracer with a table of processes that stays open all the time.

    Attributes:
        faults: What was wrong at its end.
    """

    def __init__(self, storms: Storms) -> None:
        self._storms = storms
        self._tally = Tally(storms.nothing)
        tracer: ExecTracer[Any] = ExecTracer(forks=True, exits=True, lost=True, buffer_size=1 << 24)
        self._watched = Watched(tracer, self._tally, "events", lost=True)
        self.faults: List[str] = []

    def __enter__(self) -> Companion:
        # From here on it is kept. What it remembers of the dead by default, five minutes, would still grow
        # when memory is first looked at.
        self._watched.tracer.processes.keep(seconds=30)
        self._watched.__enter__()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._watched.__exit__(*exc_info)
        self.faults = [f"the tracer that was always open: {fault}" for fault in self._watched.faults()]

    def check(self) -> List[str]:
        """Wait until it has seen the storms of this cycle; return what is wrong with it."""
        expected, tracer = self._storms.since(), self._watched.tracer
        deadline = time.monotonic() + PATIENCE
        while self._tally.missing(expected, _all) > tracer.stats().exec.lost:
            if time.monotonic() > deadline:
                break
            time.sleep(0.01)
        stats = tracer.stats()
        faults = [*self._tally.faults(expected, _all, stats), *stats_faults(stats)]
        self._tally.numbers.clear()
        if not stats.lost:
            faults += self._check_table()
        return [f"the tracer that was always open: {fault}" for fault in faults]

    def _check_table(self) -> List[str]:
        """The storms have ended, and so has all that this process started."""
        table = self._watched.tracer.processes
        deadline = time.monotonic() + PATIENCE
        while True:
            me = [process for process in table if process.pid == os.getpid() and process.alive]
            left = [child for process in me for child in table.children(process.key) if child.alive]
            if (len(me) == 1 and not left) or time.monotonic() > deadline:
                break
            time.sleep(0.01)
        if len(me) != 1:
            return [f"{len(me)} processes of the table are this one"]
        return [f"{child.pid} ({child.command_line}) runs in the table" for child in left]


def _all(number: int) -> bool:
    return True
