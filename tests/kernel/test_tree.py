"""The table of processes, against what strace, /proc and the programs themselves tell."""

from __future__ import annotations

import os
import re
import subprocess
import threading
from pathlib import Path
from typing import Callable, Dict, List

import attrs
import pytest

from execwatch import ExecEvent, ExecTracer, Filter, ProcessEvent, wire
from execwatch.kernel import procfs
from execwatch.processes import Process, ProcessTable

from .commands import execute
from .conftest import COUNT, EMULATED, until
from .containers import Runtime
from .test_strace import project as project

NOBODY = Filter(comms={"there-is-none"})


def by_pid(table: ProcessTable, pid: int) -> Process:
    found = [process for process in table if process.pid == pid]
    assert found, f"process {pid} is not in the table"
    youngest = max(found, key=lambda process: process.start_boottime_ns or 0)
    assert table.by_pid(pid) == youngest
    return youngest


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
    assert len(traced) > 40
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
def test_asked_for_before_the_start() -> None:
    tracer = ExecTracer(NOBODY)
    table = tracer.processes
    assert len(table) == 0
    with tracer:
        assert tracer.processes is table
        assert by_pid(table, os.getpid()).alive
    assert tracer.processes is table


@pytest.mark.usefixtures("tracer_probe", "tracer_buffer")
def test_asked_for_while_another_thread_reads(programs: Callable[[str], str]) -> None:
    """The reader goes on, and the table is as of the events that it is handed."""
    nothing = programs("nothing")
    seen: List[ExecEvent] = []
    with ExecTracer(Filter(ppids=os.getpid(), comms={"nothing"})) as tracer:
        reader = threading.Thread(target=lambda: seen.extend(tracer.events()))
        reader.start()
        execute(nothing, "before", path=nothing)
        until(lambda: tracer._stream._reading.locked(), "the reader")  # type: ignore[union-attr]
        table = tracer.processes
        pids = [execute(nothing, str(number), path=nothing) for number in range(COUNT)]
        tracer.stop()
        reader.join()
        assert [event.argv[1] for event in seen] == ["before", *map(str, range(COUNT))]
        assert [by_pid(table, pid).exit_code for pid in pids] == [0] * COUNT
        assert by_pid(table, os.getpid()).alive


@pytest.mark.usefixtures("tracer_probe", "tracer_buffer")
@pytest.mark.parametrize("at", [1, 2])
def test_a_first_use_that_was_interrupted_is_made_again(
    at: int, monkeypatch: pytest.MonkeyPatch, programs: Callable[[str], str]
) -> None:
    nothing = programs("nothing")
    with ExecTracer(Filter(ppids=os.getpid(), comms={"nothing"})) as tracer:
        with monkeypatch.context() as patch:
            patch.setattr(procfs, "scan", calling(at, interrupted))
            with pytest.raises(KeyboardInterrupt):
                _ = tracer.processes
        gone = execute(nothing, "unseen", path=nothing)
        tracer.read(timeout=0)
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as runs:
            table = tracer.processes
            assert by_pid(table, runs.pid).alive
        assert table.by_pid(gone) is None
        pids = [execute(nothing, path=nothing) for _ in range(COUNT)]
        events = tracer.read(timeout=0)
        assert [event.pid for event in events] == pids
        assert all(by_pid(table, pid).exit_code == 0 for pid in [*pids, runs.pid])
        assert by_pid(table, pids[0]).ppid == os.getpid()
        assert by_pid(table, os.getpid()).alive


Scan = Callable[[wire.Clock], Dict[str, Process]]


def calling(at: int, function: Callable[[], object]) -> Scan:
    """The scan of /proc, and behind the one of that number the function."""
    real, count = procfs.scan, 0

    def scan(clock: wire.Clock) -> Dict[str, Process]:
        nonlocal count
        count += 1
        found = real(clock)
        if count == at:
            function()
        return found

    return scan


def interrupted() -> None:
    raise KeyboardInterrupt


@pytest.mark.usefixtures("tracer_probe", "tracer_buffer")
def test_a_program_that_is_executed_between_the_two_looks_is_the_one_that_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with subprocess.Popen(["sh", "-c", "read line; exec sleep 1000"], stdin=subprocess.PIPE) as shell:

        def let_it_execute() -> None:
            assert shell.stdin
            shell.stdin.write(b"\n")
            shell.stdin.flush()
            until(lambda: Path(f"/proc/{shell.pid}/comm").read_text() == "sleep\n", "its exec")

        monkeypatch.setattr(procfs, "scan", calling(1, let_it_execute))
        with ExecTracer(NOBODY) as tracer:
            process = by_pid(tracer.processes, shell.pid)
            assert (process.comm, process.argv) == ("sleep", ("sleep", "1000"))
            assert process.exe == os.readlink(f"/proc/{shell.pid}/exe")
        shell.kill()


@pytest.mark.usefixtures("tracer_probe", "tracer_buffer")
def test_a_parent_that_ends_between_the_two_looks_is_the_true_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen(["sh", "-c", "sleep 1000 & read line"], stdin=subprocess.PIPE) as shell:
        until(lambda: children_of(shell.pid), "the shell's child")
        (sleeper,) = children_of(shell.pid)
        monkeypatch.setattr(procfs, "scan", calling(1, lambda: shell.communicate(b"\n")))
        with ExecTracer(NOBODY) as tracer:
            assert by_pid(tracer.processes, sleeper).ppid == shell.pid
        os.kill(sleeper, 9)


