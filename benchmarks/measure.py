"""A figure, and the programs that the benchmarks run."""

from __future__ import annotations

import pathlib
import statistics
import subprocess
from typing import Any, List, Optional, Sequence

import attrs

_SOURCES = pathlib.Path(__file__).parent.parent / "tests" / "kernel" / "programs"


@attrs.frozen
class Figure:
    """One measured thing.

    Attributes:
        values: One a round.
        unit: Of the values.
        limit: What the median should not exceed (or, with ``at_least``, fall below).
    """

    name: str
    values: Sequence[float]
    unit: str
    limit: Optional[float] = None
    at_least: bool = False

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def missed(self) -> bool:
        if self.limit is None:
            return False
        return self.median < self.limit if self.at_least else self.median > self.limit

    def __str__(self) -> str:
        spread = f"({min(self.values):.4g} to {max(self.values):.4g})"
        limit = "" if self.limit is None else f"  {'at least' if self.at_least else 'at most'} {self.limit:g}"
        return f"{self.name:58} {self.median:10.4g} {self.unit:9} {spread:22}{limit}"

    def to_dict(self) -> dict[str, Any]:
        return {**attrs.asdict(self), "median": self.median}


class Programs:
    """Compiled test programs.

    Args:
        folder: Where to put them.
    """

    def __init__(self, folder: str) -> None:
        self._folder = pathlib.Path(folder)

    def __call__(self, name: str) -> str:
        target = self._folder / name
        if not target.exists():
            options: List[str] = ["-nostdlib"] if name == "nothing" else []
            subprocess.run(
                ["cc", "-O2", "-static", *options, "-o", target, _SOURCES / f"{name}.c"], check=True
            )
        return str(target)
