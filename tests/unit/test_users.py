from __future__ import annotations

import os
import pickle
import pwd
import subprocess
import sys
from typing import Any, List, Tuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from execwatch import Namespaces
from execwatch.testing import exec_event, exit_event, lost_events
from execwatch.users import User, Users


def getent() -> List[Tuple[int, str]]:
    """Of each user id the name that getent(1) gives when asked for it."""
    lines = subprocess.run(["getent", "passwd"], check=True, capture_output=True, text=True).stdout
    uids = {int(line.split(":")[2]) for line in lines.splitlines()}
    return [(uid, asked(uid)) for uid in sorted(uids)]


def asked(uid: int) -> str:
    answer = subprocess.run(["getent", "passwd", str(uid)], capture_output=True, text=True)
    return answer.stdout.partition(":")[0]


def uid_without_name() -> int:
    return next(uid for uid in range(3_000_000_000, 3_000_100_000) if not asked(uid))


def own_namespace() -> int:
    """As readlink(1) tells it: user:[4026531837]."""
    link = subprocess.run(["readlink", "/proc/self/ns/user"], check=True, capture_output=True, text=True)
    return int(link.stdout.strip()[len("user:[") : -1])


def test_names_are_those_of_getent() -> None:
    users = Users()
    known = getent()
    assert len(known) > 3
    assert [(uid, users.name(uid)) for uid, _ in known] == known


def test_the_own_name_is_that_of_id() -> None:
    name = subprocess.run(["id", "-un"], check=True, capture_output=True, text=True).stdout.strip()
    assert Users().name(os.getuid()) == name


def test_a_user_without_a_name() -> None:
    uid = uid_without_name()
    assert Users().name(uid) is None
    assert Users().of(exec_event(uid=uid, namespaces=None)) == User(uid=uid)
    assert str(Users().of(exec_event(uid=uid, namespaces=None))) == str(uid)


def test_a_user_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked_for: List[int] = []
    true = pwd.getpwuid

    def getpwuid(uid: int) -> Any:
        asked_for.append(uid)
        return true(uid)

    monkeypatch.setattr(pwd, "getpwuid", getpwuid)
    users, nobody = Users(), uid_without_name()
    for _ in range(3):
        assert users.name(0) == true(0).pw_name
        assert users.name(nobody) is None
        users.of(exec_event(uid=0))
    assert asked_for == [0, nobody]
    # Each keeps its own: a new one sees what has changed.
    Users().name(0)
    assert asked_for == [0, nobody, 0]


def test_the_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_up: List[int] = []

    def getpwuid(uid: int) -> Any:
        looked_up.append(uid)
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", getpwuid)
    users = Users()
    for uid in range(5000):
        users.name(uid)
    users.name(4999)
    users.name(0)
    assert looked_up == [*range(5000), 0]


@pytest.mark.parametrize("uid", [None, "0", 0.0, True, b"0"])
def test_what_is_no_number(uid: Any) -> None:
    with pytest.raises(TypeError, match="expected a user id"):
        Users().name(uid)


@pytest.mark.parametrize("uid", [-1, 2**32 - 1, 2**64])
def test_what_is_no_user_id(uid: int) -> None:
    with pytest.raises(ValueError, match="0 to 4,294,967,294"):
        Users().name(uid)


def test_the_highest_user_id_is_one() -> None:
    assert Users().name(2**32 - 2) == (asked(2**32 - 2) or None)


def test_a_process_in_the_same_namespace() -> None:
    here = own_namespace()
    user = Users().of(exec_event(uid=0, namespaces=Namespaces(user=here)))
    assert user == User(uid=0, name=asked(0), user_ns=here, foreign=False)
    assert str(user) == asked(0)


def test_a_process_in_another_namespace() -> None:
    there, uid = own_namespace() + 1, uid_without_name()
    user = Users().of(exec_event(uid=uid, namespaces=Namespaces(user=there)))
    assert user == User(uid=uid, user_ns=there, foreign=True)
    assert str(user) == f"{uid} (in user namespace {there})"


def test_a_user_of_this_machine_in_another_namespace() -> None:
    # Root of a rootless container is the user who started it.
    there = own_namespace() + 1
    user = Users().of(exec_event(uid=0, namespaces=Namespaces(user=there)))
    assert str(user) == f"{asked(0)} (in user namespace {there})"


@pytest.mark.parametrize("namespaces", [None, Namespaces(mnt=1)])
def test_a_namespace_that_was_not_captured(namespaces: Any) -> None:
    user = Users().of(exit_event(uid=0, namespaces=namespaces))
    assert user == User(uid=0, name=asked(0), user_ns=None, foreign=None)
    assert str(user) == asked(0)


def test_where_the_own_namespace_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    true = os.stat

    def without_proc(path: Any, **options: Any) -> os.stat_result:
        if path == "/proc/self/ns/user":
            raise FileNotFoundError(path)
        return true(path, **options)

    monkeypatch.setattr(os, "stat", without_proc)
    user = Users().of(exec_event(uid=0, namespaces=Namespaces(user=77)))
    assert (user.user_ns, user.foreign) == (77, None)


def test_an_event_without_a_user() -> None:
    user = Users().of(exec_event(uid=None, namespaces=None))
    assert user == User()
    assert str(user) == "unknown"


@pytest.mark.parametrize("event", [None, "e", lost_events()], ids=lambda event: type(event).__name__)
def test_only_what_happened_to_a_process_has_a_user(event: Any) -> None:
    with pytest.raises(TypeError, match="event: expected an exec"):
        Users().of(event)


@given(st.text(st.characters(exclude_categories=())), st.booleans())
def test_a_user_is_always_printable(name: str, foreign: bool) -> None:
    assert str(User(uid=1, name=name, user_ns=2, foreign=foreign)).isprintable()


def test_a_user_is_a_value() -> None:
    user = User(uid=1, name="daemon", user_ns=2, foreign=True)
    assert pickle.loads(pickle.dumps(user)) == user
    assert hash(user) == hash(User(uid=1, name="daemon", user_ns=2, foreign=True))
    with pytest.raises(AttributeError):
        user.name = "root"  # type: ignore[misc]


def test_without_a_user_database_nobody_has_a_name() -> None:
    # As on an operating system that has none.
    program = """
import sys
sys.modules["pwd"] = None
from execwatch.users import Users
from execwatch.testing import exec_event
assert Users().name(0) is None
assert str(Users().of(exec_event(uid=0))) == "0"
"""
    subprocess.run([sys.executable, "-c", program], check=True)
