"""Each example, run as its first lines say, against programs that are known."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest

import execwatch

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
        "slow_build",
        "pip_install",
        "path_lookups",
        "ci_guard",
        "unit_test",
        "pandas_analysis",
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


# -- What a command ran -----------------------------------------------------------------

MAKEFILE = """\
all: a b c
a b c:
\t/bin/true $@
\t/bin/cat /dev/null
\t@sh -c 'env true; exit 0'
"""


@pytest.fixture
def tree(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / "Makefile").write_text(MAKEFILE)
    return tmp_path


def run(name: str, *options: str, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(example(name, *options), capture_output=True, text=True, **more)


def test_slow_build(tree: pathlib.Path) -> None:
    done = run("slow_build", "--", "make", "-s", "-j2", cwd=tree)
    assert (done.returncode, done.stderr) == (0, "")
    programs, calls = done.stdout.split("\n\nslowest calls\n")
    counts = {line.split()[0]: int(line.split()[1]) for line in programs.splitlines()[1:]}
    # Neither make nor a shell that waits for another program does the work itself.
    assert counts == {"true": 6, "cat": 3}
    times = [float(line.split()[0]) for line in calls.splitlines()]
    assert len(times) == 9
    assert times == sorted(times, reverse=True)


def test_slow_build_gives_the_builds_own_status(tree: pathlib.Path) -> None:
    assert run("slow_build", "--", "make", "-s", "no-such-target", cwd=tree).returncode == 2


BACKEND = """\
import os, subprocess, zipfile

INFO = {"METADATA": "Metadata-Version: 2.1\\nName: demo\\nVersion: 1\\n", "RECORD": "",
        "WHEEL": "Wheel-Version: 1.0\\nGenerator: demo\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"}

def build_wheel(directory, config_settings=None, metadata_directory=None):
    subprocess.run(["cat", "/dev/null", "a marker"], stderr=subprocess.DEVNULL)
    with zipfile.ZipFile(os.path.join(directory, "demo-1-py3-none-any.whl"), "w") as wheel:
        for name, text in INFO.items():
            wheel.writestr(f"demo-1.dist-info/{name}", text)
    return "demo-1-py3-none-any.whl"
"""


def test_pip_install(tmp_path: pathlib.Path) -> None:
    """A package whose build executes something; it needs no other, so nothing is fetched."""
    (tmp_path / "backend.py").write_text(BACKEND)
    (tmp_path / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        '[project]\nname = "demo"\nversion = "1"\n'
    )
    done = run("pip_install", "--no-deps", str(tmp_path))
    assert done.returncode == 0, done.stderr
    shown, others = done.stdout.split("\n\n")
    assert any(line.endswith("cat /dev/null 'a marker' (exit code 1)") for line in shown.splitlines())
    assert "/_in_process.py build_wheel " in shown
    assert "  " + os.path.realpath("/usr/bin/cat") in others.splitlines()


def test_path_lookups(tmp_path: pathlib.Path) -> None:
    empty, other = tmp_path / "empty", tmp_path / "other"
    empty.mkdir()
    path = f"{empty}:{other}:/usr/bin"
    script = "env true; env true; env no-such-program"
    done = run("path_lookups", "--", "/bin/sh", "-c", script, env={**os.environ, "PATH": path})
    assert done.returncode == 127
    rows = {line.split()[2]: line.split()[:2] for line in done.stdout.splitlines() if "/" in line}
    # For `env true` the shell knows where env is without executing; env itself tries one after the other.
    assert rows[str(empty)] == rows[str(other)] == ["3", "0"]
    assert rows["/usr/bin"] == ["1", "5"]
    assert "7 lookups in vain for 6 programs that started\n" in done.stdout
    assert "most often: true (4), no-such-program (3)\n" in done.stdout


SCRIPT = "import subprocess; subprocess.run(['sh', '-c', 'env true; exit 0'])"


def test_ci_guard(tmp_path: pathlib.Path) -> None:
    guarded = ("--", sys.executable, "-c", SCRIPT)
    done = run("ci_guard", *guarded)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    script = f"{sys.executable} -c"
    assert lines[0] == "not allowed: sh -c 'env true; exit 0'"
    assert lines[1].startswith(f"  started by {script}")
    assert lines[2:5:2] == ["not allowed: env true", "not allowed: true"]
    assert lines[3].startswith(f"  started by sh -c 'env true; exit 0' <- {script}")

    assert run("ci_guard", "--allow", "sh", "--allow", "env", *guarded).stderr.count("not allowed") == 1
    for names in (("sh", "env", "true"), (os.path.realpath("/bin/sh"), "/usr/bin/env", "true")):
        allowed = [option for name in names for option in ("--allow", name)]
        done = run("ci_guard", *allowed, *guarded)
        assert (done.returncode, done.stderr) == (0, "")
    assert run("ci_guard", "--", sys.executable, "-c", "exit(5)").returncode == 5


def test_unit_test(tmp_path: pathlib.Path) -> None:
    # With a folder of its own: pytest closes the common one to others, and programs of ours lie in it.
    options = ("-q", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'inner'}")
    command = python("-m", "pytest", *options, str(EXAMPLES / "unit_test.py"))
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines()[-1].startswith("2 passed")


@pytest.mark.parametrize("name", ["build.parquet", "build.ndjson.gz"])
def test_pandas_analysis(tree: pathlib.Path, name: str) -> None:
    execwatch.run(["make", "-s", "-j2"], cwd=tree).save(tree / name)
    done = run("pandas_analysis", str(tree / name))
    assert (done.returncode, done.stderr) == (0, "")
    table, rest = done.stdout.split("\n\n")
    counts = {line.split()[0]: int(line.split()[1]) for line in table.splitlines()[2:]}
    assert counts == {"make": 1, "true": 6, "cat": 3, "sh": 3}
    at_once = int(rest.split()[2])
    assert 2 <= at_once <= 7
    assert rest.endswith("0 of 13 failed\n")
