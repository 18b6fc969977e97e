"""Events a second, on one core, out of a full ring."""

from __future__ import annotations

import subprocess
import time
from typing import Iterator

from benchmarks.measure import Figure, Programs
from execwatch import ExecTracer, Filter

_EVENTS = 10_007
#: An argument that makes a record about 300 bytes.
_FILL = "x" * 120


def run(programs: Programs, rounds: int) -> Iterator[Figure]:
    """Yield the rate at which ``read(timeout=0)`` turns a full ring into ``ExecEvent``."""
    script = f"i=0; while [ $i -lt {_EVENTS} ]; do {programs('nothing')} {_FILL}; i=$((i+1)); done"
    rates, size = [], 0.0
    for _ in range(rounds):
        with ExecTracer(Filter(comms={"nothing"}), buffer_size=1 << 23) as tracer:
            subprocess.run(["sh", "-c", script], check=True)
            started = time.process_time()
            events = tracer.read(timeout=0)
            rates.append(len(events) / (time.process_time() - started))
            size = tracer._stream._state.position.buffer / len(events)  # type: ignore[union-attr]
            if len(events) != _EVENTS:
                raise AssertionError(f"{len(events)} of {_EVENTS} events")
    yield Figure(f"events decoded a second, records of {size:.0f} bytes", rates, "events/s", 200_000, True)
