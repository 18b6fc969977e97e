"""Offsets of a kernel, from types made here."""

from __future__ import annotations

import pathlib
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from execwatch import wire
from execwatch.errors import NotSupportedError
from execwatch.kernel import btf, filtering, offsets, setup

from .test_btf import INT, TYPEDEF, Blob

#: (member, offset in bytes)
Members = Sequence[Tuple[str, int]]


def kernel(
    structs: Mapping[str, Members],
    *,
    bits: Optional[Dict[str, int]] = None,
    typedefs: Sequence[str] = (),
    **enums: Any,
) -> btf.Btf:
    """Types of a kernel. Structures within others are written as they are named: "ns.inum"."""
    blob = Blob()
    integer = blob.add(INT, "int", 4, [32])
    for name, members in structs.items():
        here = [(member, integer, 8 * at) for member, at in members if "." not in member]
        inner: Dict[str, List[Tuple[str, int]]] = {}
        for member, at in members:
            outer, _, rest = member.partition(".")
            if rest:
                inner.setdefault(outer, []).append((rest, at))
        # Each begins with its first member.
        for outer, parts in inner.items():
            first = parts[0][1]
            kind = blob.struct("", *((part, integer, 8 * (at - first)) for part, at in parts))
            here.append((outer, kind, 8 * first))
        blob.struct(name, *here)
    if bits:
        blob.struct(
            "linux_binprm",
            ("argc", integer, 64),
            *((name, integer, 1 << 24 | at) for name, at in bits.items()),
            bit_fields=True,
        )
    for name, values in enums.items():
        blob.enum(name, **values)
    for name in typedefs:
        blob.add(TYPEDEF, name, integer)
    return blob.read()


def needed(*left_out: str) -> Dict[str, List[Tuple[str, int]]]:
    """The structures with those members that no event can do without, each at an offset of its own."""
    found: Dict[str, List[Tuple[str, int]]] = {}
    for number, name in enumerate(offsets._NEEDED):
        structure, path = wire.OFFSETS[name]
        if name not in left_out:
            found.setdefault(structure, []).append((path, 8 * number))
    return found


def found_in(structs: Mapping[str, Members], **further: Any) -> Dict[str, int]:
    """The offsets that are not absent, but for those of :func:`needed`; blocks have tests of their own."""
    found = all_found_in(structs, **further)
    left_out = {*(f"offset_{name}" for name in offsets._NEEDED), *OF_BLOCKS}
    return {name: value for name, value in found.items() if value != wire.ABSENT and name not in left_out}


def all_found_in(structs: Mapping[str, Members], **further: Any) -> Dict[str, int]:
    return offsets._from_btf(kernel({**needed(), **structs}, **further))


NOTHING = {"exit_has_group_dead": 0}
#: What no program is told.
OF_THE_LOADER = {
    *("cgroup_index_memory", "cgroup_index_pids", "exit_has_group_dead"),
    *("type_sched_process_exec", "type_sched_process_fork", "type_sched_process_exit"),
}
#: What blocks add to the offsets.
OF_BLOCKS = {
    *(f"{what}_{block}" for block in wire.BLOCKS for what in ("first", "size")),
    *(f"at_{member}" for members in wire.BLOCKS.values() for member in members),
}


def test_offsets_are_absent_where_the_kernel_lacks_them() -> None:
    found = offsets._from_btf(kernel(needed()))
    assert set(found) == {
        *(f"offset_{name}" for name in (*wire.OFFSETS, *wire.SIGNAL_PIDS)),
        *OF_BLOCKS,
        "bit_bprm_secureexec",
        *OF_THE_LOADER,
    }
    present = {
        name: offset for name, offset in found.items() if offset != wire.ABSENT and name not in OF_BLOCKS
    }
    expected = {f"offset_{name}": 8 * number for number, name in enumerate(offsets._NEEDED)}
    assert present == {**expected, **NOTHING}


@pytest.mark.parametrize("absent", offsets._NEEDED)
def test_a_kernel_without_a_member_that_is_needed_is_not_supported(absent: str) -> None:
    structure, path = wire.OFFSETS[absent]
    with pytest.raises(NotSupportedError, match=f"member {path} in struct {structure}"):
        offsets._from_btf(kernel(needed(absent)))


def test_every_name_leads_somewhere() -> None:
    """One member at a time, by each of the names that kernels have given it."""
    tried = 0
    for name, (structure, paths) in wire.OFFSETS.items():
        if name in offsets._NEEDED or name in wire.RUNS:
            continue
        for path in paths.split("|"):
            members = [*needed().get(structure, ()), (path, 4000)]
            assert found_in({structure: members}) == {f"offset_{name}": 4000, **NOTHING}, path
            tried += 1
    assert tried > len(wire.OFFSETS) - len(wire.RUNS) - len(offsets._NEEDED), "some have several names"


