from __future__ import annotations

import gc
import pickle
import sys
import threading
import typing
from typing import Any, Dict, List, Optional

import attrs
import pytest

from execwatch.events import Container, Executable
from execwatch.processes import Process, ProcessTable, ProcessTree
from execwatch.testing import exec_event, exit_event, failed_exec_event, fork_event, lost_events

SECOND = 1_000_000_000


def who(pid: int, parent: Optional[int] = None, **fields: Any) -> Dict[str, Any]:
    """Fields of an event of the process "p<pid>", the child of another."""
    return {
        "process_key": f"p{pid}",
        "pid": pid,
        "parent_key": None if parent is None else f"p{parent}",
        "ppid": parent,
        "start_boottime_ns": pid * SECOND,
        "boottime_ns": pid * SECOND,
        "cgroup_path": None,  # not captured
        **fields,
    }


def ended(pid: int, parent: Optional[int] = None, *, at: int, **fields: Any) -> Any:
    return exit_event(**who(pid, parent, boottime_ns=at * SECOND, exec_boottime_ns=None, **fields))


def family(*pairs: Any) -> ProcessTable:
    """A table of pids and their parents."""
    table = ProcessTable()
    for pid, parent in pairs:
        table.feed(fork_event(**who(pid, parent)))
    return table


def get(table: ProcessTable, pid: int) -> Process:
    process = table.get(f"p{pid}")
    assert process is not None
    return process


# -- Values -----------------------------------------------------------------------------------


def test_a_process_is_a_value() -> None:
    process = Process(key="k", pid=1, comm="sh", argv=("sh", "-i"), container=Container(id="c"))
    assert pickle.loads(pickle.dumps(process)) == process
    assert hash(process) == hash(attrs.evolve(process))
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        process.pid = 2  # type: ignore[misc]
    with pytest.raises(TypeError):
        Process("k", 1)  # type: ignore[misc]
    assert not hasattr(process, "__dict__")
    typing.get_type_hints(Process)
    typing.get_type_hints(ProcessTree)


def test_a_command_line_is_of_the_arguments_or_else_the_name() -> None:
    assert Process(key="k", pid=1, comm="sh", argv=("/bin/sh", "a b")).command_line == "/bin/sh 'a b'"
    assert Process(key="k", pid=1, comm="my name").command_line == "'my name'"
    assert Process(key="k", pid=1, comm="sh", argv=()).command_line == "sh"


# -- What events tell ---------------------------------------------------------------------------


def test_a_fork_has_its_parents_program_until_it_executes() -> None:
    table = ProcessTable()
    exe = Executable(path="/usr/bin/make")
    table.feed(exec_event(**who(1, argv=("make", "-j2"), comm="make", exe=exe, uid=7)))
    table.feed(fork_event(**who(2, 1, comm="make", uid=8)))
    child = get(table, 2)
    assert (child.argv, child.exe, child.comm, child.uid) == (("make", "-j2"), "/usr/bin/make", "make", 8)
    assert child.exec_boottime_ns is None
    table.feed(exec_event(**who(2, 1, argv=("cc",), comm="cc", exe=None, boottime_ns=9 * SECOND)))
    child = get(table, 2)
    assert (child.argv, child.exe, child.comm, child.exec_boottime_ns) == (("cc",), None, "cc", 9 * SECOND)
    assert get(table, 1).argv == ("make", "-j2")


def test_a_fork_of_an_unknown_parent_has_no_program() -> None:
    child = get(family((2, 1)), 2)
    assert (child.argv, child.exe, child.comm, child.ppid, child.parent_key) == (None, None, "bash", 1, "p1")


def test_a_fork_has_not_the_program_that_its_parent_executed_afterwards() -> None:
    """So it is told again where the fork is fed again: what was there before is not known any more."""
    table = ProcessTable()
    table.feed(exec_event(**who(1, argv=("later",), boottime_ns=9 * SECOND)))
    table.feed(fork_event(**who(2, 1, boottime_ns=5 * SECOND)))
    assert get(table, 2).argv is None


