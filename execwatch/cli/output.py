"""Standard output, or error, for text that never ends and a reader that may go away."""

from __future__ import annotations

import io
import os
import select
from typing import Optional, TextIO


class Output:
    """Writes to a stream in whole pieces, at once.

    Args:
        stream: ``sys.stdout`` or ``sys.stderr``; None, as they are where the descriptor is
            closed: nothing is written.
    """

    def __init__(self, stream: Optional[TextIO]) -> None:
        self._stream = stream
        if isinstance(stream, io.TextIOWrapper):
            # Text of traced programs, on a terminal of whatever encoding.
            stream.reconfigure(errors="backslashreplace")
        self._poll = None if stream is None else _watch(stream)

    def write(self, text: str) -> None:
        """Write; with nothing to write, find out whether anybody would read it.

        Raises:
            BrokenPipeError: The reader has gone.
        """
        if text and self._stream is not None:
            self._stream.write(text)
            self._stream.flush()
        elif self._poll is not None and self._poll.poll(0):
            raise BrokenPipeError


def _watch(stream: TextIO) -> Optional[select.poll]:
    """What polls ready as soon as the other end of a pipe is closed."""
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):  # no real file: a test's
        return None
    if not hasattr(select, "poll"):  # Windows, where recordings can be looked at
        return None
    poll = select.poll()
    poll.register(descriptor, 0)  # errors are always told
    return poll


def discard(stream: Optional[TextIO]) -> None:
    """Have nothing left to write: the interpreter flushes at its end, and would complain."""
    try:
        if stream is not None:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
    except (OSError, ValueError):
        pass
