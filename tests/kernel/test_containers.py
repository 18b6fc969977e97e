"""Real containers: which one an event tells, whether somebody was put into it, and filters by it."""

from __future__ import annotations

import os
import pathlib
import secrets
import shutil
import subprocess
import threading
from typing import Callable, Iterator, Optional

import pytest
from typing_extensions import TypeGuard

from execwatch import Container, Event, ExecEvent, ExecTracer, ExitEvent, Filter, ProcessEvent

from . import witness
from .commands import PATIENCE, execute, traced
from .conftest import EMULATED, until
from .containers import Runtime, Shell
from .test_examples import example

pytestmark = pytest.mark.usefixtures("root")

COUNT = 23 if EMULATED else 500

POD = "0f3c1d5e-7a29-4b64-9d8c-21e6f0b7a593"


@pytest.fixture
def runc(tmp_path: pathlib.Path) -> Iterator[Runtime]:
    with Runtime(tmp_path) as runtime:
        yield runtime


def mine() -> Filter:
    return Filter(descendants_of=os.getpid())


def new_id() -> str:
    return secrets.token_hex(32)


def last(tracer: ExecTracer, *argv: str) -> ExecEvent:
    """The event of the program that was executed with these words."""
    return [event for event in tracer.read(timeout=0) if event.argv == argv][-1]


def in_container(event: ExecEvent) -> tuple[Optional[str], Optional[bool]]:
    return (event.container.id, event.container.injected) if event.container else (None, None)


def id_of(event: ProcessEvent) -> Optional[str]:
    return event.container.id if event.container else None


# ---- A shell in a container, as one sees it ------------------------------------------


def test_a_shell_in_a_container_and_what_the_example_says_of_it(runc: Runtime) -> None:
    with traced(*example("shell_in_container")) as program:
        heading = program.line()
        with runc.container() as own, runc.put_into(own.id) as injected:
            assert runc.state(own.id)["pid"] == own.pid
            injected.tell("/bin/sh")
            # From then on it is the inner one that reads what is told.
            until(lambda: witness.last_descendant(injected.pid) != injected.pid, "the inner shell")
            inner = witness.last_descendant(injected.pid)
            assert injected.ask("echo $$") == str(witness.namespaces(inner)["vpid"])
            parents = {pid: witness.parent(pid) for pid in (own.pid, injected.pid, inner)}
            runtimes = own.runtime_pid, injected.runtime_pid
        on_the_host = execute("sh", "-c", ":", "a marker", path="/bin/sh")
        lines = [heading.decode()]
        while f" {on_the_host} " not in lines[-1]:
            lines.append(program.line().decode())
        program.interrupt()
        assert program.end()[::2] == (0, "")

    assert heading.split() == b"TIME(s) PCOMM PID PPID RET CONTAINER ARGS".split()
    shells = [line for line in lines if line.startswith("!") and own.id in line]
    assert shells == [
        f"! shell in container {own.id} ({how}): /bin/sh" for how in ("its own", *["injected"] * 2)
    ]
    assert parents == {own.pid: runtimes[0], injected.pid: runtimes[1], inner: injected.pid}
    short = own.id[:12]
    known = [
        ("runc", runtimes[0], os.getpid(), "-"),
        ("sh", own.pid, runtimes[0], short),
        ("runc", runtimes[1], os.getpid(), "-"),
        ("sh", injected.pid, runtimes[1], short),
        ("sh", inner, injected.pid, short),
        ("sh", on_the_host, os.getpid(), "-"),
    ]
    rows = [line.split(None, 6) for line in lines if not line.startswith("!")]
    by_pid = [row for row in rows if row[2] in {str(pid) for _, pid, _, _ in known}]
    assert [tuple(row[1:4] + row[5:6]) for row in by_pid] == [tuple(map(str, row)) for row in known]
    assert [row[6] for row in by_pid if row[1] == "sh"] == ["/bin/sh"] * 3 + ["sh -c : 'a marker'"]
    assert {row[4] for row in by_pid} == {"0"}
    assert [float(row[0]) for row in by_pid] == sorted(float(row[0]) for row in by_pid)


# ---- Many, and short ones ---------------------------------------------------------------


