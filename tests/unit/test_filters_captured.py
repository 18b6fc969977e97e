"""Filters by what is captured: the container, and the path of the file that runs."""

from __future__ import annotations

import pickle
import struct
from typing import Any, Callable, Dict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from execwatch import Container, Executable, Filter, Matcher, ProcessEvent, wire
from execwatch.containers import parse
from execwatch.filters import user_exclusion, user_part
from execwatch.kernel.filtering import compile_filter
from execwatch.testing import exec_event, exit_event, failed_exec_event, fork_event

ID = "605439acbd4fb18c145069289094b17f17e0cfa938f78012d4960bc797305f22"
OTHER = "c40dff48f1d53c3f07a50aa12bb9ae0e58c0927dc6b1d77e3f166784722642ad"

MAKERS = {
    "exec": exec_event,
    "failed_exec": failed_exec_event,
    "fork": fork_event,
    "exit": exit_event,
}

INSIDE: Dict[str, Any] = {
    "container": Container(id=ID, runtime="docker"),
    "cgroup_path": f"/system.slice/docker-{ID}.scope",
}
#: Where more than 24 levels are below it.
DEEP: Dict[str, Any] = {**INSIDE, "cgroup_path": None}
HOST: Dict[str, Any] = {"container": None, "cgroup_path": "/init.scope"}
UNKNOWN: Dict[str, Any] = {"container": None, "cgroup_path": None}


# -- Containers -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("containers", "expected"),
    [
        (True, (True, True, False, False)),
        (False, (False, False, True, False)),
        ({ID}, (True, True, False, False)),
        ({OTHER}, (False, False, False, False)),
    ],
    ids=["any", "none", "this", "another"],
)
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_events_of_all_kinds_are_in_a_container_or_on_the_host_or_unknown(
    make: Callable[..., Any], containers: Any, expected: Any
) -> None:
    events = [make(**fields) for fields in (INSIDE, DEEP, HOST, UNKNOWN)]
    assert tuple(map(Filter(containers=containers).matches, events)) == expected
    excluding = Filter(exclude=Filter(containers=containers))
    assert tuple(map(excluding.matches, events)) == tuple(not match for match in expected)


@pytest.mark.parametrize(
    ("id", "asked", "match"),
    [
        (ID, {ID}, True),
        (ID, {ID[:12]}, True),
        (ID, {ID[:63]}, True),
        (ID, {ID[:11]}, False),
        (ID, {ID[1:13]}, False),
        (ID, {ID.upper()}, False),
        (ID, {ID + "0"}, False),
        (ID, {OTHER, ID[:12]}, True),
        (ID, {OTHER[:12], OTHER}, False),
        # The beginning of a name is another name.
        ("web", {"web"}, True),
        ("web", {"we"}, False),
        ("a-name-that-is-long", {"a-name-that-is-long"}, True),
        ("a-name-that-is-long", {"a-name-that-is"}, False),
        (ID + "-1", {ID}, False),
    ],
)
def test_an_id_may_be_shortened_as_docker_shows_it(id: str, asked: Any, match: bool) -> None:
    event = exec_event(container=Container(id=id))
    assert Filter(containers=asked).matches(event) is match


@pytest.mark.parametrize("injected", [None, False, True])
def test_how_one_came_into_a_container_does_not_matter(injected: Any) -> None:
    event = exec_event(container=Container(id=ID, runtime="podman", pod_uid="x", injected=injected))
    assert Filter(containers=True).matches(event)
    assert Filter(containers={ID}).matches(event)


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ("web", TypeError),
        (b"web", TypeError),
        (7, TypeError),
        (0, TypeError),
        (1.5, TypeError),
        ({b"web"}, TypeError),
        ({True}, TypeError),
        ({None}, TypeError),
        ({""}, ValueError),
        (["web", "a/b"], ValueError),
    ],
)
def test_what_is_no_container_is_refused_with_what_is_one(value: Any, error: type) -> None:
    with pytest.raises(error) as caught:
        Filter(containers=value)
    told = str(caught.value)
    assert told.startswith("containers: expected ")
    assert all(accepted in told for accepted in ("container ids", "12 digits", "names", "True or False"))
    wrong = value if isinstance(value, (str, bytes, int, float)) else list(value)[-1]
    assert told.endswith(f", got {wrong!r}")


