"""Forks and exits, against counts, wait(2) and /proc."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from typing import Callable

import pytest

from execwatch import ExecEvent, ExecTracer, ExitEvent, Filter, ForkEvent, LostEvents

from .conftest import COUNT, until
from .test_exec import execute, held

Programs = Callable[[str], str]


def mine() -> Filter:
    return Filter(ppids=os.getpid())


def test_each_process_starts_executes_and_ends_once_in_this_order(programs: Programs) -> None:
    nothing = programs("nothing").encode()
    with ExecTracer(mine(), forks=True, exits=True) as tracer:
        for number in range(COUNT):
            execute([nothing, str(number).encode()])
        events = tracer.read(timeout=0)
        stats = tracer.stats()
    assert [event.kind for event in events] == ["fork", "exec", "exit"] * COUNT
    for start in range(0, 3 * COUNT, 3):
        fork, executed, ended = events[start : start + 3]
        assert isinstance(fork, ForkEvent)
        assert isinstance(executed, ExecEvent)
        assert isinstance(ended, ExitEvent)
        assert fork.process_key == executed.process_key == ended.process_key
        assert fork.parent_key == executed.parent_key == ended.parent_key
        assert fork.pid == executed.pid == ended.pid
        assert (executed.comm, ended.comm) == ("nothing", "nothing")
        assert (ended.exit_code, ended.signal, ended.core_dumped) == (0, None, False)
        assert ended.exec_boottime_ns is not None
        # Noted at the beginning of what makes the event, which takes its time at the end.
        assert fork.boottime_ns < ended.exec_boottime_ns <= executed.boottime_ns
        assert ended.lifetime_ns is not None
        assert ended.runtime_ns is not None
        assert 0 < ended.runtime_ns < ended.lifetime_ns
    for kind in (stats.fork, stats.exec, stats.exit):
        assert kind.delivered == COUNT
        assert kind.seen == kind.delivered + kind.filtered
        assert kind.lost == kind.pending == 0


def test_the_end_of_a_process_has_its_own_name(programs: Programs) -> None:
    """Not that of the thread which ends last; also for filters."""
    with ExecTracer(Filter(comms={"threads"}), exits=True) as tracer:
        assert subprocess.run([programs("threads"), "last"]).returncode == 3
        event = tracer.read(timeout=0)[-1]
    assert isinstance(event, ExitEvent)
    assert (event.comm, event.exit_code) == ("threads", 3)


def test_how_a_process_ended() -> None:
    """The witness is wait(2)."""
    with ExecTracer(mine(), exits=True) as tracer:
        statuses = {}
        for number in range(COUNT):
            pid = os.fork()
            if pid == 0:
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                if number % 3 == 0:
                    os._exit(number * 11 % 256)
                os.kill(os.getpid(), [signal.SIGKILL, signal.SIGTERM][number % 2])
            statuses[pid] = os.waitpid(pid, 0)[1]
        events = [event for event in tracer.read(timeout=0) if isinstance(event, ExitEvent)]
    assert [event.pid for event in events] == list(statuses)
    for event in events:
        status = statuses[event.pid]
        expected = os.waitstatus_to_exitcode(status)
        assert event.exit_code == (expected if expected >= 0 else None)
        assert event.signal == (-expected if expected < 0 else None)
        assert event.core_dumped == os.WCOREDUMP(status)
        assert event.exec_boottime_ns is None, "these never executed"
        assert event.runtime_ns is None


def test_threads_are_not_processes_and_the_last_one_tells(programs: Programs) -> None:
    """The leader goes first in half of them; they all end with exit_group's code."""
    code = (
        "import os, sys, threading, time\n"
        "threads = [threading.Thread(target=time.sleep, args=(0.01,)) for _ in range(7)]\n"
        "[thread.start() for thread in threads]\n"
        "if int(sys.argv[1]) % 2: os._exit(int(sys.argv[1]))\n"
        "[thread.join() for thread in threads]; sys.exit(int(sys.argv[1]))\n"
    )
    with ExecTracer(Filter(descendants_of=os.getpid()), forks=True, exits=True) as tracer:
        for number in range(COUNT):
            assert subprocess.run([sys.executable, "-I", "-c", code, str(number)]).returncode == number
        events = tracer.read(timeout=0)
    exits = [event for event in events if isinstance(event, ExitEvent)]
    forks = [event for event in events if isinstance(event, ForkEvent)]
    assert [event.exit_code for event in exits] == list(range(COUNT))
    assert [event.process_key for event in forks] == [event.process_key for event in exits]


