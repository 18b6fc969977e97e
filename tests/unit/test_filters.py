from __future__ import annotations

import os
import pathlib
import pickle
import pwd
from typing import Any, Callable, Dict, List

import pytest

from execwatch import Container, ExecEvent, Filter, Matcher, Namespaces
from execwatch.testing import (
    exec_event,
    exit_event,
    failed_exec_event,
    fork_event,
    lost_events,
)

#: For each field: a filter's value, an event that matches and one that does not.
CASES: Dict[str, Any] = {
    "uids": ({0, 33}, {"uid": 33}, {"uid": 34}),
    "pids": ([7, 8], {"pid": 8}, {"pid": 9}),
    "ppids": ((5,), {"ppid": 5}, {"ppid": 6}),
    "descendants_of": ({42}, {"ppid": 42}, {"ppid": 41}),
    "comms": ({"sh"}, {"comm": "sh"}, {"comm": "ssh"}),
    "paths": ({"/usr/*/sh"}, {"filename": "/usr/local/bin/sh"}, {"filename": "/bin/sh"}),
    "args": ({"--flag=*"}, {"argv": ("x", "--flag=1")}, {"argv": ("x", "-flag=1")}),
    "cgroups": ({9, 10}, {"cgroup_id": 9}, {"cgroup_id": 11}),
    "mount_ns": ({77}, {"namespaces": Namespaces(mnt=77)}, {"namespaces": Namespaces(mnt=78)}),
    "containers": ({"web"}, {"container": Container(id="web")}, {"container": Container(id="db")}),
}

#: The fields whose value an event may lack.
UNKNOWN: Dict[str, Dict[str, None]] = {
    "uids": {"uid": None},
    "ppids": {"ppid": None},
    "paths": {"filename": None, "exe": None},
    "cgroups": {"cgroup_id": None},
    "mount_ns": {"namespaces": None},
    "containers": {"container": None, "cgroup_path": None},
}


def passes(filter: Filter, **fields: Any) -> bool:
    return Matcher(filter).matches(exec_event(**fields))


@pytest.mark.parametrize("name", CASES)
def test_each_field_decides(name: str) -> None:
    value, match, other = CASES[name]
    assert passes(Filter(**{name: value}), **match)
    assert not passes(Filter(**{name: value}), **other)


@pytest.mark.parametrize("name", CASES)
def test_each_field_excludes(name: str) -> None:
    value, match, other = CASES[name]
    assert not passes(Filter(exclude=Filter(**{name: value})), **match)
    assert passes(Filter(exclude=Filter(**{name: value})), **other)


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_unknown_does_not_match(name: str) -> None:
    value, _, _ = CASES[name]
    assert not passes(Filter(**{name: value}), **UNKNOWN[name])
    assert passes(Filter(exclude=Filter(**{name: value})), **UNKNOWN[name])


def test_fields_are_anded_and_members_ored() -> None:
    both = Filter(uids={0, 1}, comms={"sh", "bash"})
    assert passes(both, uid=1, comm="sh")
    assert passes(both, uid=0, comm="bash")
    assert not passes(both, uid=2, comm="sh")
    assert not passes(both, uid=0, comm="zsh")


def test_an_exclusion_needs_all_its_fields_and_wins() -> None:
    filter = Filter(uids={0}, exclude=Filter(comms={"sh"}, ppids={1}))
    assert passes(filter, uid=0, comm="sh", ppid=2)
    assert passes(filter, uid=0, comm="bash", ppid=1)
    assert not passes(filter, uid=0, comm="sh", ppid=1)


def test_no_constraint_passes_everything() -> None:
    assert Filter().matches(exec_event())
    assert Filter().constraints() == {}


def test_lost_events_always_pass() -> None:
    nothing = Filter(pids={1}, exclude=Filter(uids={0}))
    assert nothing.matches(lost_events())
    assert Matcher(Filter(descendants_of={1})).matches(lost_events())


