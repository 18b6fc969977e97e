"""Signals that end, while a recording runs."""

from __future__ import annotations

import os
import select
import signal
from types import FrameType
from typing import Any, Callable, Dict, Optional, Sequence

Take = Callable[[int], None]

#: Seconds: select(2) takes no more than some years.
_LONGEST = 1e6


class Signals:
    """Takes signals, instead of dying by them. Those that were ignored stay so.

    Args:
        numbers: Which.
        take: Called with the number of each that comes.

    Attributes:
        last: The last that came; None: none. Can be set to None.
    """

    def __init__(self, numbers: Sequence[int], take: Optional[Take] = None) -> None:
        self._numbers = numbers
        self._take = take
        self._before: Dict[int, Any] = {}
        self.last: Optional[int] = None

    def __enter__(self) -> Signals:
        self._bell, self._rope = os.pipe()
        os.set_blocking(self._bell, False)
        os.set_blocking(self._rope, False)
        # Handlers run when a system call has returned. A signal that comes just before one
        # would wait for its end: so it is the C code that writes to the pipe.
        self._wakes = signal.set_wakeup_fd(self._rope, warn_on_full_buffer=False)
        for number in self._numbers:
            # Where a shell starts a program in the background, and under nohup.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._came)
        self._before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda number, frame: None)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakes)
        os.close(self._bell)
        os.close(self._rope)

    def _came(self, number: int, frame: Optional[FrameType]) -> None:
        self.last = number
        if self._take is not None:
            self._take(number)

    def wait(self, seconds: float) -> None:
        """Wait for the next one, or the end of a child, no longer than so many seconds.

        What came since the last call counts; the call may return early.
        """
        if select.select([self._bell], [], [], min(seconds, _LONGEST))[0]:
            os.read(self._bell, 4096)
