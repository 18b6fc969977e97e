"""Which events: :class:`Filter`, a value, and :class:`Matcher`, its meaning.

The kernel decides what it can (:meth:`Filter.explain` tells which part); what it
decides is tested against the meaning given here.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections import OrderedDict
from functools import lru_cache
from typing import Any, Callable, Dict, FrozenSet, Iterable, Mapping, Optional, Tuple, Union

import attrs
from typing_extensions import TypeGuard, final

from execwatch import containers as _containers
from execwatch.events import Event, ExecEvent, FailedExecEvent, ProcessEvent

#: Members of comm are cut by the kernel to so many bytes (TASK_COMM_LEN less the NUL).
COMM_LENGTH = 15

_MAX_U32, _MAX_U64 = 2**32 - 1, 2**64 - 1


def _is_number(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and "\0" not in value and bool(_encoded(value))


def _encoded(text: str) -> bytes:
    """As the kernel has it, whatever the locale; b"" where no bytes are decoded to such a text."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return b""


def _is_pid(value: Any) -> bool:
    return _is_number(value, 1, _MAX_U32)


def _is_comm(value: Any) -> bool:
    return _is_text(value) and len(_encoded(value)) <= COMM_LENGTH


#: For each field: what its members are, for people, by their types and as a check.
_RULES: Dict[str, Tuple[str, Tuple[type, ...], Callable[[Any], bool]]] = {
    "uids": ("user ids or user names", (int, str), lambda v: _is_number(v, 0, _MAX_U32 - 1) or _is_text(v)),
    "pids": ("process ids (1 and up)", (int,), _is_pid),
    "ppids": ("process ids (1 and up)", (int,), _is_pid),
    "descendants_of": ("process ids (1 and up)", (int,), _is_pid),
    "comms": (f"names of 1 to {COMM_LENGTH} bytes, as in /proc/PID/comm", (str,), _is_comm),
    "paths": ("globs", (str,), _is_text),
    "args": ("globs", (str,), _is_text),
    "cgroups": (
        "cgroup ids or absolute paths of cgroup directories",
        (int, str),
        lambda v: _is_number(v, 1, _MAX_U64) or (_is_text(v) and v.startswith("/")),
    ),
    "mount_ns": ("inode numbers of mount namespaces", (int,), lambda v: _is_number(v, 1, _MAX_U32)),
    "containers": (
        "container ids (whole, or 12 digits and more of 64; or names), or True or False",
        (str,),
        lambda v: _is_text(v) and _containers.is_id(v),
    ),
}


def _members(name: str, value: Any) -> Optional[FrozenSet[Any]]:
    """Return the members of one field, checked."""
    if value is None:
        return None
    wanted, types, check = _RULES[name]
    if isinstance(value, int) and int in types:
        value = (value,)
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise TypeError(f"{name}: expected a collection of {wanted}, got {value!r}")
    members = tuple(value)
    if not members:
        raise ValueError(f"{name}: an empty collection would match nothing; None is no constraint")
    for member in members:
        if not check(member):
            right_type = isinstance(member, types) and not isinstance(member, bool)
            raise (ValueError if right_type else TypeError)(f"{name}: expected {wanted}, got {member!r}")
    return frozenset(members)


def _container_members(value: Any) -> Union[bool, FrozenSet[str], None]:
    return value if isinstance(value, bool) else _members("containers", value)


def _check_exclude(value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, Filter):
        raise TypeError(f"exclude: expected a Filter, got {value!r}")
    if value.exclude is not None:
        raise ValueError("exclude: a Filter that excludes may not have an exclude of its own")
    if not value.constraints():
        raise ValueError("exclude: a Filter without constraints would leave out everything")


_Numbers = Union[None, int, Iterable[int]]
_Names = Optional[Iterable[str]]


