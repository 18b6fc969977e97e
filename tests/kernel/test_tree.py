"""The table of processes, against what strace, /proc and the programs themselves tell."""

from __future__ import annotations

import os
import re
import subprocess
import threading
from pathlib import Path
from typing import Callable, Dict, List

import pytest

from execwatch import ExecEvent, ExecTracer, Filter, StateError
from execwatch.processes import Process, ProcessTable

from .commands import execute
from .conftest import COUNT, EMULATED, until
from .test_strace import project as project

NOBODY = Filter(comms={"there-is-none"})


def by_pid(table: ProcessTable, pid: int) -> Process:
    found = [process for process in table if process.pid == pid]
    assert found, f"process {pid} is not in the table"
    return max(found, key=lambda process: process.start_boottime_ns or 0)


def tree_lines(table: ProcessTable, pid: int) -> List[tuple[int, int]]:
    """Depth and pid of a process and its descendants."""
    return [(depth, process.pid) for depth, process in table.tree(by_pid(table, pid).key)]


@pytest.mark.usefixtures("tracer_probe", "tracer_buffer")
def test_a_build_has_each_process_once_below_its_true_parent(project: Path) -> None:
    traces = project / "traces"
    traces.mkdir()
    calls = "execve,execveat,fork,vfork,clone,clone3"
    strace = ["strace", "-ff", "-o", str(traces / "pid"), "-e", f"trace={calls}"]
    with ExecTracer(NOBODY) as tracer:
        table = tracer.processes
        done = subprocess.run(
            [*strace, "sh", "-c", "./configure && make -j2"], cwd=project, capture_output=True
        )
        assert done.returncode == 0, done.stderr
        assert tracer.read(timeout=0) == []
        expected = {child: int(path.suffix[1:]) for path in traces.iterdir() for child in forked(path)}
        traced = {int(path.suffix[1:]) for path in traces.iterdir()}
        (first,) = traced - expected.keys()
        rows = list(table.tree(by_pid(table, first).key))
    assert len(traced) > 50
    assert sorted(process.pid for _, process in rows) == sorted(traced)
    got = {process.pid: process.ppid for _, process in rows[1:]}
    assert got == expected
    parents = {process.key: process.pid for _, process in rows}
    assert all(parents[process.parent_key or ""] == process.ppid for _, process in rows[1:])
    assert all(process.ended for _, process in rows)
    executed = {
        pid for pid in traced if re.search(r"^execve.*= 0$", (traces / f"pid.{pid}").read_text(), re.M)
    }
    assert {process.pid for _, process in rows if process.exec_boottime_ns is not None} == executed
    assert table.lost == 0


def forked(path: Path) -> List[int]:
    """The processes (not threads) that one process started, by strace's record of it."""
    found = []
    for line in path.read_text().splitlines():
        match = re.match(r"(?:v?fork|clone3?)\((.*)\)\s+= (\d+)$", line)
        if match and "CLONE_THREAD" not in match[1]:
            found.append(int(match[2]))
    return found


@pytest.mark.usefixtures("tracer_probe", "tracer_buffer")
def test_what_ran_before_is_there_with_its_parents() -> None:
    script = "sleep 1000 & read line; kill $!; wait $! 2>/dev/null; :"
    with subprocess.Popen(["sh", "-c", script], stdin=subprocess.PIPE) as shell:
        until(lambda: children_of(shell.pid), "the shell's child")
        (sleeper,) = children_of(shell.pid)
        until(lambda: Path(f"/proc/{sleeper}/comm").read_text() == "sleep\n", "its exec")
        with ExecTracer(NOBODY) as tracer:
            table = tracer.processes
            assert tree_lines(table, os.getpid())[:1] == [(0, os.getpid())]
            assert tree_lines(table, shell.pid) == [(0, shell.pid), (1, sleeper)]
            process = by_pid(table, sleeper)
            assert (process.argv, process.alive) == (("sleep", "1000"), True)
            assert process.exe == os.readlink(f"/proc/{sleeper}/exe")
            assert [p.pid for p in table.ancestors(process.key)][:2] == [shell.pid, os.getpid()]
            shell.communicate(b"\n")
            tracer.read(timeout=0)
            assert (by_pid(table, sleeper).signal, by_pid(table, shell.pid).exit_code) == (15, 0)


