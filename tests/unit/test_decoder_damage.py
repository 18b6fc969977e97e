"""Records that are none: whatever the bytes, decoding them gives an event or a ValueError."""

from __future__ import annotations

import json
from typing import Any, Dict, Tuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from execwatch import ProcessEvent, decoder, event_from_dict, wire

from .records import CLOCK, MEMBERS, MEMBERS_OF_CONTEXT, STRINGS, decoded, record

WANTED = st.sampled_from([False, True, frozenset({"LANG", "\udcff"})])


def decode_or_refuse(data: bytes, at: int, wanted: wire.EnvNames) -> None:
    """Anything but a ValueError fails the test; and what comes out is an event like any."""
    try:
        event, _, _ = decoder.decode(data, at, CLOCK, wanted)
    except ValueError:
        return
    assert isinstance(event, ProcessEvent)
    hash(event)
    assert event_from_dict(json.loads(json.dumps(event.to_dict()))) == event


@given(st.binary(max_size=500), st.integers(0, 510), WANTED)
def test_arbitrary_bytes_are_an_event_or_a_value_error(data: bytes, at: int, wanted: Any) -> None:
    decode_or_refuse(data, at, wanted)


SIZES = ("size", *(f"{name}_size" for name in STRINGS))


def any_members(members: Dict[str, Any], *, wide: Tuple[str, ...] = ()) -> st.SearchStrategy[Any]:
    numbers = {name: st.integers(0, 2**32 - 1) for name in members if not name.endswith("comm")}
    return st.fixed_dictionaries({}, optional={**numbers, **dict.fromkeys(wide, st.integers(0, 2**64 - 1))})


@given(
    any_members({**MEMBERS, "flags": 0}, wide=("valid", "start_boottime_ns", "cgroup_id")),
    any_members(MEMBERS_OF_CONTEXT, wide=("cap_permitted", "ctime_s", "inode")),
    st.sampled_from(sorted(wire.KINDS.values())),
    st.fixed_dictionaries({name: st.binary(max_size=30) for name in STRINGS}),
    WANTED,
)
def test_whatever_the_members_are_it_is_an_event(
    members: Dict[str, int], context: Dict[str, int], kind: int, strings: Dict[str, bytes], wanted: Any
) -> None:
    members = {**members, "kind": kind, "flags": members.get("flags", 0) & 0xFFFF}
    data = record(**strings, context=context, **members)
    decoder.decode(data, 0, CLOCK, wanted)
    decode_or_refuse(data, 0, wanted)


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(2**63 // 10**9, True), (2**63 // 10**9 + 1, False), (-(2**63) // 10**9, False), (2**63 - 1, False)],
)
def test_a_file_s_time_that_no_file_has_room_for_is_not_told(seconds: int, told: bool) -> None:
    event = decoded(context={"ctime_s": seconds % 2**64, "ctime_ns": 8})
    assert event.exe.ctime_ns == (seconds * 10**9 + 8 if told else None)
    assert event_from_dict(json.loads(json.dumps(event.to_dict()))) == event


@given(st.integers(0, 2**64 - 1))
def test_a_time_that_no_event_has_room_for_is_refused(boottime_ns: int) -> None:
    data = record(boottime_ns=boottime_ns)
    decode_or_refuse(data, 0, False)
    if boottime_ns > 2**62:
        with pytest.raises(ValueError, match="no machine has reached"):
            decoder.decode(data, 0, CLOCK)


@given(
    st.fixed_dictionaries(
        {"kind": st.integers(0, 4)},
        optional={name: st.integers(0, 700) | st.integers(0, 2**32 - 1) for name in SIZES},
    ),
    st.integers(0, 700),
    st.binary(max_size=60),
    WANTED,
)
def test_wrong_sizes_are_an_event_or_a_value_error(members: Any, cut: int, text: bytes, wanted: Any) -> None:
    decode_or_refuse(record(text, **members)[:cut], 0, wanted)


@pytest.mark.parametrize("kind", wire.KINDS.values(), ids=wire.KINDS)
def test_a_record_that_is_cut_is_refused_wherever(kind: int) -> None:
    data = record(kind=kind)
    decoder.decode(data, 0, CLOCK, True)
    for length in range(len(data)):
        with pytest.raises(ValueError, match="record"):
            decoder.decode(data[:length], 0, CLOCK, True)


@pytest.mark.parametrize("name", STRINGS)
@pytest.mark.parametrize("kind", wire.KINDS.values(), ids=wire.KINDS)
@pytest.mark.parametrize("more", [1, 2**32 - 1])
def test_a_string_that_is_longer_than_its_record_is_refused(name: str, kind: int, more: int) -> None:
    strings = dict.fromkeys(STRINGS, b"")
    with pytest.raises(ValueError, match="strings up to"):
        decoder.decode(record(**strings, kind=kind, **{f"{name}_size": more}), 0, CLOCK)


def test_an_exec_without_room_for_its_context_is_refused() -> None:
    """A head alone is a whole record of the other kinds."""
    size = wire.struct_of(wire.RECORD).size
    head = record(kind=wire.KINDS["EXEC"], size=size, **dict.fromkeys(SIZES[1:], 0))[:size]
    with pytest.raises(ValueError, match="strings up to"):
        decoder.decode(head, 0, CLOCK)
    with pytest.raises(ValueError, match="strings up to"):
        decoder.decode(head + bytes(1000), 0, CLOCK)
    fork = record(kind=wire.KINDS["FORK"], size=size, **dict.fromkeys(SIZES[1:], 0))[:size]
    assert decoder.decode(fork, 0, CLOCK)[0].kind == "fork"


@pytest.mark.parametrize("kind", [4, 65535])
def test_other_kinds_are_refused(kind: int) -> None:
    with pytest.raises(ValueError, match=f"kind {kind}"):
        decoder.decode(record(kind=kind), 0, CLOCK)


def test_a_record_never_reads_into_the_next_one() -> None:
    size = len(record())
    with pytest.raises(ValueError, match=f"record of {size} bytes"):
        decoder.decode(record(argv_size=8) + record(), 0, CLOCK)
    with pytest.raises(ValueError, match=f"record of {size + 1} bytes, {size} there"):
        decoder.decode(record(size=size + 1), 0, CLOCK)
