"""Standard output, for text that never ends and a reader that may go away."""

from __future__ import annotations

import io
import os
import select
import sys
from typing import Optional


class Output:
    """Writes to ``sys.stdout`` in whole pieces, at once."""

    def __init__(self) -> None:
        self._stream = sys.stdout
        if isinstance(self._stream, io.TextIOWrapper):
            # Text of traced programs, on a terminal of whatever encoding.
            self._stream.reconfigure(errors="backslashreplace")
        self._poll = _watch()

    def write(self, text: str) -> None:
        """Write; with nothing to write, find out whether anybody would read it.

        Raises:
            BrokenPipeError: The reader has gone.
        """
        if text:
            self._stream.write(text)
            self._stream.flush()
        elif self._poll is not None and self._poll.poll(0):
            raise BrokenPipeError


def _watch() -> Optional[select.poll]:
    """What polls ready as soon as the other end of a pipe is closed."""
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, ValueError):  # no real file: a test's
        return None
    poll = select.poll()
    poll.register(descriptor, 0)  # errors are always told
    return poll


def discard() -> None:
    """Have nothing left to write: the interpreter flushes at its end, and would complain."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
    except (OSError, ValueError):
        pass