def test_an_exec_tells_of_a_process_that_was_not_known() -> None:
    table = ProcessTable()
    table.feed(exec_event(**who(5, 4, argv=("ls",), uid=3)))
    process = get(table, 5)
    assert (process.pid, process.ppid, process.parent_key, process.argv) == (5, 4, "p4", ("ls",))
    assert (process.uid, process.start_boottime_ns, process.alive) == (3, 5 * SECOND, True)


def test_arguments_that_were_not_readable_are_unknown() -> None:
    table = ProcessTable()
    table.feed(exec_event(**who(1, argv=(), argv_status="unreadable", argc=3, comm="x")))
    assert get(table, 1).argv is None


def test_a_container_is_inherited_where_it_was_not_captured() -> None:
    table, container = ProcessTable(), Container(id="c0ffee", runtime="docker")
    table.feed(exec_event(**who(1, container=container, cgroup_path="/docker/c0ffee")))
    table.feed(fork_event(**who(2, 1)))
    table.feed(fork_event(**who(3, 1, cgroup_path="/")))
    assert get(table, 2).container == container
    assert get(table, 3).container is None
    table.feed(exec_event(**who(2, 1)))
    assert get(table, 2).container == container
    table.feed(exec_event(**who(2, 1, cgroup_path="/", boottime_ns=3 * SECOND)))
    assert get(table, 2).container is None


@pytest.mark.parametrize(("code", "signal"), [(3, None), (None, 9)])
def test_an_end_is_told(code: Optional[int], signal: Optional[int]) -> None:
    table = family((2, 1))
    table.feed(ended(2, 1, at=4, exit_code=code, signal=signal))
    process = get(table, 2)
    assert (process.alive, process.ended, process.exit_boottime_ns) == (False, True, 4 * SECOND)
    assert (process.exit_code, process.signal) == (code, signal)
    assert not process.reparented


def test_the_end_of_a_process_that_was_not_known_tells_of_it() -> None:
    table = ProcessTable()
    table.feed(ended(2, 1, at=4, comm="late"))
    process = get(table, 2)
    assert (process.comm, process.argv, process.parent_key, process.ended) == ("late", None, "p1", True)


def test_a_program_whose_exec_was_lost_is_unknown_and_not_the_one_before() -> None:
    table = ProcessTable()
    table.feed(exec_event(**who(1, argv=("old",))))
    table.feed(exit_event(**who(1, boottime_ns=9 * SECOND, exec_boottime_ns=5 * SECOND, comm="new")))
    process = get(table, 1)
    assert (process.comm, process.argv, process.exec_boottime_ns) == ("new", None, 5 * SECOND)


def test_failed_execs_tell_nothing() -> None:
    table = ProcessTable()
    table.feed(failed_exec_event(**who(1)))
    assert len(table) == 0


def test_a_pid_that_comes_again_has_ended_the_first() -> None:
    table = family((2, 1), (3, 2))
    table.feed(fork_event(**who(2, 1, process_key="again", start_boottime_ns=7 * SECOND)))
    first, second = get(table, 2), table.get("again")
    assert second is not None
    assert (first.ended, first.exit_boottime_ns, first.exit_code, first.signal) == (True, None, None, None)
    assert second.alive
    assert get(table, 3).reparented
    # Its exit comes after all.
    table.feed(ended(2, 1, at=6, exit_code=1))
    assert (get(table, 2).exit_code, get(table, 2).exit_boottime_ns) == (1, 6 * SECOND)


# -- Who is whose -------------------------------------------------------------------------------


def test_an_orphan_keeps_its_true_parent() -> None:
    table = family((2, 1), (3, 2))
    assert not get(table, 3).reparented
    table.feed(ended(2, 1, at=5))
    table.feed(exec_event(**who(3, 1, boottime_ns=6 * SECOND)))
    orphan = get(table, 3)
    assert (orphan.reparented, orphan.ppid, orphan.parent_key) == (True, 2, "p2")
    assert [process.pid for process in table.ancestors("p3")] == [2]
    table.feed(ended(3, 1, at=7))
    assert get(table, 3).reparented


