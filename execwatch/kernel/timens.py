"""The time namespace that this process is in, see time_namespaces(7): its clock may be shifted."""

from __future__ import annotations

import contextlib
import os
import time
from functools import lru_cache
from typing import Iterable, List


def boot_offset_ns() -> int:
    """Return by how much CLOCK_BOOTTIME is shifted here, in ns; it may be less than 0."""
    with contextlib.suppress(OSError), open("/proc/self/timens_offsets") as file:
        for line in file:
            clock, seconds, nanoseconds = line.split()
            if clock in ("boottime", "7"):
                return int(seconds) * 1_000_000_000 + int(nanoseconds)
    return 0


def proc_shift_ticks() -> int:
    """Return what is to be added to a start time of /proc/PID/stat, in clock ticks.

    Some kernels (5.10 is one) tell it by the machine's clock in every namespace, newer
    ones by the shifted one: here it is always the latter.
    """
    return _proc_shift_ticks(os.getpid())


@lru_cache(maxsize=1)
def _proc_shift_ticks(pid: int) -> int:
    tick_ns = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
    offset = boot_offset_ns() // tick_ns
    if not offset:
        return 0
    now = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // tick_ns
    return shift(offset, now, _starts((1, pid)))


def shift(offset: int, now: int, starts: Iterable[int]) -> int:
    """Return ``offset`` where the start times can't be shifted already, else 0; all in ticks.

    Nothing has started before the machine, which is at ``offset``, nor after now.
    """
    shifted = all(offset <= start <= now for start in starts)
    return 0 if shifted else offset


def _starts(pids: Iterable[int]) -> List[int]:
    found = []
    for pid in pids:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", "rb") as file:
            found.append(int(file.read().rpartition(b")")[2].split()[19]))
    return found
