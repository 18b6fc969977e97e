"""A program image: what a compiler made, as plain data.

Instructions that refer to maps by name, the definitions of those maps, and a
note of what made them. Nothing in it depends on a kernel, so one image serves
them all: offsets, sizes and filters are map contents, set when it is loaded.
"""

from __future__ import annotations

import base64
import json
from typing import Any, Tuple

import attrs

FORMAT = 2

#: The instruction that loads 64 bits, and takes two instructions' room: with one of these kinds as its
#: source register, a map, or the address of the value of a map that has one.
LD_IMM64 = 0x18
PSEUDO_MAP_FD, PSEUDO_MAP_VALUE = 1, 2

#: bpf_prog_type by the prefix of a program's name (include/uapi/linux/bpf.h).
PROGRAM_TYPES = {"raw_tracepoint": 17, "kprobe": 2, "kretprobe": 2}
#: Of a raw tracepoint's program that is told the types of its arguments.
TRACING = 26


@attrs.frozen
class MapDefinition:
    """The arguments of BPF_MAP_CREATE, see bpf(2). Sizes in bytes."""

    name: str
    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int


@attrs.frozen
class Program:
    """One C function.

    Its name says where it goes: ``raw_tracepoint__sched_process_exec`` is a
    program of type raw_tracepoint for the tracepoint sched_process_exec; what
    follows another ``__`` tells variants of it apart.

    Attributes:
        name: The function's name.
        instructions: ``struct bpf_insn`` of 8 bytes each, little-endian; the
            descriptors in map loads are 0.
        relocations: ``(index, map name)`` of each instruction that loads a map, or the address
            of its value.
    """

    name: str
    instructions: bytes
    relocations: Tuple[Tuple[int, str], ...]

    @property
    def type(self) -> str:
        return self.name.split("__")[0]

    @property
    def target(self) -> str:
        return self.name.split("__")[1]


@attrs.frozen
class ProgramImage:
    """Programs and maps that belong together.

    Attributes:
        license: As the kernel wants it, e.g. ``"Dual MIT/GPL"``.
        source_hash: Of all the text that was compiled, see :func:`execwatch.build.source.digest`.
        compiler: Name and version of what compiled it, for people.
        options: The compiler's options that shape the code.
    """

    programs: Tuple[Program, ...]
    maps: Tuple[MapDefinition, ...]
    license: str
    source_hash: str
    compiler: str
    options: Tuple[str, ...]

    def to_json(self) -> str:
        """Return the image as text: one line a program and a map, so that changes can be read."""
        programs = [
            {
                "name": p.name,
                "relocations": [list(r) for r in p.relocations],
                "instructions": base64.b64encode(p.instructions).decode("ascii"),
            }
            for p in self.programs
        ]
        head = {
            "format": FORMAT,
            "license": self.license,
            "source_hash": self.source_hash,
            "compiler": self.compiler,
            "options": list(self.options),
        }
        lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
        lines.append(f'"maps": {_one_a_line([attrs.asdict(m) for m in self.maps])}')
        lines.append(f'"programs": {_one_a_line(programs)}')
        return "{\n" + ",\n".join(lines) + "\n}\n"

    @classmethod
    def from_json(cls, text: str) -> ProgramImage:
        """Read what :meth:`to_json` wrote.

        Raises:
            ValueError: ``text`` is anything else.
        """
        try:
            data = json.loads(text)
            if data["format"] != FORMAT:
                raise ValueError(f"image format {data['format']!r}, expected {FORMAT}")
            return cls(
                programs=tuple(_program(p) for p in data["programs"]),
                maps=tuple(MapDefinition(**m) for m in data["maps"]),
                license=data["license"],
                source_hash=data["source_hash"],
                compiler=data["compiler"],
                options=tuple(data["options"]),
            )
        except (KeyError, TypeError, AttributeError) as exc:
            raise ValueError(f"not a program image: {exc!r}") from exc


def _one_a_line(items: list[dict[str, Any]]) -> str:
    return "[\n" + ",\n".join("  " + json.dumps(item) for item in items) + "\n]"


def _program(data: dict[str, Any]) -> Program:
    instructions = base64.b64decode(data["instructions"], validate=True)
    if not instructions or len(instructions) % 8:
        raise ValueError(f"program {data['name']!r} is not a row of 8-byte instructions")
    return Program(
        name=data["name"],
        instructions=instructions,
        relocations=tuple((int(index), str(name)) for index, name in data["relocations"]),
    )
