"""``execwatch record``: to a file, what a command executes, or the whole machine."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, List, Optional

from execwatch import cli, render
from execwatch.cli import command, options, output, screen, views
from execwatch.cli.signals import Signals
from execwatch.filters import Filter

if TYPE_CHECKING:
    from execwatch.events import Stats
    from execwatch.recording.recorder import Recorder

USAGE = "execwatch record -o FILE [OPTION...] [[--] COMMAND [ARGUMENT...]]"

EXAMPLES = """\
Without a command it records the whole machine until Ctrl-C; with one, what
that and its descendants do until they end. The file is written as it happens.
A new one is for its owner alone, since arguments can hold secrets.

examples:
  sudo execwatch record -o day.ndjson.gz              the machine, until Ctrl-C
  sudo execwatch record -o www.ndjson -u www-data     one user's programs
  sudo execwatch record -o minute.parquet --duration 60    for pandas, DuckDB
  sudo execwatch record -o make.ndjson -- make -j4    one command
  sudo execwatch report make.ndjson --tree            and look at it
"""

EXIT_STATUS = """\
exit status:
  with a command its own; 128+N where signal N ended it
  125  execwatch itself failed
  126  the command can't be executed       127  there is no such command
  without a command:
  0 done      1 failed      2 wrong usage      3 BCC is missing
  4 a privilege is missing
  128+N where signal N ended it: after Ctrl-C 130; the file is whole
"""

_ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

#: Seconds between two states of the line that tells how far it is.
_TELL = 1.0


def configure(parser: argparse.ArgumentParser) -> None:
    what = parser.add_argument_group("what to record")
    what.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        required=True,
        help="the file; its format goes by its name: .ndjson, .ndjson.gz or .parquet",
    )
    options.failed(what, "also attempts that failed; slows every system call a little")
    machine = parser.add_argument_group("without a command")
    machine.add_argument(
        "-u",
        "--uid",
        metavar="USER",
        type=options.user,
        action="append",
        help="one user's (id or name); can be given several times",
    )
    machine.add_argument(
        "--duration", metavar="SECONDS", type=options.seconds, help="end after so long (else at Ctrl-C)"
    )
    command.linger_option(parser.add_argument_group("with a command"))
    options.command(parser, "what to run, with its arguments")


def run(args: argparse.Namespace) -> int:
    from execwatch.recording.recorder import record

    words = options.words(args)
    if args.command:
        _check_alone(args, words)
    if words:
        with command.recording(record(path=args.output, failed=args.failed)) as recorder:
            status = command.execute(words, recorder, linger=args.linger)
    else:
        recorder = record(Filter(uids=args.uid), path=args.output, failed=args.failed)
        status = _watch(recorder, args.output, args.duration)
    _sum_up(recorder.stats(), args.output, bool(words))
    return status


def _check_alone(args: argparse.Namespace, words: List[str]) -> None:
    if not words:
        raise cli.Failure(f"expected a command behind --: {USAGE}", cli.USAGE)
    for option, value in (("-u", args.uid), ("--duration", args.duration)):
        if value is not None:
            raise cli.Failure(f"{option} is for recording the whole machine, without a command", cli.USAGE)


def _watch(recorder: Recorder, path: str, duration: Optional[float]) -> int:
    """Record the machine; return the exit status."""
    # Around all of it: neither a Ctrl-C at the start nor a second one leaves a file without its end.
    with Signals(_ENDS) as signals, command.recording(recorder):
        deadline = sys.float_info.max if duration is None else time.monotonic() + duration
        counter = _Counter(recorder, path)
        try:
            while signals.last is None and recorder._thread.is_alive():  # else writing has failed
                counter.show()
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                signals.wait(min(left, _TELL))
        finally:
            counter.clear()
    return cli.OK if signals.last is None else 128 + signals.last


class _Counter:
    """On a terminal, a line that tells how far it is; elsewhere nothing."""

    def __init__(self, recorder: Recorder, path: str) -> None:
        self._recorder = recorder
        self._path = path
        self._shown = screen.terminal(sys.stderr)

    def show(self) -> None:
        if not self._shown:
            return
        stats = self._recorder.stats()
        text = f"execwatch: {stats.delivered} events, {stats.lost} lost, {_size(self._path)}; Ctrl-C ends it"
        self._put(text[: (screen.columns(sys.stderr) or 80) - 1])

    def clear(self) -> None:
        self._put("")

    def _put(self, text: str) -> None:
        if not self._shown:
            return
        try:
            # From the beginning of the line, with nothing behind: the terminal shows Ctrl-C there.
            print(f"\r{text}\x1b[K", end="", file=sys.stderr, flush=True)
        except OSError:  # it was closed
            self._shown = False
            output.discard(sys.stderr)


def _sum_up(stats: Stats, path: str, of_command: bool) -> None:
    cli.say(f"{render.count(stats.delivered, 'event')} in {views.name(path)} ({_size(path)})")
    running = stats.fork.delivered - stats.exit.delivered
    if of_command and running > 0:
        cli.say(f"still running: {running} of the command's processes")
    views.tell_lost(stats.lost)


def _size(path: str) -> str:
    try:
        return views.size(os.stat(path).st_size)
    except OSError:  # while it was written somebody has moved or removed it
        return "no longer there"
