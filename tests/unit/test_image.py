from __future__ import annotations

import contextlib
import json
import shutil
import struct
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Set, Tuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from execwatch import wire
from execwatch.build import images, source
from execwatch.build.compiler import relocate
from execwatch.errors import CompileError
from execwatch.kernel import loader
from execwatch.kernel.image import FORMAT, MapDefinition, Program, ProgramImage

NAMES = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=15)
SIZES = st.integers(0, 2**32 - 1)

PROGRAMS = st.builds(
    Program,
    name=NAMES.map(lambda target: f"raw_tracepoint__{target}"),
    instructions=st.lists(st.binary(min_size=8, max_size=8), min_size=1, max_size=9).map(b"".join),
    relocations=st.lists(st.tuples(SIZES, NAMES)).map(tuple),
)
MAPS = st.builds(
    MapDefinition,
    name=NAMES,
    type=SIZES,
    key_size=SIZES,
    value_size=SIZES,
    max_entries=SIZES,
    flags=SIZES,
)
IMAGES = st.builds(
    ProgramImage,
    programs=st.lists(PROGRAMS, max_size=3).map(tuple),
    maps=st.lists(MAPS, max_size=3).map(tuple),
    license=st.text(),
    source_hash=st.text("0123456789abcdef", min_size=8, max_size=8),
    compiler=st.text(),
    options=st.lists(st.text()).map(tuple),
)


@given(IMAGES)
def test_survives_json(image: ProgramImage) -> None:
    text = image.to_json()
    assert ProgramImage.from_json(text) == image
    assert ProgramImage.from_json(text).to_json() == text


@given(IMAGES, st.data())
def test_a_truncated_image_is_refused(image: ProgramImage, data: st.DataObject) -> None:
    text = image.to_json().rstrip()
    with pytest.raises(ValueError):
        ProgramImage.from_json(text[: data.draw(st.integers(0, len(text) - 1))])


@given(IMAGES, st.data())
def test_a_damaged_image_is_another_image_or_refused(image: ProgramImage, data: st.DataObject) -> None:
    text = image.to_json()
    at = data.draw(st.integers(0, len(text) - 1))
    damaged = text[:at] + data.draw(st.characters(codec="ascii")) + text[at + 1 :]
    with contextlib.suppress(ValueError):
        assert isinstance(ProgramImage.from_json(damaged), ProgramImage)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(JSON)
def test_anything_else_is_refused(value: object) -> None:
    with pytest.raises(ValueError):
        ProgramImage.from_json(json.dumps(value))


@given(st.sampled_from(["license", "source_hash", "compiler", "options", "maps", "programs"]))
def test_an_image_with_a_part_missing_is_refused(part: str) -> None:
    whole = json.loads(ProgramImage((), (), "GPL", "", "", ()).to_json())
    del whole[part]
    with pytest.raises(ValueError):
        ProgramImage.from_json(json.dumps(whole))


@pytest.mark.parametrize("other", [1, FORMAT + 1, "2", None])
def test_another_format_is_refused(other: object) -> None:
    """Before format 2 no program had the address of a map's value."""
    whole = json.loads(ProgramImage((), (), "GPL", "", "", ()).to_json())
    assert whole["format"] == FORMAT == 2
    whole["format"] = other
    with pytest.raises(ValueError, match="format"):
        ProgramImage.from_json(json.dumps(whole))


@pytest.mark.parametrize("instructions", ["", "AAAA", "****", 7])
def test_instructions_are_whole(instructions: object) -> None:
    whole = json.loads(ProgramImage((), (), "GPL", "", "", ()).to_json())
    whole["programs"] = [{"name": "p", "relocations": [], "instructions": instructions}]
    with pytest.raises(ValueError):
        ProgramImage.from_json(json.dumps(whole))


def instruction(opcode: int, number: int = 0, *, kind: int = 0) -> bytes:
    return struct.pack("<BBhi", opcode, kind << 4 | 1, 0, number)


def load(number: int, *, kind: int) -> bytes:
    return instruction(0x18, number, kind=kind) + instruction(0)


def load_number(number: int, register: int = 1) -> bytes:
    """A load of 64 bits, half in each instruction."""
    low, high = number & 0xFFFFFFFF, number >> 32
    return struct.pack("<BBhIBBhI", 0x18, register, 0, low, 0, 0, 0, high)


MARK = wire.CONFIG_MARK
#: Registers are 4 bits; programs have 11 of them.
REGISTERS = st.integers(0, 10)
#: Any number but the mark, often nearly that.
OTHER_NUMBERS = (
    st.integers(0, 2**64 - 1)
    | st.integers(0, 63).map(lambda bit: MARK ^ 1 << bit)
    | st.sampled_from([0, MARK >> 32, MARK & 0xFFFFFFFF, (MARK & 0xFFFFFFFF) << 32 | MARK >> 32])
).filter(lambda number: number != MARK)
#: What is no load of 64 bits may have any bits.
OTHERS = st.binary(min_size=8, max_size=8).filter(lambda code: code[0] != 0x18)
FIVE, SEVEN = 5, 7
DESCRIPTORS = {FIVE: "five", SEVEN: "seven"}


