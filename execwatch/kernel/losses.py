"""Gaps: what was lost since when, told once each, where it happened."""

from __future__ import annotations

import time
from typing import Any, Dict, List, Mapping, NamedTuple, Tuple

from execwatch.events import AnyEvent, AnyProcessEvent, LostEvents

#: Seconds between two lines about lost events.
_LOG_PAUSE = 10.0

#: Lost so far, by CPU and kind.
Told = Dict[Tuple[int, str], int]


class Ledger(NamedTuple):
    """What was told: a part of a reader's position.

    Attributes:
        told: Lost to a full buffer, by CPU and kind: (cpu, kind, count).
        skipped: Skipped runs by kind.
    """

    told: Tuple[Tuple[Tuple[int, str], int], ...] = ()
    skipped: Tuple[Tuple[str, int], ...] = ()


class Losses:
    """Turns counters into :class:`~execwatch.LostEvents`, or into lines of the log.

    Args:
        as_events: Which of the two.
    """

    def __init__(self, as_events: bool) -> None:
        self._as_events = as_events
        self._silent_until = 0.0

    def before(self, event: AnyProcessEvent, lost: int, told: Told) -> List[LostEvents]:
        """Return the gap before a record that tells how many were lost on its CPU, if there is one.

        Args:
            told: Brought up to date.
        """
        where = event.cpu, event.kind
        count = lost - told.get(where, 0)
        if count <= 0:  # less: behind() has told of later ones already
            return []
        told[where] = lost
        return [_gap(event.time_ns, event.boottime_ns, event.cpu, count, "buffer_full", event.kind)]

    def behind(
        self,
        ledger: Ledger,
        lost: Mapping[Tuple[int, str], int],
        skipped: Mapping[str, int],
        offset_ns: int,
    ) -> Tuple[Ledger, List[LostEvents]]:
        """Return the losses that no record tells of: those at the end of a storm.

        Args:
            lost, skipped: The counters now.
            offset_ns: Of the clock.
        """
        now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        told, told_skipped = dict(ledger.told), dict(ledger.skipped)
        gaps: List[LostEvents] = []
        for (cpu, kind), total in lost.items():
            count = total - told.get((cpu, kind), 0)
            if count > 0:
                told[cpu, kind] = total
                gaps.append(_gap(now + offset_ns, now, cpu, count, "buffer_full", kind))
        for kind, total in skipped.items():
            count = total - told_skipped.get(kind, 0)
            if count > 0:
                told_skipped[kind] = total
                gaps.append(_gap(now + offset_ns, now, None, count, "skipped", kind))
        if not gaps:
            return ledger, gaps
        return Ledger(tuple(told.items()), tuple(told_skipped.items())), gaps

    def tell(self, gaps: List[LostEvents], events: List[AnyEvent]) -> None:
        """Put gaps among the events, or in the log."""
        if self._as_events:
            events += gaps
        elif gaps:
            self._log(gaps)

    def _log(self, gaps: List[LostEvents]) -> None:
        now = time.monotonic()
        if now >= self._silent_until:
            self._silent_until = now + _LOG_PAUSE
            import logging  # only where there is something to say: it costs 8 ms

            logging.getLogger("execwatch").warning(
                "%d events lost, see ExecTracer.stats(): read faster, or give a larger buffer_size",
                sum(gap.count for gap in gaps),
            )


def _gap(time_ns: int, boottime_ns: int, cpu: Any, count: int, reason: Any, of: str) -> LostEvents:
    return LostEvents(time_ns=time_ns, boottime_ns=boottime_ns, cpu=cpu, count=count, reason=reason, of=of)
