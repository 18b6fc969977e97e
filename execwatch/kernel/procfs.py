"""What /proc tells of processes, see proc(5)."""

from __future__ import annotations

import contextlib
import os
from functools import lru_cache
from typing import Dict, NamedTuple, Optional, Tuple

from execwatch import containers, wire
from execwatch.events import Container
from execwatch.kernel import timens
from execwatch.processes import Process

#: Bytes of the arguments that are read.
_ARGV_SIZE = 16384

#: Bytes of other files; of ``status``, which can be longer, the beginning will do.
_SIZE = 4096

#: Bytes of the cgroups: a path in each of some fourteen hierarchies.
_CGROUPS_SIZE = 65536

#: Bytes of a task's name: TASK_COMM_LEN less the NUL.
_COMM_SIZE = 15

_DELETED = b" (deleted)"

#: Inode number of the first cgroup namespace: PROC_CGROUP_INIT_INO of include/linux/proc_ns.h.
_FIRST_CGROUP_NS = 0xEFFFFFFB

#: Levels of a cgroup's path that events tell, from the root.
_LEVELS = wire.LIMITS["CGROUP_DEPTH_MAX"] - 1


class Stat(NamedTuple):
    """What /proc/PID/stat tells.

    Attributes:
        comm: What stands in parentheses: of a kernel thread more than its name.
        state: A letter.
        threads: How many, with the leader, also when that has ended.
        start_ticks: Start time in clock ticks since boot, by the clock of this time namespace.
    """

    comm: bytes
    state: bytes
    ppid: int
    threads: int
    start_ticks: int


class _Found(NamedTuple):
    stat: Stat
    comm: str
    argv: Optional[Tuple[str, ...]]
    exe: Optional[str]
    uid: int
    container: Optional[Container] = None


def parse_stat(data: bytes) -> Stat:
    """Return the fields of /proc/PID/stat."""
    # The name may hold anything, parentheses too.
    head, _, tail = data.rpartition(b")")
    fields = tail.split()
    start_ticks = int(fields[19]) + timens.proc_shift_ticks()
    return Stat(head.partition(b"(")[2], fields[0], int(fields[1]), int(fields[17]), start_ticks)


def scan(clock: wire.Clock) -> Dict[str, Process]:
    """Return the processes that run, by their keys.

    ``argv`` is what a process shows now, at most 16 KiB of it; that, and ``exe``, are None
    where they may not be read, and of kernel threads. ``container`` is told by the same cgroup
    as in events, without ``injected``; None too where this process is in a cgroup namespace, in
    which /proc shows no whole paths. ``parent_key`` is that of the present
    parent: a process whose true parent has ended is a child of that which the kernel gave it.
    Left out are processes that vanish meanwhile, that have ended and only wait for their
    parent to notice, and those that /proc hides (``hidepid``).

    Args:
        clock: Turns start times into keys.
    """
    found: Dict[int, _Found] = {}
    hidden = False
    whole_paths = _sees_whole_paths()
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            directory = os.open(f"/proc/{name}", os.O_PATH | os.O_DIRECTORY)
            try:  # all from one process, though its pid may be used again meanwhile
                process = _read(directory, whole_paths)
            finally:
                os.close(directory)
            if process is not None:
                found[int(name)] = process
        except PermissionError:
            hidden = True
        except (FileNotFoundError, ProcessLookupError):
            pass  # it has ended
    if hidden:
        log_hidden()
    processes = (_process(pid, found, clock) for pid in found)
    return {process.key: process for process in processes}


def log_hidden() -> None:
    """Say that there are processes of which nothing may be read."""
    import logging  # only where there is something to say: it costs 8 ms

    logging.getLogger("execwatch").warning(
        "/proc hides other users' processes (hidepid): those among them that run already are not known"
    )


