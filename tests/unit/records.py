"""Records as the kernel half writes them, packed by ctypes as C lays out what record.h says."""

from __future__ import annotations

import ctypes
import pathlib
import re
from typing import Any, Dict, Mapping, Optional

from execwatch import decoder, wire
from execwatch.build import source

CLOCK = wire.Clock(boot_id="b007", tick_ns=10_000_000, offset_ns=1_000_000_000_000)

ALL_VALID = sum(wire.VALID.values())

_HEADER = pathlib.Path(source.FOLDER, "record.h").read_text(encoding="utf-8")
_TYPES: Dict[str, Any] = {
    "u16": ctypes.c_uint16,
    "u32": ctypes.c_uint32,
    "u64": ctypes.c_uint64,
    "char": ctypes.c_ubyte * 16,  # not c_char, which ends at a NUL
}


def constants(prefix: str) -> Dict[str, int]:
    """The numbers that record.h defines, by the rest of their names."""
    found = re.findall(rf"^#define {prefix}_(\w+) (0x\w+)$", _HEADER, re.MULTILINE)
    return {name: int(value, 16) for name, value in found}


def _struct(name: str) -> Any:
    match = re.search(rf"^struct {name} {{\n(.*?)^}};", _HEADER, re.MULTILINE | re.DOTALL)
    assert match
    members = [line.split() for line in match[1].replace("[16]", "").replace(";", "").splitlines()]
    fields = [(member, _TYPES[kind]) for kind, member in members]
    return type(name, (ctypes.LittleEndianStructure,), {"_fields_": fields})


HEAD, CONTEXT = _struct("record"), _struct("context")

#: What follows them, in order. Of paths the names stand from the leaf to the root.
STRINGS = ("filename", "interp", "exe", "cwd", "cgroup", "env", "argv")

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

#: And of what an exec captures.
MEMBERS_OF_CONTEXT: Dict[str, int] = {
    "uid": 201,
    "gid": 202,
    "suid": 203,
    "sgid": 204,
    "euid": 205,
    "egid": 206,
    "fsuid": 207,
    "fsgid": 208,
    "cap_inheritable": 2**40 + 1,
    "cap_permitted": 2**40 + 2,
    "cap_effective": 2**40 + 3,
    "cap_bounding": 2**40 + 4,
    "cap_ambient": 0,
    "loginuid": 209,
    "sessionid": 210,
    "owner": 222,
    "group": 223,
    "bits": wire.CONTEXT_BITS["SECURE_KNOWN"],
    "mode": 0o100755,
    "inode": 2**33 + 5,
    "file_size": 2**34 + 6,
    "ctime_s": 1_700_000_007,
    "ctime_ns": 8,
    "device": 8 << 20 | 1,
    "sid": 211,
    "pgid": 212,
    "tty_major": 136,
    "tty_minor": 213,
    "vpid": 214,
    "pid_ns": 215,
    "net_ns": 216,
    "uts_ns": 217,
    "ipc_ns": 218,
    "cgroup_ns": 219,
    "user_ns": 220,
    "time_ns": 221,
}


CONTAINER_ID = b"605439acbd4fb18c145069289094b17f17e0cfa938f78012d4960bc797305f22"


def leaf_first(path: bytes) -> bytes:
    """An absolute path as the kernel half walks it."""
    return b"".join(name + b"\0" for name in reversed(path.split(b"/")) if name)


def record(
    filename: bytes = b"./run\0",
    interp: bytes = b"/bin/sh\0",
    argv: bytes = b"run\0-x\0",
    *,
    exe: bytes = b"dash\0bin\0usr\0",
    cwd: bytes = b"user\0home\0",
    cgroup: bytes = b"docker-" + CONTAINER_ID + b".scope\0system.slice\0",
    env: bytes = b"LANG=C\0EMPTY=\0",
    context: Optional[Mapping[str, int]] = None,
    **members: Any,
) -> bytes:
    """Return a record; of a kind that has no context it has none, whatever strings it has."""
    strings = (filename, interp, exe, cwd, cgroup, env, argv)
    sizes = {f"{name}_size": len(data) for name, data in zip(STRINGS, strings)}
    values = {**MEMBERS, **sizes, **members}
    for name in ("comm", "parent_comm"):
        values[name] = tuple(values[name].ljust(16, b"\0"))
    behind = b"".join(strings)
    if values["kind"] == wire.KINDS["EXEC"]:
        behind = bytes(CONTEXT(**{**MEMBERS_OF_CONTEXT, **(context or {})})) + behind
    return bytes(HEAD(**{"size": ctypes.sizeof(HEAD) + len(behind), **values})) + behind


def decoded(*args: bytes, wanted: wire.EnvNames = False, **members: Any) -> Any:
    """Return the event of such a record; ``wanted`` of its environment."""
    return decoder.decode(record(*args, **members), 0, CLOCK, wanted)[0]


def without(*bits: str) -> int:
    """Return ``valid`` with all bits but these."""
    return ALL_VALID & ~sum(wire.VALID[bit] for bit in bits)


def text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def true_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
