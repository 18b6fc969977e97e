"""What the kernel half and the Python half share, written once.

The tables here make the C header (``build/record.h``, kept in step by a test)
and the Python decoder. Bytes in, events out; no I/O. All numbers are
little-endian, members are naturally aligned, so C and :mod:`struct` agree.
"""

from __future__ import annotations

import os
import stat
import struct
from functools import lru_cache
from typing import Any, Callable, FrozenSet, Mapping, Optional, Tuple, Union

import attrs

from execwatch import containers
from execwatch.events import (
    AnyProcessEvent,
    ArgvStatus,
    Container,
    Credentials,
    ExecEvent,
    Executable,
    ExitEvent,
    FailedExecEvent,
    ForkEvent,
    Namespaces,
    ProcessEvent,
    Session,
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
    ("u32", "exe_size"),  # and so on: paths have their names from the leaf to the root, each with its NUL
    ("u32", "cwd_size"),
    ("u32", "cgroup_size"),
    ("u32", "env_size"),
    ("u32", "argv_size"),
    ("u32", "level"),  # of the tracer's pid namespace; the kernel half's own
    ("char16", "comm"),
    ("char16", "parent_comm"),
)

#: Behind the head of an exec, before its strings: what was captured and has a fixed size.
CONTEXT: Layout = (
    # The ids, then the capability sets, as they stand in struct cred.
    ("u32", "uid"),
    ("u32", "gid"),
    ("u32", "suid"),
    ("u32", "sgid"),
    ("u32", "euid"),
    ("u32", "egid"),
    ("u32", "fsuid"),
    ("u32", "fsgid"),
    ("u64", "cap_inheritable"),
    ("u64", "cap_permitted"),
    ("u64", "cap_effective"),
    ("u64", "cap_bounding"),
    ("u64", "cap_ambient"),
    ("u32", "loginuid"),
    ("u32", "sessionid"),
    ("u32", "owner"),  # of a file with set-ID bits
    ("u32", "group"),
    ("u32", "bits"),  # CONTEXT_BITS
    ("u32", "mode"),
    ("u64", "inode"),
    ("u64", "file_size"),
    ("u64", "ctime_s"),
    ("u32", "ctime_ns"),
    ("u32", "device"),
    ("u32", "sid"),
    ("u32", "pgid"),
    ("u32", "tty_major"),
    ("u32", "tty_minor"),
    ("u32", "vpid"),
    ("u32", "pid_ns"),
    ("u32", "net_ns"),
    ("u32", "uts_ns"),
    ("u32", "ipc_ns"),
    ("u32", "cgroup_ns"),
    ("u32", "user_ns"),
    ("u32", "time_ns"),
)
CONTEXT_BITS = {
    "GAINED": 1 << 0,  # the program gained privilege, see exec.bpf.c
    "SECURE": 1 << 1,
    "SECURE_KNOWN": 1 << 2,
    "USER_NS": 1 << 3,  # not the initial user namespace
    "DETACHED": 1 << 4,  # the file is in no directory
    "UNHASHED": 1 << 5,  # or not any more
    "NOSUID": 1 << 6,  # it is on a mount where set-ID bits have no effect
}

#: What a tracer can ask for, each with its bit in ``capture``.
CAPTURE = {
    name: 1 << bit for bit, name in enumerate(("creds", "session", "namespaces", "exe", "cwd", "container"))
}

FLAGS = {
    "ARGV_TRUNCATED": 1 << 0,
    "ARGV_UNREADABLE": 1 << 1,
    "EXCLUDED": 1 << 2,  # the kernel's part of an exclusion holds; the rest is decided in Python
    "UNDECIDED": 1 << 3,  # whether the container matches is decided in Python
    "UNWANTED": 1 << 4,  # the filter leaves it out; it is for the table of processes
    "INJECTED": 1 << 5,  # see read_injected in exec.bpf.c
    "OWN": 1 << 6,
    "ENV_TRUNCATED": 1 << 7,
    "CGROUP_CUT": 1 << 8,  # only the upper levels of its path are there
}

