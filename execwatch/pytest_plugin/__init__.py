"""For pytest: which programs a test executes.

The fixture ``execs``, the markers ``no_exec`` and ``allow_exec``, the options ``--execs`` and
``--execs-strict``; pytest loads them where execwatch is installed. A test that uses none of
them costs nothing: what traces is imported by the first one that does.
"""

# Also a pytest that is older than what the extra asks for loads this module, with whatever
# pluggy it has: so no more of their API is used than there was in pytest 6.
from __future__ import annotations

from typing import TYPE_CHECKING, Iterator

import pytest

from execwatch.pytest_plugin.execs import Execs as Execs
from execwatch.pytest_plugin.hooks import Hooks
from execwatch.pytest_plugin.summary import Summary

if TYPE_CHECKING:
    from execwatch.pytest_plugin.watch import Window

_HOOKS = "execwatch-hooks"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options and the ini value."""
    group = parser.getgroup("execwatch", "what tests execute")
    everything = "record every test, and tell at the end which programs they executed"
    group.addoption("--execs", action="store_true", help=everything)
    strict = "fail tests that need to trace where this can't be done, instead of skipping them"
    group.addoption("--execs-strict", action="store_true", help=strict)
    parser.addini("execs_strict", strict, type="bool", default=False)


def pytest_configure(config: pytest.Config) -> None:
    """Add the markers and what acts on them."""
    config.addinivalue_line("markers", "no_exec: the test fails if it executes a program.")
    config.addinivalue_line(
        "markers",
        "allow_exec(programs): the test fails if it executes a program that is not one of these: "
        'names ("git") or paths ("/usr/bin/make").',
    )
    everything = bool(config.getoption("execs"))
    strict = bool(config.getoption("execs_strict") or config.getini("execs_strict"))
    config.pluginmanager.register(Hooks(everything=everything, strict=strict), _HOOKS)
    if everything:
        config.pluginmanager.register(Summary(), "execwatch-summary")


@pytest.fixture
def execs(request: pytest.FixtureRequest) -> Iterator[Execs]:
    """The programs that the test executes from here on, its descendants' included."""
    watch = request.config.pluginmanager.get_plugin(_HOOKS).watch()  # type: ignore[union-attr]
    mark = watch.mark()
    last: list[Window] = []
    try:
        yield Execs(lambda: last[0] if last else watch.since(mark))
    finally:
        if watch.mine:  # not a child that the test forked and that came here
            last.append(watch.since(mark))
