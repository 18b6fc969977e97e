"""A program's C text, and the hash that tells whether an image was made of it."""

from __future__ import annotations

import glob
import os
import zlib
from typing import Iterator, Tuple

#: Holds the sources, their headers, and ``include/``: what BCC takes for the
#: kernel's headers. It asks for few of them, and these stand in.
FOLDER = os.path.dirname(os.path.abspath(__file__))

#: What is passed to clang besides include paths. A call of an unknown function
#: and a mix-up of pointers are mistakes here, whatever C makes of them.
OPTIONS = (
    "-Werror=implicit-function-declaration",
    "-Werror=incompatible-pointer-types",
    "-Werror=int-conversion",
)


def read(name: str, *, folder: str = FOLDER) -> str:
    """Return the C text of a program, such as ``"exec"``."""
    with open(os.path.join(folder, f"{name}.bpf.c"), encoding="utf-8") as file:
        return file.read()


def digest(text: str, *, folder: str = FOLDER) -> str:
    """Return a checksum (CRC-32) of all that shapes the code of ``text`` but the compiler.

    It tells versions apart, no more: to import SHA-256 would take longer than all of this.

    Args:
        text: The C text.
        folder: Where its own headers lie.
    """
    parts = [("", text.encode()), *_headers(folder, "*.h"), *_headers(FOLDER, "include/**/*.h")]
    parts += [("option", option.encode()) for option in OPTIONS]
    total = 0
    for name, content in parts:
        total = zlib.crc32(f"{name} {len(content)}\n".encode() + content, total)
    return f"{total:08x}"


def _headers(folder: str, pattern: str) -> Iterator[Tuple[str, bytes]]:
    for path in sorted(glob.glob(os.path.join(folder, pattern), recursive=True)):
        with open(path, "rb") as file:
            yield os.path.relpath(path, folder), file.read()
