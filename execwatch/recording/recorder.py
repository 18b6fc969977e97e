"""A recorder: a thread that takes in every event while the program does something else."""

from __future__ import annotations

import contextlib
import os
import select
import threading
from os import getpid as _getpid  # a program's tests may put something else in its place
from types import TracebackType
from typing import TYPE_CHECKING, Any, Callable, List, Optional, Sequence, Tuple, Type, Union

from typing_extensions import Self, final

from execwatch.errors import StateError
from execwatch.events import AnyEvent, Stats
from execwatch.filters import Filter
from execwatch.recording.replaying import load
from execwatch.recording.values import Recording
from execwatch.tracer import ExecTracer
from execwatch.wake import Pipe

if TYPE_CHECKING:
    from execwatch.formats import Header, Writer

#: Seconds for which events gather before they are read.
_GATHER = 0.01

#: Seconds without an event after which a writer is asked to let go of what it holds back (gzip does).
_IDLE = 1.0


def record(
    filter: Optional[Filter] = None,
    *,
    path: Union[str, os.PathLike[str], None] = None,
    **options: Any,
) -> Recorder:
    """Return a recorder: it records while its ``with`` block runs::

        with record() as recorder:
            subprocess.run(["make"])
        print(recorder.recording.summary())

    Args:
        filter: What to record; None: what this process and its descendants do.
        path: Write it to this file, in the format of its name (see :meth:`Recording.save`), as
            it happens: then memory stays flat, and what was written survives a crash.
        options: Of :class:`~execwatch.ExecTracer`; here ``forks``, ``exits`` and ``lost`` are True
            unless set otherwise.

    Raises:
        ValueError, TypeError: An argument is out of range or of a wrong type.
    """
    return Recorder(filter, path=path, **options)