def test_a_child_is_an_orphan_though_it_is_told_of_after_the_end_of_its_parent() -> None:
    table = family((2, 1))
    table.feed(ended(2, 1, at=5))
    table.feed(fork_event(**who(3, 2)))
    table.add(Process(key="p4", pid=4, comm="x", ppid=2, parent_key="p2"))
    assert get(table, 3).reparented
    assert get(table, 4).reparented


def test_a_child_that_ended_first_was_no_orphan_whichever_is_told_first() -> None:
    for order in (1, -1):
        table = family((2, 1), (3, 2))
        for event in [ended(3, 2, at=5), ended(2, 1, at=6)][::order]:
            table.feed(event)
        assert not get(table, 3).reparented


def test_another_parent_later_is_that_of_an_orphan_though_the_exit_was_lost() -> None:
    table = family((3, 2))
    table.feed(ended(3, 1, at=5))
    assert get(table, 3).reparented
    assert get(table, 3).parent_key == "p2"


def test_a_fork_is_believed_before_a_snapshot_and_this_before_an_exec() -> None:
    table = ProcessTable()
    table.feed(exec_event(**who(9, 1, argv=("x",), exe=None)))
    assert get(table, 9).parent_key == "p1"
    assert not get(table, 9).reparented
    table.feed(exec_event(**who(9, 5, argv=("x",), exe=None)))
    assert (get(table, 9).parent_key, get(table, 9).reparented) == ("p1", True)
    table.add(Process(key="p9", pid=9, ppid=2, parent_key="p2", comm="y", argv=("y",), exe="/y"))
    assert (get(table, 9).parent_key, get(table, 9).reparented) == ("p2", True)
    table.feed(fork_event(**who(9, 3)))
    process = get(table, 9)
    assert (process.parent_key, process.ppid, process.reparented) == ("p3", 3, True)
    assert (process.argv, process.exe) == (("x",), None), "of the exec, not of the snapshot"
    table.add(Process(key="p9", pid=9, ppid=2, parent_key="p2", comm="y"))
    assert get(table, 9).parent_key == "p3"
    assert [len(table.children(f"p{parent}")) for parent in (1, 2, 3)] == [0, 0, 1]


@pytest.mark.parametrize("first", ["event", "snapshot"])
@pytest.mark.parametrize(("executed", "parent"), [(3, "p5"), (4, "p1"), (5, "p1")])
def test_of_two_parents_the_one_of_the_earlier_moment_is_the_true_one(
    first: str, executed: int, parent: str
) -> None:
    table = ProcessTable()
    snapshot = Process(key="p9", pid=9, ppid=1, parent_key="p1", comm="x")
    if first == "snapshot":
        table.add(snapshot, 4 * SECOND)
    table.feed(exec_event(**who(9, 5, boottime_ns=executed * SECOND)))
    if first == "event":
        table.add(snapshot, 4 * SECOND - (executed == 4))
    process = get(table, 9)
    assert (process.parent_key, process.reparented) == (parent, True)
    assert process.ppid == int(parent[1:])
    assert [child.pid for child in table.children(parent)] == [9]
    table.feed(fork_event(**who(9, 7)))
    assert get(table, 9).parent_key == "p7"


def test_when_a_process_was_found_is_checked() -> None:
    for time in (1.0, "1", True):
        with pytest.raises(TypeError, match="time_ns: expected nanoseconds"):
            ProcessTable().add(Process(key="k", pid=1, comm="x"), time)  # type: ignore[arg-type]


def test_a_snapshot_adds_what_no_event_told() -> None:
    table = family((9, None))
    snapshot = Process(key="p9", pid=9, ppid=2, parent_key="p2", comm="y", argv=("y",), exe="/y", uid=5)
    table.add(snapshot)
    process = get(table, 9)
    assert (process.argv, process.exe, process.parent_key) == (("y",), "/y", "p2")
    assert (process.comm, process.uid, process.reparented) == ("bash", 1000, False)


