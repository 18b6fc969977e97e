"""Descendants that already run when a tracer starts.

From the moment the fork program is attached the kernel itself brings the children
of members into the map ``tree``. The processes that are there before have to be
found in /proc, while they go on forking and exiting: so every fork is logged
meanwhile, and what the log shows is taken in until it shows nothing new.

A process whose parent had died before can't be known for a descendant: the
kernel has given it another parent.
"""

from __future__ import annotations

import os
import struct
from typing import Dict, Mapping, Optional, Set, Tuple

from execwatch import wire
from execwatch.kernel import bpf, procfs

#: Rounds of reading the log; two or three are usual.
_ROUNDS = 1000

#: Of each process: its parent's pid, and its own start time in clock ticks.
_Parents = Dict[int, Tuple[int, int]]


def scan() -> _Parents:
    """Return for every process its parent's pid and its own start time, from /proc."""
    found: _Parents = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            entry = stat(int(name))
            if entry:
                found[int(name)] = entry
    return found


def stat(pid: int) -> Optional[Tuple[int, int]]:
    """Return a process's parent and start time in ticks; None where there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            found = procfs.parse_stat(file.read())
    except (FileNotFoundError, ProcessLookupError):
        return None
    except PermissionError:
        procfs.log_hidden()
        return None
    return found.ppid, found.start_ticks


def fill(tree: int, forks: int, roots: Mapping[int, int], known: _Parents) -> int:
    """Bring the roots and what descends from them into the map ``tree``.

    Call it while ``config.arming`` holds the parts of the roots.

    Args:
        tree, forks: The maps.
        roots: Pids, each with the parts of the filter that name it.
        known: A scan from before the probes were attached: it knows the parents
            of those whose parent is dying now.

    Returns:
        How many did not fit.
    """
    parents = {**known, **scan()}
    done: Dict[Tuple[int, int], int] = {}
    full = 0
    for _ in range(_ROUNDS):
        parents.update(_log(forks))
        alive = 0
        for process, parts in _closure(roots, parents).items():
            if parts & ~done.get(process, 0):
                done[process] = parts
                # Those that have ended stay in `parents`, for the sake of their children.
                if (stat(process[0]) or (0, -1))[1] == process[1]:
                    alive += 1
                    full += not _insert(tree, process, parts)
        if not alive:
            return full
    # A chain of processes that each fork one and end, faster than /proc can be read.
    return full + 1


def _insert(tree: int, process: Tuple[int, int], parts: int) -> bool:
    pid, start = process
    value = wire.pack(wire.TREE_VALUE, {"start_ticks": start, "parts": parts})
    try:
        bpf.map_update(tree, struct.pack("<I", pid), value)
    except OSError:  # E2BIG
        return False
    return True


def _log(forks: int) -> _Parents:
    size = wire.struct_of(wire.FORK_VALUE).size
    found: _Parents = {}
    for key in bpf.map_keys(forks, 4):
        data = bpf.map_lookup(forks, key, size)
        if data is not None:
            value = wire.unpack(wire.FORK_VALUE, data)
            found[struct.unpack("<I", key)[0]] = value["parent"], value["start_ticks"]
    return found


def _closure(roots: Mapping[int, int], parents: _Parents) -> Dict[Tuple[int, int], int]:
    """Return the roots' descendants and themselves, each with the parts it belongs to."""
    children: Dict[int, Set[int]] = {}
    for child, (parent, _) in parents.items():
        children.setdefault(parent, set()).add(child)
    parts_of: Dict[int, int] = {}
    waiting = list(roots.items())
    while waiting:
        pid, parts = waiting.pop()
        if pid in parents and parts & ~parts_of.get(pid, 0):
            parts_of[pid] = parts_of.get(pid, 0) | parts
            waiting += [(child, parts_of[pid]) for child in children.get(pid, ())]
    return {(pid, parents[pid][1]): parts for pid, parts in parts_of.items()}