def children_of(pid: int) -> List[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.usefixtures("tracer_probe", "tracer_buffer")
def test_a_true_parent_stays_when_it_has_died(programs: Callable[[str], str]) -> None:
    nothing = programs("nothing")
    orphan = f"(while [ -d /proc/$M ]; do :; done; exec {nothing} orphan) & exit 5"
    script = f"sh -c 'M=$$; export M; {orphan}'; wait; {nothing} child"
    with ExecTracer(Filter(comms={"nothing"})) as tracer:
        table = tracer.processes
        subprocess.run(["sh", "-c", script], check=True)
        events: Dict[str, ExecEvent] = {}
        for event in tracer.events(timeout=30):
            events[event.argv[1]] = event
            if len(events) == 2:
                break
        parent = table.parent(events["orphan"].process_key)
        assert parent is not None
        assert (parent.comm, parent.exit_code, parent.alive) == ("sh", 5, False)
        assert parent.key != events["orphan"].parent_key, "the kernel had given it another"
        process = table.get(events["orphan"].process_key)
        assert process is not None
        assert process.reparented
        mine = table.get(events["child"].process_key)
        assert mine is not None
        assert not mine.reparented
        assert [p.pid for p in table.ancestors(mine.key)][1] == os.getpid()


@pytest.mark.usefixtures("tracer_probe", "tracer_buffer")
def test_the_table_is_as_of_the_event_that_was_handed_over(programs: Callable[[str], str]) -> None:
    nothing = programs("nothing")
    with ExecTracer(Filter(comms={"nothing"})) as tracer:
        table = tracer.processes
        pids = [execute(nothing, str(number), path=nothing) for number in range(COUNT)]
        seen = []
        for event in tracer.events(timeout=0):
            process = table.get(event.process_key)
            assert process is not None
            assert (process.argv, process.alive) == (event.argv, True)
            assert all(by_pid(table, pid).exit_code == 0 for pid in seen)
            assert not any(p.pid in pids[len(seen) + 1 :] for p in table if p.comm == "nothing")
            seen.append(event.pid)
    assert seen == pids


@pytest.mark.usefixtures("tracer_probe", "tracer_buffer")
def test_what_is_only_for_the_table_is_told_to_nobody(programs: Callable[[str], str]) -> None:
    with ExecTracer(Filter(comms={"nothing"}), exits=True) as tracer:
        table = tracer.processes
        for _ in range(COUNT):
            execute("true")
            execute(programs("nothing"), path=programs("nothing"))
        events = tracer.read(timeout=0)
        stats = tracer.stats()
    assert [event.kind for event in events] == ["exec", "exit"] * COUNT
    assert {event.comm for event in events} == {"nothing"}
    assert (stats.exec.delivered, stats.exit.delivered, stats.fork.seen) == (COUNT, COUNT, 0)
    assert stats.exec.filtered >= COUNT
    for kind in (stats.exec, stats.exit):
        assert kind.seen == kind.delivered + kind.filtered + kind.lost + kind.pending
    assert len([p for p in table if p.comm == "true" and p.exit_code == 0]) >= COUNT


@pytest.mark.usefixtures("tracer_probe", "tracer_buffer")
def test_asked_for_before_the_start_and_while_another_thread_reads() -> None:
    tracer = ExecTracer(NOBODY)
    table = tracer.processes
    with tracer:
        assert tracer.processes is table
        assert by_pid(table, os.getpid()).alive
    assert tracer.processes is table
    with ExecTracer(NOBODY) as tracer:
        reader = threading.Thread(target=lambda: tracer.read())
        reader.start()
        until(lambda: tracer._stream._reading.locked(), "the reader")  # type: ignore[union-attr]
        with pytest.raises(StateError, match="before another thread"):
            _ = tracer.processes
        tracer.stop()
        reader.join()
    with pytest.raises(StateError, match="closed"):
        _ = tracer.processes


@pytest.mark.usefixtures("tracer_probe", "tracer_buffer")
def test_memory_stays_flat_over_many_processes(programs: Callable[[str], str]) -> None:
    count = 5_003 if EMULATED else 200_003
    with ExecTracer(NOBODY) as tracer:
        table = tracer.processes
        table.keep(dead=1009)
        sizes: List[int] = []
        with subprocess.Popen([programs("forks"), str(count)], stdout=subprocess.PIPE, text=True) as forks:
            while forks.poll() is None:
                tracer.read(timeout=0.02)
                sizes.append(resident())
            tracer.read(timeout=0)
            last = int(forks.communicate()[0])
        assert table.lost == 0
        assert by_pid(table, last).exit_code == 7
        assert len([process for process in table if process.ended]) <= 1009
    half = len(sizes) // 2
    assert half > (0 if EMULATED else 10)
    assert max(sizes[half:]) - max(sizes[:half]) < 2 << 20


def resident() -> int:
    """Bytes of this process's memory that are not a file's: the buffer's pages come one by one."""
    text = Path("/proc/self/status").read_text()
    return int(text.split("RssAnon:")[1].split()[0]) * 1024
