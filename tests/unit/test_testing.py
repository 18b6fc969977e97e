from __future__ import annotations

import json
import pathlib
import pickle
import stat
import subprocess
import sys
from typing import Any, Callable, Dict, List

import attrs
import pytest

from execwatch import (
    ExecEvent,
    ExecTracer,
    Filter,
    Namespaces,
    StateError,
    event_from_dict,
    replay,
)
from execwatch.events import KINDS
from execwatch.testing import (
    exec_event,
    exit_event,
    failed_exec_event,
    fake_tracer,
    fork_event,
    lost_events,
)
from execwatch.users import Users

MAKERS: Dict[str, Callable[..., Any]] = {
    "exec": exec_event,
    "failed_exec": failed_exec_event,
    "fork": fork_event,
    "exit": exit_event,
    "lost": lost_events,
}
PROCESS_MAKERS = {kind: make for kind, make in MAKERS.items() if kind != "lost"}


# -- Event makers -----------------------------------------------------------------------------


def test_there_is_a_maker_for_each_kind() -> None:
    assert {kind: type(make()) for kind, make in MAKERS.items()} == dict(KINDS)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_events_made_are_ready_for_json_and_pickle(make: Callable[..., Any]) -> None:
    event = make()
    assert event_from_dict(json.loads(json.dumps(event.to_dict()))) == event
    assert pickle.loads(pickle.dumps(event)) == event


#: Of fields that are no numbers, and that others follow from.
VALUES: Dict[str, Any] = {
    "argv": ("a",),
    "filename": "a",
    "interp": "b",
    "cwd": "/c",
    "namespaces": Namespaces(mnt=1),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_every_field_can_be_set(kind: str) -> None:
    event = MAKERS[kind]()
    for field in attrs.fields(type(event)):
        value = VALUES.get(field.name, 7)
        assert getattr(MAKERS[kind](**{field.name: value}), field.name) == value


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_a_field_that_does_not_exist_is_refused(make: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match="weather"):
        make(weather="fine")


@pytest.mark.parametrize("make", PROCESS_MAKERS.values(), ids=PROCESS_MAKERS)
def test_later_calls_make_later_events_of_other_processes(make: Callable[..., Any]) -> None:
    one, two = make(), make()
    assert one.boottime_ns < two.boottime_ns
    assert one.time_ns < two.time_ns
    assert one.pid != two.pid
    assert one.process_key != two.process_key


def test_nothing_that_can_be_known_is_left_unknown() -> None:
    """It ran on the host, and its environment was not asked for."""
    for make in (exec_event, fork_event):
        event = make()
        unknown = {name for name in names_of(event) if getattr(event, name) is None}
        assert unknown == {"container", "env", "env_status"} & set(names_of(event))
    event = exec_event()
    for value in (event.creds, event.session, event.exe, event.namespaces):
        assert None not in [getattr(value, name) for name in names_of(value)]


def names_of(value: Any) -> List[str]:
    return [field.name for field in attrs.fields(type(value))]


def test_what_follows_from_other_fields_follows() -> None:
    event = exec_event(argv=["/usr/bin/python3", "-c", "x"], pid=77, ppid=76)
    assert event.argv == ("/usr/bin/python3", "-c", "x")
    assert (event.comm, event.filename, event.interp, event.argc) == (
        "python3",
        event.argv[0],
        event.argv[0],
        3,
    )
    assert (event.tid, event.host_pid) == (77, 77)
    assert "-77-" in event.process_key
    assert "-76-" in (event.parent_key or "")


def test_what_is_captured_follows_from_the_rest() -> None:
    event = exec_event(uid=33, gid=34, pid=77, ppid=76)
    creds, session, namespaces = event.creds, event.session, event.namespaces
    assert creds
    assert session
    assert namespaces
    assert {creds.uid, creds.euid, creds.suid, creds.fsuid, creds.loginuid} == {33}
    assert {creds.gid, creds.egid, creds.sgid, creds.fsgid} == {34}
    assert (session.pgid, session.sid, namespaces.vpid) == (77, 76, 77)
    assert event.cgroup_path == "/user.slice/user-33.slice/session-2.scope"
    assert Users().of(event).user_ns == namespaces.user


def test_root_has_all_capabilities_and_others_none() -> None:
    for uid, permitted in ((0, 2**41 - 1), (1000, 0)):
        creds = exec_event(uid=uid).creds
        assert creds
        assert (creds.cap_permitted, creds.cap_effective) == (permitted, permitted)
        assert (creds.cap_inheritable, creds.cap_ambient) == (0, 0)
        assert {creds.setuid, creds.setgid, creds.file_capabilities, creds.secureexec} == {False}
    assert (exec_event(uid=0).gid, exec_event().gid) == (0, 1000)


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({}, "/bin/true"),
        ({"argv": ("/usr/bin/make", "-j2")}, "/usr/bin/make"),
        ({"filename": "/opt/run", "interp": "/bin/sh"}, "/bin/sh"),
        ({"filename": "./run"}, "/home/user/run"),
        ({"filename": "../run", "cwd": "/srv/a"}, "/srv/run"),
        ({"filename": "run", "cwd": None}, "/run"),
        ({"filename": None}, "/bin/true"),
        ({"filename": "/opt/run", "interp": None}, "/opt/run"),
        ({"argv": ()}, "/bin/true"),
        ({"filename": "/\udcff"}, "/\udcff"),
    ],
)
def test_the_file_that_runs_is_the_one_that_was_named(fields: Dict[str, Any], path: str) -> None:
    exe = exec_event(**fields).exe
    assert exe
    assert exe.path == path
    assert stat.filemode(exe.mode or 0) == "-rwxr-xr-x"
    assert (exe.memfd, exe.deleted) == (False, False)


