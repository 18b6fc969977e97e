"""``python -m benchmarks.chart FILE.json FOLDER``: the peers' figures as bar charts, one SVG file each.

A bar is a median, the thin line on it the spread from the least to the greatest.
"""

from __future__ import annotations

import json
import pathlib
import sys
from typing import Any, Dict, List
from xml.sax.saxutils import escape

#: A file's name, what follows the tool's in the names of its figures, the title, and where bars begin.
_CHARTS = (
    ("storm", "storm of 2 processes, traced / untraced", "Slow-down of a storm of execs (1: none)", 1.0),
    ("cpu", "CPU time for an exec of the storm", "CPU time of the tracer for an exec, µs", 0.0),
    ("start", "start to first event", "From start to the first event, ms", 0.0),
    ("memory", "resident memory after the storm", "Resident memory, buffers included, MiB", 0.0),
)
_WIDTH, _LABEL, _VALUE, _ROW, _TOP = 720, 190, 70, 30, 44
_OURS, _PEER = "#1a6fb0", "#9aa5b1"


def main(file: str, folder: str) -> None:
    figures = json.loads(pathlib.Path(file).read_text(encoding="utf-8"))
    for name, what, title, start in _CHARTS:
        bars = [figure for figure in figures if figure["name"].endswith(f": {what}")]
        if not bars:
            sys.exit(f"{file} has no figure of the {what}: was it made by python -m benchmarks peers?")
        target = pathlib.Path(folder, f"bench-{name}.svg")
        target.write_text(draw(sorted(bars, key=_median), title, start), encoding="utf-8")
        print(target)


def _median(figure: Dict[str, Any]) -> float:
    return float(figure["median"])


def draw(bars: List[Dict[str, Any]], title: str, start: float) -> str:
    height = _TOP + _ROW * len(bars) + 8
    # One that is far greater than the others would make them all look alike: its bar is cut, and open.
    median: float = sorted(map(_median, bars))[len(bars) // 2]
    most: float = min(max(max(bar["values"]) for bar in bars), start + 6 * (median - start) or 1)
    scale = (_WIDTH - _LABEL - _VALUE) / max(most - start, 1e-9)

    def x(value: float) -> float:
        return _LABEL + max(0.0, min(value, most) - start) * scale

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'aria-label="{escape(title)}" font-family="sans-serif" font-size="14" fill="#1c2430">',
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        f'<text x="12" y="26" font-size="16" font-weight="bold">{escape(title)}</text>',
    ]
    for row, bar in enumerate(bars):
        tool, y, value = bar["name"].partition(":")[0], _TOP + _ROW * row, _median(bar)
        least, greatest = min(bar["values"]), max(bar["values"])
        colour = _OURS if tool.startswith("execwatch") else _PEER
        dash = ' stroke="#1c2430" stroke-dasharray="4 3"' if value > most else ""
        lines += [
            f'<text x="{_LABEL - 10}" y="{y + 16}" text-anchor="end">{escape(tool)}</text>',
            f'<rect x="{_LABEL}" y="{y}" width="{x(value) - _LABEL:.1f}" height="22" fill="{colour}"{dash}/>',
            f'<path d="M{x(least):.1f} {y + 11}H{x(greatest):.1f}" stroke="#1c2430" stroke-width="1.5"/>',
            f'<text x="{x(max(value, greatest)) + 8:.1f}" y="{y + 16}">{value:.3g}</text>',
        ]
    return "\n".join([*lines, "</svg>", ""])


if __name__ == "__main__":
    main(*sys.argv[1:])
