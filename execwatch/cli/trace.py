"""``execwatch trace``: a line for every program that starts."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from typing import Any, Callable, Iterator, List, Optional

from execwatch import cli
from execwatch.cli import options, rows, screen, views
from execwatch.events import Event, ExecEvent, FailedExecEvent, LostEvents
from execwatch.filters import Filter
from execwatch.tracer import CAPTURE, DEFAULT_BUFFER_SIZE, ExecTracer

EXAMPLES = """\
examples:
  sudo execwatch                       all programs, until Ctrl-C
  sudo execwatch -T -u www-data        with the time of day; one user's
  sudo execwatch -n '^(ba)?sh$'        whose name matches
  sudo execwatch -l 'curl .*\\.sh'      whose arguments match
  sudo execwatch -P $$                 started by this shell
  sudo execwatch -x -l make            failed attempts too, as along PATH
  sudo execwatch --duration 10 --json  ten seconds, one JSON object a line
"""

#: What a count counts; a gap is none.
_COUNTED = (ExecEvent.kind, FailedExecEvent.kind)

#: Seconds that a program may wait for its line: nobody sees that, and to read less often saves a seventh of
#: the processor's time.
_LATENCY = 0.03

#: Seconds until an idle tracer notices that nobody reads its output any more.
_LOOK_AROUND = 1.0


def configure(parser: argparse.ArgumentParser) -> None:
    show = parser.add_argument_group("what to show")
    options.time_columns(show, "the start")
    options.failed(show)
    show.add_argument("--json", action="store_true", help="one JSON object a line, with all that is known")
    choose = parser.add_argument_group("which programs")
    options.choices(choose)
    end = parser.add_argument_group("when to end (else at Ctrl-C)")
    end.add_argument("--duration", metavar="SECONDS", type=options.seconds, help="after so long")
    end.add_argument("--count", metavar="N", type=options.whole, help="after so many programs")


def run(args: argparse.Namespace) -> int:
    start_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    # The table shows nothing of what is captured besides.
    capture = CAPTURE if args.json else ()
    # A search along PATH, and more so a configure script, fails many times in a row.
    buffer_size = DEFAULT_BUFFER_SIZE * (4 if args.failed else 1)
    tracer = ExecTracer(
        _filter(args),
        failed=args.failed,
        lost=True,
        capture=capture,
        buffer_size=buffer_size,
        latency=_LATENCY,
    )
    try:
        tracer.start()
    except ValueError as exc:  # an option names something that is not there
        return cli.fail(str(exc), cli.USAGE)
    try:
        with _Interrupt(tracer) as interrupt:
            _trace(tracer, args, _printer(args, start_ns), interrupt)
        _sum_up(tracer)
        return cli.INTERRUPTED if interrupt.happened else cli.OK
    finally:
        tracer.close()


def _trace(
    tracer: ExecTracer[Event],
    args: argparse.Namespace,
    show: Callable[[List[Event]], None],
    interrupt: _Interrupt,
) -> None:
    wanted = _selection(args)
    left: Optional[int] = args.count
    for events in _batches(tracer, args.duration, interrupt):
        if wanted is not None:
            events = [event for event in events if wanted(event)]
        if left is not None:
            events = list(_take(events, left))
            left -= sum(event.kind in _COUNTED for event in events)
        show(events)
        if left == 0:
            return


# -- Choosing ------------------------------------------------------------------------------


def _filter(args: argparse.Namespace) -> Optional[Filter]:
    """What the kernel decides."""
    if args.uid is None and args.ppid is None:
        return None
    return Filter(uids=args.uid, ppids=args.ppid)


def _selection(args: argparse.Namespace) -> Optional[Callable[[Event], bool]]:
    """What is decided here; None: everything passes."""
    name, line = args.name, args.line
    if name is None and line is None:
        return None

    def wanted(event: Event) -> bool:
        if not isinstance(event, (ExecEvent, FailedExecEvent)):
            return True
        return options.named(event, name, line)

    return wanted


def _take(events: List[Event], count: int) -> Iterator[Event]:
    """The events up to the last that is asked for."""
    for event in events:
        if count == 0:
            return
        count -= event.kind in _COUNTED
        yield event


# -- Showing -------------------------------------------------------------------------------


def _printer(args: argparse.Namespace, start_ns: int) -> Callable[[List[Event]], None]:
    """Return what prints a batch; the header is out then."""
    out = screen.Screen(sys.stdout)
    if args.json:

        def show_json(events: List[Any]) -> None:
            views.json_lines(events, out)

        return show_json

    seconds = args.timestamp or not args.time
    out.line(rows.header(time_of_day=args.time, seconds=seconds))
    out.flush()
    columns = {"time_of_day": args.time, "seconds": seconds}
    row, plain_row = rows.table_row(start_ns, **columns), rows.plain_row(start_ns, **columns)

    def show(events: List[Any]) -> None:
        if out.plain and LostEvents not in map(type, events):  # all at once: it takes a tenth less
            out.text("".join(map(plain_row, events)))
        else:
            show_each(events)
        out.flush()

    def show_each(events: List[Any]) -> None:
        for event in events:
            if event.kind == LostEvents.kind:
                out.flush()
                cli.say(f"{event.count} events lost here")
            else:
                out.line(row(event))

    return show


def _sum_up(tracer: ExecTracer[Event]) -> None:
    lost = tracer.stats().lost
    if lost:
        cli.say(
            f"{lost} events lost in all: they came faster than they were read; -u and -P leave out "
            "what is not wanted before it costs anything"
        )


# -- Ending --------------------------------------------------------------------------------


def _batches(
    tracer: ExecTracer[Event], duration: Optional[float], interrupt: _Interrupt
) -> Iterator[List[Event]]:
    """Every batch until the time is up or Ctrl-C, and then what is still buffered.

    An empty one says that for a while nothing came.
    """
    deadline = sys.float_info.max if duration is None else time.monotonic() + duration
    while not interrupt.happened:
        left = deadline - time.monotonic()
        if left <= 0:
            break
        yield tracer.read(min(left, _LOOK_AROUND))
    tracer.stop()
    yield from iter(tracer.read, [])


class _Interrupt:
    """The first Ctrl-C stops the tracer, which hands over what is buffered; a second one ends all at once.

    Attributes:
        happened: Whether there was one.
    """

    def __init__(self, tracer: ExecTracer[Event]) -> None:
        self._tracer = tracer
        self._before: Any = None
        self.happened = False

    def __enter__(self) -> _Interrupt:
        # Where a shell starts a program in the background it has the signal ignored.
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._before = signal.signal(signal.SIGINT, self._stop)
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _stop(self, number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self.happened = True
        screen.leave_ctrl_c()
        self._tracer.stop()
