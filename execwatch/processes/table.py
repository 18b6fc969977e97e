"""The table: what events tell of processes, and what can be asked."""

from __future__ import annotations

import enum
from typing import Callable, Dict, Iterable, Iterator, List, Optional, Set, Tuple, Union

from typing_extensions import Final

from execwatch.events import Event, ExecEvent, ExitEvent, ForkEvent, LostEvents
from execwatch.processes.kin import End, Entry, Kin, Parent, Program, by_start
from execwatch.processes.values import Process, ProcessTree

_ProcessEvent = Union[ExecEvent, ForkEvent, ExitEvent]

#: Who tells a process's parent, from the least trusted. An exec, an exit and /proc tell the
#: one of that moment, perhaps not the first. No parent at all: nobody told.
_NOBODY, _MOMENT, _FORK = range(3)

#: Bytes of memory that the arguments of those that have ended take at most.
_ARGUMENTS = 64 << 20


class _All(enum.Enum):
    """A default that nobody passes by mistake, as a ``parent_key`` that is None."""

    ALL = "all processes"


_ALL: Final = _All.ALL


class ProcessTable:
    """The processes of one machine since one boot, and those that have ended lately.

    Feed it execs, forks and exits in the order in which they come; what ran before is
    added from /proc. Where a batch of events was fed in part (Ctrl-C), feed it again from
    its beginning: that makes good what was interrupted and changes nothing else, but for
    which of those that have ended are kept where there was no room for all of them.

    Only one thread may feed and add. Meanwhile others may ask: each process they get is one
    from before or after an event, two of them may be from before and after the same event.

    Processes that run are all kept: fed with all forks and exits, these are as many as the
    machine has. Of those that have ended at most ``dead`` are, and no more than those whose
    arguments take 64 MiB of memory, unless ``seconds`` is infinite; where there is no room for
    more, the ancestors of running ones stay longer than the others.

    Two processes that had one pid within one clock tick (10 ms) have the same key: the younger
    takes the place of the older, and what the older forked has no ``parent_key`` any more.

    Args:
        dead: How many that have ended are kept at most.
        seconds: For how long after their end they are kept at most, by the time of the newest
            event; ``float("inf")``: for ever, however much memory their arguments take.

    Raises:
        TypeError, ValueError: An argument is not what is said.
    """

    def __init__(self, dead: int = 4096, seconds: float = 300.0) -> None:
        for name, value in (("dead", dead), ("seconds", seconds)):
            if value is None:
                raise TypeError(f"{name}: expected a number (0 and up), got None")
        self._dead, self._age_ns = 0, 0.0
        self.keep(dead=dead, seconds=seconds)
        self._now_ns = 0
        self._kin = Kin()
        #: False while an event is taken in, and after an interrupt: then all but the
        #: entries themselves is made anew.
        self._whole = True
        #: By kind, reason and processor: time of the newest gap, and how many in all.
        self._gaps: Dict[Tuple[str, str, Optional[int]], Tuple[int, int]] = {}

    def keep(self, *, dead: Optional[int] = None, seconds: Optional[float] = None) -> None:
        """Change how many processes that have ended are kept, from the next event on.

        Args:
            dead: At most so many, 0 and up; None: as before.
            seconds: At most so long after their end, 0 and up; infinite: however much memory
                their arguments take; None: as before.

        Raises:
            TypeError, ValueError: An argument is not what is said.
        """
        if dead is not None and (isinstance(dead, bool) or not isinstance(dead, int)):
            raise TypeError(f"dead: expected a number of processes (0 and up), got {dead!r}")
        if dead is not None and dead < 0:
            raise ValueError(f"dead: expected a number of processes (0 and up), got {dead!r}")
        if seconds is not None and (isinstance(seconds, bool) or not isinstance(seconds, (int, float))):
            raise TypeError(f"seconds: expected a number (0 and up), got {seconds!r}")
        if seconds is not None and not seconds >= 0:  # NaN is neither
            raise ValueError(f"seconds: expected a number (0 and up), got {seconds!r}")
        self._dead = self._dead if dead is None else dead
        self._age_ns = self._age_ns if seconds is None else seconds * 1e9

    # -- Asking ---------------------------------------------------------------------

    @property
    def lost(self) -> int:
        """How many execs, forks and exits were told to be lost: if not 0, the table may have holes.

        With a tracer of the kernel: since the table is in use, whether gaps are events
        (``ExecTracer(lost=True)``) or not. With a recording: what its own gaps tell, so none
        where it was made without them.
        """
        return sum(count for _, count in list(self._gaps.values()))

    def __len__(self) -> int:
        return len(self._kin.entries)

    def __contains__(self, key: object) -> bool:
        return _checked(key) in self._kin.entries

    def __iter__(self) -> Iterator[Process]:
        """Iterate over the processes of this moment."""
        return iter([entry.process() for entry in list(self._kin.entries.values())])

    def get(self, key: str) -> Optional[Process]:
        """Return the process; None where it is unknown, or forgotten.

        Of two with the same key, that is, with one pid within a clock tick, it is the younger.

        Raises:
            TypeError: ``key`` is no str, see :meth:`by_pid`.
        """
        entry = self._kin.entries.get(_checked(key))
        return None if entry is None else entry.process()

    def by_pid(self, pid: int) -> Optional[Process]:
        """Return the process that has this pid, else the one of those that had it that ended last.

        None where there is none in the table.

        Raises:
            TypeError: ``pid`` is no int.
        """
        if isinstance(pid, bool) or not isinstance(pid, int):
            raise TypeError(f"pid: expected a process id, an int, got {pid!r}")
        entry = self._kin.holder(pid)
        return None if entry is None else entry.process()

    def parent(self, key: str) -> Optional[Process]:
        """Return the true parent; None where it, or the process itself, is not in the table.

        Raises:
            TypeError: ``key`` is no str.
        """
        entry = self._kin.parent(self._kin.entries.get(_checked(key)))
        return None if entry is None else entry.process()

    def ancestors(self, key: str) -> Tuple[Process, ...]:
        """Return the true parent, its parent and so on, as far as they are in the table.

        Raises:
            TypeError: ``key`` is no str.
        """
        found: Dict[str, Entry] = {}
        entry = self._kin.parent(self._kin.entries.get(_checked(key)))
        # A circle: no kernel's, but a file can tell of one.
        while entry is not None and entry.key not in found and entry.key != key:
            found[entry.key] = entry
            entry = self._kin.parent(entry)
        return tuple(entry.process() for entry in found.values())

    def children(self, key: str) -> Tuple[Process, ...]:
        """Return those that the process forked, in the order of their start.

        Raises:
            TypeError: ``key`` is no str.
        """
        return tuple(entry.process() for entry in self._kin.children(_checked(key)))

    def tree(self, key: Union[str, _All] = _ALL) -> ProcessTree:
        """Return the process and its descendants; nothing where it is not in the table.

        Args:
            key: Of the process; left out: all processes, below those whose parents are not in
                the table.

        Raises:
            TypeError: ``key`` is no str. None, as events tell it of a parent that is not known,
                is none.
        """
        if key is not _ALL:
            entry = self._kin.entries.get(_checked(key))
            return _tree([entry] if entry else [], self._kin.children)
        entries = sorted(list(self._kin.entries.values()), key=by_start)
        known = {entry.key for entry in entries}
        roots: List[Entry] = []
        families: Dict[str, List[Entry]] = {}
        for entry in entries:
            parent = entry.parent.key
            (families.setdefault(parent, []) if parent in known and parent else roots).append(entry)
        # Behind the roots all others: parents in a circle have none.
        return _tree(roots + entries, lambda key: families.get(key, []))

    # -- Feeding --------------------------------------------------------------------

    def feed(self, event: Event) -> None:
        """Take in an event of any kind.

        Raises:
            TypeError: It is no event.
        """
        if not isinstance(event, Event):
            raise TypeError(f"event: expected an event, got {event!r}")
        self._begin()
        self._now_ns = max(self._now_ns, event.boottime_ns)
        if isinstance(event, (ExecEvent, ForkEvent, ExitEvent)):
            self._take(event)
        elif isinstance(event, LostEvents):
            self._count(event)
        self._done()

    def add(self, process: Process, time_ns: Optional[int] = None) -> None:
        """Take in a process that was found elsewhere, in /proc. What events told stays.

        Args:
            process: It.
            time_ns: When it was found so, by CLOCK_BOOTTIME: the parent that an event told
                before is trusted more than this one, what came later less. None: before all events.

        Raises:
            TypeError: An argument is not what is said.
        """
        if not isinstance(process, Process):
            raise TypeError(f"process: expected a Process, got {process!r}")
        if time_ns is not None and (isinstance(time_ns, bool) or not isinstance(time_ns, int)):
            raise TypeError(f"time_ns: expected nanoseconds, an int, or None, got {time_ns!r}")
        parent = _parent(process.ppid, process.parent_key, _MOMENT, -1 if time_ns is None else time_ns)
        self._begin()
        entry = self._kin.entries.get(process.key)
        if entry is None:
            self._kin.insert(self._from_process(process, parent))
        else:
            self._complete(entry, process, parent)
        self._done()

    def clear(self) -> None:
        """Forget everything."""
        self._kin, self._gaps = Kin(), {}

    def _begin(self) -> None:
        if not self._whole:
            self._kin = Kin(self._kin.entries.values(), self._kin.forgotten_ns)
        self._whole = False

    def _done(self) -> None:
        arguments = _ARGUMENTS if self._age_ns < float("inf") else self._age_ns
        self._kin.trim(self._dead, self._now_ns - self._age_ns, arguments)
        self._whole = True

    def _count(self, event: LostEvents) -> None:
        if event.of in ("exec", "fork", "exit"):
            where = event.of, event.reason, event.cpu
            newest, count = self._gaps.get(where, (-1, 0))
            if event.boottime_ns > newest:  # else it was fed before
                self._gaps[where] = event.boottime_ns, count + event.count

    def _take(self, event: _ProcessEvent) -> None:
        kin = self._kin
        entry = kin.entries.get(event.process_key)
        order = 0 if entry is None else _order(entry, event)
        if order < 0:
            return
        if entry is None or order > 0:
            older, entry = entry, self._from_event(event)
            if older is None:
                kin.insert(entry)
            else:
                kin.replace(older, entry)
        else:
            self._hear_parent(entry, _parent_of(event))
            if event.start_boottime_ns is not None:
                entry.start_ns, entry.exact = event.start_boottime_ns, True
        if isinstance(event, ExecEvent):
            _execute(entry, event)
        # Not there: it was fed again, its pid has been taken since, and it is forgotten.
        elif isinstance(event, ExitEvent) and entry.key in kin.entries:
            self._exit(entry, event)

    def _hear_parent(self, entry: Entry, told: Parent) -> None:
        known = entry.parent
        if told.key is None:
            return
        if (told.source, -told.told_ns) > (known.source, -known.told_ns):
            contradicted = known.contradicted or known.key not in (None, told.key)
            self._kin.set_parent(entry, told._replace(contradicted=contradicted))
        elif known.key not in (None, told.key) and not known.contradicted:
            entry.parent = known._replace(contradicted=True)

    def _from_event(self, event: _ProcessEvent) -> Entry:
        program, container = Program(event.comm), event.container
        if isinstance(event, ForkEvent):
            parent = self._kin.entries.get(event.parent_key) if event.parent_key else None
            if parent is not None and (parent.program.since_ns or 0) <= event.boottime_ns:
                program = Program(event.comm, parent.program.argv, parent.program.exe)
                container = container if _tells_container(event) else parent.container
        entry = Entry(event.process_key, event.pid, _parent_of(event), program)
        entry.uid = event.uid
        entry.container = container
        entry.start_ns, entry.exact = event.start_boottime_ns, event.start_boottime_ns is not None
        return entry

    def _from_process(self, process: Process, parent: Parent) -> Entry:
        program = Program(process.comm, process.argv, process.exe, process.exec_boottime_ns)
        entry = Entry(process.key, process.pid, parent, program)
        entry.uid = process.uid
        entry.container = process.container
        entry.start_ns = process.start_boottime_ns
        if process.ended:
            seen_ns = process.exit_boottime_ns
            latest_ns = self._now_ns if seen_ns is None else seen_ns
            entry.end = End(latest_ns, seen_ns, process.exit_code, process.signal)
        return entry

    def _exit(self, entry: Entry, event: ExitEvent) -> None:
        executed_ns = event.exec_boottime_ns
        known_ns = entry.program.since_ns or entry.start_ns or 0
        if executed_ns is not None and executed_ns > known_ns:
            # A program whose start was lost: what is known is another's.
            entry.program = Program(event.comm, since_ns=executed_ns)
        if entry.end is None or entry.end.seen_ns is None:
            time_ns = event.boottime_ns
            self._kin.end(entry, End(time_ns, time_ns, event.exit_code, event.signal))

    def _complete(self, entry: Entry, process: Process, parent: Parent) -> None:
        """Add what no event told."""
        self._hear_parent(entry, parent)
        program = entry.program
        if program.since_ns is None and entry.end is None:
            entry.program = Program(program.comm, program.argv or process.argv, program.exe or process.exe)
        entry.uid = process.uid if entry.uid is None else entry.uid
        entry.container = process.container if entry.container is None else entry.container
        entry.start_ns = process.start_boottime_ns if entry.start_ns is None else entry.start_ns