def test_globs_mind_the_case_and_cross_slashes_and_lines() -> None:
    assert passes(Filter(paths={"/bin/*"}), filename="/bin/a/b\nc")
    assert not passes(Filter(paths={"/bin/*"}), filename="/BIN/a")
    assert passes(Filter(args={"[ab]?"}), argv=("b1",))
    assert not passes(Filter(args={"[!ab]?"}), argv=("b1",))
    assert not passes(Filter(args={"a.c"}), argv=("abc",))
    assert not passes(Filter(args={"b"}), argv=("abc", "bc", "ab"))


def test_several_globs_with_stars_work_together() -> None:
    filter = Filter(args={"*a*b*", "*c*d*", "x*y*z"})
    assert passes(filter, argv=("1c2d3",))
    assert passes(filter, argv=("xyz",))
    assert not passes(filter, argv=("ba", "dc", "zyx"))


def test_globs_match_bytes_that_are_no_text() -> None:
    assert passes(Filter(args={"*\udcff"}), argv=("a\udcff",))
    assert not passes(Filter(args={"*\udcff"}), argv=("a\udcfe",))


# -- What may be given -------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_an_empty_collection_is_refused(name: str) -> None:
    for empty in (set(), (), [], iter(())):
        with pytest.raises(ValueError, match=rf"^{name}: .*None"):
            Filter(**{name: empty})


@pytest.mark.parametrize("name", CASES)
def test_bare_text_is_refused(name: str) -> None:
    for text in ("abc", b"abc", ""):
        with pytest.raises(TypeError, match=f"^{name}: "):
            Filter(**{name: text})


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("value", [1.5, object(), {1.5}, {b"x"}, [None], [[1]], {True}, True])
def test_members_of_a_wrong_type_are_refused(name: str, value: Any) -> None:
    if name == "containers" and value is True:
        value = {"web", True}  # alone it has a meaning there
    with pytest.raises(TypeError, match=f"^{name}: "):
        Filter(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("pids", {"7"}),
        ("ppids", {"7"}),
        ("descendants_of", {"7"}),
        ("mount_ns", {"7"}),
        ("comms", {7}),
        ("comms", 7),
        ("paths", {7}),
        ("args", [7]),
        ("containers", {7}),
        ("containers", 7),
        ("containers", {"web": True}),
        ("comms", {"sh": 1}),
    ],
)
def test_numbers_for_names_and_names_for_numbers_are_of_a_wrong_type(name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=f"^{name}: "):
        Filter(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("uids", -1),
        ("uids", 2**32 - 1),
        ("uids", {""}),
        ("pids", 0),
        ("pids", {-3}),
        ("pids", 2**32),
        ("ppids", {0}),
        ("descendants_of", {0}),
        ("comms", {"sixteen bytes ab"}),
        ("comms", {"éééééééé"}),
        ("comms", {""}),
        ("comms", {"a\0b"}),
        ("comms", {"\ud800"}),
        ("paths", {""}),
        ("args", {""}),
        ("args", {"a\0"}),
        ("cgroups", {"relative/path"}),
        ("cgroups", {0}),
        ("cgroups", 2**64),
        ("mount_ns", {2**32}),
        ("containers", {""}),
        ("containers", {"a/b"}),
        ("containers", {"*"}),
        ("containers", ["web", "a b"]),
        ("containers", {"-web"}),
        ("containers", {"a\0"}),
        ("containers", {"\udcff"}),
        ("containers", {"a" * 256}),
    ],
)
def test_members_out_of_range_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name}: "):
        Filter(**{name: value})


def test_a_name_of_fifteen_bytes_is_accepted_whatever_the_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    """Comms are UTF-8 in events, so they are in filters."""
    monkeypatch.setattr(os, "fsencode", lambda text: text.encode("utf-16"))
    assert passes(Filter(comms={"ééééééé1"}), comm="ééééééé1")
    assert passes(Filter(comms={"\udcff" * 15}), comm="\udcff" * 15)


def test_one_number_stands_for_a_collection_of_one() -> None:
    assert Filter(pids=7) == Filter(pids=[7])
    assert Filter(uids=0).uids == frozenset({0})


def test_an_exclusion_is_a_filter_with_constraints_and_without_one_of_its_own() -> None:
    with pytest.raises(TypeError, match="^exclude: "):
        Filter(exclude={"pids": 1})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="^exclude: "):
        Filter(exclude=Filter())
    with pytest.raises(ValueError, match="^exclude: "):
        Filter(exclude=Filter(pids=1, exclude=Filter(pids=2)))