def _process(pid: int, found: Dict[int, _Found], clock: wire.Clock) -> Process:
    stat, comm, argv, exe, uid, container = found[pid]
    start_ns = stat.start_ticks * clock.tick_ns
    parent, parent_key = found.get(stat.ppid), None
    if parent is not None and parent.stat.start_ticks <= stat.start_ticks:  # else its pid was used again
        parent_key = clock.process_key(stat.ppid, parent.stat.start_ticks * clock.tick_ns)
    return Process(
        key=clock.process_key(pid, start_ns),
        pid=pid,
        ppid=stat.ppid or None,
        parent_key=parent_key,
        comm=comm,
        argv=argv,
        exe=exe,
        uid=uid,
        container=container,
        start_boottime_ns=start_ns,
    )


def _read(directory: int, whole_paths: bool = False) -> Optional[_Found]:
    """Return what is found there; None where the process has ended.

    Raises:
        PermissionError: It is hidden.
        FileNotFoundError, ProcessLookupError: It is not there any more.
    """
    stat = parse_stat(_content(directory, "stat", _SIZE))
    # A leader that has ended looks the same while its threads go on.
    if stat.state in b"ZX" and stat.threads <= 1:
        return None
    # Some kernels escape in `stat`, no kernel does here.
    comm = _content(directory, "comm", _SIZE)[:-1] if b"\\" in stat.comm else stat.comm
    container = None
    if whole_paths:
        with contextlib.suppress(OSError):  # a kernel without cgroups
            container = _container(_content(directory, "cgroup", _CGROUPS_SIZE))
    status = _content(directory, "status", _SIZE)
    argv = None
    with contextlib.suppress(PermissionError):
        argv = _argv(_content(directory, "cmdline", _ARGV_SIZE))
    uid = int(status.partition(b"\nUid:")[2].split(None, 1)[0])
    return _Found(stat, _text(comm[:_COMM_SIZE]), argv, _exe(directory), uid, container)


def _argv(data: bytes) -> Optional[Tuple[str, ...]]:
    if data.endswith(b"\0\0\0"):
        # Not empty arguments: a program has put a title over its arguments and NULs behind it.
        data = data.rstrip(b"\0")
    return tuple(_text(data[:-1] if data[-1:] == b"\0" else data).split("\0")) if data else None


def _exe(directory: int) -> Optional[str]:
    try:
        path = os.readlink(b"exe", dir_fd=directory)
    except (PermissionError, FileNotFoundError, ProcessLookupError):
        return None
    if path.endswith(_DELETED):
        # The kernel's note, or the file's name? A path in another mount namespace is one there.
        found = (_identity(name, directory) for name in (path, b"root" + path))
        if _identity(b"exe", directory) not in found:
            path = path[: -len(_DELETED)]
    return _text(path)


def _identity(path: bytes, directory: int) -> Optional[Tuple[int, int]]:
    with contextlib.suppress(OSError):
        stat = os.stat(path, dir_fd=directory)
        return stat.st_dev, stat.st_ino
    return None


def _sees_whole_paths() -> bool:
    """Whether /proc shows cgroups from the root of their hierarchy to this process, cgroup_namespaces(7)."""
    try:
        return os.stat("/proc/self/ns/cgroup").st_ino == _FIRST_CGROUP_NS
    except OSError:
        return False


@lru_cache(maxsize=256)
def _container(data: bytes) -> Optional[Container]:
    """Return the container that /proc/PID/cgroup tells of: by the same hierarchy as the kernel half."""
    paths: Dict[bytes, bytes] = {}
    for line in filter(None, data.split(b"\n")):  # a name may hold other ends of lines
        _, _, rest = line.partition(b":")
        controllers, _, path = rest.partition(b":")
        # Of cgroup v2 there are none named.
        paths.update(dict.fromkeys(controllers.split(b","), path))
    path = next((paths[name] for name in (b"memory", b"pids", b"") if paths.get(name)), b"")
    return containers.parse("/".join(_text(path).split("/")[: 1 + _LEVELS]))


def _content(directory: int, name: str, size: int) -> bytes:
    file = os.open(name, os.O_RDONLY, dir_fd=directory)
    try:
        return os.read(file, size)
    finally:
        os.close(file)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")
