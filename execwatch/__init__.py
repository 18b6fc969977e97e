"""Every program that starts on a Linux machine, seen in the kernel, as typed Python events."""

TYPE_CHECKING = False  # type checkers take it for True; typing itself would cost 10 ms here

if TYPE_CHECKING:
    from execwatch.errors import AttachError as AttachError
    from execwatch.errors import BccNotFoundError as BccNotFoundError
    from execwatch.errors import CompileError as CompileError
    from execwatch.errors import ExecwatchError as ExecwatchError
    from execwatch.errors import LoadError as LoadError
    from execwatch.errors import MissingExtraError as MissingExtraError
    from execwatch.errors import NotSupportedError as NotSupportedError
    from execwatch.errors import PrivilegeError as PrivilegeError
    from execwatch.errors import RecordingError as RecordingError
    from execwatch.errors import StateError as StateError
    from execwatch.events import Container as Container
    from execwatch.events import Credentials as Credentials
    from execwatch.events import Event as Event
    from execwatch.events import ExecEvent as ExecEvent
    from execwatch.events import Executable as Executable
    from execwatch.events import ExitEvent as ExitEvent
    from execwatch.events import FailedExecEvent as FailedExecEvent
    from execwatch.events import ForkEvent as ForkEvent
    from execwatch.events import KindStats as KindStats
    from execwatch.events import LostCounts as LostCounts
    from execwatch.events import LostEvents as LostEvents
    from execwatch.events import Namespaces as Namespaces
    from execwatch.events import ProcessEvent as ProcessEvent
    from execwatch.events import Session as Session
    from execwatch.events import Stats as Stats
    from execwatch.events import event_from_dict as event_from_dict
    from execwatch.filters import Filter as Filter
    from execwatch.filters import Matcher as Matcher
    from execwatch.preflight import Check as Check
    from execwatch.preflight import Feature as Feature
    from execwatch.preflight import Problem as Problem
    from execwatch.preflight import check as check
    from execwatch.processes import Process as Process
    from execwatch.processes import ProcessTable as ProcessTable
    from execwatch.processes import ProcessTree as ProcessTree
    from execwatch.recording.recorder import Recorder as Recorder
    from execwatch.recording.recorder import record as record
    from execwatch.recording.replaying import load as load
    from execwatch.recording.replaying import replay as replay
    from execwatch.recording.running import run as run
    from execwatch.recording.values import Recording as Recording
    from execwatch.recording.values import Summary as Summary
    from execwatch.tracer import ExecTracer as ExecTracer
    from execwatch.users import User as User
    from execwatch.users import Users as Users

__version__ = "0.1.0"

#: By module. Imported when they are asked for: whoever needs a part of it starts sooner.
_NAMES = {
    "errors": (
        "AttachError",
        "BccNotFoundError",
        "CompileError",
        "ExecwatchError",
        "LoadError",
        "MissingExtraError",
        "NotSupportedError",
        "PrivilegeError",
        "RecordingError",
        "StateError",
    ),
    "events": (
        "Container",
        "Credentials",
        "Event",
        "event_from_dict",
        "ExecEvent",
        "Executable",
        "ExitEvent",
        "FailedExecEvent",
        "ForkEvent",
        "KindStats",
        "LostCounts",
        "LostEvents",
        "Namespaces",
        "ProcessEvent",
        "Session",
        "Stats",
    ),
    "filters": ("Filter", "Matcher"),
    "notebook.magic": ("load_ipython_extension",),  # which IPython asks for
    "preflight": ("check", "Check", "Feature", "Problem"),
    "processes": ("Process", "ProcessTable", "ProcessTree"),
    "recording.recorder": ("record", "Recorder"),
    "recording.replaying": ("load", "replay"),
    "recording.running": ("run",),
    "recording.values": ("Recording", "Summary"),
    "tracer": ("ExecTracer",),
    "users": ("User", "Users"),
}
_LATE = {name: module for module, names in _NAMES.items() for name in names}
#: For ``import *``; type checkers go by the list above.
globals()["__all__"] = [name for name in _LATE if name != "load_ipython_extension"]


def __getattr__(name: str) -> object:
    if name in _LATE:
        from importlib import import_module

        value = globals()[name] = getattr(import_module(f"execwatch.{_LATE[name]}"), name)
        return value
    raise AttributeError(f"module 'execwatch' has no attribute {name!r}")


def __dir__() -> "list[str]":
    return sorted({*globals(), *_LATE} - {"TYPE_CHECKING"})
