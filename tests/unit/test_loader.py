from __future__ import annotations

import os
import pathlib
import struct
from typing import Any, Dict, List, Tuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from execwatch.kernel import bpf
from execwatch.kernel.image import TRACING, MapDefinition, Program, ProgramImage
from execwatch.kernel.loader import LoadedImage, possible_cpus, relocate

#: r1 = map, of 16 bytes; r0 = 0; exit.
LOAD_MAP = struct.pack("<BBhi", 0x18, 0x11, 0, 0) + bytes(8)
#: r1 = address of a map's value.
LOAD_VALUE = struct.pack("<BBhi", 0x18, 0x21, 0, 0) + bytes(8)
RETURN = struct.pack("<BBhi", 0xB7, 0, 0, 0) + struct.pack("<BBhi", 0x95, 0, 0, 0)


def program(code: bytes, *relocations: tuple[int, str]) -> Program:
    return Program(name="raw_tracepoint__t", instructions=code, relocations=relocations)


def test_puts_the_descriptors_into_the_instructions_that_load_maps() -> None:
    code = relocate(program(LOAD_MAP + LOAD_MAP + RETURN, (0, "a"), (2, "b")), {"a": 7, "b": 300})
    assert struct.unpack_from("<BBhi", code, 0) == (0x18, 0x11, 0, 7)
    assert struct.unpack_from("<BBhi", code, 16) == (0x18, 0x11, 0, 300)
    assert code[8:16] == bytes(8)
    assert code[32:] == RETURN


def test_a_map_can_be_loaded_and_so_can_the_address_of_its_value() -> None:
    code = relocate(
        program(LOAD_VALUE + LOAD_MAP + LOAD_VALUE + RETURN, (0, "a"), (2, "a"), (4, "b")), {"a": 7, "b": 300}
    )
    assert struct.unpack_from("<BBhi", code, 0) == (0x18, 0x21, 0, 7)
    assert struct.unpack_from("<BBhi", code, 16) == (0x18, 0x11, 0, 7)
    assert struct.unpack_from("<BBhi", code, 32) == (0x18, 0x21, 0, 300)
    # Of a value this half says how far in.
    assert code[8:16] == code[24:32] == code[40:48] == bytes(8)
    assert code[48:] == RETURN


@given(
    st.lists(st.sampled_from([0, 1, 2]), min_size=1, max_size=20),
    st.integers(0, 2**31 - 1),
    st.integers(0, 15),
    st.binary(min_size=4, max_size=4),
)
def test_changes_nothing_but_the_descriptor(kinds: list[int], fd: int, register: int, half: bytes) -> None:
    """Kind 0 is no map: it stays, as does the second half of each."""
    loads = {
        kind: struct.pack("<BBhi", 0x18, kind << 4 | register, 0, 0) + bytes(4) + half for kind in (0, 1, 2)
    }
    code = b"".join(loads[kind] for kind in kinds)
    places = [(2 * number, "m") for number, kind in enumerate(kinds) if kind]
    changed = relocate(program(code, *places), {"m": fd})
    assert len(changed) == len(code)
    restored = bytearray(changed)
    for index, _ in places:
        assert struct.unpack_from("<i", restored, index * 8 + 4) == (fd,)
        struct.pack_into("<i", restored, index * 8 + 4, 0)
    assert bytes(restored) == code


def test_a_program_without_maps_stays_as_it_is() -> None:
    assert relocate(program(RETURN), {}) == RETURN


@pytest.mark.parametrize(
    ("code", "index"),
    [
        (RETURN, 0),
        (LOAD_MAP + RETURN, 1),
        (struct.pack("<BBhi", 0x18, 0x01, 0, 0) + bytes(8), 0),  # loads a number, no map
        (struct.pack("<BBhi", 0x18, 0x31, 0, 0) + bytes(8), 0),  # BPF_PSEUDO_BTF_ID
        (struct.pack("<BBhi", 0x18, 0xF1, 0, 0) + bytes(8), 0),
        (LOAD_MAP + RETURN, 4),
        (RETURN + LOAD_MAP, -2),
    ],
    ids=[
        "another instruction",
        "second half",
        "a number",
        "a variable",
        "no kind",
        "behind the end",
        "negative",
    ],
)
def test_a_relocation_of_anything_else_is_refused(code: bytes, index: int) -> None:
    with pytest.raises(ValueError, match=rf"'raw_tracepoint__t': instruction {index} "):
        relocate(program(code, (index, "m")), {"m": 3})


