"""Compiles C to a program image, with BCC in a short-lived child process."""

from __future__ import annotations

import base64
import json
import os
import struct
import subprocess
import sys
from typing import Any, Dict, List, Mapping, Sequence, Tuple

from execwatch import wire
from execwatch.build import bcc
from execwatch.build._child import EXIT_NO_BCC
from execwatch.build.source import FOLDER, OPTIONS, digest
from execwatch.errors import CompileError, PrivilegeError
from execwatch.kernel.image import (
    LD_IMM64,
    PSEUDO_MAP_FD,
    PSEUDO_MAP_VALUE,
    MapDefinition,
    Program,
    ProgramImage,
)

_CHILD = os.path.join(FOLDER, "_child.py")

#: The numbers that stand for the address of a map's value.
_MARKS = {wire.CONFIG_MARK: "config"}
_PERF_EVENT_ARRAY = 4

_Relocations = Tuple[Tuple[int, str], ...]


def compile_image(
    source: str,
    *,
    include_dir: str = FOLDER,
    bcc_folder: str = "",
    defines: Sequence[str] = (),
    timeout: float = 60.0,
) -> ProgramImage:
    """Compile a program with BCC.

    BCC creates the program's maps on the way, so this needs the privileges of
    loading it.

    Args:
        source: The C text. Which functions become programs, and of which type,
            follows from their names: see :class:`~execwatch.kernel.image.Program`.
        include_dir: Where ``#include "..."`` looks.
        bcc_folder: The folder that holds BCC's package; found, if not given.
        defines: Macros, each as ``NAME=VALUE``.
        timeout: Seconds that BCC may take.

    Raises:
        BccNotFoundError: There is no BCC, or it does not work.
        CompileError: BCC refused the source, crashed, or took too long.
        PrivilegeError: BCC may not create maps.
    """
    options = (*OPTIONS, *(f"-D{define}" for define in defines))
    cflags = [f"-I{include_dir}", *options]
    found = _run_bcc(source, cflags, bcc_folder or bcc.require(), timeout)
    names = {entry.pop("fd"): entry["name"] for entry in found["maps"]}
    return ProgramImage(
        programs=tuple(_program(name, code, names) for name, code in sorted(found["programs"].items())),
        maps=tuple(_map(entry) for entry in sorted(found["maps"], key=lambda entry: str(entry["name"]))),
        license=found["license"],
        source_hash=digest(source, folder=include_dir),
        compiler=f"BCC {found['bcc']}, LLVM {found['clang'] or '(unknown)'}",
        options=options,
    )


def relocate(code: bytes, names: Mapping[int, str]) -> Tuple[bytes, _Relocations]:
    """Take the map descriptors out of instructions, and the marks that stand for a map's value.

    Args:
        code: ``struct bpf_insn`` in a row.
        names: Each map's name by its descriptor.

    Returns:
        The instructions with 0 in place of each, and which map belongs at which index.

    Raises:
        CompileError: An instruction refers to something else.
    """
    result = bytearray(code)
    relocations: List[Tuple[int, str]] = []
    padded = code + bytes(8)  # for the last, which has no second half
    index = 0
    while index < len(code) // 8:
        opcode, registers, low, high = struct.unpack_from("<BB2xI4xI", padded, index * 8)
        if opcode != LD_IMM64:
            index += 1
            continue
        kind, mark = registers >> 4, high << 32 | low
        if kind == PSEUDO_MAP_FD and low in names:
            relocations.append((index, names[low]))
            struct.pack_into("<I", result, index * 8 + 4, 0)
        elif not kind and mark in _MARKS:
            relocations.append((index, _MARKS[mark]))
            struct.pack_into("<BB2xI4xI", result, index * 8, opcode, registers | PSEUDO_MAP_VALUE << 4, 0, 0)
        elif kind:
            raise CompileError(f"instruction {index} refers to no map of the program")
        index += 2
    return bytes(result), tuple(relocations)


def _program(name: str, code: str, names: Mapping[int, str]) -> Program:
    instructions, relocations = relocate(base64.b64decode(code), names)
    return Program(name, instructions, relocations)


def _map(entry: Dict[str, Any]) -> MapDefinition:
    if entry["type"] == _PERF_EVENT_ARRAY:
        entry["max_entries"] = 0  # BCC puts this machine's CPUs there; the loader has to, where it runs
    return MapDefinition(**entry)


def _run_bcc(source: str, cflags: List[str], folder: str, timeout: float) -> Dict[str, Any]:
    _check_headers()
    with open(os.memfd_create("execwatch-image"), "r+b") as result:
        # -I -S -B: nothing of the environment, no site, and no bytecode written beside BCC.
        command = [sys.executable, "-I", "-S", "-B", _CHILD, str(result.fileno()), folder, *cflags]
        try:
            run = subprocess.run(
                command,
                input=source.encode(),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd=FOLDER,  # BCC adds it to the include path
                env=_environment(),
                pass_fds=[result.fileno()],
                timeout=timeout,
            )
        except subprocess.TimeoutExpired as exc:
            log = (exc.output or b"").decode(errors="replace")
            raise CompileError(f"BCC took more than {timeout:g} seconds", log) from None
        log = run.stdout.decode(errors="replace")
        result.seek(0)
        text = result.read()
    # Where the process ignores SIGCHLD every status reads as 0.
    if run.returncode or not text:
        raise _failure(run.returncode, log)
    found: Dict[str, Any] = json.loads(text)
    return found


def _environment() -> Dict[str, str]:
    # All there is: BCC heeds ARCH, TMPDIR and several BCC_*, and runs tools through PATH.
    return {"BCC_KERNEL_SOURCE": FOLDER, "LC_ALL": "C", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}


def _check_headers() -> None:
    # Where this one is missing BCC looks for headers itself, below /tmp and by modprobe.
    if not os.path.isfile(os.path.join(FOLDER, "include", "linux", "kconfig.h")):
        raise CompileError("execwatch's own header files are missing: install it again")


def _failure(status: int, log: str) -> Exception:
    if status == EXIT_NO_BCC:
        return bcc.unusable(log.strip())
    if "could not open bpf map" in log and "Operation not permitted" in log:
        return PrivilegeError(
            "BCC may not create maps: compiling needs the capabilities CAP_BPF and CAP_PERFMON, or root"
        )
    if status < 0:
        return CompileError(f"BCC could not compile the program, and ended by signal {-status}", log)
    return CompileError("BCC could not compile the program", log)
