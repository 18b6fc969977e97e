"""Lines for a person: in colour and as wide as the terminal, or plain.

Colours and widths need rich (the extra ``cli``), imported where a line is to be painted.
The text of a part comes through :mod:`execwatch.render` first: nothing here reads markup or
escapes in it.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Callable, List, Optional, Sequence, TextIO, Tuple

from execwatch.cli.output import Output

#: Text, and what it is: one of _STYLES, or "".
Part = Tuple[str, str]
Line = Sequence[Part]

#: As rich has them; of the colours that every terminal has.
_STYLES = {"heading": "bold", "name": "bold", "aside": "dim", "bad": "red"}

#: Characters that are written at once.
_PIECE = 1 << 16


class Screen:
    """Where lines go. Several are written at once: :meth:`flush` writes the rest.

    Args:
        stream: ``sys.stdout``, ``sys.stderr`` or a file.

    Attributes:
        terminal: Whether it is a terminal, see :func:`terminal`.
        plain: Whether a line is its parts' text and no more.
    """

    def __init__(self, stream: Optional[TextIO]) -> None:
        self.terminal: bool = terminal(stream)
        self._output = Output(stream)
        self._paint = _painter(stream)
        self.plain: bool = self._paint is _plain
        self._waiting: List[str] = []
        self._size = 0

    def line(self, parts: Line) -> None:
        """Print a line."""
        self.text(self._paint(parts) + "\n")

    def text(self, text: str) -> None:
        """Print lines as they are."""
        self._waiting.append(text)
        self._size += len(text)
        if self._size >= _PIECE:
            self.flush()

    def flush(self) -> None:
        """Have everything written.

        Raises:
            BrokenPipeError: Nobody reads it.
        """
        text = "".join(self._waiting)
        self._waiting.clear()
        self._size = 0
        self._output.write(text)


def terminal(stream: Optional[TextIO]) -> bool:
    """Whether it is a terminal that moves its cursor when it is told to."""
    if os.environ.get("TERM", "dumb") in ("dumb", "unknown", ""):
        return False
    return stream is not None and stream.isatty()


def leave_ctrl_c() -> None:
    """Begin a line: a terminal shows ``^C``, and what comes next would stand behind it."""
    if terminal(sys.stdout):
        with contextlib.suppress(OSError):
            os.write(sys.stdout.fileno(), b"\n")


def columns(stream: TextIO) -> int:
    """Return the width of the terminal, which may change at any time; 0: it doesn't tell."""
    try:
        return os.get_terminal_size(stream.fileno()).columns
    except OSError:
        return 0


def _painter(stream: Optional[TextIO]) -> Callable[[Line], str]:
    """Return what makes text of a line's parts: colours, see https://no-color.org and force-color.org."""
    shown = terminal(stream)
    coloured = not os.environ.get("NO_COLOR") and (shown or bool(os.environ.get("FORCE_COLOR")))
    if stream is None or not (shown or coloured):
        return _plain
    try:
        import rich.cells  # noqa: F401
    except ImportError:
        return _plain
    colour = _colours() if coloured else _plain
    if not shown or stream.encoding.lower().replace("-", "") != "utf8":
        return colour
    return lambda parts: colour(_fit(parts, columns(stream)))


def _plain(parts: Line) -> str:
    return "".join([text for text, _ in parts])


def _colours() -> Callable[[Line], str]:
    from rich.color import ColorSystem
    from rich.style import Style

    styles = {name: Style.parse(style) for name, style in _STYLES.items()}

    def paint(parts: Line) -> str:
        return "".join(
            [
                styles[style].render(text, color_system=ColorSystem.STANDARD) if style else text
                for text, style in parts
            ]
        )

    return paint


def _fit(parts: Line, width: int) -> Line:
    """Cut a line that is wider than the terminal."""
    from rich.cells import set_cell_size

    if not width or sum(_cells(text) for text, _ in parts) <= width:
        return parts
    left = width - 1
    fitted: List[Part] = []
    for text, style in parts:
        size = _cells(text)
        if size > left:
            fitted.append((set_cell_size(text, left) + "…", style))
            break
        fitted.append((text, style))
        left -= size
    return fitted


def _cells(text: str) -> int:
    if text.isascii():  # as nearly all is: rich takes its time
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)
