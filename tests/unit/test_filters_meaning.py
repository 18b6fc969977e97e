"""What a filter means, against another definition of the same."""

from __future__ import annotations

from typing import Any, Dict, List, Optional

from hypothesis import given
from hypothesis import strategies as st

from execwatch import Container, ExecEvent, Executable, Filter, Matcher, Namespaces
from execwatch.testing import exec_event

FEW_NAMES = st.sampled_from(["a", "ab", "b", "\udcff", "sh"])
FEW_IDS = st.sampled_from(["a", "ab", "sh"])
FEW = st.integers(1, 3)
FILTERS = {
    "uids": FEW,
    "pids": FEW,
    "ppids": FEW,
    "descendants_of": FEW,
    "comms": FEW_NAMES,
    "paths": FEW_NAMES,
    "args": FEW_NAMES,
    "cgroups": FEW,
    "mount_ns": FEW,
    "containers": FEW_IDS,
}


def filters(depth: int = 1) -> st.SearchStrategy[Filter]:
    optional: Dict[str, Any] = {n: st.frozensets(s, min_size=1, max_size=2) for n, s in FILTERS.items()}
    optional["containers"] |= st.booleans()
    fields = st.fixed_dictionaries({}, optional=optional)
    if not depth:
        return fields.filter(bool).map(lambda given: Filter(**given))
    return st.builds(
        lambda given, exclude: Filter(**given, exclude=exclude), fields, st.none() | filters(depth - 1)
    )


#: Processes 1 to 3 that execute in any order; each has one parent and one key.
EVENT_ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "pid": FEW,
            "uid": FEW | st.none(),
            "comm": FEW_NAMES,
            "filename": FEW_NAMES | st.none(),
            "interp": FEW_NAMES | st.none(),
            "exe": st.none() | st.builds(Executable, path=st.none() | FEW_NAMES),
            "argv": st.lists(FEW_NAMES, max_size=2).map(tuple),
            "cgroup_id": FEW | st.none(),
            "cgroup_path": st.just("/") | st.none(),
            "container": st.none() | st.builds(Container, id=FEW_IDS),
            "namespaces": st.none() | st.builds(Namespaces, mnt=FEW | st.none()),
        }
    ),
    max_size=6,
)


def naive(filter: Optional[Filter], events: List[ExecEvent]) -> List[bool]:
    """The meaning again, as sets of what is wrong with each event."""
    if filter is None:
        return [False] * len(events)
    verdicts = []
    for number, event in enumerate(events):
        facts: Dict[str, set[Any]] = {
            "uids": {event.uid},
            "pids": {event.pid},
            "ppids": {event.ppid},
            "comms": {event.comm},
            "paths": paths(event),
            "args": set(event.argv),
            "cgroups": {event.cgroup_id},
            "mount_ns": {event.namespaces.mnt if event.namespaces else None},
            "descendants_of": ancestry(event, events[:number]),
            "containers": {event.container and event.container.id},
        }
        constraints = filter.constraints()
        if isinstance(filter.containers, bool):
            constraints["containers"] = {filter.containers}
            known = event.container or event.cgroup_path
            facts["containers"] = {event.container is not None} if known else set()
        wrong = [n for n, members in constraints.items() if not members & (facts[n] - {None})]
        verdicts.append(not wrong)
    return [verdict and not excluded for verdict, excluded in zip(verdicts, naive(filter.exclude, events))]


def paths(event: ExecEvent) -> set[Any]:
    """The resolved path where there is one, of a script its own besides; else what was passed."""
    if event.exe is None or event.exe.path is None:
        return {event.filename}
    return {event.exe.path} | ({event.filename} if event.interp != event.filename else set())


def ancestry(event: ExecEvent, before: List[ExecEvent]) -> set[Any]:
    """The pids of a process, its parent, and of all further up whose exec was seen before."""
    found = {event.pid, event.ppid}
    for earlier in reversed(before):
        if earlier.process_key in (event.process_key, event.parent_key):
            found |= ancestry(earlier, before[: before.index(earlier)])
    return found


@given(filters(), EVENT_ROWS, st.tuples(FEW, FEW, FEW))
def test_means_what_the_definition_says(filter: Filter, rows: List[Dict[str, Any]], up: Any) -> None:
    parents = {1: 9, 2: up[1] % 2 * 1 or 9, 3: up[2] % 3 or 9}
    events = [
        exec_event(
            ppid=parents[row["pid"]],
            process_key=f"boot-{row['pid']}-1",
            parent_key=f"boot-{parents[row['pid']]}-1",
            **row,
        )
        for row in rows
    ]
    matcher = Matcher(filter)
    assert [matcher.matches(event) for event in events] == naive(filter, events)