#: The fields that may be unknown, each with its bit in ``valid``.
VALID = {
    name: 1 << bit
    for bit, name in enumerate(
        (
            "PPID",
            "PARENT_START",
            "PARENT_COMM",
            "START",
            "CGROUP",
            "MNT_NS",
            "INTERP",
            "EXEC_TIME",
            "CREDS",
            "SESSION",
            "NAMESPACES",
            "EXE",
            "EXE_PATH",
            "EXE_CTIME",
            "CWD",
            "CGROUP_PATH",
            "ENV",
        )
    )
}

# --- Maps: Python writes them, the programs read them ---------------------------

#: Offsets of kernel members, by our name: (structure, path of members; "|" between
#: names that it has had). Where a kernel lacks one, its offset is ABSENT, and what
#: it leads to is unknown.
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
    "cgroup_level": ("cgroup", "level"),
    "kernfs_node_id": ("kernfs_node", "id"),
    "kernfs_node_parent": ("kernfs_node", "parent|__parent"),
    "kernfs_node_name": ("kernfs_node", "name"),
    "task_cred": ("task_struct", "cred"),
    "task_loginuid": ("task_struct", "loginuid"),
    "task_fs": ("task_struct", "fs"),
    "cred_uid": ("cred", "uid"),
    "cred_caps": ("cred", "cap_inheritable"),
    "cred_user_ns": ("cred", "user_ns"),
    "user_namespace_level": ("user_namespace", "level"),
    "bprm_per_clear": ("linux_binprm", "per_clear"),
    "signal_tty": ("signal_struct", "tty"),
    "tty_driver": ("tty_struct", "driver"),
    "tty_index": ("tty_struct", "index"),
    "tty_driver_major": ("tty_driver", "major"),
    "tty_driver_minor_start": ("tty_driver", "minor_start"),
    "nsproxy_uts_ns": ("nsproxy", "uts_ns"),
    "nsproxy_ipc_ns": ("nsproxy", "ipc_ns"),
    "nsproxy_net_ns": ("nsproxy", "net_ns"),
    "nsproxy_time_ns": ("nsproxy", "time_ns"),
    "nsproxy_cgroup_ns": ("nsproxy", "cgroup_ns"),
    "uts_namespace_inum": ("uts_namespace", "ns.inum"),
    "ipc_namespace_inum": ("ipc_namespace", "ns.inum"),
    "net_inum": ("net", "ns.inum"),
    "time_namespace_inum": ("time_namespace", "ns.inum"),
    "cgroup_namespace_inum": ("cgroup_namespace", "ns.inum"),
    "user_namespace_inum": ("user_namespace", "ns.inum"),
    "mm_exe_file": ("mm_struct", "exe_file"),
    "mm_env_start": ("mm_struct", "env_start"),
    "mm_env_end": ("mm_struct", "env_end"),
    "file_mnt": ("file", "f_path.mnt"),
    "file_dentry": ("file", "f_path.dentry"),
    "file_inode": ("file", "f_inode"),
    "fs_pwd_mnt": ("fs_struct", "pwd.mnt"),
    "fs_pwd_dentry": ("fs_struct", "pwd.dentry"),
    "mount_mnt": ("mount", "mnt"),
    "mount_mnt_ns": ("mount", "mnt_ns"),
    "mount_mnt_parent": ("mount", "mnt_parent"),
    "mount_mnt_mountpoint": ("mount", "mnt_mountpoint"),
    "vfsmount_mnt_root": ("vfsmount", "mnt_root"),
    "vfsmount_mnt_flags": ("vfsmount", "mnt_flags"),
    "dentry_d_parent": ("dentry", "d_parent"),
    "dentry_name": ("dentry", "d_name.name"),
    "dentry_hashed": ("dentry", "d_hash.pprev"),
    "inode_ino": ("inode", "i_ino"),
    "inode_sb": ("inode", "i_sb"),
    "inode_mode": ("inode", "i_mode"),
    "inode_size": ("inode", "i_size"),
    "inode_uid": ("inode", "i_uid"),
    "inode_gid": ("inode", "i_gid"),
    "inode_ctime_s": ("inode", "i_ctime.tv_sec|__i_ctime.tv_sec|i_ctime_sec"),
    "inode_ctime_ns": ("inode", "i_ctime.tv_nsec|__i_ctime.tv_nsec|i_ctime_nsec"),
    "super_block_dev": ("super_block", "s_dev"),
}
#: Members that are read in one go with the one named: where they don't lie one after the
#: other (CONFIG_RANDSTRUCT), its offset is ABSENT.
RUNS: Mapping[str, Tuple[int, Tuple[str, ...]]] = {
    "cred_uid": (4, ("uid", "gid", "suid", "sgid", "euid", "egid", "fsuid", "fsgid")),
    "task_loginuid": (4, ("loginuid", "sessionid")),
    "cred_caps": (8, ("cap_inheritable", "cap_permitted", "cap_effective", "cap_bset", "cap_ambient")),
}
#: Pointers that are read in one go, by a name of our own: they have to lie within BLOCK_SIZE_MAX bytes.
#: Nothing behind them is read: a structure may end there, and memory with it.
BLOCKS: Mapping[str, Tuple[str, ...]] = {
    "dentry": ("dentry_d_parent", "dentry_name"),
    "mount": ("mount_mnt_parent", "mount_mnt_mountpoint"),
}
#: Found otherwise: elements of an array, and a bit field.
SIGNAL_PIDS = {"signal_sid": "PIDTYPE_SID", "signal_pgid": "PIDTYPE_PGID"}
ABSENT = 0xFFFFFFFF

