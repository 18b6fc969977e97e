"""For tests of programs that use execwatch: events out of nothing, and a tracer without a kernel.

::

    def test_alarm():
        with fake_tracer([exec_event(argv=("/bin/sh", "-i"))]) as tracer:
            assert list(alarms(tracer)) == [...]
"""

from __future__ import annotations

import itertools
from typing import Any, Dict, Iterable, Optional

from execwatch.events import (
    AnyEvent,
    Event,
    ExecEvent,
    ExitEvent,
    FailedExecEvent,
    ForkEvent,
    LostEvents,
    Namespaces,
)
from execwatch.filters import Filter
from execwatch.recording import replay
from execwatch.tracer import ExecTracer

_BOOT_ID = "5e1f7e57c0de4a11b0075e1f7e57c0de"
_BOOT_NS = 1_700_000_000_000_000_000
_START_NS = 60_000_000_000
_TICK_NS = 10_000_000

_numbers = itertools.count(1)


def exec_event(**fields: Any) -> ExecEvent:
    """Return an :class:`~execwatch.ExecEvent`, true to life in all that ``fields`` don't set.

    Later calls give later times and higher pids; ``comm``, ``filename``, ``argc``
    and the keys follow from ``argv``, ``pid`` and ``ppid`` where these are given.
    """
    process = _process(fields)
    argv = tuple(fields.pop("argv", ("/bin/true",)))
    filename = fields.pop("filename", argv[0] if argv else "/bin/true")
    values = {
        **process,
        "tid": process["pid"],
        "comm": _comm(filename or ""),
        "argv": argv,
        "argv_status": "complete",
        "argc": len(argv),
        "filename": filename,
        "interp": filename,
    }
    return ExecEvent(**{**values, **fields})


def _process(fields: Dict[str, Any]) -> Dict[str, Any]:
    """What every event of a process has; takes what it uses out of ``fields``."""
    number = next(_numbers)
    pid = fields.pop("pid", 1000 + number)
    ppid = fields.pop("ppid", 1000)
    start = fields.pop("start_boottime_ns", _START_NS + number * _TICK_NS)
    boottime = fields.pop("boottime_ns", (start or _START_NS) + 500_000)
    return {
        "time_ns": _BOOT_NS + boottime,
        "boottime_ns": boottime,
        "cpu": 0,
        "pid": pid,
        "comm": "bash",
        "process_key": f"{_BOOT_ID}-{pid}-{(start or 0) // _TICK_NS}",
        "host_pid": pid,
        "ppid": ppid,
        "parent_comm": "bash",
        "parent_key": None if ppid is None else f"{_BOOT_ID}-{ppid}-{_START_NS // _TICK_NS}",
        "uid": 1000,
        "gid": 1000,
        "start_boottime_ns": start,
        "cgroup_id": 4321,
        "namespaces": Namespaces(mnt=4026531841),
    }


def failed_exec_event(**fields: Any) -> FailedExecEvent:
    """Return a :class:`~execwatch.FailedExecEvent`: a name that is not there, but for ``fields``."""
    process = _process(fields)
    argv = fields.pop("argv", ("/bin/nothing",))
    values = {
        "tid": process["pid"],
        "argv": argv,
        "argv_status": "unreadable" if argv is None else "complete",
        "filename": argv[0] if argv else None,
        "retval": -2,
    }
    return FailedExecEvent(**{**process, **values, **fields})


def fork_event(**fields: Any) -> ForkEvent:
    """Return a :class:`~execwatch.ForkEvent`, true to life in all that ``fields`` don't set."""
    return ForkEvent(**{**_process(fields), **fields})


def exit_event(**fields: Any) -> ExitEvent:
    """Return a :class:`~execwatch.ExitEvent`: exit code 0 after a moment, but for ``fields``."""
    process = _process(fields)
    values = {
        "exit_code": None if fields.get("signal") else 0,
        "exec_boottime_ns": process["start_boottime_ns"],
    }
    return ExitEvent(**{**process, **values, **fields})


def _comm(filename: str) -> str:
    """The kernel's name for it: the last part, cut to 15 bytes."""
    name = filename.rpartition("/")[2].encode("utf-8", "surrogateescape")
    return name[:15].decode("utf-8", "surrogateescape")


def lost_events(**fields: Any) -> LostEvents:
    """Return a :class:`~execwatch.LostEvents`: one exec, for want of room, but for ``fields``."""
    boottime = fields.pop("boottime_ns", _START_NS + next(_numbers) * _TICK_NS)
    values = {
        "time_ns": _BOOT_NS + boottime,
        "boottime_ns": boottime,
        "cpu": 0,
        "count": 1,
        "reason": "buffer_full",
        "of": "exec",
    }
    return LostEvents(**{**values, **fields})


def fake_tracer(events: Iterable[AnyEvent], filter: Optional[Filter] = None) -> ExecTracer[Event]:
    """Return a tracer that hands over these events, then ends: :func:`execwatch.replay`."""
    return replay(events, filter)
