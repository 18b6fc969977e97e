"""What a command is told and says through pipes, and its end: as :func:`subprocess.run` does it.

But for one thing: a process that outlives the command and holds its output open is waited for
no longer than ``linger``.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import select
import selectors
import subprocess
import time
from typing import IO, Any, Dict, Optional, Tuple, cast

from execwatch import arguments

#: Seconds after which a command is looked at again whose output somebody may hold open.
_LOOK = 0.05
#: Bytes that a pipe takes without making anybody wait, once it is writable: see pipe(7).
_WRITE = select.PIPE_BUF
_READ = 1 << 16
#: Reads that empty a pipe of the greatest size (1 MiB), whoever goes on writing to it.
_MOST = 16
#: Seconds for which a command may end by itself after Ctrl-C, which it got as well.
_GRACE = 0.25


def communicate(
    process: subprocess.Popen[Any], input: Any, timeout: Optional[float], linger: float
) -> Tuple[subprocess.CompletedProcess[Any], Optional[subprocess.TimeoutExpired], float]:
    """Wait for the command, and for its output.

    Args:
        process: Just started.
        input: For its standard input, text or bytes as that wants them; None: nothing.
        timeout: Seconds after which it is killed; None: never.
        linger: Seconds after its end for which its output may be held open.

    Returns:
        The outcome; that it took too long, or None; and when it ended, by :func:`time.monotonic`.

    Raises:
        UnicodeDecodeError: The output is not in the encoding that was asked for.
    """
    deadline = arguments.deadline(timeout)
    try:
        with _Pipes(process, input) as pipes:
            ended = _wait(process, pipes, deadline, linger)
            if ended is None:
                process.kill()
                process.wait()
                pipes.drain()
            output = [pipes.text(each, cut=ended is None) for each in (process.stdout, process.stderr)]
    except KeyboardInterrupt:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE)
        process.kill()
        raise
    except BaseException:
        process.kill()
        raise
    done = subprocess.CompletedProcess(process.args, process.returncode, *output)
    if ended is None:
        assert timeout is not None
        return done, subprocess.TimeoutExpired(process.args, timeout, *output), time.monotonic()
    return done, None, ended


def _wait(
    process: subprocess.Popen[Any], pipes: _Pipes, deadline: Optional[float], linger: float
) -> Optional[float]:
    """Return when the command was seen to have ended; None: the deadline came first."""
    ended: Optional[float] = None
    while pipes.open:
        # Asked before the read: what was written before the end is read after it.
        if ended is None and process.poll() is not None:
            ended = time.monotonic()
        until = deadline if ended is None else ended + linger
        left = _LOOK if until is None else max(0.0, min(_LOOK, until - time.monotonic()))
        pipes.turn(left)
        if until is not None and time.monotonic() >= until:
            if ended is None:
                break
            pipes.drain()
            return ended
    if ended is None:
        try:
            process.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            return None
        ended = time.monotonic()
    return ended


class _Pipes:
    """The pipes between this process and a command."""

    def __init__(self, process: subprocess.Popen[Any], input: Any) -> None:
        self._selector = selectors.DefaultSelector()
        self._output: Dict[IO[Any], bytearray] = {}
        self._stdin = cast(Any, process.stdin)
        self._input = memoryview(b"")
        if isinstance(input, str):
            self._input = memoryview(input.encode(self._stdin.encoding, self._stdin.errors))
        elif input is not None:
            self._input = memoryview(input).cast("B")
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                self._output[stream] = bytearray()
                self._selector.register(stream, selectors.EVENT_READ)
        if self._stdin is not None:
            if self._input:
                self._selector.register(self._stdin, selectors.EVENT_WRITE)
            else:
                self._close_input()

    def __enter__(self) -> _Pipes:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._selector.close()

    @property
    def open(self) -> bool:
        return bool(self._selector.get_map())

    def turn(self, seconds: float) -> bool:
        """Wait so long for something to be read or written, and do that; False: there was nothing."""
        ready = self._selector.select(seconds)
        for key, _ in ready:
            stream: Any = key.fileobj
            if stream is self._stdin:
                self._write()
                continue
            data = os.read(key.fd, _READ)
            self._output[stream] += data
            if not data:
                self._selector.unregister(stream)
        return bool(ready)

    def drain(self) -> None:
        """Read what is there."""
        if self._stdin is not None and self._stdin in self._selector.get_map():
            self._selector.unregister(self._stdin)
        for _ in range(_MOST):
            if not self.open or not self.turn(0):
                return

    def text(self, stream: Any, *, cut: bool) -> Any:
        """Return what was read of a stream, as the stream would have given it.

        Args:
            cut: It may end within a character.
        """
        if stream is None:
            return None
        data = bytes(self._output[stream])
        if not hasattr(stream, "encoding"):
            return data
        cut = cut or stream in self._selector.get_map()
        decoder = codecs.getincrementaldecoder(stream.encoding)(stream.errors)
        return decoder.decode(data, final=not cut).replace("\r\n", "\n").replace("\r", "\n")

    def _write(self) -> None:
        try:
            self._input = self._input[os.write(self._stdin.fileno(), self._input[:_WRITE]) :]
        except BrokenPipeError:  # it reads no more
            self._input = self._input[:0]
        if not self._input:
            self._selector.unregister(self._stdin)
            self._close_input()

    def _close_input(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._stdin.close()