@pytest.mark.parametrize("value", [True, False, frozenset({ID})])
def test_a_filter_by_containers_is_a_value(value: Any) -> None:
    filter = Filter(containers=value, exclude=Filter(containers={"web"}))
    assert filter.containers == value
    assert filter.constraints() == {"containers": value}
    assert pickle.loads(pickle.dumps(filter)) == filter == filter.resolved()
    assert hash(filter) == hash(filter.resolved())
    assert filter != Filter(containers={"db"})


def test_on_the_host_is_a_constraint_and_not_none() -> None:
    assert Filter(containers=False) != Filter()
    assert Filter(exclude=Filter(containers=False)).exclude is not None


# -- Paths ------------------------------------------------------------------------------------

LINK = {"filename": "/bin/sh", "interp": "/bin/sh", "exe": Executable(path="/usr/bin/dash")}
SCRIPT = {"filename": "/opt/run", "interp": "/bin/sh", "exe": Executable(path="/usr/bin/dash")}


@pytest.mark.parametrize(
    ("fields", "matching", "other"),
    [
        # What a link leads to counts, not the link.
        (LINK, {"/usr/bin/dash"}, {"/bin/sh"}),
        # A script is its own file and that of its interpreter; how that was called is neither.
        (SCRIPT, {"/opt/run", "/usr/bin/dash"}, {"/bin/sh"}),
        ({**LINK, "exe": None}, {"/bin/sh"}, {"/usr/bin/dash"}),
        ({**LINK, "exe": Executable(inode=5)}, {"/bin/sh"}, {"/usr/bin/dash", ""}),
        ({**SCRIPT, "exe": None}, {"/opt/run"}, {"/bin/sh"}),
        # What is unknown takes nothing away.
        ({**LINK, "filename": None, "interp": None}, {"/usr/bin/dash"}, {"/bin/sh"}),
        ({**LINK, "filename": None}, {"/usr/bin/dash"}, {"/bin/sh"}),
        ({**LINK, "interp": None}, {"/usr/bin/dash", "/bin/sh"}, {"dash"}),
        # Relative, as it was passed, and resolved.
        ({"filename": "./a", "interp": "./a", "exe": Executable(path="/srv/a")}, {"/srv/a"}, {"./a", "a"}),
    ],
)
def test_paths_are_those_of_the_file_that_runs(fields: Any, matching: Any, other: Any) -> None:
    event = exec_event(**fields)
    for path in matching:
        assert Filter(paths={path}).matches(event)
        assert not Filter(exclude=Filter(paths={path})).matches(event)
    for path in other - {""}:
        assert not Filter(paths={path}).matches(event)
        assert Filter(exclude=Filter(paths={path})).matches(event)


def test_an_attempt_that_failed_has_the_path_that_was_passed() -> None:
    assert Filter(paths={"/no/*"}).matches(failed_exec_event(filename="/no/such"))
    assert not Filter(paths={"/no/*"}).matches(failed_exec_event(filename="/yes"))


# -- Who decides ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("filter", "kernel", "here"),
    [
        (Filter(containers=True), "containers", "containers (the first event of each cgroup)"),
        (Filter(containers=False), "containers", "containers (the first event of each cgroup)"),
        (
            Filter(paths={"a"}, containers={ID}, pids=1),
            "pids, containers",
            "paths, containers (the first event of each cgroup)",
        ),
        (
            Filter(exclude=Filter(containers=False)),
            "exclude (containers)",
            "containers (the first event of each cgroup)",
        ),
        (
            Filter(uids=0, exclude=Filter(containers={ID}, args={"x"})),
            "uids",
            "exclude (args, containers), containers (the first event of each cgroup)",
        ),
    ],
)
def test_explains_who_decides_on_containers(filter: Filter, kernel: str, here: str) -> None:
    assert filter.explain() == f"decided in the kernel: {kernel}\ndecided in this process: {here}"


