"""The names that other programs use, and what importing them costs."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import pydoc
import subprocess
import sys
from types import ModuleType
from typing import Any, Iterator, List, Set, Tuple

import pytest

import execwatch

#: Adding is free; what goes or changes its meaning needs a deprecation.
PUBLIC = {
    "AttachError",
    "BccNotFoundError",
    "Check",
    "CompileError",
    "Container",
    "Credentials",
    "Event",
    "ExecEvent",
    "ExecTracer",
    "Executable",
    "ExecwatchError",
    "ExitEvent",
    "FailedExecEvent",
    "Feature",
    "Filter",
    "ForkEvent",
    "KindStats",
    "LoadError",
    "LostCounts",
    "LostEvents",
    "Matcher",
    "MissingExtraError",
    "Namespaces",
    "NotSupportedError",
    "PrivilegeError",
    "Problem",
    "Process",
    "ProcessEvent",
    "ProcessTable",
    "ProcessTree",
    "Recorder",
    "Recording",
    "RecordingError",
    "Session",
    "StateError",
    "Stats",
    "Summary",
    "User",
    "Users",
    "check",
    "event_from_dict",
    "load",
    "load_ipython_extension",
    "record",
    "replay",
    "run",
}

TESTING = {
    "exec_event",
    "exit_event",
    "failed_exec_event",
    "fake_tracer",
    "fork_event",
    "lost_events",
}

TRACER = {
    "aclose",
    "aread",
    "close",
    "closed",
    "dispatch",
    "events",
    "fileno",
    "on_exec",
    "on_exit",
    "on_failed",
    "on_fork",
    "on_lost",
    "processes",
    "read",
    "start",
    "stats",
    "stop",
    "users",
}

#: What importing execwatch must not bring along: each costs milliseconds or megabytes.
HEAVY = (
    "asyncio",
    "bcc",
    "ctypes",
    "json",
    "logging",
    "rich",
    "subprocess",
    "execwatch.kernel",
    "execwatch.build",
    "execwatch.processes",
    "execwatch.users",
    "execwatch.html",
    "execwatch.notebook",
    "IPython",
    "plotly",
)


def names(module: ModuleType) -> Set[str]:
    """The public names of a module that are its own or that it hands on, also when they are asked for."""
    return {
        name
        for name in {*vars(module), *dir(module)} - {"annotations", "TYPE_CHECKING"}
        if not name.startswith("_") and not inspect.ismodule(getattr(module, name))
    }


def test_the_public_names_are_these() -> None:
    assert names(execwatch) == PUBLIC
    assert execwatch.__version__


def test_the_makers_for_tests_are_these() -> None:
    module = importlib.import_module("execwatch.testing")
    assert {name for name in names(module) if getattr(module, name).__module__ == module.__name__} == TESTING


def test_the_methods_of_a_tracer_are_these() -> None:
    assert {name for name in dir(execwatch.ExecTracer) if not name.startswith("_")} == TRACER


def modules_after(code: str) -> Set[str]:
    """What a new interpreter has imported after this code."""
    command = [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"]
    return set(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout.split())


@pytest.mark.parametrize("module", ["execwatch", "execwatch.testing"])
def test_importing_brings_nothing_heavy_along(module: str) -> None:
    """What its two dependencies import themselves is not execwatch's: attrs, on 3.9, subprocess."""
    added = modules_after(f"import {module}") - modules_after("import attrs, typing_extensions")
    assert module in added
    assert not added & set(HEAVY)


def test_iterating_needs_nothing_heavy_either() -> None:
    added = modules_after(
        "from execwatch import replay, Filter; from execwatch.testing import exec_event\n"
        "with replay([exec_event()], Filter(uids={1000})) as tracer: assert len(list(tracer.events())) == 1"
    ) - modules_after("import attrs, typing_extensions")
    assert not added & set(HEAVY)


def public_modules() -> Iterator[ModuleType]:
    for info in pkgutil.walk_packages(execwatch.__path__, "execwatch."):
        if not any(part.startswith("_") for part in info.name.split(".")):
            yield importlib.import_module(info.name)


def documented() -> Iterator[Tuple[str, Any]]:
    """Every module, public class, function and method that is written here."""
    for module in (execwatch, *public_modules()):
        yield module.__name__, module
        for name, value in vars(module).items():
            if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
                continue
            if inspect.isclass(value) or inspect.isfunction(value):
                yield f"{module.__name__}.{name}", value
            if inspect.isclass(value):
                yield from methods(f"{module.__name__}.{name}", value)


def methods(where: str, cls: type) -> Iterator[Tuple[str, Any]]:
    for name, value in vars(cls).items():
        function = getattr(value, "__func__", value)
        if not name.startswith("_") and inspect.isfunction(function):
            yield f"{where}.{name}", function


#: Modules and packages that users have no business in.
INTERNAL = ("arguments", "build", "cli", "iterators", "kernel", "source", "stream", "wire")


def test_everything_public_says_what_it_is() -> None:
    missing: List[str] = [where for where, value in documented() if not (value.__doc__ or "").strip()]
    assert [where for where in missing if where.split(".")[1] not in INTERNAL] == []


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_every_public_name_is_documented_down_to_its_properties(name: str) -> None:
    value = getattr(execwatch, name)
    assert inspect.getdoc(value)
    if not inspect.isclass(value):
        return
    for member, found in inspect.getmembers(value):
        own = any(member in vars(cls) for cls in value.__mro__ if cls.__module__.startswith("execwatch"))
        if own and not member.startswith("_") and (isinstance(found, property) or inspect.isfunction(found)):
            told = inspect.getdoc(found) or f"{member}:" in (inspect.getdoc(value) or "")
            assert told, f"{name}.{member}"


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_pydoc_renders_it(name: str) -> None:
    text = pydoc.plain(pydoc.render_doc(getattr(execwatch, name)))
    assert name in text


def test_pydoc_renders_the_package() -> None:
    text = pydoc.plain(pydoc.render_doc(execwatch))
    assert "Every program that starts" in text


def test_names_that_come_late_are_like_any_other() -> None:
    for name in ("Process", "ProcessTable", "ProcessTree", "User", "Users"):
        assert getattr(execwatch, name).__name__ == name
        assert name in dir(execwatch)
    with pytest.raises(AttributeError, match="'execwatch' has no attribute 'Nobody'"):
        execwatch.Nobody  # type: ignore[attr-defined] # noqa: B018
