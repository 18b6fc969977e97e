"""Write the support table out of what the sessions vm and distro recorded: JSON lines, a test each.

python tests/support.py docs/reference/support.md RESULTS.jsonl...
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Iterable

HEAD = """\
# Support

Each line is a run of the kernel tests, by `nox -s vm` (Debian's kernels, emulated) or `nox -s distro` (the
BCC and Python of a Debian release, on the kernel named). The table is written by those sessions, none of it
by hand. Skipped tests are those of a feature that the buffer or kernel lacks; each says so in the test.

| kernel | where | Python | BCC | probe | buffer | passed | failed | skipped |
|---|---|---|---|---|---|---|---|---|
"""

Row = tuple[str, ...]

FACTS = ("kernel", "place", "python", "bcc", "probe", "buffer")


def rows(records: Iterable[dict[str, Any]]) -> dict[Row, Counter[str]]:
    """Count the outcomes in each cell: of each test the last one, where it was run again.

    What needs no probe and no buffer is not counted.
    """
    last: dict[tuple[Row, str], str] = {}
    for record in records:
        if record["kind"] == "test" and record.get("probe"):
            facts = tuple(record.get(name) or "none" for name in FACTS)
            last[facts, record["test"]] = record["outcome"]
    cells: dict[Row, Counter[str]] = {}
    for (facts, _), outcome in last.items():
        cells.setdefault(facts, Counter())[outcome] += 1
    return cells


def table(cells: dict[Row, Counter[str]]) -> str:
    lines = []
    for cell, outcomes in sorted(cells.items()):
        failed = outcomes["failed"] + outcomes["error"]
        counts = (outcomes["passed"], failed, outcomes["skipped"])
        lines.append(f"| {' | '.join([*cell, *map(str, counts)])} |\n")
    return HEAD + "".join(lines)


def main(target: str, *files: str) -> None:
    records = [json.loads(line) for name in files for line in Path(name).read_text().splitlines()]
    Path(target).write_text(table(rows(records)), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