#: The fields of a filter that the kernel decides, each with its bit.
FILTER_FIELDS = ("uid", "pid", "ppid", "comm", "cgroup", "mnt_ns", "tree", "container")
FILTER_BITS = {name: 1 << bit for bit, name in enumerate(FILTER_FIELDS)}
#: In place of an exclusion's bits where there is none: nothing ever hits it.
NEVER = 1 << 31

#: What the programs are told of this kernel's structures.
PLACES = (
    *(f"offset_{name}" for name in (*OFFSETS, *SIGNAL_PIDS)),
    "bit_bprm_secureexec",
    # Where each block begins and how long it is, and where in it each member; ABSENT: it is not in it.
    *(f"{what}_{name}" for name in BLOCKS for what in ("first", "size")),
    *(f"at_{member}" for members in BLOCKS.values() for member in members),
)

#: Which part of a filter an entry belongs to: bits of a value in ``filters`` and ``tree``.
INCLUDE, EXCLUDE = 1, 2

CONFIG: Layout = (
    ("u64", "pid_ns"),  # inode of the tracer's pid namespace, for the nested programs
    ("u64", "boot_offset_ns"),  # of the tracer's time namespace: its CLOCK_BOOTTIME less the kernel's
    ("u64", "tick_ns"),  # of /proc/PID/stat's start times
    ("u32", "argv_size"),
    ("u32", "env_size"),  # 0: none
    ("u32", "capture"),  # CAPTURE
    ("u32", "cgroup_index"),  # of the v1 hierarchy in css_set.subsys; ABSENT: cgroup v2
    ("u32", "include"),  # FILTER_BITS that have to hit
    ("u32", "exclude"),  # FILTER_BITS that, all hit, exclude
    ("u32", "exclude_final"),  # 1: the kernel's part of the exclusion is all of it
    ("u32", "tree"),  # 1: a filter names a tree of processes
    ("u32", "forks"),  # 1: fork records are wanted, not only the tree kept
    ("u32", "exits"),  # 1: likewise
    ("u32", "failed"),  # 1: likewise, for kprobes
    ("u32", "typed"),  # 1: programs for tracepoints are told the types of what they are given
    ("u32", "perf"),  # 1: the perf buffer is the one in use
    ("u32", "room_failed"),  # bytes of the ring that failed attempts may fill
    ("u32", "room_process"),  # bytes of the ring that forks and exits may fill
    *(("u32", name) for name in PLACES),
)

