from __future__ import annotations

import base64
import datetime
import json
import pickle
import typing
from typing import Any, Dict, Optional

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

import execwatch
from execwatch import (
    Event,
    ExecEvent,
    ExitEvent,
    FailedExecEvent,
    ForkEvent,
    KindStats,
    LostCounts,
    LostEvents,
    Namespaces,
    ProcessEvent,
    Stats,
    event_from_dict,
)
from execwatch.events import KINDS
from execwatch.testing import exec_event, exit_event, failed_exec_event, fork_event, lost_events

MAKERS = {
    ExecEvent: exec_event,
    FailedExecEvent: failed_exec_event,
    ForkEvent: fork_event,
    ExitEvent: exit_event,
    LostEvents: lost_events,
}
VALUES = (*MAKERS, Namespaces, KindStats, LostCounts, Stats)
EVENTS = tuple(KINDS.values())

TEXT = st.binary(max_size=40).map(lambda data: data.decode("utf-8", "surrogateescape"))
NUMBER = st.integers(0, 2**64 - 1)

#: Something for each type that an event's field is declared with.
BY_TYPE: Dict[Any, st.SearchStrategy[Any]] = {
    int: NUMBER,
    str: TEXT,
    bool: st.booleans(),
    typing.Tuple[str, ...]: st.lists(TEXT, max_size=5).map(tuple),
    Optional[typing.Tuple[str, ...]]: st.none() | st.lists(TEXT, max_size=5).map(tuple),
    Optional[int]: st.none() | NUMBER,
    Optional[str]: st.none() | TEXT,
    Optional[Namespaces]: st.none() | st.builds(Namespaces, mnt=st.none() | NUMBER),
}


def any_event(cls: type) -> st.SearchStrategy[Any]:
    hints = typing.get_type_hints(cls)
    fields = {}
    for field in attrs.fields(cls):
        choices = getattr(hints[field.name], "__args__", ())
        literal = choices and all(isinstance(choice, str) for choice in choices)
        fields[field.name] = st.sampled_from(choices) if literal else BY_TYPE[hints[field.name]]
    return st.builds(cls, **fields)


ANY_EVENT = st.one_of(*map(any_event, EVENTS))


def example(cls: type) -> Any:
    return MAKERS.get(cls, cls)()


@given(ANY_EVENT)
def test_dicts_round_trip_exactly(event: Any) -> None:
    assert event_from_dict(event.to_dict()) == event


@given(ANY_EVENT)
def test_dicts_hold_json_types_and_valid_unicode_only(event: Any) -> None:
    text = json.dumps(event.to_dict(), allow_nan=False, ensure_ascii=False)
    text.encode("utf-8")
    assert json.loads(text) == event.to_dict()
    assert event_from_dict(json.loads(text)) == event


@given(any_event(ExecEvent))
def test_raw_holds_the_bytes_of_what_is_not_unicode_and_of_nothing_else(event: ExecEvent) -> None:
    data = event.to_dict()
    for name, value in data.get("raw", {}).items():
        true, shown = getattr(event, name), data[name]
        pairs = zip(true, shown, value) if isinstance(value, list) else [(true, shown, value)]
        for text, visible, encoded in pairs:
            original = text.encode("utf-8", "surrogateescape")
            assert visible == original.decode("utf-8", "replace")
            if encoded is None:
                assert visible == text
            else:
                assert base64.b64decode(encoded) == original
                assert "\ufffd" in visible
    texts = [value for value in attrs.asdict(event).values() if isinstance(value, str)]
    assert ("raw" in data) == any("\udc80" <= c <= "\udcff" for t in (*texts, *event.argv) for c in t)


def test_raw_stands_beside_what_is_shown() -> None:
    data = exec_event(argv=("ok", "\udcff"), comm="a\udc80").to_dict()
    assert data["argv"] == ["ok", "\ufffd"]
    assert data["comm"] == "a\ufffd"
    assert data["raw"] == {"argv": [None, "/w=="], "comm": "YYA="}
    assert "raw" not in exec_event().to_dict()


def test_keys_that_are_not_known_are_ignored() -> None:
    event = exec_event()
    data = {**event.to_dict(), "weather": "fine", "raw": {"weather": "?"}}
    data["namespaces"]["ipc"] = 4
    assert event_from_dict(data) == event


def test_optional_fields_may_be_absent_in_a_dict() -> None:
    optional = [f.name for f in attrs.fields(ExecEvent) if f.default is None]
    data = {k: v for k, v in exec_event().to_dict().items() if k not in optional}
    event = event_from_dict(data)
    assert {getattr(event, name) for name in optional} == {None}


BROKEN: Dict[str, Any] = {
    "no kind": {"kind": None},
    "unknown kind": {"kind": "party"},
    "kind of a wrong type": {"kind": ["exec"]},
    "a field is missing": {"pid": ...},
    "raw is no object": {"raw": 3},
    "raw is no base64": {"raw": {"comm": "?"}},
    "raw is no text": {"raw": {"comm": 5}},
    "raw is shorter than its field": {"argv": ["a", "b"], "raw": {"argv": ["YQ=="]}},
    "an object in place of text": {"comm": {"mnt": 1}},
}