@final
@attrs.frozen(kw_only=True, init=False)
class Filter:
    """Which events to deliver. Fields are and-ed, the members of one field or-ed.

    None is no constraint. A single number may stand for a collection of one.
    Constructing looks nothing up: names of users, cgroup paths and pids are
    checked when a tracer starts.

    Attributes:
        uids: Real user ids, or names of users.
        pids: Process ids, in the tracer's pid namespace.
        ppids: Ids of parent processes.
        descendants_of: Ids of processes: they, and all that descends from them.
        comms: Exact names, at most 15 bytes.
        paths: Globs (:mod:`fnmatch`, case matters) against the path of the file that
            runs, ``exe.path``, and of a script also against its ``filename``; where no
            such path was captured against ``filename``.
        args: Globs; one argument that matches is enough.
        cgroups: Cgroup ids, or paths of cgroup directories, of the hierarchy that
            ``cgroup_id`` tells; those below are not included.
        mount_ns: Inode numbers of mount namespaces, ``os.stat("/proc/PID/ns/mnt").st_ino``.
        containers: True: what runs in a container; False: what runs in none; or ids: whole,
            or their first 12 or more digits as ``docker ps`` shows them, or names where a
            runtime has such. It has the container captured. What a process in a container
            can do to pass for another one's: :mod:`execwatch.containers`.
        exclude: What this matches is left out. Has no ``exclude`` of its own.

    Raises:
        ValueError: An empty collection, or a member out of range.
        TypeError: A bare string, or a member of a wrong type.

    Lost events always pass. A field that is unknown (None) in an event doesn't match.
    ``paths`` and ``args`` don't constrain forks and exits, and an exclusion that
    names them excludes none.
    """

    uids: Optional[FrozenSet[Union[int, str]]]
    pids: Optional[FrozenSet[int]]
    ppids: Optional[FrozenSet[int]]
    descendants_of: Optional[FrozenSet[int]]
    comms: Optional[FrozenSet[str]]
    paths: Optional[FrozenSet[str]]
    args: Optional[FrozenSet[str]]
    cgroups: Optional[FrozenSet[Union[int, str]]]
    mount_ns: Optional[FrozenSet[int]]
    containers: Union[bool, FrozenSet[str], None]
    exclude: Optional[Filter]

    def __init__(
        self,
        *,
        uids: Union[int, Iterable[Union[int, str]], None] = None,
        pids: _Numbers = None,
        ppids: _Numbers = None,
        descendants_of: _Numbers = None,
        comms: _Names = None,
        paths: _Names = None,
        args: _Names = None,
        cgroups: Union[int, Iterable[Union[int, str]], None] = None,
        mount_ns: _Numbers = None,
        containers: Union[bool, Iterable[str], None] = None,
        exclude: Optional[Filter] = None,
    ) -> None:
        _check_exclude(exclude)
        self.__attrs_init__(
            uids=_members("uids", uids),
            pids=_members("pids", pids),
            ppids=_members("ppids", ppids),
            descendants_of=_members("descendants_of", descendants_of),
            comms=_members("comms", comms),
            paths=_members("paths", paths),
            args=_members("args", args),
            cgroups=_members("cgroups", cgroups),
            mount_ns=_members("mount_ns", mount_ns),
            containers=_container_members(containers),
            exclude=exclude,
        )

    def constraints(self) -> Dict[str, Any]:
        """Return the fields that constrain, ``exclude`` aside, with their members."""
        return {name: getattr(self, name) for name in _RULES if getattr(self, name) is not None}

    def matches(self, event: Event) -> bool:
        """Whether the event passes; this is the meaning of a filter.

        Raises:
            ValueError: ``descendants_of`` is set: that needs history, use a :class:`Matcher`.
        """
        if self.descendants_of or (self.exclude and self.exclude.descendants_of):
            raise ValueError("descendants_of needs the events before this one: use Matcher(filter)")
        return _matcher(self).matches(event)

    def resolved(self) -> Filter:
        """Return the filter with user names and cgroup paths turned into numbers.

        Raises:
            ValueError: There is no such user or cgroup.
        """
        return attrs.evolve(
            self,
            uids=self.uids and frozenset(map(_uid, self.uids)),
            cgroups=self.cgroups and frozenset(map(_cgroup_id, self.cgroups)),
            exclude=self.exclude and self.exclude.resolved(),
        )

    def explain(self) -> str:
        """Return which part the kernel decides and which is decided in this process, a line each."""
        kernel = [name for name in self.constraints() if name not in USER_FIELDS]
        user = [name for name in self.constraints() if name in USER_FIELDS]
        if self.exclude:
            here = any(name in USER_FIELDS for name in self.exclude.constraints())
            names = ", ".join(self.exclude.constraints())
            (user if here else kernel).append(f"exclude ({names})")
        if names_containers(self):
            user.append("containers (the first event of each cgroup)")
        return "\n".join(
            f"{who}: {', '.join(names) or 'nothing'}"
            for who, names in (("decided in the kernel", kernel), ("decided in this process", user))
        )


#: The fields that the kernel can't decide.
USER_FIELDS = ("paths", "args")


#: Processes of a tree that a matcher remembers at most: the oldest are forgotten.
_HISTORY = 65536


class Matcher:
    """A filter with the history that ``descendants_of`` needs: feed it the events in order.

    Without forks among them, a descendant is known from its first exec on; without
    exits the last 65,536 processes of the tree are remembered.

    Args:
        filter: What to match.
    """

    def __init__(self, filter: Filter) -> None:
        filter = filter.resolved()
        self._include = _Part(filter)
        self._exclude = _Part(filter.exclude) if filter.exclude else None
        self._exclude_paths = bool(filter.exclude and set(USER_FIELDS) & set(filter.exclude.constraints()))

    def matches(self, event: Event) -> bool:
        """Take in the event and return whether it passes."""
        if not isinstance(event, ProcessEvent):
            return True
        included = self._include.matches(event)
        excluded = self._exclude is not None and self._exclude.matches(event)
        if self._exclude_paths and not _has_path(event):
            excluded = False
        return included and not excluded


