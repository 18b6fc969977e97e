"""What the kernel half and the Python half share, written once.

The tables here make the C header (``build/record.h``, kept in step by a test)
and the Python decoder. Bytes in, events out; no I/O. All numbers are
little-endian, members are naturally aligned, so C and :mod:`struct` agree.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import Any, Mapping, Tuple

import attrs

from execwatch.events import (
    AnyProcessEvent,
    ArgvStatus,
    ExecEvent,
    ExitEvent,
    FailedExecEvent,
    ForkEvent,
    Namespaces,
)

#: (C type, name) in order.
Layout = Tuple[Tuple[str, str], ...]

_CODES = {"u16": "H", "u32": "I", "u64": "Q", "char16": "16s"}

# --- Records: the kernel writes them into the buffer ---------------------------

#: The kinds of record; also the index of each kind's counters and scratch buffer.
KINDS = {"EXEC": 0, "FAILED": 1, "FORK": 2, "EXIT": 3}

#: One layout for every kind: who it happened to, and behind it the strings that
#: execs and attempts have.
RECORD: Layout = (
    ("u32", "size"),  # bytes of the record, this head and the strings included
    ("u16", "kind"),
    ("u16", "flags"),
    ("u64", "valid"),  # one bit a field that may be unknown: VALID
    ("u64", "boottime_ns"),
    ("u64", "lost"),  # of this kind on this CPU up to now, never reset
    ("u32", "cpu"),
    ("u32", "pid"),
    ("u32", "tid"),
    ("u32", "host_pid"),
    ("u32", "ppid"),
    ("u32", "uid"),
    ("u32", "gid"),
    ("u32", "argc"),
    ("u32", "status"),  # failed: the errno; exit: as wait(2) gives it
    ("u32", "mnt_ns"),
    ("u64", "start_boottime_ns"),
    ("u64", "parent_start_boottime_ns"),
    ("u64", "exec_boottime_ns"),
    ("u64", "cgroup_id"),
    ("u32", "filename_size"),  # behind the head, first; 0 where unknown
    ("u32", "interp_size"),  # behind it; 0 where it is the filename
    ("u32", "argv_size"),  # behind that
    ("u32", "reserved"),
    ("char16", "comm"),
    ("char16", "parent_comm"),
)

FLAGS = {
    "ARGV_TRUNCATED": 1 << 0,
    "ARGV_UNREADABLE": 1 << 1,
    "EXCLUDED": 1 << 2,  # the kernel's part of an exclusion holds; the rest is decided in Python
}

#: The fields that may be unknown, each with its bit in ``valid``.
VALID = {
    name: 1 << bit
    for bit, name in enumerate(
        ("PPID", "PARENT_START", "PARENT_COMM", "START", "CGROUP", "MNT_NS", "INTERP", "EXEC_TIME")
    )
}

# --- Maps: Python writes them, the programs read them ---------------------------

#: Offsets of kernel members, by our name: (structure, path of members). Where a
#: kernel lacks one, its offset is ABSENT, and what it leads to is unknown.
OFFSETS: Mapping[str, Tuple[str, str]] = {
    "task_pid": ("task_struct", "pid"),
    "task_tgid": ("task_struct", "tgid"),
    "task_real_parent": ("task_struct", "real_parent"),
    "task_group_leader": ("task_struct", "group_leader"),
    "task_start_boottime": ("task_struct", "start_boottime"),
    "task_comm": ("task_struct", "comm"),
    "task_thread_pid": ("task_struct", "thread_pid"),
    "task_signal": ("task_struct", "signal"),
    "task_exit_code": ("task_struct", "exit_code"),
    "task_thread_status": ("task_struct", "thread_info.status"),
    "task_mm": ("task_struct", "mm"),
    "task_nsproxy": ("task_struct", "nsproxy"),
    "task_cgroups": ("task_struct", "cgroups"),
    "signal_live": ("signal_struct", "live"),
    "signal_flags": ("signal_struct", "flags"),
    "signal_group_exit_code": ("signal_struct", "group_exit_code"),
    "regs_orig_ax": ("pt_regs", "orig_ax"),
    "regs_bx": ("pt_regs", "bx"),
    "regs_cx": ("pt_regs", "cx"),
    "regs_dx": ("pt_regs", "dx"),
    "regs_si": ("pt_regs", "si"),
    "regs_di": ("pt_regs", "di"),
    "mm_arg_start": ("mm_struct", "arg_start"),
    "mm_arg_end": ("mm_struct", "arg_end"),
    "bprm_filename": ("linux_binprm", "filename"),
    "bprm_interp": ("linux_binprm", "interp"),
    "bprm_argc": ("linux_binprm", "argc"),
    "pid_level": ("pid", "level"),
    "pid_numbers": ("pid", "numbers"),
    "upid_ns": ("upid", "ns"),
    "pid_namespace_inum": ("pid_namespace", "ns.inum"),
    "nsproxy_mnt_ns": ("nsproxy", "mnt_ns"),
    "mnt_namespace_inum": ("mnt_namespace", "ns.inum"),
    "css_set_subsys": ("css_set", "subsys"),
    "css_set_dfl_cgrp": ("css_set", "dfl_cgrp"),
    "css_cgroup": ("cgroup_subsys_state", "cgroup"),
    "cgroup_kn": ("cgroup", "kn"),
    "kernfs_node_id": ("kernfs_node", "id"),
}
ABSENT = 0xFFFFFFFF

#: The fields of a filter that the kernel decides, each with its bit.
FILTER_FIELDS = ("uid", "pid", "ppid", "comm", "cgroup", "mnt_ns", "tree")
FILTER_BITS = {name: 1 << bit for bit, name in enumerate(FILTER_FIELDS)}
#: In place of an exclusion's bits where there is none: nothing ever hits it.
NEVER = 1 << 31

#: Which part of a filter an entry belongs to: bits of a value in ``filters`` and ``tree``.
INCLUDE, EXCLUDE = 1, 2

CONFIG: Layout = (
    ("u64", "pid_ns"),  # inode of the tracer's pid namespace, for the nested programs
    ("u64", "boot_offset_ns"),  # of the tracer's time namespace: its CLOCK_BOOTTIME less the kernel's
    ("u64", "tick_ns"),  # of /proc/PID/stat's start times
    ("u32", "argv_size"),
    ("u32", "cgroup_index"),  # of the v1 hierarchy in css_set.subsys; ABSENT: cgroup v2
    ("u32", "include"),  # FILTER_BITS that have to hit
    ("u32", "exclude"),  # FILTER_BITS that, all hit, exclude
    ("u32", "exclude_final"),  # 1: the kernel's part of the exclusion is all of it
    (
        "u32",
        "arming",
    ),  # parts: log in ``forks`` each fork by a process that is not known to be in all of them
    ("u32", "tree"),  # 1: a filter names a tree of processes
    ("u32", "forks"),  # 1: fork records are wanted, not only the tree kept
    ("u32", "exits"),  # 1: likewise
    ("u32", "failed"),  # 1: likewise, for kprobes
    ("u32", "perf"),  # 1: the perf buffer is the one in use
    ("u32", "room_failed"),  # bytes of the ring that failed attempts may fill
    ("u32", "room_process"),  # bytes of the ring that forks and exits may fill
    *(("u32", f"offset_{name}") for name in OFFSETS),
)

FILTER_KEY: Layout = (("char16", "value"), ("u32", "field"))
TREE_VALUE: Layout = (("u64", "start_ticks"), ("u32", "parts"), ("u32", "reserved"))
FORK_VALUE: Layout = (("u64", "start_ticks"), ("u32", "parent"), ("u32", "reserved"))
#: A process, by its pid in the initial namespace: that pid may come again.
EXIT_KEY: Layout = (("u64", "start_boottime_ns"), ("u32", "host_pid"), ("u32", "reserved"))
#: The kernel copies them out in this order while programs go on counting: with
#: ``seen`` last it is never less than the others add up to.
COUNTERS: Layout = (
    ("u64", "filtered"),
    ("u64", "lost"),
    ("u64", "argv_unreadable"),
    ("u64", "argv_truncated"),
    ("u64", "tree_full"),
    ("u64", "returned"),  # kprobes only, as is the next: calls that began and that ended
    ("u64", "entered"),
    ("u64", "seen"),
)

#: A call of exec: where its caller has the arguments, and, between a kprobe on its
#: entry and one on its return, what is known of it. The names follow in the map's value.
CALL: Layout = (
    ("u64", "filename"),
    ("u64", "argv"),
    ("u64", "compat"),  # 1: pointers of 4 bytes
    ("u64", "valid"),
    ("u32", "tid"),
    ("u32", "argc"),
    ("u32", "filename_size"),
    ("u32", "interp_size"),
    ("u64", "entered_ns"),
    ("u32", "host_tid"),
    ("u32", "reserved"),
)

LIMITS = {
    "ARGV_SIZE_MAX": 16384,  # of what fits into a scratch buffer
    "PATH_SIZE_MAX": 4096,
    "LARGE_HEAD_MAX": 16384,  # more than a record without its argv can have
    "COMM_SIZE": 16,
    "PID_NS_LEVELS": 33,
    "FAILED_ARGS_MAX": 64,
}


def c_header() -> str:
    """Return the C text of all of the above."""
    constants = {
        **{f"KIND_{name}": value for name, value in KINDS.items()},
        "KINDS": len(KINDS),
        **{f"FLAG_{name}": value for name, value in FLAGS.items()},
        **{f"VALID_{name}": value for name, value in VALID.items()},
        **{f"FILTER_{name.upper()}": value for name, value in FILTER_BITS.items()},
        "PART_INCLUDE": INCLUDE,
        "PART_EXCLUDE": EXCLUDE,
        "ABSENT": ABSENT,
        **LIMITS,
    }
    structs = {
        "record": RECORD,
        "config": CONFIG,
        "filter_key": FILTER_KEY,
        "tree_value": TREE_VALUE,
        "fork_value": FORK_VALUE,
        "exit_key": EXIT_KEY,
        "call": CALL,
        "counters": COUNTERS,
    }
    lines = ["/* Made by `nox -s images` from execwatch/wire.py, which explains it. Do not edit. */", ""]
    lines += [f"#define {name} {value:#x}" for name, value in constants.items()]
    for name, layout in structs.items():
        lines += ["", f"struct {name} {{"]
        lines += [f"    {_c_member(kind, member)};" for kind, member in layout]
        lines += ["};"]
    return "\n".join(lines) + "\n"


def _c_member(kind: str, name: str) -> str:
    return f"char {name}[16]" if kind == "char16" else f"{kind} {name}"


def struct_of(layout: Layout) -> struct.Struct:
    """Return the :class:`struct.Struct` of a layout, padded at its end as C pads it."""
    codes = "<" + "".join(_CODES[kind] for kind, _ in layout)
    alignment = max({"u64": 8, "u32": 4, "u16": 2, "char16": 1}[kind] for kind, _ in layout)
    return struct.Struct(codes + "x" * (-struct.calcsize(codes) % alignment))


def offset_of(layout: Layout, name: str) -> int:
    """Return where in the structure a member begins."""
    before = [kind for kind, _ in layout][: [member for _, member in layout].index(name)]
    return struct.calcsize("<" + "".join(_CODES[kind] for kind in before))


def pack(layout: Layout, values: Mapping[str, Any]) -> bytes:
    """Return the bytes of one structure; members that are not named are 0."""
    default = {"char16": b""}
    return struct_of(layout).pack(*(values.get(name, default.get(kind, 0)) for kind, name in layout))


def unpack(layout: Layout, data: bytes) -> dict[str, Any]:
    """Return the members of one structure."""
    return dict(zip((name for _, name in layout), struct_of(layout).unpack(data)))


# --- Decoding -------------------------------------------------------------------

_SIZE = struct_of(RECORD).size
_unpack = struct_of(RECORD).unpack_from
_EXEC, _FAILED, _FORK, _EXIT = KINDS.values()
_PPID, _PARENT_START, _PARENT_COMM, _START, _CGROUP, _MNT_NS, _INTERP, _EXEC_TIME = VALID.values()
_TRUNCATED, _UNREADABLE = FLAGS["ARGV_TRUNCATED"], FLAGS["ARGV_UNREADABLE"]


def _builder(cls: type) -> Any:
    """Return the class with its frozenness taken off.

    Filled by plain assignment, which takes a tenth of the time of the frozen
    constructor, then turned into the real class: CPython allows that where both
    have the same base and slots.
    """
    return type(
        f"_{cls.__name__}Builder",
        cls.__bases__,
        {
            "__slots__": tuple(a.name for a in attrs.fields(cls) if not a.inherited),
            "__init__": object.__init__,
            # Both: they share one slot in C.
            "__setattr__": object.__setattr__,
            "__delattr__": object.__delattr__,
        },
    )


_Exec, _Failed, _Fork, _Exit = map(_builder, (ExecEvent, FailedExecEvent, ForkEvent, ExitEvent))


@attrs.frozen
class Clock:
    """What turns the kernel's numbers into an event's.

    Attributes:
        boot_id: Names this boot, see ``process_key``.
        tick_ns: Nanoseconds of a clock tick, the unit of start times in /proc.
        offset_ns: Unix time less CLOCK_BOOTTIME.
    """

    boot_id: str
    tick_ns: int
    offset_ns: int

    def process_key(self, pid: int, start_boottime_ns: int) -> str:
        return f"{self.boot_id}-{pid}-{start_boottime_ns // self.tick_ns}"


def decode(  # noqa: PLR0915  one function: a call costs a tenth of an event
    data: bytes, at: int, clock: Clock
) -> Tuple[AnyProcessEvent, int, int]:
    """Return the event of the record that begins at ``data[at]``, its ``lost`` and its ``flags``.

    Raises:
        ValueError: The bytes are not a record that this version knows.
    """
    try:
        # The names, in the order of RECORD.
        (
            size, kind, flags, valid, boottime_ns, lost,
            cpu, pid, tid, host_pid, ppid, uid, gid, argc, status, mnt_ns,
            start_boottime_ns, parent_start_boottime_ns, exec_boottime_ns, cgroup_id,
            filename_size, interp_size, argv_size, _reserved, comm, parent_comm,
        ) = _unpack(data, at)  # fmt: skip
    except struct.error as exc:
        raise ValueError(f"record cut short: {exc}") from exc
    interp_at = at + _SIZE + filename_size
    argv_at = interp_at + interp_size
    end = argv_at + argv_size
    if end > at + size or at + size > len(data):
        raise ValueError(f"record of {size} bytes, {len(data) - at} there, strings up to {end - at}")

    event: Any
    if kind == _EXEC:
        event = _Exec()
        event.tid = tid
        event.argv = _argv(data[argv_at:end])
        event.argv_status = _argv_status(flags) if flags else "complete"
        event.argc = argc or len(event.argv)  # 0 also where a kprobe was missed
        event.retval = 0
        event.filename = filename = _text(data[at + _SIZE : interp_at]) if filename_size else None
        event.interp = None
        if valid & _INTERP:
            event.interp = _text(data[interp_at:argv_at]) if interp_size else filename
    elif kind == _FAILED:
        event = _Failed()
        event.tid = tid
        event.argv = None if flags & _UNREADABLE else _argv(data[argv_at:end])
        event.argv_status = _argv_status(flags)
        event.filename = _text(data[at + _SIZE : interp_at]) if filename_size else None
        event.retval = -status
    elif kind == _FORK:
        event = _Fork()
    elif kind == _EXIT:
        event = _Exit()
        event.signal = signal = status & 0x7F or None
        event.exit_code = status >> 8 & 0xFF if signal is None else None
        event.core_dumped = bool(status & 0x80)
        event.exec_boottime_ns = exec_boottime_ns if valid & _EXEC_TIME else None
    else:
        raise ValueError(f"record of unknown kind {kind}")

    event.time_ns = boottime_ns + clock.offset_ns
    event.boottime_ns = boottime_ns
    event.cpu = cpu
    event.pid = pid
    event.comm = _text(comm)
    event.process_key = clock.process_key(pid, start_boottime_ns)
    event.host_pid = host_pid
    event.ppid = ppid if valid & _PPID else None
    event.parent_comm = _text(parent_comm) if valid & _PARENT_COMM else None
    event.parent_key = None
    if valid & _PPID and valid & _PARENT_START:
        event.parent_key = clock.process_key(ppid, parent_start_boottime_ns)
    event.uid = uid
    event.gid = gid
    event.start_boottime_ns = start_boottime_ns if valid & _START else None
    event.cgroup_id = cgroup_id if valid & _CGROUP else None
    event.namespaces = _namespaces(mnt_ns) if valid & _MNT_NS else None
    event.__class__ = _CLASSES[kind]
    return event, lost, flags


_CLASSES = (ExecEvent, FailedExecEvent, ForkEvent, ExitEvent)


def _argv_status(flags: int) -> ArgvStatus:
    return "unreadable" if flags & _UNREADABLE else "truncated" if flags & _TRUNCATED else "complete"


# The same few names and paths stand on event after event: looked up, they take a
# quarter of the time of decoding them, and the events share them.


@lru_cache(maxsize=1024)
def _text(data: bytes) -> str:
    """Decode a C string: what a re-used buffer kept behind the NUL is none of it."""
    return data.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _argv(data: bytes) -> Tuple[str, ...]:
    """Split at the NULs. Each argument ends with one, but for the last of a truncated row."""
    if not data:
        return ()
    text = data.decode("utf-8", "surrogateescape")
    return tuple((text[:-1] if text[-1] == "\0" else text).split("\0"))


@lru_cache(maxsize=256)
def _namespaces(mnt: int) -> Namespaces:
    return Namespaces(mnt=mnt)