def test_a_filter_is_a_value() -> None:
    filter = Filter(pids={1}, comms=["a", "b"], exclude=Filter(args={"x"}))
    twin = Filter(pids=[1], comms={"b", "a"}, exclude=Filter(args=("x",)))
    assert filter == twin
    assert hash(filter) == hash(twin)
    assert pickle.loads(pickle.dumps(filter)) == filter
    with pytest.raises(AttributeError):
        filter.pids = frozenset({2})  # type: ignore[misc]


def test_a_filter_does_not_keep_a_hold_of_what_it_was_made_from() -> None:
    pids = {1}
    filter = Filter(pids=pids)
    pids.add(2)
    assert filter.pids == {1}


# -- Names --------------------------------------------------------------------------------


def test_constructing_looks_nothing_up() -> None:
    Filter(uids={"nobody knows this user"}, cgroups={"/no/such/cgroup"}, pids={2**31})


def test_user_names_are_resolved() -> None:
    root = pwd.getpwuid(0).pw_name
    filter = Filter(uids={root, 5}, exclude=Filter(uids={root}))
    assert filter.resolved() == Filter(uids={0, 5}, exclude=Filter(uids={0}))
    assert passes(Filter(uids={root}), uid=0)


def test_an_unknown_user_is_named() -> None:
    with pytest.raises(ValueError, match=r"^uids: .*'no such user'"):
        Filter(uids={"no such user"}).resolved()
    with pytest.raises(ValueError, match=r"^uids: .*'no such user'"):
        Matcher(Filter(exclude=Filter(uids={"no such user"})))


def test_paths_of_cgroups_are_resolved_to_their_inodes(tmp_path: pathlib.Path) -> None:
    inode = tmp_path.stat().st_ino
    assert Filter(cgroups={str(tmp_path), 3}).resolved() == Filter(cgroups={inode, 3})
    assert passes(Filter(cgroups={str(tmp_path)}), cgroup_id=inode)


def test_a_path_that_is_no_directory_is_named(tmp_path: pathlib.Path) -> None:
    for path in (tmp_path / "absent", tmp_path / "file"):
        (tmp_path / "file").touch()
        with pytest.raises(ValueError, match=rf"^cgroups: '{path}'"):
            Filter(cgroups={str(path)}).resolved()


# -- History ------------------------------------------------------------------------------


def test_a_filter_alone_has_no_history() -> None:
    for filter in (Filter(descendants_of={1}), Filter(exclude=Filter(descendants_of={1}))):
        with pytest.raises(ValueError, match="Matcher"):
            filter.matches(exec_event())


def family(*links: tuple[int, int]) -> List[ExecEvent]:
    """Return execs of processes, each (pid, ppid), that know their parents."""
    keys = {pid: f"boot-{pid}-1" for link in links for pid in link}
    return [exec_event(pid=p, ppid=q, process_key=keys[p], parent_key=keys[q]) for p, q in links]


def test_descendants_are_followed_through_the_generations() -> None:
    matcher = Matcher(Filter(descendants_of={10}))
    events = family((10, 1), (11, 10), (12, 11), (13, 12), (20, 1), (21, 20), (13, 12))
    assert [matcher.matches(e) for e in events] == [True, True, True, True, False, False, True]


def test_history_is_taken_in_of_events_that_other_fields_leave_out() -> None:
    matcher = Matcher(Filter(descendants_of={10}, pids={12}))
    assert [matcher.matches(e) for e in family((11, 10), (12, 11))] == [False, True]


def test_history_is_taken_in_of_events_that_are_excluded() -> None:
    matcher = Matcher(Filter(descendants_of={10}, exclude=Filter(pids={11})))
    assert [matcher.matches(e) for e in family((11, 10), (12, 11))] == [False, True]
    matcher = Matcher(Filter(pids={12}, exclude=Filter(descendants_of={10})))
    assert [matcher.matches(e) for e in family((11, 10), (12, 11))] == [False, False]


def test_a_pid_that_is_used_again_is_no_descendant() -> None:
    matcher = Matcher(Filter(descendants_of={10}))
    (event,) = family((11, 10))
    assert matcher.matches(event)
    assert not matcher.matches(exec_event(pid=11, ppid=3, process_key="boot-11-900", parent_key="x"))


