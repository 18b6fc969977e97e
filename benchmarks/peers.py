"""execwatch beside the other tracers of execs that Debian has: what each costs, and what it sees.

``python -m benchmarks.peers --only NAME...`` measures some of them, and "BCC execsnoop" where that can run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import resource
import signal
import subprocess
import tempfile
import time
from typing import Dict, Iterator, List, Sequence, Tuple

import attrs

from benchmarks.measure import Figure, Programs
from benchmarks.peer_tools import Running, Tool, bcc, first_event, need_tracefs, running, tools

_EACH = 10_000  # execs of each of the storm's two processes
_FAILURES, _SUCCESSES = 20_000, 23
_FILES = 40  # of the build
_SIZES = [1 << power for power in range(10, 22)]  # of an argv: 1 KiB to 2 MiB
#: Bytes of one argument; the kernel's limit is 128 KiB.
_SHAPES = {"100 bytes": 100, "1,000 bytes": 1000, "64 KiB": 65535}
_PEER = "libbpf execsnoop"

_COMMAND, _PROGRAM = "execwatch", "execwatch library"
_COMPLETE = {_COMMAND: 100.0, _PROGRAM: 100.0}
#: What is measured: its words, its unit, and the limits of some tools.
_WHAT: Dict[str, Tuple[str, str, Dict[str, float]]] = {
    "start": ("start to first event", "ms", {_COMMAND: 150}),
    "storm": ("storm of 2 processes, traced / untraced", "x", {_COMMAND: 1.10, _PROGRAM: 1.05}),
    "build": ("make -j2, traced / untraced", "x", {}),
    "call": ("added to an unrelated system call", "ns", {}),
    "cpu": ("CPU time for an exec of the storm", "us", {}),
    "ratio": (f"CPU time in the storm / {_PEER}'s", "x", {_COMMAND: 0.6}),
    "memory": ("resident memory after the storm", "MiB", {}),
    "own": ("resident memory, ring's pages aside", "MiB", {_COMMAND: 24, _PROGRAM: 24}),
    "seen": ("execs seen of the storm", "%", _COMPLETE),
    "flood": (f"execs seen of {_SUCCESSES} in a flood of failures", "%", _COMPLETE),
    "failed": (f"failures seen of {_FAILURES:,} in a flood", "%", {}),
    **{shape: (f"longest whole argv, {shape} each", "KiB", {}) for shape in _SHAPES},
}
_AT_LEAST = ("seen", "flood")

#: No number follows a program's path in the words of those who execute it: such rows are not counted.
_STORM = '"$0" "$1" 0 "$2" & one=$!; "$0" "$1" "$1" "$2" || exit 1; wait $one'
_MAKEFILE = "all: $(patsubst %.c,%.o,$(wildcard *.c))\n\tcc -o built *.o\n%.o: %.c\n\tcc -O1 -c -o $@ $<\n"
_SOURCE = """\
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
{functions}
"""
_FUNCTION = """
int add{number}_{part}(const char *text, int times)
{{
    int sum = errno;
    for (int i = 0; i < times; i++)
        sum += (int)strtol(text, NULL, 10) * i + (int)strlen(text);
    return printf("%d\\n", sum);
}}
"""


@attrs.frozen
class Work:
    """What is executed under the tools, in a folder of its own."""

    folder: str
    storm: Sequence[str]
    build: Sequence[str]
    getppid: str
    failing: Sequence[str]
    nothing: str
    absent: str
    marker: str
    hold: str

    @classmethod
    def prepare(cls, programs: Programs, folder: str) -> Work:
        nothing, absent = programs("nothing"), f"{folder}/absent"
        marker = pathlib.Path(folder, "marker")
        marker.write_bytes(pathlib.Path(nothing).read_bytes())
        marker.chmod(0o755)
        failing = pathlib.Path(folder, "failing")
        source = pathlib.Path(__file__).with_name("failing.c")
        subprocess.run(["cc", "-O2", "-static", "-o", failing, source], check=True)
        tree = pathlib.Path(folder, "tree")
        _write_tree(tree)
        return cls(
            folder=folder,
            storm=["/bin/sh", "-c", _STORM, programs("storm"), str(_EACH), nothing],
            build=["make", "-s", "-B", "-j2", "-C", str(tree)],
            getppid=programs("getppid"),
            failing=[str(failing), str(_FAILURES), str(_SUCCESSES), nothing, absent],
            nothing=nothing,
            absent=absent,
            marker=str(marker),
            hold=programs("hold"),
        )


def _write_tree(tree: pathlib.Path) -> None:
    tree.mkdir()
    (tree / "Makefile").write_text(_MAKEFILE)
    (tree / "main.c").write_text("int main(void)\n{\n    return 0;\n}\n")
    for number in range(_FILES):
        functions = "".join(_FUNCTION.format(number=number, part=part) for part in range(20))
        (tree / f"part{number}.c").write_text(_SOURCE.format(functions=functions))


def run(programs: Programs, rounds: int) -> Iterator[Figure]:
    """Yield for each tool that is there what it costs and what it sees; name those that are not.

    Raises:
        AssertionError: A tool doesn't start, ends early, or sees nothing.
    """
    with tempfile.TemporaryDirectory() as folder:
        work = Work.prepare(programs, folder)
        yield from measure(work, tools([work.marker, work.hold]), rounds)


def measure(work: Work, chosen: Sequence[Tool], rounds: int) -> Iterator[Figure]:
    need_tracefs()
    # Where this runs in a shell's background, Ctrl-C is ignored, and children would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    there = [tool for tool in chosen if os.path.exists(tool.program)]
    for tool in chosen:
        if tool not in there:
            print(f"{tool.name} is not here and left out: apt-get install {tool.package}", flush=True)
        elif not tool.wraps:  # all are known to work before any is measured; and caches are warm
            first_event(tool, work.marker)
    values: Dict[str, Dict[str, List[float]]] = {key: {} for key in _WHAT}
    for _ in range(rounds):
        for name, result in _all(there, work).items():
            for key, value in result.items():
                values[key].setdefault(name, []).append(value)
    for key, (what, unit, limits) in _WHAT.items():
        for name, measured in values[key].items():
            yield Figure(f"{name}: {what}", measured, unit, limits.get(name), key in _AT_LEAST)


def _all(there: Sequence[Tool], work: Work) -> Dict[str, Dict[str, float]]:
    """Measure each tool once; return by name and key."""
    results = {tool.name: _round(tool, work) for tool in there}
    for name, result in results.items():
        if _PEER in results and name != _PEER and "cpu" in result:
            result["ratio"] = result["cpu"] / results[_PEER]["cpu"]
    for tool in there:
        for name, result in _longest(tool, work).items():
            results.setdefault(name, {}).update(result)
    return results


def _round(tool: Tool, work: Work) -> Dict[str, float]:
    """Measure a tool once, untraced runs beside it."""
    bare = {"storm": _seconds(work.storm), "build": _seconds(work.build)}
    if tool.wraps:
        wrap = [*tool.command, f"{work.folder}/output"]
        result = {"storm": _seconds([*wrap, *work.storm]) / bare["storm"]}
        result["seen"] = _seen(tool, pathlib.Path(wrap[-1]).read_text(), work)
        return {**result, "build": _seconds([*wrap, *work.build]) / bare["build"]}
    call = _system_call(work)
    result = {"start": first_event(tool, work.marker) * 1000}
    with running(tool, tool.command, work.folder, work.marker) as tracer:
        result["call"] = _system_call(work) - call
        result.update(_storm(tool, tracer, work, bare["storm"]))
        result["build"] = _seconds(work.build) / bare["build"]
        result["seen"] = _seen(tool, tracer.stop(), work)
    if tool.failures:
        with running(tool, tool.failures, work.folder, work.marker) as tracer:
            _seconds(work.failing)
            tracer.wait_idle()
            text = tracer.stop()
        result["flood"] = _share(tool, text, work.nothing, _SUCCESSES)
        result["failed"] = _share(tool, text, work.absent, _FAILURES)
    return result


def _storm(tool: Tool, tracer: Running, work: Work, bare: float) -> Dict[str, float]:
    tracer.wait_idle()
    before = tracer.cpu()
    seconds = _seconds(work.storm)
    tracer.wait_idle()
    cpu = (tracer.cpu() - before) / (2 * _EACH)
    resident, ring = tracer.memory()
    result = {"storm": seconds / bare, "cpu": cpu * 1e6, "memory": resident}
    if tool.python:
        result["own"] = resident - ring
    return result


def _seen(tool: Tool, text: str, work: Work) -> float:
    """Return the percentage of the storm's execs that the tool shows."""
    share = _share(tool, text, work.nothing, 2 * _EACH)
    if share == 0:
        raise AssertionError(f"{tool.name} saw nothing of the storm")
    return share