#: In instructions, for the address of the value of the map ``config``.
CONFIG_MARK = 0x6769666E6F637765  # no number of the program's own
#: What can change while programs run, and is in a map of its own: ``config`` is frozen.
SWITCHES: Layout = (
    ("u32", "arming"),  # parts: log in ``forks`` each fork by a process not known to be in all of them
    ("u32", "track"),  # 1: the table of processes wants execs, forks and exits, whatever the filter says
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
    ("u32", "level"),  # of the tracer's pid namespace
    ("u32", "bits"),  # CONTEXT_BITS
    ("u32", "reserved"),
)

LIMITS = {
    "ARGV_SIZE_MAX": 16384,  # of what fits into a scratch buffer
    "ENV_SIZE_MAX": 16384,
    "PATH_SIZE_MAX": 4096,
    "NAME_SIZE_MAX": 1024,  # vfat, ntfs: 255 characters of 3 bytes
    "PATH_DEPTH_MAX": 56,  # 48 directories, the file, and some mounts
    "CGROUP_DEPTH_MAX": 24,
    "CGROUP_SKIP_MAX": 128,
    "ANCESTORS_MAX": 32,
    "LARGE_HEAD_MAX": 40960,  # more than a record without its argv can have
    "BLOCK_SIZE_MAX": 256,
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
        **{f"CONTEXT_{name}": value for name, value in CONTEXT_BITS.items()},
        **{f"CAPTURE_{name.upper()}": value for name, value in CAPTURE.items()},
        **{f"FILTER_{name.upper()}": value for name, value in FILTER_BITS.items()},
        "PART_INCLUDE": INCLUDE,
        "PART_EXCLUDE": EXCLUDE,
        "ABSENT": ABSENT,
        **LIMITS,
    }
    structs = {
        "record": RECORD,
        "context": CONTEXT,
        "config": CONFIG,
        "switches": SWITCHES,
        "filter_key": FILTER_KEY,
        "tree_value": TREE_VALUE,
        "fork_value": FORK_VALUE,
        "exit_key": EXIT_KEY,
        "call": CALL,
        "counters": COUNTERS,
    }
    lines = ["/* Made by `nox -s images` from execwatch/wire.py, which explains it. Do not edit. */", ""]
    lines += [f"#define {name} {value:#x}" for name, value in constants.items()]
    lines += [f'#define CONFIG_MARK "{CONFIG_MARK:#x}"']
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

#: What an event's times have room for, in 64 bits with their sign: 146 years.
_LATEST_NS = 2**62
_SIZE = struct_of(RECORD).size
_CONTEXT_SIZE = struct_of(CONTEXT).size


def _unpacker(*names: str) -> Callable[[bytes, int], Tuple[Any, ...]]:
    """Return what unpacks these members of a record, in the order of RECORD, and passes over the others."""
    codes = (_CODES[kind] if name in names else f"{struct.calcsize(_CODES[kind])}x" for kind, name in RECORD)
    return struct.Struct("<" + "".join(codes)).unpack_from


