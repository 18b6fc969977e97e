"""Each example, run as its first lines say, against programs that are known."""

from __future__ import annotations

import pathlib
import subprocess

import pytest

from .commands import again_and_again, execute, python, traced

EXAMPLES = pathlib.Path(__file__).resolve().parent.parent.parent / "examples"


def example(name: str, *options: str) -> tuple[str, ...]:
    return python(str(EXAMPLES / f"{name}.py"), *options)


def test_all_of_them_are_here_and_short() -> None:
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert names == {
        "iterator",
        "callbacks",
        "asyncio_events",
        "filter_subtree",
        "select_loop",
        "shell_in_container",
    }
    for path in EXAMPLES.glob("*.py"):
        assert len(path.read_text().splitlines()) < 60, path.name


def test_iterator() -> None:
    with traced(*example("iterator", "--count", "23")) as program:
        assert program.line() == b"counting"
        for _ in range(23):
            execute("/bin/true")
        done = program.end()
    assert (done.status, done.errors) == (0, "")
    counts = dict(reversed(line.split(None, 1)) for line in done.output.decode().splitlines())
    # Others may start programs too; none of the 23 can have come late.
    assert int(counts["'true'"]) > 0
    assert sum(map(int, counts.values())) <= 23


def test_callbacks() -> None:
    with traced(*example("callbacks")) as program:
        assert program.line() == b"watching for shells"
        execute("/bin/true")
        execute("sh", "-c", ":", "a marker", path="/bin/sh")
        execute("sh", "-ec", ":", "-i", path="/bin/sh")
        line = b""
        while b"sh -ec : -i" not in line:
            assert b"/bin/true" not in line
            line = program.line()
        assert b" shell of uid 0: " in line
        assert b"         and it is interactive, started by " in program.line()
        program.interrupt()
        assert program.end()[::2] == (0, "")


def test_callbacks_end_by_themselves() -> None:
    done = subprocess.run(example("callbacks", "--duration", "0.1"), capture_output=True, check=True)
    assert done.stdout.startswith(b"watching for shells\n")
    assert done.stderr == b""


def test_asyncio_events() -> None:
    with traced(*example("asyncio_events", "--duration", "2.5")) as program, again_and_again("/bin/true"):
        done = program.end()
    assert (done.status, done.errors) == (0, "")
    rates = [int(line.split()[1]) for line in done.output.decode().splitlines()]
    assert len(rates) == 2
    assert max(rates) > 0


@pytest.mark.parametrize("hide", [(), ("--hide", "true")])
def test_filter_subtree(hide: tuple[str, ...]) -> None:
    command = ["sh", "-c", "/bin/true inner; sh -c '/bin/cat /dev/null; /bin/true deep'; exit 3"]
    with again_and_again("/bin/true", "a stranger"):
        done = subprocess.run(example("filter_subtree", *hide, "--", *command), capture_output=True)
    assert (done.returncode, done.stderr) == (3, b"")
    shown = [line.split(None, 2)[2] for line in done.stdout.decode().splitlines()]
    expected = [
        "sh -c '" + command[2].replace("'", "'\"'\"'") + "'",
        "/bin/true inner",
        "sh -c '/bin/cat /dev/null; /bin/true deep'",
        "/bin/cat /dev/null",
        "/bin/true deep",
    ]
    assert shown == [line for line in expected if not (hide and line.startswith("/bin/true"))]


def test_select_loop() -> None:
    with traced(*example("select_loop"), stdin=subprocess.PIPE) as program:
        assert program.line() == b"type a word, or Ctrl-D to end"
        assert program.process.stdin is not None
        program.process.stdin.write(b"marker\n")
        program.process.stdin.flush()
        line = program.line()
        while line != b"now with 'marker'":
            line = program.line()
        execute("/bin/true", "other")
        pid = execute("/bin/true", "marker")
        assert program.line() == b"%7d /bin/true marker" % pid
        program.process.stdin.close()
        program.process.stdin = None
        assert program.end()[::2] == (0, "")
