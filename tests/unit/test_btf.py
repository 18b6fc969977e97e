from __future__ import annotations

import pathlib
import re
import shutil
import struct
import subprocess
from typing import Dict, List, Optional, Sequence, Tuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from execwatch import wire
from execwatch.errors import NotSupportedError
from execwatch.kernel import btf

INT, PTR, ARRAY, STRUCT, UNION, ENUM, TYPEDEF, CONST = 1, 2, 3, 4, 5, 6, 8, 10
TYPE_TAG, DECL_TAG, FLOAT, ENUM64, FUNC_PROTO, VAR, DATASEC, FUNC = 18, 17, 16, 19, 13, 14, 15, 12


class Blob:
    """Writes BTF, a type at a time (Documentation/bpf/btf.rst)."""

    def __init__(self) -> None:
        self.types: List[bytes] = []
        self._strings = b"\0"

    def string(self, text: str) -> int:
        if not text:
            return 0
        self._strings += text.encode() + b"\0"
        return len(self._strings) - len(text) - 1

    def add(
        self, kind: int, name: str, third: int, extra: Sequence[int] = (), parts: int = 0, flag: int = 0
    ) -> int:
        """Return the number of the type."""
        words = (self.string(name), flag << 31 | kind << 24 | parts, third, *extra)
        self.types.append(struct.pack(f"<{len(words)}I", *words))
        return len(self.types)

    def struct(
        self, name: str, *members: Tuple[str, int, int], kind: int = STRUCT, bit_fields: bool = False
    ) -> int:
        words = [word for member, type, bits in members for word in (self.string(member), type, bits)]
        return self.add(kind, name, 64, words, parts=len(members), flag=int(bit_fields))

    def enum(self, name: str, **values: int) -> int:
        words = [word for key, value in values.items() for word in (self.string(key), value)]
        return self.add(ENUM, name, 4, words, parts=len(values))

    def data(self, magic: int = 0xEB9F, version: int = 1) -> bytes:
        types = b"".join(self.types)
        head = struct.pack("<HBBIIIII", magic, version, 0, 24, 0, len(types), len(types), len(self._strings))
        return head + types + self._strings

    def read(self) -> btf.Btf:
        return btf.Btf(self.data())


def small() -> Blob:
    """One of everything that a look-up has to get through or around."""
    blob = Blob()
    integer = blob.add(INT, "int", 4, [32])
    pointer = blob.add(PTR, "", integer)
    blob.add(ARRAY, "", 0, [integer, integer, 4])
    blob.add(FUNC_PROTO, "", integer, [0, integer], parts=1)
    blob.add(FUNC, "f", 4)
    blob.add(VAR, "v", integer, [1])
    blob.add(DATASEC, ".data", 4, [6, 0, 4], parts=1)
    blob.add(FLOAT, "double", 8)
    blob.add(DECL_TAG, "tag", integer, [0])
    blob.add(ENUM64, "wide", 8, [0, 1, 0, 0, 2, 0], parts=2)
    common = blob.struct("ns_common", ("stashed", pointer, 0), ("inum", integer, 16 * 8))
    alias = blob.add(TYPEDEF, "ns_t", common)
    constant = blob.add(CONST, "", alias)
    tagged = blob.add(TYPE_TAG, "user", constant)
    innermost = blob.struct("", ("deep", integer, 0), ("deeper", integer, 32), kind=UNION)
    inner = blob.struct("", ("a", integer, 0), ("", innermost, 64))
    blob.struct(
        "outer", ("first", integer, 0), ("", inner, 8 * 8), ("ns", tagged, 40 * 8), ("p", pointer, 56 * 8)
    )
    blob.struct(
        "flags",
        ("whole", integer, 4 * 8),
        ("odd", integer, 3 << 24 | 33),
        ("even", integer, 8 << 24 | 64),
        ("bit", integer, 1 << 24 | 33),
        ("next", integer, 1 << 24 | 34),
        ("far", integer, 1 << 24 | 2**16 + 7),
        bit_fields=True,
    )
    blob.struct("one", ("x", integer, 1 << 24))
    blob.enum("subsystems", cpu=0, memory=4, pids=11)
    blob.struct("last", ("x", integer, 8))
    return blob


