"""Events that decode half of themselves when somebody asks: nobody can tell."""

from __future__ import annotations

import copy
import pickle
import threading
from typing import Any, Callable, Dict, List, Tuple

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from execwatch import ExecEvent, decoder, wire
from execwatch.formats import ndjson

from .records import CLOCK, STRINGS, record

KINDS = sorted(wire.KINDS.values())
NAMES = dict(zip(wire.KINDS.values(), wire.KINDS))


def both(data: bytes, env: wire.EnvNames = False) -> Tuple[Any, Any, decoder.Demand]:
    """The event decoded at once, the same decoded later, and how often the second was asked."""
    demand = decoder.Demand()
    whole, lost, flags = decoder.decode(data, 0, CLOCK, env)
    later, *rest = decoder.decode(data, 0, CLOCK, env, demand)
    assert rest == [lost, flags]
    return whole, later, demand


def late_fields(kind: int) -> List[str]:
    """The fields of such an event that are decoded later."""
    _, later, _ = both(record(kind=kind))
    names = [field.name for field in attrs.fields(type(later))]
    return [name for name in names if not is_there(later, name)]


def is_there(event: Any, name: str) -> bool:
    """Whether a field has its value already, without asking for it."""
    try:
        object.__getattribute__(event, name)
    except AttributeError:
        return False
    return True


LATE = [(kind, name) for kind in KINDS for name in late_fields(kind)]
IDS = [f"{NAMES[kind]}-{name}" for kind, name in LATE]


def test_who_exactly_and_what_was_captured_are_late() -> None:
    who = {
        "process_key",
        "parent_key",
        "start_boottime_ns",
        "cgroup_id",
        "cgroup_path",
        "container",
        "namespaces",
    }
    assert {name for kind, name in LATE if kind == wire.KINDS["FORK"]} == who
    assert {name for kind, name in LATE if kind == wire.KINDS["EXEC"]} == who | {
        "creds",
        "session",
        "exe",
        "cwd",
    }


@pytest.mark.parametrize(("kind", "name"), LATE, ids=IDS)
def test_each_of_them_is_there_when_it_is_asked_for_and_so_are_all_others(kind: int, name: str) -> None:
    whole, later, demand = both(record(kind=kind))
    assert getattr(later, name) == getattr(whole, name)
    assert all(is_there(later, other) for of, other in LATE if of == kind)
    assert later == whole
    assert demand.count == 1


@pytest.mark.parametrize("kind", KINDS, ids=NAMES.values())
def test_what_is_there_is_not_asked_for(kind: int) -> None:
    whole, later, demand = both(record(kind=kind), True)
    late = {name for of, name in LATE if of == kind}
    for field in attrs.fields(type(whole)):
        if field.name not in late:
            assert getattr(later, field.name) == getattr(whole, field.name)
    assert later.kind == whole.kind
    assert later.time == whole.time
    assert demand.count == 0


@given(
    st.fixed_dictionaries({name: st.binary(max_size=30) for name in STRINGS}),
    st.sampled_from(KINDS),
    st.integers(0, 2 ** len(wire.VALID) - 1),
    st.integers(0, 2**16 - 1),
    st.sampled_from([False, True, frozenset({"LANG"})]),
    st.integers(0, 2**32 - 1),
)
def test_whatever_is_in_a_record(
    strings: Dict[str, bytes], kind: int, valid: int, flags: int, env: wire.EnvNames, number: int
) -> None:
    data = record(**strings, kind=kind, valid=valid, flags=flags, pid=number, mnt_ns=number)
    whole, later, _ = both(data, env)
    assert attrs.asdict(later) == attrs.asdict(whole)
    assert type(later) is type(whole)


USES: Dict[str, Callable[[Any], Any]] = {
    "==": lambda event: event,
    "hash": hash,
    "repr": repr,
    "to_dict": lambda event: event.to_dict(),
    "asdict": attrs.asdict,
    "evolve": lambda event: attrs.evolve(event, cpu=9),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    **{
        f"pickle {number}": lambda event, number=number: pickle.loads(pickle.dumps(event, number))
        for number in range(2, pickle.HIGHEST_PROTOCOL + 1)
    },
    "html": lambda event: event._repr_html_(),
}


@pytest.mark.parametrize("kind", KINDS, ids=NAMES.values())
@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_whatever_is_done_with_it(use: Callable[[Any], Any], kind: int) -> None:
    whole, later, _ = both(record(kind=kind), True)
    assert use(later) == use(whole)
    assert later == whole


