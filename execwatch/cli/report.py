"""``execwatch report``: what is in a recording."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Callable, Iterable, Iterator, Optional

from execwatch import cli, render
from execwatch.cli import options, views
from execwatch.cli.screen import Screen
from execwatch.events import AnyEvent, ExecEvent, FailedExecEvent, LostEvents

if TYPE_CHECKING:
    from execwatch.formats import Reader
    from execwatch.recording.values import Recording

EXAMPLES = """\
A recording is what `execwatch record` or `execwatch run -o` wrote; or in
Python, Recording.save. Of a file that was cut all is shown up to there.

examples:
  execwatch report make.ndjson                    the table
  execwatch report make.ndjson --tree             what started what, and its end
  execwatch report make.ndjson --summary          the slowest, the failed
  execwatch report make.ndjson -x -n '^env$'      one name, failed attempts too
  execwatch report day.parquet -T -u www-data     one user's, with the time
  execwatch report day.parquet --json | jq 'select(.kind == "exec").argv'
"""

EXIT_STATUS = """\
exit status:
  0 done      1 it can't be read      2 wrong usage
"""


def configure(parser: argparse.ArgumentParser) -> None:
    show = views.options(parser)
    options.time_columns(show, "the first event")
    options.failed(show, "in the table also attempts that failed, where they were recorded")
    choose = parser.add_argument_group("which programs; in the tree and summary, processes that executed one")
    options.choices(choose)
    parser.add_argument("file", metavar="FILE", help="the recording")


def run(args: argparse.Namespace) -> int:
    from execwatch import formats

    with formats.open_reader(args.file) as reader:
        lost = _show(args, reader)
        if not reader.complete:
            cli.say(f"{views.name(args.file)} was cut: the end is missing")
        if reader.skipped:
            skipped = render.count(reader.skipped, "event")
            cli.say(f"{skipped} left out, of kinds that only a newer execwatch knows")
        views.tell_lost(lost.count if reader.stats is None else reader.stats.lost)
    return cli.OK


def _show(args: argparse.Namespace, reader: Reader) -> _Lost:
    """Print; return what was lost on the way."""
    lost = _Lost()
    events = lost.counting(reader)
    wanted = _wanted(args)
    screen = Screen(sys.stdout)
    if args.tree or args.summary:
        recording = _processes(events, wanted, reader)
        (views.tree if args.tree else views.summary)(recording, screen)
        return lost
    if args.json:
        views.json_lines(events if wanted is None else filter(wanted, events), screen)
    else:
        columns = {"time_of_day": args.time, "seconds": args.timestamp or not args.time}
        views.table(events, screen, failed=args.failed, wanted=wanted, **columns)
    return lost


class _Lost:
    """How many events were lost, of those that passed; a file that was cut has no total."""

    def __init__(self) -> None:
        self.count = 0

    def counting(self, events: Iterable[AnyEvent]) -> Iterator[AnyEvent]:
        for event in events:
            if isinstance(event, LostEvents):
                self.count += event.count
            yield event


def _wanted(args: argparse.Namespace) -> Optional[Callable[[AnyEvent], bool]]:
    """Return what chooses programs; None: everything is wanted."""
    uid, ppid, name, line = args.uid, args.ppid, args.name, args.line
    if (uid, ppid, name, line) == (None,) * 4:
        return None

    def wanted(event: AnyEvent) -> bool:
        if not isinstance(event, (ExecEvent, FailedExecEvent)):
            return isinstance(event, LostEvents)
        if (uid is not None and event.uid != uid) or (ppid is not None and event.ppid != ppid):
            return False
        return options.named(event, name, line)

    return wanted


def _processes(
    events: Iterable[AnyEvent], wanted: Optional[Callable[[AnyEvent], bool]], reader: Reader
) -> Recording:
    """Return the recording of all that the processes did which executed a program that is wanted."""
    from execwatch.recording.values import Recording

    every = list(events)
    if wanted is not None:
        keys = {event.process_key for event in every if isinstance(event, ExecEvent) and wanted(event)}
        every = [event for event in every if isinstance(event, LostEvents) or event.process_key in keys]
    return Recording(every, stats=reader.stats, complete=reader.complete, header=reader.header)
