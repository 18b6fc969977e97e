"""``execwatch run``: a command, and then what it executed."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
from typing import TYPE_CHECKING, Optional, TextIO

from execwatch import cli
from execwatch.cli import command, options, output, views
from execwatch.cli.screen import Screen

if TYPE_CHECKING:
    from execwatch.recording.values import Recording

USAGE = "execwatch run [OPTION...] [--] COMMAND [ARGUMENT...]"

EXAMPLES = """\
The command's input and output are left alone. What it executed is printed to
standard error when it has ended, also when Ctrl-C did that.

examples:
  sudo execwatch run -- ./configure              a table of what it executed
  sudo execwatch run --tree -- make -j4          what started what, and its end
  sudo execwatch run --summary -- npm install    the slowest, the failed
  sudo execwatch run -x -- ./deploy.sh           failed attempts too
  sudo execwatch run -o make.ndjson -- make      kept, for `execwatch report`
  sudo execwatch run --tree -- sudo -u "$USER" make    as yourself
"""

EXIT_STATUS = command.EXIT_STATUS


def configure(parser: argparse.ArgumentParser) -> None:
    show = views.options(parser)
    options.failed(show)
    show.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="print to this file; if it is named .ndjson, .ndjson.gz or .parquet, record to it instead, "
        "and print only what is asked for here",
    )
    end = parser.add_argument_group("when to end")
    end.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=options.seconds,
        help="kill the command (not what it has started) after so long",
    )
    command.linger_option(end)
    options.command(parser, "what to run, with its arguments")


def run(args: argparse.Namespace) -> int:
    words = options.words(args)
    if not words:
        raise cli.Failure(f"expected a command to run: {USAGE}", cli.USAGE)
    from execwatch.recording.recorder import record

    kept = _is_recording(args.output)
    with contextlib.ExitStack() as stack:
        file: Optional[TextIO] = None
        with command.recording(record(path=args.output if kept else None, failed=args.failed)) as recorder:
            if args.output is not None and not kept:
                file = stack.enter_context(_create(args.output))
            status = command.execute(words, recorder, linger=args.linger, timeout=args.timeout)
        recording = recorder.recording
        if file is not None:
            _show(args, recording, Screen(file))
        elif not kept or args.tree or args.summary or args.json:
            _show_here(args, recording)
    _tell(recording)
    return status


def _is_recording(path: Optional[str]) -> bool:
    if path is None:
        return False
    from execwatch import formats

    return path.endswith(formats.SUFFIXES)


def _create(path: str) -> TextIO:
    """Return a file for text: for its owner alone, as a recording is."""
    from execwatch.formats.base import create

    return io.TextIOWrapper(io.BufferedWriter(create(path)), encoding="utf-8")


def _show_here(args: argparse.Namespace, recording: Recording) -> None:
    """Print to standard error. Where nobody reads that, the command has still done its work."""
    screen = Screen(sys.stderr)
    if screen.terminal:
        screen.text("\n")  # the command's last line may have no end
    try:
        _show(args, recording, screen)
    except OSError:
        output.discard(sys.stderr)


def _show(args: argparse.Namespace, recording: Recording, screen: Screen) -> None:
    if args.json:
        views.json_lines(recording, screen)
    elif args.tree:
        views.tree(recording, screen)
    elif args.summary:
        views.summary(recording, screen)
    else:
        views.table(recording, screen, failed=args.failed)


def _tell(recording: Recording) -> None:
    me = os.getpid()
    views.tell_running([process for process in recording.processes if process.alive and process.pid != me])
    views.tell_lost(recording.lost)
