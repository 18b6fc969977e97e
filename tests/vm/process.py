"""Run one command for a bounded time, and end with it whatever it started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Optional


def supervise(
    command: Sequence[str],
    *,
    timeout: float,
    output: IO[bytes],
    tail: Path,
    finished: Optional[Callable[[], bool]] = None,
    echo: bool = True,
) -> Optional[int]:
    """The exit status, or `None` after `timeout` seconds. What the file `tail` gets is shown as it comes.

    `finished` tells that the work is done although the process is still there, which then has 20 seconds.
    """
    # A session of its own: the whole group can be ended without touching any process that is not ours.
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    shown = 0
    deadline = time.monotonic() + timeout
    leaving = False
    try:
        while not _exited(process) and time.monotonic() < deadline:
            shown = _show(tail, shown) if echo else 0
            if finished is not None and not leaving and finished():
                leaving = True
                deadline = min(deadline, time.monotonic() + 20)
            time.sleep(0.1)
        done = _exited(process)
    finally:
        end(process)
        if echo:
            _show(tail, shown)
    return process.returncode if done else None


def exit_when_terminated() -> None:
    """SIGTERM ends this process by an exception, so that what it supervises ends too."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


def _exited(process: subprocess.Popen[bytes]) -> bool:
    # WNOWAIT leaves it a zombie, so its number can't become a stranger's before `end` signals the group.
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def end(process: subprocess.Popen[bytes]) -> None:
    """End the process's group, gently first, and reap the process."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        deadline = time.monotonic() + 5
        while not _exited(process) and time.monotonic() < deadline:
            time.sleep(0.05)
    process.wait()


def _show(path: Path, start: int) -> int:
    try:
        with open(path, "rb") as file:
            file.seek(start)
            text = file.read()
    except FileNotFoundError:
        return start
    if text:
        sys.stdout.write(text.decode("utf-8", "replace"))
        sys.stdout.flush()
    return start + len(text)
