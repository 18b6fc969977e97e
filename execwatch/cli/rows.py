"""Events as lines of text: the table, and JSON. Whatever an event holds, one event is one line."""

from __future__ import annotations

import time
from functools import cache, lru_cache
from typing import Callable, Union

from execwatch import render
from execwatch.events import Event, ExecEvent, FailedExecEvent

#: An event's line, its newline included.
Row = Callable[[Union[ExecEvent, FailedExecEvent]], str]

_COLUMNS = "%-16s %-6s %-6s %3s %s\n"
_HEADINGS = _COLUMNS % ("PCOMM", "PID", "PPID", "RET", "ARGS")


def header(*, time_of_day: bool, seconds: bool) -> str:
    """Return the line above the table."""
    return f"{'TIME':<9}" * time_of_day + f"{'TIME(s)':<8}" * seconds + _HEADINGS


def table_row(start_ns: int, *, time_of_day: bool, seconds: bool) -> Row:
    """Return what makes a line of the table.

    Args:
        start_ns: CLOCK_BOOTTIME at which the column of seconds is 0.
        time_of_day: With a column of the local time.
        seconds: With a column of the seconds since the start.
    """
    if not time_of_day:
        return _seconds_row(start_ns) if seconds else _row

    rest = _seconds_row(start_ns) if seconds else _row
    return lambda event: _clock(event.time_ns // 1_000_000_000) + rest(event)


def json_line(event: Event) -> str:
    """Return an event as JSON; everything but ASCII is escaped there."""
    return _encoder()(event.to_dict()) + "\n"


def arguments(event: Union[ExecEvent, FailedExecEvent]) -> str:
    """Return what was executed, quoted for a shell, on one line.

    A binary's ``argv[0]`` can say anything, so its path stands there instead; of a
    script the arguments name both the interpreter and the file. ``...`` says that
    more followed than was kept. What is in parentheses is no argument: one that
    begins with a parenthesis stands in quotes.
    """
    argv, filename = event.argv, event.filename
    if event.argv_status == "unreadable" or argv is None:
        return f"{render.quote(filename or '?')} (arguments unreadable)"
    script = isinstance(event, ExecEvent) and event.interp != filename
    if filename is not None and not script and argv[:1] != (filename,):
        argv = (filename, *argv[1:])
    line = render.command_line(argv)
    return f"{line} ..." if event.argv_status == "truncated" else line


def _row(event: Union[ExecEvent, FailedExecEvent]) -> str:
    ppid = event.ppid
    return _COLUMNS % (
        render.escape(event.comm),
        event.pid,
        "?" if ppid is None else ppid,
        event.retval,
        arguments(event),
    )


def _seconds_row(start_ns: int) -> Row:
    return lambda event: "%-8.3f" % ((event.boottime_ns - start_ns) / 1e9) + _row(event)


@lru_cache(maxsize=8)
def _clock(second: int) -> str:
    """Programs start many a second, and what the local time is takes a while to tell."""
    return time.strftime("%H:%M:%S ", time.localtime(second))


@cache
def _encoder() -> Callable[[object], str]:
    import json

    return json.JSONEncoder(separators=(",", ":")).encode
