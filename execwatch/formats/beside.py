"""Work that a thread does, beside what its caller does next."""

from __future__ import annotations

import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Callable, Optional

#: Held while a thread works. A fork waits for it: its child would find that half done, for good.
_working = threading.Lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_working.acquire, after_in_parent=_working.release, after_in_child=_working.release
    )


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
            work()

    def wait(self) -> None:
        """Wait until everything is done, and raise what it raised."""
        doing, self._doing = self._doing, None
        if doing is not None:
            doing.result()

    def close(self) -> None:
        """Wait until everything is done, whatever it raises, and end the thread."""
        self._thread.shutdown()


def _do(work: Callable[[], None]) -> None:
    with _working:
        work()
