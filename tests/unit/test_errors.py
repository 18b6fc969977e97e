from __future__ import annotations

import errno
import inspect
import os
import pickle
from typing import Dict, List, Tuple, Type

import pytest

from execwatch import errors
from execwatch.errors import (
    AttachError,
    BccNotFoundError,
    CompileError,
    ExecwatchError,
    LoadError,
    MissingExtraError,
    NotSupportedError,
    PrivilegeError,
    RecordingError,
    StateError,
)

BUILTINS: Dict[Type[ExecwatchError], type] = {
    BccNotFoundError: ImportError,
    MissingExtraError: ImportError,
    PrivilegeError: PermissionError,
    NotSupportedError: NotImplementedError,
    StateError: RuntimeError,
    CompileError: RuntimeError,
    LoadError: OSError,
    AttachError: OSError,
    RecordingError: ValueError,
}

EXAMPLES: List[Tuple[ExecwatchError, Dict[str, object]]] = [
    (ExecwatchError("something"), {}),
    (BccNotFoundError("no BCC: apt install python3-bpfcc"), {}),
    (MissingExtraError("cli", "shtab"), {"extra": "cli", "package": "shtab"}),
    (PrivilegeError("CAP_BPF is missing"), {}),
    (
        NotSupportedError("BPF ring buffer", "5.8", "boot a newer one"),
        {"feature": "BPF ring buffer", "minimum_kernel": "5.8", "hint": "boot a newer one"},
    ),
    (NotSupportedError("BTF"), {"feature": "BTF", "minimum_kernel": None, "hint": None}),
    (StateError("the tracer is closed"), {}),
    (CompileError("clang failed", "line 1: error"), {"log": "line 1: error"}),
    (LoadError(errno.EACCES, "program 'x'", "R1 invalid"), {"errno": errno.EACCES, "log": "R1 invalid"}),
    (LoadError(errno.ENOMEM, "map 'm'"), {"errno": errno.ENOMEM, "log": ""}),
    (
        AttachError(errno.EBUSY, "raw tracepoint t", "raw_tracepoint:t"),
        {"errno": errno.EBUSY, "probe": "raw_tracepoint:t"},
    ),
    (RecordingError("line 3: not a recording"), {}),
]


def test_the_tree_is_the_one_that_is_drawn() -> None:
    drawn = [line.split() for line in (errors.__doc__ or "").splitlines() if "── " in line]
    assert {words[1]: words[2].strip("()") for words in drawn} == {
        cls.__name__: builtin.__name__ for cls, builtin in BUILTINS.items()
    }


@pytest.mark.parametrize("cls", BUILTINS, ids=lambda cls: cls.__name__)
def test_each_error_is_ours_and_a_builtin_one(cls: Type[ExecwatchError]) -> None:
    assert issubclass(cls, ExecwatchError)
    assert issubclass(cls, BUILTINS[cls])


def test_every_public_class_of_the_module_is_tested_here() -> None:
    public = {
        cls
        for name, cls in inspect.getmembers(errors, inspect.isclass)
        if not name.startswith("_") and cls.__module__ == errors.__name__
    }
    assert public == {*BUILTINS, ExecwatchError}
    assert {type(error) for error, _ in EXAMPLES} == public


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(("error", "attributes"), EXAMPLES, ids=lambda value: type(value).__name__)
def test_pickles_with_all_that_it_tells(
    error: ExecwatchError, attributes: Dict[str, object], protocol: int
) -> None:
    copy = pickle.loads(pickle.dumps(error, protocol))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert copy.args == error.args
    for instance in (error, copy):
        assert {name: getattr(instance, name) for name in attributes} == attributes


def test_an_absent_extra_names_what_installs_it() -> None:
    assert "pip install 'execwatch[cli]'" in str(MissingExtraError("cli", "shtab"))


def test_an_unsupported_feature_names_the_kernel_that_has_it_and_the_remedy() -> None:
    assert str(NotSupportedError("BTF")) == "this kernel has no BTF"
    assert "Linux 5.8" in str(NotSupportedError("BTF", "5.8"))
    assert str(NotSupportedError("BTF", None, "build one")).endswith(": build one")


def test_a_compiler_error_shows_its_log() -> None:
    assert str(CompileError("it failed", "x.c:1: oops\n")) == "it failed\nx.c:1: oops"
    assert str(CompileError("it failed")) == "it failed"


def test_a_kernel_refusal_is_an_oserror_with_its_errno_in_words() -> None:
    error = LoadError(errno.ENOMEM, "map 'm' of 3 entries")
    assert error.strerror == f"map 'm' of 3 entries: {os.strerror(errno.ENOMEM)}"
    assert "map 'm' of 3 entries" in str(error)


def test_a_load_error_shows_the_end_of_a_long_log_and_keeps_all_of_it() -> None:
    log = "\n".join(f"step {number}" for number in range(1000))
    error = LoadError(errno.EACCES, "program 'x'", log)
    assert error.log == log
    assert "step 999" in str(error)
    assert "step 500" not in str(error)


def test_an_attach_error_does_not_swallow_what_oserror_would_subclass() -> None:
    """OSError(ENOENT, ...) makes a FileNotFoundError; ours stays itself."""
    assert type(AttachError(errno.ENOENT, "t", "p")) is AttachError
