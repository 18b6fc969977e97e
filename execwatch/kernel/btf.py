"""Where the members of the kernel's structures are, from its own type information.

/sys/kernel/btf/vmlinux holds every type of the running kernel in the BPF Type
Format (Documentation/bpf/btf.rst): a header, types of varying length that refer
to each other by their number, and strings. It is walked once, in Python; the
answer is worth remembering (:mod:`execwatch.kernel.offsets`).
"""

from __future__ import annotations

import struct
from array import array
from typing import Dict, Iterator, Optional, Tuple

from execwatch.errors import NotSupportedError

VMLINUX = "/sys/kernel/btf/vmlinux"

_MAGIC = 0xEB9F
_PTR, _ARRAY, _STRUCT, _UNION, _ENUM = 2, 3, 4, 5, 6
_TYPEDEF, _VOLATILE, _CONST, _RESTRICT, _TYPE_TAG = 8, 9, 10, 11, 18
_FUNC_PROTO = 13
_SEE_THROUGH = (_TYPEDEF, _VOLATILE, _CONST, _RESTRICT, _TYPE_TAG)

#: Words (of 4 bytes) behind the three of a type's head: fixed, and for each of its ``vlen`` parts.
_EXTRA = {
    1: (1, 0),  # INT
    _PTR: (0, 0),
    _ARRAY: (3, 0),
    _STRUCT: (0, 3),
    _UNION: (0, 3),
    _ENUM: (0, 2),
    7: (0, 0),  # FWD
    _TYPEDEF: (0, 0),
    _VOLATILE: (0, 0),
    _CONST: (0, 0),
    _RESTRICT: (0, 0),
    12: (0, 0),  # FUNC
    _FUNC_PROTO: (0, 2),
    14: (1, 0),  # VAR
    15: (0, 3),  # DATASEC
    16: (0, 0),  # FLOAT
    17: (1, 0),  # DECL_TAG
    _TYPE_TAG: (0, 0),
    19: (0, 3),  # ENUM64
}