def test_filters_see_what_was_made_as_they_see_the_kernels() -> None:
    assert Filter(paths={"/usr/bin/make"}).matches(exec_event(argv=("/usr/bin/make",)))
    assert Filter(paths={"/opt/run"}).matches(exec_event(filename="/opt/run", interp="/bin/sh"))
    assert Filter(containers=False).matches(exec_event())
    assert Filter(containers=False).matches(fork_event())
    assert not Filter(containers=True).matches(exec_event())
    assert Filter(mount_ns={4026531841}).matches(exec_event())


def test_a_comm_has_at_most_fifteen_bytes() -> None:
    assert exec_event(argv=("/bin/a-very-long-program-name",)).comm == "a-very-long-pro"
    comm = exec_event(argv=("/bin/éééééééééé",)).comm
    assert comm.encode("utf-8", "surrogateescape") == "ééééééé".encode() + b"\xc3"


def test_odd_events_can_be_made() -> None:
    assert exec_event(argv=()).argv == ()
    assert exec_event(filename=None).comm == ""
    assert exec_event(ppid=None).parent_key is None
    assert exec_event(start_boottime_ns=None).start_boottime_ns is None
    assert exec_event(uid=None).creds is None
    assert exec_event(gid=None).creds is None
    assert exec_event(creds=None, session=None, exe=None, cwd=None, namespaces=None).exe is None
    assert failed_exec_event(argv=None).argv_status == "unreadable"
    assert exit_event(signal=9).exit_code is None


def test_a_failure_names_its_error() -> None:
    assert failed_exec_event().error == "ENOENT"
    assert failed_exec_event(retval=-13).error == "EACCES"
    assert failed_exec_event(retval=-9999).error == "9999"
    assert failed_exec_event(argv=("a b",)).command_line == "'a b'"
    assert failed_exec_event(argv=None, filename="/x y").command_line == "'/x y'"


def test_an_exit_tells_how_long_it_took() -> None:
    event = exit_event(start_boottime_ns=100, exec_boottime_ns=150, boottime_ns=400)
    assert (event.lifetime_ns, event.runtime_ns) == (300, 250)
    event = exit_event(start_boottime_ns=None, exec_boottime_ns=None)
    assert (event.lifetime_ns, event.runtime_ns) == (None, None)


# -- Replay -----------------------------------------------------------------------------------


def test_a_fake_tracer_is_like_any() -> None:
    events = [make() for make in MAKERS.values()]
    tracer = fake_tracer(events)
    assert type(tracer) is ExecTracer
    with pytest.raises(StateError, match="not started"):
        tracer.read()
    with tracer:
        assert list(tracer.events()) == events
        assert tracer.read() == []
    with pytest.raises(StateError, match="closed"):
        tracer.read()


@pytest.mark.parametrize("timeout", [None, 0, 10])
def test_a_replay_never_waits(timeout: Any) -> None:
    with replay([exec_event(), exec_event()]) as tracer:
        assert len(list(tracer.events(timeout=timeout))) == 2
        assert tracer.read(timeout=timeout) == []
    with replay([]) as tracer:
        assert list(tracer.events(timeout=timeout)) == []


