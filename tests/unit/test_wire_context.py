"""What an exec captures, from the bytes that the kernel half writes of it."""

from __future__ import annotations

import os
import stat
from typing import Any, Dict, List, Optional, Tuple

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from execwatch import Namespaces, wire

from .records import CONTAINER_ID, constants, decoded, leaf_first, text, true_bytes, without

BITS, FLAGS = constants("CONTEXT"), constants("FLAG")
DETACHED, UNHASHED = BITS["DETACHED"], BITS["UNHASHED"]

U32, U64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)

#: Names as a file system has them: bytes without a slash.
NAMES = st.binary(min_size=1, max_size=12).filter(lambda name: not set(name) & set(b"\0/"))
PATHS = st.lists(NAMES, max_size=8).map(lambda names: b"/" + b"/".join(names))


# -- Paths ------------------------------------------------------------------------------------


@given(PATHS, PATHS, PATHS)
def test_paths_keep_every_byte(exe: bytes, cwd: bytes, cgroup: bytes) -> None:
    event = decoded(exe=leaf_first(exe), cwd=leaf_first(cwd), cgroup=leaf_first(cgroup))
    found = [true_bytes(path) for path in (event.exe.path, event.cwd, event.cgroup_path)]
    assert found == [exe, cwd, cgroup]


@given(PATHS, st.sampled_from(["FAILED", "FORK", "EXIT"]))
def test_other_kinds_have_the_path_of_their_cgroup(path: bytes, kind: str) -> None:
    strings = dict.fromkeys(("filename", "interp", "exe", "cwd", "env", "argv"), b"")
    event = decoded(**strings, cgroup=leaf_first(path), kind=wire.KINDS[kind])
    assert true_bytes(event.cgroup_path) == path


@pytest.mark.parametrize(
    ("data", "path"),
    [
        (b"", "/"),
        (b"usr\0", "/usr"),
        (b"dash\0bin\0usr\0", "/usr/bin/dash"),
        (b"\xff\0\xc3\xa9\0", "/é/\udcff"),
        (b"\xa9\0\xc3\0", "/\udcc3/\udca9"),  # halves of a character in two names
        (b"a b\n\0..\0", "/../a b\n"),
    ],
)
def test_paths_stand_from_the_leaf_to_the_root(data: bytes, path: str) -> None:
    event = decoded(exe=data, cwd=data, cgroup=data)
    assert (event.exe.path, event.cwd, event.cgroup_path) == (path, path, path)


# -- The file ---------------------------------------------------------------------------------


@given(
    inode=U64,
    size=st.integers(0, 2**63 - 1),
    mode=st.integers(0, 0xFFFF),
    seconds=st.one_of(st.integers(-(2**33), 2**33), st.integers(-(2**63), 2**63 - 1)),
    nanoseconds=st.integers(0, 999_999_999),
)
def test_a_file_is_what_its_inode_says(
    inode: int, size: int, mode: int, seconds: int, nanoseconds: int
) -> None:
    times = {"ctime_s": seconds % 2**64, "ctime_ns": nanoseconds}
    exe = decoded(context={"inode": inode, "file_size": size, "mode": mode, **times}).exe
    assert (exe.inode, exe.size, exe.mode) == (inode, size, mode)
    if abs(seconds) <= 2**33:
        assert divmod(exe.ctime_ns, 10**9) == (seconds, nanoseconds)
    else:  # of any time that 64 bits don't hold nothing is told
        assert exe.ctime_ns is None or -(2**63) <= exe.ctime_ns < 2**63


@given(st.integers(0, 2**12 - 1), st.integers(0, 2**20 - 1))
def test_a_device_number_is_the_one_that_programs_know(major: int, minor: int) -> None:
    """The kernel's own has 12 bits and 20: MKDEV of linux/kdev_t.h."""
    device = decoded(context={"device": major << 20 | minor}).exe.device
    assert device == os.makedev(major, minor)
    assert (os.major(device), os.minor(device)) == (major, minor)


@pytest.mark.parametrize(
    ("path", "bits", "memfd", "deleted"),
    [
        (b"/usr/bin/dash", 0, False, False),
        (b"/usr/bin/dash", UNHASHED, False, True),
        (b"/memfd:a", DETACHED, True, True),
        (b"/memfd:a", DETACHED | UNHASHED, True, True),
        (b"/memfd:", DETACHED, True, True),
        # A file of that name, in the root directory, and in another.
        (b"/memfd:a", 0, False, False),
        (b"/memfd:a", UNHASHED, False, True),
        (b"/tmp/memfd:a", DETACHED, False, False),
        # In no directory, and made otherwise.
        (b"/dev/zero", DETACHED, False, False),
        (b"/", DETACHED | UNHASHED, False, True),
    ],
)
def test_a_file_that_has_no_name_says_so(path: bytes, bits: int, memfd: bool, deleted: bool) -> None:
    exe = decoded(exe=leaf_first(path), context={"bits": bits}).exe
    assert (exe.path, exe.memfd, exe.deleted) == (path.decode(), memfd, deleted)


