"""What the kernel decides is what :class:`~execwatch.Matcher` means."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import threading
import time
from typing import Callable

import pytest

from execwatch import ExecEvent, ExecTracer, Filter, Matcher
from execwatch.kernel import setup

from .conftest import COUNT, EMULATED, until
from .test_exec import execute, held

Programs = Callable[[str], str]


@pytest.fixture
def names(programs: Programs) -> list[str]:
    """The smallest program under several names, where every user can run it."""
    nothing = pathlib.Path(programs("nothing"))
    found = [nothing.parent / name for name in ("alpha", "beta", "a_name_of_more_than_fifteen_bytes")]
    for path in found:
        if not path.exists():
            os.link(nothing, path)  # not a symbolic link: the kernel would resolve it
    return [str(path) for path in found]


def workload(names: list[str]) -> None:
    for number in range(COUNT):
        execute([names[number % 3].encode(), b"--number", str(number).encode()])
    # And from another parent.
    subprocess.run(["/bin/sh", "-c", "; ".join([*names, ":"])], check=True)
    if os.geteuid() == 0:
        subprocess.run([names[0], "as", "nobody"], user="nobody", check=True, cwd="/")


def both(filter: Filter, names: list[str]) -> tuple[list[ExecEvent], ...]:
    """What a tracer with the filter delivers, and what its meaning leaves of all events."""
    with ExecTracer() as all_of_them, ExecTracer(filter) as filtered:
        began = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        workload(names)
        ended = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        got, everything = filtered.read(timeout=0), all_of_them.read(timeout=0)
        stats = filtered.stats()
    # Pending: what else the machine started since it was read.
    assert stats.seen == stats.delivered + stats.filtered + stats.pending
    assert stats.lost == 0
    matcher = Matcher(filter)
    expected = [event for event in everything if matcher.matches(event)]
    # Other programs of the machine may have started between the two starts or reads.
    return tuple([e for e in events if began <= e.boottime_ns <= ended] for events in (got, expected))


def here(event: ExecEvent) -> tuple[object, ...]:
    return event.process_key, event.argv, event.filename


def my_cgroup() -> int:
    with ExecTracer(Filter(ppids=os.getpid())) as tracer:
        subprocess.run(["/bin/true"], check=True)
        (event,) = tracer.read(timeout=0)
    assert event.cgroup_id is not None
    return event.cgroup_id


FILTERS = {
    "uids": lambda: Filter(uids=os.getuid()),
    "other uids": lambda: Filter(uids={"nobody", 4_000_000}),
    "ppids": lambda: Filter(ppids={os.getpid(), 1}),
    "pids": lambda: Filter(pids={os.getpid()}),
    "comms": lambda: Filter(comms={"alpha", "a_name_of_more_"}),
    "cgroups": lambda: Filter(cgroups=my_cgroup()),
    "no such cgroup": lambda: Filter(cgroups=my_cgroup() + 10_000_000),
    "mount_ns": lambda: Filter(mount_ns=os.stat("/proc/self/ns/mnt").st_ino),
    "paths": lambda: Filter(paths={"*/alpha", "*/be*"}),
    "args": lambda: Filter(args={"1?"}),
    "and": lambda: Filter(ppids=os.getpid(), comms={"beta"}, args={"--number"}),
    "exclude in the kernel": lambda: Filter(
        ppids=os.getpid(), exclude=Filter(comms={"alpha"}, ppids=os.getpid())
    ),
    "exclude here": lambda: Filter(ppids=os.getpid(), exclude=Filter(paths={"*/alpha"})),
    "exclude in both": lambda: Filter(
        ppids=os.getpid(), exclude=Filter(comms={"alpha", "beta"}, args={"*3", "*4"})
    ),
    "exclude users": lambda: Filter(comms={"alpha"}, exclude=Filter(uids={"nobody"})),
    "descendants_of": lambda: Filter(descendants_of=os.getpid()),
    "exclude descendants": lambda: Filter(
        mount_ns=os.stat("/proc/self/ns/mnt").st_ino, exclude=Filter(descendants_of=os.getpid())
    ),
}


@pytest.mark.parametrize("name", FILTERS)
def test_the_kernel_decides_as_the_matcher_does(name: str, names: list[str]) -> None:
    filter = FILTERS[name]()
    got, expected = both(filter, names)
    assert list(map(here, got)) == list(map(here, expected))
    if name not in ("other uids", "pids", "no such cgroup", "exclude descendants"):
        assert len(got) >= 4, "the workload should have something for this filter"


def test_a_thousand_entries(programs: Programs) -> None:
    with ExecTracer(Filter(comms={f"name-{n}" for n in range(1009)} | {"nothing"})) as tracer:
        execute([programs("nothing").encode()])
        assert [event.comm for event in tracer.read(timeout=0)] == ["nothing"]


def test_two_tracers_in_one_process_each_see_theirs(names: list[str]) -> None:
    me = os.getpid()
    with (
        ExecTracer(Filter(ppids=me, comms={"alpha"})) as one,
        ExecTracer(Filter(ppids=me, comms={"beta"})) as two,
    ):
        workload(names)
        first, second = one.read(timeout=0), two.read(timeout=0)
    assert [event.argv[-1] for event in first[: COUNT // 3 + 1]] == [str(n) for n in range(0, COUNT, 3)]
    assert [event.argv[-1] for event in second] == [str(n) for n in range(1, COUNT, 3)]
    assert {event.comm for event in first} == {"alpha"}


def test_descendants_include_children_of_children_and_orphans(programs: Programs) -> None:
    nothing = programs("nothing")
    # The middle one ends first, so that the last has lost its parent when it executes.
    orphan = f"(while [ -d /proc/$M ]; do :; done; exec {nothing} orphan) & exit"
    script = f"sh -c 'M=$$; export M; {orphan}'; {nothing} child; sh -c '{nothing} grandchild; :'"
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as stranger:
        with ExecTracer(Filter(descendants_of=os.getpid(), comms={"nothing"})) as tracer:
            subprocess.run(["sh", "-c", script], check=True)
            words = {event.argv[1] for event in tracer.events(timeout=20, count=3)}
        stranger.communicate()
    assert words == {"child", "grandchild", "orphan"}


def test_descendants_of_a_process_that_already_has_some(programs: Programs) -> None:
    """A shell with a child of its own, both from before the start, execute on demand."""
    nothing = programs("nothing")
    inner = f"echo; read x; {nothing} inner; exec {nothing} self"
    command = ["sh", "-c", f"sh -c '{inner}'; {nothing} outer"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as shell:
        assert shell.stdout is not None
        shell.stdout.readline()
        with ExecTracer(Filter(descendants_of=shell.pid, comms={"nothing"})) as tracer:
            execute([nothing.encode(), b"stranger"])
            shell.communicate(b"go\n")
            events = tracer.read(timeout=0)
    assert [event.argv[1] for event in events] == ["inner", "self", "outer"]


def test_descendants_hold_while_processes_fork_and_exit(programs: Programs) -> None:
    """Arming races with a tree that forks all the time: nobody may slip through."""
    nothing = programs("nothing")
    loop = f"while :; do (({nothing} inside &) ; {nothing} inside) & wait; done"
    with subprocess.Popen(["sh", "-c", loop], stdout=subprocess.DEVNULL, start_new_session=True) as tree:
        try:
            for _ in range(7):
                with ExecTracer(Filter(comms={"nothing"})) as everything:
                    with ExecTracer(Filter(descendants_of=tree.pid, comms={"nothing"})) as tracer:
                        until(lambda: tracer.stats().seen > (20 if EMULATED else 200), "the tree to execute")
                        tracer.stop()
                        inside = {event.process_key for event in tracer.events()}
                    everything.stop()
                    keys = [event.process_key for event in everything.events()]
                # From the first that the filtered tracer saw to its last, it saw them all,
                # but for those whose parents had died before it started.
                first, last = min(map(keys.index, inside)), max(map(keys.index, inside))
                missed = set(keys[first : last + 1]) - inside
                assert len(missed) <= 2, missed
        finally:
            os.killpg(tree.pid, 9)


def test_a_dead_pid_is_refused_at_the_start() -> None:
    process = subprocess.Popen(["/bin/true"])
    process.wait()
    for name in ("pids", "ppids", "descendants_of"):
        tracer = ExecTracer(Filter(**{name: process.pid}))
        with pytest.raises(ValueError, match=f"{name}: there is no process {process.pid}"):
            tracer.start()


def test_an_unknown_user_and_cgroup_are_refused_at_the_start() -> None:
    with pytest.raises(ValueError, match="uids: there is no user 'no-such-user'"):
        ExecTracer(Filter(uids={"no-such-user"})).start()
    with pytest.raises(ValueError, match="cgroups: '/no/such'"):
        ExecTracer(Filter(cgroups={"/no/such"})).start()


def test_a_pid_that_is_used_again_is_not_mistaken(programs: Programs) -> None:
    """The root ends; a process that gets its pid later is none of the tree."""
    nothing = programs("nothing")
    with held(programs("hold")) as pid:
        tracer = ExecTracer(Filter(descendants_of=pid))
        tracer.start()
    try:
        last = pathlib.Path("/proc/sys/kernel/ns_last_pid")
        for _ in range(COUNT):
            last.write_text(str(pid - 1))
            if execute_as(nothing) == pid:
                break
        else:
            pytest.fail(f"pid {pid} did not come again")
        assert tracer.read(timeout=0) == []
        assert tracer.stats().filtered > 0
    finally:
        tracer.close()


def execute_as(path: str) -> int:
    pid = os.posix_spawn(path, [path], {})
    os.waitpid(pid, 0)
    return pid


def test_forks_in_threads_of_members_are_followed(programs: Programs) -> None:
    code = (
        "import subprocess, threading\n"
        f"threads = [threading.Thread(target=subprocess.run, args=([{programs('nothing')!r}, str(n)],))"
        f" for n in range({COUNT})]\n"
        "[t.start() for t in threads]; [t.join() for t in threads]\n"
    )
    with ExecTracer(Filter(descendants_of=os.getpid(), comms={"nothing"})) as tracer:
        thread = threading.Thread(target=subprocess.run, args=([sys.executable, "-c", code],))
        thread.start()
        thread.join(60)
        numbers = sorted(int(event.argv[1]) for event in tracer.read(timeout=0))
    assert numbers == list(range(COUNT))


def test_a_full_tree_is_told(programs: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three processes have room: this one, a shell and its child. That others have none is told."""
    monkeypatch.setattr(setup, "_pid_limit", lambda: 3)
    nothing = programs("nothing")
    with ExecTracer(Filter(descendants_of=os.getpid())) as tracer:
        before = tracer.stats().subtree_full  # the log of the start has as little room, for the whole machine
        subprocess.run(["sh", "-c", f"{nothing} one; :"], check=True)
        assert tracer.stats().subtree_full == before
        nested = f"sh -c 'sh -c \"{nothing} deep; :\"; :'"
        subprocess.run(["sh", "-c", f"{nested}; :"], check=True)
        stats = tracer.stats()
        words = [event.argv[-1] for event in tracer.read(timeout=0) if event.argv[0] == nothing]
    assert stats.subtree_full > before
    assert words == ["one"]