def test_a_typedef_is_known_by_its_number() -> None:
    blob = small()
    integer, none = 1, 0
    prototype = blob.add(FUNC_PROTO, "", none, [0, integer, 0, integer, 0, integer], parts=3)
    last = blob.add(TYPEDEF, "btf_trace_sched", blob.add(PTR, "", prototype))
    types = blob.read()
    assert types.typedef("btf_trace_sched") == last == len(blob.types)
    assert types.parameters("btf_trace_sched") == 3
    for other in ("btf_trace", "ns_common", "int", ""):
        assert types.typedef(other) is None
        assert types.parameters(other) is None
    assert types.parameters("ns_t") is None


@pytest.mark.parametrize(
    ("structure", "path", "offset"),
    [
        ("outer", "first", 0),
        ("outer", "a", 8),
        ("outer", "deep", 16),
        ("outer", "deeper", 20),
        ("outer", "ns", 40),
        ("outer", "ns.inum", 56),
        ("outer", "ns.stashed", 40),
        ("ns_common", "inum", 16),
        ("flags", "whole", 4),
        ("last", "x", 1),
    ],
)
def test_finds_members(structure: str, path: str, offset: int) -> None:
    assert small().read().offset(structure, path) == offset


@pytest.mark.parametrize(
    ("structure", "path"),
    [
        ("absent", "x"),
        ("outer", "absent"),
        ("outer", "ns.absent"),
        ("outer", "first.x"),
        ("outer", "p.x"),  # a pointer leads elsewhere
        ("ns_t", "inum"),  # a typedef is no structure
        ("outer", ""),
        ("flags", "odd"),
        ("flags", "even"),  # a bit field, though it begins with a byte
        ("flags", "bit"),
        ("subsystems", "cpu"),
    ],
)
def test_what_is_not_there_is_none(structure: str, path: str) -> None:
    assert small().read().offset(structure, path) is None


@pytest.mark.parametrize(
    ("enum", "name", "value"),
    [
        ("subsystems", "cpu", 0),
        ("subsystems", "memory", 4),
        ("subsystems", "pids", 11),
        ("subsystems", "x", None),
        ("absent", "cpu", None),
        ("outer", "first", None),
    ],
)
def test_finds_enumerators(enum: str, name: str, value: Optional[int]) -> None:
    assert small().read().enumerator(enum, name) == value


@pytest.mark.parametrize(
    ("structure", "name", "bits"),
    [
        ("flags", "bit", 33),
        ("flags", "next", 34),
        ("flags", "far", 2**16 + 7),
        ("flags", "odd", None),  # three bits
        ("flags", "whole", None),  # no bit field
        ("flags", "absent", None),
        ("outer", "first", None),  # a structure without any
        ("outer", "odd", None),
        ("one", "x", None),  # an offset that would look like one
        ("absent", "bit", None),
        ("subsystems", "cpu", None),
        ("", "deep", None),
    ],
)
def test_finds_bits(structure: str, name: str, bits: Optional[int]) -> None:
    assert small().read().bit_field(structure, name) == bits


def test_the_first_of_two_structures_of_a_name_counts() -> None:
    blob = Blob()
    integer = blob.add(INT, "int", 4, [32])
    blob.struct("twice", ("x", integer, 64))
    blob.struct("twice", ("x", integer, 128))
    assert blob.read().offset("twice", "x") == 8