def test_the_fields_of_a_process_that_is_held(programs: Programs) -> None:
    hold = programs("hold")
    with ExecTracer(mine(), forks=True, exits=True) as tracer:
        with held(hold) as pid:
            fork = tracer.read(timeout=0)[0]
            assert isinstance(fork, ForkEvent)
            with open(f"/proc/{pid}/stat") as file:
                stat = file.read().rpartition(")")[2].split()
            assert fork.process_key.endswith(f"-{pid}-{stat[19]}")
            assert (fork.pid, fork.host_pid, fork.ppid) == (pid, pid, os.getpid())
            with open("/proc/self/comm") as file:
                assert fork.comm == fork.parent_comm == file.read().strip()
            assert (fork.uid, fork.gid) == (os.getuid(), os.getgid())
            assert fork.namespaces is not None
            assert fork.namespaces.mnt == os.stat("/proc/self/ns/mnt").st_ino
        until = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        ended = tracer.read(timeout=0)[-1]
    assert isinstance(ended, ExitEvent)
    assert ended.comm == "hold"
    assert ended.boottime_ns <= until


@pytest.mark.parametrize("filter", [Filter(paths={"*/nothing"}), Filter(args={"never"})])
def test_paths_and_args_do_not_constrain_forks_and_exits(filter: Filter, programs: Programs) -> None:
    nothing = programs("nothing").encode()
    with ExecTracer(filter, forks=True, exits=True) as tracer:
        execute([nothing, b"x"])
        pid = execute_pid(nothing)
        kinds = [event.kind for event in tracer.read(timeout=0) if event.pid == pid]  # type: ignore[attr-defined]
    assert kinds == (["fork", "exec", "exit"] if filter.paths else ["fork", "exit"])


def execute_pid(path: bytes) -> int:
    pid = os.posix_spawn(path, [path], {})
    os.waitpid(pid, 0)
    return pid


def test_a_subtree_with_its_forks_and_exits_is_whole(programs: Programs, tracer_probe: str) -> None:
    """Every process of the tree has a fork, an exit, and its true parent."""
    nothing = programs("nothing")
    script = f"for i in 1 2 3 4 5 6 7; do ({nothing}; {nothing} | {nothing}) & done; wait"
    with ExecTracer(Filter(descendants_of=os.getpid()), forks=True, exits=True) as tracer:
        subprocess.run(["sh", "-c", script], check=True)
        events = tracer.read(timeout=0)
        execs = [event for event in events if isinstance(event, ExecEvent)]
        if tracer_probe == "kprobe":
            # A kretprobe follows so many calls at once; what it missed is counted, a moment later.
            until(lambda: len(execs) + tracer.stats().exec.lost == 22, "each exec to be seen or lost")
        else:
            assert len(execs) == 22
            assert tracer.stats().lost == 0
    forks = {event.process_key: event for event in events if isinstance(event, ForkEvent)}
    exits = {event.process_key for event in events if isinstance(event, ExitEvent)}
    assert set(forks) == exits
    assert len(forks) == 1 + 7 * 4
    for event in events:
        assert isinstance(event, (ForkEvent, ExecEvent, ExitEvent))
        if event.ppid != os.getpid():
            assert event.parent_key in forks


def test_forks_and_exits_do_not_starve_execs(programs: Programs, tracer_buffer: str) -> None:
    """In a ring that nobody reads, there is room for execs when that of the others is used up."""
    if tracer_buffer == "perf":
        pytest.skip("KERNEL: a program can't ask how full a perf buffer is, so it has no shares")
    nothing = programs("nothing").encode()
    with ExecTracer(mine(), forks=True, exits=True, lost=True, buffer_size=1 << 17) as tracer:
        for _ in range(601):
            pid = os.fork()
            if pid == 0:
                os._exit(0)
            os.waitpid(pid, 0)
        for number in range(COUNT):
            execute([nothing, str(number).encode()])
        events, stats = tracer.read(timeout=0), tracer.stats()
    execs = [event for event in events if isinstance(event, ExecEvent)]
    lost = [event for event in events if isinstance(event, LostEvents)]
    assert [event.argv[1] for event in execs] == [str(number) for number in range(COUNT)]
    assert {event.of for event in lost} == {"fork", "exit"}
    for kind, name in ((stats.fork, "fork"), (stats.exit, "exit")):
        assert kind.lost == sum(event.count for event in lost if event.of == name) > 0
        assert kind.seen == kind.delivered + kind.filtered + kind.lost
        assert kind.seen - kind.filtered == 601 + COUNT
    assert stats.exec.lost == 0
