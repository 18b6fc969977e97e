"""Events as lines of text: the table, and JSON. Whatever an event holds, one event is one line."""

from __future__ import annotations

import re
import time
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Callable, Union

from execwatch import render
from execwatch.events import AnyEvent, ExecEvent, FailedExecEvent

if TYPE_CHECKING:
    from execwatch.cli.screen import Line

_MS, _HALF_MS = 1_000_000, 500_000

#: An event's line, in its parts.
Row = Callable[[Union[ExecEvent, FailedExecEvent]], "Line"]


def header(*, time_of_day: bool, seconds: bool) -> Line:
    """Return the line above the table."""
    # Pids have seven digits on most machines that run for long.
    names = f"{'PCOMM':<16} {'PID':<7} {'PPID':<7} RET ARGS"
    return [("TIME     " * time_of_day + "TIME(s) " * seconds + names, "heading")]


def table_row(start_ns: int, *, time_of_day: bool, seconds: bool) -> Row:
    """Return what makes a line of the table.

    Args:
        start_ns: CLOCK_BOOTTIME at which the column of seconds is 0.
        time_of_day: With a column of the local time.
        seconds: With a column of the seconds since the start.
    """

    def row(event: Union[ExecEvent, FailedExecEvent]) -> Line:
        times = _clock(event.time_ns // 1_000_000_000) if time_of_day else ""
        if seconds:
            times += _seconds((event.boottime_ns - start_ns + _HALF_MS) // _MS)
        ppid = "?" if event.ppid is None else event.ppid
        return [
            (times, "aside"),
            (_name(event.comm), "name"),
            (f"{event.pid:<7} {ppid:<7} ", "aside"),
            (f"{event.retval:>3} ", "bad" if event.retval else ""),
            (arguments(event), ""),
        ]

    return row


def plain_row(
    start_ns: int, *, time_of_day: bool, seconds: bool
) -> Callable[[Union[ExecEvent, FailedExecEvent]], str]:
    """The same with its end, as text without parts: for files and pipes, in less time."""

    def row(event: Union[ExecEvent, FailedExecEvent]) -> str:
        times = _clock(event.time_ns // 1_000_000_000) if time_of_day else ""
        if seconds:
            times += _seconds((event.boottime_ns - start_ns + _HALF_MS) // _MS)
        ppid = event.ppid
        return "%s%s%-7d %-7s %3d %s\n" % (  # noqa: UP031  half the time of an f-string's formats
            times,
            _name(event.comm),
            event.pid,
            "?" if ppid is None else ppid,
            event.retval,
            arguments(event),
        )

    return row


def json_line(event: AnyEvent) -> str:
    """Return an event as JSON, as a recording has it, and everything but ASCII escaped."""
    line = _encoder()(event)
    if line.isascii() and b"\x7f" not in line:
        return line.decode("ascii")
    # What is not ASCII stands in JSON's strings alone.
    return _SPECIAL.sub(lambda found: _escape(found[0]), line.decode("utf-8"))


def arguments(event: Union[ExecEvent, FailedExecEvent]) -> str:
    """Return what was executed, quoted for a shell, on one line.

    A binary's ``argv[0]`` can say anything, so its path stands there instead; of a
    script the arguments name both the interpreter and the file. ``...`` says that
    more followed than was kept. What is in parentheses is no argument: one that
    begins with a parenthesis stands in quotes.
    """
    argv, filename = event.argv, event.filename
    if argv and argv[0] == filename and event.argv_status == "complete":  # as most are
        return render.command_line(argv)
    if event.argv_status == "unreadable" or argv is None:
        return f"{render.quote(filename or '?')} (arguments unreadable)"
    script = isinstance(event, ExecEvent) and event.interp != filename
    if filename is not None and not script and argv[:1] != (filename,):
        argv = (filename, *argv[1:])
    line = render.command_line(argv)
    return f"{line} ..." if event.argv_status == "truncated" else line


@lru_cache(maxsize=256)
def _name(comm: str) -> str:
    return f"{render.escape(comm):<16} "


@lru_cache(maxsize=8)
def _seconds(milliseconds: int) -> str:
    return f"{milliseconds / 1000:<7.3f} "


@lru_cache(maxsize=8)
def _clock(second: int) -> str:
    """Programs start many a second, and what the local time is takes a while to tell."""
    return time.strftime("%H:%M:%S ", time.localtime(second))


_SPECIAL = re.compile(r"[^\x00-\x7e]+")


def _escape(text: str) -> str:
    """As JSON has it: by units of UTF-16."""
    units = text.encode("utf-16-be")
    return "".join([f"\\u{high:02x}{low:02x}" for high, low in zip(units[::2], units[1::2])])


@cache
def _encoder() -> Callable[[AnyEvent], bytes]:
    from execwatch.formats import ndjson

    return ndjson.encoder()
