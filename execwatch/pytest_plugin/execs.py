"""What a test asks: :class:`Execs`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Callable, List, Tuple, Union, final

from execwatch.pytest_plugin import matching

if TYPE_CHECKING:
    from execwatch.pytest_plugin.watch import Window
    from execwatch.recording.values import Recording

Word = Union[str, "os.PathLike[str]"]


@final
class Execs:
    """The programs that a test executed: what the fixture ``execs`` gives.

    From the set-up of the fixture on, until it is torn down with the test. Programs count of the
    test's process and of all its descendants, also of those that were started earlier. A program
    counts once it has started: attempts that failed don't. Each question is answered with
    everything that was executed before it was asked.
    """

    def __init__(self, window: Callable[[], Window]) -> None:
        self._window = window

    @property
    def commands(self) -> List[Tuple[str, ...]]:
        """The arguments of each program, ``argv[0]`` included, in the order of their start.

        As the kernel has them: a script's begin with its interpreter.
        """
        return [event.argv for event, _ in self._window().started]

    @property
    def recording(self) -> Recording:
        """All that was recorded so far, forks and exits too."""
        return self._window().recording()

    def assert_ran(self, program: Word, *arguments: Word) -> None:
        """Fail unless such a program was executed.

        Args:
            program: Its name (``"git"``) or path (``"/usr/bin/git"``): that of ``argv[0]``, or the
                name or path that was executed, or that of the file that ran. For a script also
                those of its interpreter.
            arguments: The first ones of it. A script's own, if ``program`` is the script.

        Raises:
            AssertionError: None was. Says what was executed instead, below what.
            TypeError: A word is neither a string nor a path.
        """
        __tracebackhide__ = True
        words = _words(program, arguments)
        window = self._window()
        if not any(matching.ran_as(event, words) for event, _ in window.started):
            from execwatch.pytest_plugin import messages

            raise AssertionError(messages.missing(words, window))

    def assert_not_ran(self, program: Word, *arguments: Word) -> None:
        """Fail if such a program was executed, or if events were lost, so that nobody knows.

        Args:
            program, arguments: As for :meth:`assert_ran`.

        Raises:
            AssertionError: It was, or it can't be told. Says out of what it was started.
            TypeError: A word is neither a string nor a path.
        """
        __tracebackhide__ = True
        words = _words(program, arguments)
        window = self._window()
        found = [pair for pair in window.started if matching.ran_as(pair[0], words, unreadable=True)]
        if found or window.unseen:
            from execwatch.pytest_plugin import messages

            raise AssertionError(messages.unwanted(words, found, window))

    def __repr__(self) -> str:
        count = len(self._window().started)
        return f"<Execs: {count} program{'s' * (count != 1)}>"


def _words(program: Any, arguments: Tuple[Any, ...]) -> Tuple[str, ...]:
    words = program, *arguments
    for word in words:
        if not isinstance(word, (str, os.PathLike)):
            raise TypeError(f"expected words, such as 'git', 'clone', got {word!r}")
    return tuple(str(os.fspath(word)) for word in words)
