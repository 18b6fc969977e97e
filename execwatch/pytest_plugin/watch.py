"""The tracer behind the tests: what was executed since when, and out of what.

There is no thread, and so :func:`execwatch.record` is not used, which has one: it would live inside
the process under test, where ``os.fork()`` warns of it (Python 3.12), and where a test meets it that
replaces ``os.read`` or looks for threads left behind. Instead the kernel's buffer, large enough for ten
thousand programs, is read when something is asked and at the edges of each test; then the events of
the test before are dropped.
"""

from __future__ import annotations

import threading
from collections import Counter
from os import getpid as _getpid  # a test may put something else in its place
from typing import Any, Dict, List, NamedTuple, Optional, Tuple, Union

import attrs

from execwatch import render
from execwatch.events import AnyEvent, Event, ExecEvent, ExitEvent, ForkEvent, LostEvents
from execwatch.filters import Filter
from execwatch.recording import origin
from execwatch.recording.values import Recording
from execwatch.tracer import ExecTracer

#: Bytes. A process takes about 1,200 of them: its fork, its exec, its exit.
_BUFFER = 16 * 1024 * 1024

#: Links of a chain. Without a limit a process that executes itself again and again makes an endless one.
_DEEPEST = 50


@attrs.frozen(eq=False)
class Link:
    """A program that started, or a process that was forked; and out of what.

    Attributes:
        event: Its start; None where that was not seen.
        text: What it is, where there is no event.
        parent: What started it, as it was at that moment; None where nobody knows.
        depth: How many links follow.
    """

    event: Union[ExecEvent, ForkEvent, None]
    text: str = ""
    parent: Optional[Link] = None
    depth: int = 0


class Kinship:
    """Who started whom, out of the events in their order. Of processes that ended nothing is kept.

    Args:
        pid: Of the test process.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._root = Link(None, f"the test process ({pid})")
        self._links: Dict[str, Link] = {}

    def take(self, event: AnyEvent) -> Optional[Link]:
        """Take in an event; return what it tells of a program that started."""
        if isinstance(event, ExitEvent):
            self._links.pop(event.process_key, None)
        elif isinstance(event, (ExecEvent, ForkEvent)):
            link = self._links[event.process_key] = self._link(event)
            return link
        return None

    def _link(self, event: Union[ExecEvent, ForkEvent]) -> Link:
        before = self._links.get(event.process_key)
        if before is None:
            parent = self._parent(event)
        elif isinstance(before.event, ForkEvent) and before.parent:
            parent = before.parent
        else:  # a program that made place for the next one, such as env
            parent = before
        if parent.depth + 1 >= _DEEPEST:
            parent = Link(None, "...", self._root, 1)
        return Link(event, parent=parent, depth=parent.depth + 1)

    def _parent(self, event: Union[ExecEvent, ForkEvent]) -> Link:
        known = self._links.get(event.parent_key or "")
        if known is not None:
            return known
        if event.ppid == self._pid:
            return self._root
        return Link(None, f"{render.escape(event.parent_comm or '?')} ({event.ppid}), which ran before")


class Window(NamedTuple):
    """What happened from some moment on.

    Attributes:
        events: All of it.
        started: The programs that started.
        unseen: How many events are missing that may be of programs.
        header: For a recording.
    """

    events: Tuple[AnyEvent, ...]
    started: Tuple[Tuple[ExecEvent, Link], ...]
    unseen: int
    header: Any

    def recording(self) -> Recording:
        """Return it as a recording."""
        return Recording(self.events, complete=False, header=self.header)


class Mark(NamedTuple):
    """A moment.

    Attributes:
        position: How many events of the test there were.
        unfollowed: How many processes the kernel had no room to follow.
    """

    position: int
    unfollowed: int


class Watch:
    """A tracer of this process's descendants, that has started.

    Raises:
        ExecwatchError: As of :meth:`ExecTracer.start <execwatch.ExecTracer.start>`.
    """

    def __init__(self) -> None:
        self._pid = _getpid()
        filter = Filter(descendants_of=self._pid)
        options: Dict[str, Any] = {"forks": True, "exits": True, "lost": True, "buffer_size": _BUFFER}
        self._tracer: ExecTracer[Event] = ExecTracer(filter, **options)
        self._header = origin.here(filter, options)
        self._kinship = Kinship(self._pid)
        self._seen: List[Tuple[AnyEvent, Optional[Link]]] = []
        self._reading = threading.Lock()  # a test may ask in several threads
        self._tracer.start()
        self._begin = self.mark()

    @property
    def mine(self) -> bool:
        """Whether this is the process that traces, not one that a test forked."""
        return _getpid() == self._pid

    def mark(self) -> Mark:
        """Return this moment."""
        self._read()
        return Mark(len(self._seen), self._tracer.stats().subtree_full)

    def since(self, mark: Mark) -> Window:
        """Return what happened since: all that was complete before the call."""
        self._read()
        seen = self._seen[mark.position :]
        events = tuple(event for event, _ in seen)
        started = tuple((event, link) for event, link in seen if isinstance(event, ExecEvent) and link)
        unfollowed = self._tracer.stats().subtree_full - mark.unfollowed
        return Window(events, started, unfollowed + sum(map(_unseen, events)), self._header)

    def forget(self) -> None:
        """Drop what was seen so far; marks from before mean nothing then."""
        self._read()
        self._seen.clear()
        self._begin = self.mark()

    def counts(self) -> Dict[str, Any]:
        """Return what the summary needs of all that was seen, as JSON types."""
        window = self.since(self._begin)
        programs = Counter(render.escape(event.comm) for event, _ in window.started)
        return {"programs": dict(programs), "unseen": window.unseen}

    def close(self) -> None:
        """End tracing."""
        self._tracer.close()

    def _read(self) -> None:
        with self._reading:
            for event in self._tracer.read(timeout=0):
                self._seen.append((event, self._kinship.take(event)))  # type: ignore[arg-type]


def _unseen(event: AnyEvent) -> int:
    """How many programs may be missing here."""
    if not isinstance(event, LostEvents):
        return 0
    # A fork that the kernel skipped: nobody follows the child.
    hides = event.of == "exec" or (event.of == "fork" and event.reason == "skipped")
    return event.count if hides else 0