def test_the_parts_may_lie_anywhere_behind_the_header() -> None:
    data = small().data()
    magic, version, flags, size, type_at, types, string_at, strings = struct.unpack_from("<HBBIIIII", data)
    head = struct.pack("<HBBIIIII", magic, version, flags, 32, 4, types, string_at + 4, strings)
    moved = head + bytes(12) + data[size:]
    assert btf.Btf(moved).offset("outer", "ns.inum") == 56
    assert type_at == 0


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x9f\xeb\x01",
        bytes(100),
        small().data(magic=0x9FEB),
        small().data(version=2),
        b"\x7fELF" + bytes(60),
    ],
    ids=["empty", "cut", "zeros", "other byte order", "other version", "elf"],
)
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="no BTF"):
        btf.Btf(data)


def test_an_unknown_kind_is_refused() -> None:
    blob = small()
    blob.add(25, "new", 0)
    with pytest.raises(ValueError, match="kind 25"):
        blob.read()


@given(st.integers(0, len(small().data()) - 1))
def test_what_is_cut_short_is_refused(length: int) -> None:
    with pytest.raises(ValueError):
        btf.Btf(small().data()[:length])


def test_the_running_kernel_without_types_is_not_supported(tmp_path: pathlib.Path) -> None:
    with pytest.raises(NotSupportedError, match="CONFIG_DEBUG_INFO_BTF") as caught:
        btf.load(str(tmp_path / "vmlinux"))
    assert caught.value.minimum_kernel == "5.2"
    (tmp_path / "vmlinux").write_bytes(small().data()[:100])
    with pytest.raises(NotSupportedError, match="vmlinux"):
        btf.load(str(tmp_path / "vmlinux"))


# -- Against the running kernel ------------------------------------------------------------


@pytest.fixture(scope="module")
def kernel() -> btf.Btf:
    try:
        return btf.load()
    except NotSupportedError as exc:
        pytest.skip(f"BTF: {exc}")


@pytest.fixture(scope="module")
def dump() -> Dict[str, str]:
    """What bpftool says: the text of each structure by its name, the first one counts."""
    bpftool = shutil.which("bpftool") or shutil.which("/usr/sbin/bpftool")
    if bpftool is None:
        pytest.skip("TOOL: needs bpftool")
    command = [bpftool, "btf", "dump", "file", btf.VMLINUX, "format", "raw"]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        pytest.skip(f"TOOL: bpftool can't read the kernel's BTF: {result.stderr.strip()}")
    found: Dict[str, str] = {}
    for text in re.split(r"\n(?=\[)", result.stdout):
        head = re.match(r"\[\d+\] (STRUCT|ENUM) '(\w+)'", text)
        if head:
            found.setdefault(head[2], text)
    return found


def test_bpftool_sees_the_same_offsets(kernel: btf.Btf, dump: Dict[str, str]) -> None:
    compared = 0
    for structure, paths in wire.OFFSETS.values():
        for path in paths.split("|"):
            member = re.search(rf"\t'{path}' type_id=\d+ bits_offset=(\d+)\n", dump.get(structure, "") + "\n")
            if member:
                assert kernel.offset(structure, path) == int(member[1]) // 8
                compared += 1
    assert compared >= 60


def test_bpftool_sees_the_same_bit_field(kernel: btf.Btf, dump: Dict[str, str]) -> None:
    fields = re.findall(r"\t'(\w+)' type_id=\d+ bits_offset=(\d+) bitfield_size=1\n", dump["linux_binprm"])
    assert "secureexec" in dict(fields)
    for name, bits in fields:
        assert kernel.bit_field("linux_binprm", name) == int(bits)
        assert kernel.offset("linux_binprm", name) is None


def test_bpftool_sees_the_same_enumerators(kernel: btf.Btf, dump: Dict[str, str]) -> None:
    values = re.findall(r"\t'(\w+)' val=(\d+)", dump["cgroup_subsys_id"])
    assert values
    for name, value in values:
        assert kernel.enumerator("cgroup_subsys_id", name) == int(value)
