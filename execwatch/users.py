"""Who the users are: names for user ids, and whether an id means somebody else where the process runs.

A look-up may ask a directory service (nsswitch.conf(5)) and take its time, so it is made
when it is asked for and kept: what changes in the user database afterwards is not
noticed. Names are those of this machine, now, which is not where and when a
recording was made.
"""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Optional

import attrs
from typing_extensions import final

from execwatch import render
from execwatch.events import ProcessEvent

#: (uid_t)-1 is none: it means "leave as it is" in setreuid(2).
_MAX_UID = 2**32 - 2

#: Users that are kept in mind at most, for each :class:`Users`.
_KEPT = 4096


@final
@attrs.frozen(kw_only=True, weakref_slot=False)
class User:
    """The user that a process belongs to.

    ``str(user)`` is the name, else the number, and says where a user is a foreign one:
    ``100000 (in user namespace 4026532345)``. It is printable, whatever the name.

    Attributes:
        uid: Real user id, in the initial user namespace; None where the event didn't tell.
        name: Name in the user database; None where it has none.
        user_ns: Inode number of the process's user namespace; None where it was not captured.
        foreign: The process is in another user namespace than this program: inside,
            the same user has another id, often 0. None where that is not known.
    """

    uid: Optional[int] = None
    name: Optional[str] = None
    user_ns: Optional[int] = None
    foreign: Optional[bool] = None

    def __str__(self) -> str:
        number = "unknown" if self.uid is None else str(self.uid)
        text = number if self.name is None else render.escape(self.name)
        return f"{text} (in user namespace {self.user_ns})" if self.foreign else text


@final
class Users:
    """Names of users, looked up when they are asked for, and kept."""

    def __init__(self) -> None:
        self._lookup = lru_cache(maxsize=_KEPT)(_name)
        self._own_ns = _own_namespace()

    def name(self, uid: int) -> Optional[str]:
        """Return the name of a user; None where there is no such user, or no user database.

        Raises:
            TypeError: ``uid`` is no int.
            ValueError: ``uid`` is no user id: 0 to 4,294,967,294.
        """
        if isinstance(uid, bool) or not isinstance(uid, int):
            raise TypeError(f"uid: expected a user id, got {uid!r}")
        if not 0 <= uid <= _MAX_UID:
            raise ValueError(f"uid: expected a user id, 0 to {_MAX_UID:,}, got {uid!r}")
        return self._lookup(uid)

    def of(self, event: ProcessEvent) -> User:
        """Return the user of a process as it was at the event.

        The namespace is known of an exec that captured ``"namespaces"``.

        Raises:
            TypeError: It is not what happened to a process.
        """
        if not isinstance(event, ProcessEvent):
            raise TypeError(f"event: expected an exec, a failed one, a fork or an exit, got {event!r}")
        user_ns = event.namespaces.user if event.namespaces else None
        known = user_ns is not None and self._own_ns is not None
        return User(
            uid=event.uid,
            name=None if event.uid is None else self.name(event.uid),
            user_ns=user_ns,
            foreign=user_ns != self._own_ns if known else None,
        )


def _name(uid: int) -> Optional[str]:
    try:
        import pwd  # not on every operating system

        return pwd.getpwuid(uid).pw_name or None
    except (ImportError, KeyError):
        return None


def _own_namespace() -> Optional[int]:
    try:
        return os.stat("/proc/self/ns/user").st_ino
    except OSError:
        return None
