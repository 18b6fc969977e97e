from __future__ import annotations

import pathlib
import pickle
import shutil
import subprocess
from typing import Any, Dict, Optional

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from execwatch import (
    ExecEvent,
    ExitEvent,
    FailedExecEvent,
    ForkEvent,
    Namespaces,
    ProcessEvent,
    wire,
)
from execwatch.build import source

CLOCK = wire.Clock(boot_id="b007", tick_ns=10_000_000, offset_ns=1_000_000_000_000)

ALL_VALID = sum(wire.VALID.values())

#: Every member with a value of its own.
MEMBERS: Dict[str, Any] = {
    "kind": wire.KINDS["EXEC"],
    "valid": ALL_VALID,
    "boottime_ns": 5_000_000_001,
    "lost": 12,
    "cpu": 3,
    "pid": 101,
    "tid": 102,
    "host_pid": 103,
    "ppid": 104,
    "uid": 105,
    "gid": 106,
    "argc": 107,
    "status": 2,
    "exec_boottime_ns": 4_995_000_003,
    "start_boottime_ns": 4_990_000_001,
    "parent_start_boottime_ns": 3_990_000_002,
    "cgroup_id": 2**40 + 1,
    "mnt_ns": 4026531841,
    "comm": b"child",
    "parent_comm": b"parent",
}


def record(
    filename: bytes = b"./run\0", interp: bytes = b"/bin/sh\0", argv: bytes = b"run\0-x\0", **members: Any
) -> bytes:
    """Return a record as the kernel half writes it."""
    sizes = {"filename_size": len(filename), "interp_size": len(interp), "argv_size": len(argv)}
    data = filename + interp + argv
    size = wire.struct_of(wire.RECORD).size + len(data)
    return wire.pack(wire.RECORD, {"size": size, **MEMBERS, **sizes, **members}) + data


def decoded(*args: bytes, **members: Any) -> Any:
    return wire.decode(record(*args, **members), 0, CLOCK)[0]


def argv_of(data: bytes) -> tuple[str, ...]:
    return decoded(b"", b"", data).argv


def test_every_member_becomes_the_field_of_its_name() -> None:
    flags = wire.FLAGS["EXCLUDED"]
    event, lost, seen_flags = wire.decode(record(flags=flags), 0, CLOCK)
    assert (lost, seen_flags) == (12, flags)
    assert event == ExecEvent(
        time_ns=1_005_000_000_001,
        boottime_ns=5_000_000_001,
        cpu=3,
        pid=101,
        tid=102,
        host_pid=103,
        ppid=104,
        uid=105,
        gid=106,
        argc=107,
        comm="child",
        parent_comm="parent",
        argv=("run", "-x"),
        argv_status="complete",
        retval=0,
        process_key="b007-101-499",
        parent_key="b007-104-399",
        filename="./run",
        interp="/bin/sh",
        start_boottime_ns=4_990_000_001,
        cgroup_id=2**40 + 1,
        namespaces=Namespaces(mnt=4026531841),
    )


IDENTITY = {
    "time_ns": 1_005_000_000_001,
    "boottime_ns": 5_000_000_001,
    "cpu": 3,
    "pid": 101,
    "host_pid": 103,
    "ppid": 104,
    "uid": 105,
    "gid": 106,
    "comm": "child",
    "parent_comm": "parent",
    "process_key": "b007-101-499",
    "parent_key": "b007-104-399",
    "start_boottime_ns": 4_990_000_001,
    "cgroup_id": 2**40 + 1,
    "namespaces": Namespaces(mnt=4026531841),
}


def test_the_other_kinds_have_the_same_identity_and_fields_of_their_own() -> None:
    found = [decoded(kind=wire.KINDS[name]) for name in ("FAILED", "FORK", "EXIT")]
    assert found == [
        FailedExecEvent(
            **IDENTITY, tid=102, filename="./run", argv=("run", "-x"), argv_status="complete", retval=-2
        ),
        ForkEvent(**IDENTITY),
        ExitEvent(**IDENTITY, exit_code=None, signal=2, core_dumped=False, exec_boottime_ns=4_995_000_003),
    ]