def _tells_container(event: _ProcessEvent) -> bool:
    """Whether its container, None for the host, was captured."""
    return event.container is not None or event.cgroup_path is not None


def _parent(pid: Optional[int], key: Optional[str], source: int, told_ns: int) -> Parent:
    return Parent(pid, key, _NOBODY if key is None else source, told_ns)


def _parent_of(event: _ProcessEvent) -> Parent:
    source = _FORK if isinstance(event, ForkEvent) else _MOMENT
    return _parent(event.ppid, event.parent_key, source, event.boottime_ns)


def _order(entry: Entry, event: _ProcessEvent) -> int:
    """Return 0 for an event of this process; -1 and 1 for one before and after it with the same key."""
    start_ns = event.start_boottime_ns
    if entry.exact and start_ns is not None and entry.start_ns is not None and entry.start_ns != start_ns:
        return 1 if start_ns > entry.start_ns else -1
    if isinstance(event, ForkEvent) and entry.end is not None and entry.end.seen_ns is not None:
        return int(event.boottime_ns > entry.end.seen_ns)
    return 0


def _checked(key: object) -> str:
    if not isinstance(key, str):
        raise TypeError(f"key: expected a str, as process_key and parent_key of events, got {key!r}")
    return key


def _execute(entry: Entry, event: ExecEvent) -> None:
    argv = None if event.argv_status == "unreadable" else event.argv
    entry.program = Program(event.comm, argv, event.exe and event.exe.path, event.boottime_ns)
    entry.uid = entry.uid if event.uid is None else event.uid
    entry.container = event.container if _tells_container(event) else entry.container


def _tree(roots: Iterable[Entry], children_of: Callable[[str], List[Entry]]) -> ProcessTree:
    rows: List[Tuple[int, Process]] = []
    seen: Set[str] = set()
    for root in roots:
        waiting = [(0, root)]
        while waiting:
            depth, entry = waiting.pop()
            if entry.key not in seen:
                seen.add(entry.key)
                rows.append((depth, entry.process()))
                waiting += [(depth + 1, child) for child in reversed(children_of(entry.key))]
    return ProcessTree(tuple(rows))
