"""Offsets of a kernel, from types made here."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence, Tuple

import pytest

from execwatch import wire
from execwatch.errors import NotSupportedError
from execwatch.kernel import btf, offsets

from .test_btf import INT, Blob

#: (member, offset in bytes)
Members = Sequence[Tuple[str, int]]


def kernel(structs: Dict[str, Members], *, bits: Optional[Dict[str, int]] = None, **enums: Any) -> btf.Btf:
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
    return blob.read()


def needed(*left_out: str) -> Dict[str, List[Tuple[str, int]]]:
    """The structures with those members that no event can do without, each at an offset of its own."""
    found: Dict[str, List[Tuple[str, int]]] = {}
    for number, name in enumerate(offsets._NEEDED):
        structure, path = wire.OFFSETS[name]
        if name not in left_out:
            found.setdefault(structure, []).append((path, 8 * number))
    return found


def found_in(structs: Dict[str, Members], **further: Any) -> Dict[str, int]:
    """The offsets that are not absent, but for those of :func:`needed`."""
    kernel_structs: Dict[str, Members] = {**needed(), **structs}
    found = offsets._from_btf(kernel(kernel_structs, **further))
    always = {f"offset_{name}" for name in offsets._NEEDED}
    return {name: value for name, value in found.items() if value != wire.ABSENT and name not in always}


NOTHING = {"exit_has_group_dead": 0}


def test_offsets_are_absent_where_the_kernel_lacks_them() -> None:
    found = offsets._from_btf(kernel(needed()))
    assert set(found) == {
        *(f"offset_{name}" for name in (*wire.OFFSETS, *wire.SIGNAL_PIDS)),
        *("bit_bprm_secureexec", "cgroup_index_memory", "cgroup_index_pids", "exit_has_group_dead"),
    }
    present = {name: offset for name, offset in found.items() if offset != wire.ABSENT}
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


# -- Members that are read in one go ----------------------------------------------------------

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
    members = [member for _, names in wire.RUNS.values() for member in names]
    assert members == [name for name, _ in CRED]
    assert {wire.OFFSETS[name][0] for name in wire.RUNS} == {"cred"}


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
