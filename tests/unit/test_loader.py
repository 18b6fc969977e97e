from __future__ import annotations

import pathlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from execwatch.kernel.image import Program
from execwatch.kernel.loader import possible_cpus, relocate

#: r1 = map, of 16 bytes; r0 = 0; exit.
LOAD_MAP = struct.pack("<BBhi", 0x18, 0x11, 0, 0) + bytes(8)
RETURN = struct.pack("<BBhi", 0xB7, 0, 0, 0) + struct.pack("<BBhi", 0x95, 0, 0, 0)


def program(code: bytes, *relocations: tuple[int, str]) -> Program:
    return Program(name="raw_tracepoint__t", instructions=code, relocations=relocations)


def test_puts_the_descriptors_into_the_instructions_that_load_maps() -> None:
    code = relocate(program(LOAD_MAP + LOAD_MAP + RETURN, (0, "a"), (2, "b")), {"a": 7, "b": 300})
    assert struct.unpack_from("<BBhi", code, 0) == (0x18, 0x11, 0, 7)
    assert struct.unpack_from("<BBhi", code, 16) == (0x18, 0x11, 0, 300)
    assert code[8:16] == bytes(8)
    assert code[32:] == RETURN


@given(st.lists(st.booleans(), min_size=1, max_size=20), st.integers(0, 2**31 - 1), st.integers(0, 15))
def test_changes_nothing_but_the_descriptor(loads: list[bool], fd: int, register: int) -> None:
    load = struct.pack("<BBhi", 0x18, 0x10 | register, 0, 0) + bytes(8)
    code = b"".join(load if is_load else RETURN for is_load in loads)
    places = [(2 * number, "m") for number, is_load in enumerate(loads) if is_load]
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
        (LOAD_MAP + RETURN, 4),
        (RETURN + LOAD_MAP, -2),
    ],
    ids=["another instruction", "second half", "a number", "behind the end", "negative"],
)
def test_a_relocation_of_anything_else_is_refused(code: bytes, index: int) -> None:
    with pytest.raises(ValueError, match=rf"'raw_tracepoint__t': instruction {index} "):
        relocate(program(code, (index, "m")), {"m": 3})


@pytest.mark.parametrize(("text", "count"), [("0\n", 1), ("0-7\n", 8), ("0-3,8-11\n", 12), ("0,2\n", 3)])
def test_counts_possible_cpus(tmp_path: pathlib.Path, text: str, count: int) -> None:
    file = tmp_path / "possible"
    file.write_text(text)
    assert possible_cpus(str(file)) == count
