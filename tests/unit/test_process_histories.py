"""The table against a machine that remembers all: any history, replayed, interrupted, out of order."""

from __future__ import annotations

import sys
from typing import Any, Callable, Dict, List, Optional, Sequence, Set

import attrs
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from execwatch.events import AnyEvent, ExitEvent, ForkEvent, ProcessEvent
from execwatch.processes import ProcessTable, table
from execwatch.processes.kin import Kin
from execwatch.testing import exec_event, exit_event, fork_event, lost_events

from .machine import INIT, TICK, Machine, Plan, plans


def table_of(events: Sequence[AnyEvent], **limits: Any) -> ProcessTable:
    found = ProcessTable(**limits)
    found.add(INIT)
    for event in events:
        found.feed(event)
    return found


def check_is(found: ProcessTable, machine: Machine) -> None:
    """The table knows everything, and nothing else."""
    assert {process.key: process for process in found} == machine.ever
    assert len(found) == len(machine.ever)
    for key, process in machine.ever.items():
        assert found.get(key) == process
        assert key in found
        assert found.children(key) == machine.children(key)
        assert found.ancestors(key) == machine.ancestors(key)
        assert found.parent(key) == next(iter(machine.ancestors(key)), None)
        assert list(found.tree(key)) == machine.tree(key)
    assert list(found.tree()) == machine.tree()
    check_accounts(found)


def check_accounts(found: ProcessTable) -> None:
    """What is kept up to date with each event is what would be made anew out of the entries."""
    kept = found._kin
    anew = Kin(kept.entries.values())
    assert kept._children == anew._children
    assert kept._needed == anew._needed
    assert _running(kept) == _running(anew)
    assert set(kept._spare) == set(anew._spare)
    assert kept._arguments.size == anew._arguments.size
    assert [e.end for e in kept._ended.values()] == [e.end for e in anew._ended.values()]


def _running(kin: Kin) -> Dict[int, str]:
    return {pid: key for pid, key in kin._holders.items() if kin.entries[key].end is None}


@given(plans())
def test_a_table_is_the_truth(plan: Plan) -> None:
    machine = Machine(plan)
    check_is(table_of(machine.events), machine)


@given(plans(), st.data())
def test_a_batch_that_is_fed_again_from_its_beginning_changes_nothing(
    plan: Plan, data: st.DataObject
) -> None:
    machine = Machine(plan)
    found, rest = table_of([]), list(machine.events)
    while rest:
        size = data.draw(st.integers(1, len(rest)), "batch")
        batch, rest = rest[:size], rest[size:]
        for until in data.draw(st.lists(st.integers(0, size), max_size=3), "interrupted after"):
            for event in batch[:until]:
                found.feed(event)
        for event in batch:
            found.feed(event)
    check_is(found, machine)


def feed_until_interrupt(found: ProcessTable, events: Sequence[AnyEvent], steps: int) -> bool:
    """Feed, and raise where the table's code has made so many steps; return whether it has."""
    left = steps

    def trace(frame: Any, what: str, _: Any) -> Optional[Callable[..., Any]]:
        nonlocal left
        if "/execwatch/processes/" not in frame.f_code.co_filename:
            return None
        frame.f_trace_opcodes = True
        left -= what == "opcode"
        if left < 0:
            sys.settrace(None)
            raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        for event in events:
            found.feed(event)
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


#: A parent that ends before its child, a program, a pid that is used again, unseen the first time.
EVENTFUL: Plan = [
    ("fork", 0),
    ("exec", 0),
    ("fork", 1),
    ("fork", 2),
    ("exit", 0),
    ("exec", 0),
    ("kill", 0),
    ("fork", 0),
    ("exit", 0),
]


