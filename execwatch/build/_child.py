"""Runs BCC in a process of its own: ``python -I -S -B _child.py FD FOLDER [CFLAG...]``.

BCC prints to the real stdout, changes the working directory, can crash on a C
error and costs 126 MB: none of it belongs in a user's process. The C text comes
on standard input; what became of it goes to descriptor FD as JSON, and what BCC
prints is the log. Only the standard library is imported here, because the
child's import path is not the caller's.
"""

from __future__ import annotations

import base64
import ctypes
import importlib.util
import json
import os
import struct
import sys
import warnings
from types import ModuleType
from typing import Any, Optional

#: Exit status: BCC itself could not be imported.
EXIT_NO_BCC = 3

# The preprocessor knows the compiler's version; a function brings it out.
_VERSION = "execwatch_clang_version"
_VERSION_SOURCE = f"""
int {_VERSION}(void *ctx) {{
    return __clang_major__ * 10000 + __clang_minor__ * 100 + __clang_patchlevel__;
}}
"""


def load_bcc(folder: str) -> ModuleType:
    """Import the BCC in ``folder`` under the name ``bcc``; ``sys.path`` is neither read nor changed.

    Raises:
        ImportError: What is there is not BCC, or it does not work.
    """
    package = os.path.join(folder, "bcc")
    spec = importlib.util.spec_from_file_location(
        "bcc", os.path.join(package, "__init__.py"), submodule_search_locations=[package]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"{package} is not a Python package")
    before = _forget_bcc()
    module = importlib.util.module_from_spec(spec)
    sys.modules["bcc"] = module
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # BCC 0.26 has escapes that Python 3.12 warns of
            spec.loader.exec_module(module)
        if not hasattr(module, "BPF"):
            raise AttributeError("no BPF in it")  # PyPI's package of that name
    except BaseException as exc:
        _forget_bcc()
        sys.modules.update(before)
        if isinstance(exc, Exception):  # no libbcc.so.0, or one too old for this Python part
            raise ImportError(f"{package} does not work: {exc}") from exc
        raise
    return module


def _forget_bcc() -> dict[str, ModuleType]:
    names = [name for name in sys.modules if name.split(".")[0] == "bcc"]
    return {name: sys.modules.pop(name) for name in names}


def _compile(bcc: Any, source: str, cflags: list[str]) -> Any:
    class Compiled(bcc.BPF):  # type: ignore[misc]
        def _trace_autoload(self) -> None:
            """Attach nothing: BPF.__init__ would, by the names of the functions."""

    return Compiled(text=source + _VERSION_SOURCE, cflags=cflags)


def _declare(lib: Any) -> None:
    """Give types to those functions of libbcc for which BCC's own Python has none."""
    number = ctypes.c_ulonglong
    for name, result in {
        "bpf_table_name": ctypes.c_char_p,
        "bpf_table_fd_id": ctypes.c_int,
        "bpf_table_type_id": ctypes.c_int,
        "bpf_table_key_size_id": ctypes.c_size_t,
        "bpf_table_leaf_size_id": ctypes.c_size_t,
        "bpf_table_max_entries_id": ctypes.c_size_t,
        "bpf_table_flags_id": ctypes.c_int,
    }.items():
        getattr(lib, name).argtypes = [ctypes.c_void_p, number]
        getattr(lib, name).restype = result
    lib.bpf_num_tables.argtypes = [ctypes.c_void_p]
    lib.bpf_num_tables.restype = number


def _maps(lib: Any, module: int) -> list[dict[str, Any]]:
    return [
        {
            "fd": lib.bpf_table_fd_id(module, index),
            "name": lib.bpf_table_name(module, index).decode(),
            "type": lib.bpf_table_type_id(module, index),
            "key_size": lib.bpf_table_key_size_id(module, index),
            "value_size": lib.bpf_table_leaf_size_id(module, index),
            "max_entries": lib.bpf_table_max_entries_id(module, index),
            "flags": lib.bpf_table_flags_id(module, index),
        }
        for index in range(lib.bpf_num_tables(module))
    ]


def _programs(lib: Any, module: int) -> dict[str, bytes]:
    names = [lib.bpf_function_name(module, index) for index in range(lib.bpf_num_functions(module))]
    return {
        name.decode(): ctypes.string_at(
            lib.bpf_function_start(module, name), lib.bpf_function_size(module, name)
        )
        for name in names
    }


def _clang_version(code: bytes) -> Optional[str]:
    opcode, number = struct.unpack_from("<B3xi", code)
    if opcode != 0xB7:  # r0 = number
        return None
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"


def _describe(bcc: Any, compiled: Any) -> dict[str, Any]:
    _declare(bcc.lib)
    programs = _programs(bcc.lib, compiled.module)
    return {
        "bcc": bcc.__version__,
        "clang": _clang_version(programs.pop(_VERSION)),
        "license": bcc.lib.bpf_module_license(compiled.module).decode(),
        "maps": _maps(bcc.lib, compiled.module),
        "programs": {name: base64.b64encode(code).decode() for name, code in programs.items()},
    }


def main(result: int, folder: str, cflags: list[str]) -> int:
    try:
        bcc = load_bcc(folder)
    except ImportError as exc:
        print(exc, file=sys.stderr)
        return EXIT_NO_BCC
    try:
        description = _describe(bcc, _compile(bcc, sys.stdin.buffer.read().decode(), cflags))
    except Exception as exc:  # BCC has no types of its own, and has printed the reason
        print(exc, file=sys.stderr)
        return 1
    with open(result, "w", encoding="utf-8") as file:
        json.dump(description, file)
    return 0


if __name__ == "__main__":
    status = main(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
    sys.stdout.flush()
    sys.stderr.flush()
    # The kernel cleans up faster than LLVM's destructors, and no atexit of BCC's runs.
    os._exit(status)