def test_a_replay_takes_any_iterable_once() -> None:
    with replay(exec_event(cpu=number) for number in range(3)) as tracer:
        assert [event.cpu for event in tracer.events() if isinstance(event, ExecEvent)] == [0, 1, 2]


def test_a_replay_can_be_consumed_in_pieces() -> None:
    events = [exec_event() for _ in range(5)]
    with replay(events) as tracer:
        assert list(tracer.events(count=2)) == events[:2]
        assert [next(tracer.events())] == events[2:3]
        assert tracer.read() == events[3:]


def test_a_replay_drives_every_callback() -> None:
    seen: List[str] = []
    with replay([make() for make in MAKERS.values()]) as tracer:
        for register in (tracer.on_exec, tracer.on_failed, tracer.on_fork, tracer.on_exit, tracer.on_lost):
            register(lambda event: seen.append(event.kind))
        tracer.dispatch()
    assert seen == list(MAKERS)


def test_a_filter_is_applied_and_counted() -> None:
    events = [exec_event(comm="sh"), exec_event(comm="ls"), lost_events(count=3), fork_event(comm="sh")]
    with replay(events, Filter(comms={"sh"})) as tracer:
        before = tracer.stats()
        assert (before.exec.pending, before.fork.pending, before.exec.filtered) == (1, 1, 1)
        assert list(tracer.events()) == [events[0], events[2], events[3]]
        stats = tracer.stats()
    assert (stats.exec.seen, stats.exec.delivered, stats.exec.filtered, stats.exec.lost) == (5, 1, 1, 3)
    assert (stats.fork.seen, stats.fork.delivered) == (1, 1)
    assert (stats.seen, stats.delivered, stats.filtered, stats.lost, stats.pending) == (6, 2, 1, 3, 0)


def test_a_filter_follows_descendants_through_the_events() -> None:
    keys = {pid: f"b-{pid}-1" for pid in (1, 5, 6, 7)}
    events = [
        exec_event(pid=pid, ppid=ppid, process_key=keys[pid], parent_key=keys[ppid])
        for pid, ppid in ((5, 1), (6, 5), (7, 1))
    ]
    with replay(events, Filter(descendants_of={5})) as tracer:
        assert list(tracer.events()) == events[:2]


def test_losses_are_counted_by_reason_and_kind() -> None:
    events = [
        lost_events(reason="skipped", count=3),
        lost_events(count=2),
        lost_events(of="fork", count=4),
        lost_events(of="something newer", count=9),
    ]
    with fake_tracer(events) as tracer:
        assert len(tracer.read()) == 4
        stats = tracer.stats()
    assert (stats.exec.lost_by_reason.skipped, stats.exec.lost_by_reason.buffer_full) == (3, 2)
    assert stats.fork.lost_by_reason.buffer_full == 4
    assert stats.seen == stats.lost == 9


@pytest.mark.parametrize("close_after", range(4))
def test_what_was_not_handed_over_is_lost_by_closing(close_after: int) -> None:
    with replay([exec_event() for _ in range(3)]) as tracer:
        list(tracer.events(count=close_after))
    stats = tracer.stats()
    assert stats.delivered == close_after if close_after < 4 else 3
    assert stats.exec.lost_by_reason.closed == 3 - stats.delivered
    assert stats.pending == 0


def test_other_things_are_refused_at_the_call() -> None:
    with pytest.raises(TypeError, match="^events: "):
        replay([exec_event(), {"kind": "exec"}])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="^filter: "):
        replay([], {"pids": 1})  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        replay(5)  # type: ignore[arg-type]


def test_all_of_it_works_where_there_is_no_kernel_to_ask() -> None:
    """As on another operating system: no ctypes, no poll, no epoll, no fork."""
    code = (
        "import os, select, sys\n"
        "sys.modules['ctypes'] = sys.modules['fcntl'] = sys.modules['resource'] = None\n"
        "for module, name in ((select, 'poll'), (select, 'epoll'), (os, 'register_at_fork'), (os, 'fork')):\n"
        "    delattr(module, name)\n"
        "from execwatch import replay, Filter\n"
        "from execwatch.testing import exec_event\n"
        "with replay([exec_event(), exec_event()], Filter(uids={1000})) as tracer:\n"
        "    assert len(list(tracer.events())) == 2\n"
    )
    folder = pathlib.Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=folder)