@pytest.mark.parametrize("name", [b"memfd:a/b", b"memfd:/usr/bin/dash", b"memfd:\xff"])
def test_a_memfd_may_be_called_anything(name: bytes) -> None:
    exe = decoded(exe=name + b"\0", context={"bits": DETACHED}).exe
    assert (true_bytes(exe.path), exe.memfd, exe.deleted) == (b"/" + name, True, True)


@pytest.mark.parametrize(("bits", "deleted"), [(0, False), (DETACHED, False), (UNHASHED, True)])
def test_of_a_file_without_a_path_the_rest_is_known(bits: int, deleted: bool) -> None:
    context = {"bits": bits, "mode": stat.S_IFREG | 0o700}
    exe = decoded(exe=b"", valid=without("EXE_PATH"), context=context).exe
    assert (exe.path, exe.mode, exe.memfd, exe.deleted) == (None, 0o100700, False, deleted)


# -- Session and namespaces -------------------------------------------------------------------


@given(sid=U32, pgid=U32, major=U32, minor=U32)
def test_a_session_is_what_the_kernel_says(sid: int, pgid: int, major: int, minor: int) -> None:
    session = decoded(context={"sid": sid, "pgid": pgid, "tty_major": major, "tty_minor": minor}).session
    assert (session.sid, session.pgid) == (sid or None, pgid or None)
    assert (session.tty_major, session.tty_minor) == ((major, minor) if major or minor else (None, None))


@pytest.mark.parametrize(
    ("major", "minor", "tty"),
    [(0, 0, (None, None)), (136, 0, (136, 0)), (4, 64, (4, 64)), (0, 5, (0, 5))],
)
def test_a_terminal_has_two_numbers_or_none(major: int, minor: int, tty: Tuple[Any, Any]) -> None:
    session = decoded(context={"tty_major": major, "tty_minor": minor}).session
    assert (session.tty_major, session.tty_minor) == tty


KINDS_OF_NAMESPACES = tuple(a.name for a in attrs.fields(Namespaces) if a.name not in ("mnt", "vpid"))


@given(st.fixed_dictionaries(dict.fromkeys((*KINDS_OF_NAMESPACES, "mnt", "vpid"), U32 | st.just(0))))
def test_namespaces_are_what_the_kernel_says(numbers: Dict[str, int]) -> None:
    context = {f"{kind}_ns": numbers[kind] for kind in KINDS_OF_NAMESPACES}
    event = decoded(mnt_ns=numbers["mnt"], context={**context, "vpid": numbers["vpid"]})
    assert event.namespaces == Namespaces(**{kind: number or None for kind, number in numbers.items()})


def test_where_namespaces_were_not_captured_the_mount_namespace_is_known() -> None:
    assert decoded(valid=without("NAMESPACES"), mnt_ns=77).namespaces == Namespaces(mnt=77)
    assert decoded(valid=without("NAMESPACES", "MNT_NS"), mnt_ns=0).namespaces is None


# -- The environment --------------------------------------------------------------------------

VARIABLES = st.sampled_from([b"A", b"PATH", b"\xff", b"", b"LC_ALL"])
VALUES = st.binary(max_size=8).map(lambda value: value.replace(b"\0", b""))
PAIRS = st.lists(st.tuples(VARIABLES, VALUES), max_size=6)


def environment(pairs: List[Tuple[bytes, bytes]]) -> bytes:
    return b"".join(name + b"=" + value + b"\0" for name, value in pairs)


def env_of(data: bytes, wanted: wire.EnvNames = True, flags: int = 0) -> Tuple[Any, Optional[str]]:
    event = decoded(env=data, wanted=wanted, flags=flags)
    return event.env, event.env_status


@given(PAIRS)
def test_an_environment_keeps_every_byte_and_its_order(pairs: List[Tuple[bytes, bytes]]) -> None:
    env, status = env_of(environment(pairs))
    assert status == "complete"
    assert [(true_bytes(name), true_bytes(value)) for name, value in env] == pairs


@given(PAIRS, st.frozensets(VARIABLES.map(text), min_size=1))
def test_of_an_environment_those_are_kept_that_were_asked_for(
    pairs: List[Tuple[bytes, bytes]], wanted: Any
) -> None:
    env, status = env_of(environment(pairs), wanted)
    assert status == "complete"
    assert list(env) == [(text(name), text(value)) for name, value in pairs if text(name) in wanted]


@pytest.mark.parametrize(
    ("data", "env"),
    [
        (b"", ()),
        (b"A=1\0", (("A", "1"),)),
        (b"A=1=2=\0", (("A", "1=2="),)),
        (b"=x\0", (("", "x"),)),
        (b"\0", (("", ""),)),
        (b"NOTHING\0A=\0", (("NOTHING", ""), ("A", ""))),  # whoever calls exec may pass what he likes
        (b"A=1\0A=2\0", (("A", "1"), ("A", "2"))),
    ],
)
def test_odd_environments_are_told_as_they_are(data: bytes, env: Any) -> None:
    assert env_of(data) == (env, "complete")


