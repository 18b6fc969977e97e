"""Events that are there already, through the same API as live ones."""

from __future__ import annotations

from typing import Dict, Iterable, List, Optional

from execwatch.events import AnyEvent, Event
from execwatch.filters import Filter, Matcher
from execwatch.source import ListSource
from execwatch.tracer import ExecTracer


def replay(events: Iterable[AnyEvent], filter: Optional[Filter] = None) -> ExecTracer[Event]:
    """Return a tracer that hands over these events: no root, any operating system.

    It starts, iterates and closes as a live one, and ends after the last event::

        with replay(events, Filter(comms={"sh"})) as tracer:
            for event in tracer.events(): ...

    Args:
        events: In the order in which they happened.
        filter: Which of them; lost events always pass.

    Raises:
        TypeError: Something in ``events`` is no event.
    """
    if filter is not None and not isinstance(filter, Filter):
        raise TypeError(f"filter: expected a Filter or None, got {filter!r}")
    matcher = Matcher(filter) if filter else None
    passed: List[AnyEvent] = []
    every: List[AnyEvent] = []
    filtered: Dict[str, int] = {}
    for event in events:
        if not isinstance(event, Event):
            raise TypeError(f"events: expected events, got {event!r}")
        every.append(event)
        if matcher is None or matcher.matches(event):
            passed.append(event)
        else:
            filtered[event.kind] = filtered.get(event.kind, 0) + 1
    return ExecTracer[Event]._over(ListSource(passed, filtered, every))
