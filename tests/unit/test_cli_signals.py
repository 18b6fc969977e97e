"""Waiting for a signal, for the end of a child, or for neither: what comes before the wait ends it too."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from typing import List

from execwatch.cli.signals import Signals


def test_a_signal_that_another_thread_gets_wakes_who_waits() -> None:
    """The kernel gives it to any thread; handlers run in this one, that nothing has interrupted."""
    came: List[int] = []
    slept = threading.Event()
    other = threading.Thread(target=slept.wait)
    other.start()
    # It goes on after the signal: its end would be one too.
    code = ["sh", "-c", f"read line; kill -15 {os.getpid()}; read line"]
    try:
        with Signals([signal.SIGTERM], came.append) as signals:
            with subprocess.Popen(code, stdin=subprocess.PIPE, bufsize=0) as sender:
                assert sender.stdin is not None
                signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
                sender.stdin.write(b"go\n")
                while not came:
                    signals.wait(1000)
            assert (signals.last, came) == (signal.SIGTERM, [signal.SIGTERM])
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
        slept.set()
        other.join()


def test_a_signal_before_the_wait_ends_it() -> None:
    with Signals([signal.SIGTERM]) as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.last == signal.SIGTERM
        signals.wait(1000)
        started = time.monotonic()
        signals.wait(0.1)
        assert time.monotonic() - started >= 0.1


def test_the_end_of_a_child_ends_the_wait() -> None:
    with Signals([]) as signals:
        child = subprocess.Popen(["true"])
        while child.poll() is None:
            signals.wait(1000)
        assert signals.last is None


def test_a_signal_is_taken_however_many_there_are() -> None:
    """More than the pipe holds that they are written to."""
    came: List[int] = []
    with Signals([signal.SIGHUP], came.append) as signals:
        for _ in range(70_000):
            signal.raise_signal(signal.SIGHUP)
        assert len(came) == 70_000
        signals.wait(1000)
