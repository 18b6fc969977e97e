from __future__ import annotations

import contextlib
import json
import shutil
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from execwatch.build import source
from execwatch.build.compiler import relocate
from execwatch.errors import CompileError
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
    source_hash=st.text("0123456789abcdef", min_size=64, max_size=64),
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


def test_another_format_is_refused() -> None:
    text = ProgramImage((), (), "GPL", "", "", ()).to_json()
    with pytest.raises(ValueError, match="format"):
        ProgramImage.from_json(text.replace(f'"format": {FORMAT}', f'"format": {FORMAT + 1}'))


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

    @pytest.mark.parametrize("kind", [1, 2, 3])
    def test_refuses_what_it_does_not_know(self, kind: int) -> None:
        with pytest.raises(CompileError, match="instruction 1 "):
            relocate(instruction(0x95) + load(9, kind=kind), {7: "seven"})


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