@pytest.mark.parametrize(
    ("members", "seconds", "nanoseconds"),
    [
        ([("i_ctime.tv_sec", 96), ("i_ctime.tv_nsec", 104)], 96, 104),  # before Linux 6.6
        ([("__i_ctime.tv_sec", 88), ("__i_ctime.tv_nsec", 96)], 88, 96),  # before Linux 6.11
        ([("i_ctime_sec", 80), ("i_ctime_nsec", 92)], 80, 92),
        # Were there two of a name's forms, the one that is asked for first counts.
        ([("i_ctime.tv_sec", 8), ("i_ctime.tv_nsec", 16), ("i_ctime_sec", 80), ("i_ctime_nsec", 92)], 8, 16),
        ([("i_ctime", 8)], None, None),  # of another kind
        ([("i_mtime_sec", 8)], None, None),
    ],
)
def test_members_have_had_several_names(
    members: Members, seconds: Optional[int], nanoseconds: Optional[int]
) -> None:
    found = found_in({"inode": members})
    assert found.get("offset_inode_ctime_s") == seconds
    assert found.get("offset_inode_ctime_ns") == nanoseconds


@pytest.mark.parametrize("name", ["parent", "__parent"])
def test_a_parent_that_is_protected_has_another_name(name: str) -> None:
    assert found_in({"kernfs_node": [(name, 16)]}) == {"offset_kernfs_node_parent": 16, **NOTHING}


# -- Members in a row ----------------------------------------------------------

OF_IDS = ("uid", "gid", "suid", "sgid", "euid", "egid", "fsuid", "fsgid")
OF_CAPS = ("cap_inheritable", "cap_permitted", "cap_effective", "cap_bset", "cap_ambient")
CRED = [
    *((name, 8 + 4 * number) for number, name in enumerate(OF_IDS)),
    *((name, 48 + 8 * number) for number, name in enumerate(OF_CAPS)),
]
IDS, CAPS = {"offset_cred_uid": 8}, {"offset_cred_caps": 48}


def test_members_in_a_row_are_found_by_the_first() -> None:
    assert found_in({"cred": CRED}) == {**IDS, **CAPS, **NOTHING}
    assert found_in({"cred": CRED[::-1]}) == {**IDS, **CAPS, **NOTHING}


@pytest.mark.parametrize("number", range(len(CRED)))
@pytest.mark.parametrize("how", ["absent", "elsewhere", "exchanged"])
def test_members_that_are_not_in_a_row_are_absent(number: int, how: str) -> None:
    """CONFIG_RANDSTRUCT puts them in any order."""
    members = list(CRED)
    name, at = members.pop(number)
    if how == "elsewhere":
        members.append((name, at + 1000))
    elif how == "exchanged":
        within = range(8) if number < 8 else range(8, len(CRED))
        other = within[(within.index(number) + 1) % len(within)]
        members = list(CRED)
        members[number], members[other] = (name, CRED[other][1]), (CRED[other][0], at)
    found = found_in({"cred": members})
    assert found == {**(CAPS if number < 8 else IDS), **NOTHING}


def test_every_run_is_tested_above() -> None:
    tested = {("cred", OF_IDS): 4, ("cred", OF_CAPS): 8}
    assert {(wire.OFFSETS[name][0], run[1]): run[0] for name, run in wire.RUNS.items()} == tested
    assert [wire.OFFSETS[name][1] for name in wire.RUNS] == [members[0] for _, members in wire.RUNS.values()]


# -- Members that are read in one go ----------------------------------------------------------

BLOCK_MAX = wire.LIMITS["BLOCK_SIZE_MAX"]


def block_of(name: str, places: Mapping[str, int]) -> Tuple[int, int, Dict[str, int]]:
    """A block's first byte, its size, and where its members are that are in it; others are absent."""
    given_offsets = {f"offset_{m}": places.get(m, wire.ABSENT) for m in wire.BLOCKS[name]}
    before = dict(given_offsets)
    found = offsets._block(name, given_offsets)
    assert given_offsets == before
    assert set(found) == {f"first_{name}", f"size_{name}", *(f"at_{m}" for m in wire.BLOCKS[name])}
    at = {m: found[f"at_{m}"] for m in wire.BLOCKS[name] if found[f"at_{m}"] != wire.ABSENT}
    return found[f"first_{name}"], found[f"size_{name}"], at


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ({"dentry_d_parent": 24, "dentry_name": 40}, (24, 24, {"dentry_d_parent": 0, "dentry_name": 16})),
        (
            {"dentry_name": 200, "dentry_d_parent": 400},
            (200, 208, {"dentry_name": 0, "dentry_d_parent": 200}),
        ),
        ({"dentry_d_parent": 24}, (0, 0, {})),
        ({}, (0, 0, {})),
        # To the last byte that fits, and one more.
        (
            {"dentry_d_parent": 8, "dentry_name": BLOCK_MAX},
            (8, BLOCK_MAX, {"dentry_d_parent": 0, "dentry_name": BLOCK_MAX - 8}),
        ),
        ({"dentry_d_parent": 8, "dentry_name": BLOCK_MAX + 8}, (0, 0, {})),
    ],
    ids=["in a row", "another order", "one missing", "none", "just fits", "too far"],
)
def test_a_block_spans_its_members(places: Dict[str, int], expected: Tuple[int, int, Dict[str, int]]) -> None:
    assert block_of("dentry", places) == expected


