"""Every program that starts on a Linux machine, seen in the kernel, as typed Python events."""

from typing import TYPE_CHECKING

from execwatch.check import Check as Check
from execwatch.check import Feature as Feature
from execwatch.check import Problem as Problem
from execwatch.check import check as check
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
from execwatch.tracer import ExecTracer as ExecTracer

if TYPE_CHECKING:
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
    from execwatch.users import User as User
    from execwatch.users import Users as Users

__version__ = "0.1.0"

#: Imported when they are asked for: most programs don't need them, and start sooner.
_LATE = {
    "load_ipython_extension": "notebook.magic",  # which IPython asks for
    "Process": "processes",
    "ProcessTable": "processes",
    "ProcessTree": "processes",
    "Recorder": "recording.recorder",
    "record": "recording.recorder",
    "load": "recording.replaying",
    "replay": "recording.replaying",
    "run": "recording.running",
    "Recording": "recording.values",
    "Summary": "recording.values",
    "User": "users",
    "Users": "users",
}


def __getattr__(name: str) -> object:
    if name in _LATE:
        from importlib import import_module

        return getattr(import_module(f"execwatch.{_LATE[name]}"), name)
    raise AttributeError(f"module 'execwatch' has no attribute {name!r}")


def __dir__() -> "list[str]":
    return sorted({*globals(), *_LATE})
