"""A recording for the tests of what the command prints."""

from __future__ import annotations

from typing import Any, Dict, List

from execwatch import Recording
from execwatch.events import AnyEvent
from execwatch.testing import exec_event, exit_event, failed_exec_event, fork_event, lost_events

START_NS = 5_000_000_000


def process(number: int, *argv: str, parent: int = 1, seconds: float = 1.0, **end: Any) -> List[AnyEvent]:
    """A process's three events; numbers are pids less 100, and when it starts, in tenths of a second."""
    start = START_NS + number * 100_000_000
    who: Dict[str, Any] = {
        "pid": 100 + number,
        "ppid": 100 + parent,
        "start_boottime_ns": start,
        "process_key": f"boot-{100 + number}-1",
        "parent_key": f"boot-{100 + parent}-1",
    }
    return [
        fork_event(**who, boottime_ns=start),
        exec_event(**who, boottime_ns=start, argv=argv),
        exit_event(**who, boottime_ns=start + int(seconds * 1e9), **end),
    ]


def build() -> Recording:
    """A small build: make, two compilers of which one fails, an attempt that finds nothing."""
    events = [
        *process(0, "/usr/bin/make", "-j2", parent=-99, seconds=2.5, exit_code=2),
        *process(1, "/usr/bin/cc", "-c", "a b.c", parent=0, seconds=0.25),
        *process(2, "/usr/bin/cc", "-c", "b.c", parent=0, seconds=0.5, exit_code=1),
        *process(3, "/usr/libexec/cc1", "b.c", parent=2, seconds=0.4, signal=11),
        failed_exec_event(
            pid=103, comm="cc", argv=("/opt/bin/cc1", "b.c"), boottime_ns=START_NS, uid=7, ppid=102
        ),
        lost_events(count=3, boottime_ns=START_NS + 1),
    ]
    return Recording(sorted(events, key=lambda event: event.boottime_ns))