def test_it_does_not_depend_on_the_buffer_that_it_came_from() -> None:
    data = bytearray(record())
    demand = decoder.Demand()
    later, _, _ = decoder.decode(bytes(data), 0, CLOCK, False, demand)
    whole, _, _ = decoder.decode(record(), 0, CLOCK)
    behind, _, _ = decoder.decode(b"x" * 7 + record(), 7, CLOCK, False, demand)
    assert later == whole == behind


def test_the_record_is_forgotten_then() -> None:
    _, later, _ = both(record())
    assert is_there(later, "rest_")
    assert later.process_key
    assert not is_there(later, "rest_")


def test_what_no_event_has_is_an_attribute_error_that_names_it() -> None:
    for event in both(record())[:2]:
        assert not hasattr(event, "nothing")
        with pytest.raises(AttributeError, match="'ExecEvent' object has no attribute 'nothing'"):
            _ = event.nothing
    by_hand = ExecEvent(
        time_ns=1,
        boottime_ns=1,
        cpu=0,
        pid=1,
        comm="",
        process_key="",
        tid=1,
        argv=(),
        argv_status="complete",
        argc=0,
    )
    with pytest.raises(AttributeError, match="'ExecEvent' object has no attribute 'nothing'"):
        _ = by_hand.nothing  # type: ignore[attr-defined]


def test_who_looks_into_slots_is_not_given_half_of_it() -> None:
    """msgspec does; what it can't know of, it must not leave out in silence."""
    msgspec = pytest.importorskip("msgspec", reason="PACKAGE: needs msgspec (fast)")
    whole, later, _ = both(record())
    for encode in (msgspec.json.encode, msgspec.msgpack.encode, msgspec.to_builtins):
        with pytest.raises(TypeError, match="unsupported"):
            encode(later)
    assert later.process_key
    assert msgspec.json.encode(later, order="sorted") == msgspec.json.encode(whole, order="sorted")


@pytest.mark.parametrize("kind", KINDS, ids=NAMES.values())
def test_all_of_it_is_in_a_line_of_json(kind: int) -> None:
    whole, later, _ = both(record(kind=kind), True)
    assert ndjson.encoder()(later) == ndjson.encoder()(whole)


@pytest.mark.parametrize("after", range(11))
def test_ctrl_c_in_the_middle_costs_nothing(after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, later, _ = both(record())
    names = [name for kind, name in LATE if kind == wire.KINDS["EXEC"]]
    assert len(names) == 11
    left = iter([True] * after)

    def interrupted(put: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
        def set_or_stop(event: Any, value: Any) -> None:
            if not next(left, False):
                raise KeyboardInterrupt
            put(event, value)

        return set_or_stop

    with monkeypatch.context() as patched:
        for table in ("_WHO", "_WHAT"):
            patched.setattr(decoder, table, tuple(map(interrupted, getattr(decoder, table))))
        with pytest.raises(KeyboardInterrupt):
            _ = later.process_key
    assert [is_there(later, name) for name in names].count(True) == after
    assert not is_there(later, "process_key")  # where it is there, all is
    assert ndjson.encoder()(later) == ndjson.encoder()(whole)
    assert later == whole


def test_what_another_thread_has_half_done_is_written_whole() -> None:
    whole, later, _ = both(record())
    object.__setattr__(later, "process_key", whole.process_key)
    assert is_there(later, "rest_")
    assert ndjson.encoder()(later) == ndjson.encoder()(whole)


def test_it_stays_frozen() -> None:
    _, later, _ = both(record())
    for _ in range(2):
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            later.process_key = "another"
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            later.pid = 1
        assert later.process_key == "b007-101-499"


def test_threads_that_ask_at_once_get_the_same() -> None:
    data = [record(pid=number) for number in range(301)]
    events = [decoder.decode(one, 0, CLOCK, False, decoder.Demand())[0] for one in data]
    expected = [decoder.decode(one, 0, CLOCK)[0] for one in data]
    threads, found = 4, []
    ready = threading.Barrier(threads)

    def ask() -> None:
        ready.wait()
        found.append([(event.process_key, event.exe, event.namespaces) for event in events])  # type: ignore[union-attr]

    running = [threading.Thread(target=ask) for _ in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    assert found == [[(event.process_key, event.exe, event.namespaces) for event in expected]] * threads  # type: ignore[union-attr]
    assert events == expected