BIT = 0x80  # FILTER_CONTAINER of record.h


@pytest.mark.parametrize("containers", [True, False, {ID, OTHER}])
def test_the_kernel_is_told_that_containers_count_but_not_which(containers: Any) -> None:
    compiled = compile_filter(Filter(containers=containers, pids={7}))
    assert compiled.config == {"include": BIT | 2, "exclude": wire.NEVER, "exclude_final": 0}
    assert compiled.entries == ((struct.pack("<Q8xI", 7, 2), b"\1"),)
    assert compiled.roots == {}
    compiled = compile_filter(Filter(exclude=Filter(containers=containers)))
    assert compiled.config == {"include": 0, "exclude": BIT, "exclude_final": 1}
    assert (compiled.entries, compiled.roots) == ((), {})


@pytest.mark.parametrize("further", [{"paths": {"x"}}, {"args": {"x"}}])
def test_an_exclusion_with_a_glob_is_not_the_kernels_to_finish(further: Any) -> None:
    compiled = compile_filter(Filter(exclude=Filter(containers=True, **further)))
    assert compiled.config == {"include": 0, "exclude": BIT, "exclude_final": 0}


def test_a_value_in_both_halves_is_one_entry() -> None:
    compiled = compile_filter(
        Filter(uids={1, 2}, containers=True, descendants_of={9}, exclude=Filter(uids={2, 3}, pids=9))
    )
    uid, pid, tree = 1, 2, 0x40
    assert compiled.config == {"include": uid | tree | BIT, "exclude": uid | pid, "exclude_final": 1}
    keys = {struct.unpack("<Q8xI", key): parts for key, parts in compiled.entries}
    assert keys == {(1, uid): b"\1", (2, uid): b"\3", (3, uid): b"\2", (9, pid): b"\2"}
    assert compiled.roots == {9: 1}
    assert compile_filter(None) == compile_filter(Filter())


def test_nothing_is_left_to_python_where_the_kernel_decides_all() -> None:
    assert user_part(Filter(pids=1, uids={0}, comms={"a"})) is None
    for fields in ({"paths": {"a"}}, {"args": {"a"}}, {"containers": False}):
        assert user_part(Filter(pids=1, **fields)) is not None


# -- Both halves together ---------------------------------------------------------------------

INCLUDE, EXCLUDE = 1, 2
#: Bits of record.h, by the field of an event.
FIELDS: Dict[str, int] = {"uid": 1, "pid": 2, "comm": 8, "cgroup_id": 0x10}


class Kernel:
    """What exec.bpf.c makes of a compiled filter (``passes``), and what Python does behind it.

    Attributes:
        asked: How often Python had to say what a cgroup is.
    """

    def __init__(self, filter: Filter) -> None:
        self._filter = filter
        compiled = compile_filter(filter)
        self._config, self._entries = compiled.config, dict(compiled.entries)
        self._cgroups: Dict[int, int] = {}
        self._include = user_part(filter)
        self._exclude = user_exclusion(filter.exclude) if filter.exclude else None
        self.asked = 0

    def delivers(self, event: ProcessEvent) -> bool:
        hits = {INCLUDE: 0, EXCLUDE: 0}
        for name, bit in FIELDS.items():
            self._note(hits, bit, self._parts(bit, getattr(event, name)))
        undecided = event.cgroup_id is not None and event.cgroup_id not in self._cgroups
        if undecided:
            self._note(hits, BIT, INCLUDE | EXCLUDE)
        elif event.cgroup_id is not None:
            self._note(hits, BIT, self._cgroups[event.cgroup_id])
        if hits[INCLUDE] & self._config["include"] != self._config["include"]:
            return False
        excluded = hits[EXCLUDE] & self._config["exclude"] == self._config["exclude"]
        if excluded and self._config["exclude_final"] and not undecided:
            return False
        if undecided:
            self._decide(event)
        if self._include and not self._include(event):
            return False
        return not (excluded and self._exclude and self._exclude(event))

    def _note(self, hits: Dict[int, int], bit: int, parts: int) -> None:
        for part in hits:
            if parts & part:
                hits[part] |= bit

    def _parts(self, bit: int, value: Any) -> int:
        if value is None:
            return 0
        data = value.encode() if isinstance(value, str) else value.to_bytes(8, "little")
        return int.from_bytes(
            self._entries.get(data.ljust(16, b"\0") + bit.to_bytes(4, "little"), b""), "little"
        )

    def _decide(self, event: ProcessEvent) -> None:
        self.asked += 1
        if event.cgroup_id is None or event.cgroup_path is None:
            return
        halves = {INCLUDE: self._filter, EXCLUDE: self._filter.exclude}
        hit = [
            part
            for part, half in halves.items()
            if half and half.containers is not None and Filter(containers=half.containers).matches(event)
        ]
        self._cgroups[event.cgroup_id] = sum(hit)