def _share(tool: Tool, text: str, path: str, made: int) -> float:
    """Return the percentage of the execs of that path, each with a number of its own, that the tool shows."""
    numbers = tool.numbers(text, path)
    if len(numbers) > made or not set(numbers) <= set(range(made)):
        raise AssertionError(
            f"{tool.name} shows {len(numbers)} execs of {path}, some of them not of the {made} made"
        )
    return 100 * len(set(numbers)) / made


def _longest(tool: Tool, work: Work) -> Dict[str, Dict[str, float]]:
    """Return by the command's name and the arguments' shape the KiB of the longest argv, cut nowhere."""
    if tool.wraps:
        return {}
    results: Dict[str, Dict[str, float]] = {}
    for name, command in (tool.longest or {tool.name: tool.command}).items():
        lines = {(shape, size): _line(work.hold, shape, size) for shape in _SHAPES for size in _SIZES}
        with running(tool, command, work.folder, work.marker) as tracer:
            with contextlib.ExitStack() as held:
                for line in lines.values():
                    _hold(line, held)
                tracer.wait_idle()
            text = tracer.stop()
        results[name] = {}
        for shape in _SHAPES:
            whole = [size for size in _SIZES if lines[shape, size] in text]
            results[name][shape] = max(whole, default=0) / 1024
    return results


