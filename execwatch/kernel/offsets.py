"""Offsets of this kernel, from its BTF, remembered by the kernel's build id."""

from __future__ import annotations

import struct
from typing import Dict, Mapping, Optional, Sequence

from execwatch import wire
from execwatch.errors import NotSupportedError
from execwatch.kernel import btf, cache

_NOTES = "/sys/kernel/notes"
_NT_GNU_BUILD_ID = 3

#: Without these there is no event; without another, its field is None.
_NEEDED = ("task_tgid", "task_start_boottime", "task_mm", "mm_arg_start", "mm_arg_end", "bprm_argc")

#: Of cgroup v1; their numbers depend on the kernel's configuration.
_SUBSYSTEMS = ("memory", "pids")

_POINTER_SIZE = 8

#: Those whose arguments have types that the verifier knows. Programs are told them only by kernels where a
#: load through a bad pointer is known to read 0: on x86_64, Linux 5.12 to 5.15.10 (commits 4c5de127598e to
#: 588a25e92458) could fault for good on NULL and a member's offset. Since 5.16 there is this helper.
_SAFE_SINCE = "BPF_FUNC_kallsyms_lookup_name"
TRACEPOINTS = ("sched_process_exec", "sched_process_fork", "sched_process_exit")


def load(cache_directory: Optional[str] = None) -> Dict[str, int]:
    """Return what this kernel's BTF tells, by name.

    All of ``wire.PLACES``, an offset ABSENT where this kernel lacks the member;
    ``cgroup_index_memory`` and ``cgroup_index_pids``: places of cgroup v1 hierarchies in
    css_set.subsys; ``exit_has_group_dead``: 1 where the tracepoint sched_process_exit has that
    argument; ``type_*`` for each of ``TRACEPOINTS``: the number of its type.

    Raises:
        NotSupportedError: No BTF, or a member is missing that no event can do without.
    """
    build_id = kernel_build_id()
    name = f"offsets-{build_id}" if build_id else None
    names = [
        *wire.PLACES,
        *(f"cgroup_index_{subsystem}" for subsystem in _SUBSYSTEMS),
        "exit_has_group_dead",
        *(f"type_{tracepoint}" for tracepoint in TRACEPOINTS),
    ]
    record = struct.Struct(f"<{len(names)}I")
    # Names, their order and paths shape the meaning of the numbers: another set is another file.
    if name:
        name += f"-{_fingerprint(names)}"
        known = cache.read(name, directory=cache_directory)
        if known is not None and len(known) == record.size:
            return dict(zip(names, record.unpack(known)))

    offsets = _from_btf(btf.load())
    if name:
        cache.write(name, record.pack(*(offsets[n] for n in names)), directory=cache_directory)
    return offsets


def _from_btf(types: btf.Btf) -> Dict[str, int]:
    offsets = {
        f"offset_{name}": _or_absent(_offset(types, structure, paths))
        for name, (structure, paths) in wire.OFFSETS.items()
    }
    for name in _NEEDED:
        if offsets[f"offset_{name}"] == wire.ABSENT:
            structure, path = wire.OFFSETS[name]
            raise NotSupportedError(f"member {path} in struct {structure}", "5.8")
    for name, (size, members) in wire.RUNS.items():
        structure = wire.OFFSETS[name][0]
        places = [types.offset(structure, member) for member in members]
        first = offsets[f"offset_{name}"]
        if places != [first + size * i for i in range(len(members))]:
            offsets[f"offset_{name}"] = wire.ABSENT
    for name in wire.BLOCKS:
        offsets.update(_block(name, offsets))
    pids = types.offset("signal_struct", "pids")
    for name, kind in wire.SIGNAL_PIDS.items():
        index = types.enumerator("pid_type", kind)
        known = pids is not None and index is not None
        offsets[f"offset_{name}"] = pids + 8 * index if known else wire.ABSENT  # type: ignore[operator]
    offsets["bit_bprm_secureexec"] = _or_absent(types.bit_field("linux_binprm", "secureexec"))
    for subsystem in _SUBSYSTEMS:
        value = types.enumerator("cgroup_subsys_id", f"{subsystem}_cgrp_id")
        offsets[f"cgroup_index_{subsystem}"] = _or_absent(value)
    # The first parameter is the probe's own data, the second the task.
    offsets["exit_has_group_dead"] = int(types.parameters("btf_trace_sched_process_exit") == 3)
    safe = types.enumerator("bpf_func_id", _SAFE_SINCE) is not None
    for tracepoint in TRACEPOINTS:
        number = types.typedef(f"btf_trace_{tracepoint}") if safe else None
        offsets[f"type_{tracepoint}"] = _or_absent(number)
    return offsets


def _offset(types: btf.Btf, structure: str, paths: str) -> Optional[int]:
    """The first of the paths that this kernel has."""
    found = (types.offset(structure, path) for path in paths.split("|"))
    return next((offset for offset in found if offset is not None), None)


def _block(name: str, offsets: Mapping[str, int]) -> Dict[str, int]:
    """Return where a block begins, its bytes, and where in it each member is.

    Where one of its members is absent, or they are too far apart, it has no bytes, and they are
    nowhere in it.
    """
    places = {member: offsets[f"offset_{member}"] for member in wire.BLOCKS[name]}
    first = min(places.values())
    size = max(places.values()) + _POINTER_SIZE - first
    if size > wire.LIMITS["BLOCK_SIZE_MAX"] or wire.ABSENT in places.values():
        first = size = 0
        at = dict.fromkeys(places, wire.ABSENT)
    else:
        at = {member: place - first for member, place in places.items()}
    return {
        f"first_{name}": first,
        f"size_{name}": size,
        **{f"at_{member}": place for member, place in at.items()},
    }


def _or_absent(value: Optional[int]) -> int:
    return wire.ABSENT if value is None else value


def _fingerprint(names: Sequence[str]) -> str:
    import zlib

    tables = (*names, *wire.OFFSETS.items(), *wire.RUNS.items(), *wire.BLOCKS.items(), 6)
    return f"{zlib.crc32(repr(tables).encode()):08x}"


def kernel_build_id() -> Optional[str]:
    """Return the GNU build id of the running kernel, hexadecimal; None where it tells none."""
    try:
        with open(_NOTES, "rb") as file:
            notes = file.read()
    except OSError:
        return None
    at = 0
    while at + 12 <= len(notes):
        name_size, size, kind = struct.unpack_from("<III", notes, at)
        name_at = at + 12
        data_at = name_at + -(-name_size // 4) * 4
        if kind == _NT_GNU_BUILD_ID and notes[name_at : name_at + name_size] == b"GNU\0":
            return notes[data_at : data_at + size].hex()
        at = data_at + -(-size // 4) * 4
    return None
