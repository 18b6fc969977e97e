"""What was executed, for a person: the table, the tree, the summary; and for programs, JSON."""

from __future__ import annotations

import argparse
import signal
from typing import TYPE_CHECKING, Callable, Iterable, Optional, Sequence

from execwatch import cli, render
from execwatch.cli import rows
from execwatch.cli.screen import Part, Screen
from execwatch.events import AnyEvent, ExecEvent, FailedExecEvent, LostEvents

if TYPE_CHECKING:
    from execwatch.processes import Process
    from execwatch.recording.values import Recording

_TREE = "%9s %-9s %-7s "

#: So many processes a message names.
_NAMED = 5


def options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add --tree, --summary and --json; return the group, for more."""
    group = parser.add_argument_group("what to show (else the table: a line a program)")
    one = group.add_mutually_exclusive_group()
    one.add_argument("--tree", action="store_true", help="the processes below each other: duration, end")
    one.add_argument("--summary", action="store_true", help="counts; the slowest, most frequent and failed")
    one.add_argument("--json", action="store_true", help="one JSON object a line: every event, all of it")
    return group


# -- The table ------------------------------------------------------------------------------


def table(
    events: Iterable[AnyEvent],
    screen: Screen,
    *,
    failed: bool,
    time_of_day: bool = False,
    seconds: bool = True,
    wanted: Optional[Callable[[AnyEvent], bool]] = None,
) -> None:
    """Print the table; seconds count from the first event, whether that is wanted or not.

    Args:
        events: In order; those that are no programs are left out.
        wanted: Which of them to print; None: all.
        screen: Where.
        failed: Also attempts that failed.
        time_of_day, seconds: Which columns of time.
    """
    screen.line(rows.header(time_of_day=time_of_day, seconds=seconds))
    row: Optional[rows.Row] = None
    for event in events:
        if row is None:
            row = rows.table_row(event.boottime_ns, time_of_day=time_of_day, seconds=seconds)
        if wanted is not None and not wanted(event):
            continue
        if isinstance(event, ExecEvent) or (failed and isinstance(event, FailedExecEvent)):
            screen.line(row(event))
        elif isinstance(event, LostEvents):
            screen.flush()
            cli.say(f"{event.count} events lost here")
    screen.flush()


def _bad(text: str, code: object) -> Part:
    return text, "bad" if code else ""


# -- JSON -------------------------------------------------------------------------------------


def json_lines(events: Iterable[AnyEvent], screen: Screen) -> None:
    """Print every event as JSON."""
    for event in events:
        screen.text(rows.json_line(event))
    screen.flush()


# -- The tree ---------------------------------------------------------------------------------


def tree(recording: Recording, screen: Screen) -> None:
    """Print the processes below each other, with what they took and how they ended."""
    screen.line([(_TREE % ("TOOK(s)", "EXIT", "PID") + "COMMAND", "heading")])
    for branches, process in recording.tree()._drawn():
        took = "-" if process.duration_ns is None else f"{process.duration_ns / 1e9:.3f}"
        text = process.command_line
        if process.exec_boottime_ns is None and process.argv is not None:
            text, style = f"{text} (forked)", "aside"
        else:
            style = ""
        screen.line(
            [
                (f"{took:>9} ", "aside"),
                _bad(f"{_end(process):<9} ", process.exit_code or process.signal),
                (f"{process.pid:<7} {branches}", "aside"),
                (text, style),
            ]
        )
    screen.flush()


def _end(process: Process) -> str:
    if process.signal is not None:
        try:
            return signal.Signals(process.signal).name
        except ValueError:  # of real time
            return f"SIG{process.signal}"
    if process.exit_code is not None:
        return str(process.exit_code)
    return "?" if process.ended else "-"


# -- The summary ------------------------------------------------------------------------------


def summary(recording: Recording, screen: Screen) -> None:
    """Print the counts, the longest, the most frequent, the failed."""
    section = ""
    # Its text is quoted where it is made: a line is a line.
    for line in str(recording.summary()).split("\n"):
        if not line.startswith(" "):
            section = line
            screen.line([(line, "heading")])
        else:
            screen.line([(line[:13], "bad" if section.startswith("failed") else ""), (line[13:], "")])
    screen.flush()


# -- Aside ------------------------------------------------------------------------------------


def tell_lost(lost: int) -> None:
    """Say on standard error how many events are missing."""
    if lost:
        cli.say(f"{lost} events lost in all: they came faster than they were read")


def tell_running(processes: Sequence[Process]) -> None:
    """Name on standard error those that have not ended."""
    if processes:
        named = [f"{process.pid} {process.command_line}" for process in processes[:_NAMED]]
        more = len(processes) - len(named)
        rest = f"; and {more} more" if more else ""
        cli.say(f"still running: {'; '.join(named)}{rest}")


def size(count: int) -> str:
    """Return a number of bytes as people read it."""
    if count < 1000:
        return f"{count} B"
    for unit, factor in (("kB", 1e3), ("MB", 1e6)):
        if count < 999.5 * factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count / 1e9:.3g} GB"


def name(path: str) -> str:
    """Return a file's name as it can be shown."""
    return render.quote(path)
