"""The verb: :class:`ExecTracer`."""

from __future__ import annotations

import os
import warnings
from types import TracebackType
from typing import (
    TYPE_CHECKING,
    Any,
    AsyncIterator,
    Callable,
    FrozenSet,
    Generic,
    Iterable,
    Iterator,
    List,
    Mapping,
    Optional,
    Tuple,
    Type,
    Union,
    overload,
)

from typing_extensions import Literal, Self, TypeAlias, TypeVar

from execwatch import arguments
from execwatch.errors import StateError
from execwatch.events import (
    KINDS,
    Event,
    ExecEvent,
    ExitEvent,
    FailedExecEvent,
    ForkEvent,
    LostEvents,
    Stats,
)
from execwatch.filters import Filter, Matcher, names_containers
from execwatch.iterators import AsyncEvents, Events, fill
from execwatch.source import Source
from execwatch.stream import FORKED, Stream

if TYPE_CHECKING:
    from execwatch.processes import ProcessTable
    from execwatch.users import Users

E_co = TypeVar("E_co", bound=Event, default=ExecEvent, covariant=True)
_F = TypeVar("_F", bound=Callable[..., object])
Probe: TypeAlias = Literal["auto", "tracepoint", "kprobe"]
Buffer: TypeAlias = Literal["auto", "ring", "perf"]
Part: TypeAlias = Literal["creds", "session", "namespaces", "exe", "cwd", "container"]

#: All that can be captured, and what is captured by default.
CAPTURE: Tuple[Part, ...] = ("creds", "session", "namespaces", "exe", "cwd", "container")
DEFAULT_CAPTURE: Tuple[Part, ...] = ("creds", "namespaces", "exe", "cwd", "container")

#: The option that each further kind of event needs.
_OPTIONS = {
    FailedExecEvent.kind: "failed",
    ForkEvent.kind: "forks",
    ExitEvent.kind: "exits",
    LostEvents.kind: "lost",
}

_Registered = Tuple[str, Callable[[Any], object], Optional[Matcher]]

DEFAULT_BUFFER_SIZE = 4 * 1024 * 1024
DEFAULT_ARGV_SIZE = 16 * 1024
#: What fits into a scratch buffer in the kernel; more goes straight into the ring.
SMALL_ARGV_SIZE = 16 * 1024
MAX_ARGV_SIZE = 2 * 1024 * 1024
MAX_BUFFER_SIZE = 1 << 30


