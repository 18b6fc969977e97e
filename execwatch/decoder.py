"""From the kernel half's records to events: bytes in, events out; no I/O.

:mod:`execwatch.wire` says how a record is laid out. Half of an event is decoded at once;
what few programs ask for, when one asks.
"""

from __future__ import annotations

import os
import stat
import struct
from functools import lru_cache
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import attrs

from execwatch import containers
from execwatch.events import (
    AnyProcessEvent,
    ArgvStatus,
    Container,
    Credentials,
    ExecEvent,
    Executable,
    ExitEvent,
    FailedExecEvent,
    ForkEvent,
    Namespaces,
    ProcessEvent,
    Session,
)
from execwatch.wire import (
    ABSENT,
    CONTEXT,
    CONTEXT_BITS,
    FLAGS,
    KINDS,
    LIMITS,
    RECORD,
    VALID,
    Clock,
    EnvNames,
    offset_of,
    struct_of,
    unpacker,
)

#: What an event's times have room for, in 64 bits with their sign: 146 years.
_LATEST_NS = 2**62
_SIZE = struct_of(RECORD).size
_EXEC_SIZE = _SIZE + struct_of(CONTEXT).size


_unpack_first = unpacker(
    RECORD,
    "size", "kind", "flags", "valid", "boottime_ns", "lost",
    "cpu", "pid", "tid", "host_pid", "ppid", "uid", "gid", "argc", "status",
    "filename_size", "interp_size", "exe_size", "cwd_size", "cgroup_size", "env_size", "argv_size",
)  # fmt: skip
#: Behind these, the two names are the rest of it.
_COMMS_AT = offset_of(RECORD, "comm")
_unpack_who = unpacker(
    RECORD,
    "kind", "flags", "valid", "pid", "ppid", "mnt_ns",
    "start_boottime_ns", "parent_start_boottime_ns", "cgroup_id",
    "filename_size", "interp_size", "exe_size", "cwd_size", "cgroup_size",
)  # fmt: skip
_unpack_what = unpacker(RECORD, "valid", "filename_size", "interp_size", "exe_size", "cwd_size")
_unpack_exec_time = unpacker(RECORD, "exec_boottime_ns")
_unpack_namespaces = struct.Struct("<8I").unpack_from
_EXEC, _FAILED, _FORK, _EXIT = KINDS.values()
(
    _PPID, _PARENT_START, _PARENT_COMM, _START, _CGROUP, _MNT_NS, _INTERP, _EXEC_TIME,
    _CREDS, _SESSION, _NAMESPACES, _EXE, _EXE_PATH, _EXE_CTIME, _CWD, _CGROUP_PATH, _ENV,
) = VALID.values()  # fmt: skip
_TRUNCATED, _UNREADABLE = FLAGS["ARGV_TRUNCATED"], FLAGS["ARGV_UNREADABLE"]
_INJECTED, _OWN, _CUT = FLAGS["INJECTED"], FLAGS["OWN"], FLAGS["CGROUP_CUT"]
_CONTAINER_FLAGS = _INJECTED | _OWN | _CUT
_ENV_TRUNCATED = FLAGS["ENV_TRUNCATED"]
#: Of a context: the slices that each nested value is made of.
_CREDS_SLICE = slice(0, offset_of(CONTEXT, "inode"))
_EXE_SLICE = slice(offset_of(CONTEXT, "bits"), offset_of(CONTEXT, "sid"))
#: And in a record: where the rest of it begins.
_SESSION_AT = _SIZE + offset_of(CONTEXT, "sid")
_VPID_AT = _SIZE + offset_of(CONTEXT, "vpid")
_CAPTURED = _CREDS | _EXE | _EXE_PATH | _EXE_CTIME | _CWD


def _builder(cls: type) -> Any:
    """Return the class with its frozenness taken off.

    Filled by plain assignment, which takes a tenth of the time of the frozen
    constructor, then turned into the real class: CPython allows that where both
    have the same base and slots.
    """
    return type(
        f"_{cls.__name__}Builder",
        cls.__bases__,
        {
            "__slots__": tuple(a.name for a in attrs.fields(cls) if not a.inherited),
            "__init__": object.__init__,
            # Both: they share one slot in C.
            "__setattr__": object.__setattr__,
            "__delattr__": object.__delattr__,
        },
    )