def test_a_snapshot_is_what_later_events_go_on_from() -> None:
    table = ProcessTable()
    shell = Process(key="p1", pid=1, comm="sh", argv=("sh",), exe="/bin/sh", start_boottime_ns=SECOND - 5)
    table.add(shell)
    assert table.get("p1") == shell
    table.feed(fork_event(**who(2, 1, comm="sh")))
    assert get(table, 2).exe == "/bin/sh"
    table.feed(exec_event(**who(1, argv=("vi",), comm="vi")))
    assert (get(table, 1).argv, get(table, 1).start_boottime_ns) == (("vi",), SECOND)


def test_what_has_ended_by_an_event_is_not_brought_back_by_a_snapshot() -> None:
    table = family((2, 1))
    table.feed(ended(2, 1, at=3))
    table.add(Process(key="p2", pid=2, comm="bash"))
    assert get(table, 2).ended


def test_an_ended_process_can_be_added() -> None:
    table = family((3, 2))
    table.add(Process(key="p2", pid=2, comm="bash", ended=True, exit_boottime_ns=2 * SECOND, exit_code=1))
    assert (get(table, 2).ended, get(table, 2).exit_code) == (True, 1)
    assert get(table, 3).reparented


def test_only_processes_are_added() -> None:
    with pytest.raises(TypeError, match="process: expected a Process"):
        ProcessTable().add(exec_event())  # type: ignore[arg-type]


def test_children_are_in_the_order_of_their_start() -> None:
    table = family((4, 1), (2, 1), (3, 1), (1, None))
    assert [process.pid for process in table.children("p1")] == [2, 3, 4]
    assert table.children("p2") == ()
    assert table.parent("p3") == get(table, 1)


def test_what_is_not_there_has_nothing() -> None:
    table = family((2, 1))
    assert table.get("p1") is table.parent("p1") is table.parent("p2") is None
    assert table.ancestors("p1") == table.ancestors("p2") == ()
    assert "p1" not in table
    assert len(table.tree("p1")) == 0
    assert [process.pid for process in table.children("p1")] == [2], "the children are there"


#: What is no key: a pid, a parent that is not known, bytes.
NO_KEYS = [1234, None, b"p1", ("p1",), [], object(), Process(key="p1", pid=1, comm="x")]


@pytest.mark.parametrize("look_up", ["get", "parent", "ancestors", "children", "tree", "__contains__"])
@pytest.mark.parametrize("key", NO_KEYS, ids=lambda key: type(key).__name__)
def test_what_is_no_key_is_refused(look_up: str, key: Any) -> None:
    for table in (ProcessTable(), family((2, 1))):
        with pytest.raises(TypeError, match=r"^key: expected a str, as process_key .* got"):
            getattr(table, look_up)(key)


def test_a_process_is_found_by_its_pid() -> None:
    table = ProcessTable(dead=2)
    assert table.by_pid(2) is None
    for number, start in enumerate((10, 20, 30)):
        table.feed(fork_event(**who(2, 1, process_key=f"life{number}", start_boottime_ns=start * SECOND)))
        found = table.by_pid(2)
        assert found is not None
        assert (found.key, found.alive) == (f"life{number}", True)
        table.feed(fork_event(**who(3, 2, parent_key=f"life{number}", process_key=f"child{number}")))
        end = {"process_key": f"life{number}", "start_boottime_ns": start * SECOND}
        table.feed(ended(2, 1, at=start + 1, **end))
        found = table.by_pid(2)
        assert found is not None
        assert (found.key, found.exit_boottime_ns) == (f"life{number}", (start + 1) * SECOND)
    assert table.by_pid(4) is table.by_pid(-1) is None


def test_the_older_of_a_pid_is_found_where_the_younger_is_forgotten() -> None:
    table = ProcessTable(dead=1)
    table.feed(fork_event(**who(2, 1, process_key="old", start_boottime_ns=SECOND)))
    table.feed(fork_event(**who(7, 2, parent_key="old")))
    table.feed(ended(2, 1, at=3, process_key="old", start_boottime_ns=SECOND))
    table.feed(fork_event(**who(2, 1, process_key="new", start_boottime_ns=4 * SECOND)))
    table.feed(ended(2, 1, at=5, process_key="new", start_boottime_ns=4 * SECOND))
    assert "new" not in table
    found = table.by_pid(2)
    assert found is not None
    assert found.key == "old"