def _line(program: str, shape: str, size: int) -> str:
    """A command line of that many bytes, its NUL too, its end like no other's."""
    end = f"{shape}x{size}END".replace(" ", "").replace(",", "")
    length = size - len(program) - 1 - len(end) - 1
    filler = "x" * length
    cut = _SHAPES[shape]
    words = [filler[at : at + cut] for at in range(0, length, cut + 1)]
    return f"{program} {' '.join(words)}"[: size - len(end) - 2] + " " + end


def _hold(line: str, held: contextlib.ExitStack) -> None:
    """Execute that; it runs until ``held`` ends, as some tools look for it in /proc only then."""

    def large_stack() -> None:  # a quarter of it, and at most 6 MiB, may be arguments
        resource.setrlimit(resource.RLIMIT_STACK, (64 << 20, resource.getrlimit(resource.RLIMIT_STACK)[1]))

    process = subprocess.Popen(
        line.split(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, preexec_fn=large_stack, env={}
    )
    held.enter_context(process)  # which closes its input, and waits
    assert process.stdout is not None
    if process.stdout.read(1) != b"R":
        raise AssertionError("the program with a long argv did not start")


def _seconds(command: Sequence[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, stdin=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


def _system_call(work: Work) -> float:
    """Return the nanoseconds of one."""
    return float(subprocess.run([work.getppid], stdout=subprocess.PIPE, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="NAME", required=True)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as mine:
        work = Work.prepare(Programs(folder), mine)
        known = {tool.name: tool for tool in (*tools([work.marker, work.hold]), bcc())}
        unknown = set(options.only) - set(known)
        if unknown:
            parser.error(f"no tool {', '.join(sorted(unknown))}; there are {', '.join(known)}")
        figures = []
        for figure in measure(work, [known[name] for name in options.only], options.rounds):
            print(figure, flush=True)
            figures.append(figure)
    if options.json:
        text = json.dumps([figure.to_dict() for figure in figures], indent=1)
        pathlib.Path(options.json).write_text(text)


if __name__ == "__main__":
    main()