def test_five_hundred_containers_of_a_moment(runc: Runtime) -> None:
    """Nobody who looks into /proc or /sys sees them: they live for 10 to 30 ms."""
    bundle, pids = runc.bundle("/bin/true"), {new_id(): 0 for _ in range(COUNT)}

    def run(ids: list[str]) -> None:
        for id in ids:
            pids[id] = runc.run(bundle, id)

    true = Filter(descendants_of=os.getpid(), comms={"true"})
    inside = Filter(containers=True, comms={"true"})
    with ExecTracer(true, exits=True) as tracer, ExecTracer(inside) as in_containers:
        halves = [threading.Thread(target=run, args=(list(pids)[half::2],)) for half in (0, 1)]
        for thread in halves:
            thread.start()
        for thread in halves:
            thread.join()
        filtered, events = in_containers.read(timeout=0), tracer.read(timeout=0)
        assert tracer.stats().lost == in_containers.stats().lost == 0

    # Keyed by the ids: pids may come again.
    executed = [event for event in events if isinstance(event, ExecEvent)]
    ended = [event for event in events if isinstance(event, ExitEvent)]
    assert len(executed) == len(ended) == len(pids)
    assert {id_of(event): event.pid for event in executed} == pids
    assert {id_of(event): event.pid for event in ended} == pids
    assert {id_of(event): event.pid for event in filtered if id_of(event) in pids} == pids
    assert {in_container(event)[1] for event in executed} == {False}
    if not EMULATED:
        # From its first process's start, so most of it is what the runtime does in there. How
        # many it is depends on how busy the machine is.
        assert any((event.lifetime_ns or 0) < 50e6 for event in ended)


# ---- Where a container is, and who is in it ------------------------------------------------


@pytest.mark.parametrize(
    ("cgroup", "runtime", "pod"),
    [
        ("docker/{id}", "docker", None),
        ("system.slice/docker-{id}.scope", "docker", None),
        ("machine.slice/libpod-{id}.scope/container", "podman", None),
        (f"kubepods/burstable/pod{POD}/{{id}}", None, POD),
        (
            f"kubepods.slice/kubepods-pod{POD.replace('-', '_')}.slice/cri-containerd-{{id}}.scope",
            "containerd",
            POD,
        ),
        # In a container, another: the inner one.
        ("docker/" + "c0ffee11" * 8 + "/kubelet/crio-{id}.scope", "cri-o", None),
    ],
)
def test_the_first_exec_of_a_new_container(
    runc: Runtime, cgroup: str, runtime: Optional[str], pod: Optional[str]
) -> None:
    id = new_id()
    tracer = ExecTracer(Filter(containers={id}))
    with tracer, runc.container(id=id, cgroup=cgroup.format(id=id)) as shell:
        events = tracer.read(timeout=0)
        # The runtime's own process may be in the cgroup when it executes itself once more.
        preparing = [event for event in events if event.argv == (runc.command[0], "init")]
        assert {in_container(event) for event in preparing} <= {(id, None)}
        assert [event.argv for event in events if event not in preparing] == [("/bin/sh",)]
        event = events[-1]
        assert event.container == Container(id=id, runtime=runtime, pod_uid=pod, injected=False)
        assert event.pid == shell.pid
        assert event.cgroup_path == witness.cgroup(shell.pid)[1]
        assert event.cgroup_id == os.stat("".join(witness.cgroup(shell.pid))).st_ino


@pytest.mark.parametrize("program", ["runc", "crun"])
def test_who_was_put_into_it(tmp_path: pathlib.Path, program: str) -> None:
    """Also in a pid namespace below the container's, and of children whose parents have died."""
    with Runtime(tmp_path, program) as runtime, ExecTracer(mine()) as tracer, runtime.container() as own:

        def ran(shell: Shell, *words: str) -> tuple[Optional[str], Optional[bool]]:
            shell.run(*words)
            return in_container(last(tracer, *words[words.index("/bin/true") :]))

        nested = ("unshare", "-p", "-f", "/bin/true")
        assert ran(own, "/bin/true", "own") == (own.id, False)
        assert ran(own, *nested, "own") == (own.id, False)
        with runtime.put_into(own.id) as other:
            assert in_container(last(tracer, "/bin/sh")) == (own.id, True)
            assert ran(other, "/bin/true", "other") == (own.id, True)
            assert ran(other, *nested, "other") == (own.id, True)
            assert ran(own, "/bin/true", "own again") == (own.id, False)
            assert in_container(orphan_of(own, tracer)) == (own.id, False)
            # What its parent was is nowhere any more.
            assert in_container(orphan_of(other, tracer)) == (own.id, False)
        pid = runtime.execute(own.id, "/bin/true", "once")
        event = last(tracer, "/bin/true", "once")
        assert (event.pid, *in_container(event)) == (pid, own.id, True)


