"""The processes of a table by their kinship, and which of them go when there is no room.

Everything here is made out of the entries, and is made anew out of them where a
change was interrupted (Ctrl-C raises in the middle of anything).
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from typing import Dict, Iterable, List, NamedTuple, Optional, Tuple

from execwatch.events import Container
from execwatch.processes.values import Process


class Parent(NamedTuple):
    """Who a process's true parent is.

    Attributes:
        source: How far it can be trusted: the higher, the more.
        told_ns: As of when. Of one source the earlier is trusted more: the kernel gives a
            process another parent once the true one has ended, and never the true one back.
        contradicted: Something of less trust told another.
        ended_ns: When the parent ended, at the latest; None as long as it lives.
    """

    pid: Optional[int]
    key: Optional[str]
    source: int
    told_ns: int = 0
    contradicted: bool = False
    ended_ns: Optional[int] = None


class Program(NamedTuple):
    """Attributes:
    since_ns: When it was executed; None: not seen, or inherited.
    """

    comm: str
    argv: Optional[Tuple[str, ...]] = None
    exe: Optional[str] = None
    since_ns: Optional[int] = None


class End(NamedTuple):
    """Attributes:
    latest_ns: When, at the latest.
    seen_ns: When, by the exit's event.
    """

    latest_ns: int
    seen_ns: Optional[int] = None
    exit_code: Optional[int] = None
    signal: Optional[int] = None


class Entry:
    """What is known of one process.

    What belongs together is one value that is put in place by one assignment: another
    thread, and an interrupt, find it from before or from after.
    """

    __slots__ = ("container", "end", "exact", "key", "parent", "pid", "program", "start_ns", "uid")

    def __init__(self, key: str, pid: int, parent: Parent, program: Program) -> None:
        self.key: str = key
        self.pid: int = pid
        self.parent: Parent = parent
        self.program: Program = program
        self.uid: Optional[int] = None
        self.container: Optional[Container] = None
        self.start_ns: Optional[int] = None
        #: Whether an event told the start: /proc tells it in clock ticks.
        self.exact: bool = False
        self.end: Optional[End] = None

    def process(self) -> Process:
        """Return it as a user receives it."""
        parent, program, end = self.parent, self.program, self.end
        outlived = parent.ended_ns is not None and (end is None or end.latest_ns > parent.ended_ns)
        return Process(
            key=self.key,
            pid=self.pid,
            ppid=parent.pid,
            parent_key=parent.key,
            comm=program.comm,
            argv=program.argv,
            exe=program.exe,
            uid=self.uid,
            container=self.container,
            start_boottime_ns=self.start_ns,
            exec_boottime_ns=program.since_ns,
            exit_boottime_ns=end and end.seen_ns,
            exit_code=end and end.exit_code,
            signal=end and end.signal,
            ended=end is not None,
            reparented=outlived or parent.contradicted,
        )


def by_start(entry: Entry) -> Tuple[int, int]:
    """Return what sorts processes by their start."""
    return entry.start_ns or 0, entry.pid


def _latest(entry: Entry) -> int:
    return entry.end.latest_ns if entry.end is not None else -1


def _last(entry: Entry) -> Tuple[bool, int, int]:
    """Return what is highest of the process that runs, else of the one that ended last."""
    return entry.end is None, _latest(entry), entry.start_ns or 0


class Arguments:
    """How much memory the arguments take of those processes that have ended.

    Attributes:
        size: Bytes. What processes share is counted once: who forked and executed nothing has
            its parent's.
    """

    def __init__(self) -> None:
        self.size: int = 0
        self._held: Dict[str, Tuple[str, ...]] = {}
        self._shares: Dict[int, int] = {}

    def hold(self, entry: Entry) -> None:
        """Count a process's arguments; once, however often it is told."""
        argv = entry.program.argv
        if not argv or entry.key in self._held:
            return
        self._held[entry.key] = argv
        shares = self._shares.get(id(argv), 0)
        self._shares[id(argv)] = shares + 1
        if not shares:
            self.size += _size(argv)

    def let_go(self, entry: Entry) -> None:
        """Count them no more."""
        argv = self._held.pop(entry.key, None)
        if argv is None:
            return
        shares = self._shares.pop(id(argv)) - 1
        if shares:
            self._shares[id(argv)] = shares
        else:
            self.size -= _size(argv)


