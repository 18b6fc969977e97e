"""From a program image to programs that run: create maps, relocate, load, attach."""

from __future__ import annotations

import os
import struct
from typing import Dict, Iterable, List, Mapping

from execwatch.kernel import bpf, kprobe
from execwatch.kernel.image import (
    LD_IMM64,
    PROGRAM_TYPES,
    PSEUDO_MAP_FD,
    PSEUDO_MAP_VALUE,
    TRACING,
    Program,
    ProgramImage,
)

#: Bound now: a test that is watched may put something else in the builtin's place.
_open = open

#: struct bpf_insn: code, registers (source in the upper half), offset, immediate.
_INSTRUCTION = struct.Struct("<BBhi")


class LoadedImage:
    """Some programs of an image, and the maps that they use, in the kernel.

    All is closed by :meth:`close`; programs are detached one by one by closing
    what :meth:`attach` returned.

    Args:
        image: What to load.
        programs: The names of the programs to load; others cost nothing.
        max_entries: For some maps the number of entries (for a ring its bytes), else the image's.
        frozen: The value of each map that holds one and never changes. The verifier knows it.
        types: For tracepoints whose programs are to be told the types of their arguments, that
            type's number in the kernel's BTF.

    Raises:
        PrivilegeError, LoadError, NotSupportedError: As :mod:`execwatch.kernel.bpf` says.
    """

    def __init__(
        self,
        image: ProgramImage,
        programs: Iterable[str],
        max_entries: Mapping[str, int],
        frozen: Mapping[str, bytes],
        types: Mapping[str, int],
    ) -> None:
        self.maps: Dict[str, int] = {}
        self.programs: Dict[str, int] = {}
        self._max_entries = max_entries
        self._frozen = frozen
        self._types = types
        try:
            self.load(image, programs)
        except BaseException:
            self.close()
            raise

    def load(self, image: ProgramImage, programs: Iterable[str]) -> None:
        """Load more programs: they share the maps of those that are there.

        Raises:
            PrivilegeError, LoadError, NotSupportedError: As :mod:`execwatch.kernel.bpf` says.
        """
        present = {program.name: program for program in image.programs}
        chosen = [present[name] for name in programs if name not in self.programs]
        used = {name for p in chosen for _, name in p.relocations}
        for m in image.maps:
            if m.name in used and m.name not in self.maps:
                # 0: one for each CPU, which depends on the machine.
                entries = self._max_entries.get(m.name, m.max_entries) or possible_cpus()
                self.maps[m.name] = bpf.map_create(m.type, m.key_size, m.value_size, entries, m.flags, m.name)
                if m.name in self._frozen:
                    bpf.map_update(self.maps[m.name], bytes(4), self._frozen[m.name])
                    bpf.map_freeze(self.maps[m.name])
        for program in chosen:
            code = self.code(program, image.license)
            self.programs[program.name] = bpf.program_load(code, program.target)

    def code(self, program: Program, license: str) -> bpf.Code:
        """Return what the kernel is given of a program whose maps are there."""
        arguments = self._types.get(program.target, 0) if program.type == "raw_tracepoint" else 0
        type = TRACING if arguments else PROGRAM_TYPES[program.type]
        return bpf.Code(type, relocate(program, self.maps), license, arguments)

    def attach(self, name: str, target: str) -> int:
        """Attach a program to a tracepoint or function; return the link."""
        if name.startswith("raw_tracepoint"):
            return bpf.raw_tracepoint_open(target, self.programs[name], typed=target in self._types)
        return kprobe.attach(target, self.programs[name], at_return=name.startswith("kretprobe"))

    def skipped(self, name: str) -> int:
        """Return how often the kernel left out a run, because the program had interrupted itself.

        Told since Linux 5.12 (recursion_misses in the descriptor's fdinfo, bpf(2)); 0 before.
        """
        try:
            with _open(f"/proc/thread-self/fdinfo/{self.programs[name]}") as file:
                for line in file:
                    if line.startswith("recursion_misses:"):
                        return int(line.split()[1])
        except FileNotFoundError:  # /proc is not mounted, or shows another pid namespace
            pass
        return 0

    def close(self) -> None:
        """Let go of programs and maps."""
        for table in (self.programs, self.maps):
            while table:
                os.close(table.popitem()[1])


def relocate(program: Program, maps: Mapping[str, int]) -> bytes:
    """Return the program's instructions with the descriptors of these maps in their places.

    Raises:
        ValueError: A relocation points at something that loads no map.
    """
    code = bytearray(program.instructions)
    for index, name in program.relocations:
        at = index * _INSTRUCTION.size
        inside = 0 <= at < len(code)
        opcode, registers, offset, _ = _INSTRUCTION.unpack_from(code, at if inside else 0)
        if not inside or opcode != LD_IMM64 or registers >> 4 not in (PSEUDO_MAP_FD, PSEUDO_MAP_VALUE):
            raise ValueError(f"program {program.name!r}: instruction {index} loads no map")
        _INSTRUCTION.pack_into(code, at, opcode, registers, offset, maps[name])
    return bytes(code)


def possible_cpus(path: str = "/sys/devices/system/cpu/possible") -> int:
    """Return for how many CPUs a per-CPU map holds values: the possible ones, not those online."""
    with open(path) as file:
        last = file.read().strip().split(",")[-1]
    return int(last.split("-")[-1]) + 1


def percpu_values(fd: int, key: int, value_size: int, cpus: int) -> List[bytes]:
    """Return an element of a PERCPU_ARRAY, one value a CPU."""
    data = bpf.map_lookup(fd, struct.pack("<I", key), value_size * cpus)
    assert data is not None, "an array has all its elements"
    return [data[at : at + value_size] for at in range(0, len(data), value_size)]