_unpack_first = _unpacker(
    "size", "kind", "flags", "valid", "boottime_ns", "lost",
    "cpu", "pid", "tid", "host_pid", "ppid", "uid", "gid", "argc", "status",
    "filename_size", "interp_size", "exe_size", "cwd_size", "cgroup_size", "env_size", "argv_size",
    "comm", "parent_comm",
)  # fmt: skip
_unpack_who = _unpacker(
    "kind", "flags", "valid", "pid", "ppid", "mnt_ns",
    "start_boottime_ns", "parent_start_boottime_ns", "cgroup_id",
    "filename_size", "interp_size", "exe_size", "cwd_size", "cgroup_size",
)  # fmt: skip
_unpack_what = _unpacker("valid", "filename_size", "interp_size", "exe_size", "cwd_size")
_unpack_exec_time = _unpacker("exec_boottime_ns")
_unpack_namespaces = struct.Struct("<8I").unpack_from
_EXEC, _FAILED, _FORK, _EXIT = KINDS.values()
(
    _PPID, _PARENT_START, _PARENT_COMM, _START, _CGROUP, _MNT_NS, _INTERP, _EXEC_TIME,
    _CREDS, _SESSION, _NAMESPACES, _EXE, _EXE_PATH, _EXE_CTIME, _CWD, _CGROUP_PATH, _ENV,
) = VALID.values()  # fmt: skip
_TRUNCATED, _UNREADABLE = FLAGS["ARGV_TRUNCATED"], FLAGS["ARGV_UNREADABLE"]
_INJECTED, _OWN, _CUT = FLAGS["INJECTED"], FLAGS["OWN"], FLAGS["CGROUP_CUT"]
_CONTAINER_FLAGS = _INJECTED | _OWN | _CUT
_ENV_TRUNCATED = FLAGS["ENV_TRUNCATED"]
#: Of a context: the slices that each nested value is made of.
_CREDS_SLICE = slice(0, offset_of(CONTEXT, "inode"))
_EXE_SLICE = slice(offset_of(CONTEXT, "bits"), offset_of(CONTEXT, "sid"))
#: And in a record: where the rest of it begins.
_SESSION_AT = _SIZE + offset_of(CONTEXT, "sid")
_VPID_AT = _SIZE + offset_of(CONTEXT, "vpid")
_CAPTURED = _CREDS | _EXE | _EXE_PATH | _EXE_CTIME | _CWD


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
_NamespacesBuilder = _builder(Namespaces)

#: Names of variables to keep; True: all; False: the environment was not asked for.
EnvNames = Union[bool, FrozenSet[str]]


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