_Exec, _Failed, _Fork, _Exit = map(_builder, (ExecEvent, FailedExecEvent, ForkEvent, ExitEvent))
_NamespacesBuilder = _builder(Namespaces)


class Demand:
    """How many events were asked for what :func:`decode_all` had left for later."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count: int = 0


class Decoded(NamedTuple):
    """What became of some records.

    Attributes:
        events: One for each record, in their order, but for those that can't be understood.
        marks: ``lost`` and ``flags`` of those records where either isn't 0, by the event's place.
        errors: Why the others can't: the bytes are not a record that this version knows.
    """

    events: List[AnyProcessEvent]
    marks: Dict[int, Tuple[int, int]]
    errors: List[ValueError]


def decode(
    data: bytes, at: int, clock: Clock, env: EnvNames = False, demand: Optional[Demand] = None
) -> Tuple[AnyProcessEvent, int, int]:
    """Return the event of the record that begins at ``data[at]``, its ``lost`` and its ``flags``.

    Raises:
        ValueError: The bytes are not a record that this version knows.
    """
    events, marks, errors = decode_all(data, (at,), clock, env, demand)
    if errors:
        raise errors[0]
    lost, flags = marks.get(0, (0, 0))
    return events[0], lost, flags


def decode_all(  # noqa: C901, PLR0915  one loop: a call for each would take a tenth of its time
    data: bytes,
    starts: Sequence[int],
    clock: Clock,
    env: EnvNames = False,
    demand: Optional[Demand] = None,
    whole: bool = False,
) -> Decoded:
    """Decode the records that begin at these places of ``data``.

    Args:
        env: Names of the variables that were captured and are to be kept.
        demand: Leave for later what few programs ask for: the event decodes that when it is
            asked, and counts it here. It takes half the time; both together take more.
        whole: Do so for the first event alone.
    """
    events: List[AnyProcessEvent] = []
    marks: Dict[int, Tuple[int, int]] = {}
    errors: List[ValueError] = []
    there, offset_ns = len(data), clock.offset_ns
    event: Any
    cls: type
    for at in starts:
        try:
            (
                size, kind, flags, valid, boottime_ns, lost,
                cpu, pid, tid, host_pid, ppid, uid, gid, argc, status,
                filename_size, interp_size, exe_size, cwd_size, cgroup_size, env_size, argv_size,
            ) = _unpack_first(data, at)  # fmt: skip
        except struct.error as exc:
            errors.append(ValueError(f"record cut short: {exc}"))
            continue
        filename_at = at + (_EXEC_SIZE if kind == _EXEC else _SIZE)
        interp_at = filename_at + filename_size
        exe_at = interp_at + interp_size
        env_at = exe_at + exe_size + cwd_size + cgroup_size
        argv_at = env_at + env_size
        end = argv_at + argv_size
        behind = at + size
        if end > behind or behind > there:
            text = f"record of {size} bytes, {there - at} there, strings up to {end - at}"
            errors.append(ValueError(text))
            continue
        if boottime_ns > _LATEST_NS:
            text = f"record of a time that no machine has reached: {boottime_ns} ns after boot"
            errors.append(ValueError(text))
            continue

        if kind == _EXEC:
            event, cls = _Exec(), ExecEvent
            event.tid = tid
            argv = data[argv_at:end].decode("utf-8", "surrogateescape").split("\0")
            if not argv[-1]:  # behind the last NUL; without, the last one is cut
                argv.pop()
            event.argv = tuple(argv)
            event.argv_status = _argv_status(flags) if flags else "complete"
            event.argc = argc or len(argv)  # 0 also where a kprobe was missed
            event.retval = 0
            event.filename = filename = _text(data[filename_at:interp_at]) if filename_size else None
            event.interp = None
            if valid & _INTERP:
                event.interp = _text(data[interp_at:exe_at]) if interp_size else filename
            event.env = event.env_status = None
            if env:
                event.env_status = _env_status(flags, valid)
                event.env = _env(data[env_at:argv_at], env) if valid & _ENV else None
        elif kind == _FAILED:
            event, cls = _Failed(), FailedExecEvent
            event.tid = tid
            event.argv = None if flags & _UNREADABLE else _argv(data[argv_at:end])
            event.argv_status = _argv_status(flags)
            event.filename = _text(data[filename_at:interp_at]) if filename_size else None
            event.retval = -status
        elif kind == _FORK:
            event, cls = _Fork(), ForkEvent
        elif kind == _EXIT:
            event, cls = _Exit(), ExitEvent
            event.signal = signal = status & 0x7F or None
            event.exit_code = status >> 8 & 0xFF if signal is None else None
            event.core_dumped = bool(status & 0x80)
            event.exec_boottime_ns = _unpack_exec_time(data, at)[0] if valid & _EXEC_TIME else None
        else:
            errors.append(ValueError(f"record of unknown kind {kind}"))
            continue

        event.time_ns = boottime_ns + offset_ns
        event.boottime_ns = boottime_ns
        event.cpu = cpu
        event.pid = pid
        event.comm, parent_comm = _comms(data[at + _COMMS_AT : at + _SIZE])
        event.host_pid = host_pid
        event.ppid = ppid if valid & _PPID else None
        event.parent_comm = parent_comm if valid & _PARENT_COMM else None
        event.uid = uid
        event.gid = gid
        if demand is None:
            (
                event.parent_key, event.start_boottime_ns,
                event.cgroup_id, event.cgroup_path, event.container, event.namespaces, event.process_key,
            ) = _who(data, at, clock)  # fmt: skip
            if kind == _EXEC:
                event.creds, event.session, event.exe, event.cwd = _what(data, at)
        else:
            event.rest_ = _complete, data[at:env_at], clock, demand
            if whole:
                demand = None
        event.__class__ = cls
        if lost or flags:
            marks[len(events)] = lost, flags
        events.append(event)
    return Decoded(events, marks, errors)


def _who(data: bytes, at: int, clock: Clock) -> Tuple[Any, ...]:
    """Return the fields of _WHO."""
    (
        kind, flags, valid, pid, ppid, mnt_ns, start_boottime_ns, parent_start_boottime_ns, cgroup_id,
        filename_size, interp_size, exe_size, cwd_size, cgroup_size,
    ) = _unpack_who(data, at)  # fmt: skip
    parent_key = cgroup_path = container = namespaces = None
    if valid & _PPID and valid & _PARENT_START:
        parent_key = clock.process_key(ppid, parent_start_boottime_ns)
    if valid & _CGROUP_PATH:
        cgroup_at = at + (_EXEC_SIZE if kind == _EXEC else _SIZE)
        cgroup_at += filename_size + interp_size + exe_size + cwd_size
        path = data[cgroup_at : cgroup_at + cgroup_size]
        cgroup_path, container = _cgroup(path, flags & _CONTAINER_FLAGS)
    if valid & _NAMESPACES and kind == _EXEC:
        namespaces = _namespaces(mnt_ns, data, at + _VPID_AT)
    elif valid & _MNT_NS:
        namespaces = _mount_ns(mnt_ns)
    return (
        parent_key,
        start_boottime_ns if valid & _START else None,
        cgroup_id if valid & _CGROUP else None,
        cgroup_path,
        container,
        namespaces,
        clock.process_key(pid, start_boottime_ns),
    )


def _what(data: bytes, at: int) -> Tuple[Any, ...]:
    """Return the fields of _WHAT, of an exec."""
    valid, filename_size, interp_size, exe_size, cwd_size = _unpack_what(data, at)
    creds = session = exe = cwd = None
    if valid & _CAPTURED:
        exe_at = at + _EXEC_SIZE + filename_size + interp_size
        paths = data[exe_at : exe_at + exe_size + cwd_size]
        creds, exe, cwd = _captured(data[at + _SIZE : at + _SESSION_AT], paths, exe_size, valid & _CAPTURED)
    if valid & _SESSION:
        session = _session(data[at + _SESSION_AT : at + _VPID_AT])
    return creds, session, exe, cwd


def _complete(event: AnyProcessEvent, data: bytes, clock: Clock, demand: Demand) -> None:
    """Decode what was left for later.

    Threads that do so at once all set the same. ``process_key`` comes last: where it is there, all is.

    Args:
        data: The record, up to its paths.
    """
    demand.count += 1
    if event.kind == "exec":
        for put, value in zip(_WHAT, _what(data, 0)):
            put(event, value)
    for put, value in zip(_WHO, _who(data, 0, clock)):
        put(event, value)
    try:  # noqa: SIM105  suppress() would take half a microsecond
        object.__delattr__(event, "rest_")
    except AttributeError:  # another was quicker
        pass


def _setters(cls: type, *names: str) -> Tuple[Callable[[Any, Any], None], ...]:
    """What sets fields of frozen values."""
    return tuple(vars(cls)[name].__set__ for name in names)


_WHO = _setters(
    ProcessEvent,
    "parent_key",
    "start_boottime_ns",
    "cgroup_id",
    "cgroup_path",
    "container",
    "namespaces",
    "process_key",
)
_WHAT = _setters(ExecEvent, "creds", "session", "exe", "cwd")


def _argv_status(flags: int) -> ArgvStatus:
    return "unreadable" if flags & _UNREADABLE else "truncated" if flags & _TRUNCATED else "complete"


def _env_status(flags: int, valid: int) -> ArgvStatus:
    return "unreadable" if not valid & _ENV else "truncated" if flags & _ENV_TRUNCATED else "complete"


# The same few names, paths and rights stand on event after event: looked up, they take
# a quarter of the time of decoding them, and the events share them.


@lru_cache(maxsize=1024)
def _text(data: bytes) -> str:
    """Decode a C string: what a re-used buffer kept behind the NUL is none of it."""
    return data.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


@lru_cache(maxsize=1024)
def _comms(data: bytes) -> Tuple[str, str]:
    return _text(data[:16]), _text(data[16:])


def _argv(data: bytes) -> Tuple[str, ...]:
    """Split at the NULs. Each argument ends with one, but for the last of a truncated row."""
    if not data:
        return ()
    text = data.decode("utf-8", "surrogateescape")
    return tuple((text[:-1] if text[-1] == "\0" else text).split("\0"))


@lru_cache(maxsize=1024)
def _path(data: bytes) -> Optional[str]:
    """Turn a path round that stands from the leaf to the root, each name with its NUL.

    None where it is longer than any that the kernel gives out (PATH_MAX).
    """
    names = data.decode("utf-8", "surrogateescape").split("\0")[:-1]
    return "/" + "/".join(reversed(names)) if len(data) < LIMITS["PATH_SIZE_MAX"] else None


def _env(data: bytes, wanted: EnvNames) -> Tuple[Tuple[str, str], ...]:
    pairs = (entry.partition("=") for entry in _argv(data))
    return tuple((name, value) for name, _, value in pairs if wanted is True or name in wanted)  # type: ignore[operator]


@lru_cache(maxsize=1024)
def _captured(
    context: bytes, paths: bytes, exe_size: int, valid: int
) -> Tuple[Optional[Credentials], Optional[Executable], Optional[str]]:
    """What the same program has again and again where the same user runs it: looked up all at once."""
    exe = None
    if valid & _EXE:
        exe = _exe(context[_EXE_SLICE], paths[:exe_size], valid & (_EXE_PATH | _EXE_CTIME))
    return (
        _creds(context[_CREDS_SLICE]) if valid & _CREDS else None,
        exe,
        _path(paths[exe_size:]) if valid & _CWD else None,
    )


@lru_cache(maxsize=256)
def _creds(data: bytes) -> Credentials:
    (
        uid, gid, suid, sgid, euid, egid, fsuid, fsgid,
        inheritable, permitted, effective, bounding, ambient, loginuid, sessionid, owner, group, bits, mode,
    ) = struct.unpack("<8I5Q6I", data)  # fmt: skip
    secure = bits & CONTEXT_BITS["SECURE"]
    set_id = mode if bits & CONTEXT_BITS["GAINED"] and not bits & CONTEXT_BITS["NOSUID"] else 0
    # Where a bit leads back to the real id, only AT_SECURE tells that it did, if nothing else is the reason.
    led_back = secure and euid == uid and egid == gid and (uid == 0 or not permitted)
    setuid = set_id & stat.S_ISUID and (euid != uid or (led_back and euid == owner))
    setgid = set_id & stat.S_ISGID and set_id & stat.S_IXGRP and (egid != gid or (led_back and egid == group))
    if ambient or not permitted:  # a file with capabilities clears the ambient set
        file_capabilities: Optional[bool] = False
    else:
        became_root = bool(setuid) and uid != 0
        file_capabilities = _file_capabilities(
            0 in (uid, euid), became_root, bits, permitted & bounding == bounding
        )
    return Credentials(
        uid=uid, gid=gid, suid=suid, sgid=sgid, euid=euid, egid=egid, fsuid=fsuid, fsgid=fsgid,
        cap_effective=effective, cap_permitted=permitted, cap_inheritable=inheritable, cap_ambient=ambient,
        loginuid=None if loginuid == ABSENT else loginuid,
        sessionid=None if sessionid == ABSENT else sessionid,
        setuid=bool(setuid),
        setgid=bool(setgid),
        file_capabilities=file_capabilities,
        secureexec=bool(secure) if bits & CONTEXT_BITS["SECURE_KNOWN"] else None,
    )  # fmt: skip


def _file_capabilities(root: bool, became_root: bool, bits: int, all_of_them: bool) -> Optional[bool]:
    """Whether permitted capabilities come from the file, where the ambient set is empty.

    See "Transformation of capabilities during execve()" in capabilities(7): root gets
    all of the bounding set anyway, another user what the file gives.

    Args:
        root: A real or effective user id is 0.
        became_root: By the set-user-ID bit, in this exec.
        all_of_them: The whole bounding set is permitted.
    """
    if bits & CONTEXT_BITS["USER_NS"]:  # root there has another number here
        return None
    if not root or became_root or not bits & CONTEXT_BITS["GAINED"]:
        return not root or not all_of_them
    # Root that gained less than all: by the file, or because more was not allowed (no_new_privs).
    return False if all_of_them else None


@lru_cache(maxsize=256)
def _session(data: bytes) -> Session:
    sid, pgid, major, minor = struct.unpack("<4I", data)
    tty = (major, minor) if major or minor else (None, None)
    return Session(sid=sid or None, pgid=pgid or None, tty_major=tty[0], tty_minor=tty[1])


@lru_cache(maxsize=1024)
def _exe(data: bytes, path: bytes, valid: int) -> Executable:
    # Size and time are signed, as in the kernel (loff_t, time64_t).
    bits, mode, inode, size, ctime_s, ctime_ns, device = struct.unpack("<2IQ2q2I", data)
    changed = ctime_s * 1_000_000_000 + ctime_ns
    text = _path(path) if valid & _EXE_PATH else None
    memfd = bool(bits & CONTEXT_BITS["DETACHED"] and text and text.startswith("/memfd:"))
    return Executable(
        path=text,
        inode=inode,
        # As the kernel has it: 12 bits and 20 bits. makedev(3) has it otherwise.
        device=os.makedev(device >> 20, device & 0xFFFFF),
        mode=mode,
        size=size,
        # A file system of its owner's making (FUSE) may claim any time; files hold 64 bits of it.
        ctime_ns=changed if valid & _EXE_CTIME and -(2**63) <= changed < 2**63 else None,
        memfd=memfd,
        deleted=memfd or bool(bits & CONTEXT_BITS["UNHASHED"]),
    )


@lru_cache(maxsize=4096)
def _cgroup(data: bytes, flags: int) -> Tuple[Optional[str], Optional[Container]]:
    path = _path(data)
    container = containers.parse(path) if path else None
    if container and flags & (_INJECTED | _OWN):
        container = attrs.evolve(container, injected=bool(flags & _INJECTED))
    return None if flags & _CUT else path, container


@lru_cache(maxsize=256)
def _mount_ns(mnt: int) -> Namespaces:
    return Namespaces(mnt=mnt)


def _namespaces(mnt: int, data: bytes, at: int) -> Namespaces:
    value: Any = _NamespacesBuilder()
    vpid, pid, net, uts, ipc, cgroup, user, time = _unpack_namespaces(data, at)
    value.mnt = mnt or None
    value.pid = pid or None
    value.net = net or None
    value.uts = uts or None
    value.ipc = ipc or None
    value.cgroup = cgroup or None
    value.user = user or None
    value.time = time or None
    value.vpid = vpid or None
    value.__class__ = Namespaces
    return value  # type: ignore[no-any-return]