class ExecTracer(Generic[E_co]):
    """Every program that starts, as typed events.

    Attached and ready when ``with`` or :meth:`start` returns; a tracer starts once::

        with ExecTracer() as tracer:
            for event in tracer.events():
                print(event.pid, event.comm, event.argv)

    :meth:`events`, :meth:`read`, ``async for`` and :meth:`dispatch` draw on one
    queue: what one took and did not hand over (``break``, ``count``, Ctrl-C, a
    cancelled task) the next one gets. One of them at a time.

    A tracer belongs to its process. After ``os.fork()`` the child's copy is closed
    there; forks made by C code that bypasses Python's hooks are not noticed.

    Args:
        filter: Which events; None: all.
        failed: Also the attempts to execute that the kernel refused
            (:class:`~execwatch.FailedExecEvent`). This slows every system call of the
            machine by some tens of nanoseconds; nothing else here does. x86_64 only.
        forks: Also processes that start (:class:`~execwatch.ForkEvent`).
        exits: Also processes that end (:class:`~execwatch.ExitEvent`).
        lost: Whether gaps are events too (:class:`~execwatch.LostEvents`), placed
            where the gap is. Without it they are in :meth:`stats` and, at most every
            ten seconds, a warning of the logger ``execwatch``.
        probe: ``"tracepoint"``: the kernel's own report of each exec; ``"kprobe"``: the
            entries and returns of the system calls, which costs more and is x86_64
            only; ``"auto"``: tracepoints where the kernel has them.
        buffer: ``"ring"``, one for all CPUs, in order; ``"perf"``, the older one for
            each CPU: put in order here, and handed over a millisecond later; ``"auto"``
            is the ring.
        buffer_size: Bytes of the buffer in all, rounded up to a power of two; up to
            1 GiB. Failed attempts may fill half of a ring, forks and exits three
            quarters, so that they never cost an exec.
        argv_size: Bytes of argv kept for an event, up to 2 MiB (a perf buffer: 16 KiB);
            longer ones are ``"truncated"``. Above 16 KiB the buffer has to be at least
            four times as large.
        latency: Seconds that an event may wait before it is handed over, 0 to 1: a
            reader that is woken once for many costs the traced programs a tenth.
        capture: What else the kernel notes of each exec, at that instant: ``"creds"``,
            ``"session"``, ``"namespaces"`` (of all kinds), ``"exe"``, ``"cwd"``, ``"container"``:
            see :class:`~execwatch.ExecEvent`. Each costs some tenths of a microsecond an exec;
            without it the field is None. The default is all but ``"session"``.
        env: Also the environment: True: all of it; or the names of the variables to keep. Up to
            16 KiB an exec are copied either way. It may hold secrets.

    Raises:
        ValueError, TypeError: An argument is out of range or of a wrong type.

    Needs Linux 5.8 with BTF, and root or CAP_BPF and CAP_PERFMON; see :func:`execwatch.check`.
    """

    @overload
    def __init__(
        self: ExecTracer[ExecEvent],
        filter: Optional[Filter] = None,
        *,
        failed: Literal[False] = False,
        forks: Literal[False] = False,
        exits: Literal[False] = False,
        lost: Literal[False] = False,
        probe: Probe = ...,
        buffer: Buffer = ...,
        buffer_size: int = ...,
        argv_size: int = ...,
        latency: float = ...,
        capture: Iterable[Part] = ...,
        env: Union[bool, Iterable[str], None] = ...,
    ) -> None: ...

    @overload
    def __init__(
        self: ExecTracer[Event],
        filter: Optional[Filter] = None,
        *,
        failed: bool = False,
        forks: bool = False,
        exits: bool = False,
        lost: bool = False,
        probe: Probe = ...,
        buffer: Buffer = ...,
        buffer_size: int = ...,
        argv_size: int = ...,
        latency: float = ...,
        capture: Iterable[Part] = ...,
        env: Union[bool, Iterable[str], None] = ...,
    ) -> None: ...

    def __init__(
        self,
        filter: Optional[Filter] = None,
        *,
        failed: bool = False,
        forks: bool = False,
        exits: bool = False,
        lost: bool = False,
        probe: Probe = "auto",
        buffer: Buffer = "auto",
        buffer_size: int = DEFAULT_BUFFER_SIZE,
        argv_size: int = DEFAULT_ARGV_SIZE,
        latency: float = 0.01,
        capture: Iterable[Part] = DEFAULT_CAPTURE,
        env: Union[bool, Iterable[str], None] = None,
    ) -> None:
        if filter is not None and not isinstance(filter, Filter):
            raise TypeError(f"filter: expected a Filter or None, got {filter!r}")
        for name, value in (("failed", failed), ("forks", forks), ("exits", exits), ("lost", lost)):
            arguments.check_bool(name, value)
        arguments.check_choice("probe", probe, ("auto", "tracepoint", "kprobe"))
        arguments.check_choice("buffer", buffer, ("auto", "ring", "perf"))
        arguments.check_int("buffer_size", buffer_size, 1, MAX_BUFFER_SIZE)
        arguments.check_int("argv_size", argv_size, 1, SMALL_ARGV_SIZE if buffer == "perf" else MAX_ARGV_SIZE)
        if argv_size > SMALL_ARGV_SIZE and buffer_size < 4 * argv_size:
            raise ValueError(
                f"buffer_size: expected at least 4 x argv_size = {4 * argv_size:,}, got {buffer_size!r}"
            )
        if isinstance(latency, bool) or not isinstance(latency, (int, float)):
            raise TypeError(f"latency: expected seconds, got {latency!r}")
        if not 0 <= latency <= 1:
            raise ValueError(f"latency: expected 0 to 1 second, got {latency!r}")
        parts = arguments.check_choices("capture", capture, CAPTURE)
        names = _env_names(env)

        def open_kernel() -> Source:
            return _open_kernel(
                filter,
                lost=lost,
                probe=probe,
                failed=failed,
                forks=forks,
                exits=exits,
                buffer=buffer,
                buffer_size=buffer_size,
                argv_size=argv_size,
                latency=latency,
                capture=parts,
                env=names,
            )

        kinds = {
            ExecEvent.kind: True,
            FailedExecEvent.kind: failed,
            ForkEvent.kind: forks,
            ExitEvent.kind: exits,
            LostEvents.kind: lost,
        }
        # A perf buffer is looked at by a timer: that is its latency.
        self._set_up(open_kernel, kinds=kinds, latency=0.0 if buffer == "perf" else latency)
        # What the tracer's own filter needs is captured anyway.
        self._containers = "container" in parts or (filter is not None and names_containers(filter))

    def _set_up(
        self, open_source: Callable[[], Source], *, kinds: Mapping[str, bool], latency: float
    ) -> None:
        self._open_source = open_source
        self._kinds = kinds
        self._latency = latency
        self._stream: Optional[Stream] = None
        self._callbacks: List[_Registered] = []
        self._processes: Optional[ProcessTable] = None
        self._users: Optional[Users] = None
        self._containers = True
        self._closed = False

    @classmethod
    def _over(cls, open_source: Callable[[], Source]) -> Self:
        """Return a tracer over another source, opened when it starts."""
        tracer = cls.__new__(cls)
        tracer._set_up(open_source, kinds=dict.fromkeys(KINDS, True), latency=0.0)
        return tracer

    # -- Life -----------------------------------------------------------------------

    def start(self) -> None:
        """Load and attach.

        Raises:
            StateError: It was started before.
            ValueError: The filter names a user, cgroup or process that is not there.
            PrivilegeError: A capability or limit is missing.
            NotSupportedError: The kernel lacks something that is needed.
            BccNotFoundError, CompileError: No shipped image fits the source, and BCC has to compile it.
            LoadError, AttachError: The kernel refused.

        Where it fails, nothing is left attached or open, and it can be called again.
        """
        if self._stream is not None or self._closed:
            raise StateError("a tracer starts once: make another one")
        source = self._open_source()
        try:
            stream = Stream(source, self._latency)
        except BaseException:
            source.close()
            raise
        try:
            self._stream = stream
            if self._closed:  # in another thread, meanwhile
                raise StateError("the tracer is closed")
            if self._processes is not None:
                stream.track(self._processes)
        except BaseException:
            stream.close()
            self._stream = None
            raise

    def stop(self) -> None:
        """Let nothing more in; the consumer gets what is buffered, then iteration ends.

        From any thread or signal handler: takes no lock and waits for nothing.
        """
        self._use().stop()

    def close(self) -> None:
        """Stop, discard what was not read (lost, reason ``closed``), and free everything.

        Idempotent, allowed anywhere and at any time; never waits for a consumer: a
        consumer in another thread ends its iteration, and frees when it leaves.
        """
        self._closed = True
        if self._stream is not None and not self._stream.forked:
            self._stream.close()

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._closed

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        exc_type: Optional[Type[BaseException]],
        exc: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.close()

    async def aclose(self) -> None:
        """As :meth:`close`."""
        self.close()

    def __del__(self) -> None:
        stream: Optional[Stream] = getattr(self, "_stream", None)
        if stream is None or stream.forked:
            return
        try:
            if not stream.closed:
                warnings.warn(f"{self!r} was never closed", ResourceWarning, stacklevel=2, source=self)
        finally:
            stream.close()  # also where Ctrl-C cut an earlier one short

    def __repr__(self) -> str:
        state = "closed" if self._closed else "new" if self._stream is None else "started"
        return f"<ExecTracer {state}>"

    # -- Consuming --------------------------------------------------------------------

    def events(self, *, timeout: Optional[float] = None, count: Optional[int] = None) -> Iterator[E_co]:
        """Return an iterator over the events as they come.

        Args:
            timeout: Seconds for the whole iteration, counted from this call; None: for
                ever; 0: what is there now. At its end iteration ends, nothing is raised.
            count: How many events at most.
        """
        deadline = arguments.deadline(timeout)
        if count is not None:
            arguments.check_int("count", count, 0, None)
        return Events(self._use(consume=True), deadline, count, barrier=timeout == 0)

    def read(self, timeout: Optional[float] = None) -> List[E_co]:
        """Return one batch: at least one event, in the order of ``boottime_ns``.

        Args:
            timeout: Seconds to wait for the first event; None: for ever. 0 is a barrier:
                every event whose exec was complete before the call is returned.

        Returns:
            ``[]`` at the timeout, and when the tracer was stopped and all is read.
        """
        deadline = arguments.deadline(timeout)
        stream = self._use(consume=True)
        stream.fill(deadline, barrier=timeout == 0)
        return stream.pop_all()  # type: ignore[return-value]

    async def aread(self, timeout: Optional[float] = None) -> List[E_co]:
        """As :meth:`read`, without blocking the running event loop."""
        deadline = arguments.deadline(timeout)
        stream = self._use(consume=True)
        await fill(stream, deadline, barrier=timeout == 0)
        return stream.pop_all()  # type: ignore[return-value]

    def __aiter__(self) -> AsyncIterator[E_co]:
        return AsyncEvents(self._use(consume=True))

    def fileno(self) -> int:
        """Return a descriptor for select, poll and event loops.

        Level-triggered: readable while ``read(timeout=0)`` would return something, or
        nothing will come any more. Where a filter has ``paths`` or ``args`` it may
        also be readable for events that they leave out; once :attr:`processes` is in use,
        for every fork, exec and exit of the machine; and a perf buffer makes it so at every
        tick of its timer (``latency``). Then ``read(timeout=0)`` returns ``[]``. It is the
        tracer's: don't close it.
        """
        return self._use().fileno()

    # -- Callbacks ----------------------------------------------------------------------

    @overload
    def on_exec(self, fn: _F, *, where: Optional[Filter] = None) -> _F: ...

    @overload
    def on_exec(self, *, where: Optional[Filter] = None) -> Callable[[_F], _F]: ...

    def on_exec(
        self, fn: Optional[_F] = None, *, where: Optional[Filter] = None
    ) -> Union[_F, Callable[[_F], _F]]:
        """Have :meth:`dispatch` call ``fn(event)`` for each exec; also a decorator.

        Args:
            fn: Any callable; its result is ignored. Not a coroutine function.
            where: Only for events that match; beside the tracer's own filter.

        Raises:
            TypeError: ``fn`` is a coroutine function, or can't be called.
            StateError: The tracer wasn't asked for such events.
        """
        return self._register(ExecEvent.kind, fn, where)

    @overload
    def on_failed(self, fn: _F, *, where: Optional[Filter] = None) -> _F: ...

    @overload
    def on_failed(self, *, where: Optional[Filter] = None) -> Callable[[_F], _F]: ...

    def on_failed(
        self, fn: Optional[_F] = None, *, where: Optional[Filter] = None
    ) -> Union[_F, Callable[[_F], _F]]:
        """As :meth:`on_exec`, for attempts that failed; needs ``ExecTracer(failed=True)``."""
        return self._register(FailedExecEvent.kind, fn, where)

    @overload
    def on_fork(self, fn: _F, *, where: Optional[Filter] = None) -> _F: ...

    @overload
    def on_fork(self, *, where: Optional[Filter] = None) -> Callable[[_F], _F]: ...

    def on_fork(
        self, fn: Optional[_F] = None, *, where: Optional[Filter] = None
    ) -> Union[_F, Callable[[_F], _F]]:
        """As :meth:`on_exec`, for processes that start; needs ``ExecTracer(forks=True)``."""
        return self._register(ForkEvent.kind, fn, where)

    @overload
    def on_exit(self, fn: _F, *, where: Optional[Filter] = None) -> _F: ...

    @overload
    def on_exit(self, *, where: Optional[Filter] = None) -> Callable[[_F], _F]: ...

    def on_exit(
        self, fn: Optional[_F] = None, *, where: Optional[Filter] = None
    ) -> Union[_F, Callable[[_F], _F]]:
        """As :meth:`on_exec`, for processes that end; needs ``ExecTracer(exits=True)``."""
        return self._register(ExitEvent.kind, fn, where)

    @overload
    def on_lost(self, fn: _F) -> _F: ...

    @overload
    def on_lost(self) -> Callable[[_F], _F]: ...

    def on_lost(self, fn: Optional[_F] = None) -> Union[_F, Callable[[_F], _F]]:
        """As :meth:`on_exec`, for gaps; needs ``ExecTracer(lost=True)``."""
        return self._register(LostEvents.kind, fn, None)

    def _register(
        self, kind: str, fn: Optional[_F], where: Optional[Filter]
    ) -> Union[_F, Callable[[_F], _F]]:
        self._check_alive()
        if not self._kinds[kind]:
            option = _OPTIONS[kind]
            raise StateError(f"on_{option.rstrip('s')} needs ExecTracer({option}=True)")
        if where is not None and not isinstance(where, Filter):
            raise TypeError(f"where: expected a Filter or None, got {where!r}")
        if where is not None and names_containers(where) and not self._containers:
            raise ValueError("where: it names containers, which ExecTracer(capture=...) leaves out")
        if fn is None:
            return lambda function: self._register(kind, function, where)  # type: ignore[return-value]
        arguments.check_callback(fn)
        self._callbacks.append((kind, fn, Matcher(where) if where else None))
        return fn

    def dispatch(self, *, timeout: Optional[float] = None) -> None:
        """Call the callbacks, in this thread, until the timeout or :meth:`stop`.

        What a callback raises leaves here; its event counts as handed over, and
        dispatch can be called again.

        Raises:
            StateError: There are no callbacks.
        """
        deadline = arguments.deadline(timeout)
        if not self._callbacks:
            raise StateError("no callbacks: register one with on_exec")
        for event in Events(self._use(), deadline, None, barrier=timeout == 0):
            # Every matcher gets every event: history is made of all kinds.
            callbacks = [
                (kind, fn)
                for kind, fn, matcher in self._callbacks
                if matcher is None or matcher.matches(event)
            ]
            for kind, fn in callbacks:
                if event.kind == kind:
                    fn(event)

    # -- Context ----------------------------------------------------------------------------

    @property
    def processes(self) -> ProcessTable:
        """The processes of the machine, as of the event that was handed over last.

        From the first use on, in a tracer that is started, every fork, exec and exit is
        followed, whatever the filter, and what runs already is taken from /proc: some tens of
        milliseconds, in which another thread may go on reading. What is only for the table
        counts as filtered, or, if its kind was not asked for, not at all; but it makes
        :meth:`fileno` readable, and then ``read(timeout=0)`` may return ``[]``.

        Of the processes that have ended at most 4096 are kept, for at most five minutes: change
        that by ``tracer.processes.keep(dead=..., seconds=...)``.

        Where the first use fails or is interrupted, the next one begins anew. After
        :meth:`stop` and :meth:`close` a table that was in use can still be asked: it follows
        what is handed over after the stop, and stays as it is after the close.

        Raises:
            StateError: At the first use: the tracer is stopped or closed, before or meanwhile.
                At any: this is a forked child.
            PrivilegeError, LoadError, AttachError: As for :meth:`start`, at the first use.
        """
        self._check_not_forked()
        if self._processes is None:
            from execwatch.processes import ProcessTable  # late: half of the programs don't need it

            self._check_alive()
            table, stream = ProcessTable(), self._stream
            self._processes = table if stream is None else stream.track(table)
        return self._processes

    @property
    def users(self) -> Users:
        """Names of users; also of a tracer that is not started, or closed.

        Raises:
            StateError: This is a forked child.
        """
        self._check_not_forked()
        if self._users is None:
            from execwatch.users import Users

            self._users = Users()
        return self._users

    # -- State ------------------------------------------------------------------------------

    def stats(self) -> Stats:
        """Return the counters since the start; after :meth:`close` the last ones."""
        if self._stream is None:
            return Stats()
        if self._stream.forked:
            raise StateError(FORKED)
        return self._stream.stats()

    def _check_not_forked(self) -> None:
        if self._stream is not None and self._stream.forked:
            raise StateError(FORKED)

    def _check_alive(self) -> None:
        self._check_not_forked()
        if self._closed:
            raise StateError("the tracer is closed")

    def _use(self, consume: bool = False) -> Stream:
        self._check_alive()
        if self._stream is None:
            raise StateError("the tracer is not started: use it in a with block, or call start()")
        if consume:
            if self._callbacks:
                raise StateError("callbacks are registered: they get the events, through dispatch()")
            self._stream.check_claim()
        return self._stream


def _env_names(env: Union[bool, Iterable[str], None]) -> Union[bool, FrozenSet[str]]:
    if env is None or isinstance(env, bool):
        return bool(env)
    expected = "True, False or None, or a collection of names of variables"
    names = arguments.check_collection("env", env, expected)
    if not names:
        raise ValueError(f"env: expected {expected}, got an empty one")
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"env: expected {expected}, got {name!r}")
        if not name or "=" in name or "\0" in name:
            raise ValueError(f"env: expected names without '=' and NUL, such as 'PATH', got {name!r}")
        try:
            os.fsencode(name)
        except UnicodeEncodeError:
            raise ValueError(f"env: expected names that a program can have, got {name!r}") from None
    return frozenset(names)


def _open_kernel(filter: Optional[Filter], *, lost: bool, buffer_size: int, **options: Any) -> Source:
    # Late: replay and testing work where there is no BPF, and no Linux.
    from execwatch.build import images
    from execwatch.kernel import setup, source

    return source.open_source(
        lambda defines: images.load("exec", defines=defines),
        filter.resolved() if filter else None,
        setup.Options(buffer_size=setup.ring_size(buffer_size), **options),
        lost=lost,
    )