def test_a_name_is_wanted_whole() -> None:
    data = b"PATH=/bin\0PATHS=x\0XPATH=y\0path=z\0PATH\0"
    assert env_of(data, frozenset({"PATH"}))[0] == (("PATH", "/bin"), ("PATH", ""))


@given(PAIRS.filter(bool), st.data())
def test_of_a_truncated_environment_the_last_may_be_a_part(
    pairs: List[Tuple[bytes, bytes]], data: st.DataObject
) -> None:
    whole = environment(pairs)
    cut = whole[: data.draw(st.integers(1, len(whole)))]
    env, status = env_of(cut, flags=FLAGS["ENV_TRUNCATED"])
    assert status == "truncated"
    told = [(true_bytes(name), true_bytes(value)) for name, value in env]
    assert told[:-1] == pairs[: len(told) - 1]
    assert environment(pairs[len(told) - 1 : len(told)]).startswith(b"=".join(told[-1]).rstrip(b"="))
    assert len(told) == len(cut.rstrip(b"\0").split(b"\0"))


def test_an_environment_that_could_not_be_read_is_unknown() -> None:
    for flags in (0, FLAGS["ENV_TRUNCATED"]):
        event = decoded(env=b"", wanted=True, valid=without("ENV"), flags=flags)
        assert (event.env, event.env_status) == (None, "unreadable")


def test_an_environment_that_was_not_asked_for_is_not_told() -> None:
    for valid in (without(), without("ENV")):
        event = decoded(env=b"SECRET=1\0", wanted=False, valid=valid)
        assert (event.env, event.env_status) == (None, None)


def test_the_same_bytes_are_read_anew_for_other_names() -> None:
    data = b"A=1\0B=2\0"
    assert env_of(data)[0] == (("A", "1"), ("B", "2"))
    assert env_of(data, frozenset("A"))[0] == (("A", "1"),)
    assert env_of(data, frozenset("B"))[0] == (("B", "2"),)


# -- The container ----------------------------------------------------------------------------

INSIDE = b"/system.slice/docker-" + CONTAINER_ID + b".scope"
INJECTED, OWN, CUT = FLAGS["INJECTED"], FLAGS["OWN"], FLAGS["CGROUP_CUT"]


@pytest.mark.parametrize(("flags", "injected"), [(0, None), (INJECTED, True), (OWN, False)])
@pytest.mark.parametrize("kind", wire.KINDS)
def test_a_container_is_told_by_the_cgroup_and_how_one_came_into_it(
    kind: str, flags: int, injected: Optional[bool]
) -> None:
    event = decoded(cgroup=leaf_first(INSIDE), flags=flags, kind=wire.KINDS[kind])
    assert event.cgroup_path == text(INSIDE)
    assert (event.container.id, event.container.runtime) == (CONTAINER_ID.decode(), "docker")
    assert (event.container.pod_uid, event.container.injected) == (None, injected)


@pytest.mark.parametrize("flags", [0, INJECTED, OWN])
@pytest.mark.parametrize("path", ["/", "/init.scope", "/docker-605439acbd4f.scope"])
def test_outside_of_a_container_nobody_was_put_into_one(path: str, flags: int) -> None:
    """Also with a pid namespace of its own, as unshare(1) makes it."""
    event = decoded(cgroup=leaf_first(path.encode()), flags=flags)
    assert (event.cgroup_path, event.container) == (path, None)


@pytest.mark.parametrize(("flags", "injected"), [(0, None), (INJECTED, True), (OWN, False)])
def test_of_a_path_that_is_cut_the_upper_levels_tell_the_container(flags: int, injected: Any) -> None:
    event = decoded(cgroup=leaf_first(INSIDE + b"/a/b"), flags=CUT | flags)
    assert event.cgroup_path is None
    assert (event.container.id, event.container.injected) == (CONTAINER_ID.decode(), injected)
    event = decoded(cgroup=leaf_first(b"/a/b/c"), flags=CUT | flags)
    assert (event.cgroup_path, event.container) == (None, None)


def test_the_same_path_is_whole_in_one_record_and_cut_in_another() -> None:
    for flags, path in ((0, text(INSIDE)), (CUT, None), (0, text(INSIDE))):
        assert decoded(cgroup=leaf_first(INSIDE), flags=flags).cgroup_path == path


@pytest.mark.parametrize("flags", [0, INJECTED, OWN, CUT])
def test_where_the_cgroup_was_not_captured_the_container_is_unknown(flags: int) -> None:
    event = decoded(cgroup=b"", valid=without("CGROUP_PATH"), flags=flags)
    assert (event.cgroup_path, event.container) == (None, None)


def test_other_flags_have_no_part_in_it() -> None:
    """What the filter and argv are marked with."""
    others = sum(FLAGS.values()) & ~(INJECTED | OWN | CUT)
    assert decoded(flags=others).container == decoded().container
