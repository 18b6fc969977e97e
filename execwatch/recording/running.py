"""One command: everything that it executed."""

from __future__ import annotations

import os
import subprocess
import time
from typing import Any, Iterable, List, Mapping, Optional, Sequence, Set, Union

from execwatch import arguments
from execwatch.events import AnyEvent, ExitEvent, LostEvents
from execwatch.recording import pipes
from execwatch.recording.recorder import record
from execwatch.recording.values import Recording

Command = Union[str, bytes, "os.PathLike[str]", Sequence[Union[str, bytes, "os.PathLike[str]"]]]


def run(
    args: Command,
    *,
    input: Union[str, bytes, None] = None,
    capture_output: bool = False,
    timeout: Optional[float] = None,
    check: bool = False,
    failed: bool = False,
    linger: float = 1.0,
    tracer: Optional[Mapping[str, Any]] = None,
    **popen: Any,
) -> Recording:
    """Run a command and return everything that it executed: its subtree, and nothing else.

    The tracer is in place before the command is started. Returns when the command and its
    descendants have ended, or ``linger`` seconds after the command::

        recording = execwatch.run(["make", "-j2"], cwd="src")
        print(recording.summary())

    A process that the command makes with CLONE_PARENT (clone(2)) counts as its sibling, and is not in it.

    Args:
        args: As :func:`subprocess.run` takes it, and so are the others that it knows:
        input, capture_output, timeout, check, popen: among them ``cwd``, ``env``, ``user``,
            ``stdout``, ``text``, ``shell``. The output is in ``recording.result``.
        failed: Also the attempts that the kernel refused.
        linger: Seconds to wait for descendants that outlive the command. The rest is
            named by ``recording.still_running``.
        tracer: Further options of :class:`~execwatch.ExecTracer`, e.g. ``{"env": True}``.

    Raises:
        subprocess.CalledProcessError: With ``check``, if the exit status is not 0.
        subprocess.TimeoutExpired: The command took longer, and was killed. Both have the
            recording as their attribute ``recording``.
        OSError: The command can't be started, as of :class:`subprocess.Popen`.
        ValueError, TypeError: An argument is out of range or of a wrong type.
        PrivilegeError, NotSupportedError, LoadError, AttachError: As of :meth:`ExecTracer.start`.
    """
    arguments.deadline(timeout)
    _check_linger(linger)
    if capture_output:
        if popen.get("stdout") is not None or popen.get("stderr") is not None:
            raise ValueError("capture_output: stdout and stderr may not be given with it")
        popen.update(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if input is not None:
        if popen.get("stdin") is not None:
            raise ValueError("input: stdin may not be given with it")
        popen["stdin"] = subprocess.PIPE
    with record(**{"failed": failed, **(tracer or {})}) as recorder:
        since_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        with subprocess.Popen(args, **popen) as process:
            done, expired, ended = pipes.communicate(process, input, timeout, linger)
        tree = _Tree(process.pid, since_ns)
        recorder._wait(tree.ended, max(0.0, ended + linger - time.monotonic()))
    whole = recorder.recording
    events = _Tree(process.pid, since_ns).select(whole)
    alive = [p for p in Recording(events).processes if p.alive]
    recording = Recording(
        events,
        stats=whole.stats,
        complete=whole.complete,
        header=whole.header,
        result=done,
        still_running=alive,
    )
    error: Optional[subprocess.SubprocessError] = expired
    if expired is None and check and done.returncode:
        error = subprocess.CalledProcessError(done.returncode, done.args, done.stdout, done.stderr)
    if error is not None:
        error.recording = recording  # type: ignore[attr-defined]
        raise error
    return recording


def _check_linger(linger: Any) -> None:
    if isinstance(linger, bool) or not isinstance(linger, (int, float)):
        raise TypeError(f"linger: expected seconds, got {linger!r}")
    if not 0 <= linger < float("inf"):
        raise ValueError(f"linger: expected 0 or more seconds, got {linger!r}")


class _Tree:
    """A process and its descendants, out of all events of this process's.

    Args:
        pid: Of the root, started by this process.
        since_ns: A CLOCK_BOOTTIME before its start: its pid may have been another's.
    """

    def __init__(self, pid: int, since_ns: int) -> None:
        self._pid = pid
        self._since_ns = since_ns
        self._root: Optional[str] = None
        self._keys: Set[str] = set()
        self._alive: Set[str] = set()
        self._seen = 0

    def ended(self, events: Sequence[AnyEvent]) -> bool:
        """Whether all of them have ended, as far as these events tell; they may only become more."""
        count = len(events)  # they become more meanwhile
        for event in events[self._seen : count]:
            self._takes(event)
        self._seen = count
        return self._root is not None and not self._alive

    def select(self, events: Iterable[AnyEvent]) -> List[AnyEvent]:
        """Return the events that belong to the tree, from the first program on."""
        chosen = [event for event in events if self._takes(event)]
        return [event for event in chosen if not (event.kind == "fork" and event.process_key == self._root)]

    def _takes(self, event: AnyEvent) -> bool:
        if event.boottime_ns < self._since_ns:
            return False
        if isinstance(event, LostEvents):
            return True
        key = event.process_key
        if self._root is None and event.pid == self._pid:
            self._root = key
        if (key == self._root or event.parent_key in self._keys) and key not in self._keys:
            self._keys.add(key)
            self._alive.add(key)
        if isinstance(event, ExitEvent):
            self._alive.discard(key)
        return key in self._keys