def _size(argv: Tuple[str, ...]) -> int:
    return sys.getsizeof(argv) + sum(map(sys.getsizeof, argv))


class Kin:
    """Parents and children, running and ended.

    Args:
        entries: Those that were in another one.
        forgotten_ns: Of that other one.

    Attributes:
        entries: All of them, by their keys.
        forgotten_ns: Of those that went for want of room, the latest end.
    """

    def __init__(self, entries: Iterable[Entry] = (), forgotten_ns: int = -1) -> None:
        self.entries: Dict[str, Entry] = {}
        #: Who has a pid now, or had it last.
        self._holders: Dict[int, str] = {}
        #: By the parent's key; the parent itself may be missing.
        self._children: Dict[str, Dict[str, None]] = {}
        #: By the parent's key: how many children are needed, that is, alive or with a
        #: child that is needed. Without one, a parent is not here.
        self._needed: Dict[str, int] = {}
        #: In the order of their end.
        self._ended: OrderedDict[str, Entry] = OrderedDict()
        #: Those of them that are not needed, in the order in which they came to be so.
        self._spare: OrderedDict[str, None] = OrderedDict()
        #: Theirs.
        self._arguments = Arguments()
        self.forgotten_ns: int = forgotten_ns
        for entry in sorted(entries, key=_latest):  # then each comes behind the others
            self.insert(entry)

    # -- Asking ---------------------------------------------------------------------

    def parent(self, entry: Optional[Entry]) -> Optional[Entry]:
        """Return the true parent, if it is here."""
        key = entry.parent.key if entry is not None else None
        return None if key is None else self.entries.get(key)

    def children(self, key: str) -> List[Entry]:
        """Return the children in the order of their start."""
        found = [self.entries.get(child) for child in list(self._children.get(key, ()))]
        return sorted((entry for entry in found if entry is not None), key=by_start)

    def holder(self, pid: int) -> Optional[Entry]:
        """Return who has this pid, else the one of those that had it that ended last."""
        entry = self.entries.get(self._holders.get(pid, ""))
        if entry is not None and entry.end is None:
            return entry
        return max((e for e in list(self.entries.values()) if e.pid == pid), key=_last, default=None)

    # -- Changing -------------------------------------------------------------------

    def insert(self, entry: Entry) -> None:
        """Take in a process that is not here."""
        self.entries[entry.key] = entry
        self._link(entry)
        if entry.end is not None:
            self._tell_children(entry.key, entry.end)
            self._line_up(entry, entry.end)
        self._take_pid(entry)

    def set_parent(self, entry: Entry, parent: Parent) -> None:
        """Put another parent in the place of the one that was thought the true one."""
        self._unlink(entry)
        entry.parent = parent
        self._link(entry)

    def end(self, entry: Entry, end: End) -> None:
        """Note a process's end, or more about it."""
        before, entry.end = entry.end, end
        self._tell_children(entry.key, end)
        if before is not None:
            del self._ended[entry.key]  # it has another place now
        elif entry.key not in self._needed:
            self._lower(entry.parent.key)
        if end.latest_ns <= self.forgotten_ns and entry.key not in self._needed:
            self.forget(entry)  # it was fed again
        else:
            self._line_up(entry, end)

    def replace(self, older: Entry, younger: Entry) -> None:
        """Put a process in the place of one with the same key.

        The children of the older stay: of their parent there is only the pid, the key names
        another now, perhaps one that descends from them.
        """
        ended_ns = (younger.start_ns or 0) if older.end is None else _latest(older)
        for key in list(self._children.get(older.key, ())):
            child = self.entries[key]
            self.set_parent(child, child.parent._replace(key=None, ended_ns=ended_ns))
        self.forget(older)
        self.insert(younger)

    def forget(self, entry: Entry) -> None:
        """Take a process out. Its children stay, and its key is their parent's all the same."""
        del self.entries[entry.key]
        if self._holders.get(entry.pid) == entry.key:
            del self._holders[entry.pid]
        self._unlink(entry)
        self._ended.pop(entry.key, None)
        self._spare.pop(entry.key, None)
        self._arguments.let_go(entry)

    def trim(self, dead: int, oldest_ns: float, arguments: float) -> None:
        """Forget processes that have ended.

        Args:
            dead: So many are kept.
            oldest_ns: None that ended before is kept.
            arguments: No more are kept than those whose arguments take so many bytes.
        """
        ended = self._ended
        while ended:
            entry = next(iter(ended.values()))
            if _latest(entry) >= oldest_ns:
                break
            self.forget(entry)
        while len(ended) > dead or self._arguments.size > arguments:
            entry = ended[next(iter(self._spare or ended))]
            self.forgotten_ns = max(self.forgotten_ns, _latest(entry))
            self.forget(entry)

    def _take_pid(self, entry: Entry) -> None:
        """See that of those with one pid only the youngest is alive."""
        holder = self.entries[self._holders.setdefault(entry.pid, entry.key)]
        if holder is entry:
            return
        if holder.start_ns == entry.start_ns or None in (holder.start_ns, entry.start_ns):
            older = holder if entry.end is None else entry
        else:  # the older may be the one that comes now: fed again
            older = min(holder, entry, key=by_start)
        younger = entry if older is holder else holder
        self._holders[entry.pid] = younger.key
        if older.end is None:  # its exit was not seen
            self.end(older, End(younger.start_ns or 0))

    def _tell_children(self, key: str, end: End) -> None:
        for child in self._children.get(key, ()):
            entry = self.entries[child]
            entry.parent = entry.parent._replace(ended_ns=end.latest_ns)

    def _line_up(self, entry: Entry, end: End) -> None:
        """Put it where it belongs in the order of ends."""
        ended, later = self._ended, []
        if entry.key not in self._needed:
            self._spare[entry.key] = None
        # They end in the order in which they are told, but for a millisecond.
        while ended and _latest(next(reversed(ended.values()))) > end.latest_ns:
            later.append(ended.popitem())
        ended[entry.key] = entry
        ended.update(reversed(later))
        self._arguments.hold(entry)

    # -- Who is needed: by those that are alive ---------------------------------------

    def _link(self, entry: Entry) -> None:
        key, parent = entry.parent.key, self.parent(entry)
        if key is None:
            return
        self._children.setdefault(key, {})[entry.key] = None
        if parent is not None and parent.end is not None:
            entry.parent = entry.parent._replace(ended_ns=parent.end.latest_ns)
        if entry.end is None or entry.key in self._needed:
            self._raise(key)

    def _unlink(self, entry: Entry) -> None:
        key = entry.parent.key
        if key is None:
            return
        siblings = self._children[key]
        del siblings[entry.key]
        if not siblings:
            del self._children[key]
        if entry.end is None or entry.key in self._needed:
            self._lower(key)

    def _raise(self, key: Optional[str]) -> None:
        """One child more is needed."""
        while key is not None:
            count = self._needed.get(key, 0)
            self._needed[key] = count + 1
            entry = self.entries.get(key)
            if count or entry is None or entry.end is None:
                return
            self._spare.pop(key, None)
            key = entry.parent.key

    def _lower(self, key: Optional[str]) -> None:
        """One child is not needed any more."""
        while key is not None:
            count = self._needed.pop(key, 0) - 1
            if count > 0:
                self._needed[key] = count
                return
            entry = self.entries.get(key)
            if count < 0 or entry is None or entry.end is None:  # below 0: parents in a circle
                return
            self._spare[key] = None
            key = entry.parent.key