class Demand:
    """How many events were asked for what :func:`decode` had left for later."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count: int = 0


def decode(  # noqa: C901, PLR0915  one function: a call costs a tenth of an event
    data: bytes, at: int, clock: Clock, env: EnvNames = False, demand: Optional[Demand] = None
) -> Tuple[AnyProcessEvent, int, int]:
    """Return the event of the record that begins at ``data[at]``, its ``lost`` and its ``flags``.

    Args:
        env: Names of the variables that were captured and are to be kept.
        demand: Leave for later what few programs ask for: the event decodes that when it is
            asked, and counts it here. It takes half the time; both together take more.

    Raises:
        ValueError: The bytes are not a record that this version knows.
    """
    try:
        (
            size, kind, flags, valid, boottime_ns, lost,
            cpu, pid, tid, host_pid, ppid, uid, gid, argc, status,
            filename_size, interp_size, exe_size, cwd_size, cgroup_size, env_size, argv_size,
            comm, parent_comm,
        ) = _unpack_first(data, at)  # fmt: skip
    except struct.error as exc:
        raise ValueError(f"record cut short: {exc}") from exc
    filename_at = at + _SIZE + (_CONTEXT_SIZE if kind == _EXEC else 0)
    interp_at = filename_at + filename_size
    exe_at = interp_at + interp_size
    env_at = exe_at + exe_size + cwd_size + cgroup_size
    argv_at = env_at + env_size
    end = argv_at + argv_size
    if end > at + size or at + size > len(data):
        raise ValueError(f"record of {size} bytes, {len(data) - at} there, strings up to {end - at}")
    if boottime_ns > _LATEST_NS:
        raise ValueError(f"record of a time that no machine has reached: {boottime_ns} ns after boot")

    event: Any
    if kind == _EXEC:
        event = _Exec()
        event.tid = tid
        event.argv = _argv(data[argv_at:end])
        event.argv_status = _argv_status(flags) if flags else "complete"
        event.argc = argc or len(event.argv)  # 0 also where a kprobe was missed
        event.retval = 0
        event.filename = filename = _text(data[filename_at:interp_at]) if filename_size else None
        event.interp = None
        if valid & _INTERP:
            event.interp = _text(data[interp_at:exe_at]) if interp_size else filename
        event.env = event.env_status = None
        if env:
            event.env_status = _env_status(flags, valid)
            event.env = _env(data[env_at:argv_at], env) if valid & _ENV else None
    elif kind == _FAILED:
        event = _Failed()
        event.tid = tid
        event.argv = None if flags & _UNREADABLE else _argv(data[argv_at:end])
        event.argv_status = _argv_status(flags)
        event.filename = _text(data[filename_at:interp_at]) if filename_size else None
        event.retval = -status
    elif kind == _FORK:
        event = _Fork()
    elif kind == _EXIT:
        event = _Exit()
        event.signal = signal = status & 0x7F or None
        event.exit_code = status >> 8 & 0xFF if signal is None else None
        event.core_dumped = bool(status & 0x80)
        event.exec_boottime_ns = _unpack_exec_time(data, at)[0] if valid & _EXEC_TIME else None
    else:
        raise ValueError(f"record of unknown kind {kind}")

    event.time_ns = boottime_ns + clock.offset_ns
    event.boottime_ns = boottime_ns
    event.cpu = cpu
    event.pid = pid
    event.comm = _text(comm)
    event.host_pid = host_pid
    event.ppid = ppid if valid & _PPID else None
    event.parent_comm = _text(parent_comm) if valid & _PARENT_COMM else None
    event.uid = uid
    event.gid = gid
    if demand is None:
        (
            event.parent_key, event.start_boottime_ns,
            event.cgroup_id, event.cgroup_path, event.container, event.namespaces, event.process_key,
        ) = _who(data, at, clock)  # fmt: skip
        if kind == _EXEC:
            event.creds, event.session, event.exe, event.cwd = _what(data, at)
    else:
        event.rest_ = _complete, data[at:env_at], clock, demand
    event.__class__ = _CLASSES[kind]
    return event, lost, flags


def _who(data: bytes, at: int, clock: Clock) -> Tuple[Any, ...]:
    """Return the fields of _WHO."""
    (
        kind, flags, valid, pid, ppid, mnt_ns, start_boottime_ns, parent_start_boottime_ns, cgroup_id,
        filename_size, interp_size, exe_size, cwd_size, cgroup_size,
    ) = _unpack_who(data, at)  # fmt: skip
    parent_key = cgroup_path = container = namespaces = None
    if valid & _PPID and valid & _PARENT_START:
        parent_key = clock.process_key(ppid, parent_start_boottime_ns)
    if valid & _CGROUP_PATH:
        cgroup_at = at + _SIZE + (_CONTEXT_SIZE if kind == _EXEC else 0)
        cgroup_at += filename_size + interp_size + exe_size + cwd_size
        path = data[cgroup_at : cgroup_at + cgroup_size]
        cgroup_path, container = _cgroup(path, flags & _CONTAINER_FLAGS)
    if valid & _NAMESPACES and kind == _EXEC:
        namespaces = _namespaces(mnt_ns, data, at + _VPID_AT)
    elif valid & _MNT_NS:
        namespaces = _mount_ns(mnt_ns)
    return (
        parent_key,
        start_boottime_ns if valid & _START else None,
        cgroup_id if valid & _CGROUP else None,
        cgroup_path,
        container,
        namespaces,
        clock.process_key(pid, start_boottime_ns),
    )


def _what(data: bytes, at: int) -> Tuple[Any, ...]:
    """Return the fields of _WHAT, of an exec."""
    valid, filename_size, interp_size, exe_size, cwd_size = _unpack_what(data, at)
    creds = session = exe = cwd = None
    if valid & _CAPTURED:
        exe_at = at + _SIZE + _CONTEXT_SIZE + filename_size + interp_size
        paths = data[exe_at : exe_at + exe_size + cwd_size]
        creds, exe, cwd = _captured(data[at + _SIZE : at + _SESSION_AT], paths, exe_size, valid & _CAPTURED)
    if valid & _SESSION:
        session = _session(data[at + _SESSION_AT : at + _VPID_AT])
    return creds, session, exe, cwd


def _complete(event: AnyProcessEvent, data: bytes, clock: Clock, demand: Demand) -> None:
    """Decode what was left for later.

    Threads that do so at once all set the same. ``process_key`` comes last: where it is there, all is.

    Args:
        data: The record, up to its paths.
    """
    demand.count += 1
    if event.kind == "exec":
        for put, value in zip(_WHAT, _what(data, 0)):
            put(event, value)
    for put, value in zip(_WHO, _who(data, 0, clock)):
        put(event, value)
    try:  # noqa: SIM105  suppress() would take half a microsecond
        object.__delattr__(event, "rest_")
    except AttributeError:  # another was quicker
        pass


def _setters(cls: type, *names: str) -> Tuple[Callable[[Any, Any], None], ...]:
    """What sets fields of frozen values."""
    return tuple(vars(cls)[name].__set__ for name in names)


_WHO = _setters(
    ProcessEvent,
    "parent_key",
    "start_boottime_ns",
    "cgroup_id",
    "cgroup_path",
    "container",
    "namespaces",
    "process_key",
)
_WHAT = _setters(ExecEvent, "creds", "session", "exe", "cwd")


_CLASSES = (ExecEvent, FailedExecEvent, ForkEvent, ExitEvent)


def _argv_status(flags: int) -> ArgvStatus:
    return "unreadable" if flags & _UNREADABLE else "truncated" if flags & _TRUNCATED else "complete"


def _env_status(flags: int, valid: int) -> ArgvStatus:
    return "unreadable" if not valid & _ENV else "truncated" if flags & _ENV_TRUNCATED else "complete"


# The same few names, paths and rights stand on event after event: looked up, they take
# a quarter of the time of decoding them, and the events share them.


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


@lru_cache(maxsize=1024)
def _path(data: bytes) -> Optional[str]:
    """Turn a path round that stands from the leaf to the root, each name with its NUL.

    None where it is longer than any that the kernel gives out (PATH_MAX).
    """
    names = data.decode("utf-8", "surrogateescape").split("\0")[:-1]
    return "/" + "/".join(reversed(names)) if len(data) < LIMITS["PATH_SIZE_MAX"] else None


def _env(data: bytes, wanted: EnvNames) -> Tuple[Tuple[str, str], ...]:
    pairs = (entry.partition("=") for entry in _argv(data))
    return tuple((name, value) for name, _, value in pairs if wanted is True or name in wanted)  # type: ignore[operator]


@lru_cache(maxsize=1024)
def _captured(
    context: bytes, paths: bytes, exe_size: int, valid: int
) -> Tuple[Optional[Credentials], Optional[Executable], Optional[str]]:
    """What the same program has again and again where the same user runs it: looked up all at once."""
    exe = None
    if valid & _EXE:
        exe = _exe(context[_EXE_SLICE], paths[:exe_size], valid & (_EXE_PATH | _EXE_CTIME))
    return (
        _creds(context[_CREDS_SLICE]) if valid & _CREDS else None,
        exe,
        _path(paths[exe_size:]) if valid & _CWD else None,
    )


@lru_cache(maxsize=256)
def _creds(data: bytes) -> Credentials:
    (
        uid, gid, suid, sgid, euid, egid, fsuid, fsgid,
        inheritable, permitted, effective, bounding, ambient, loginuid, sessionid, owner, group, bits, mode,
    ) = struct.unpack("<8I5Q6I", data)  # fmt: skip
    secure = bits & CONTEXT_BITS["SECURE"]
    set_id = mode if bits & CONTEXT_BITS["GAINED"] and not bits & CONTEXT_BITS["NOSUID"] else 0
    # Where a bit leads back to the real id, only AT_SECURE tells that it did, if nothing else is the reason.
    led_back = secure and euid == uid and egid == gid and (uid == 0 or not permitted)
    setuid = set_id & stat.S_ISUID and (euid != uid or (led_back and euid == owner))
    setgid = set_id & stat.S_ISGID and set_id & stat.S_IXGRP and (egid != gid or (led_back and egid == group))
    if ambient or not permitted:  # a file with capabilities clears the ambient set
        file_capabilities: Optional[bool] = False
    else:
        became_root = bool(setuid) and uid != 0
        file_capabilities = _file_capabilities(
            0 in (uid, euid), became_root, bits, permitted & bounding == bounding
        )
    return Credentials(
        uid=uid, gid=gid, suid=suid, sgid=sgid, euid=euid, egid=egid, fsuid=fsuid, fsgid=fsgid,
        cap_effective=effective, cap_permitted=permitted, cap_inheritable=inheritable, cap_ambient=ambient,
        loginuid=None if loginuid == ABSENT else loginuid,
        sessionid=None if sessionid == ABSENT else sessionid,
        setuid=bool(setuid),
        setgid=bool(setgid),
        file_capabilities=file_capabilities,
        secureexec=bool(secure) if bits & CONTEXT_BITS["SECURE_KNOWN"] else None,
    )  # fmt: skip


def _file_capabilities(root: bool, became_root: bool, bits: int, all_of_them: bool) -> Optional[bool]:
    """Whether permitted capabilities come from the file, where the ambient set is empty.

    See "Transformation of capabilities during execve()" in capabilities(7): root gets
    all of the bounding set anyway, another user what the file gives.

    Args:
        root: A real or effective user id is 0.
        became_root: By the set-user-ID bit, in this exec.
        all_of_them: The whole bounding set is permitted.
    """
    if bits & CONTEXT_BITS["USER_NS"]:  # root there has another number here
        return None
    if not root or became_root or not bits & CONTEXT_BITS["GAINED"]:
        return not root or not all_of_them
    # Root that gained less than all: by the file, or because more was not allowed (no_new_privs).
    return False if all_of_them else None


@lru_cache(maxsize=256)
def _session(data: bytes) -> Session:
    sid, pgid, major, minor = struct.unpack("<4I", data)
    tty = (major, minor) if major or minor else (None, None)
    return Session(sid=sid or None, pgid=pgid or None, tty_major=tty[0], tty_minor=tty[1])


@lru_cache(maxsize=1024)
def _exe(data: bytes, path: bytes, valid: int) -> Executable:
    # Size and time are signed, as in the kernel (loff_t, time64_t).
    bits, mode, inode, size, ctime_s, ctime_ns, device = struct.unpack("<2IQ2q2I", data)
    changed = ctime_s * 1_000_000_000 + ctime_ns
    text = _path(path) if valid & _EXE_PATH else None
    memfd = bool(bits & CONTEXT_BITS["DETACHED"] and text and text.startswith("/memfd:"))
    return Executable(
        path=text,
        inode=inode,
        # As the kernel has it: 12 bits and 20 bits. makedev(3) has it otherwise.
        device=os.makedev(device >> 20, device & 0xFFFFF),
        mode=mode,
        size=size,
        # A file system of its owner's making (FUSE) may claim any time; files hold 64 bits of it.
        ctime_ns=changed if valid & _EXE_CTIME and -(2**63) <= changed < 2**63 else None,
        memfd=memfd,
        deleted=memfd or bool(bits & CONTEXT_BITS["UNHASHED"]),
    )


@lru_cache(maxsize=4096)
def _cgroup(data: bytes, flags: int) -> Tuple[Optional[str], Optional[Container]]:
    path = _path(data)
    container = containers.parse(path) if path else None
    if container and flags & (_INJECTED | _OWN):
        container = attrs.evolve(container, injected=bool(flags & _INJECTED))
    return None if flags & _CUT else path, container


@lru_cache(maxsize=256)
def _mount_ns(mnt: int) -> Namespaces:
    return Namespaces(mnt=mnt)


def _namespaces(mnt: int, data: bytes, at: int) -> Namespaces:
    value: Any = _NamespacesBuilder()
    vpid, pid, net, uts, ipc, cgroup, user, time = _unpack_namespaces(data, at)
    value.mnt = mnt or None
    value.pid = pid or None
    value.net = net or None
    value.uts = uts or None
    value.ipc = ipc or None
    value.cgroup = cgroup or None
    value.user = user or None
    value.time = time or None
    value.vpid = vpid or None
    value.__class__ = Namespaces
    return value  # type: ignore[no-any-return]
