"""Work that a thread does, beside what its caller does next."""

from __future__ import annotations

import contextlib
import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Callable, Optional

#: Held while somebody works here. A fork waits for it: its child would find that half done, for good. It
#: may be the worker that forks (in a finalizer).
_working = threading.RLock()
#: Seconds that a fork waits: a disk that hangs must not hold it up for ever.
_PATIENCE = 1.0


def _before_fork() -> None:
    _working.acquire(timeout=_PATIENCE)


def _in_parent() -> None:
    # Not ours after a Ctrl-C (which is lost in such a hook), or out of patience.
    with contextlib.suppress(RuntimeError):
        _working.release()


def _in_child() -> None:
    global _working
    _working = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_in_parent, after_in_child=_in_child)


class Beside:
    """A thread that does one thing at a time: from the first on, until this is closed or freed."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "execwatch")
        self._doing: Optional[Future[None]] = None

    def do(self, work: Callable[[], None]) -> None:
        """Wait as :meth:`wait` does, then have this done.

        Where there can be no thread, because there are too many or the interpreter ends, it is
        done here and now.
        """
        self.wait()
        try:
            self._doing = self._thread.submit(_do, work)
        except RuntimeError:
            self._thread.shutdown(cancel_futures=True)
            _do(work)

    def wait(self) -> None:
        """Wait until everything is done, and raise what it raised."""
        if self._doing is not None:
            wait([self._doing])  # Ctrl-C here loses nothing
            doing, self._doing = self._doing, None
            doing.result()

    def close(self) -> None:
        """Wait until everything is done, whatever it raises, and end the thread."""
        self._thread.shutdown()


def _do(work: Callable[[], None]) -> None:
    with _working:
        work()