@final
class Recorder:
    """See :func:`record`. Used once.

    Entering raises what :meth:`ExecTracer.start` raises, and :class:`OSError` where ``path``
    can't be written. If writing fails later, recording ends, and the end of the block
    raises the :class:`OSError`.
    """

    def __init__(
        self, filter: Optional[Filter], *, path: Union[str, os.PathLike[str], None], **options: Any
    ) -> None:
        self._filter = Filter(descendants_of=_getpid()) if filter is None else filter
        self._options = {"forks": True, "exits": True, "lost": True, **options}
        self._tracer: ExecTracer[Any] = ExecTracer(self._filter, **self._options)
        self._path = None if path is None else os.fspath(path)
        self._writer: Optional[Writer] = None
        self._held_back = False
        self._header: Optional[Header] = None
        self._events: List[AnyEvent] = []
        self._news = threading.Condition()
        #: How many barriers were asked for, and how many were passed.
        self._asked = self._passed = 0
        self._error: Optional[BaseException] = None
        self._stats: Optional[Stats] = None
        self._pid = 0
        #: Rings for the thread, while there is one.
        self._bell: Optional[Pipe] = None
        #: Of the thread, of the block.
        self._done = self._over = False

    # -- Life -----------------------------------------------------------------------

    def __enter__(self) -> Self:
        from execwatch import formats
        from execwatch.recording import origin

        if self._pid:
            raise StateError("a recorder is used once: make another one")
        self._pid = _getpid()
        with contextlib.ExitStack() as undo:
            undo.callback(self._tracer.close)
            self._header = origin.here(self._filter, self._options)
            self._tracer.start()
            if self._path is not None:  # only now: it empties a file that is there already
                self._writer = formats.open_writer(self._path, self._header)
                undo.callback(self._writer.close, None)
            self._bell = Pipe()
            # A daemon: where a program forgets the block's end, it can end all the same.
            self._thread = threading.Thread(target=self._run, name="execwatch recorder", daemon=True)
            try:
                self._thread.start()
            except BaseException:  # Ctrl-C; the thread may run, and then it lets go of everything
                if self._thread.ident is not None:
                    self._end()
                raise
            undo.pop_all()
        return self

    def __exit__(
        self,
        exc_type: Optional[Type[BaseException]],
        exc: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        if _getpid() != self._pid:  # a forked child: the thread is the parent's
            self._tracer.close()
            if self._writer is not None:
                self._writer.close(None)
            self._bell = None
            return
        try:
            self._end()
        except BaseException:  # Ctrl-C: what was recorded is to be whole all the same
            self._end()
            raise
        if self._error is not None and exc is None:
            raise self._error

    def _end(self) -> None:
        self._tracer.stop()
        self._ring()
        self._thread.join()
        self._over = True
        self._bell = None

    # -- Asking ---------------------------------------------------------------------

    def snapshot(self) -> Recording:
        """Return what was recorded so far: every event that was complete before the call.

        Inside the block, without ``path``.

        Raises:
            StateError: Outside of the block, or with ``path``.
        """
        self._check_inside()
        if self._path is not None:
            raise StateError(f"what is recorded goes to {self._path!r}: load that after the block")
        return Recording(self._sync(), complete=False, header=self._header)

    @property
    def recording(self) -> Recording:
        """What was recorded, after the block; with ``path`` it is loaded from there.

        Raises:
            StateError: The block has not ended.
        """
        if not self._over:
            raise StateError("the recording is there after the with block; inside, take a snapshot()")
        if self._path is not None:
            return load(self._path)
        return Recording(self._events, stats=self._stats, complete=self._error is None, header=self._header)

    def stats(self) -> Stats:
        """Return the tracer's counters."""
        return self._tracer.stats()

    def _check_inside(self) -> None:
        if not self._pid or self._over:
            raise StateError("a recorder records inside its with block")
        if _getpid() != self._pid:
            raise StateError("this recorder belongs to the process that forked: make one here")

    def _sync(self) -> Tuple[AnyEvent, ...]:
        """Return all events that were complete before the call."""
        with self._news:
            self._asked += 1
            mine = self._asked
            self._ring()
            self._news.wait_for(lambda: self._passed >= mine or self._done)
            return tuple(self._events)

    def _wait(self, condition: Callable[[Sequence[AnyEvent]], bool], seconds: float) -> None:
        """Wait until the condition holds for the events so far, or the time is up."""
        self._sync()
        with self._news:
            self._news.wait_for(lambda: condition(self._events) or self._done, seconds)

    # -- The thread -------------------------------------------------------------------

    # It lets go of everything itself: here comes no Ctrl-C.

    def _ring(self) -> None:
        bell = self._bell
        if bell is not None:
            bell.fill()

    def _run(self) -> None:
        assert self._bell is not None
        try:
            while self._round(self._bell):
                pass
        except BaseException as exc:
            self._error = exc
        try:
            self._release()
        except BaseException as exc:
            self._error = self._error or exc
        with self._news:
            self._done = True
            self._news.notify_all()

    def _release(self) -> None:
        self._tracer.close()
        self._stats = self._tracer.stats()
        if self._writer is not None:
            self._writer.close(None if self._error else self._stats)

    def _round(self, bell: Pipe) -> bool:
        """Wait for events and take them in; False at the end."""
        poll = select.poll()
        poll.register(self._tracer.fileno(), select.POLLIN)
        poll.register(bell.read_end, select.POLLIN)
        ready = dict(poll.poll(_IDLE * 1000 if self._held_back else None))
        if not ready and self._writer is not None:
            self._writer.write(())
            self._held_back = False
            return True
        if bell.read_end not in ready:  # let others join it, but for a call
            poll.unregister(self._tracer.fileno())
            ready = dict(poll.poll(_GATHER * 1000))
        if bell.read_end in ready:
            bell.drain()
        asked = self._asked
        events = self._tracer.read(timeout=0)
        if events:
            self._take(events)
        with self._news:
            self._passed = asked
            self._news.notify_all()
        return bool(events) or not self._ended()

    def _ended(self) -> bool:
        stream = self._tracer._stream
        return stream is None or stream.ended()

    def _take(self, events: List[AnyEvent]) -> None:
        if self._writer is not None:
            self._writer.write(events)
            self._held_back = True
        else:
            self._events += events