def test_what_a_thread_of_its_first_process_starts_is_its_own(
    tmp_path: pathlib.Path, programs: Callable[[str], str]
) -> None:
    with Runtime(tmp_path) as runtime, ExecTracer(mine()) as tracer:
        shutil.copy(programs("threads"), tmp_path / "root" / "bin")
        bundle = runtime.bundle("/bin/threads", "spawn", "/bin/true")
        id = secrets.token_hex(32)
        runtime.run(bundle, id)
        events = {event.argv: event for event in tracer.read(timeout=0)}
    assert in_container(events["/bin/true", "first"]) == (id, False)
    assert in_container(events["/bin/true", "second"]) == (id, False)


def orphan_of(shell: Shell, tracer: ExecTracer) -> ExecEvent:
    """The event of a program whose parent died before it was executed."""
    # The middle one ends first; the container's first process is the parent then.
    script = "M=$$; (while [ -d /proc/$M ]; do :; done; exec /bin/true orphan) & exit"
    shell.run("/bin/sh", "-c", script)
    return read_until(tracer, ("/bin/true", "orphan"))[-1]


def read_until(tracer: ExecTracer, argv: tuple[str, ...]) -> list[ExecEvent]:
    """The events until this program was executed."""
    events = []
    for event in tracer.events(timeout=PATIENCE):
        events.append(event)
        if event.argv == argv:
            return events
    raise AssertionError(f"{argv} did not come, but {events}")


def test_who_was_put_into_it_and_left_alone(runc: Runtime) -> None:
    """The runtime has ended; the new parent is a process of the host's."""
    with ExecTracer(mine()) as tracer, runc.container() as own:
        reading, writing = os.pipe()
        pid = runc.detach(own.id, "/bin/sh", stdin=reading)
        os.close(reading)
        parent = witness.parent(pid)
        os.write(writing, b"/bin/true child; exec /bin/true detached\n")
        os.close(writing)
        events = {event.argv[-1]: event for event in read_until(tracer, ("/bin/true", "detached"))}
    assert events["detached"].pid == events["child"].ppid == pid
    assert events["detached"].ppid == parent
    assert own.id not in witness.cgroup(parent)[1]
    assert [in_container(events[word]) for word in ("child", "detached")] == [(own.id, True)] * 2


def test_with_the_pids_of_the_host_nobody_can_tell_who_was_put_into_it(runc: Runtime) -> None:
    with ExecTracer(mine()) as tracer, runc.container(namespaces=("mount", "ipc")) as own:
        assert in_container(last(tracer, "/bin/sh")) == (own.id, None)
        own.run("/bin/true", "own")
        assert in_container(last(tracer, "/bin/true", "own")) == (own.id, None)
        runc.execute(own.id, "/bin/true", "other")
        assert in_container(last(tracer, "/bin/true", "other")) == (own.id, None)


def test_cgroups_below_the_container_s(runc: Runtime) -> None:
    with ExecTracer(mine()) as tracer, runc.container() as own:
        folder = pathlib.Path("".join(witness.cgroup(own.pid)))
        below = [folder / "init.scope", folder / "init.scope" / ("f" * 31)]
        for path in below:
            path.mkdir()
            (path / "cgroup.procs").write_text(str(own.pid))
            own.run("/bin/true")
            event = last(tracer, "/bin/true")
            assert in_container(event) == (own.id, False)
            assert event.cgroup_path == witness.cgroup(own.pid)[1]
            assert event.cgroup_path.endswith(f"{own.id}/{path.relative_to(folder)}")
            assert event.cgroup_id == path.stat().st_ino
        (folder / "cgroup.procs").write_text(str(own.pid))
        for path in reversed(below):
            path.rmdir()


