"""What a notebook shows of a recording and of its summary; the HTML itself is :mod:`execwatch.html`'s."""

from __future__ import annotations

from typing import TYPE_CHECKING, Iterator, List, Sequence, Tuple, Union

from execwatch import html, render
from execwatch.events import ExecEvent, FailedExecEvent, LostEvents

if TYPE_CHECKING:
    from execwatch.processes import Process
    from execwatch.recording.values import Recording, Summary

_Shown = Union[ExecEvent, FailedExecEvent, LostEvents]
_Row = Sequence[Sequence[html.Part]]


def recording(recording: Recording) -> str:
    """Return a table of the programs, the attempts that failed, and the gaps."""
    shown = [e for e in recording if isinstance(e, (ExecEvent, FailedExecEvent, LostEvents))]
    times = [event.boottime_ns for event in recording]
    start, end = (min(times), max(times)) if times else (0, 0)
    headings = ("time (s)", "pid", "parent", "program", "command")
    rows = (_row(event, start) for event in shown)
    body = html.table(headings, rows, len(shown)) if shown else ""
    return html.box(_title(recording, end - start), body)


def _title(recording: Recording, duration_ns: int) -> Iterator[html.Part]:
    yield f"{render.count(len(recording.execs), 'program')} in {duration_ns / 1e9:.3f} s", ""
    if recording.failed:
        yield f", {render.count(len(recording.failed), 'failed attempt')}", ""
    if recording.still_running:
        yield f", {render.count(len(recording.still_running), 'process', 'processes')} still running", ""
    if recording.lost:
        yield f", {render.count(recording.lost, 'event')} lost", "bad"
    if not recording.complete:
        yield ", not complete", "bad"


def _row(event: _Shown, start_ns: int) -> _Row:
    time = [(f"{(event.boottime_ns - start_ns) / 1e9:.3f}", "aside")]
    if isinstance(event, LostEvents):
        gap = f"{event.count} of {event.of} lost here: {event.reason}"
        return time, (), (), (), [(gap, "bad")]
    parent = "?" if event.ppid is None else str(event.ppid)
    pids = [(str(event.pid), "aside")], [(parent, "aside")]
    return (time, *pids, [(render.escape(event.comm), "")], _command(event))


def _command(event: Union[ExecEvent, FailedExecEvent]) -> List[html.Part]:
    if event.argv_status == "unreadable":
        filename = "" if event.filename is None else f"{render.quote(event.filename)} "
        parts = [(filename, ""), ("(arguments unreadable)", "aside")]
    else:
        more = " and more arguments" if event.argv_status == "truncated" else ""
        parts = [(event.command_line, ""), (more, "aside")]
    return [*parts, (f" {event.error}", "bad")] if isinstance(event, FailedExecEvent) else parts


def summary(summary: Summary) -> str:
    """Return a table a section."""
    title = str(summary).partition("\n")[0]
    return html.box([(title, "")], *_sections(summary))


def _sections(summary: Summary) -> Iterator[str]:
    if summary.slowest:
        slow = [_process_row(f"{(p.duration_ns or 0) / 1e9:.3f}", "", p) for p in summary.slowest]
        yield html.table(("slowest (s)", "pid", "command"), slow, len(slow))
    if summary.most_often:
        often = [([(f"{count:,}", "")], [(render.escape(comm), "")]) for comm, count in summary.most_often]
        yield html.table(("most often", "program"), often, len(often))
    if summary.failures:
        failed = [_process_row(*_end(p), p) for p in summary.failures]
        yield html.table(("failed", "pid", "command"), failed, summary.failed_processes)


def _end(process: Process) -> Tuple[str, str]:
    return (f"signal {process.signal}" if process.signal else f"exit {process.exit_code}"), "bad"


def _process_row(first: str, style: str, process: Process) -> _Row:
    return [(first, style)], [(str(process.pid), "aside")], [(process.command_line, "")]