@pytest.mark.parametrize("dead", [100, 1])
def test_an_interrupt_between_any_two_steps_is_made_good(dead: int) -> None:
    machine = Machine(EVENTFUL, pids=3)
    events = machine.events
    expected = {process.key: process for process in table_of(events, dead=dead)}
    steps, interrupted = 0, True
    while interrupted:
        found = table_of(events[:2], dead=dead)
        interrupted = feed_until_interrupt(found, events[2:], steps)
        for event in events[2:]:
            found.feed(event)
        have = {process.key: process for process in found}
        if dead == 1:  # which one is kept is not promised
            expected = {key: process for key, process in expected.items() if process.alive}
            have = {key: process for key, process in have.items() if process.alive}
            assert len(found) <= 1 + len(have)
        assert have == expected, steps
        check_accounts(found)
        steps += 1
    assert steps > 1000


def may_swap(first: AnyEvent, second: AnyEvent) -> bool:
    """Whether two processors can have told these the other way round: neither made the other possible."""
    assert isinstance(first, ProcessEvent)
    assert isinstance(second, ProcessEvent)
    return (
        first.process_key != second.process_key
        and first.pid != second.pid
        and not (isinstance(first, ForkEvent) and first.process_key == second.parent_key)
        and not (isinstance(first, ForkEvent) and first.parent_key == second.process_key)
        and not (isinstance(second, ForkEvent) and first.process_key == second.parent_key)
    )


@given(plans(), st.data())
def test_events_of_two_processors_may_change_places(plan: Plan, data: st.DataObject) -> None:
    machine = Machine(plan)
    events = list(machine.events)
    assume(len(events) > 1)
    for at in data.draw(st.lists(st.integers(0, len(events) - 2), max_size=20), "swapped"):
        if may_swap(events[at], events[at + 1]):
            events[at], events[at + 1] = events[at + 1], events[at]
    check_is(table_of(events), machine)


@given(plans(), st.data())
def test_an_exit_that_was_lost_is_found_out_when_the_pid_comes_again(plan: Plan, data: st.DataObject) -> None:
    machine = Machine(plan, pids=3)
    exits = [event for event in machine.events if isinstance(event, ExitEvent)]
    lost = data.draw(st.sets(st.sampled_from(exits)) if exits else st.just(set()), "lost")
    found = table_of([event for event in machine.events if event not in lost])
    youngest = {process.pid: key for key, process in machine.ever.items()}
    unseen = {event.process_key for event in lost}
    assert set(machine.ever) == {process.key for process in found}
    for key, process in machine.ever.items():
        have = found.get(key)
        assert have is not None
        if key not in unseen:
            assert (have.ended, have.exit_boottime_ns) == (process.ended, process.exit_boottime_ns)
        else:
            assert have.ended == (youngest[process.pid] != key)
            assert have.exit_boottime_ns is have.exit_code is have.signal is None
        assert have.parent_key == process.parent_key
        assert have.argv == process.argv
    check_accounts(found)


# -- Bounds ---------------------------------------------------------------------------------


def needed(machine: Machine) -> Set[str]:
    """The ended processes that a living one descends from."""
    above = {process.key for key in machine.running for process in machine.ancestors(key)}
    return {key for key in above if machine.ever[key].ended}


@given(plans("exit", "exit", "exec"), st.integers(0, 6), st.integers(0, 20))
def test_bounds_are_kept_after_each_event(plan: Plan, dead: int, ticks: int) -> None:
    machine, crowded = Machine(), False
    found = table_of([], dead=dead, seconds=ticks * TICK / 1e9)
    for kind, index in plan:
        count = len(machine.events)
        getattr(machine, kind)(index)
        for event in machine.events[count:]:
            found.feed(event)
        now = machine.events[-1].boottime_ns if machine.events else 0
        ended = [process for process in found if process.ended]
        assert len(ended) <= dead
        assert all(now - (process.exit_boottime_ns or 0) <= ticks * TICK for process in ended)
        assert {process.key for process in found if process.alive} == set(machine.running)
        young = {key for key in needed(machine) if now - machine.ever[key].exit_boottime_ns <= ticks * TICK}  # type: ignore[operator]
        crowded = crowded or len(young) > dead
        assert crowded or young <= {process.key for process in ended}, "others have gone first"
    check_accounts(found)


