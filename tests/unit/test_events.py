from __future__ import annotations

import base64
import datetime
import json
import pickle
import typing
from typing import Any, Dict, Iterator, Optional, Tuple

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

import execwatch
from execwatch import (
    Container,
    Credentials,
    Event,
    ExecEvent,
    Executable,
    ExitEvent,
    FailedExecEvent,
    ForkEvent,
    KindStats,
    LostCounts,
    LostEvents,
    Namespaces,
    ProcessEvent,
    Session,
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
#: What an event may hold, by the name of its field.
NESTED: Dict[str, Any] = {
    "namespaces": Namespaces,
    "creds": Credentials,
    "session": Session,
    "exe": Executable,
    "container": Container,
}
VALUES = (*MAKERS, *NESTED.values(), KindStats, LostCounts, Stats)
EVENTS = tuple(KINDS.values())

TEXT = st.binary(max_size=40).map(lambda data: data.decode("utf-8", "surrogateescape"))
NUMBER = st.integers(0, 2**64 - 1)


def of_type(hint: Any) -> st.SearchStrategy[Any]:
    """Something for a type that a field is declared with."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Union:
        return st.one_of(*map(of_type, arguments))
    if origin is tuple:
        if arguments[-1] is ...:
            return st.lists(of_type(arguments[0]), max_size=5).map(tuple)
        return st.tuples(*map(of_type, arguments))
    if origin is not None:
        assert all(isinstance(choice, str) for choice in arguments), hint  # Literal
        return st.sampled_from(arguments)
    simple = {int: NUMBER, str: TEXT, bool: st.booleans(), type(None): st.none()}
    return simple[hint] if hint in simple else any_value(hint)


def any_value(cls: type) -> st.SearchStrategy[Any]:
    hints = typing.get_type_hints(cls)
    return st.builds(cls, **{field.name: of_type(hints[field.name]) for field in attrs.fields(cls)})


ANY_EVENT = st.one_of(*map(any_value, EVENTS))


def example(cls: type) -> Any:
    if cls in NESTED.values():
        event = exec_event(container=Container(id="c0ffee"))
        return next(getattr(event, name) for name, nested in NESTED.items() if nested is cls)
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


def texts(value: Any, shown: Any, raw: Any) -> Iterator[Tuple[str, str, Optional[str]]]:
    """Every text in a value, with what is shown of it and what stands in ``raw``."""
    if isinstance(value, str):
        yield value, shown, raw
    elif isinstance(value, tuple):
        assert raw is None or len(raw) == len(value)
        for number, item in enumerate(value):
            yield from texts(item, shown[number], raw and raw[number])
    elif attrs.has(type(value)):
        names = [field.name for field in attrs.fields(type(value))]
        assert set(raw or ()) <= set(names)
        for name in names:
            yield from texts(getattr(value, name), shown[name], raw and raw.get(name))


@given(ANY_EVENT)
def test_raw_holds_the_bytes_of_what_is_not_unicode_and_of_nothing_else(event: Any) -> None:
    data = event.to_dict()
    odd = False
    for text, visible, encoded in texts(event, data, data.get("raw")):
        original = text.encode("utf-8", "surrogateescape")
        assert visible == original.decode("utf-8", "replace")
        if encoded is None:
            assert visible == text
        else:
            odd = True
            assert base64.b64decode(encoded) == original
            assert "\ufffd" in visible
    assert ("raw" in data) == odd


def test_raw_stands_beside_what_is_shown() -> None:
    data = exec_event(argv=("ok", "\udcff"), comm="a\udc80").to_dict()
    assert data["argv"] == ["ok", "\ufffd"]
    assert data["comm"] == "a\ufffd"
    assert data["raw"] == {"argv": [None, "/w=="], "comm": "YYA="}
    assert "raw" not in exec_event().to_dict()


def test_raw_of_a_nested_value_is_an_object() -> None:
    event = exec_event(
        exe=Executable(path="/\udcff", inode=1),
        container=Container(id="a\udcfe", runtime="docker"),
        cwd="/\udcfd",
        env=(("A", "1"), ("\udcfc", ""), ("B", "\udcfb")),
    )
    data = event.to_dict()
    assert data["exe"]["path"] == "/\ufffd"
    assert data["env"] == [["A", "1"], ["\ufffd", ""], ["B", "\ufffd"]]
    assert data["raw"] == {
        "exe": {"path": "L/8="},
        "container": {"id": "Yf4="},
        "cwd": "L/0=",
        "env": [None, ["/A==", None], [None, "+w=="]],
    }
    assert event_from_dict(json.loads(json.dumps(data))) == event


@pytest.mark.parametrize("name", NESTED)
def test_a_nested_value_is_an_object_of_all_its_fields(name: str) -> None:
    value = example(NESTED[name])
    data = exec_event(**{name: value}).to_dict()[name]
    assert data == attrs.asdict(value)


@pytest.mark.parametrize("name", NESTED)
def test_of_a_nested_value_optional_fields_may_be_absent(name: str) -> None:
    """As in what an older version wrote."""
    cls, value = NESTED[name], example(NESTED[name])
    needed = {f.name: getattr(value, f.name) for f in attrs.fields(cls) if f.default is attrs.NOTHING}
    event = event_from_dict({**exec_event().to_dict(), name: needed})
    assert getattr(event, name) == cls(**needed)


def test_keys_that_are_not_known_are_ignored() -> None:
    event = exec_event()
    data = {**event.to_dict(), "weather": "fine", "raw": {"weather": "?"}}
    assert event_from_dict(data) == event


@pytest.mark.parametrize("name", NESTED)
def test_keys_of_nested_values_that_are_not_known_are_ignored(name: str) -> None:
    event = exec_event(**{name: example(NESTED[name])})
    data = event.to_dict()
    data[name]["weather"] = {"wind": ["strong"]}
    data["raw"] = {name: {"weather": "?"}}
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
    "an object within an object": {"exe": {"path": {"path": "/x"}}},
    "a nested field is missing": {"creds": {"uid": 1}},
    "a nested value without its id": {"container": {"runtime": "docker"}},
    "nested raw is no object": {"exe": {"path": "x"}, "raw": {"exe": "eA=="}},
    "nested raw is a list": {"exe": {"path": "x"}, "raw": {"exe": ["eA=="]}},
    "nested raw is no base64": {"exe": {"path": "x"}, "raw": {"exe": {"path": "?"}}},
    "nested raw is not ASCII": {"exe": {"path": "x"}, "raw": {"exe": {"path": "\xff"}}},
    "nested raw is no text": {"container": {"id": "x"}, "raw": {"container": {"id": 5}}},
    "nested raw is an object too many": {"exe": {"path": "x"}, "raw": {"exe": {"path": {"path": "eA=="}}}},
    "raw is an object beside text": {"cwd": "/", "raw": {"cwd": {"path": "Lw=="}}},
    "raw is an object beside a list": {"env": [["A", "1"]], "raw": {"env": {"A": "MQ=="}}},
    "raw of a pair is shorter": {"env": [["A", "1"]], "raw": {"env": [["QQ=="]]}},
    "raw of a pair is text": {"env": [["A", "1"]], "raw": {"env": ["QQ"]}},
    "raw is a number": {"env": [["A", "1"]], "raw": {"env": 1}},
}


@pytest.mark.parametrize("changes", BROKEN.values(), ids=BROKEN)
def test_other_dicts_are_a_value_error(changes: Dict[str, Any]) -> None:
    data = {**exec_event().to_dict(), **changes}
    with pytest.raises(ValueError, match=r"event|base64|padding|raw|ASCII"):
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
        if type(None) in typing.get_args(hints[field.name]):
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