class Btf:
    """The types of one kernel.

    Args:
        data: The bytes of a BTF blob.

    Raises:
        ValueError: ``data`` is none, or a version that isn't known.
    """

    def __init__(self, data: bytes) -> None:
        try:
            magic, version, _, header, type_at, type_size, string_at, string_size = struct.unpack_from(
                "<HBBIIIII", data
            )
        except struct.error as exc:
            raise ValueError(f"no BTF: {exc}") from exc
        if magic != _MAGIC or version != 1:
            raise ValueError(f"no BTF of version 1: magic {magic:#x}, version {version}")
        self._words = array("I", data[header + type_at : header + type_at + type_size])
        self._strings = data[header + string_at : header + string_at + string_size]
        if (len(self._words) * 4, len(self._strings)) != (type_size, string_size):
            raise ValueError(f"no BTF: cut short after {len(data)} bytes")
        self._starts = self._walk()
        self._names = self._index()

    def offset(self, structure: str, path: str) -> Optional[int]:
        """Return the offset in bytes of a member, through structures within and anonymous ones.

        Args:
            structure: Its tag, e.g. ``"task_struct"``.
            path: Members joined by dots, e.g. ``"ns.inum"``.

        Returns:
            None where the kernel has no such structure or member, or it is a bit field.
        """
        at: Optional[int] = self._names.get((_STRUCT, structure))
        total = 0
        for name in path.split("."):
            found = self._member(self._resolve(at), name) if at is not None else None
            if found is None:
                return None
            bits, at = found
            total += bits
        return total // 8 if total % 8 == 0 else None

    def bit_field(self, structure: str, name: str) -> Optional[int]:
        """Return the offset in bits of a bit field, one bit wide; None where there is none of that name."""
        number = self._names.get((_STRUCT, structure))
        if number is None:
            return None
        at = self._starts[number]
        sized = self._words[at + 1] >> 31
        for part in range(at + 3, at + 3 + 3 * (self._words[at + 1] & 0xFFFF), 3):
            size_and_offset = self._words[part + 2]
            if sized and size_and_offset >> 24 == 1 and self._string(self._words[part]) == name:
                return size_and_offset & 0xFFFFFF
        return None

    def enumerator(self, enum: str, name: str) -> Optional[int]:
        """Return the value of a member of an enum, e.g. ``("cgroup_subsys_id", "memory_cgrp_id")``."""
        at = self._names.get((_ENUM, enum))
        if at is None:
            return None
        word = self._starts[at]
        for part in range(word + 3, word + 3 + 2 * (self._words[word + 1] & 0xFFFF), 2):
            if self._string(self._words[part]) == name:
                return self._words[part + 1]
        return None

    def parameters(self, typedef: str) -> Optional[int]:
        """Return how many parameters the function has that ``typedef`` points to; None if there is none."""
        number = self._names.get((_TYPEDEF, typedef))
        if number is None:
            return None
        at = self._starts[self._resolve(number)]
        if self._words[at + 1] >> 24 & 0x1F == _PTR:
            at = self._starts[self._words[at + 2]]
        info = self._words[at + 1]
        return info & 0xFFFF if info >> 24 & 0x1F == _FUNC_PROTO else None

    def typedef(self, name: str) -> Optional[int]:
        """Return the number of a typedef, by which bpf(2) knows it; None where there is none."""
        return self._names.get((_TYPEDEF, name))

    def _walk(self) -> array[int]:
        """Return where each type begins, by its number; 0 is void."""
        words, extra, at, end = self._words, _EXTRA, 0, len(self._words)
        starts = array("I", (0,))
        append = starts.append
        while at < end:
            append(at)
            info = words[at + 1]
            try:
                fixed, each = extra[info >> 24 & 0x1F]
            except KeyError as exc:
                raise ValueError(f"unknown BTF kind {exc}") from exc
            at += 3 + fixed + each * (info & 0xFFFF)
        return starts

    def _index(self) -> Dict[Tuple[int, str], int]:
        """Return the number of each type that is asked for by its kind and name."""
        words = self._words
        names: Dict[Tuple[int, int], int] = {}
        for number, at in enumerate(self._starts):
            kind = words[at + 1] >> 24 & 0x1F if number else 0
            if kind in (_STRUCT, _ENUM, _TYPEDEF) and words[at]:
                names.setdefault((kind, words[at]), number)
        wanted: Dict[Tuple[int, str], int] = {}
        for (kind, name), number in names.items():
            wanted.setdefault((kind, self._string(name)), number)
        return wanted

    def _string(self, at: int) -> str:
        return self._strings[at : self._strings.index(b"\0", at)].decode("ascii", "replace")

    def _resolve(self, number: int) -> int:
        """See through typedefs and qualifiers."""
        at = self._starts[number]
        while number and self._words[at + 1] >> 24 & 0x1F in _SEE_THROUGH:
            number = self._words[at + 2]
            at = self._starts[number]
        return number

    def _members(self, number: int) -> Iterator[Tuple[int, int, int]]:
        """The members of a structure or union, but for bit fields: name, type, offset in bits."""
        at = self._starts[number]
        info = self._words[at + 1]
        if not number or info >> 24 & 0x1F not in (_STRUCT, _UNION):
            return
        # With the flag set an offset holds a bit field's size in its upper byte.
        sized = info >> 31
        for part in range(at + 3, at + 3 + 3 * (info & 0xFFFF), 3):
            if not (sized and self._words[part + 2] >> 24):
                yield self._words[part], self._words[part + 1], self._words[part + 2]

    def _member(self, number: int, name: str) -> Optional[Tuple[int, int]]:
        """Return a member's offset in bits and its type."""
        for name_at, type_number, bits in self._members(number):
            if name_at:
                if self._string(name_at) == name:
                    return bits, type_number
                continue
            inner = self._member(self._resolve(type_number), name)
            if inner:
                return bits + inner[0], inner[1]
        return None


def load(path: str = VMLINUX) -> Btf:
    """Read the running kernel's types.

    Raises:
        NotSupportedError: It has none (CONFIG_DEBUG_INFO_BTF), or none that can be read.
    """
    try:
        with open(path, "rb") as file:
            return Btf(file.read())
    except OSError as exc:
        raise NotSupportedError(
            f"BTF ({path}: {exc.strerror})", "5.2", "a kernel built with CONFIG_DEBUG_INFO_BTF=y"
        ) from exc
    except ValueError as exc:
        raise NotSupportedError(f"BTF that can be read ({path}: {exc})") from exc
