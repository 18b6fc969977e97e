"""What each captured part costs an exec, in the kernel and in the reader."""

from __future__ import annotations

import statistics
import subprocess
import time
from typing import Any, Dict, Iterator, List

from benchmarks.measure import Figure, Programs
from benchmarks.storm import kernel_time
from execwatch import ExecTracer, Filter, decoder
from execwatch.tracer import CAPTURE

_EXECS, _DECODES = 101, 50

#: The options of each row: what the others are compared with comes first.
_ROWS: Dict[str, Dict[str, Any]] = {
    "nothing": {"capture": ()},
    **{part: {"capture": (part,)} for part in CAPTURE},
    "the default": {},
    "the default and env": {"env": True},
}


def run(programs: Programs, rounds: int) -> Iterator[Figure]:
    """Yield for each part what it adds to the BPF program's time, and to the decoder's."""
    kernel: Dict[str, List[float]] = {name: [] for name in _ROWS}
    reader: Dict[str, List[float]] = {name: [] for name in _ROWS}
    for _ in range(rounds):
        for name, options in _ROWS.items():
            kernel[name].append(kernel_time(programs, **options))
            reader[name].append(decoding_time(programs, options))
    for where, times in (("BPF program", kernel), ("decoder", reader)):
        base = statistics.median(times["nothing"])
        for name in _ROWS:
            added = times[name] if name == "nothing" else [value - base for value in times[name]]
            what = "captures nothing" if name == "nothing" else f"added by {name}"
            yield Figure(f"{where}, an exec, {what}", added, "us")


def decoding_time(programs: Programs, options: Dict[str, Any]) -> float:
    """Return the microseconds that the record of an exec takes to decode."""
    with ExecTracer(Filter(comms={"nothing"}), **options) as tracer:
        for _ in range(_EXECS):
            subprocess.run([programs("nothing")], check=True)
        source = tracer._stream._source  # type: ignore[union-attr]
        data, starts, _ = source._buffer.take(source.start.buffer, True)
        clock, env = source._clock, source._env
    if len(starts) != _EXECS:
        raise AssertionError(f"{len(starts)} of {_EXECS} records")
    started = time.process_time()
    for _ in range(_DECODES):
        decoder.decode_all(data, starts, clock, env)
    return (time.process_time() - started) / (_DECODES * _EXECS) * 1e6
