"""What the tests of the tracer share: a source that does what the test says, and ways to wait."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
import traceback
from types import FrameType
from typing import Any, Callable, Iterable, Iterator, List, NamedTuple, Optional, Set, Tuple

import execwatch
from execwatch import ExecTracer
from execwatch.source import COUNTED, Batch, Counts, KindCounts, count
from execwatch.testing import exec_event, lost_events

PACKAGE = os.path.dirname(execwatch.__file__) + os.sep

#: Longer than any machine needs; only a test that fails waits for it.
PATIENCE = 20.0


class Position(NamedTuple):
    index: int = 0
    lost: int = 0


class Flag:
    """A threading.Event without a lock, which an interrupt could leave locked."""

    def __init__(self) -> None:
        self._set = False

    def set(self) -> None:
        self._set = True

    def clear(self) -> None:
        self._set = False

    def is_set(self) -> bool:
        return self._set

    def wait(self) -> None:
        until(self.is_set, "a flag")


class ScriptedSource:
    """A :class:`execwatch.source.Source` over a list that the test appends to.

    Its descriptor is a pipe that is readable while there are events that were not
    released: level-triggered, as the kernel's ring is. A None stands for a record
    that can't be decoded.

    Attributes:
        reads: The arguments of each read.
        idle: Set when a read found nothing, so that the reader is going to wait.
        misuse: What the stream did to it and must not.
    """

    start = Position()

    def __init__(
        self,
        events: Iterable[Any] = (),
        *,
        batch: Optional[int] = None,
        drop: Callable[[Any], bool] = lambda event: False,
    ) -> None:
        self.events: List[Any] = []
        self.reads: List[Tuple[Position, bool]] = []
        self.released = 0
        self.detached = False
        self.closes = 0
        self.lost = 0
        self.dropped_early = 0
        self.idle = Flag()
        self.misuse: List[str] = []
        self._inside = False
        self._batch = batch
        self._drop = drop
        self._read_end, self._write_end = os.pipe()
        for end in (self._read_end, self._write_end):
            os.set_blocking(end, False)
        self.put(*events)

    def put(self, *events: Any) -> None:
        """Let events happen."""
        self.idle.clear()
        self.events += events
        if events:
            self._be_readable()

    def lose(self, count: int) -> None:
        """Let events be lost that no record tells of."""
        self.lost += count

    def fileno(self) -> Optional[int]:
        return self._read_end

    def read(self, position: Position, barrier: bool) -> Batch:
        if self.closes:
            self.misuse.append("read after close")
        self._inside = True
        try:
            return self._read(position, barrier)
        finally:  # also where Ctrl-C comes in here
            self._inside = False

    def _read(self, position: Position, barrier: bool) -> Batch:
        self.reads.append((position, barrier))
        records = self.events[position.index :]
        if self._batch and not barrier:
            records = records[: self._batch]
        events = [e for e in records if e is not None and not self._drop(e)]
        batch = Batch(
            events,
            position._replace(index=position.index + len(records)),
            count([e for e in records if e is not None and self._drop(e)]),
            records.count(None),
        )
        if not records:
            self.idle.set()
        return batch

    def gaps(self, position: Position) -> Batch:
        lost = self.lost
        events = [lost_events(count=lost - position.lost)] if lost > position.lost else []
        return Batch(events, position._replace(lost=lost))

    def release(self, position: Position) -> None:
        self.released = position.index
        if self.released == len(self.events):
            with contextlib.suppress(BlockingIOError):
                os.read(self._read_end, 65536)
            if self.released < len(self.events):  # put in this instant
                self._be_readable()

    def _be_readable(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._write_end, b"\0")

    def counts(self) -> Counts:
        execs = sum(e is None or e.kind == "exec" for e in self.events)
        told = sum(e.count for e in self.events if e is not None and e.kind == "lost")
        lost = self.lost + told
        kinds = dict.fromkeys(COUNTED, KindCounts())
        kinds["exec"] = KindCounts(execs + lost + self.dropped_early, self.dropped_early, lost)
        return Counts(kinds)

    def detach(self) -> None:
        self.detached = True

    def close(self) -> None:
        if self._inside:
            self.misuse.append("closed inside read")
        self.closes += 1
        if self.closes == 1:
            os.close(self._read_end)
            os.close(self._write_end)
        else:
            self.misuse.append("closed twice")


def tracer_over(source: Any, *, latency: float = 0.0, lost: bool = True) -> ExecTracer[Any]:
    """Return a tracer that is not started."""
    tracer: ExecTracer[Any] = ExecTracer._over(lambda: source)
    tracer._kinds = {**tracer._kinds, "lost": lost}
    tracer._latency = latency
    return tracer


@contextlib.contextmanager
def tracing(source: ScriptedSource, **options: Any) -> Iterator[ExecTracer[Any]]:
    """A started tracer; at the end the source must have been closed once and never misused."""
    with tracer_over(source, **options) as tracer:
        yield tracer
    until(lambda: source.closes, "the source to be closed")
    assert source.closes == 1
    assert source.misuse == []


def numbered(count: int, first: int = 0) -> List[Any]:
    """Return events whose ``cpu`` is their number."""
    return [exec_event(cpu=number) for number in range(first, first + count)]


def numbers(events: Iterable[Any]) -> List[int]:
    return [event.cpu for event in events]


class Background:
    """A function in a thread of its own; :meth:`result` is what it returned or raised."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        self._value: Any = None
        self._error: Optional[BaseException] = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._value = self._function()
        except BaseException as exc:
            self._error = exc

    def result(self) -> Any:
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "the thread did not end"
        if self._error is not None:
            raise self._error
        return self._value


