"""Events without a kernel: records as it writes them, decoded; as many as are asked for, and each another."""

from __future__ import annotations

import struct
from typing import Any, Iterator, List, Tuple

from execwatch import decoder, wire
from tests.unit.records import CLOCK, record

#: Events that come out of the ring at once.
BATCH = 500


def records(count: int) -> Iterator[Tuple[bytes, List[int]]]:
    """Yield batches of records of a build's execs, and where in each they begin."""
    words = (b"/usr/bin/gcc", b"-O2", b"-Wall", b"-Iinclude", b"-c", b"src/%04d.c", b"-o", b"build/%04d.o")
    argv = b"".join(word + b"\0" for word in words)
    pieces = [
        record(b"/usr/bin/gcc\0", b"", argv % (number, number), exe=b"gcc\0bin\0usr\0", comm=b"gcc")
        for number in range(BATCH)
    ]
    starts = [sum(map(len, pieces[:index])) for index in range(BATCH)]
    data = bytearray(b"".join(pieces))
    for done in range(0, count, BATCH):
        for number, start in enumerate(starts, done):
            _set(data, start, pid=2 + number, start_boottime_ns=_start_ns(number))
            _set(data, start, boottime_ns=_start_ns(number) + 500_000)
        yield bytes(data), starts[: count - done]


def execs(count: int) -> Iterator[List[Any]]:
    """Yield batches of such execs."""
    for data, starts in records(count):
        yield decoder.decode_all(data, starts, CLOCK).events


def lives(count: int, relay: bool = False, first: int = 0) -> Iterator[List[Any]]:
    """Yield batches of events: of processes that start, execute and end.

    Args:
        count: Of events.
        relay: Each is forked by the one before, which then ends; else all by one that doesn't end.
        first: Number of the first process.
    """
    for done in range(0, count, BATCH):
        batch: List[Any] = []
        for number in range(first + done // 3, first + (done + BATCH) // 3):
            parent = number - 1 if relay else -1
            batch += event("FORK", number, parent), event("EXEC", number, parent)
            batch.append(event("EXIT", parent, parent - 1) if relay else event("EXIT", number, parent))
        yield batch


_TEMPLATES = {
    kind: bytearray(record(b"/usr/bin/make\0", b"", b"make\0-j2\0", kind=wire.KINDS[kind], status=0))
    for kind in ("FORK", "EXEC", "EXIT")
}
#: When in a process's life they come.
_AFTER_NS = {"FORK": 0, "EXEC": 400_000, "EXIT": 4_000_000}


def event(kind: str, number: int, parent: int) -> Any:
    """Return a process's ``FORK``, ``EXEC`` or ``EXIT``; processes have numbers from 0 on, or from -1."""
    data, start_ns = _TEMPLATES[kind], _start_ns(number)
    _set(data, 0, pid=2 + number, ppid=2 + parent, start_boottime_ns=start_ns)
    _set(data, 0, parent_start_boottime_ns=_start_ns(parent), boottime_ns=start_ns + _AFTER_NS[kind])
    return decoder.decode(bytes(data), 0, CLOCK)[0]


def _start_ns(number: int) -> int:
    return 60_000_000_000 + number * 3_000_000


_MEMBERS = {
    name: (struct.Struct("<Q" if kind == "u64" else "<I").pack_into, wire.offset_of(wire.RECORD, name))
    for kind, name in wire.RECORD
}


def _set(data: bytearray, at: int, **values: int) -> None:
    """Change members of the record that begins there."""
    for name, value in values.items():
        pack, offset = _MEMBERS[name]
        pack(data, at + offset, value)