@pytest.mark.parametrize("pid", ["1", None, 1.0, True, b"1"])
def test_what_is_no_pid_is_refused(pid: Any) -> None:
    with pytest.raises(TypeError, match="^pid: expected a process id, an int, got"):
        family((1, None)).by_pid(pid)


@pytest.mark.parametrize("event", ["x", None, 1, Process(key="k", pid=1, comm="x")], ids=repr)
def test_only_events_are_fed(event: Any) -> None:
    table = family((2, 1))
    with pytest.raises(TypeError, match="^event: expected an event, got"):
        table.feed(event)
    assert len(table) == 1


def test_a_cleared_table_is_as_new() -> None:
    table = family((2, 1), (3, 2))
    table.feed(lost_events(of="exec"))
    table.clear()
    assert len(table) == table.lost == len(table.tree()) == len(table.children("p2")) == 0


# -- Two processes with the same key ---------------------------------------------------------------


def test_a_pid_that_comes_again_within_a_tick_is_the_younger_process() -> None:
    table = family((1, None))
    first = {"start_boottime_ns": 100, "process_key": "same"}
    second = {"start_boottime_ns": 900, "process_key": "same"}
    events = [
        fork_event(**who(2, 1, boottime_ns=100, **first)),
        exec_event(**who(2, 1, boottime_ns=200, argv=("old",), **first)),
        exit_event(**who(2, 1, boottime_ns=300, exit_code=7, exec_boottime_ns=None, **first)),
        fork_event(**who(2, 1, boottime_ns=900, **second)),
    ]
    # Fed again from the beginning, as after an interrupt, too.
    for event in [*events, *events]:
        table.feed(event)
    process = table.get("same")
    assert process is not None
    assert (process.alive, process.argv, process.start_boottime_ns) == (True, None, 900)
    assert (process.exit_code, process.exit_boottime_ns, process.duration_ns) == (None, None, None)
    table.feed(exit_event(**who(2, 1, boottime_ns=950, exit_code=0, exec_boottime_ns=None, **second)))
    process = table.get("same")
    assert process is not None
    assert (process.exit_code, process.duration_ns) == (0, 50)
    assert [child.key for child in table.children("p1")] == ["same"]


@pytest.mark.parametrize("told", ["exec", "exit"])
def test_the_younger_replaces_the_older_though_its_fork_was_lost(told: str) -> None:
    table = ProcessTable()
    table.feed(exec_event(**who(2, 1, start_boottime_ns=100, boottime_ns=200, argv=("old",))))
    make = {"exec": exec_event, "exit": exit_event}[told]
    table.feed(make(**who(2, 1, start_boottime_ns=900, boottime_ns=950, comm="new")))
    process = get(table, 2)
    assert (process.comm, process.start_boottime_ns) == ("new", 900)
    assert process.argv != ("old",)


def test_a_fork_behind_the_end_is_another_process_though_the_first_start_is_in_ticks() -> None:
    table = ProcessTable()
    first = Process(key="p2", pid=2, comm="x", ended=True, exit_boottime_ns=300, start_boottime_ns=0)
    table.add(first)
    table.feed(fork_event(**who(2, 1, start_boottime_ns=None, boottime_ns=300)))
    assert get(table, 2).ended
    table.feed(fork_event(**who(2, 1, start_boottime_ns=None, boottime_ns=301)))
    assert get(table, 2).alive


def test_parents_in_a_circle_come_to_an_end() -> None:
    table = family((1, 3), (2, 1), (3, 2), (4, 4))
    assert [process.pid for process in table.ancestors("p1")] == [3, 2]
    assert table.ancestors("p4") == ()
    assert [(depth, process.pid) for depth, process in table.tree()] == [(0, 1), (1, 2), (2, 3), (0, 4)]


# -- Losses and limits -----------------------------------------------------------------------------


def test_losses_are_counted_once() -> None:
    table = ProcessTable()
    assert table.lost == 0
    gaps = [lost_events(of=kind, count=5, cpu=cpu) for kind in ("exec", "fork", "exit") for cpu in (0, None)]
    for event in [*gaps, *gaps, lost_events(of="failed_exec")]:
        table.feed(event)
    assert table.lost == 30