def until(condition: Callable[[], object], what: str) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.001)


def in_child(function: Callable[[], None]) -> str:
    """Call it in a forked child; return the traceback, or "" where there is none."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        text = ""
        try:
            function()
        except BaseException:
            text = traceback.format_exc()
        os.write(write_end, text.encode()[:60_000])
        os._exit(0)
    os.close(write_end)
    with open(read_end, encoding="utf-8") as file:
        text = file.read()
    os.waitpid(pid, 0)
    return text


def open_files() -> Set[str]:
    """What this process has open: descriptors with what they are."""
    found = set()
    for entry in pathlib.Path("/proc/self/fd").iterdir():
        try:
            found.add(f"{entry.name} {os.readlink(entry)}")
        except FileNotFoundError:  # the one that lists them
            continue
    return found


@contextlib.contextmanager
def handling(number: int, handler: Callable[[], None]) -> Iterator[None]:
    """Send this process a signal, again and again, and have the handler called.

    Once is not enough: one that comes between the interpreter's last look and the
    system call that waits is handled when that returns.
    """
    done = Flag()
    before = signal.signal(number, lambda *_: handler())

    def send() -> None:
        while not done.is_set():
            os.kill(os.getpid(), number)
            time.sleep(0.002)

    sender = Background(send)
    try:
        yield
    finally:
        done.set()
        sender.result()
        signal.signal(number, before)


class Interrupts:
    """How often Ctrl-C came in the library's code."""

    def __init__(self) -> None:
        self.raised = 0

    def __call__(self, number: int, frame: Optional[FrameType]) -> None:
        # Nowhere else: what the test's own lines do with an event is not under test,
        # nor what pytest and hypothesis do while memory is freed.
        while frame is not None:
            if frame.f_code.co_filename.startswith(PACKAGE):
                self.raised += 1
                raise KeyboardInterrupt
            if "site-packages" in frame.f_code.co_filename:
                return
            frame = frame.f_back


@contextlib.contextmanager
def storm_of_interrupts() -> Iterator[Interrupts]:
    """Another process sends SIGINT as fast as it can; it raises wherever the library is."""
    interrupts = Interrupts()
    before = signal.signal(signal.SIGINT, interrupts)
    code = (
        "import os, signal, time\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "while True: os.kill(os.getppid(), signal.SIGINT); time.sleep(0.00005)\n"
    )
    sender = subprocess.Popen([sys.executable, "-I", "-c", code])
    try:
        yield interrupts
    finally:
        sender.kill()
        sender.wait()
        time.sleep(0)  # what came last is handled here
        signal.signal(signal.SIGINT, before)
