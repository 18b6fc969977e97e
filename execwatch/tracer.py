"""The verb: :class:`ExecTracer`."""

from __future__ import annotations

import time
import warnings
from types import TracebackType
from typing import (
    Any,
    AsyncIterator,
    Callable,
    Generic,
    Iterator,
    List,
    Optional,
    Tuple,
    Type,
    Union,
    overload,
)

from typing_extensions import Literal, Self, TypeVar

from execwatch.errors import StateError
from execwatch.events import Event, ExecEvent, LostEvents, Stats
from execwatch.filters import Filter, Matcher
from execwatch.iterators import AsyncEvents, Events, fill
from execwatch.source import Source
from execwatch.stream import FORKED, Stream

E_co = TypeVar("E_co", bound=Event, default=ExecEvent, covariant=True)
_F = TypeVar("_F", bound=Callable[..., object])
_Registered = Tuple[str, Callable[[Any], object], Optional[Matcher]]

DEFAULT_BUFFER_SIZE = 4 * 1024 * 1024
DEFAULT_ARGV_SIZE = 16 * 1024
MAX_ARGV_SIZE = 16 * 1024
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
        lost: Whether gaps are events too (:class:`~execwatch.LostEvents`), placed
            where the gap is. Without it they are in :meth:`stats` and, at most every
            ten seconds, a warning of the logger ``execwatch``.
        buffer_size: Bytes of the ring buffer, rounded up to a power of two; up to 1 GiB.
        argv_size: Bytes of argv kept for an event, 1 to 16,384; longer ones are
            ``"truncated"``.
        latency: Seconds that an event may wait before it is handed over, 0 to 1: a
            reader that is woken once for many costs the traced programs a tenth.

    Raises:
        ValueError, TypeError: An argument is out of range or of a wrong type.

    Needs Linux 5.8 with BTF, and root or CAP_BPF and CAP_PERFMON; see :func:`execwatch.check`.
    """

    @overload
    def __init__(
        self: ExecTracer[ExecEvent],
        filter: Optional[Filter] = None,
        *,
        lost: Literal[False] = False,
        buffer_size: int = ...,
        argv_size: int = ...,
        latency: float = ...,
    ) -> None: ...

    @overload
    def __init__(
        self: ExecTracer[Event],
        filter: Optional[Filter] = None,
        *,
        lost: bool,
        buffer_size: int = ...,
        argv_size: int = ...,
        latency: float = ...,
    ) -> None: ...

    def __init__(
        self,
        filter: Optional[Filter] = None,
        *,
        lost: bool = False,
        buffer_size: int = DEFAULT_BUFFER_SIZE,
        argv_size: int = DEFAULT_ARGV_SIZE,
        latency: float = 0.01,
    ) -> None:
        if filter is not None and not isinstance(filter, Filter):
            raise TypeError(f"filter: expected a Filter or None, got {filter!r}")
        _check_int("buffer_size", buffer_size, 1, MAX_BUFFER_SIZE)
        _check_int("argv_size", argv_size, 1, MAX_ARGV_SIZE)
        if isinstance(latency, bool) or not isinstance(latency, (int, float)):
            raise TypeError(f"latency: expected seconds, got {latency!r}")
        if not 0 <= latency <= 1:
            raise ValueError(f"latency: expected 0 to 1 second, got {latency!r}")

        def open_kernel() -> Source:
            return _open_kernel(filter, lost=lost, buffer_size=buffer_size, argv_size=argv_size)

        self._set_up(open_kernel, lost=lost, latency=latency)

    def _set_up(self, open_source: Callable[[], Source], *, lost: bool, latency: float) -> None:
        self._open_source = open_source
        self._lost = lost
        self._latency = latency
        self._stream: Optional[Stream] = None
        self._callbacks: List[_Registered] = []
        self._closed = False

    @classmethod
    def _over(cls, source: Source, *, lost: bool = True) -> Self:
        """Return a tracer over another source; it starts like any."""
        tracer = cls.__new__(cls)
        tracer._set_up(lambda: source, lost=lost, latency=0.0)
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
        """
        if self._stream is not None or self._closed:
            raise StateError("a tracer starts once: make another one")
        self._stream = Stream(self._open_source(), self._latency)

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
        deadline = _deadline(timeout)
        if count is not None:
            _check_int("count", count, 0, None)
        return Events(self._use(consume=True), deadline, count, barrier=timeout == 0)

    def read(self, timeout: Optional[float] = None) -> List[E_co]:
        """Return one batch: at least one event, in the order of ``boottime_ns``.

        Args:
            timeout: Seconds to wait for the first event; None: for ever. 0 is a barrier:
                every event whose exec was complete before the call is returned.

        Returns:
            ``[]`` at the timeout, and when the tracer was stopped and all is read.
        """
        deadline = _deadline(timeout)
        stream = self._use(consume=True)
        stream.fill(deadline, barrier=timeout == 0)
        return stream.pop_all()  # type: ignore[return-value]

    async def aread(self, timeout: Optional[float] = None) -> List[E_co]:
        """As :meth:`read`, without blocking the running event loop."""
        deadline = _deadline(timeout)
        stream = self._use(consume=True)
        await fill(stream, deadline, barrier=timeout == 0)
        return stream.pop_all()  # type: ignore[return-value]

    def __aiter__(self) -> AsyncIterator[E_co]:
        return AsyncEvents(self._use(consume=True))

    def fileno(self) -> int:
        """Return a descriptor for select, poll and event loops.

        Level-triggered: readable while ``read(timeout=0)`` would return something, or
        nothing will come any more. Where a filter has ``paths`` or ``args`` it may
        also be readable for events that they leave out. It is the tracer's: don't close it.
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
        """
        return self._register(ExecEvent.kind, fn, where)

    @overload
    def on_lost(self, fn: _F) -> _F: ...

    @overload
    def on_lost(self) -> Callable[[_F], _F]: ...

    def on_lost(self, fn: Optional[_F] = None) -> Union[_F, Callable[[_F], _F]]:
        """Have :meth:`dispatch` call ``fn(lost)`` for each gap; also a decorator.

        Raises:
            StateError: The tracer was not made with ``lost=True``.
        """
        if not self._lost:
            raise StateError("on_lost needs ExecTracer(lost=True)")
        return self._register(LostEvents.kind, fn, None)

    def _register(
        self, kind: str, fn: Optional[_F], where: Optional[Filter]
    ) -> Union[_F, Callable[[_F], _F]]:
        self._check_alive()
        if where is not None and not isinstance(where, Filter):
            raise TypeError(f"where: expected a Filter or None, got {where!r}")
        if fn is None:
            return lambda function: self._register(kind, function, where)  # type: ignore[return-value]
        _check_callback(fn)
        self._callbacks.append((kind, fn, Matcher(where) if where else None))
        return fn

    def dispatch(self, *, timeout: Optional[float] = None) -> None:
        """Call the callbacks, in this thread, until the timeout or :meth:`stop`.

        What a callback raises leaves here; its event counts as handed over, and
        dispatch can be called again.

        Raises:
            StateError: There are no callbacks.
        """
        deadline = _deadline(timeout)
        if not self._callbacks:
            raise StateError("no callbacks: register one with on_exec")
        for event in Events(self._use(), deadline, None, barrier=timeout == 0):
            for kind, fn, matcher in tuple(self._callbacks):
                if event.kind == kind and (matcher is None or matcher.matches(event)):
                    fn(event)

    # -- State ------------------------------------------------------------------------------

    def stats(self) -> Stats:
        """Return the counters since the start; after :meth:`close` the last ones."""
        if self._stream is None:
            return Stats()
        if self._stream.forked:
            raise StateError(FORKED)
        return self._stream.stats()

    def _check_alive(self) -> None:
        if self._stream is not None and self._stream.forked:
            raise StateError(FORKED)
        if self._closed:
            raise StateError("the tracer is closed")

    def _use(self, consume: bool = False) -> Stream:
        self._check_alive()
        if self._stream is None:
            raise StateError("the tracer is not started: use it in a with block, or call start()")
        if consume and self._callbacks:
            raise StateError("callbacks are registered: they get the events, through dispatch()")
        return self._stream