def test_what_a_failed_attempt_does_not_tell_is_unknown() -> None:
    event = decoded(b"", b"", b"", kind=wire.KINDS["FAILED"], flags=wire.FLAGS["ARGV_UNREADABLE"])
    assert (event.filename, event.argv, event.argv_status) == (None, None, "unreadable")


@pytest.mark.parametrize(
    ("status", "code", "signal", "core"),
    [(0, 0, None, False), (0x2A00, 42, None, False), (9, None, 9, False), (0x8B, None, 11, True)],
)
def test_an_exit_status_is_read_as_wait_does(status: int, code: Any, signal: Any, core: bool) -> None:
    event = decoded(kind=wire.KINDS["EXIT"], status=status)
    assert (event.exit_code, event.signal, event.core_dumped) == (code, signal, core)
    assert decoded(kind=wire.KINDS["EXIT"], valid=0).exec_boottime_ns is None


@pytest.mark.parametrize("kind", wire.KINDS.values(), ids=wire.KINDS)
def test_a_decoded_event_is_like_any_other(kind: int) -> None:
    event = decoded(kind=kind)
    assert not hasattr(event, "__dict__")
    assert pickle.loads(pickle.dumps(event)) == event
    assert hash(event) == hash(attrs.evolve(event))
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        event.pid = 1  # type: ignore[misc]
    assert "pid=101" in repr(event)


@pytest.mark.parametrize(
    ("bit", "unknown"),
    [
        ("PPID", {"ppid", "parent_key"}),
        ("PARENT_START", {"parent_key"}),
        ("PARENT_COMM", {"parent_comm"}),
        ("START", {"start_boottime_ns"}),
        ("CGROUP", {"cgroup_id"}),
        ("MNT_NS", {"namespaces"}),
        ("INTERP", {"interp"}),
    ],
)
def test_without_its_bit_a_field_is_unknown_and_no_other(bit: str, unknown: set[str]) -> None:
    before = decoded()
    after = decoded(valid=ALL_VALID & ~wire.VALID[bit])
    changed = {a.name for a in attrs.fields(ExecEvent) if getattr(before, a.name) != getattr(after, a.name)}
    assert changed == unknown
    assert {getattr(after, name) for name in unknown} == {None}


def test_every_bit_is_tested_above_and_none_is_needed_for_a_record() -> None:
    event = decoded(b"", valid=0)
    optional = {a.name for a in attrs.fields(ExecEvent) if a.default is None}
    always = {"host_pid", "uid", "gid"}
    assert {name for name in optional if getattr(event, name) is not None} == always
    assert len(wire.VALID) == 8  # EXEC_TIME is an exit's


def test_the_interpreter_is_the_file_where_the_kernel_says_the_same() -> None:
    assert decoded(b"/bin/ls\0", b"").interp == "/bin/ls"
    assert decoded(b"", b"").interp is None
    assert decoded(b"", b"").filename is None


@pytest.mark.parametrize(
    ("flags", "status"),
    [(0, "complete"), (1, "truncated"), (2, "unreadable"), (4, "complete"), (5, "truncated")],
)
def test_flags_tell_how_much_of_argv_there_is(flags: int, status: str) -> None:
    assert decoded(flags=flags).argv_status == status


@pytest.mark.parametrize(
    ("data", "argv"),
    [
        (b"", ()),
        (b"\0", ("",)),
        (b"\0\0", ("", "")),
        (b"a\0", ("a",)),
        (b"a\0\0b\0", ("a", "", "b")),
        (b"\0a\0\0", ("", "a", "")),
        (b"a\0b", ("a", "b")),  # cut within an argument
        (b"a\0b\0", ("a", "b")),  # or behind one
        (b"\xff\0\xc3\xa9\0", ("\udcff", "é")),
        (b"a\0\xc3", ("a", "\udcc3")),  # cut within a character
    ],
)
def test_argv_is_split_at_its_ends(data: bytes, argv: tuple[str, ...]) -> None:
    assert argv_of(data) == argv


