"""Credentials, and whether a program owes them to its file, against capabilities(7) and execve(2)."""

from __future__ import annotations

import stat
from typing import Any, Dict, Optional, Tuple

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from execwatch import Credentials

from .records import constants, decoded

BITS = constants("CONTEXT")

U32, U64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
IDS = ("uid", "gid", "suid", "sgid", "euid", "egid", "fsuid", "fsgid")
SETS = ("cap_inheritable", "cap_permitted", "cap_effective", "cap_ambient")


def creds(**context: int) -> Credentials:
    found = decoded(context=context).creds
    assert isinstance(found, Credentials)
    return found


@given(st.fixed_dictionaries({**dict.fromkeys(IDS, U32), **dict.fromkeys((*SETS, "cap_bounding"), U64)}))
def test_ids_and_capabilities_are_what_the_kernel_says(context: Dict[str, int]) -> None:
    found = creds(**context)
    assert {name: getattr(found, name) for name in (*IDS, *SETS)} == {n: context[n] for n in (*IDS, *SETS)}


@given(U32 | st.just(2**32 - 1), U32 | st.just(2**32 - 1))
def test_who_logged_in_may_be_unknown(loginuid: int, sessionid: int) -> None:
    """(u32)-1 is what the kernel has where nobody did."""
    found = creds(loginuid=loginuid, sessionid=sessionid)
    assert found.loginuid == (None if loginuid == 4294967295 else loginuid)
    assert found.sessionid == (None if sessionid == 4294967295 else sessionid)


@pytest.mark.parametrize(
    ("bits", "secure"),
    [
        (0, None),
        (BITS["SECURE"], None),
        (BITS["SECURE_KNOWN"], False),
        (BITS["SECURE_KNOWN"] | BITS["SECURE"], True),
        (BITS["SECURE_KNOWN"] | BITS["GAINED"] | BITS["USER_NS"], False),
    ],
)
def test_a_kernel_may_not_tell_whether_the_environment_is_trusted(bits: int, secure: Optional[bool]) -> None:
    assert creds(bits=bits).secureexec is secure


NOBODY = {**dict.fromkeys(IDS, 33), "cap_permitted": 0, "cap_bounding": 7, "cap_ambient": 0}
GAINED = BITS["GAINED"]


@pytest.mark.parametrize(
    ("mode", "ids", "bits", "expected"),
    [
        (0o4755, {"euid": 5}, GAINED, (True, False)),
        (0o2755, {"egid": 5}, GAINED, (False, True)),
        (0o6755, {"euid": 5, "egid": 6}, GAINED, (True, True)),
        # No bit, or no group that may execute it: those ids are older than this program.
        (0o0755, {"euid": 5, "egid": 6}, GAINED, (False, False)),
        (0o6745, {"euid": 5, "egid": 6}, GAINED, (True, False)),
        # The file's owner or group are the user's own.
        (0o6755, {}, GAINED, (False, False)),
        (0o6755, {"egid": 6}, GAINED, (False, True)),
        # nosuid, no_new_privs.
        (0o6755, {"euid": 5, "egid": 6}, 0, (False, False)),
        # Saved and file-system ids are no matter.
        (0o6755, {"suid": 5, "sgid": 6, "fsuid": 7, "fsgid": 8}, GAINED, (False, False)),
    ],
)
def test_set_id_bits_count_where_they_gave_something(
    mode: int, ids: Dict[str, int], bits: int, expected: Tuple[bool, bool]
) -> None:
    found = creds(**{**NOBODY, **ids}, mode=stat.S_IFREG | mode, bits=bits)
    assert (found.setuid, found.setgid) == expected


@pytest.mark.parametrize(
    ("ids", "permitted", "bounding", "ambient", "expected"),
    [
        ({}, 0, 7, 0, False),
        ({}, 2, 7, 0, True),
        ({}, 2, 7, 2, False),
        ({"uid": 0, "euid": 0}, 7, 7, 0, False),
        ({"euid": 0}, 7, 7, 0, False),
        ({"uid": 0}, 7, 7, 0, False),
        # What it inherits comes on top of the bounding set.
        ({"uid": 0, "euid": 0}, 15, 7, 0, False),
        # Root that has no power, or (set-user-ID root) no more than its file has.
        ({"uid": 0, "euid": 0}, 2, 7, 0, True),
        ({"euid": 0}, 2, 7, 0, True),
        ({"uid": 0, "euid": 0}, 0, 7, 0, False),
        # Root with ambient capabilities is still root.
        ({"uid": 0, "euid": 0}, 7, 7, 2, False),
        ({"uid": 0, "euid": 0}, 7, 7, 7, False),
    ],
)
def test_capabilities_are_the_files_where_they_are_nobody_elses(
    ids: Dict[str, int], permitted: int, bounding: int, ambient: int, expected: bool
) -> None:
    context = {**NOBODY, **ids, "cap_permitted": permitted, "cap_bounding": bounding, "cap_ambient": ambient}
    assert creds(**context, bits=0).file_capabilities is expected
    inside = None if permitted and not ambient else False
    assert creds(**context, bits=BITS["USER_NS"]).file_capabilities is inside


