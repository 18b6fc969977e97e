"""The README's Python blocks, for the tests that check and run them.

``python tests/readme.py FOLDER`` writes each into a file of its own.
"""

from __future__ import annotations

import pathlib
import re
import sys
from typing import NamedTuple

README = pathlib.Path(__file__).resolve().parent.parent / "README.md"

_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)


class Block(NamedTuple):
    """One block.

    Attributes:
        line: Where it begins in the README.
        heading: The section it stands in.
        code: Its text.
    """

    line: int
    heading: str
    code: str


def blocks() -> list[Block]:
    text = README.read_text(encoding="utf-8")
    found = []
    for match in _BLOCK.finditer(text):
        before = text[: match.start()]
        heading = re.findall(r"^#+ (.*)$", before, re.M)[-1]
        found.append(Block(before.count("\n") + 2, heading, match[1]))
    return found


def main(folder: str) -> None:
    for block in blocks():
        path = pathlib.Path(folder) / f"readme_line_{block.line}.py"
        path.write_text(block.code, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
