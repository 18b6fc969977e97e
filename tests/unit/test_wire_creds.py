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
GAINED, SECURE = BITS["GAINED"], BITS["SECURE"] | BITS["SECURE_KNOWN"]


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
        # no_new_privs; nosuid, where root got back what it had given up.
        (0o6755, {"euid": 5, "egid": 6}, 0, (False, False)),
        (0o6755, {"euid": 5, "egid": 6}, GAINED | BITS["NOSUID"], (False, False)),
        # Back to the real ids from others: then the environment isn't trusted for no other reason.
        (0o4755, {"owner": 33}, GAINED | SECURE, (True, False)),
        (0o2755, {"group": 33}, GAINED | SECURE, (False, True)),
        (0o6755, {"owner": 33, "group": 5}, GAINED | SECURE, (True, False)),
        (
            0o6755,
            {**dict.fromkeys(("uid", "euid", "owner"), 0), "cap_permitted": 7},
            GAINED | SECURE,
            (True, False),
        ),
        (0o6755, {"owner": 5, "group": 5}, GAINED | SECURE, (False, False)),
        (0o6755, {"owner": 33, "group": 33}, GAINED, (False, False)),
        # The other bit is the reason, or the file's capabilities are.
        (0o6755, {"owner": 33, "egid": 6, "group": 6}, GAINED | SECURE, (False, True)),
        (0o6755, {"euid": 5, "owner": 5, "group": 33}, GAINED | SECURE, (True, False)),
        (0o6755, {"owner": 33, "group": 33, "cap_permitted": 2}, GAINED | SECURE, (False, False)),
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


@pytest.mark.parametrize(
    ("ids", "permitted", "mode", "expected"),
    [
        ({}, 2, 0o755, True),
        # Root that gained, and not all: by its file, or by being root, and was not allowed more.
        ({"uid": 0, "euid": 0}, 2, 0o755, None),
        ({"euid": 0}, 2, 0o755, None),
        ({"uid": 0, "euid": 0}, 7, 0o755, False),
        # Set-user-ID root: nobody forbade it anything.
        ({"euid": 0}, 2, 0o4755, True),
        ({"euid": 0}, 7, 0o4755, False),
        ({"uid": 0, "euid": 5}, 2, 0o4755, None),
    ],
)
def test_of_root_that_gained_something_it_is_not_always_known_from_what(
    ids: Dict[str, int], permitted: int, mode: int, expected: Optional[bool]
) -> None:
    context = {**NOBODY, **ids, "cap_permitted": permitted, "mode": stat.S_IFREG | mode}
    assert creds(**context, bits=GAINED).file_capabilities is expected


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
    """Who executes it, where, and on which kernel.

    Args:
        noroot: The securebit of that name is set.
        before: Before Linux 6.16, where AT_SECURE was also set of a program that changed no id, and
            not where one led back to the real id.
    """

    uid: int
    gid: int
    euid: int
    egid: int
    inheritable: int
    ambient: int
    permitted: int
    bounding: int
    noroot: bool
    nosuid: bool
    no_new_privs: bool
    before: bool


@attrs.frozen
class Outcome:
    """What comes of it, as in a record; and what of the file took effect."""

    context: Dict[str, int]
    setuid: bool
    setgid: bool
    file_capabilities: bool


