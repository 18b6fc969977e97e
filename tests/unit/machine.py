"""A machine that forks, executes and ends processes as the kernel does, and remembers all: the truth."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import attrs
from hypothesis import strategies as st

from execwatch.events import AnyEvent
from execwatch.processes import Process
from execwatch.testing import exec_event, exit_event, fork_event

#: What happens to which process; both wrap around.
Plan = List[Tuple[str, int]]

#: A step of /proc's clock; a pid is not used twice within one.
TICK = 10_000_000

INIT = Process(
    key="boot-1-1",
    pid=1,
    comm="init",
    argv=("/sbin/init",),
    exe="/sbin/init",
    uid=0,
    start_boottime_ns=TICK,
)


def plans(*kinds: str) -> st.SearchStrategy[Plan]:
    """Histories, most with many forks: else all have soon ended."""
    kind = st.sampled_from(["fork", "fork", *(kinds or ("exec", "exit", "kill"))])
    return st.lists(st.tuples(kind, st.integers(0, 40)), max_size=60)


class Machine:
    """Starts with INIT, which never ends and becomes the parent of orphans.

    Args:
        pids: So few that they are soon used again.

    Attributes:
        events: All that happened.
        ever: Every process there was, by its key, as the table should tell it.
    """

    def __init__(self, plan: Sequence[Tuple[str, int]] = (), pids: int = 9) -> None:
        self.events: List[AnyEvent] = []
        self.ever: Dict[str, Process] = {INIT.key: INIT}
        self.running: List[str] = [INIT.key]
        self._now = 100 * TICK
        self._kernel_parents: Dict[str, str] = {}
        self._free = list(range(2, 2 + pids))
        for kind, index in plan:
            getattr(self, kind)(index)

    def fork(self, index: int) -> Optional[str]:
        """Return the key of the new process; None where all pids are in use."""
        if not self._free:
            return None
        parent = self.ever[self.running[index % len(self.running)]]
        self._now += TICK
        pid = self._free.pop(0)
        child = Process(
            key=f"boot-{pid}-{self._now // TICK}",
            pid=pid,
            ppid=parent.pid,
            parent_key=parent.key,
            comm=parent.comm,
            argv=parent.argv,
            exe=parent.exe,
            uid=parent.uid,
            start_boottime_ns=self._now,
        )
        self.ever[child.key] = child
        self.running.append(child.key)
        self._kernel_parents[child.key] = parent.key
        self._tell(fork_event, child.key)
        return child.key

    def exec(self, index: int) -> None:
        key = self._choose(index)
        if key:
            self._now += 1000
            name = f"program{len(self.events)}"
            self._set(key, comm=name, argv=(f"/bin/{name}", "-x"), exe=None, exec_boottime_ns=self._now)
            self._tell(exec_event, key, argv=self.ever[key].argv, exe=None)

    def exit(self, index: int) -> None:
        self._end(index, exit_code=index % 3)

    def kill(self, index: int) -> None:
        self._end(index, signal=1 + index % 9)

    def _end(self, index: int, **how: int) -> None:
        key = self._choose(index)
        if not key:
            return
        self._now += 1000
        self._set(key, ended=True, exit_boottime_ns=self._now, **how)
        executed = self.ever[key].exec_boottime_ns
        # The kernel's note of it is older than the event.
        told = None if executed is None else executed - 300
        self._tell(exit_event, key, exec_boottime_ns=told, **{"exit_code": None, "signal": None, **how})
        self.running.remove(key)
        self._free.append(self.ever[key].pid)
        for child in self.running:
            if self._kernel_parents.get(child) == key:
                self._kernel_parents[child] = INIT.key
                self._set(child, reparented=True)

    def _choose(self, index: int) -> Optional[str]:
        """Not INIT."""
        return self.running[1 + index % (len(self.running) - 1)] if len(self.running) > 1 else None

    def _set(self, key: str, **fields: Any) -> None:
        self.ever[key] = attrs.evolve(self.ever[key], **fields)

    def _tell(self, make: Callable[..., AnyEvent], key: str, **fields: Any) -> None:
        process = self.ever[key]
        parent = self.ever[self._kernel_parents[key]]
        common = {
            "process_key": key,
            "pid": process.pid,
            "ppid": parent.pid,
            "parent_key": parent.key,
            "comm": process.comm,
            "uid": process.uid,
            "start_boottime_ns": process.start_boottime_ns,
            "boottime_ns": self._now,
            "cgroup_path": None,
        }
        self.events.append(make(**{**common, **fields}))

    # -- What can be asked, by looking at everything -------------------------------------

    def children(self, key: str) -> Tuple[Process, ...]:
        return tuple(process for process in self.ever.values() if process.parent_key == key)

    def ancestors(self, key: str) -> Tuple[Process, ...]:
        parent = self.ever[key].parent_key
        return () if parent is None else (self.ever[parent], *self.ancestors(parent))

    def tree(self, key: str = INIT.key, depth: int = 0) -> List[Tuple[int, Process]]:
        below = [self.tree(child.key, depth + 1) for child in self.children(key)]
        return [(depth, self.ever[key]), *(row for rows in below for row in rows)]
