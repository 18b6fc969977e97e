"""``execwatch trace``: a line for every program that starts."""

from __future__ import annotations

import argparse
import re
import signal
import sys
import time
from typing import Any, Callable, Iterable, Iterator, List, Optional

from execwatch import cli, render
from execwatch.events import AnyEvent, Event, ExecEvent, LostEvents, Stats
from execwatch.filters import Filter
from execwatch.tracer import ExecTracer

EXAMPLES = """\
examples:
  sudo execwatch                       all programs, until Ctrl-C
  sudo execwatch -T -u www-data        with the time of day; one user's
  sudo execwatch -n '^(ba)?sh$'        whose name matches
  sudo execwatch -l 'curl .*\\.sh'      whose arguments match
  sudo execwatch -P $$                 started by this shell
  sudo execwatch --duration 10 --json  ten seconds, one JSON object a line
"""

#: How long an idle tracer doesn't notice that nobody reads its output any more.
_LOOK_AROUND = 1.0


def configure(parser: argparse.ArgumentParser) -> None:
    show = parser.add_argument_group("what to show")
    show.add_argument("-T", "--time", action="store_true", help="a column with the time of day (HH:MM:SS)")
    show.add_argument(
        "-t", "--timestamp", action="store_true", help="a column with seconds since the start (the default)"
    )
    show.add_argument("--json", action="store_true", help="one JSON object a line, with all that is known")
    choose = parser.add_argument_group("which programs")
    choose.add_argument("-u", "--uid", metavar="USER", type=_user, help="only this user's (id or name)")
    choose.add_argument("-P", "--ppid", metavar="PPID", type=_pid, help="only children of this process")
    choose.add_argument(
        "-n", "--name", metavar="REGEX", type=_regex, help="only where the program's name (PCOMM) matches"
    )
    choose.add_argument(
        "-l", "--line", metavar="REGEX", type=_regex, help="only where the arguments match, joined by spaces"
    )
    end = parser.add_argument_group("when to end")
    end.add_argument("--duration", metavar="SECONDS", type=_seconds, help="after this time")
    end.add_argument("--count", metavar="N", type=_count, help="after N programs")


def run(args: argparse.Namespace) -> int:
    # In the header's place of zero: the tracer's first event comes later.
    start_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    tracer = ExecTracer(_filter(args), lost=True)
    try:
        tracer.start()
    except ValueError as exc:  # an argument names something that isn't there
        return cli.fail(str(exc), cli.USAGE)
    try:
        return _trace(tracer, args, start_ns)
    finally:
        tracer.close()


def _trace(tracer: ExecTracer[Event], args: argparse.Namespace, start_ns: int) -> int:
    interrupted = _stop_on_interrupt(tracer)
    output = _Output(sys.stdout)
    show = _json_lines if args.json else _Table(args, start_ns).lines
    wanted = _selection(args)
    left: int = args.count if args.count is not None else sys.maxsize
    if not args.json:
        output.write(_header(args))
    for batch in _batches(tracer, output, args.duration):
        chosen = [event for event in batch if wanted(event)] if wanted else batch
        if len(chosen) >= left:
            chosen = _first(chosen, left)
        left -= sum(event.kind == "exec" for event in chosen) if args.count is not None else 0
        output.write(show(chosen))
        if left <= 0:
            break
    _tell_lost(tracer.stats())
    return cli.INTERRUPTED if interrupted else cli.OK


# -- When to end -------------------------------------------------------------------------


def _batches(
    tracer: ExecTracer[Event], output: _Output, duration: Optional[float]
) -> Iterator[List[AnyEvent]]:
    """Every batch until the tracer is stopped or time is up, and what is buffered then."""
    deadline = None if duration is None else time.monotonic() + duration
    while True:
        timeout = _LOOK_AROUND
        if deadline is not None:
            timeout = min(timeout, max(0.0, deadline - time.monotonic()))
