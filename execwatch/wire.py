"""What the kernel half and the Python half share, written once.

The tables here make the C header (``build/record.h``, kept in step by a test)
and :mod:`execwatch.decoder`. All numbers are little-endian, members are naturally
aligned, so C and :mod:`struct` agree. No I/O.
"""

from __future__ import annotations

import struct
from typing import Any, Callable, FrozenSet, Mapping, Tuple, Union

import attrs

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
    "task_sessionid": ("task_struct", "sessionid"),
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


def unpacker(layout: Layout, *names: str) -> Callable[[bytes, int], Tuple[Any, ...]]:
    """Return what unpacks these members of a structure, in its order, and passes over the others."""
    codes = (_CODES[kind] if name in names else f"{struct.calcsize(_CODES[kind])}x" for kind, name in layout)
    return struct.Struct("<" + "".join(codes)).unpack_from


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