def test_a_process_of_the_host_in_the_cgroup(runc: Runtime) -> None:
    """Moved there by hand; then it enters the container's namespaces too."""
    with ExecTracer(mine()) as tracer, runc.container() as own:
        move = f"echo $$ > {''.join(witness.cgroup(own.pid))}/cgroup.procs"
        enter = f"nsenter --target {own.pid} --mount --pid"
        script = f"/bin/true before; {move}; /bin/true moved; {enter} /bin/true entered"
        subprocess.run(["sh", "-c", script], check=True)
        events = {event.argv[-1]: event for event in tracer.read(timeout=0)}
    before = events["before"]
    assert before.cgroup_path == witness.cgroup(os.getpid())[1]
    assert in_container(before)[0] != own.id
    assert in_container(events["moved"]) == (own.id, None)
    assert in_container(events["entered"]) == (own.id, True)


# ---- Filters ----------------------------------------------------------------------------------

Make = Callable[[str, str], Filter]

#: A filter, made from the ids of the old and the new container, and which programs it lets through.
FILTERS: dict[str, tuple[Make, list[str]]] = {
    "any": (lambda old, new: Filter(containers=True), ["old", "new", "put in"]),
    "none": (lambda old, new: Filter(containers=False), ["host"]),
    "one": (lambda old, new: Filter(containers={old}), ["old", "put in"]),
    "new": (lambda old, new: Filter(containers={new}), ["new"]),
    "prefix": (lambda old, new: Filter(containers={new[:12]}), ["new"]),
    "two": (lambda old, new: Filter(containers={old[:12], new[:40]}), ["old", "new", "put in"]),
    "not any": (lambda old, new: Filter(exclude=Filter(containers=True)), ["host"]),
    "not none": (lambda old, new: Filter(exclude=Filter(containers=False)), ["old", "new", "put in"]),
    "not one": (lambda old, new: Filter(exclude=Filter(containers={new})), ["old", "host", "put in"]),
    "any but": (lambda old, new: Filter(containers=True, exclude=Filter(containers={old[:12]})), ["new"]),
}


def workload(runc: Runtime, old: Shell, new: str) -> None:
    """The same program, marked, in each place. In the new container nothing ever ran."""
    old.run("/bin/true", "old")
    runc.run(runc.bundle("/bin/true", "new"), new)
    execute("/bin/true", "host")
    runc.execute(old.id, "/bin/true", "put in")


@pytest.mark.parametrize("name", FILTERS)
def test_a_filter_lets_through_what_ran_in_those_containers(runc: Runtime, name: str) -> None:
    make, expected = FILTERS[name]
    with runc.container() as old:
        new = new_id()
        filter = make(old.id, new)
        with everything() as unfiltered, everything(filter) as filtered:
            workload(runc, old, new)
            got, there = filtered.read(timeout=0), unfiltered.read(timeout=0)
            stats = filtered.stats()
            assert stats.lost == unfiltered.stats().lost == 0
        roots = {witness.key(os.getpid()), witness.key(old.pid)}
    assert stats.seen == stats.delivered + stats.filtered + stats.pending

    programs = {event.argv[-1]: event for event in got if is_marked(event)}
    assert list(programs) == expected
    ends = {event.process_key for event in got if isinstance(event, ExitEvent)}
    assert {event.process_key for event in programs.values()} <= ends
    # The second witness: a tracer without a filter, and what the filter means.
    below = descendants(there, roots)
    passed = [event for event in there if filter.matches(event)]
    assert keys(got, below) == keys(passed, below)


def everything(filter: Optional[Filter] = None) -> ExecTracer[Event]:
    return ExecTracer(filter, forks=True, exits=True)


def is_marked(event: Event) -> TypeGuard[ExecEvent]:
    marks = ("old", "new", "host", "put in")
    return isinstance(event, ExecEvent) and event.argv in [("/bin/true", mark) for mark in marks]


def keys(events: list[Event], processes: set[str]) -> list[tuple[str, str, str]]:
    """What happened to these processes; each tracer has its own order of what happens at once."""
    found = [event for event in events if isinstance(event, ProcessEvent)]
    return sorted((e.process_key, e.kind, e.comm) for e in found if e.process_key in processes)


def descendants(events: list[Event], roots: set[str]) -> set[str]:
    """Keys of the processes that the roots started, as far as the events go back."""
    found = set(roots)
    for event in events:
        if isinstance(event, ProcessEvent) and event.parent_key in found:
            found.add(event.process_key)
    return found