class TestRelocate:
    def test_takes_the_descriptors_out(self) -> None:
        end = instruction(0x95)
        code = load(7, kind=1) + end + load(5, kind=1) + load(7, kind=1) + end
        result, relocations = relocate(code, {5: "five", 7: "seven"})
        assert result == load(0, kind=1) + end + load(0, kind=1) * 2 + end
        assert relocations == ((0, "seven"), (3, "five"), (5, "seven"))

    def test_leaves_constants_alone_even_those_that_look_like_a_load(self) -> None:
        # The second half of a load is not an instruction, whatever its bits.
        code = (
            instruction(0x18, 7)
            + load(7, kind=1)[:8]
            + instruction(0x18, 7, kind=1)[:8].replace(b"\x18", b"\xb7")
        )
        assert relocate(code, {7: "seven"}) == (code, ())

    def test_takes_the_mark_for_the_value_of_the_configuration(self) -> None:
        end = instruction(0x95)
        code = end + load_number(MARK, register=6) + load(7, kind=1) + load_number(MARK) + end
        result, relocations = relocate(code, DESCRIPTORS)
        values = [struct.pack("<BBhi", 0x18, 2 << 4 | register, 0, 0) + bytes(8) for register in (6, 1)]
        assert result == end + values[0] + load(0, kind=1) + values[1] + end
        assert relocations == ((1, "config"), (3, "seven"), (5, "config"))

    def test_leaves_the_mark_alone_where_it_is_no_load(self) -> None:
        low, high = struct.unpack("<ii", MARK.to_bytes(8, "little"))
        # Each half in an instruction of its own, and both as the second half of a load.
        code = instruction(0xB7, low) + instruction(0xB7, high)
        code += instruction(0x18, low) + load_number(MARK)[:8] + instruction(0x95)
        assert relocate(code, DESCRIPTORS) == (code, ())

    @given(REGISTERS, OTHER_NUMBERS)
    def test_leaves_other_numbers_alone(self, register: int, number: int) -> None:
        code = instruction(0x95) + load_number(number, register) + instruction(0x95)
        assert relocate(code, DESCRIPTORS) == (code, ())

    @given(st.data())
    def test_changes_nothing_else_and_the_loader_puts_it_back(self, data: st.DataObject) -> None:
        """Compiled, then loaded with the same descriptors: but for the marks it is the same code."""
        code, loaded = b"", b""
        expected: List[Tuple[int, str]] = []
        for what in data.draw(st.lists(st.sampled_from(["map", "mark", "number", "other"]), max_size=12)):
            index, register = len(code) // 8, data.draw(REGISTERS)
            part = value = data.draw(OTHERS)
            if what == "map":
                fd = data.draw(st.sampled_from(sorted(DESCRIPTORS)))
                part = value = struct.pack("<BBhi", 0x18, 1 << 4 | register, 0, fd) + bytes(8)
                expected.append((index, DESCRIPTORS[fd]))
            elif what == "mark":
                part = load_number(MARK, register)
                value = struct.pack("<BBhi", 0x18, 2 << 4 | register, 0, 300) + bytes(8)
                expected.append((index, "config"))
            elif what == "number":
                part = value = load_number(data.draw(OTHER_NUMBERS), register)
            code, loaded = code + part, loaded + value
        result, relocations = relocate(code, DESCRIPTORS)
        assert relocations == tuple(expected)
        assert len(result) == len(code)
        program = Program("raw_tracepoint__t", result, relocations)
        maps = {**{name: fd for fd, name in DESCRIPTORS.items()}, "config": 300}
        assert loader.relocate(program, maps) == loaded

    @pytest.mark.parametrize("kind", [1, 2, 3])
    def test_refuses_what_it_does_not_know(self, kind: int) -> None:
        with pytest.raises(CompileError, match="instruction 1 "):
            relocate(instruction(0x95) + load(9, kind=kind), {7: "seven"})


