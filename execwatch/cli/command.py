"""Running a command while a recorder records it."""

from __future__ import annotations

import argparse
import contextlib
import shutil
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Iterator, List, Optional

from execwatch import cli, render
from execwatch.cli import options
from execwatch.cli.signals import Signals

if TYPE_CHECKING:
    from execwatch.recording.recorder import Recorder

EXIT_STATUS = """\
exit status:
  the command's own; 128+N where signal N ended it
  124  it took longer than --timeout       125  execwatch itself failed
  126  the command can't be executed       127  there is no such command
"""

_TIMED_OUT, _NOT_EXECUTABLE, _NOT_FOUND = 124, 126, 127

#: A terminal sends these to the command as well; it decides what becomes of them.
_SHARED = (signal.SIGINT, signal.SIGQUIT)
#: These it is sent by whoever wants to end it.
_PASSED_ON = (signal.SIGTERM, signal.SIGHUP)

#: Seconds between two looks at whether all have ended.
_LOOK = 0.01


def linger_option(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--linger",
        metavar="SECONDS",
        type=options.seconds,
        default=1.0,
        help="how long to wait for processes that outlive the command (1)",
    )


@contextlib.contextmanager
def recording(recorder: Recorder) -> Iterator[Recorder]:
    """Record; what an argument names wrongly is wrong usage.

    Raises:
        cli.Failure: For that.
    """
    try:
        recorder.__enter__()
    except ValueError as exc:
        raise cli.Failure(f"-o: {str(exc).removeprefix('path: ')}", cli.USAGE) from None
    with contextlib.ExitStack() as stack:
        stack.push(recorder)
        yield recorder


def execute(words: List[str], recorder: Recorder, *, linger: float, timeout: Optional[float] = None) -> int:
    """Run the command, wait for it, then for its descendants, and return the exit status.

    Args:
        words: The command, and its arguments. Its standard streams, all other descriptors and
            its environment are this process's.
        recorder: What records it.
        linger: Seconds to wait for descendants.
        timeout: Seconds after which the command is killed.

    Raises:
        cli.Failure: It can't be started.
    """
    running: List[subprocess.Popen[bytes]] = []

    def take(number: int) -> None:
        if number in _PASSED_ON:
            for process in running:
                process.send_signal(number)

    with Signals((*_SHARED, *_PASSED_ON), take) as signals:
        process = _start(words)
        running.append(process)
        if signals.last in _PASSED_ON:  # it came before there was anybody to pass it on to
            process.send_signal(signals.last)
        timed_out = not _ends(process, signals, timeout)
        if timed_out:
            process.kill()
            cli.say(f"{render.quote(words[0])} was killed after {timeout:g} s")
        code = process.wait()
        signals.last = None
        _wait_for_all(recorder, linger, signals)
    if timed_out:
        return _TIMED_OUT
    return 128 - code if code < 0 else code


def _ends(process: subprocess.Popen[bytes], signals: Signals, timeout: Optional[float]) -> bool:
    """Wait for the command's end; False: the time is up."""
    deadline = float("inf") if timeout is None else time.monotonic() + timeout
    while process.poll() is None:
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        signals.wait(left)
    return True


def _start(words: List[str]) -> subprocess.Popen[bytes]:
    try:
        # Where it is found is looked up here, else every attempt along PATH would be recorded.
        # Descriptors are passed on: `make` and <(...) of a shell need that.
        return subprocess.Popen(words, executable=shutil.which(words[0]), close_fds=False)
    except FileNotFoundError as exc:
        raise cli.Failure(_told(words, exc), _NOT_FOUND) from None
    except OSError as exc:
        raise cli.Failure(_told(words, exc), _NOT_EXECUTABLE) from None
    except ValueError as exc:  # a NUL in a word: from no shell
        raise cli.Failure(str(exc), cli.USAGE) from None


def _told(words: List[str], error: OSError) -> str:
    return f"{render.quote(words[0])}: {error.strerror}"


def _wait_for_all(recorder: Recorder, linger: float, signals: Signals) -> None:
    """Wait until the processes that were forked have all ended; no longer than ``linger`` or a signal.

    The counters are those of what was read, in order: a process's fork comes before its
    end, so when both are equal nobody is left who could fork another.
    """
    deadline = time.monotonic() + linger
    while signals.last is None:
        stats = recorder.stats()
        left = deadline - time.monotonic()
        if 0 < stats.fork.delivered <= stats.exit.delivered or left <= 0:
            return
        signals.wait(min(left, _LOOK))
