"""What both halves have to agree on, against a C compiler."""

from __future__ import annotations

import pathlib
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
