"""Programs that trace, run as a user runs them, and programs for them to see."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from typing import Any, Iterator, NamedTuple

#: Seconds within which anything here is done, on an emulated machine too.
PATIENCE = 60


class Done(NamedTuple):
    status: int
    output: bytes
    errors: str


class Traced:
    """A running program that traces.

    Args:
        command: Its words.
        options: Of :class:`subprocess.Popen`.
    """

    def __init__(self, *command: str, **options: Any) -> None:
        options = {"stdin": subprocess.DEVNULL, **options}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0, cwd="/", **options
        )
        # Whatever a test waits for: if it doesn't come, what waits gets the end of the file.
        self._guard = threading.Timer(PATIENCE, self.process.kill)
        self._guard.start()

    def line(self) -> bytes:
        """The next line of its output, without the newline."""
        assert self.process.stdout is not None
        line: bytes = self.process.stdout.readline()
        assert line, f"no line came: {self.end()}"
        return line.rstrip(b"\n")

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def end(self) -> Done:
        """Wait for its end."""
        output, errors = self.process.communicate()
        self._guard.cancel()
        self._guard.join()
        return Done(self.process.returncode, output, errors.decode())


@contextlib.contextmanager
def traced(*command: str, **options: Any) -> Iterator[Traced]:
    """A running program that traces; ended with the block."""
    program = Traced(*command, **options)
    try:
        yield program
    finally:
        if program.process.poll() is None:
            program.process.kill()
        program.process.wait()
        for pipe in (program.process.stdin, program.process.stdout, program.process.stderr):
            if pipe is not None:
                pipe.close()
        program._guard.cancel()
        program._guard.join()


def python(*words: str) -> tuple[str, ...]:
    """The command that runs this interpreter, with what this one imports."""
    return (sys.executable, *words)


def execwatch(*options: str) -> tuple[str, ...]:
    return python("-m", "execwatch", *options)


def execute(*argv: bytes | str, path: str = "/bin/true") -> int:
    """Execute a program with exactly this argv; return its pid."""
    pid = os.posix_spawn(path, argv, {})
    os.waitpid(pid, 0)
    return pid


@contextlib.contextmanager
def again_and_again(*argv: str, path: str = "/bin/true") -> Iterator[None]:
    """Execute a program all the time, for who can't tell when it is ready."""
    stop = threading.Event()

    def repeat() -> None:
        while not stop.wait(0.01):
            execute(*argv, path=path)

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
