"""Nothing in the process may take longer for each event because there are more of them.

Each case is one piece of work at growing sizes, in CPU time, without a kernel: its rates, and the
time a unit takes at the largest size over that at the smallest. The sizes are those of what
could be in the way: events that went before, entries of a filter, processes that run, bytes.
"""

from __future__ import annotations

import gc
import os
import re
import tempfile
import time
from typing import Any, Callable, Dict, Iterable, Iterator, List, Sequence

import attrs

from benchmarks.made import BATCH, event, execs, lives, records
from benchmarks.measure import Figure, Programs
from execwatch import Filter, decoder, formats, render, replay
from execwatch.cli import rows, screen
from execwatch.events import AnyEvent, ExecEvent
from execwatch.filters import Matcher
from execwatch.formats import Header, columns
from execwatch.kernel.filtering import compile_filter
from execwatch.processes import ProcessTable, ProcessTree
from tests.unit.records import CLOCK, record

#: Rounds at most: one takes minutes, and CPU time varies little.
_ROUNDS = 3
#: So many ended processes a table keeps: it is full of them at every size.
DEAD = 64
_EVENTS = (1_000, 10_000, 100_000, 1_000_000)
_ENTRIES = (1, 10, 100, 1_000, 10_000)
_LIVE = (1, 10, 100, 1_000, 10_000, 100_000)
_BYTES = (1_000, 10_000, 100_000, 1_000_000)

#: What a unit may take at the largest size, where it took 1 at the smallest: memory that no cache
#: of the processor holds any more explains so much.
_LIMIT = 1.5
#: And where the size should not be felt at all, but for noise.
_FLAT = 1.25
#: A thousand processes are in the processor's cache, a hundred thousand are not.
_UNCACHED = 2.0


@attrs.frozen
class Case:
    """Attributes:
    name: What is done.
    unit: Of what there are so many a second.
    sizes: From the smallest.
    cost: Returns the seconds of CPU time that a unit takes at a size.
    limit: See _LIMIT.
    """

    name: str
    unit: str
    sizes: Sequence[int]
    cost: Callable[[int], float]
    limit: float = _LIMIT


def run(programs: Programs, rounds: int) -> Iterator[Figure]:
    """Yield of each case its rates by size, and by how much a unit's time has grown."""
    for case in cases():
        costs: Dict[int, List[float]] = {size: [] for size in case.sizes}
        for turn in range(min(rounds, _ROUNDS) + 1):
            for size in case.sizes if turn else case.sizes[:1]:  # at first it imports, and fills caches
                cost = _cost(case, size)
                if turn:
                    costs[size].append(cost)
        for size, values in costs.items():
            yield Figure(f"{case.name}: {size:,}", [1 / cost for cost in values], f"{case.unit}/s")
        least, most = costs[case.sizes[0]], costs[case.sizes[-1]]
        growth = [large / small for small, large in zip(least, most)]
        yield Figure(f"{case.name}: time, {case.sizes[-1]:,} / {case.sizes[0]:,}", growth, "x", case.limit)


def _cost(case: Case, size: int) -> float:
    """Measure without Python's collector of garbage: it goes through all that lives, whoever made it."""
    gc.collect()
    gc.disable()
    try:
        return case.cost(size)
    finally:
        gc.enable()


def cases() -> Iterator[Case]:
    """Yield all of them."""
    yield from _streams()
    yield from _filters()
    yield from _processes()
    yield from _texts()


# -- By the number of events --------------------------------------------------------------------------


def _streams() -> Iterator[Case]:
    yield Case("decode, events", "event", _EVENTS, _decode)
    # A million would be a gigabyte.
    yield Case("decode and keep, events", "event", _EVENTS[:-1], lambda size: _decode(size, keep=True))
    yield Case("hand over, events", "event", _EVENTS, _hand_over)
    tree = {"descendants_of": 1}
    # Of fewer events what is remembered of a tree is still small, and in the processor's cache.
    yield Case("match a tree, without exits, events", "event", _EVENTS[2:], lambda n: _match_all(n, **tree))
    yield Case(
        "match paths and args, events",
        "event",
        _EVENTS,
        lambda size: _match_all(size, paths={"/usr/bin/*"}, args={"*.c"}),
    )
    for name, relay in (("one parent", False), ("a relay", True)):
        yield Case(
            f"feed the table of processes, {name}, events",
            "event",
            _EVENTS,
            lambda size, relay=relay: _each(lives(size, relay), ProcessTable(dead=DEAD).feed),
        )
    yield Case("line of the table, events", "event", _EVENTS, _table_lines)
    yield Case("to_dict, events", "event", _EVENTS, lambda size: _each(execs(size), ExecEvent.to_dict))
    yield Case("line of JSON, events", "event", _EVENTS, lambda size: _each(execs(size), rows.json_line))
    # Of a thousand, opening and closing is most of it.
    for suffix in (".ndjson", ".ndjson.gz", ".parquet"):
        yield Case(
            f"write {suffix}, events", "event", _EVENTS[1:], lambda size, suffix=suffix: _write(suffix, size)
        )
    yield Case("make an Arrow table of, events", "event", _EVENTS[:-1], _convert)