@given(plans("exit", "exec"), st.integers(0, 5), st.data())
def test_replayed_under_pressure_the_bounds_stay(plan: Plan, dead: int, data: st.DataObject) -> None:
    machine = Machine(plan)
    found = table_of([], dead=dead)
    until = data.draw(st.integers(0, len(machine.events)), "interrupted after")
    for event in [*machine.events[:until], *machine.events]:
        found.feed(event)
        assert sum(process.ended for process in found) <= dead
    assert {process.key for process in found if process.alive} == set(machine.running)
    assert all(machine.ever[process.key].exit_code == process.exit_code for process in found)
    check_accounts(found)


#: Of no kernel: parents in circles, two keys of one time, ends before starts.
KEYS = st.integers(0, 7).map(lambda number: f"key{number}")
FIELDS = st.fixed_dictionaries(
    {
        "process_key": KEYS,
        "parent_key": st.none() | KEYS,
        "pid": st.integers(1, 4),
        "start_boottime_ns": st.none() | st.integers(0, 5),
        "boottime_ns": st.integers(0, 50),
    }
)
NONSENSE = st.builds(
    lambda make, fields: make(**fields), st.sampled_from([fork_event, exec_event, exit_event]), FIELDS
)


@given(st.lists(NONSENSE, max_size=60), st.integers(0, 5))
def test_what_no_kernel_tells_does_no_harm(events: List[AnyEvent], dead: int) -> None:
    found = ProcessTable(dead=dead)
    for event in [*events, lost_events(boottime_ns=51)]:
        found.feed(event)
        assert sum(process.ended for process in found) <= dead
        alive = [process.pid for process in found if process.alive]
        assert len(alive) == len(set(alive))
        assert sorted(process.key for _, process in found.tree()) == sorted(process.key for process in found)
        for process in found:
            above = [ancestor.key for ancestor in found.ancestors(process.key)]
            assert len({process.key, *above}) == 1 + len(above)
            assert process in [row for _, row in found.tree(process.key)]


def test_the_table_knows_its_sources() -> None:
    """A fork is trusted most, then what tells the parent of a moment: of these the earliest."""
    assert table._NOBODY < table._MOMENT < table._FORK


def same_key(event: AnyEvent) -> AnyEvent:
    """The event, of a machine on which all with one pid came within one clock tick."""
    assert isinstance(event, ProcessEvent)
    parent_key = f"boot-{event.ppid}" if event.ppid is not None and event.ppid > 1 else INIT.key
    return attrs.evolve(event, process_key=f"boot-{event.pid}", parent_key=parent_key)


@given(plans("exit", "exit", "exec"), st.data())
def test_of_those_with_the_same_key_the_youngest_is_there_and_whole(plan: Plan, data: st.DataObject) -> None:
    machine = Machine(plan, pids=2)
    youngest = {process.pid: process for process in machine.ever.values()}
    events = [same_key(event) for event in machine.events]
    until = data.draw(st.integers(0, len(events)), "interrupted after")
    for fed in (events, [*events[:until], *events]):
        found = table_of(fed)
        assert {process.pid for process in found} == set(youngest)
        for process in found:
            true = youngest[process.pid]
            for name in ("start_boottime_ns", "exec_boottime_ns", "exit_boottime_ns", "exit_code", "signal"):
                assert getattr(process, name) == getattr(true, name), name
            assert (process.comm, process.ended) == (true.comm, true.ended)
            assert process.duration_ns is None or process.duration_ns >= 0
            parent = found.parent(process.key)
            true_parent = machine.ever.get(true.parent_key or "")
            if parent is not None and true_parent is not None:
                assert parent.start_boottime_ns == true_parent.start_boottime_ns
            else:
                assert process.parent_key is None
            assert process.ppid == true.ppid
            assert process.reparented == true.reparented
        check_accounts(found)