@pytest.mark.usefixtures("tracer_probe", "tracer_buffer")
def test_the_parent_that_an_event_told_before_the_look_at_proc_is_the_true_one() -> None:
    with ExecTracer(Filter(comms={"sleep"}, args={"1000"})) as tracer:
        script = "sleep 1000 >&- 2>&- & echo $! $$; while [ $(cat /proc/$!/comm) != sleep ]; do :; done"
        done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
        sleeper, shell = map(int, done.stdout.split())
        try:
            table = tracer.processes
            events = [event for event in tracer.read(timeout=0) if event.pid == sleeper]
            process = by_pid(table, sleeper)
            assert [event.ppid for event in events] == [shell]
            assert (process.ppid, process.parent_key) == (shell, events[0].parent_key)
            assert process.reparented
        finally:
            os.kill(sleeper, 9)


@pytest.mark.usefixtures("tracer_probe", "tracer_buffer", "root")
def test_a_pid_that_is_used_again_within_a_clock_tick_is_one_process_in_the_table() -> None:
    """The witness of what is the same is the start time, in nanoseconds."""
    last_pid = Path("/proc/sys/kernel/ns_last_pid")
    pid = free_pid()
    shared = 0
    with ExecTracer(Filter(ppids=os.getpid()), forks=True, exits=True) as tracer:
        table = tracer.processes
        for _ in range(1000):
            last_pid.write_text(str(pid - 1))
            child = os.posix_spawn("/bin/true", ["true"], {})
            assert os.waitpid(child, 0)[1] == 0
            events = [event for event in tracer.read(timeout=0) if isinstance(event, ProcessEvent)]
            if child != pid:
                continue  # somebody else was faster
            (start,) = {event.start_boottime_ns for event in events}
            before, process = shared, by_pid(table, pid)
            assert process.start_boottime_ns == start
            assert process.duration_ns is not None
            assert process.duration_ns >= 0
            shared += process.key in {event.process_key for event in events} and len(events) == 3
            assert shared > before
    keys = {process.key for process in table if process.pid == pid}
    if not EMULATED:  # there a process takes several ticks
        assert len(keys) < shared, "some came in one tick"


def free_pid() -> int:
    """One that nobody has, and few are going to have soon."""
    last = int(Path("/proc/sys/kernel/ns_last_pid").read_text())
    most = min(int(Path("/proc/sys/kernel/pid_max").read_text()), 32768)
    candidates = ((last + most // 2 + number) % most for number in range(most))
    return next(pid for pid in candidates if pid > 1000 and not Path(f"/proc/{pid}").exists())


@pytest.mark.usefixtures("tracer_probe", "tracer_buffer", "root")
def test_what_ran_in_a_container_before_is_known_for_that(tmp_path: Path) -> None:
    with Runtime(tmp_path) as runc, runc.container() as shell, ExecTracer(Filter(ppids=shell.pid)) as tracer:
        table = tracer.processes
        process = by_pid(table, shell.pid)
        assert process.container is not None
        assert process.container.injected is None
        shell.run("/bin/true")
        (event,) = tracer.read(timeout=0)
        assert event.container is not None
        assert process.container == attrs.evolve(event.container, injected=None)
        assert process.container.id == shell.id
        assert by_pid(table, event.pid).container == event.container
        assert by_pid(table, os.getpid()).container != process.container


@pytest.mark.usefixtures("tracer_probe", "tracer_buffer")
def test_skipped_runs_that_only_the_table_lacks_are_told_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with ExecTracer(NOBODY) as tracer, ExecTracer(Filter(descendants_of=os.getpid())) as tree:
        for each in (tracer, tree):
            each.stats()
            lost = each.processes.lost
            image = each._stream._source._image  # type: ignore[union-attr]
            monkeypatch.setattr(image, "skipped", lambda name: 5 if "fork" in name else 0)
            each.read(timeout=0)
            assert each.processes.lost - lost == 5
        assert (tracer.stats().subtree_full, tree.stats().subtree_full) == (0, 5)


@pytest.mark.usefixtures("tracer_probe", "tracer_buffer")
def test_memory_stays_flat_over_many_processes(programs: Callable[[str], str]) -> None:
    count = 5_003 if EMULATED else 200_003
    # A buffer with room for what comes while others have the processor: its pages are not counted here.
    with ExecTracer(NOBODY, buffer_size=64 << 20) as tracer:
        table = tracer.processes
        table.keep(dead=1009)
        sizes: List[int] = []
        before = forks_so_far()
        with subprocess.Popen([programs("forks"), str(count)], stdout=subprocess.PIPE, text=True) as forks:
            # At first more at once than will come later, however long this process has to wait for its turn.
            until(lambda: forks_so_far() - before > count // 10, "processes")
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


def forks_so_far() -> int:
    """Processes and threads since the machine started, see proc(5)."""
    return int(re.findall(r"^processes (\d+)$", Path("/proc/stat").read_text(), re.M)[0])


def resident() -> int:
    """Bytes of this process's memory that are not a file's: the buffer's pages come one by one."""
    text = Path("/proc/self/status").read_text()
    return int(text.split("RssAnon:")[1].split()[0]) * 1024