def _open_kernel(filter: Optional[Filter], *, lost: bool, buffer_size: int, argv_size: int) -> Source:
    # Late: replay and testing work where there is no BPF, and no Linux.
    from execwatch.build import images
    from execwatch.kernel import source

    return source.KernelSource(
        images.load("exec"),
        filter.resolved() if filter else None,
        ring_size=source.ring_size(buffer_size),
        argv_size=argv_size,
        lost=lost,
    )


def _deadline(timeout: Optional[float]) -> Optional[float]:
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise TypeError(f"timeout: expected seconds or None, got {timeout!r}")
    if not timeout >= 0:
        raise ValueError(f"timeout: expected 0 or more seconds, or None, got {timeout!r}")
    return time.monotonic() + timeout


def _check_int(name: str, value: Any, least: int, most: Optional[int]) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected an int, got {value!r}")
    if value < least or (most is not None and value > most):
        accepted = f"{least:,} or more" if most is None else f"{least:,} to {most:,}"
        raise ValueError(f"{name}: expected {accepted}, got {value!r}")


def _check_callback(fn: Any) -> None:
    import inspect

    if not callable(fn):
        raise TypeError(f"fn: expected a callable, got {fn!r}")
    if inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(type(fn).__call__):
        raise TypeError(f"fn: {fn!r} is a coroutine function; use 'async for' over the tracer instead")
