"""The project's tasks: ``./dev SESSION``, which brings nox, or ``nox -s SESSION``."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["tests", "lint", "typing"]

PROJECT = nox.project.load_toml("pyproject.toml")
#: What is optional for users; pandas brings pyarrow.
EXTRAS = "cli,fast,notebook,pandas"
KERNEL_SKIPS = "EXECWATCH_REQUIRE_KERNEL"


def group(name: str) -> tuple[str, ...]:
    """The requirements of a dependency group; pip itself knows groups since 25.1 only."""
    return nox.project.dependency_groups(PROJECT, name)


@nox.session
def trace(session: nox.Session) -> None:
    """Show the live table while a small workload runs, as root."""
    session.install(".")
    command = [str(pathlib.Path(session.bin, "execwatch"))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as tracer:
        assert tracer.stdout is not None
        header = tracer.stdout.readline()  # attached
        if not header:
            session.error(f"{command[0]} ended with status {tracer.wait()}")
        print(header, end="", flush=True)
        # At its end it does what a user does: Ctrl-C.
        script = f"examples/demo_workload.sh > {os.devnull} 2>&1; kill -INT {tracer.pid}"
        with subprocess.Popen(["/bin/sh", "-c", script]):
            for line in tracer.stdout:
                print(line, end="", flush=True)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the unit tests, and as root those on the running kernel."""
    session.install(f".[{EXTRAS}]", *group("test"))
    if os.environ.get(KERNEL_SKIPS) != "1":
        session.log(f"kernel tests that can't run here are skipped; {KERNEL_SKIPS}=1 makes them fail")
    session.run("pytest", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, format and layers."""
    session.install(*group("lint"))
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("lint-imports")


@nox.session
def typing(session: nox.Session) -> None:
    """Check the types: the package's, the public ones as users see them, and the README's."""
    # pyright is a program for Node.js, which a wheel brings where the machine has none.
    session.install(f".[{EXTRAS}]", *group("test"), *group("typing"), "pyright[nodejs]")
    session.run("mypy")
    session.run("pyright", "--ignoreexternal", "--verifytypes", "execwatch")
    texts = session.create_tmp()
    session.run("python", "tests/readme.py", texts)
    shutil.copytree("tests/typing", texts, dirs_exist_ok=True)
    # From there, where the package is the installed one, as it is for its users.
    with session.chdir(texts):
        for checker in (["mypy", "--strict", "--config-file="], ["pyright"]):
            session.run(*checker, ".")


@nox.session
def images(session: nox.Session) -> None:
    """Rewrite what is made from wire.py and exec.bpf.c and is committed; as root, with BCC."""
    session.install("-e", ".")
    write = "import sys; from execwatch import wire; sys.stdout.write(wire.c_header())"
    header = session.run("python", "-c", write, silent=True)
    pathlib.Path("execwatch/build/record.h").write_text(str(header), encoding="utf-8")
    session.run("python", "-m", "execwatch.build")


@nox.session
def bench(session: nox.Session) -> None:
    """Measure what tracing costs, as root."""
    session.install(f".[{EXTRAS}]", *group("test"), *group("bench"))
    session.run("python", "-m", "benchmarks", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation; a warning is an error."""
    session.install(".", "sphinx>=7.4", "furo>=2024.8", "myst-parser>=3")
    session.run("sphinx-build", "-W", "--keep-going", "-q", "docs", "docs/_build", *session.posargs)


@nox.session
def soak(session: nox.Session) -> None:
    """Trace storms for ten minutes, as root, and see that nothing drifts; ``-- --minutes 120``: longer."""
    session.install(f".[{EXTRAS}]")
    session.run("python", "tests/soak/soak.py", *session.posargs)


@nox.session
def changelog(session: nox.Session) -> None:
    """Turn the fragments in changes/ into a section of CHANGELOG.md; ``-- --draft`` only shows it."""
    session.install("towncrier>=24.8", ".")
    session.run("towncrier", "build", *session.posargs)


_KERNEL_TESTS = (
    "exec", "odd", "processes", "tree", "context", "context_creds", "context_parts", "context_paths",
    "containers", "storm", "flood",
)  # fmt: skip

#: What is run on other kernels; the tests of the command and of compiling are not about the kernel.
KERNEL_TESTS = [f"tests/kernel/test_{name}.py" for name in _KERNEL_TESTS]
BUFFERS = ("--buffer", "ring", "--buffer", "perf")


def record_support(session: nox.Session, results: pathlib.Path) -> None:
    """Write the support table out of all that was recorded, whichever session did it."""
    session.run(
        "python", "tests/support.py", "docs/reference/support.md", *map(str, results.parent.glob("*.jsonl"))
    )


@nox.session
def vm(session: nox.Session) -> None:
    """Run the kernel tests under Debian's kernels 5.10, 6.1 and 6.12, emulated: an hour or more."""
    session.install(".", *group("test"), "virtme-ng")
    results = pathlib.Path(session.cache_dir, "vm.jsonl")
    results.unlink(missing_ok=True)
    tests = ["pytest", "-q", *KERNEL_TESTS, "--probe", "tracepoint", "--probe", "kprobe", *BUFFERS]
    session.run("python", "tests/vm/vm.py", "--timeout", "3600", "--results", str(results), "--", *tests)
    record_support(session, results)


#: Run in a tree; the image is one line.
COMPILE = """\
from execwatch.build import source
from execwatch.build.compiler import compile_image
print(compile_image(source.read("exec")).to_json().replace("\\n", ""))
"""


@nox.session
def loads(session: nox.Session) -> None:
    """Compile the image with BCC 0.18, 0.26 and 0.31, and load each into every kernel, as root."""
    session.install(".", "virtme-ng")
    folder = pathlib.Path(session.create_tmp())
    images = []
    for tree in ("bullseye", "bookworm", "trixie"):
        command = ("--tree", tree, "--env", "PYTHONPATH=/src", "--script", "-")
        install = "python3 -m venv /tmp/venv\n/tmp/venv/bin/pip install -q /src"
        script = f"{install}\n/tmp/venv/bin/python -c '{COMPILE}'"
        done = subprocess.run(
            ["python3", "tests/distro/distro.py", *command], input=script, capture_output=True, text=True
        )
        image = next((line for line in done.stdout.splitlines() if line.startswith("{")), None)
        if image is None:
            session.error(f"{tree} compiled nothing:\n{done.stdout}{done.stderr}")
        images.append(folder / f"{tree}.json")
        images[-1].write_text(image, encoding="utf-8")
    load = ["python", "tests/vm/load_images.py", *map(str, images)]
    session.run(*load)
    session.run("python", "tests/vm/vm.py", "--visible", str(folder), "--", *load)


@nox.session
def distro(session: nox.Session) -> None:
    """Run the kernel tests with the BCC and Python of Debian 11, 12 and 13, on this kernel, as root."""
    results = pathlib.Path(session.cache_dir, "distro.jsonl")
    results.unlink(missing_ok=True)
    session.run("python", "tests/distro/distro.py", "--results", str(results), *session.posargs)
    record_support(session, results)