def test_an_unknown_parent_is_nobodys_descendant() -> None:
    matcher = Matcher(Filter(descendants_of={10}))
    matcher.matches(exec_event(ppid=10))
    assert not matcher.matches(exec_event(ppid=None, parent_key=None))


def test_forks_carry_the_tree_on() -> None:
    """A process that forks and never executes is known all the same."""
    keys = {pid: f"boot-{pid}-1" for pid in (10, 11, 12)}
    matcher = Matcher(Filter(descendants_of={10}))
    assert matcher.matches(fork_event(pid=11, ppid=10, process_key=keys[11], parent_key=keys[10]))
    assert matcher.matches(fork_event(pid=12, ppid=11, process_key=keys[12], parent_key=keys[11]))
    assert matcher.matches(exec_event(pid=12, ppid=11, process_key=keys[12], parent_key=keys[11]))


def test_an_exit_is_the_last_of_a_descendant() -> None:
    matcher = Matcher(Filter(descendants_of={10}))
    who = {"pid": 11, "process_key": "boot-11-1"}
    assert matcher.matches(exec_event(ppid=10, **who))
    assert matcher.matches(exit_event(ppid=1, parent_key="boot-1-1", **who))
    assert not matcher.matches(exec_event(ppid=1, parent_key="boot-1-1", **who))


def test_the_history_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("execwatch.filters._HISTORY", 5)
    matcher = Matcher(Filter(descendants_of={10}))
    for number in range(100):
        assert matcher.matches(exec_event(ppid=10, process_key=f"boot-{number}-1"))
    assert len(matcher._include._members) == 5
    assert matcher.matches(exec_event(ppid=99, parent_key="boot-99-1"))
    assert not matcher.matches(exec_event(ppid=50, parent_key="boot-50-1"))


# -- Other kinds --------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(CASES.keys() - {"paths", "args"}))
@pytest.mark.parametrize("make", [fork_event, exit_event, failed_exec_event])
def test_events_of_processes_are_constrained_alike(name: str, make: Callable[..., Any]) -> None:
    value, match, other = CASES[name]
    assert Matcher(Filter(**{name: value})).matches(make(**match))
    assert not Matcher(Filter(**{name: value})).matches(make(**other))
    assert not Matcher(Filter(exclude=Filter(**{name: value}))).matches(make(**match))


@pytest.mark.parametrize("name", ["paths", "args"])
@pytest.mark.parametrize("make", [fork_event, exit_event])
def test_paths_and_args_do_not_constrain_forks_and_exits(name: str, make: Callable[..., Any]) -> None:
    globs = {name: {"*never*"}}
    assert Filter(**globs).matches(make())
    assert not Filter(pids=7, **globs).matches(make(pid=8))
    assert Filter(exclude=Filter(**{name: {"*"}})).matches(make())
    assert Filter(exclude=Filter(pids=7, **{name: {"*"}})).matches(make(pid=7))


@pytest.mark.parametrize("name", ["paths", "args"])
def test_paths_and_args_constrain_attempts_that_failed(name: str) -> None:
    value, match, other = CASES[name]
    assert Filter(**{name: value}).matches(failed_exec_event(**match))
    assert not Filter(**{name: value}).matches(failed_exec_event(**other))
    assert not Filter(**{name: {"*"}}).matches(failed_exec_event(argv=None, filename=None))


# -- Explaining ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("filter", "kernel", "here"),
    [
        (Filter(), "nothing", "nothing"),
        (Filter(pids=1, comms={"a"}), "pids, comms", "nothing"),
        (Filter(paths={"a"}, args={"b"}, uids=0), "uids", "paths, args"),
        (Filter(exclude=Filter(pids=1)), "exclude (pids)", "nothing"),
        (Filter(pids=2, exclude=Filter(pids=1, args={"x"})), "pids", "exclude (pids, args)"),
    ],
)
def test_explains_who_decides(filter: Filter, kernel: str, here: str) -> None:
    assert filter.explain() == f"decided in the kernel: {kernel}\ndecided in this process: {here}"
