"""Everything that execwatch raises.

::

    ExecwatchError
    ├── BccNotFoundError    (ImportError)          no BCC where it has to compile
    ├── MissingExtraError   (ImportError)          an optional package is not installed
    ├── PrivilegeError      (PermissionError)      a capability or limit is missing
    ├── NotSupportedError   (NotImplementedError)  this kernel lacks a feature
    ├── StateError          (RuntimeError)         used before start, after close, or twice at once
    ├── CompileError        (RuntimeError)         BCC refused the source; ``log`` is its output
    ├── LoadError           (OSError)              the kernel refused a program or map; has a ``log``
    ├── AttachError         (OSError)              the kernel refused to attach a probe
    └── RecordingError      (ValueError)           a file that is not a readable recording

Wrong arguments are plain ``ValueError`` and ``TypeError``. Every error here
pickles, and where something can be done about it the message ends with that.
"""

from __future__ import annotations

import os
from typing import Any, Optional


class ExecwatchError(Exception):
    """Base of every error that is execwatch's own."""


class BccNotFoundError(ExecwatchError, ImportError):
    """BCC has to compile, and this machine has none that can be used.

    The message lists what was looked at and the command that installs BCC on
    this distribution.
    """


class MissingExtraError(ExecwatchError, ImportError):
    """An optional dependency is not installed.

    Attributes:
        extra: The name to install: ``pip install 'execwatch[extra]'``.
        package: The package that is missing.
    """

    def __init__(self, extra: str, package: str) -> None:
        super().__init__(extra, package)
        self.extra = extra
        self.package = package

    def __str__(self) -> str:
        return f"{self.package} is needed for this, and not installed: pip install 'execwatch[{self.extra}]'"


class PrivilegeError(ExecwatchError, PermissionError):
    """This process may not do what tracing needs; the message names what is missing."""


class NotSupportedError(ExecwatchError, NotImplementedError):
    """The running kernel lacks a feature.

    Attributes:
        feature: What is missing, in the kernel's words.
        minimum_kernel: The first release that has it, e.g. ``"5.8"``; None where
            it depends on the kernel's configuration, not on its age.
        hint: What mends it, or None.
    """

    def __init__(
        self, feature: str, minimum_kernel: Optional[str] = None, hint: Optional[str] = None
    ) -> None:
        super().__init__(feature, minimum_kernel, hint)
        self.feature = feature
        self.minimum_kernel = minimum_kernel
        self.hint = hint

    def __str__(self) -> str:
        text = f"this kernel has no {self.feature}"
        if self.minimum_kernel:
            text += f" (Linux {self.minimum_kernel} or later has)"
        return f"{text}: {self.hint}" if self.hint else text


class StateError(ExecwatchError, RuntimeError):
    """The tracer is not in the state that this call needs."""


class CompileError(ExecwatchError, RuntimeError):
    """BCC could not compile a program.

    Attributes:
        log: All that the compiler printed.
    """

    def __init__(self, message: str, log: str = "") -> None:
        super().__init__(message, log)
        self.log = log

    def __str__(self) -> str:
        return f"{self.args[0]}\n{self.log}".rstrip()


class _KernelRefusal(ExecwatchError, OSError):
    """An OSError with something more to tell; ``errno`` and ``strerror`` are OSError's."""

    def __init__(self, errno: int, message: str, detail: str = "") -> None:
        super().__init__(errno, f"{message}: {os.strerror(errno)}")
        self._message = message
        self._detail = detail

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.errno, self._message, self._detail)


class LoadError(_KernelRefusal):
    """The kernel refused a program or a map.

    Attributes:
        log: The verifier's log; empty where the kernel gave none.
    """

    @property
    def log(self) -> str:
        return self._detail

    def __str__(self) -> str:
        # The reason is in the last lines of a log that can be very long.
        tail = "\n".join(self.log.splitlines()[-12:])
        return f"{super().__str__()}\n{tail}".rstrip()


class AttachError(_KernelRefusal):
    """The kernel refused to attach a program.

    Attributes:
        probe: The probe it was for, e.g. ``"raw_tracepoint:sched_process_exec"``.
    """

    @property
    def probe(self) -> str:
        return self._detail


class RecordingError(ExecwatchError, ValueError):
    """A file is not a recording that this version can read; says what and where."""
