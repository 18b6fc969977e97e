from __future__ import annotations

import pickle
from typing import Any, Dict

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from execwatch import (
    Container,
    Credentials,
    ExecEvent,
    Executable,
    ExitEvent,
    FailedExecEvent,
    ForkEvent,
    Namespaces,
    Session,
    decoder,
    wire,
)

from .records import (
    CLOCK,
    CONTAINER_ID,
    constants,
    decoded,
    record,
    without,
)


def argv_of(data: bytes) -> tuple[str, ...]:
    return decoded(b"", b"", data).argv


IDENTITY: Dict[str, Any] = {
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
    "cgroup_path": f"/system.slice/docker-{CONTAINER_ID.decode()}.scope",
    "container": Container(id=CONTAINER_ID.decode(), runtime="docker"),
    "namespaces": Namespaces(mnt=4026531841),
}


def test_every_member_becomes_the_field_of_its_name() -> None:
    flags = wire.FLAGS["EXCLUDED"]
    event, lost, seen_flags = decoder.decode(record(flags=flags), 0, CLOCK, True)
    assert (lost, seen_flags) == (12, flags)
    everything = {
        **IDENTITY,
        "tid": 102,
        "argc": 107,
        "argv": ("run", "-x"),
        "argv_status": "complete",
        "retval": 0,
        "filename": "./run",
        "interp": "/bin/sh",
        "namespaces": Namespaces(
            mnt=4026531841, pid=215, net=216, uts=217, ipc=218, cgroup=219, user=220, time=221, vpid=214
        ),
        "creds": Credentials(
            uid=201,
            gid=202,
            suid=203,
            sgid=204,
            euid=205,
            egid=206,
            fsuid=207,
            fsgid=208,
            cap_inheritable=2**40 + 1,
            cap_permitted=2**40 + 2,
            cap_effective=2**40 + 3,
            cap_ambient=0,
            loginuid=209,
            sessionid=210,
            setuid=False,
            setgid=False,
            file_capabilities=True,
            secureexec=False,
        ),
        "session": Session(sid=211, pgid=212, tty_major=136, tty_minor=213),
        "exe": Executable(
            path="/usr/bin/dash",
            inode=2**33 + 5,
            device=0x801,
            mode=0o100755,
            size=2**34 + 6,
            ctime_ns=1_700_000_007_000_000_008,
        ),
        "cwd": "/home/user",
        "env": (("LANG", "C"), ("EMPTY", "")),
        "env_status": "complete",
    }
    assert set(everything) == {field.name for field in attrs.fields(ExecEvent)}
    assert event == ExecEvent(**everything)


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


#: What becomes unknown without each bit; members that the kernel half leaves 0 then.
BITS: Dict[str, Any] = {
    "PPID": {"ppid", "parent_key"},
    "PARENT_START": {"parent_key"},
    "PARENT_COMM": {"parent_comm"},
    "START": {"start_boottime_ns"},
    "CGROUP": {"cgroup_id"},
    "MNT_NS": ({"namespaces.mnt"}, {"mnt_ns": 0}),
    "INTERP": {"interp"},
    "EXEC_TIME": {"exec_boottime_ns"},
    "CREDS": {"creds"},
    "SESSION": {"session"},
    "NAMESPACES": {
        f"namespaces.{name}" for name in ("pid", "net", "uts", "ipc", "cgroup", "user", "time", "vpid")
    },
    "EXE": {"exe"},
    "EXE_PATH": {"exe.path"},
    "EXE_CTIME": {"exe.ctime_ns"},
    "CWD": {"cwd"},
    "CGROUP_PATH": {"cgroup_path", "container"},
    "ENV": {"env", "env_status"},
}


def changed(before: Any, after: Any) -> Dict[str, Any]:
    """The fields that differ, those of nested values by their paths, and what they are now."""
    found: Dict[str, Any] = {}
    for field in attrs.fields(type(before)):
        one, other = getattr(before, field.name), getattr(after, field.name)
        if type(one) is type(other) and attrs.has(type(one)):
            found.update({f"{field.name}.{name}": value for name, value in changed(one, other).items()})
        elif one != other:
            found[field.name] = other
    return found


@pytest.mark.parametrize("bit", BITS)
def test_without_its_bit_a_field_is_unknown_and_no_other(bit: str) -> None:
    kind = wire.KINDS["EXIT" if bit == "EXEC_TIME" else "EXEC"]
    unknown, members = BITS[bit] if isinstance(BITS[bit], tuple) else (BITS[bit], {})
    before = decoded(wanted=True, kind=kind)
    found = changed(before, decoded(wanted=True, kind=kind, valid=without(bit), **members))
    assert found.pop("env_status", "unreadable") == "unreadable"
    assert found == dict.fromkeys(unknown - {"env_status"})


def test_every_bit_is_tested_above_and_none_is_needed_for_a_record() -> None:
    assert set(BITS) == set(wire.VALID) == set(constants("VALID"))
    assert len(BITS) == 17
    event = decoded(b"", valid=0)
    optional = {a.name for a in attrs.fields(ExecEvent) if a.default is None}
    always = {"host_pid", "uid", "gid"}
    assert {name for name in optional if getattr(event, name) is not None} == always


@pytest.mark.parametrize("kind", ["FAILED", "FORK", "EXIT"])
def test_bits_of_an_exec_tell_nothing_of_another_kind(kind: str) -> None:
    number = wire.KINDS[kind]
    of_execs = ("CREDS", "SESSION", "NAMESPACES", "EXE", "EXE_PATH", "EXE_CTIME", "CWD", "ENV")
    assert decoded(kind=number, wanted=True) == decoded(kind=number, valid=without(*of_execs))
    assert decoded(kind=number, valid=without("MNT_NS")).namespaces is None


def test_the_interpreter_is_the_file_where_the_kernel_says_the_same() -> None:
    assert decoded(b"/bin/ls\0", b"").interp == "/bin/ls"
    assert decoded(b"", b"").interp is None
    assert decoded(b"", b"").filename is None


@pytest.mark.parametrize(
    ("flags", "status"),
    [
        (0, "complete"),
        (1, "truncated"),
        (2, "unreadable"),
        (4, "complete"),
        (5, "truncated"),
        (0x1F8, "complete"),
        (0x1F9, "truncated"),
    ],
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
    assert decoder.decode(data, 8, CLOCK)[0].pid == 1
    event = decoder.decode(data, 8 + len(first) + 3, CLOCK)[0]
    assert (event.pid, event.filename) == (2, "/second")


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1))
def test_keys_count_in_ticks_as_proc_does(start: int, pid: int) -> None:
    assert CLOCK.process_key(pid, start) == f"b007-{pid}-{start // 10_000_000}"
