"""One queue between a source and the program: waiting, stopping, closing, counting.

Everything that changes when events are taken from the source is one value,
:class:`_State`, put in place by one assignment. An interrupt (Ctrl-C raises in the
middle of anything) finds the state from before or from after, never between.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, Callable, Deque, List, NamedTuple, Optional, Set, Tuple

from typing_extensions import Protocol

from execwatch.errors import StateError
from execwatch.events import AnyEvent, KindStats, LostCounts, Stats
from execwatch.source import COUNTED, NONE, Counts, Source, Tally, count
from execwatch.wake import Wake

if TYPE_CHECKING:
    from execwatch.processes import ProcessTable

FORKED = "this tracer belongs to the process that forked; make one here"


_ENDED = "the tracer is {}, processes can't be followed any more: ask for them while it runs"

_TWO = "another thread or task is reading from this tracer: one at a time, or a tracer for each"


#: So many events in one batch say that there are more.
_MANY = 1000


class Consumer(Protocol):
    """An iteration; it has not ended as long as it lives and says so."""

    finished: bool


class _Owner:
    """Who is running: a thread, and in it perhaps a task."""

    def __init__(self) -> None:
        self._thread = threading.current_thread()
        task = _current_task()
        self._task: Optional[Callable[[], Any]] = None if task is None else weakref.ref(task)

    def excludes(self, other: _Owner) -> bool:
        """Whether both can be running at once."""
        if self._thread is not other._thread:
            return self._thread.is_alive()
        mine, others = self._task and self._task(), other._task and other._task()
        if mine is None or others is None or mine is others:
            return False
        return not mine.done()


def _current_task() -> Any:
    asyncio = sys.modules.get("asyncio")  # without it there is no task
    if asyncio is not None:
        with contextlib.suppress(RuntimeError):  # no loop
            return asyncio.current_task()
    return None


class _State(NamedTuple):
    """Attributes:
    position: In the source.
    queue: Read and not handed over.
    history: Read and not yet told to the table of processes: what is queued, and more.
    taken, filtered: In all, by kind: became events, were left out by the source.
    undecodable: In all.
    """

    position: Any
    queue: Deque[AnyEvent]
    history: Deque[AnyEvent]
    taken: Tally = NONE
    filtered: Tally = NONE
    undecodable: int = 0


class Stream:
    """The events of one source, handed over once each.

    Args:
        source: Where they come from; closed with the stream.
        latency: Seconds that an event may wait, so that many are read at once.
    """

    def __init__(self, source: Source, latency: float) -> None:
        self._source = source
        self._latency = latency
        self._state = _State(source.start, deque(), deque())
        self._reading = threading.Lock()
        self._tracking = threading.Lock()
        self._trackers: Set[int] = set()  # threads, that hold it or wait for it
        self._tracked = False
        self._awaiting: Optional[object] = None
        self._claim: Optional[Tuple[weakref.ref[Consumer], _Owner]] = None
        self._wake = Wake(source.fileno())
        self._live = source.fileno() is not None
        self._stopped = not self._live  # nothing more will come
        self._drained = False  # and all that came has been read
        self._read_at = 0.0
        self._closing = False
        self._final: Optional[Stats] = None
        self._table: Optional[ProcessTable] = None
        self.forked: bool = False
        _streams.add(self)

    # -- Consuming ------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        return self._closing

    def claim(self, consumer: Consumer) -> None:
        """Note who iterates from now on.

        Raises:
            StateError: An iteration that has not ended goes on in another thread or task.
        """
        self.check_claim(consumer)
        self._claim = weakref.ref(consumer), _Owner()

    def check_claim(self, consumer: Optional[Consumer] = None) -> None:
        """See that nobody else iterates.

        Raises:
            StateError: An iteration that has not ended goes on in another thread or task.
        """
        if self._claim is None:
            return
        other, owner = self._claim[0](), self._claim[1]
        if other is None or other is consumer or other.finished:
            return
        if owner.excludes(_Owner()):
            raise StateError(_TWO)

    def pop(self) -> AnyEvent:
        """Hand over one event.

        Raises:
            IndexError: The queue is empty.
        """
        queue = self._state.queue
        event = queue[0]
        if self._table is not None:
            self._tell_table(event)
        try:
            queue.popleft()
            if not queue:
                self._tell()
            return event
        except BaseException:  # Ctrl-C, before the caller has it
            if not (queue and queue[0] is event):
                queue.appendleft(event)
            self._tell()
            raise

    def pop_all(self) -> List[AnyEvent]:
        """Hand over the queue."""
        queue = self._state.queue
        events = list(queue)
        if self._table is not None:
            self._tell_table(None)
        try:
            queue.clear()
            self._tell()
            return events
        except BaseException:  # Ctrl-C, before the caller has them
            if not queue:
                queue.extend(events)
            self._tell()
            raise

    def fill(
        self, deadline: Optional[float], *, barrier: bool = False, waiter: Optional[object] = None
    ) -> bool:
        """Wait until the queue holds something.

        Args:
            deadline: By :func:`time.monotonic`; None: for ever.
            barrier: Take in all that was complete before the call.
            waiter: Who is waiting, where that is a task.

        Returns:
            False at the deadline and at the end of the stream.

        Raises:
            StateError: Somebody else is reading.
        """
        if self._reading.locked() or self._awaiting is not waiter:
            raise StateError(_TWO)
        try:
            # Entered in one step, as far as an interrupt can see. It blocks only
            # where two threads passed the check above in the same instant.
            with self._reading:
                return not self._closing and self._fill(deadline, barrier)
        finally:
            if self._closing:
                self._free()

    def _fill(self, deadline: Optional[float], barrier: bool) -> bool:
        if not barrier and not self._stopped:
            pause = self.pause(deadline)
            if pause > 0:
                self._wake.wait_stop(pause)
        while True:
            # Asked before the read: what came before the stop is read after it.
            stopped = self._stopped
            late = deadline is not None and time.monotonic() >= deadline
            moved = self._take(barrier or (stopped and self._live))
            ended = stopped and not moved
            if self._state.queue or ended or late or self._closing:
                self._drained = ended
                self._tell()
                return bool(self._state.queue) and not self._closing
            self._wait(deadline)

    def _take(self, barrier: bool) -> bool:
        """Take in what there is; return whether the position moved."""
        state = self._state
        if self._table is not None and not state.queue:
            self._tell_table(None)
        batch = self._source.read(state.position, barrier)
        # A gap that no record follows is told when the reader has caught up.
        gaps = self._source.gaps(batch.position) if barrier or not batch.events else None
        if batch.position == state.position and not (gaps and gaps.position != state.position):
            self._source.release(state.position)  # again: Ctrl-C may have come before the last one
            return False
        queue = state.queue
        if batch.events or (gaps and gaps.events):
            queue = deque(queue)
            queue.extend(batch.events)
            queue.extend(gaps.events if gaps else ())
        history = state.history
        if self._tracked and (batch.history or (gaps and gaps.history)):
            history = deque((*history, *batch.history, *(gaps.history if gaps else ())))
        self._state = _State(
            gaps.position if gaps else batch.position,
            queue,
            history,
            _add(state.taken, count(batch.events)),
            _add(state.filtered, batch.filtered),
            state.undecodable + batch.undecodable,
        )
        self._read_at = time.monotonic() if len(batch.events) < _MANY else 0.0
        self._source.release(self._state.position)
        return True

    def _wait(self, deadline: Optional[float]) -> None:
        """Wait for the first event and then for others to join it; or for stop."""
        self._tell()
        if not self._stopped and self._wake.wait(_remaining(deadline)):
            self._wake.wait_stop(self.latency(deadline))

    # -- The table of processes ---------------------------------------------------------

    def track(self, table: ProcessTable) -> ProcessTable:
        """Keep this table up to each event as it is handed over; others may read meanwhile.

        Args:
            table: An empty one.

        Returns:
            The table, or that which is kept already.

        Raises:
            StateError: It is stopped or closed; or this thread is in here, interrupted by a signal.
        """
        if self._table is not None:
            return self._table
        thread = threading.get_ident()
        if thread in self._trackers:
            raise StateError("the table of processes is being made: not from a signal handler")
        try:
            self._trackers.add(thread)
            with self._tracking:
                if self._table is None:
                    self._track(table)
                # Not "or": an empty table is false.
                return table if self._table is None else self._table
        finally:
            self._trackers.discard(thread)
            if self._closing:
                self._free()

    def _track(self, table: ProcessTable) -> None:
        self._check_open()
        # Of an attempt that failed: it has a gap.
        self._state.history.clear()
        self._tracked = True
        try:
            begun_ns = self._boottime()
            processes = list(self._source.track())
            done_ns = self._boottime()
            for process in processes:
                # What was there at the beginning was looked at then.
                was_there = (process.start_boottime_ns or 0) < begun_ns
                table.add(process, begun_ns if was_there else done_ns)
            self._check_open()
            # Not before: until now this thread has fed it, from now on the reader does.
            self._table = table
        except BaseException:
            if self._table is None:  # else the interrupt came behind it all
                self._tracked = False
                self._state.history.clear()
                table.clear()
            raise

    def _check_open(self) -> None:
        if self._closing or (self._stopped and self._live):
            raise StateError(_ENDED.format("closed" if self._closing else "stopped"))

    def _boottime(self) -> int:
        # Without a kernel there are no processes to tell of, and perhaps there is no such clock.
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME) if self._live else 0

    def _tell_table(self, last: Optional[AnyEvent]) -> None:
        """Feed the table up to this event; None: with all that was read."""
        assert self._table is not None
        history = self._state.history
        while history:
            event = history[0]
            self._table.feed(event)
            history.popleft()
            if event is last:
                return

    def ended(self) -> bool:
        """Whether nothing will come any more.

        Raises:
            StateError: This is a forked child.
        """
        if self.forked:
            raise StateError(FORKED)
        return self._closing or (self._drained and not self._state.queue)

    # -- Waiting elsewhere -----------------------------------------------------------

    def fileno(self) -> int:
        """Return the descriptor that is readable while there is something, or the end."""
        fd = self._wake.export()
        self._tell()
        return fd

    def _tell(self) -> None:
        self._wake.tell(bool(self._state.queue) or self._stopped)

    def pause(self, deadline: Optional[float]) -> float:
        """Return how many seconds to let events gather after the last read.

        Else a reader that is done with one batch finds a handful, and then another: it
        would never sleep. After a large batch there is none.
        """
        since = time.monotonic() - self._read_at
        return max(0.0, self.latency(deadline) - since)

    def latency(self, deadline: Optional[float]) -> float:
        """Return how many seconds an event that has just come may wait, so that others join it."""
        remaining = _remaining(deadline)
        return self._latency if remaining is None else min(self._latency, remaining)

    def start_awaiting(self, waiter: object) -> None:
        """Reserve the stream for a task.

        Raises:
            StateError: Somebody else is reading.
        """
        if self._awaiting is not None or self._reading.locked():
            raise StateError(_TWO)
        self._awaiting = waiter

    def end_awaiting(self) -> None:
        self._awaiting = None
        if self._closing:
            self._free()

    # -- Ending -----------------------------------------------------------------------

    def stop(self) -> None:
        """Let nothing more in and wake the reader. From anywhere; takes no lock."""
        self._source.detach()
        self._stopped = True
        self._wake.stop()

    def close(self) -> None:
        """Stop, discard, free; a reader in another thread frees when it leaves."""
        self.stop()
        self._closing = True
        self._free()

    def _free(self) -> None:
        # Somebody is reading or making the table: they come here when they leave. A task that awaits
        # is not inside anything that is freed, but its loop watches the descriptor.
        if self._reading.locked() or self._tracking.locked():
            return
        if self._awaiting is not None or self._final is not None:
            return
        with self._reading:
            if self._final is None:
                self._source.close()
                self._final = self._stats()
                self._state.queue.clear()
                self._wake.close()

    def close_in_child(self) -> None:
        """After fork(2): close what the child inherited. The parent's goes on."""
        self.forked = True
        if self._final is None:
            self._final = Stats()
            self._closing = True
            self._source.close()
            self._wake.close()
            self._state.queue.clear()

    # -- Counting -----------------------------------------------------------------------

    def stats(self) -> Stats:
        return self._final if self._final is not None else self._stats()

    def _stats(self) -> Stats:
        # The state first: the kernel's counters, read later, can only be ahead of it.
        state = self._state
        waiting = count(tuple(state.queue))
        counts = self._source.counts()
        return Stats(
            **{name: self._kind_stats(kind, state, waiting, counts) for kind, name in COUNTED.items()},
            argv_truncated=counts.argv_truncated,
            argv_unreadable=counts.argv_unreadable,
            subtree_full=counts.subtree_full,
        )

    def _kind_stats(self, kind: str, state: _State, waiting: Tally, counts: Counts) -> KindStats:
        kernel = counts.kinds[kind]
        queued = waiting.get(kind, 0)
        taken, filtered = state.taken.get(kind, 0), state.filtered.get(kind, 0)
        # A record that was not understood has no kind; execs are always there.
        undecodable = state.undecodable if kind == "exec" else 0
        pending = kernel.submitted - taken - filtered - undecodable + queued
        closed = pending if self._closing else 0
        return KindStats(
            seen=kernel.seen,
            delivered=taken - queued,
            filtered=kernel.filtered + filtered,
            pending=pending - closed,
            lost_by_reason=LostCounts(
                buffer_full=kernel.buffer_full,
                skipped=kernel.skipped,
                undecodable=undecodable,
                closed=closed,
            ),
        )


def _add(total: Tally, more: Tally) -> Tally:
    if not more:
        return total
    return {kind: total.get(kind, 0) + more.get(kind, 0) for kind in {**total, **more}}


def _remaining(deadline: Optional[float]) -> Optional[float]:
    return None if deadline is None else max(0.0, deadline - time.monotonic())


_streams: weakref.WeakSet[Stream] = weakref.WeakSet()


def _close_in_child() -> None:
    for stream in list(_streams):
        stream.close_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)