@given(st.lists(st.binary(max_size=9).map(lambda b: b.replace(b"\0", b"")), max_size=9))
def test_argv_keeps_every_byte(argv: list[bytes]) -> None:
    found = argv_of(b"".join(word + b"\0" for word in argv))
    assert [word.encode("utf-8", "surrogateescape") for word in found] == argv


def test_an_unreadable_argv_is_empty_and_its_number_is_told() -> None:
    event = decoded(b"f\0", b"", b"", flags=wire.FLAGS["ARGV_UNREADABLE"], argc=4)
    assert (event.argv, event.argv_status, event.argc) == ((), "unreadable", 4)


def test_what_a_reused_buffer_keeps_behind_the_nul_is_no_part_of_a_name() -> None:
    event = decoded(b"ls\0er.py\0", b"sh\0ell\0", comm=b"sh\0ongname\0", parent_comm=b"\0old")
    assert (event.comm, event.parent_comm, event.filename, event.interp) == ("sh", "", "ls", "sh")


def test_a_name_without_nul_is_taken_whole() -> None:
    assert decoded(comm=b"0123456789abcdef").comm == "0123456789abcdef"
    assert decoded(comm=b"\xff\xc3").comm == "\udcff\udcc3"


def test_records_are_found_where_they_begin() -> None:
    first, second = record(pid=1), record(b"/second\0", pid=2)
    data = b"\xaa" * 8 + first + b"\xbb" * 3 + second
    assert wire.decode(data, 8, CLOCK)[0].pid == 1
    event = wire.decode(data, 8 + len(first) + 3, CLOCK)[0]
    assert (event.pid, event.filename) == (2, "/second")


@given(st.binary(max_size=300), st.integers(0, 310))
def test_arbitrary_bytes_are_an_event_or_a_value_error(data: bytes, at: int) -> None:
    try:
        event, _, _ = wire.decode(data, at, CLOCK)
    except ValueError:
        return
    assert isinstance(event, ProcessEvent)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            name: st.integers(0, 400) | st.integers(0, 2**16 - 1)
            for name in ("size", "flags", "valid", "filename_size", "interp_size", "argv_size")
        },
    ),
    st.integers(0, 250),
    st.binary(max_size=60),
)
def test_wrong_sizes_are_an_event_or_a_value_error(members: Any, cut: int, strings: bytes) -> None:
    data = record(strings, **members)[:cut]
    try:
        event, _, _ = wire.decode(data, 0, CLOCK)
    except ValueError:
        return
    assert len(repr(event)) < 4000


@pytest.mark.parametrize("kind", [4, 65535])
def test_other_kinds_are_refused(kind: int) -> None:
    with pytest.raises(ValueError, match=f"kind {kind}"):
        wire.decode(record(kind=kind), 0, CLOCK)


def test_a_record_never_reads_into_the_next_one() -> None:
    size = len(record())
    with pytest.raises(ValueError, match=f"record of {size} bytes"):
        wire.decode(record(argv_size=8) + record(), 0, CLOCK)
    with pytest.raises(ValueError, match=f"record of {size + 1} bytes, {size} there"):
        wire.decode(record(size=size + 1), 0, CLOCK)


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1))
def test_keys_count_in_ticks_as_proc_does(start: int, pid: int) -> None:
    assert CLOCK.process_key(pid, start) == f"b007-{pid}-{start // 10_000_000}"


# -- The layout -------------------------------------------------------------------------------

STRUCTS = {
    "record": wire.RECORD,
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
    "flags", [wire.FLAGS, wire.VALID, wire.FILTER_BITS], ids=["flags", "valid", "filter"]
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