FEW = st.integers(1, 3)
FEW_NAMES = st.sampled_from(["a", "b"])
CONSTRAINTS: Dict[str, Any] = {
    "uids": st.frozensets(FEW, min_size=1, max_size=2),
    "pids": st.frozensets(FEW, min_size=1, max_size=2),
    "comms": st.frozensets(FEW_NAMES, min_size=1, max_size=1),
    "cgroups": st.frozensets(FEW, min_size=1, max_size=2),
    "paths": st.frozensets(FEW_NAMES, min_size=1, max_size=1),
    "args": st.frozensets(FEW_NAMES, min_size=1, max_size=1),
    "containers": st.booleans() | st.frozensets(st.sampled_from([ID, OTHER[:12], "web"]), min_size=1),
}
HALVES = st.fixed_dictionaries({}, optional=CONSTRAINTS)
FILTERS = st.builds(
    lambda fields, exclude: Filter(**fields, exclude=Filter(**exclude) if exclude else None), HALVES, HALVES
)

#: What cgroup a process is in tells its container; of a very deep one the path is not known.
CGROUPS = st.sampled_from(
    [
        {"cgroup_id": None, **UNKNOWN},
        {"cgroup_id": 1, **HOST},
        {"cgroup_id": 2, **INSIDE},
        {"cgroup_id": 3, **DEEP},
        {"cgroup_id": 4, "cgroup_path": f"/docker/{OTHER}", "container": parse(f"/docker/{OTHER}")},
    ]
)
ROWS = st.lists(
    st.tuples(
        st.sampled_from(sorted(MAKERS)),
        CGROUPS,
        st.fixed_dictionaries({"uid": FEW, "pid": FEW, "comm": FEW_NAMES}),
        st.fixed_dictionaries({"filename": FEW_NAMES, "argv": st.lists(FEW_NAMES, max_size=2).map(tuple)}),
    ),
    max_size=8,
)


@given(FILTERS, ROWS)
def test_the_halves_together_mean_what_the_filter_means(filter: Filter, rows: Any) -> None:
    kernel, matcher = Kernel(filter), Matcher(filter)
    for kind, cgroup, who, names in rows:
        what = {"exec": {**names, "exe": None}, "failed_exec": names}.get(kind, {})
        event = MAKERS[kind](**cgroup, **who, **what)
        assert kernel.delivers(event) == matcher.matches(event)


def test_python_is_asked_once_for_each_cgroup() -> None:
    kernel = Kernel(Filter(containers=True))
    rows = [HOST, INSIDE, HOST, INSIDE, HOST]
    events = [exec_event(cgroup_id=1 if row is HOST else 2, **row) for row in rows]
    assert [kernel.delivers(event) for event in events] == [False, True, False, True, False]
    assert kernel.asked == 2