@pytest.mark.parametrize("changes", BROKEN.values(), ids=BROKEN)
def test_other_dicts_are_a_value_error(changes: Dict[str, Any]) -> None:
    data = {**exec_event().to_dict(), **changes}
    with pytest.raises(ValueError, match=r"event|base64|padding|raw"):
        event_from_dict({k: v for k, v in data.items() if v is not ...})


def test_an_unknown_kind_is_named_beside_those_that_are_known() -> None:
    with pytest.raises(ValueError, match=r"'party'.*exec, failed_exec, fork, exit, lost"):
        event_from_dict({"kind": "party"})


@pytest.mark.parametrize("cls", VALUES)
def test_values_never_change(cls: type) -> None:
    value = example(cls)
    for name in [a.name for a in attrs.fields(cls)]:
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            setattr(value, name, 1)
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            delattr(value, name)
    with pytest.raises((AttributeError, TypeError)):
        value.something = 1


@pytest.mark.parametrize("cls", VALUES)
def test_values_have_slots_and_no_dict(cls: type) -> None:
    assert not hasattr(example(cls), "__dict__")
    assert "__slots__" in vars(cls)


@pytest.mark.parametrize("cls", VALUES)
def test_values_are_made_by_keyword_only(cls: type) -> None:
    assert all(field.kw_only for field in attrs.fields(cls))
    with pytest.raises(TypeError):
        cls(1)


@pytest.mark.parametrize("cls", VALUES)
def test_type_hints_resolve(cls: type) -> None:
    hints = typing.get_type_hints(cls)
    assert {a.name for a in attrs.fields(cls)} <= set(hints)


@pytest.mark.parametrize("cls", VALUES)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_values_pickle(cls: type, protocol: int) -> None:
    value = example(cls)
    copy = pickle.loads(pickle.dumps(value, protocol))
    assert copy == value
    assert type(copy) is cls


@given(ANY_EVENT)
def test_values_hash_and_compare_by_value(event: Any) -> None:
    twin = pickle.loads(pickle.dumps(event))
    assert {event: 1}[twin] == 1
    assert event != attrs.evolve(event, time_ns=event.time_ns + 1)


@pytest.mark.parametrize("cls", EVENTS)
def test_kind_belongs_to_the_class(cls: Any) -> None:
    kind = typing.get_type_hints(cls)["kind"]
    assert typing.get_origin(kind) is typing.ClassVar
    assert cls.kind == KINDS[cls.kind].kind == example(cls).kind == example(cls).to_dict()["kind"]
    assert cls.kind in str(kind)
    assert "kind" not in {a.name for a in attrs.fields(cls)}
    assert issubclass(cls, Event)


def test_every_event_class_has_a_kind() -> None:
    concrete = {c for c in vars(execwatch).values() if isinstance(c, type) and issubclass(c, Event)}
    assert concrete - {Event, ProcessEvent} == set(EVENTS)


@given(st.integers(0, 2**62))
def test_time_is_an_aware_datetime_cut_to_microseconds(time_ns: int) -> None:
    time = exec_event(time_ns=time_ns).time
    assert time.tzinfo is datetime.timezone.utc
    epoch = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
    assert (time - epoch) // datetime.timedelta(microseconds=1) == time_ns // 1000


def test_optional_means_none_by_default() -> None:
    hints = typing.get_type_hints(ExecEvent)
    for field in attrs.fields(ExecEvent):
        if hints[field.name] in (Optional[int], Optional[str], Optional[Namespaces]):
            assert field.default is None


def test_stats_add_up_their_losses() -> None:
    counts = LostCounts(buffer_full=1, skipped=20, undecodable=300, closed=4000)
    stats = Stats(exec=KindStats(seen=1, delivered=2, filtered=3, pending=4, lost_by_reason=counts))
    assert counts.total == 4321
    assert (stats.seen, stats.delivered, stats.filtered, stats.pending, stats.lost) == (1, 2, 3, 4, 4321)


def test_stats_add_up_their_kinds() -> None:
    kinds = [KindStats(seen=10**n, delivered=2 * 10**n) for n in range(4)]
    stats = Stats(exec=kinds[0], failed=kinds[1], fork=kinds[2], exit=kinds[3])
    assert (stats.seen, stats.delivered, stats.lost) == (1111, 2222, 0)


def test_a_failed_exec_names_its_error_and_what_was_tried() -> None:
    event = failed_exec_event(retval=-13, argv=("a", "b c"), filename="/x y")
    assert (event.error, event.command_line) == ("EACCES", "a 'b c'")
    assert failed_exec_event(retval=-13, argv=None, filename="/x y").command_line == "'/x y'"
    assert failed_exec_event(argv=None, filename=None).command_line == ""
    assert failed_exec_event(retval=-4000).error == "4000"


def test_an_exit_tells_how_long() -> None:
    event = exit_event(start_boottime_ns=100, exec_boottime_ns=150, boottime_ns=1000)
    assert (event.lifetime_ns, event.runtime_ns) == (900, 850)
    event = exit_event(start_boottime_ns=None, exec_boottime_ns=None, boottime_ns=1000)
    assert (event.lifetime_ns, event.runtime_ns) == (None, None)
