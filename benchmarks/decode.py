"""Events a second, on one core, out of a full ring."""

from __future__ import annotations

import subprocess
import time
from typing import Dict, Iterator, List, Tuple

from benchmarks.measure import Figure, Programs
from execwatch import ExecTracer, Filter
from execwatch.tracer import DEFAULT_CAPTURE, Part

_EVENTS = 10_007
#: An argument that makes a record about 300 bytes.
_FILL = "x" * 120


def run(programs: Programs, rounds: int) -> Iterator[Figure]:
    """Yield the rate at which ``read(timeout=0)`` turns a full ring into ``ExecEvent``."""
    rates: Dict[str, List[float]] = {"captures nothing": [], "captures the default": []}
    sizes: Dict[str, float] = {}
    for _ in range(rounds):
        for name, parts in zip(rates, ((), DEFAULT_CAPTURE)):
            rate, sizes[name] = full_ring(programs, parts)
            rates[name].append(rate)
    for name, values in rates.items():
        what = f"events a second out of a full ring, {name}, {sizes[name]:.0f} bytes each"
        yield Figure(what, values, "events/s", 250_000, True)


def full_ring(programs: Programs, capture: Tuple[Part, ...]) -> Tuple[float, float]:
    """Return the events read in a second of CPU time, and the bytes of a record."""
    script = f"i=0; while [ $i -lt {_EVENTS} ]; do {programs('nothing')} {_FILL}; i=$((i+1)); done"
    with ExecTracer(Filter(comms={"nothing"}), buffer_size=1 << 23, capture=capture) as tracer:
        subprocess.run(["sh", "-c", script], check=True)
        started = time.process_time()
        events = tracer.read(timeout=0)
        seconds = time.process_time() - started
        size = tracer._stream._state.position.buffer / len(events)  # type: ignore[union-attr]
    if len(events) != _EVENTS:
        raise AssertionError(f"{len(events)} of {_EVENTS} events")
    return len(events) / seconds, size
