"""For the tests of recordings in files: any event, any header, what a file holds."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import sys
import typing
from typing import Any, Iterator, List, NamedTuple, Optional, Sequence

import attrs
import pytest
from hypothesis import strategies as st

from execwatch import ExecEvent, Stats, formats
from execwatch.events import KINDS, AnyEvent
from execwatch.formats import Header
from execwatch.testing import exec_event, exit_event, failed_exec_event, fork_event, lost_events

# -- Strategies -------------------------------------------------------------------------------

#: Bytes as the kernel may hand them out; whole text, in which control characters and what
#: lies beyond 16 bits are more frequent.
TEXT = st.one_of(
    st.binary(max_size=20).map(lambda data: data.decode("utf-8", "surrogateescape")),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=10),
    st.text('\0\x07\x1b\n\r\t"\\/\x7f\x80\x9b\x9f\xa0\u2028\ufeff\U0001f600\udc80\udcff', max_size=10),
)
SIGNED = st.one_of(st.integers(-(2**63), 2**63 - 1), st.integers(0, 5000))
UNSIGNED = st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 5000))

#: Those of the events' numbers that the kernel has 64 bits for without a sign.
_UNSIGNED = {
    "cgroup_id", "inode", "device", "cap_effective", "cap_permitted", "cap_inheritable", "cap_ambient",
}  # fmt: skip


def _of_type(hint: Any, name: str) -> st.SearchStrategy[Any]:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Union:
        return st.one_of(*(_of_type(argument, name) for argument in reversed(arguments)))
    if origin is tuple and arguments[-1] is ...:
        return st.lists(_of_type(arguments[0], name), max_size=4).map(tuple)
    if origin is tuple:
        return st.tuples(*(_of_type(argument, name) for argument in arguments))
    if origin is not None:  # Literal
        return st.sampled_from(arguments)
    if attrs.has(hint):
        return value_of(hint)
    number = UNSIGNED if name in _UNSIGNED else SIGNED
    return {int: number, str: TEXT, bool: st.booleans(), type(None): st.none()}[hint]


def value_of(cls: type) -> st.SearchStrategy[Any]:
    """Any value of an attrs class."""
    hints = typing.get_type_hints(cls)
    fields = {field.name: _of_type(hints[field.name], field.name) for field in attrs.fields(cls)}
    return st.builds(cls, **fields)


EVENT: st.SearchStrategy[AnyEvent] = st.one_of(*map(value_of, KINDS.values()))
EVENTS = st.lists(EVENT, max_size=6)
STATS: st.SearchStrategy[Stats] = value_of(Stats)

_JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), SIGNED, st.floats(allow_nan=False, allow_infinity=False), TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3)),
    max_leaves=5,
)
_OBJECT = st.dictionaries(TEXT, _JSON, max_size=3)

HEADER = st.builds(
    Header,
    version=TEXT,
    host=st.none() | TEXT,
    boot_id=st.none() | TEXT,
    clock_offset_ns=st.none() | SIGNED,
    started_ns=st.none() | SIGNED,
    filter=st.none() | _OBJECT,
    options=_OBJECT,
)

# -- Files ------------------------------------------------------------------------------------

SUFFIXES = (".ndjson", ".ndjson.gz", ".parquet")
HEADER_NOW = Header(version="1.2.3", host="box", boot_id="ab" * 16, started_ns=1, filter={"uids": [0]})


def every_format() -> List[Any]:
    """For parametrize: the suffixes; those aside whose package is not installed."""
    return [
        pytest.param(suffix, marks=needs("pyarrow") if suffix == ".parquet" else ()) for suffix in SUFFIXES
    ]


def needs(package: str) -> pytest.MarkDecorator:
    """Of an extra, which not everybody who runs the tests has installed."""
    return pytest.mark.skipif(not _installed(package), reason=f"{package} is not installed: an extra")


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def hide(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    """Have imports of packages fail as where they are not installed, and of what needs them."""
    for name in {*packages, *sys.modules}:
        if name.split(".")[0] in packages:
            monkeypatch.setitem(sys.modules, name, None)
    if "pyarrow" in packages:
        for name in ("arrow", "layout", "columns", "rows", "parquet"):
            monkeypatch.delitem(sys.modules, f"execwatch.formats.{name}", raising=False)
            monkeypatch.delattr(formats, name, raising=False)


class Read(NamedTuple):
    """All that a file holds."""

    header: Header
    events: List[AnyEvent]
    stats: Optional[Stats]
    complete: bool
    skipped: int


def write(
    path: pathlib.Path,
    events: Sequence[AnyEvent],
    header: Header = HEADER_NOW,
    stats: Optional[Stats] = Stats(),  # noqa: B008
) -> pathlib.Path:
    """Write a file; return its path."""
    with formats.open_writer(path, header) as writer:
        writer.write(events)
        writer.close(stats)
    return path


def read(path: pathlib.Path) -> Read:
    """Read a file."""
    with formats.open_reader(path) as reader:
        events = list(reader)
        return Read(reader.header, events, reader.stats, reader.complete, reader.skipped)


def some_events(count: int = 4) -> List[AnyEvent]:
    """Events of every kind in turn; none like another, whose bytes say no more when they are compressed."""
    random = os.urandom(64).hex
    makers = (
        lambda: exec_event(argv=("/bin/sh", "-c", random())),
        lambda: failed_exec_event(argv=(random(), "\udcff\x1b[31m")),
        lambda: fork_event(comm="é\udc80"),
        lambda: exit_event(signal=9, core_dumped=True),
        lambda: lost_events(count=3),
    )
    return [makers[number % len(makers)]() for number in range(count)]


def stream(count: int) -> Iterator[AnyEvent]:
    """Yield execs, forks and exits, one after the other, without keeping them."""
    for number in range(count // 3):
        pid = 1000 + number
        yield fork_event(pid=pid)
        yield exec_event(pid=pid, argv=("/bin/true", str(number)))
        yield exit_event(pid=pid)


def an_exec() -> ExecEvent:
    """The same at every call."""
    return exec_event(pid=7, start_boottime_ns=10**10, boottime_ns=10**10, argv=("/bin/true",))