def execute(caller: Caller, file: File) -> Outcome:
    """What capabilities(7) and execve(2) say; where these don't, security/commoncap.c."""
    set_id = not (caller.nosuid or caller.no_new_privs)
    setuid = set_id and bool(file.mode & stat.S_ISUID)
    setgid = set_id and file.mode & (stat.S_ISGID | stat.S_IXGRP) == stat.S_ISGID | stat.S_IXGRP
    euid = file.owner if setuid else caller.euid
    egid = file.group if setgid else caller.egid

    caps = None if caller.nosuid else file.caps
    root = 0 in (caller.uid, euid) and not caller.noroot
    if caps is not None and caller.uid != 0 and euid == 0:
        root = False  # "Set-user-ID-root programs that have file capabilities"
    inheritable, permitted = (~0, ~0) if root else caps or (0, 0)
    of_file = (caller.inheritable & inheritable) | (permitted & caller.bounding)
    gained = of_file & ~caller.permitted

    real_or_effective = (caller.uid, caller.gid) if caller.before else (caller.euid, caller.egid)
    changed = (euid, egid) != real_or_effective
    per_clear = setuid or setgid or bool(gained)
    if caller.no_new_privs and (changed or gained):
        euid, egid, of_file = caller.uid, caller.gid, of_file & caller.permitted
    ambient = 0 if changed or caps is not None else caller.ambient
    secure = changed or (caller.uid != 0 and bool(of_file & ~ambient or (root and euid == 0)))
    secure |= not caller.before and (euid, egid) != (caller.uid, caller.gid)
    return Outcome(
        context={
            "uid": caller.uid,
            "gid": caller.gid,
            "euid": euid,
            "egid": egid,
            "cap_permitted": of_file | ambient,
            "cap_bounding": caller.bounding,
            "cap_ambient": ambient,
            "owner": file.owner if file.mode & (stat.S_ISUID | stat.S_ISGID) else 0,
            "group": file.group if file.mode & (stat.S_ISUID | stat.S_ISGID) else 0,
            "mode": file.mode,
            "bits": BITS["SECURE_KNOWN"]
            | per_clear * GAINED
            | secure * BITS["SECURE"]
            | caller.nosuid * BITS["NOSUID"],
        },
        setuid=setuid,
        setgid=setgid,
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
    inheritable, permitted = draw(FEW_CAPS), draw(FEW_CAPS)
    uid, gid = draw(FEW_IDS), draw(FEW_IDS)
    return Caller(
        uid=uid,
        gid=gid,
        euid=draw(st.just(uid) | FEW_IDS),
        egid=draw(st.just(gid) | FEW_IDS),
        inheritable=inheritable,
        permitted=permitted,
        ambient=inheritable & permitted & draw(FEW_CAPS),  # none is ambient that isn't both
        bounding=draw(FEW_CAPS),
        noroot=draw(st.booleans()),
        nosuid=draw(st.booleans()),
        no_new_privs=draw(st.booleans()),
        before=draw(st.booleans()),
    )


def falls_back(caller: Caller) -> bool:
    """Whether its programs get its real ids for its effective ones: that looks as if the file did it."""
    return caller.no_new_privs and (caller.euid, caller.egid) != (caller.uid, caller.gid)


@given(callers(), FILES)
def test_what_a_program_owes_to_set_id_bits(caller: Caller, file: File) -> None:
    outcome = execute(caller, file)
    found = creds(**outcome.context)
    differs = (found.euid != found.uid, found.egid != found.gid)
    if (caller.euid, caller.egid) == (caller.uid, caller.gid):
        assert (found.setuid, found.setgid) == (outcome.setuid and differs[0], outcome.setgid and differs[1])
    # Who had other ids before may have come back to the real ones, which cannot always be seen.
    if differs[0]:
        assert found.setuid == outcome.setuid
    if differs[1]:
        assert found.setgid == outcome.setgid
    if not falls_back(caller):
        assert outcome.setuid or not found.setuid
        assert outcome.setgid or not found.setgid


@given(callers(), FILES)
def test_what_a_program_owes_to_file_capabilities(caller: Caller, file: File) -> None:
    outcome = execute(caller, file)
    found = creds(**outcome.context)
    like_root = 0 in (found.uid, found.euid)
    lacks = bool(outcome.context["cap_bounding"] & ~found.cap_permitted)
    if falls_back(caller):
        pass  # and keeps capabilities: they look like a file's
    elif found.file_capabilities is None:
        assert like_root
        assert lacks
        assert outcome.context["bits"] & GAINED
    elif like_root and not lacks:  # it has what root has, and then nobody knows from where
        assert found.file_capabilities is False
    else:
        assert found.file_capabilities is outcome.file_capabilities
    outcome.context["bits"] |= BITS["USER_NS"]
    unknown = None if found.cap_permitted and not found.cap_ambient else False
    assert creds(**outcome.context).file_capabilities is unknown
