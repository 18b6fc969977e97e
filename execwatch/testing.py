"""For tests of programs that use execwatch: events out of nothing, and a tracer without a kernel.

::

    def test_alarm():
        with fake_tracer([exec_event(argv=("/bin/sh", "-i"))]) as tracer:
            assert list(alarms(tracer)) == [...]
"""

from __future__ import annotations

import itertools
import posixpath
from typing import Any, Dict, Iterable, Optional

from execwatch.events import (
    AnyEvent,
    Credentials,
    Event,
    ExecEvent,
    Executable,
    ExitEvent,
    FailedExecEvent,
    ForkEvent,
    LostEvents,
    Namespaces,
    Session,
)
from execwatch.filters import Filter
from execwatch.tracer import ExecTracer

_BOOT_ID = "5e1f7e57c0de4a11b0075e1f7e57c0de"
_BOOT_NS = 1_700_000_000_000_000_000
_START_NS = 60_000_000_000
_TICK_NS = 10_000_000

#: Of a host's own processes.
_MNT_NS = 4026531841
#: As Linux 6.1 numbers them, see capabilities(7).
_ALL_CAPABILITIES = 2**41 - 1

_numbers = itertools.count(1)


def exec_event(**fields: Any) -> ExecEvent:
    """Return an :class:`~execwatch.ExecEvent`, true to life in all that ``fields`` don't set.

    Later calls give later times and higher pids; ``comm``, ``filename``, ``argc``
    and the keys follow from ``argv``, ``pid`` and ``ppid`` where these are given, and so
    does what an exec captures: ``creds`` from ``uid`` and ``gid``, ``exe`` from ``filename``
    and ``interp``. It ran on the host, in no container; its environment was not asked for.
    """
    process = _process(fields)
    argv = tuple(fields.pop("argv", ("/bin/true",)))
    filename = fields.pop("filename", argv[0] if argv else "/bin/true")
    interp = fields.pop("interp", filename)
    cwd = fields.pop("cwd", "/home/user")
    values = {
        **process,
        "tid": process["pid"],
        "comm": _comm(filename or ""),
        "argv": argv,
        "argv_status": "complete",
        "argc": len(argv),
        "filename": filename,
        "interp": interp,
        "creds": _credentials(process["uid"], process["gid"]),
        "session": Session(sid=process["ppid"], pgid=process["pid"], tty_major=136, tty_minor=0),
        "exe": _executable(posixpath.join(cwd or "/", interp or filename or "/bin/true")),
        "cwd": cwd,
        "namespaces": _namespaces(process["pid"]),
    }
    return ExecEvent(**{**values, **fields})


def _credentials(uid: Optional[int], gid: Optional[int]) -> Optional[Credentials]:
    """Those of somebody who logged in, and of root all there is."""
    if uid is None or gid is None:
        return None
    capabilities = 0 if uid else _ALL_CAPABILITIES
    return Credentials(
        uid=uid, gid=gid, euid=uid, egid=gid, suid=uid, sgid=gid, fsuid=uid, fsgid=gid,
        cap_effective=capabilities, cap_permitted=capabilities, cap_inheritable=0, cap_ambient=0,
        loginuid=uid, sessionid=2,
    )  # fmt: skip


def _executable(path: str) -> Executable:
    return Executable(
        path=posixpath.normpath(path),
        inode=131_842,
        device=0x801,  # sda1
        mode=0o100755,
        size=43_808,
        ctime_ns=_BOOT_NS,
    )


def _namespaces(pid: int) -> Namespaces:
    """All of those that the kernel starts with, see linux/proc_ns.h."""
    return Namespaces(
        mnt=_MNT_NS,
        pid=4026531836,
        net=4026531840,
        uts=4026531838,
        ipc=4026531839,
        cgroup=4026531835,
        user=4026531837,
        time=4026531834,
        vpid=pid,
    )


def _process(fields: Dict[str, Any]) -> Dict[str, Any]:
    """What every event of a process has; takes what it uses out of ``fields``."""
    number = next(_numbers)
    pid = fields.pop("pid", 1000 + number)
    ppid = fields.pop("ppid", 1000)
    uid = fields.pop("uid", 1000)
    owner = 1000 if uid is None else uid
    start = fields.pop("start_boottime_ns", _START_NS + number * _TICK_NS)
    boottime = fields.pop("boottime_ns", (start or _START_NS) + 500_000)
    return {
        "time_ns": _BOOT_NS + boottime,
        "boottime_ns": boottime,
        "cpu": 0,
        "pid": pid,
        "comm": "bash",
        "process_key": f"{_BOOT_ID}-{pid}-{(start or 0) // _TICK_NS}",
        "host_pid": pid,
        "ppid": ppid,
        "parent_comm": "bash",
        "parent_key": None if ppid is None else f"{_BOOT_ID}-{ppid}-{_START_NS // _TICK_NS}",
        "uid": uid,
        "gid": fields.pop("gid", owner),
        "start_boottime_ns": start,
        "cgroup_id": 4321,
        "cgroup_path": f"/user.slice/user-{owner}.slice/session-2.scope",
        "container": None,
        "namespaces": Namespaces(mnt=_MNT_NS),
    }


def failed_exec_event(**fields: Any) -> FailedExecEvent:
    """Return a :class:`~execwatch.FailedExecEvent`: a name that is not there, but for ``fields``."""
    process = _process(fields)
    argv = fields.pop("argv", ("/bin/nothing",))
    values = {
        "tid": process["pid"],
        "argv": argv,
        "argv_status": "unreadable" if argv is None else "complete",
        "filename": argv[0] if argv else None,
        "retval": -2,
    }
    return FailedExecEvent(**{**process, **values, **fields})


def fork_event(**fields: Any) -> ForkEvent:
    """Return a :class:`~execwatch.ForkEvent`, true to life in all that ``fields`` don't set."""
    return ForkEvent(**{**_process(fields), **fields})


def exit_event(**fields: Any) -> ExitEvent:
    """Return a :class:`~execwatch.ExitEvent`: exit code 0 after a moment, but for ``fields``."""
    process = _process(fields)
    values = {
        "exit_code": None if fields.get("signal") else 0,
        "exec_boottime_ns": process["start_boottime_ns"],
    }
    return ExitEvent(**{**process, **values, **fields})


def _comm(filename: str) -> str:
    """The kernel's name for it: the last part, cut to 15 bytes."""
    name = filename.rpartition("/")[2].encode("utf-8", "surrogateescape")
    return name[:15].decode("utf-8", "surrogateescape")


def lost_events(**fields: Any) -> LostEvents:
    """Return a :class:`~execwatch.LostEvents`: one exec, for want of room, but for ``fields``."""
    boottime = fields.pop("boottime_ns", _START_NS + next(_numbers) * _TICK_NS)
    values = {
        "time_ns": _BOOT_NS + boottime,
        "boottime_ns": boottime,
        "cpu": 0,
        "count": 1,
        "reason": "buffer_full",
        "of": "exec",
    }
    return LostEvents(**{**values, **fields})


def fake_tracer(events: Iterable[AnyEvent], filter: Optional[Filter] = None) -> ExecTracer[Event]:
    """Return a tracer that hands over these events, then ends: :func:`execwatch.replay`."""
    from execwatch.recording.replaying import replay

    return replay(events, filter)