@pytest.mark.parametrize(
    ("limits", "error"),
    [
        ({"dead": -1}, ValueError),
        ({"dead": -(10**30)}, ValueError),
        ({"dead": 1.0}, TypeError),
        ({"dead": True}, TypeError),
        ({"dead": "1"}, TypeError),
        ({"seconds": -0.1}, ValueError),
        ({"seconds": float("nan")}, ValueError),
        ({"seconds": "1"}, TypeError),
        ({"seconds": False}, TypeError),
    ],
)
def test_limits_are_checked(limits: Dict[str, Any], error: type) -> None:
    (name,) = limits
    with pytest.raises(error, match=rf"^{name}: expected .* \(0 and up\), got"):
        ProcessTable(**limits)
    with pytest.raises(error, match=rf"^{name}: expected"):
        ProcessTable().keep(**limits)


@pytest.mark.parametrize("name", ["dead", "seconds"])
def test_a_table_has_limits(name: str) -> None:
    with pytest.raises(TypeError, match=rf"^{name}: expected .* got None"):
        ProcessTable(**{name: None})
    ProcessTable().keep(**{name: None})  # as before


#: As arguments of 16 KiB, of which each is a value of its own, are in memory.
def long_argv(number: int) -> Any:
    return tuple(f"{number}:{word:x}" for word in range(3000))


def held_bytes(table: ProcessTable) -> int:
    """Memory of the arguments in a table, those that are shared counted once."""
    argvs = {id(process.argv): process.argv for process in table if process.argv}
    return sum(sys.getsizeof(argv) + sum(map(sys.getsizeof, argv)) for argv in argvs.values())


def test_the_arguments_of_the_ended_take_no_more_memory_than_is_said() -> None:
    table = ProcessTable(seconds=10_000)
    for pid in range(2, 600):
        table.feed(exec_event(**who(pid, 1, argv=long_argv(pid))))
        table.feed(ended(pid, 1, at=pid))
        if pid % 100 == 0:
            assert held_bytes(table) <= 64 << 20
    assert 60 << 20 < held_bytes(table) <= 64 << 20, "no fewer than there is room for"
    assert {process.pid for process in table} == set(range(600 - len(table), 600)), "the latest"
    assert all(process.argv == long_argv(process.pid) for process in table), "whole"
    table.keep(dead=0)
    table.feed(lost_events())
    assert table._kin._arguments.size == 0


def test_arguments_that_many_share_take_their_memory_once() -> None:
    table = ProcessTable(seconds=10_000)
    table.feed(exec_event(**who(1, argv=long_argv(1))))
    for pid in range(2, 1500):
        table.feed(fork_event(**who(pid, 1)))
        table.feed(ended(pid, 1, at=pid))
    assert len(table) == 1499
    assert all(process.argv == long_argv(1) for process in table)


def test_a_table_that_keeps_for_ever_keeps_all_arguments() -> None:
    table = ProcessTable(dead=600, seconds=float("inf"))
    for pid in range(2, 600):
        table.feed(exec_event(**who(pid, 1, argv=long_argv(pid))))
        table.feed(ended(pid, 1, at=pid))
    assert len(table) == 598
    assert held_bytes(table) > 64 << 20


def test_limits_can_be_changed() -> None:
    table = ProcessTable(dead=2, seconds=10)
    for pid in range(2, 8):
        table.feed(fork_event(**who(pid, 1)))
        table.feed(ended(pid, 1, at=pid))
    assert {process.pid for process in table} == {6, 7}
    table.keep(dead=3)
    table.feed(ended(8, 1, at=8))
    assert {process.pid for process in table} == {6, 7, 8}
    table.keep(seconds=1)
    table.feed(lost_events(boottime_ns=8 * SECOND))
    assert {process.pid for process in table} == {7, 8}
    table.keep(dead=0)
    table.feed(lost_events(boottime_ns=8 * SECOND))
    assert len(table) == 0


