"""A real build, against strace: the same executions, with the same arguments and results."""

from __future__ import annotations

import errno
import os
import pathlib
import re
import shutil
import subprocess
from typing import Dict, List, NamedTuple

import pytest

from execwatch import ExecEvent, ExecTracer, FailedExecEvent, Filter

from .conftest import Reason, skip

SOURCES = 7

CONFIGURE = r"""#!/bin/sh
# In the manner of autoconf: looks for things, along a PATH where most are not.
set -e
PATH="/nowhere:/usr/no such folder:$PATH"
for tool in gcc sed grep tr expr; do
    command -v $tool > /dev/null || exit 1
    env $tool --version > /dev/null 2>&1 || :
done
echo 'int main(void) { return 0; }' > conftest.c
for flag in -Wall -Wextra -fno-strict-aliasing -Wno-such-flag; do
    if gcc -Werror $flag -c conftest.c -o conftest.o 2> /dev/null; then
        CFLAGS="$CFLAGS $flag"
    fi
done
cat > run.sh <<'EOF'
echo "no first line" > /dev/null
EOF
chmod +x run.sh
./run.sh
printf '#!/bin/sh -e\nexpr "$1" : "a b" > /dev/null\n' > script
chmod +x script
./script 'a b
c' || :
sed "s/@CFLAGS@/$CFLAGS/" Makefile.in > Makefile
"""

MAKEFILE = """
CFLAGS = @CFLAGS@ -O1 -DNAME='"a name with  spaces"' -I. -Iinclude -Iother -D_GNU_SOURCE -Wno-unused-parameter
OBJECTS = {objects}
program: $(OBJECTS)
\tgcc $(CFLAGS) -o $@ $(OBJECTS)
\t./$@ "one" '' "three $$$$"
\t-no-such-program --at-all
%.o: %.c
\tgcc $(CFLAGS) -c $< -o $@
"""


class Execution(NamedTuple):
    """One call of execve or execveat as both tell it."""

    argv: tuple[bytes, ...]
    result: int


@pytest.fixture
def project(tmp_path: pathlib.Path) -> pathlib.Path:
    for tool in ("strace", "gcc", "make"):
        if not shutil.which(tool):
            skip(Reason.TOOL, tool)
    for number in range(SOURCES):
        body = (
            "int main(int c, char **v) { return 0; }"
            if number == 0
            else f"int f{number}(void) {{ return 1; }}"
        )
        (tmp_path / f"source{number}.c").write_text(body)
    objects = " ".join(f"source{number}.o" for number in range(SOURCES))
    (tmp_path / "Makefile.in").write_text(MAKEFILE.format(objects=objects))
    (tmp_path / "configure").write_text(CONFIGURE)
    (tmp_path / "configure").chmod(0o755)
    return tmp_path


def test_a_build_is_seen_as_strace_sees_it(project: pathlib.Path, tracer_buffer: str) -> None:
    argv_size = 16_384 if tracer_buffer == "perf" else 1 << 20
    traces = project / "traces"
    traces.mkdir()
    # One file a process: no line is split by another's.
    strace = ["strace", "-ff", "-o", str(traces / "pid"), "-e", "trace=execve,execveat", "-v", "-xx"]
    command = [*strace, "-s", "99999", "sh", "-c", "./configure && make -j2"]
    with ExecTracer(Filter(descendants_of=os.getpid()), failed=True, argv_size=argv_size) as tracer:
        done = subprocess.run(command, cwd=project, capture_output=True, text=True)
        events = tracer.read(timeout=0)
        stats = tracer.stats()
    assert done.returncode == 0, done.stderr
    assert stats.lost == 0
    expected = {int(path.suffix[1:]): read_strace(path.read_text()) for path in traces.iterdir()}
    expected = {pid: calls for pid, calls in expected.items() if calls}
    got: Dict[int, List[Execution]] = {}
    for event in events:
        assert isinstance(event, (ExecEvent, FailedExecEvent))
        got.setdefault(event.pid, []).append(execution(event))
    # strace itself, and its own attempts to find itself, are not in its record.
    for pid in set(got) - set(expected):
        assert all(call.argv[0] == b"strace" for call in got.pop(pid))
    assert got.keys() == expected.keys()
    for pid in expected:
        assert got[pid] == [normalised(call, got[pid], at) for at, call in enumerate(expected[pid])]
    calls = [call for calls in expected.values() for call in calls]
    assert len(calls) > 100
    assert {call.result for call in calls} >= {0, -errno.ENOENT, -errno.ENOEXEC}
    assert max(len(call.argv) for call in calls) > 20


_CALL = re.compile(
    r'^execve(?:at)?\((?:AT_FDCWD, |\d+, )?"[^"]*", \[(.*?)\], \[.*\)\s+= (-?\d+)(?: (\w+))?', re.M
)


def read_strace(text: str) -> List[Execution]:
    """Read calls whose strings are all hexadecimal: -xx."""
    return [
        Execution(
            tuple(bytes.fromhex(word.replace("\\x", "")) for word in re.findall(r'"([^"]*)"', words)),
            -getattr(errno, error) if error else int(result),
        )
        for words, result, error in _CALL.findall(text)
    ]


def execution(event: ExecEvent | FailedExecEvent) -> Execution:
    assert event.argv is not None
    assert event.argv_status == "complete"
    return Execution(tuple(word.encode("utf-8", "surrogateescape") for word in event.argv), event.retval)


def normalised(call: Execution, got: List[Execution], at: int) -> Execution:
    """strace tells a script's argv as it was passed, the kernel as the interpreter gets it."""
    if call.result == 0 and at < len(got) and got[at].argv != call.argv:
        rest = call.argv[1:]
        assert got[at].argv[len(got[at].argv) - len(rest) :] == rest
        assert got[at].argv[-len(rest) - 1].endswith((b"configure", b"script", b"run.sh"))
        return got[at]
    return call
