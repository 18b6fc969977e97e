"""Trace storms for hours, as root, and see that nothing drifts: ``python tests/soak/soak.py --minutes 10``.

Each cycle does one thing that programs do with tracers, chosen by chance (``--seed`` repeats it): storms
of a known number of execs, read fast, late or not at all; tracers with differing filters and options;
opening and closing; recorders, files and replays. Beside them one tracer with a table of processes
stays open from the first cycle to the last. After each cycle this process must hold the descriptors,
threads, children, and BPF programs, maps and links that it held before; each tracer must have seen
every exec of its storm, or have counted it as lost; and what it handed over, its counters must tell.
At the end its memory must not have grown. What is wrong is said, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import logging
import os
import pathlib
import random
import statistics
import sys
import tempfile
import time
from typing import List, Mapping, NamedTuple, Tuple

import cycles
import watching

#: Of the time, until all that is kept for good is there: caches, the table of processes, modules.
_WARM_UP = 0.3
#: KiB by which the memory of the last third may exceed that of the first.
_ALLOWED = 2048
#: Else threads get heaps of their own, and pyarrow and Python have others: what lies unused in them
#: comes and goes by some ten MiB. That of this one is given back before it is measured.
_ONE_HEAP = {"MALLOC_ARENA_MAX": "1", "ARROW_DEFAULT_MEMORY_POOL": "system", "PYTHONMALLOC": "malloc"}
#: Fewer cycles than this tell nothing about memory.
_ENOUGH = 9


class Sample(NamedTuple):
    """What this process holds.

    Attributes:
        memory: KiB that are its own.
        held: Numbers of things that a cycle must leave as it found them.
    """

    memory: int
    held: Mapping[str, int]

    def __str__(self) -> str:
        held = ", ".join(f"{count} {name}" for name, count in self.held.items())
        return f"{self.memory / 1024:.1f} MiB, {held}"


def sample() -> Sample:
    """Return what this process holds now."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # of the GNU C library
    status = pathlib.Path("/proc/self/status").read_text()
    numbers = {
        name: value.split() for name, _, value in (line.partition(":") for line in status.splitlines())
    }
    infos = list(_descriptors())
    maps = pathlib.Path("/proc/self/maps").read_text()
    return Sample(
        int(numbers["RssAnon"][0]),
        {
            "descriptors": len(infos),
            "threads": int(numbers["Threads"][0]),
            "children": sum(len(path.read_text().split()) for path in _tasks()),
            **{f"BPF {name}s": sum(f"{name}_id:" in info for info in infos) for name in _BPF},
            "buffers": sum("bpf-map" in line or "[perf_event]" in line for line in maps.splitlines()),
        },
    )


_BPF = ("prog", "map", "link")


def _tasks() -> List[pathlib.Path]:
    return list(pathlib.Path("/proc/self/task").glob("*/children"))


def _descriptors() -> List[str]:
    """What /proc tells of each, but for the one that lists them."""
    infos = []
    for name in os.listdir("/proc/self/fdinfo"):
        try:
            infos.append(pathlib.Path("/proc/self/fdinfo", name).read_text())
        except FileNotFoundError:
            continue
    return infos


# -- The run ------------------------------------------------------------------------------------


def soak(minutes: float, chance: random.Random, storms: cycles.Storms) -> List[str]:
    """Do cycles for so long; return what was wrong."""
    wrong: List[str] = []
    memory: List[int] = []
    with watching.Companion(storms) as companion:
        for name, cycle in 2 * list(cycles.CYCLES.items()):
            # Of the largest storm: what it needs, malloc keeps.
            wrong += _cycle(0, name, cycle, chance, storms, companion)[1]
        storms.least = cycles.LEAST
        began = time.monotonic()
        warm = began + minutes * 60 * _WARM_UP
        number = 0
        while time.monotonic() < began + minutes * 60 and len(wrong) < 20:
            number += 1
            name = chance.choice(list(cycles.CYCLES))
            after, faults = _cycle(number, name, cycles.CYCLES[name], chance, storms, companion)
            wrong += faults
            if time.monotonic() >= warm:
                memory.append(after.memory)
    wrong += companion.faults
    wrong += _growth(memory)
    print(
        f"{number} cycles, {storms.execs:,} execs of storms, {watching.totals.tracers} tracers: "
        f"{watching.totals.delivered:,} events delivered, {watching.totals.lost:,} lost, all told"
        if not wrong
        else f"{number} cycles, {len(wrong)} faults"
    )
    return wrong


def _cycle(
    number: int,
    name: str,
    cycle: cycles.Cycle,
    chance: random.Random,
    storms: cycles.Storms,
    companion: watching.Companion,
) -> Tuple[Sample, List[str]]:
    before = sample()
    started = time.monotonic()
    try:
        faults = [*cycle(chance, storms), *companion.check()]
    except Exception as exc:
        if number == 0:
            raise
        faults = [f"{type(exc).__name__}: {exc}"]
    seconds = time.monotonic() - started
    after = sample()
    faults += [
        f"{before.held[what]} {what} before it, {count} after"
        for what, count in after.held.items()
        if count > before.held[what] and number > 0  # at first modules come, and pyarrow's threads
    ]
    print(f"{number:5} {name:12} {seconds:6.2f} s  {after}", flush=True)
    faults = [f"cycle {number}, {name}: {fault}" for fault in faults]
    for fault in faults:
        print(f"      {fault}", flush=True)
    return after, faults


def _growth(memory: List[int]) -> List[str]:
    """Compare the first and the last third."""
    if len(memory) < _ENOUGH:
        return [f"{len(memory)} cycles after the warm-up: too few to tell whether memory grows"]
    third = len(memory) // 3
    first, last = statistics.median(memory[:third]), statistics.median(memory[-third:])
    print(
        f"memory: {first / 1024:.2f} MiB in the first third after the warm-up, {last / 1024:.2f} in the last"
    )
    if last - first > _ALLOWED:
        return [f"memory grew by {(last - first) / 1024:.1f} MiB"]
    return []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=None, help="of the choice; printed")
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("it attaches real probes: run it as root", file=sys.stderr)
        return 4
    if not _ONE_HEAP.items() <= os.environ.items():  # they are read when a process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **_ONE_HEAP})
    seed: int = random.SystemRandom().randrange(1 << 32) if options.seed is None else options.seed
    logging.getLogger("execwatch").setLevel(logging.ERROR)  # of losses: they are wanted here
    print(f"--minutes {options.minutes:g} --seed {seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        wrong = soak(options.minutes, random.Random(seed), cycles.Storms(pathlib.Path(folder)))
    for fault in wrong:
        print(fault, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