def _timed(batches: Iterable[Sequence[Any]], work: Callable[[Any], object]) -> float:
    """Return the seconds of CPU time that the work takes for each item; making the batches aside."""
    seconds, count = 0.0, 0
    for batch in batches:
        started = time.process_time()
        work(batch)
        seconds += time.process_time() - started
        count += len(batch)
    return seconds / count


def _each(batches: Iterable[Sequence[Any]], work: Callable[[Any], object]) -> float:
    def all_of(batch: Sequence[Any]) -> None:
        for item in batch:
            work(item)

    return _timed(batches, all_of)


def _decode(size: int, keep: bool = False) -> float:
    kept: List[AnyEvent] = []
    seconds = 0.0
    for data, starts in records(size):
        started = time.process_time()
        events = decoder.decode_all(data, starts, CLOCK).events
        seconds += time.process_time() - started
        kept = [*events] if not keep else kept
        kept.extend(events if keep else ())
    return seconds / size


def _hand_over(size: int) -> float:
    """Through the queue of a tracer; the events themselves are few."""
    few = next(execs(BATCH))
    with replay(few * (size // BATCH)) as tracer:
        return _once(lambda: sum(1 for _ in tracer.events())) / size


def _match_all(size: int, **fields: Any) -> float:
    matches = Matcher(Filter(**fields)).matches
    return _each((batch[1::3] for batch in lives(3 * size, relay=True)), matches)


def _table_lines(size: int) -> float:
    row = rows.table_row(0, time_of_day=True, seconds=True)
    with open(os.devnull, "w") as file:
        out = screen.Screen(file)
        return _each(execs(size), lambda event: out.line(row(event)))


def _write(suffix: str, size: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        writer = formats.open_writer(os.path.join(folder, f"x{suffix}"), Header(version="0"))
        try:
            spent = _timed(execs(size), writer.write)
        finally:
            ending = _once(writer.close)
    return spent + ending / size


def _convert(size: int) -> float:
    few = next(execs(BATCH))
    return _once(lambda: columns.table(few * (size // BATCH))) / size


def _once(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


# -- By the number of a filter's entries --------------------------------------------------------------

#: So many members of each field, none of which an event has: the longest way.
_MISSES: Dict[str, Callable[[int], List[Any]]] = {
    "uids": lambda count: [1_000_000 + number for number in range(count)],
    "pids": lambda count: [2_000_000_000 + number for number in range(count)],
    "ppids": lambda count: [2_000_000_000 + number for number in range(count)],
    "descendants_of": lambda count: [2_000_000_000 + number for number in range(count)],
    "comms": lambda count: [f"no-{number}" for number in range(count)],
    "cgroups": lambda count: [1 + number for number in range(count)],
    "mount_ns": lambda count: [1 + number for number in range(count)],
    "containers, whole ids": lambda count: [f"{number:064x}" for number in range(count)],
    "containers, ids of 12 digits": lambda count: [f"{number:012x}" for number in range(count)],
    # They begin as an event's do: what fails at the first letter tells nothing.
    "paths, names": lambda count: [f"/usr/bin/g{'c' * (number % 3)}{number}" for number in range(count)],
    "args, names": lambda count: [f"src/{number}.h" for number in range(count)],
}
_GLOBS: Dict[str, Callable[[int], List[str]]] = {
    "paths, globs": lambda count: [f"/usr/*/g{number}" for number in range(count)],
    "args, globs": lambda count: [f"src/*{number}.h" for number in range(count)],
}


def _filters() -> Iterator[Case]:
    for name, members in _MISSES.items():
        filters = _Filters(name, members)
        yield Case(f"match {name}, entries", "event", _ENTRIES, filters.match, _FLAT)
    for name, members in _GLOBS.items():
        # Each glob is tried: the work is events times globs.
        filters = _Filters(name, members)
        yield Case(f"match {name}, entries", "glob", _ENTRIES, filters.match_one_glob)
    for name, members in {**_MISSES, **_GLOBS}.items():
        # Of a few the call itself is all that it costs.
        filters = _Filters(name, members)
        yield Case(f"make a filter of {name}, entries", "entry", _ENTRIES[2:], filters.make)


@attrs.frozen
class _Filters:
    """Filters of one field, by how many members it has."""

    name: str
    members: Callable[[int], Sequence[Any]]

    def _filter(self, count: int) -> Filter:
        fields: Dict[str, Any] = {self.name.partition(",")[0]: self.members(count)}
        return Filter(**fields)

    def match(self, count: int) -> float:
        """The cost of an event."""
        matcher = Matcher(self._filter(count))
        matches, events = matcher.matches, next(execs(BATCH))
        if any(map(matches, events)):
            raise AssertionError(f"{self.name}: matches what it should not")
        return min(_once(lambda: [None for event in events if matches(event)]) for _ in range(9)) / BATCH

    def match_one_glob(self, count: int) -> float:
        return self.match(count) / count

    def make(self, count: int) -> float:
        """The cost of an entry: the value, what Python matches, and what the kernel does."""
        members = self.members(count)
        fields: Dict[str, Any] = {self.name.partition(",")[0]: members}

        def make() -> None:
            re.purge()
            filter = Filter(**fields)
            Matcher(filter)
            compile_filter(filter)

        return min(_once(make) for _ in range(3)) / count


# -- By the number of processes that run ------------------------------------------------------------

#: Who forks a process, by both their numbers.
_SHAPES: Dict[str, Callable[[int], int]] = {
    "one parent": lambda number: -1,
    "a chain": lambda number: number - 1,
    "families of 8": lambda number: number // 8 - 1,
}
_CHURN = 3 * BATCH


def _processes() -> Iterator[Case]:
    for shape, parent in _SHAPES.items():
        yield Case(
            f"feed the table beside, {shape}, processes",
            "event",
            _LIVE,
            lambda size, parent=parent: _churn(size, parent),
        )
    for shape, parent in _SHAPES.items():
        trees = _Trees(parent)
        yield Case(f"make the tree, {shape}, processes", "process", _LIVE[3:], trees.make, _UNCACHED)
        yield Case(f"make a subtree, {shape}, processes", "process", _LIVE[3:], trees.make_below, _UNCACHED)
        yield Case(f"draw the tree, {shape}, processes", "process", _LIVE[3:], trees.draw)


def filled(count: int, parent: Callable[[int], int] = _SHAPES["families of 8"]) -> ProcessTable:
    """Return a table of so many processes that run."""
    table = ProcessTable(dead=DEAD)
    for number in range(count):
        table.feed(event("FORK", number, parent(number)))
    return table


def _churn(size: int, parent: Callable[[int], int]) -> float:
    """Return the cost of an event of others that come and go."""
    table = filled(size, parent)
    turns = ((size + turn, kind) for turn in range(_CHURN) for kind in ("FORK", "EXEC", "EXIT"))
    return _each([[event(kind, number, parent(size)) for number, kind in turns]], table.feed)


@attrs.frozen
class _Trees:
    """Trees of one shape. A process's cost of each question."""

    parent: Callable[[int], int]

    def make(self, size: int) -> float:
        return self._least(filled(size, self.parent).tree, size)

    def make_below(self, size: int) -> float:
        table = filled(size + 1, self.parent)
        # Those of one parent have it outside of the table; the others are all below the first.
        root = next(iter(table)).key
        return self._least(lambda: table.tree(root), len(table.tree(root)))

    def draw(self, size: int) -> float:
        tree: ProcessTree = filled(size, self.parent).tree()
        return self._least(lambda: str(tree), size)

    @staticmethod
    def _least(work: Callable[[], object], size: int) -> float:
        return min(_once(work) for _ in range(3)) / size


# -- By the length of what a program was given ---------------------------------------------------------

_ARGUMENTS: Dict[str, Callable[[int], bytes]] = {
    "one plain argument": lambda size: b"x" * size,
    "one hostile argument": lambda size: (b"\x1b[2K\n'\\\xff" * size)[:size],
    "many arguments": lambda size: (b"--an-option=1234567\0" * size)[:size],
}


def _texts() -> Iterator[Case]:
    for name, argv in _ARGUMENTS.items():
        for what, work in _WORKS.items():
            yield Case(
                f"{what}, {name}, bytes",
                "byte",
                _BYTES,
                lambda size, argv=argv, work=work: _text_cost(argv(size), work),
            )


def _text_cost(argv: bytes, work: Callable[[bytes, ExecEvent], object]) -> float:
    data = record(b"/bin/true\0", b"", argv + b"\0")
    event: Any = decoder.decode(data, 0, CLOCK)[0]
    repeat = max(1, 10_000 // len(argv))
    seconds = min(_once(lambda: [work(data, event) for _ in range(repeat)]) for _ in range(3))
    return seconds / repeat / len(argv)


_WORKS: Dict[str, Callable[[bytes, ExecEvent], object]] = {
    "decode": lambda data, event: decoder.decode(data, 0, CLOCK),
    "render": lambda data, event: render.command_line(event.argv),
    "to_dict": lambda data, event: event.to_dict(),
    "HTML": lambda data, event: render.html(event.command_line),
}