class TestShipped:
    """The image in the package."""

    @pytest.fixture
    def image(self) -> ProgramImage:
        return ProgramImage.from_json(Path(images.shipped_path("exec")).read_text(encoding="utf-8"))

    def test_the_configuration_is_loaded_as_a_value_and_maps_as_maps(self, image: ProgramImage) -> None:
        for program in image.programs:
            kinds: Dict[str, Set[int]] = {}
            for index, name in program.relocations:
                opcode, registers, low, high = struct.unpack_from(
                    "<BB2xI4xI", program.instructions, index * 8
                )
                assert (opcode, low, high) == (0x18, 0, 0)
                kinds.setdefault(name, set()).add(registers >> 4)
            assert kinds.pop("config") == {2}, program.name
            assert set().union(*kinds.values()) == {1}

    def test_no_mark_is_left(self, image: ProgramImage) -> None:
        low, high = MARK.to_bytes(8, "little")[:4], MARK.to_bytes(8, "little")[4:]
        for program in image.programs:
            numbers = [program.instructions[at : at + 4] for at in range(4, len(program.instructions), 8)]
            assert (low, high) not in set(zip(numbers, numbers[1:])), program.name

    def test_its_maps_are_those_of_the_tables(self, image: ProgramImage) -> None:
        maps = {definition.name: definition for definition in image.maps}
        assert maps["config"].value_size == wire.struct_of(wire.CONFIG).size
        assert maps["config"].flags == 1 << 7  # BPF_F_RDONLY_PROG: without it nothing is a constant
        assert maps["switches"].value_size == wire.struct_of(wire.SWITCHES).size
        assert maps["switches"].flags == 0
        assert {name for name, definition in maps.items() if definition.flags} == {"config"}


class TestDigest:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        tmp_path.joinpath("a.h").write_text("one")
        return tmp_path

    def test_depends_on_the_text_the_headers_and_their_names(self, folder: Path) -> None:
        seen = [source.digest("text", folder=str(folder)), source.digest("Text", folder=str(folder))]
        folder.joinpath("a.h").write_text("two")
        seen.append(source.digest("text", folder=str(folder)))
        folder.joinpath("a.h").rename(folder / "b.h")
        seen.append(source.digest("text", folder=str(folder)))
        assert len(set(seen)) == 4

    def test_depends_on_the_options_and_the_headers_that_we_ship(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen = [source.digest("text", folder=str(folder))]
        monkeypatch.setattr(source, "OPTIONS", ("-DX",))
        seen.append(source.digest("text", folder=str(folder)))
        shipped = folder / "shipped"
        shutil.copytree(Path(source.FOLDER, "include"), shipped / "include")
        monkeypatch.setattr(source, "FOLDER", str(shipped))
        assert source.digest("text", folder=str(folder)) == seen[-1]
        shipped.joinpath("include/linux/types.h").write_text("")
        seen.append(source.digest("text", folder=str(folder)))
        assert len(set(seen)) == 3

    def test_does_not_depend_on_where_it_lies(self, folder: Path) -> None:
        elsewhere = folder / "elsewhere"
        elsewhere.mkdir()
        shutil.copy(folder / "a.h", elsewhere)
        assert source.digest("text", folder=str(folder)) == source.digest("text", folder=str(elsewhere))


# -- What verifiers up to Linux 6.1 want to see before they begin ---------------------------------


def falls_into_its_loop(instructions: bytes) -> Optional[Tuple[int, int]]:
    """The first plain instruction that the head of a loop around it follows, and that head.

    As check_cfg() of kernel/bpf/verifier.c walks a program, depth first: a loop may be closed by a
    jump only. ("back-edge from insn")
    """
    rows = [struct.unpack_from("<BBh", instructions, at) for at in range(0, len(instructions), 8)]
    left: Dict[int, List[Tuple[int, bool]]] = {}
    path, done = [0], set()
    while path:
        here = path[-1]
        if here not in left:
            left[here] = list(following(here, *rows[here]))
        if not left[here]:
            done.add(path.pop())
            continue
        target, jump = left[here].pop(0)
        if target in left and target not in done and not jump:
            return here, target
        if target not in left:
            path.append(target)
    return None


def following(here: int, opcode: int, _registers: int, offset: int) -> Iterator[Tuple[int, bool]]:
    """What may be executed next, and whether that is by a jump, or its other outcome."""
    jumps = opcode & 7 in (5, 6)
    if jumps and opcode & 0xF0 == 0x90:  # exit
        return
    if not jumps or opcode & 0xF0 == 0x80:  # a call
        yield here + 1, False
    elif opcode == 0x05:
        yield here + offset + 1, True
    else:
        yield here + 1, True
        yield here + offset + 1, True


def code(*instructions: Tuple[int, int]) -> bytes:
    return b"".join(struct.pack("<BBhi", opcode, 0, offset, 0) for opcode, offset in instructions)


PLAIN, EXIT, JUMP, IF = 0xB7, 0x95, 0x05, 0x15


def test_a_loop_is_closed_by_a_jump() -> None:
    assert falls_into_its_loop(code((PLAIN, 0), (PLAIN, 0), (IF, -2), (EXIT, 0))) is None
    assert falls_into_its_loop(code((PLAIN, 0), (IF, 1), (JUMP, -3), (EXIT, 0))) is None
    # Entered in its middle.
    assert falls_into_its_loop(code((JUMP, 1), (PLAIN, 0), (IF, -2), (EXIT, 0))) == (1, 2)


@pytest.mark.parametrize("program", images.load("exec").programs, ids=lambda program: program.name)
def test_no_program_is_refused_for_the_shape_of_a_loop(program: Program) -> None:
    assert falls_into_its_loop(program.instructions) is None