# -- Against the transformation during execve() -------------------------------------------------


@attrs.frozen
class File:
    """A program's; ``caps`` are its inheritable and permitted ones, None where it has no such attribute."""

    owner: int
    group: int
    mode: int
    caps: Optional[Tuple[int, int]]


@attrs.frozen
class Caller:
    """Who executes it. ``ignored``: set-ID bits and file capabilities are (nosuid)."""

    uid: int
    gid: int
    euid: int
    egid: int
    inheritable: int
    ambient: int
    bounding: int
    noroot: bool
    ignored: bool


@attrs.frozen
class Outcome:
    context: Dict[str, int]
    setuid: bool
    setgid: bool
    file_capabilities: bool


def execute(caller: Caller, file: File, gained_anyway: bool) -> Outcome:
    """What capabilities(7) and execve(2) say; in their words where possible.

    Args:
        gained_anyway: The kernel also notes that something was gained where a process
            got capabilities back.
    """
    honoured = not caller.ignored
    setuid = honoured and bool(file.mode & stat.S_ISUID)
    setgid = honoured and file.mode & (stat.S_ISGID | stat.S_IXGRP) == stat.S_ISGID | stat.S_IXGRP
    euid = file.owner if setuid else caller.euid
    egid = file.group if setgid else caller.egid

    f_inheritable, f_permitted = file.caps if honoured and file.caps else (0, 0)
    has_capabilities = honoured and file.caps is not None
    root = 0 in (caller.uid, euid) and not caller.noroot
    if has_capabilities and caller.uid != 0 and euid == 0:
        root = False  # "Set-user-ID-root programs that have file capabilities"
    if root:
        f_inheritable = f_permitted = ~0
    privileged = has_capabilities or euid != caller.uid or egid != caller.gid
    ambient = 0 if privileged else caller.ambient
    of_file = (caller.inheritable & f_inheritable) | (f_permitted & caller.bounding)
    gained = setuid or setgid or (honoured and gained_anyway)
    return Outcome(
        context={
            "uid": caller.uid,
            "gid": caller.gid,
            "euid": euid,
            "egid": egid,
            "cap_permitted": of_file | ambient,
            "cap_bounding": caller.bounding,
            "cap_ambient": ambient,
            "mode": file.mode,
            "bits": gained * GAINED,
        },
        setuid=setuid and euid != caller.uid,
        setgid=setgid and egid != caller.gid,
        file_capabilities=bool(of_file) and not root,
    )


FEW_IDS, FEW_CAPS = st.sampled_from([0, 1, 2]), st.integers(0, 15)
FILES = st.builds(
    File,
    owner=FEW_IDS,
    group=FEW_IDS,
    mode=st.integers(0, 0o7777).map(lambda mode: stat.S_IFREG | mode),
    caps=st.none() | st.tuples(FEW_CAPS, FEW_CAPS),
)


@st.composite
def callers(draw: Any) -> Caller:
    inheritable = draw(FEW_CAPS)
    return Caller(
        *(draw(FEW_IDS) for _ in range(4)),
        inheritable=inheritable,
        ambient=inheritable & draw(FEW_CAPS),  # none is ambient that isn't inheritable
        bounding=draw(FEW_CAPS),
        noroot=draw(st.booleans()),
        ignored=draw(st.booleans()),
    )


@given(callers(), FILES, st.booleans())
def test_what_a_program_owes_to_its_file(caller: Caller, file: File, gained_anyway: bool) -> None:
    outcome = execute(caller, file, gained_anyway)
    found = creds(**outcome.context)
    assert (found.setuid, found.setgid) == (outcome.setuid, outcome.setgid)
    context = outcome.context
    # Where a file gives root without its power all that root would have, it looks like root with it.
    as_root = (
        0 in (context["uid"], context["euid"]) and not context["cap_bounding"] & ~context["cap_permitted"]
    )
    assert found.file_capabilities is (outcome.file_capabilities and not as_root)