class _Part:
    """A filter without its exclusion."""

    def __init__(self, filter: Filter) -> None:
        constraints = filter.constraints()
        tree = constraints.pop("descendants_of", None)
        self._tests = [_TESTS[name](members) for name, members in constraints.items()]
        self._roots = frozenset(tree) if tree else None
        # Process keys, in the order in which they came; a dict would look for its first ever longer.
        self._members: OrderedDict[str, None] = OrderedDict()

    def matches(self, event: ProcessEvent) -> bool:
        # Not short-circuit: history has to be taken in whatever the other fields say.
        inside = self._roots is None or self._descends(event, self._roots)
        return inside and all(test(event) for test in self._tests)

    def _descends(self, event: ProcessEvent, roots: FrozenSet[int]) -> bool:
        members = self._members
        inside = (
            event.process_key in members
            or event.parent_key in members
            or event.pid in roots
            or event.ppid in roots
        )
        if event.kind == "exit":
            members.pop(event.process_key, None)
        elif inside:
            members[event.process_key] = None
            if len(members) > _HISTORY:
                members.popitem(last=False)
        return inside


def names_containers(filter: Filter) -> bool:
    """Whether the filter, or what it excludes, is about containers."""
    return any(half is not None and half.containers is not None for half in (filter, filter.exclude))


def user_part(filter: Filter) -> Optional[_Test]:
    """Return the test of what the kernel can't or may not have decided, ``exclude`` aside; None: nothing."""
    names = (*USER_FIELDS, "containers")
    tests = [_TESTS[name](members) for name, members in filter.constraints().items() if name in names]
    return (lambda event: all(test(event) for test in tests)) if tests else None


def user_exclusion(filter: Filter) -> _Test:
    """Return the test that finishes an exclusion whose other fields the kernel found to hold."""
    test = user_part(filter) or (lambda event: True)
    if set(USER_FIELDS) & set(filter.constraints()):
        return lambda event: _has_path(event) and test(event)
    return test


_Test = Callable[[ProcessEvent], bool]


def _one_of(attribute: str) -> Callable[[FrozenSet[Any]], _Test]:
    def make(members: FrozenSet[Any]) -> _Test:
        return lambda event: getattr(event, attribute) in members

    return make


def _has_path(event: ProcessEvent) -> TypeGuard[Union[ExecEvent, FailedExecEvent]]:
    return isinstance(event, (ExecEvent, FailedExecEvent))


def _path_test(globs: FrozenSet[str]) -> _Test:
    match = _glob(globs)

    def test(event: ProcessEvent) -> bool:
        if not _has_path(event):
            return True
        names = [event.filename]
        if isinstance(event, ExecEvent) and event.exe and event.exe.path:
            if event.interp == event.filename:  # no script
                names.clear()
            names.append(event.exe.path)
        return any(name is not None and match(name) for name in names)

    return test


def _args_test(globs: FrozenSet[str]) -> _Test:
    match = _glob(globs)

    def test(event: ProcessEvent) -> bool:
        return not _has_path(event) or any(match(argument) for argument in event.argv or ())

    return test


def _mount_ns_test(members: FrozenSet[int]) -> _Test:
    return lambda event: event.namespaces is not None and event.namespaces.mnt in members


def container_test(members: Union[bool, FrozenSet[str]]) -> _Test:
    """Return whether an event's container is one of these."""
    if members is True:
        return lambda event: event.container is not None
    if members is False:
        return lambda event: event.container is None and event.cgroup_path is not None
    matches = _containers.matcher(members)
    return lambda event: matches(event.container)


_TESTS: Dict[str, Callable[[Any], _Test]] = {
    "uids": _one_of("uid"),
    "pids": _one_of("pid"),
    "ppids": _one_of("ppid"),
    "comms": _one_of("comm"),
    "cgroups": _one_of("cgroup_id"),
    "mount_ns": _mount_ns_test,
    "paths": _path_test,
    "args": _args_test,
    "containers": container_test,
}


def _glob(globs: Iterable[str]) -> Callable[[str], object]:
    """One expression for all of them. ``*`` also matches ``/`` and newlines, as in fnmatch."""
    patterns = sorted(glob for glob in globs if any(special in glob for special in "*?["))
    plain = frozenset(globs) - frozenset(patterns)
    if not patterns:
        return plain.__contains__
    match = re.compile("|".join(map(fnmatch.translate, patterns))).match
    return lambda text: text in plain or match(text)


@lru_cache(maxsize=32)
def _matcher(filter: Filter) -> Matcher:
    return Matcher(filter)


def _uid(user: Union[int, str]) -> int:
    if isinstance(user, int):
        return user
    import pwd

    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        raise ValueError(
            f"uids: there is no user {user!r}; expected a number or a name of getent passwd"
        ) from None


def _cgroup_id(cgroup: Union[int, str]) -> int:
    if isinstance(cgroup, int):
        return cgroup
    try:
        return os.stat(os.path.join(cgroup, "")).st_ino  # with a slash: a directory or ENOTDIR
    except OSError as exc:
        raise ValueError(
            f"cgroups: {cgroup!r}: {exc.strerror}; expected the path of a cgroup directory"
        ) from None