@pytest.mark.parametrize(("text", "count"), [("0\n", 1), ("0-7\n", 8), ("0-3,8-11\n", 12), ("0,2\n", 3)])
def test_counts_possible_cpus(tmp_path: pathlib.Path, text: str, count: int) -> None:
    file = tmp_path / "possible"
    file.write_text(text)
    assert possible_cpus(str(file)) == count


# -- Maps and programs, of a kernel that only notes what is asked of it -----------------------


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> List[Tuple[Any, ...]]:
    """Grows by each call of bpf(2): what, and of which map or program."""
    calls: List[Tuple[Any, ...]] = []
    names: Dict[int, str] = {}

    def create(*arguments: Any) -> int:
        fd = os.open("/dev/null", os.O_RDONLY)
        names[fd] = arguments[-1]
        calls.append(("create", arguments[-1]))
        return fd

    def load(code: bpf.Code, name: str) -> int:
        calls.append(("load", name, *((code.type, code.arguments) if code.arguments else ())))
        return os.open("/dev/null", os.O_RDONLY)

    def attach(name: str, program: int, *, typed: bool) -> int:
        calls.append(("attach", name, typed))
        return -1

    def update(fd: int, key: bytes, value: bytes) -> None:
        calls.append(("update", names[fd], key, value))

    monkeypatch.setattr(bpf, "map_create", create)
    monkeypatch.setattr(bpf, "program_load", load)
    monkeypatch.setattr(bpf, "raw_tracepoint_open", attach)
    monkeypatch.setattr(bpf, "map_update", update)
    monkeypatch.setattr(bpf, "map_freeze", lambda fd: calls.append(("freeze", names[fd])))
    return calls


def array(name: str) -> MapDefinition:
    return MapDefinition(name, type=2, key_size=4, value_size=8, max_entries=1, flags=0)


TWO = ProgramImage(
    programs=(
        Program("raw_tracepoint__a", LOAD_VALUE + LOAD_MAP + RETURN, ((0, "config"), (2, "plain"))),
        Program("raw_tracepoint__b", LOAD_VALUE + LOAD_MAP + RETURN, ((0, "config"), (2, "late"))),
        Program("raw_tracepoint__c", LOAD_MAP + RETURN, ((0, "plain"),)),
    ),
    maps=(array("config"), array("late"), array("other"), array("plain")),
    license="GPL",
    source_hash="",
    compiler="",
    options=(),
)
VALUE = b"constant"


def test_a_map_is_written_and_frozen_before_any_program_is_loaded(asked: List[Tuple[Any, ...]]) -> None:
    LoadedImage(TWO, ["raw_tracepoint__a"], {}, {"config": VALUE}, {}).close()
    assert asked == [
        ("create", "config"),
        ("update", "config", bytes(4), VALUE),
        ("freeze", "config"),
        ("create", "plain"),
        ("load", "a"),
    ]


def test_programs_that_come_later_find_it_frozen(asked: List[Tuple[Any, ...]]) -> None:
    """To write it again would be refused."""
    image = LoadedImage(TWO, ["raw_tracepoint__a"], {}, {"config": VALUE}, {})
    del asked[:]
    image.load(TWO, ["raw_tracepoint__b", "raw_tracepoint__a"])
    assert asked == [("create", "late"), ("load", "b")]
    image.close()


def test_programs_are_told_the_types_of_their_tracepoints(asked: List[Tuple[Any, ...]]) -> None:
    image = LoadedImage(TWO, ["raw_tracepoint__a", "raw_tracepoint__c"], {}, {"config": VALUE}, {"a": 77})
    assert [call for call in asked if call[0] == "load"] == [("load", "a", TRACING, 77), ("load", "c")]
    del asked[:]
    image.attach("raw_tracepoint__a", "a")
    image.attach("raw_tracepoint__c", "c")
    assert asked == [("attach", "a", True), ("attach", "c", False)]
    image.close()


def test_what_no_program_uses_is_not_made(asked: List[Tuple[Any, ...]]) -> None:
    LoadedImage(TWO, ["raw_tracepoint__c"], {}, {"config": VALUE, "other": VALUE}, {}).close()
    assert asked == [("create", "plain"), ("load", "c")]


def test_a_map_that_can_not_be_frozen_leaves_nothing_open(
    asked: List[Tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(fd: int) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(bpf, "map_freeze", refuse)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(OSError, match="Invalid argument"):
        LoadedImage(TWO, ["raw_tracepoint__a"], {}, {"config": VALUE}, {})
    assert os.listdir("/proc/self/fd") == before
    assert [call[0] for call in asked] == ["create", "update"]
