"""What a user receives of processes: frozen values."""

from __future__ import annotations

from typing import Any, Iterator, List, Optional, Sequence, Tuple

import attrs
from typing_extensions import final

from execwatch import render
from execwatch.events import Container

#: Rows of a drawn tree are not moved further right than so many levels: the lines
#: of a chain of 100,000 processes would have 15 GB.
_DEEPEST = 40


@final
@attrs.frozen(kw_only=True, weakref_slot=False)
class Process:
    """A process as far as it is known. It never changes: ask the table again for what came later.

    Attributes:
        key: Names it for good, as ``process_key`` of its events does. (Only another process with
            this pid that started within the same clock tick, 10 ms, has the same one.)
        pid: Process id, in the tracer's pid namespace.
        ppid: That of its true parent, the process that forked it, also when the kernel
            has since given it another. (What clone(2) makes with CLONE_PARENT is a
            sibling, as the kernel has it.)
        parent_key: The true parent's ``key``.
        comm: Name, at most 15 bytes: as its exec, its fork or /proc told, in this order.
        argv: Arguments of its program; of its parent's program as long as it has not
            executed one itself. None where they are unknown: the exec was not seen,
            or it is a kernel thread.
        exe: Path of its program's file, likewise; known where events captured ``exe``, and
            from /proc.
        uid: Real user id when it executed, else when it was forked.
        container: The container it runs in, as events or /proc told; None on the host, or where
            neither did. From /proc its ``injected`` is not known.
        start_boottime_ns: When it was forked; in steps of a clock tick where only
            /proc told it.
        exec_boottime_ns: When its program started; None where that was not seen.
        exit_boottime_ns: When it ended; None where that was not seen.
        exit_code: What it passed to exit; None where a signal ended it, or it was not seen.
        signal: The signal that ended it, else None.
        ended: It has ended. Where the event was lost this is known when its pid comes again.
        reparented: Its true parent ended before it, so that the kernel gave it another.
    """

    key: str
    pid: int
    ppid: Optional[int] = None
    parent_key: Optional[str] = None
    comm: str
    argv: Optional[Tuple[str, ...]] = None
    exe: Optional[str] = None
    uid: Optional[int] = None
    container: Optional[Container] = None
    start_boottime_ns: Optional[int] = None
    exec_boottime_ns: Optional[int] = None
    exit_boottime_ns: Optional[int] = None
    exit_code: Optional[int] = None
    signal: Optional[int] = None
    ended: bool = False
    reparented: bool = False

    @property
    def alive(self) -> bool:
        """Whether it has not ended, as far as is known."""
        return not self.ended

    @property
    def duration_ns(self) -> Optional[int]:
        """From its start to its end; None where one of them is not known."""
        if self.start_boottime_ns is None or self.exit_boottime_ns is None:
            return None
        return self.exit_boottime_ns - self.start_boottime_ns

    @property
    def command_line(self) -> str:
        """``argv``, or ``comm`` where that is unknown, as one printable line, quoted for a shell."""
        return render.command_line(self.argv or (self.comm,))

    def _repr_html_(self) -> str:
        """For notebooks: a line that opens to all that is known."""
        from execwatch import html

        title = [(f"process {self.pid} ", "aside"), (f"{self.command_line} ", ""), _end(self)]
        return html.box(title, html.fields(self), opened=False)


@final
@attrs.frozen(weakref_slot=False)
class ProcessTree:
    """Processes below each other. Iterating gives the rows, ``str()`` draws them.

    Attributes:
        rows: Depth and process: a parent before its children, these in the order of their start.
    """

    rows: Tuple[Tuple[int, Process], ...]

    def __iter__(self) -> Iterator[Tuple[int, Process]]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        """A line a process: pid, command line quoted for a shell, how it ended.

        Rows deeper than 40 levels are not moved further right; they begin with their depth.
        """
        return "\n".join(branches + _line(process) for branches, process in self._drawn())

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """For IPython in a terminal."""
        printer.text(str(self))

    def _repr_html_(self) -> str:
        """For notebooks: a row a process, the first 50 of them."""
        from execwatch import html

        rows = (_cells(branches, process) for branches, process in self._drawn())
        title = [(render.count(len(self), "process", "processes"), "")]
        return html.box(title, html.table(("took (s)", "end", "pid", "command"), rows, len(self)))

    def _drawn(self) -> Iterator[Tuple[str, Process]]:
        """Yield each process with the branches that lead to it."""
        # From the last to the first: then it is known who has siblings further down.
        siblings: List[bool] = []  # at each depth
        drawn: List[str] = []
        for depth, _ in reversed(self.rows):
            siblings += [False] * (depth + 1 - len(siblings))
            drawn.append(_indent(depth, siblings))
            siblings[depth] = True
            del siblings[depth + 1 :]
        return ((branches, process) for branches, (_, process) in zip(reversed(drawn), self.rows))


def _indent(depth: int, siblings: Sequence[bool]) -> str:
    if depth == 0:
        return ""
    bars = "".join("│  " if more else "   " for more in siblings[1 : min(depth, _DEEPEST)])
    told = f"[{depth}] " if depth > _DEEPEST else ""
    return bars + ("├─ " if siblings[depth] else "└─ ") + told


def _cells(branches: str, process: Process) -> Tuple[Sequence[Tuple[str, str]], ...]:
    """A process as a row of a table, see :mod:`execwatch.html`."""
    took = "" if process.duration_ns is None else f"{process.duration_ns / 1e9:.3f}"
    forked = process.exec_boottime_ns is None and process.argv is not None
    command = (f"{process.command_line} (forked)", "aside") if forked else (process.command_line, "")
    pid = str(process.pid)
    return [(took, "aside")], [_end(process)], [(pid, "aside")], [(branches, "branches"), command]


def _end(process: Process) -> Tuple[str, str]:
    """How it ended, and in which style that is shown."""
    if process.signal is not None:
        return f"signal {process.signal}", "bad"
    if process.exit_code is not None:
        return f"exit {process.exit_code}", "bad" if process.exit_code else "aside"
    return ("ended" if process.ended else "runs"), "aside"


def _line(process: Process) -> str:
    text = f"{process.pid} {process.command_line}"
    if process.signal is not None:
        return f"{text} (signal {process.signal})"
    if process.exit_code is not None:
        return f"{text} (exit code {process.exit_code})"
    return f"{text} (ended)" if process.ended else text