@st.composite
def placed(draw: st.DrawFn) -> Tuple[str, Dict[str, int]]:
    """A block, and where a kernel has its members, as far as it has them: often just so far apart."""
    name = draw(st.sampled_from(sorted(wire.BLOCKS)))
    start = draw(st.integers(0, 1000))
    members = draw(st.sets(st.sampled_from(wire.BLOCKS[name])))
    return name, {member: 8 * (start + draw(st.integers(0, BLOCK_MAX // 8))) for member in sorted(members)}


@given(placed())
@example(("mount", {"mount_mnt_parent": BLOCK_MAX - 8, "mount_mnt_mountpoint": 0}))
@example(("mount", {"mount_mnt_parent": BLOCK_MAX, "mount_mnt_mountpoint": 0}))
@example(("mount", {"mount_mnt_parent": 0}))
def test_a_block_holds_all_its_members_and_not_a_byte_more(block: Tuple[str, Dict[str, int]]) -> None:
    name, places = block
    first, size, at = block_of(name, places)
    taken = {byte for offset in places.values() for byte in range(offset, offset + 8)}
    if set(places) != set(wire.BLOCKS[name]) or max(taken) + 1 - min(taken) > BLOCK_MAX:
        assert (first, size, at) == (0, 0, {})
        return
    assert {member: first + offset for member, offset in at.items()} == places
    # Behind a structure may be no memory: what is read begins and ends with a member.
    assert (first, first + size) == (min(taken), max(taken) + 1)


def test_members_too_far_apart_keep_their_offsets() -> None:
    found = all_found_in({"dentry": [("d_parent", 24), ("d_name.name", 40)]})
    apart = all_found_in({"dentry": [("d_parent", 24), ("d_name.name", 1000)]})
    assert (found["first_dentry"], found["size_dentry"]) == (24, 24)
    assert (apart["first_dentry"], apart["size_dentry"]) == (0, 0)
    for member in wire.BLOCKS["dentry"]:
        assert found["first_dentry"] + found[f"at_{member}"] == found[f"offset_{member}"]
        assert apart[f"at_{member}"] == wire.ABSENT
    assert (apart["offset_dentry_d_parent"], apart["offset_dentry_name"]) == (24, 1000)


def test_another_table_of_blocks_is_another_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    """What is remembered of a kernel has the meaning that these tables give it."""
    monkeypatch.setattr(offsets, "kernel_build_id", lambda: "abc")
    monkeypatch.setattr(btf, "load", lambda: kernel(needed()))
    folder = tmp_path / "cache"
    offsets.load(str(folder))
    assert len(list(folder.iterdir())) == 1
    monkeypatch.setattr(wire, "BLOCKS", {**wire.BLOCKS, "mount": wire.BLOCKS["mount"][::-1]})
    changed = offsets.load(str(folder))
    assert len(list(folder.iterdir())) == 2
    assert changed == offsets.load(str(folder)) == offsets._from_btf(kernel(needed()))


def test_another_order_of_places_is_another_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    """Numbers alone are remembered: in another order they would be those of other members."""
    monkeypatch.setattr(offsets, "kernel_build_id", lambda: "abc")
    monkeypatch.setattr(btf, "load", lambda: kernel(needed()))
    told = offsets.load(str(tmp_path))
    monkeypatch.setattr(wire, "PLACES", wire.PLACES[::-1])
    assert offsets.load(str(tmp_path)) == told


# -- Types of what tracepoints give ------------------------------------------------------------

TYPEDEFS = ("btf_trace_sched_process_exec", "btf_trace_sched_process_fork", "btf_trace_sched_process_exit")
HELPERS = {"BPF_FUNC_unspec": 0, "BPF_FUNC_kallsyms_lookup_name": 179}


def types_of(*typedefs: str, **enums: Any) -> Dict[str, int]:
    found = offsets._from_btf(kernel(needed(), typedefs=typedefs, **enums))
    return {name: found[f"type_{name}"] for name in offsets.TRACEPOINTS}


def test_the_types_of_tracepoints_are_known_by_their_numbers() -> None:
    last = len(offsets.TRACEPOINTS) + types_of(TYPEDEFS[0], bpf_func_id=HELPERS)["sched_process_exec"]
    assert types_of("other", *TYPEDEFS, bpf_func_id=HELPERS) == {
        "sched_process_exec": last - 2,
        "sched_process_fork": last - 1,
        "sched_process_exit": last,
    }
    assert types_of(TYPEDEFS[1], bpf_func_id=HELPERS)["sched_process_exec"] == wire.ABSENT


@pytest.mark.parametrize(
    "enums",
    [{}, {"bpf_func_id": {"BPF_FUNC_check_mtu": 163}}, {"other": HELPERS}],
    ids=["none", "5.15", "other"],
)
def test_kernels_where_a_bad_pointer_might_do_harm_are_not_asked_for_types(enums: Dict[str, Any]) -> None:
    assert set(types_of(*TYPEDEFS, **enums).values()) == {wire.ABSENT}


# -- What of it programs are told --------------------------------------------------------------


@pytest.mark.parametrize("buffer", ["ring", "perf"])
@pytest.mark.parametrize("asked", [False, True])
def test_the_configuration_is_whole_and_nothing_of_it_is_dropped(
    monkeypatch: pytest.MonkeyPatch, buffer: str, asked: bool
) -> None:
    found = all_found_in({"pt_regs": [("orig_ax", 120)]})
    monkeypatch.setattr(offsets, "load", lambda: found)
    options = setup.Options(
        probe="tracepoint",
        buffer_size=1 << 20,
        argv_size=4096,
        buffer=buffer,
        failed=asked,
        forks=asked,
        exits=asked,
        capture=frozenset(wire.CAPTURE if asked else ()),
        env=asked,
    )
    config = setup.plan(options, filtering.compile_filter(None), setup.read_clock()).config
    assert set(config) == {name for _, name in wire.CONFIG}
    assert wire.unpack(wire.CONFIG, wire.pack(wire.CONFIG, config)) == config
    told = {name: value for name, value in found.items() if name in config}
    assert told == {name: config[name] for name in told}
    assert set(found) - set(told) == OF_THE_LOADER


@pytest.mark.parametrize(
    ("absent", "typed", "expected"),
    [
        (None, True, {"sched_process_exec": 11, "sched_process_fork": 12, "sched_process_exit": 13}),
        ("type_sched_process_exec", True, {}),
        ("type_sched_process_exit", True, {}),
        (None, False, {}),
    ],
)
def test_programs_are_told_all_types_or_none(
    monkeypatch: pytest.MonkeyPatch, absent: Optional[str], typed: bool, expected: Dict[str, int]
) -> None:
    found = {**all_found_in({}), "type_sched_process_exec": 11}
    found.update({"type_sched_process_fork": 12, "type_sched_process_exit": 13})
    if absent:
        found[absent] = wire.ABSENT
    monkeypatch.setattr(offsets, "load", lambda: found)
    options = setup.Options(probe="tracepoint", buffer_size=1 << 20, argv_size=4096)
    plan = setup.plan(options, filtering.compile_filter(None), setup.read_clock(), typed=typed)
    assert plan.types == expected
    assert plan.config["typed"] == bool(expected)


# -- Elements of an array, and a bit ----------------------------------------------------------


def test_pids_of_a_session_are_elements_of_an_array() -> None:
    pid_type = {"PIDTYPE_PID": 0, "PIDTYPE_TGID": 1, "PIDTYPE_PGID": 2, "PIDTYPE_SID": 3}
    found = found_in({"signal_struct": [("pids", 400)]}, pid_type=pid_type)
    assert found == {"offset_signal_pgid": 416, "offset_signal_sid": 424, **NOTHING}
    found = found_in({"signal_struct": [("pids", 400)]}, pid_type={"PIDTYPE_SID": 0})
    assert found == {"offset_signal_sid": 400, **NOTHING}
    assert found_in({"signal_struct": [("pids", 400)]}) == NOTHING
    assert found_in({"signal_struct": [("pid", 400)]}, pid_type=pid_type) == NOTHING


def test_a_bit_is_told_by_its_place() -> None:
    structs = {name: members for name, members in needed().items() if name != "linux_binprm"}
    for at in (0, 7, 8, 642):
        found = offsets._from_btf(kernel(structs, bits={"have_execfd": 900, "secureexec": at}))
        assert (found["bit_bprm_secureexec"], found["offset_bprm_argc"]) == (at, 8)
    found = offsets._from_btf(kernel(structs, bits={"have_execfd": 900}))
    assert found["bit_bprm_secureexec"] == wire.ABSENT


def test_places_of_cgroup_hierarchies_are_enumerators() -> None:
    found = found_in({}, cgroup_subsys_id={"cpu_cgrp_id": 1, "memory_cgrp_id": 4})
    assert found == {"cgroup_index_memory": 4, **NOTHING}