def test_the_ended_are_forgotten_by_the_clock_of_the_events() -> None:
    table = ProcessTable(seconds=1.5)
    table.feed(fork_event(**who(9, 2)))  # runs on
    table.feed(ended(2, at=10))
    table.feed(ended(3, at=11))
    table.feed(failed_exec_event(boottime_ns=11 * SECOND + SECOND // 2))
    assert {process.pid for process in table} == {9, 2, 3}
    table.feed(failed_exec_event(boottime_ns=11 * SECOND + SECOND // 2 + 1))
    assert {process.pid for process in table} == {9, 3}, "an ancestor's time is over too"


def test_ends_that_are_told_late_are_late_all_the_same() -> None:
    table = ProcessTable(seconds=1)
    table.feed(failed_exec_event(boottime_ns=20 * SECOND))
    table.feed(ended(2, at=18))
    assert len(table) == 0
    # The first end of p2 is a guess, when its pid came again.
    table = ProcessTable(seconds=1)
    table.feed(fork_event(**who(2)))
    table.feed(ended(3, at=5))
    table.feed(fork_event(**who(2, process_key="again", start_boottime_ns=6 * SECOND)))
    table.feed(ended(2, at=4))
    table.feed(failed_exec_event(boottime_ns=5 * SECOND + SECOND // 2))
    assert {process.key for process in table} == {"p3", "again"}


def test_what_was_forgotten_does_not_come_back_where_there_is_no_room() -> None:
    table = ProcessTable(dead=1)
    for event in [ended(2, at=5), ended(3, at=6), ended(2, at=5)]:
        table.feed(event)
    assert [process.pid for process in table] == [3]
    table = ProcessTable(dead=0)
    again = fork_event(**who(2, process_key="again", start_boottime_ns=7 * SECOND))
    for event in [ended(2, at=5), again, ended(3, at=8), ended(2, at=5)]:
        table.feed(event)
    assert [process.key for process in table] == ["again"]


def test_ancestors_of_the_living_go_last() -> None:
    table = ProcessTable(dead=3)
    for pid, parent in [(2, 1), (3, 2), (4, 3)]:
        table.feed(fork_event(**who(pid, parent)))
    table.feed(ended(2, at=10))
    table.feed(ended(3, at=11))
    for pid in range(20, 40):
        table.feed(fork_event(**who(pid)))
        table.feed(ended(pid, at=pid))
    assert {process.pid for process in table} == {2, 3, 4, 39}
    assert [process.pid for process in table.ancestors("p4")] == [3, 2]
    table.feed(ended(4, at=40))
    for pid in range(50, 60):
        table.feed(ended(pid, at=pid))
    assert {process.pid for process in table} == {57, 58, 59}


def reachable(table: ProcessTable) -> List[Any]:
    """All that the table holds, but for classes."""
    seen: Dict[int, Any] = {}
    waiting: List[Any] = [table]
    while waiting:
        thing = waiting.pop()
        if id(thing) not in seen and not isinstance(thing, type):
            seen[id(thing)] = thing
            waiting += gc.get_referents(thing)
    return list(seen.values())


@pytest.mark.parametrize("chain", [False, True], ids=["children of one", "each the child of the last"])
def test_memory_stays_as_it_is(chain: bool) -> None:
    table = ProcessTable(dead=500)
    sizes = []
    for number in range(2, 200_002):
        # A process in one of ten ends unseen.
        pid = 2 + number % 3000
        fields = {
            "process_key": f"p{number}",
            "pid": pid,
            "parent_key": f"p{number - 1 if chain else 1}",
            "start_boottime_ns": number * SECOND // 1000,
            "boottime_ns": number * SECOND // 1000,
        }
        table.feed(fork_event(**fields))
        if number % 10:
            table.feed(exit_event(**fields))
        if number % 20_000 == 0:
            sizes.append(sum(map(sys.getsizeof, reachable(table))))
    assert len(table) == 500 + 300
    assert len(sizes) == 10
    assert max(sizes) < 1.1 * sizes[0]


def test_others_may_ask_while_one_feeds() -> None:
    table = ProcessTable(dead=50)
    failures: List[BaseException] = []
    done = threading.Event()

    def ask() -> None:
        try:
            while not done.is_set():
                keys = [process.key for _, process in table.tree()]
                assert len(keys) == len(set(keys))
                for process in table:
                    table.ancestors(process.key)
                    table.children(process.key)
                    table.tree(process.key)
        except BaseException as exc:
            failures.append(exc)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    threads = [threading.Thread(target=ask) for _ in range(3)]
    try:
        for thread in threads:
            thread.start()
        for number in range(2, 5000):
            table.feed(fork_event(**who(number, number // 2)))
            if number > 40:
                table.feed(ended(number - 30, at=number))
    finally:
        done.set()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(before)
    assert failures == []


# -- Trees -----------------------------------------------------------------------------------------


def test_a_tree_is_drawn() -> None:
    table = ProcessTable()
    for pid, parent, argv in [
        (1, None, ("/sbin/init",)),
        (2, 1, ("sshd", "-D")),
        (5, 1, ("cron",)),
        (3, 2, ("bash",)),
        (4, 3, ("ls", "my file")),
        (6, 3, ("sleep", "9")),
        (7, 99, ("kthreadd",)),
        (8, 5, ("run-parts",)),
    ]:
        table.feed(exec_event(**who(pid, parent, argv=argv)))
    table.feed(ended(4, 3, at=9, exit_code=0))
    table.feed(ended(6, 3, at=9, exit_code=None, signal=15))
    table.feed(fork_event(**who(5, 1, process_key="cron again", start_boottime_ns=9 * SECOND)))
    assert str(table.tree()).splitlines() == [
        "1 /sbin/init",
        "├─ 2 sshd -D",
        "│  └─ 3 bash",
        "│     ├─ 4 ls 'my file' (exit code 0)",
        "│     └─ 6 sleep 9 (signal 15)",
        "├─ 5 cron (ended)",
        "│  └─ 8 run-parts",
        "└─ 5 /sbin/init",
        "7 kthreadd",
    ]
    assert str(table.tree("p3")).splitlines() == [
        "3 bash",
        "├─ 4 ls 'my file' (exit code 0)",
        "└─ 6 sleep 9 (signal 15)",
    ]
    assert [(depth, process.pid) for depth, process in table.tree("p3")] == [(0, 3), (1, 4), (1, 6)]
    assert str(table.tree("nobody")) == ""


@pytest.mark.parametrize(
    "hostile",
    ["a\nb", "\x1b[2J", "\r", "\x9b31m", "\u202e", "\u2028", "\udcff", "(exit code 0)", "└─ 1 init"],
)
def test_hostile_text_does_not_reach_the_terminal(hostile: str) -> None:
    table = ProcessTable()
    table.feed(exec_event(**who(1, argv=("/bin/x", hostile))))
    table.feed(exec_event(**who(2, 1, argv=(), argv_status="unreadable", comm=hostile[:15])))
    lines = str(table.tree()).splitlines()
    assert len(lines) == 2
    assert all(line.isprintable() for line in lines)
    assert lines[0].startswith("1 /bin/x ")
    assert lines[1].startswith("└─ 2 ")
    assert all(line[-1] == "'" for line in lines), "quoted"


def test_a_chain_of_100000_is_deep_and_nothing_overflows() -> None:
    count = 100_000
    table = family((1, None), *((pid, pid - 1) for pid in range(2, count + 1)))
    table.keep(dead=count, seconds=float("inf"))
    tree = table.tree()
    assert [(depth, process.pid) for depth, process in tree] == [
        (pid - 1, pid) for pid in range(1, count + 1)
    ]
    assert [process.pid for process in table.ancestors(f"p{count}")] == list(range(count - 1, 0, -1))
    lines = str(tree).splitlines()
    assert lines[40] == "   " * 39 + "└─ 41 bash"
    assert lines[41] == "   " * 39 + "└─ [41] 42 bash"
    assert lines[-1] == "   " * 39 + f"└─ [{count - 1}] {count} bash"
    # They end from the top, so that all are ancestors of the last one, and then this one.
    for pid in range(1, count + 1):
        table.feed(ended(pid, at=count))
    assert len(table) == count
    table.keep(dead=0)
    table.feed(lost_events())
    assert len(table) == 0
    assert len(reachable(table)) < 50
