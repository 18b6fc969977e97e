"""What a user receives: frozen values, one class a kind of event.

Every event pickles, hashes, compares by value, and never changes. Unknown is
None, never 0 or ``""``. Times are in nanoseconds. Text is UTF-8 with
``surrogateescape``: ``os.fsencode`` gives the bytes back under a UTF-8 locale,
``text.encode("utf-8", "surrogateescape")`` under any.

:func:`ExecEvent.to_dict` and :func:`event_from_dict` are the way to JSON and
back, without loss.
"""

from __future__ import annotations

import errno
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Mapping, Optional, Sequence, Tuple, Type, Union

import attrs
from typing_extensions import TypeAlias, final

from execwatch import render
from execwatch.plain import from_plain, short, to_plain

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)

ArgvStatus: TypeAlias = Literal["complete", "truncated", "unreadable"]


class Event:
    """Base of every event; tells what all of them have.

    Attributes:
        kind: The kind, as in ``to_dict()["kind"]``.
        time_ns: Unix time.
        boottime_ns: Time since boot, suspend included (CLOCK_BOOTTIME); events are ordered by it.
    """

    #: What sets the fields that an event from the kernel doesn't have yet, and its arguments. Not "_rest":
    #: msgspec looks into slots itself. It passes over what begins so, and would write half an event; of
    #: this it says that it can't.
    __slots__ = ("rest_",)

    kind: ClassVar[str]
    time_ns: int
    boottime_ns: int

    if not TYPE_CHECKING:  # for a type checker it would mean that there is any attribute

        def __getattr__(self, name: str) -> Any:
            # Only where a field is not there: half of them few programs ask for, see decoder.decode_all.
            try:
                complete, *arguments = object.__getattribute__(self, "rest_")
            except AttributeError:  # no such attribute; or another thread has just done it
                return object.__getattribute__(self, name)
            complete(self, *arguments)
            return object.__getattribute__(self, name)

    @property
    def time(self) -> datetime:
        """Unix time as an aware datetime in UTC; microseconds, the rest is cut."""
        return _EPOCH + timedelta(microseconds=self.time_ns // 1000)

    def to_dict(self) -> dict[str, Any]:
        """Return the event as JSON types, with ``kind``.

        Bytes that are not UTF-8 show as U+FFFD, and the true ones stand in
        ``raw``: ``{field: base64}``; for a tuple a list of them, null where an
        element has no such bytes; for a nested value an object.
        """
        data, raw = to_plain(self)
        data = {"kind": self.kind, **data}
        if raw:
            data["raw"] = raw
        return data

    def _repr_html_(self) -> str:
        """For notebooks: a line that opens to all that is known."""
        from execwatch import html

        return html.box(_title(self), html.fields(self, ("time", str(self.time))), opened=False)


@final
@attrs.frozen(kw_only=True, weakref_slot=False)
class Namespaces:
    """Ids of a process's namespaces: the inode numbers that /proc/PID/ns shows, see namespaces(7).

    All of them where an exec captured ``"namespaces"``, else ``mnt`` alone.

    Attributes:
        mnt: Mount namespace.
        pid: Process id namespace.
        net: Network namespace.
        uts: Namespace of host and domain name.
        ipc: Namespace of System V IPC and POSIX message queues.
        cgroup: Cgroup namespace.
        user: User namespace.
        time: Time namespace (since Linux 5.6).
        vpid: The process id in its own pid namespace, the innermost one.
    """

    mnt: Optional[int] = None
    pid: Optional[int] = None
    net: Optional[int] = None
    uts: Optional[int] = None
    ipc: Optional[int] = None
    cgroup: Optional[int] = None
    user: Optional[int] = None
    time: Optional[int] = None
    vpid: Optional[int] = None


@final
@attrs.frozen(kw_only=True, weakref_slot=False)
class Credentials:
    """Whose rights a program runs with, see credentials(7) and capabilities(7).

    Ids are those of the initial user namespace. Capability sets are bit masks:
    ``mask >> 21 & 1`` is CAP_SYS_ADMIN. Whether the file's bits and capabilities took
    effect is concluded from the outcome; where a caller with no_new_privs (prctl(2)) had
    effective ids that weren't its real ones, it may be wrong.

    Attributes:
        uid, gid: Real ids.
        euid, egid: Effective ids.
        suid, sgid: Saved ids.
        fsuid, fsgid: File-system ids.
        cap_effective, cap_permitted, cap_inheritable, cap_ambient: Capability sets.
        loginuid: Audit login uid: who logged in, kept through su and sudo; None where
            it was never set, or by a kernel without CONFIG_AUDIT.
        sessionid: Audit session id; None likewise.
        setuid: The file's set-user-ID bit took effect in this exec. Where it led back to the
            real user id, that can be told since Linux 6.16.
        setgid: Its set-group-ID bit did, likewise.
        file_capabilities: Capabilities of the file (setcap(8)) took effect in this exec;
            None where they could also be root's: in another user namespace, or where
            root was not allowed to get all (no_new_privs).
        secureexec: The kernel told the program not to trust its environment (AT_SECURE,
            getauxval(3)): one of the above, or a security module wanted it.
    """

    uid: int
    gid: int
    euid: int
    egid: int
    suid: int
    sgid: int
    fsuid: int
    fsgid: int
    cap_effective: int
    cap_permitted: int
    cap_inheritable: int
    cap_ambient: Optional[int] = None
    loginuid: Optional[int] = None
    sessionid: Optional[int] = None
    setuid: bool = False
    setgid: bool = False
    file_capabilities: Optional[bool] = False
    secureexec: Optional[bool] = False


@final
@attrs.frozen(kw_only=True, weakref_slot=False)
class Session:
    """The session and job that a process belongs to, see credentials(7).

    Attributes:
        sid: Session id: the pid of its leader, in the tracer's pid namespace; None where
            it is not visible there.
        pgid: Process group id, likewise.
        tty_major, tty_minor: Device number of the controlling terminal; None where it has none.
    """

    sid: Optional[int] = None
    pgid: Optional[int] = None
    tty_major: Optional[int] = None
    tty_minor: Optional[int] = None


@final
@attrs.frozen(kw_only=True, weakref_slot=False)
class Executable:
    """The file whose code runs: for a script its interpreter's.

    Attributes:
        path: Absolute, as the kernel resolved it: through symbolic links, mounts and
            overlays, up to the root of the process's mount namespace (not of its
            chroot). None where it leads elsewhere: to a file of another mount
            namespace (``/proc/PID/root/...``, a descriptor), or on a mount that was
            taken away. And where it is longer than 4,095 bytes, or deeper than 48
            directories (some more, where few mounts are on the way).
            ``/memfd:NAME`` for a memfd.
        inode: Inode number.
        device: Number of the device that the file system is on, as :func:`os.makedev`
            makes it. Not what stat(2) tells on btrfs, which makes up others.
        mode: Type and permissions, as in ``st_mode``.
        size: In bytes.
        ctime_ns: When the inode last changed, Unix time. None too where 64 bits don't hold
            it (before 1677, after 2262), as a FUSE file system may claim.
        memfd: It has never had a name in a file system: memfd_create(2).
        deleted: The name that it was executed by is gone.
    """

    path: Optional[str] = None
    inode: Optional[int] = None
    device: Optional[int] = None
    mode: Optional[int] = None
    size: Optional[int] = None
    ctime_ns: Optional[int] = None
    memfd: bool = False
    deleted: bool = False


@final
@attrs.frozen(kw_only=True, weakref_slot=False)
class Container:
    """The container that a process runs in, as its cgroup's path tells.

    Attributes:
        id: The container's id, whole.
        runtime: ``"docker"``, ``"containerd"``, ``"cri-o"``, ``"podman"`` and so on; None where
            the path doesn't tell.
        pod_uid: Uid of the Kubernetes pod.
        injected: Put into a container that was running (``docker exec``, ``runc exec``; nsenter(1)
            where it joins the cgroup too), or started by such a process; False: the container's
            own. None where it shares the pid namespace of what started it, or has not entered
            the container's yet, as the runtime's own first steps, or has more than 31 ancestors
            up to the host's. A process whose injected ancestors have ended counts as the
            container's own; where a process of the container makes a pid namespace with
            unshare(2), all but its first child there count as injected.
    """

    id: str
    runtime: Optional[str] = None
    pod_uid: Optional[str] = None
    injected: Optional[bool] = None


@attrs.frozen(kw_only=True, weakref_slot=False)
class ProcessEvent(Event):
    """Base of the events that happen to a process: who it was at that moment.

    Attributes:
        cpu: The processor it ran on.
        pid: Process id (of the thread group) in the tracer's pid namespace.
        comm: Name of the task, at most 15 bytes.
        process_key: Boot id, pid and start time in clock ticks: names a process
            for good, where pids are used again.
        host_pid: Process id in the initial pid namespace.
        ppid: Id of the parent process; None where the tracer's pid namespace has none for it.
        parent_comm: Name of the parent's leading thread.
        parent_key: The parent's ``process_key``.
        uid: Real user id, in the initial user namespace.
        gid: Real group id, in the initial user namespace.
        start_boottime_ns: When the process (not the program) started.
        cgroup_id: Id (inode number) of its cgroup: cgroup v2, or the memory (else
            pids) hierarchy of v1 where that is in use.
        cgroup_path: Its path from the root of that hierarchy, whatever cgroup namespace
            anybody is in; captured with ``"container"``. None also where it has more
            than 24 levels.
        container: The container it runs in, captured with ``"container"``; None on the
            host (and where more than 150 levels of cgroups hide it: then
            ``cgroup_path`` is None as well).
        namespaces: Ids of its namespaces.
    """

    time_ns: int
    boottime_ns: int
    cpu: int
    pid: int
    comm: str
    process_key: str
    host_pid: Optional[int] = None
    ppid: Optional[int] = None
    parent_comm: Optional[str] = None
    parent_key: Optional[str] = None
    uid: Optional[int] = None
    gid: Optional[int] = None
    start_boottime_ns: Optional[int] = None
    cgroup_id: Optional[int] = None
    cgroup_path: Optional[str] = None
    container: Optional[Container] = None
    namespaces: Optional[Namespaces] = None


@final
@attrs.frozen(kw_only=True, weakref_slot=False)
class ExecEvent(ProcessEvent):
    """A program that started: an execve(2) or execveat(2) that succeeded.

    It says what the kernel used: taken when the new program was in place and
    had not run an instruction, so that nothing can have changed it. ``comm`` is
    the name after the exec.

    Attributes:
        tid: Id of the thread that called exec. Not ``pid`` where a thread other
            than the leader called; afterwards the kernel gives it the leader's.
            Inside a pid namespace of its own a tracer always sees ``pid`` here.
        argv: The arguments as the kernel copied them, ``argv[0]`` included.
        argv_status: ``"complete"``; ``"truncated"``: the last element may be a
            part, and ``argc`` tells how many there were; ``"unreadable"``: ``()``.
        argc: Number of arguments.
        retval: 0.
        filename: The path as it was passed to the kernel, perhaps relative. Not to be trusted.
        interp: The program that the kernel loaded: for a script its interpreter, else ``filename``.

    And those that ``ExecTracer(capture=..., env=...)`` asks for, else None:

    Attributes:
        creds: Whose rights it runs with.
        session: Session, process group, controlling terminal.
        exe: The file whose code runs.
        cwd: Working directory: absolute, up to the root of the mount namespace, with the
            limits of :attr:`Executable.path`. One that was removed keeps its path.
        env: The environment as pairs of name and value, in order; where names were
            asked for, those of them that are there. Where a name is there twice, getenv(3)
            takes the first.
        env_status: As ``argv_status``; up to 16 KiB are read.
    """

    kind: ClassVar[Literal["exec"]] = "exec"

    tid: int
    argv: Tuple[str, ...]
    argv_status: ArgvStatus
    argc: int
    retval: int = 0
    filename: Optional[str] = None
    interp: Optional[str] = None
    creds: Optional[Credentials] = None
    session: Optional[Session] = None
    exe: Optional[Executable] = None
    cwd: Optional[str] = None
    env: Optional[Tuple[Tuple[str, str], ...]] = None
    env_status: Optional[ArgvStatus] = None

    @property
    def command_line(self) -> str:
        """``argv`` as one printable line, quoted for a shell."""
        return render.command_line(self.argv)


@final
@attrs.frozen(kw_only=True, weakref_slot=False)
class FailedExecEvent(ProcessEvent):
    """An attempt to start a program that the kernel refused; the process goes on as it was.

    Where a program is searched along PATH, most attempts fail. ``filename`` and
    ``argv`` were read from the caller's memory when the call returned: another of
    its threads may have changed them.

    Attributes:
        tid: Id of the thread that called exec.
        filename: As passed; None where it could not be read.
        argv: As passed; None where it could not be read.
        argv_status: ``"complete"``; ``"truncated"``: there was more. Of at most 64
            arguments up to 4,095 bytes each are kept, until ``argv_size`` or 20 KiB
            are exceeded; ``"unreadable"``.
        retval: What the call returned: the negative errno.
    """

    kind: ClassVar[Literal["failed_exec"]] = "failed_exec"

    tid: int
    filename: Optional[str] = None
    argv: Optional[Tuple[str, ...]] = None
    argv_status: ArgvStatus
    retval: int

    @property
    def error(self) -> str:
        """The name of the error, e.g. ``"ENOENT"``."""
        return errno.errorcode.get(-self.retval, str(-self.retval))

    @property
    def command_line(self) -> str:
        """``argv``, or ``filename`` where that is unknown, as one printable line."""
        return render.command_line(self.argv or ((self.filename,) if self.filename else ()))


@final
@attrs.frozen(kw_only=True, weakref_slot=False)
class ForkEvent(ProcessEvent):
    """A process that started as a copy of its parent: fork, vfork, clone; not a thread.

    ``pid`` and all else tell of the new process; its parent is ``ppid``.
    """

    kind: ClassVar[Literal["fork"]] = "fork"


@final
@attrs.frozen(kw_only=True, weakref_slot=False)
class ExitEvent(ProcessEvent):
    """A process that ended: its last thread has gone.

    Attributes:
        exit_code: What it passed to exit; None where a signal ended it.
        signal: The signal that ended it, else None.
        core_dumped: Whether it left a core.
        exec_boottime_ns: When its program started; None where that was not seen:
            it ran before the tracer, or never executed.
    """

    kind: ClassVar[Literal["exit"]] = "exit"

    exit_code: Optional[int] = None
    signal: Optional[int] = None
    core_dumped: bool = False
    exec_boottime_ns: Optional[int] = None

    @property
    def lifetime_ns(self) -> Optional[int]:
        """Time since the process started."""
        return None if self.start_boottime_ns is None else self.boottime_ns - self.start_boottime_ns

    @property
    def runtime_ns(self) -> Optional[int]:
        """Time since its program started."""
        return None if self.exec_boottime_ns is None else self.boottime_ns - self.exec_boottime_ns


LostReason: TypeAlias = Literal["buffer_full", "skipped"]


@final
@attrs.frozen(kw_only=True, weakref_slot=False)
class LostEvents(Event):
    """A gap: events that happened and are not in the stream. It lies before this one.

    Attributes:
        cpu: The processor they were lost on; None where the kernel doesn't tell.
        count: How many.
        reason: ``"buffer_full"``: the reader was too slow; ``"skipped"``: the kernel
            did not run the program, because it interrupted itself.
        of: The kind of the events lost.
    """

    kind: ClassVar[Literal["lost"]] = "lost"

    time_ns: int
    boottime_ns: int
    cpu: Optional[int] = None
    count: int
    reason: LostReason
    of: str


@final
@attrs.frozen(kw_only=True, weakref_slot=False)
class LostCounts:
    """Events lost, by reason (see :class:`LostEvents`).

    Attributes:
        buffer_full: No room, because the reader was too slow.
        skipped: The kernel did not run the program, because it interrupted itself (told since Linux 5.12).
        undecodable: Records that were not understood; never, but for a defect.
        closed: In the buffer or handed to nobody when the tracer was closed.
    """

    buffer_full: int = 0
    skipped: int = 0
    undecodable: int = 0
    closed: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.buffer_full + self.skipped + self.undecodable + self.closed


@final
@attrs.frozen(kw_only=True, weakref_slot=False)
class KindStats:
    """Counters of one kind of event: ``seen == delivered + filtered + lost + pending``.

    Attributes:
        seen: Happened while the probe was attached.
        delivered: Handed to the program.
        filtered: Left out by the filter, or not visible in the tracer's pid namespace.
        lost: See ``lost_by_reason``.
        pending: Waiting in the buffer, or read and not yet handed over.
    """

    seen: int = 0
    delivered: int = 0
    filtered: int = 0
    pending: int = 0
    lost_by_reason: LostCounts = LostCounts()

    @property
    def lost(self) -> int:
        return self.lost_by_reason.total


@final
@attrs.frozen(kw_only=True, weakref_slot=False)
class Stats:
    """Absolute counters since the start: compare with an older reading.

    The totals over all kinds, and the same for each kind; a kind that was not
    asked for stays 0.

    Attributes:
        exec: Of successful execs.
        failed: Of attempts that the kernel refused.
        fork: Of processes that started.
        exit: Of processes that ended.
        argv_truncated: Execs with more argv than ``argv_size``, those that were filtered aside.
        argv_unreadable: Execs whose argv could not be read, those that were filtered aside.
        subtree_full: Processes that a filter's ``descendants_of`` could not follow for want of room:
            their events may be missing.
    """

    exec: KindStats = KindStats()
    failed: KindStats = KindStats()
    fork: KindStats = KindStats()
    exit: KindStats = KindStats()
    argv_truncated: int = 0
    argv_unreadable: int = 0
    subtree_full: int = 0

    @property
    def seen(self) -> int:
        """Happened, of all kinds."""
        return sum(kind.seen for kind in self._kinds())

    @property
    def delivered(self) -> int:
        """Handed to the program, of all kinds."""
        return sum(kind.delivered for kind in self._kinds())

    @property
    def filtered(self) -> int:
        """Left out by the filter, of all kinds."""
        return sum(kind.filtered for kind in self._kinds())

    @property
    def lost(self) -> int:
        """Lost, of all kinds, for any reason."""
        return sum(kind.lost for kind in self._kinds())

    @property
    def pending(self) -> int:
        """Waiting, of all kinds."""
        return sum(kind.pending for kind in self._kinds())

    def _kinds(self) -> Tuple[KindStats, ...]:
        return self.exec, self.failed, self.fork, self.exit


def _title(event: Event) -> Sequence[Tuple[str, str]]:
    """An event in a line: its parts, as :mod:`execwatch.html` takes them."""
    kind = (f"{event.kind} ", "aside")
    if isinstance(event, LostEvents):
        return kind, (f"{event.count} of {event.of}: {event.reason}", "bad")
    if isinstance(event, FailedExecEvent):
        return kind, (f"{event.pid} {event.command_line} ", ""), (event.error, "bad")
    if isinstance(event, ExecEvent):
        return kind, (f"{event.pid} {event.command_line}", "")
    assert isinstance(event, ProcessEvent)
    return kind, (f"{event.pid} {render.quote(event.comm)}", "")


AnyProcessEvent: TypeAlias = Union[ExecEvent, FailedExecEvent, ForkEvent, ExitEvent]
AnyEvent: TypeAlias = Union[AnyProcessEvent, LostEvents]

#: The kinds, by their name.
KINDS: Mapping[str, Type[AnyEvent]] = {
    cls.kind: cls for cls in (ExecEvent, FailedExecEvent, ForkEvent, ExitEvent, LostEvents)
}


def event_from_dict(data: Mapping[str, Any]) -> AnyEvent:
    """Return the event that :meth:`Event.to_dict` told of.

    Keys that this version doesn't know are ignored.

    Raises:
        ValueError: Unknown ``kind``; or a field is missing, or not of the type that its class
            declares, or a number of more than 64 bits: the message names it.
    """
    kind = data.get("kind")
    cls: Optional[Type[AnyEvent]] = KINDS.get(kind) if isinstance(kind, str) else None
    if cls is None:
        raise ValueError(f"unknown kind of event {short(kind)}: expected one of {', '.join(KINDS)}")
    try:
        return from_plain(cls, data, data.get("raw"))
    except ValueError as exc:
        raise ValueError(f"not an event of kind {cls.kind!r}: {exc}") from None
