"""What both halves have to agree on, against a C compiler."""

from __future__ import annotations

import pathlib
import re
import shutil
import subprocess
from typing import Dict, Optional

import pytest

from execwatch import wire
from execwatch.build import source

STRUCTS = {
    "record": wire.RECORD,
    "context": wire.CONTEXT,
    "config": wire.CONFIG,
    "switches": wire.SWITCHES,
    "filter_key": wire.FILTER_KEY,
    "tree_value": wire.TREE_VALUE,
    "fork_value": wire.FORK_VALUE,
    "exit_key": wire.EXIT_KEY,
    "call": wire.CALL,
    "counters": wire.COUNTERS,
}


def test_the_committed_header_is_up_to_date() -> None:
    header = pathlib.Path(source.FOLDER, "record.h").read_text(encoding="utf-8")
    assert header == wire.c_header()


def test_the_header_defines_what_is_checked_here() -> None:
    assert {line.split()[1] for line in wire.c_header().splitlines() if line.startswith("struct ")} == set(
        STRUCTS
    )


@pytest.mark.parametrize("layout", STRUCTS.values(), ids=STRUCTS)
def test_packed_is_what_is_unpacked(layout: wire.Layout) -> None:
    values = {name: bytes(15) + b"x" if kind == "char16" else n for n, (kind, name) in enumerate(layout)}
    assert wire.unpack(layout, wire.pack(layout, values)) == values
    assert not any(wire.pack(layout, {}))


@pytest.mark.parametrize(
    "flags",
    [wire.FLAGS, wire.VALID, wire.FILTER_BITS, wire.CONTEXT_BITS, wire.CAPTURE],
    ids=["flags", "valid", "filter", "context", "capture"],
)
def test_each_bit_has_one_meaning(flags: Dict[str, int]) -> None:
    assert sum(flags.values()) == 2 ** len(flags) - 1
    assert wire.NEVER not in flags.values()


@pytest.mark.parametrize("layout", STRUCTS.values(), ids=STRUCTS)
def test_no_two_members_have_the_same_name(layout: wire.Layout) -> None:
    names = [name for _, name in layout]
    assert len(set(names)) == len(names)


def test_what_changes_at_run_time_is_not_frozen() -> None:
    assert not {name for _, name in wire.SWITCHES} & {name for _, name in wire.CONFIG}


@pytest.mark.parametrize("block", wire.BLOCKS)
def test_a_block_is_of_one_structure(block: str) -> None:
    members = wire.BLOCKS[block]
    assert set(members) <= wire.OFFSETS.keys()
    assert len({wire.OFFSETS[member][0] for member in members}) == 1
    config = {name for _, name in wire.CONFIG}
    assert {f"first_{block}", f"size_{block}", *(f"at_{member}" for member in members)} <= config


def test_c_steps_through_what_is_in_a_block() -> None:
    """Nothing else has a place in it."""
    stepped = re.findall(r"\bSTEP\(block, (\w+)\)", source.read("exec"))
    assert {*stepped} - {"member"} == {member for members in wire.BLOCKS.values() for member in members}


def test_no_member_is_looked_for_that_c_does_not_read() -> None:
    words = set(re.findall(r"\w+", source.read("exec")))
    for member in (*wire.OFFSETS, *wire.SIGNAL_PIDS):
        assert {member, f"offset_{member}"} & words, member


def test_the_mark_of_the_configuration_is_no_number_that_a_program_has() -> None:
    """It needs all 64 bits: a shorter number is in many an instruction."""
    assert 2**32 <= wire.CONFIG_MARK < 2**63
    assert wire.CONFIG_MARK & 0xFFFFFFFF not in (0, 0xFFFFFFFF)
    assert f'#define CONFIG_MARK "{wire.CONFIG_MARK:#x}"\n' in wire.c_header()


def test_a_c_compiler_lays_it_out_the_same(tmp_path: pathlib.Path) -> None:
    compiler: Optional[str] = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("COMPILER: needs a C compiler (cc)")
    lines = [
        "#include <stddef.h>",
        "#include <stdio.h>",
        "typedef unsigned short u16; typedef unsigned int u32; typedef unsigned long long u64;",
        f'#include "{source.FOLDER}/record.h"',
        "int main(void) {",
    ]
    expected = []
    for name, layout in STRUCTS.items():
        lines.append(f'printf("{name} %zu\\n", sizeof(struct {name}));')
        expected.append(f"{name} {wire.struct_of(layout).size}")
        for kind, member in layout:
            lines.append(f'printf("{name}.{member} %zu\\n", offsetof(struct {name}, {member}));')
            # Where a pattern of ones lands that only this member is given.
            ones = b"\xff" * 16 if kind == "char16" else 2 ** (8 * {"u16": 2, "u32": 4, "u64": 8}[kind]) - 1
            expected.append(f"{name}.{member} {wire.pack(layout, {member: ones}).index(255)}")
    (tmp_path / "layout.c").write_text("\n".join([*lines, "return 0; }"]))
    subprocess.run([compiler, "-o", tmp_path / "layout", tmp_path / "layout.c"], check=True)
    output = subprocess.run([tmp_path / "layout"], stdout=subprocess.PIPE, check=True, text=True).stdout
    assert output.splitlines() == expected
