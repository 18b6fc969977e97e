from __future__ import annotations

import os
import pathlib
import subprocess
import sys
from typing import Dict, Iterator, Tuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from execwatch.kernel.subtree import _closure, scan, stat

#: A child that names itself, says so and waits.
NAME_ITSELF = (
    "import sys\n"
    "open('/proc/self/comm', 'wb').write(bytes.fromhex(sys.argv[1]))\n"
    "print(flush=True)\n"
    "sys.stdin.read()\n"
)


@pytest.fixture
def child(request: pytest.FixtureRequest) -> Iterator[int]:
    """A process with the comm that the test asks for."""
    command = [sys.executable, "-I", "-c", NAME_ITSELF, request.param.hex()]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        yield process.pid
        process.communicate()


@pytest.mark.parametrize(
    "child", [b"plain", b") R 1 1 1 (", b"a b", b"()", b"\xff\n1", b") Z 0 0"], ids=repr, indirect=True
)
def test_reads_parent_and_start_whatever_the_name(child: int) -> None:
    text = pathlib.Path(f"/proc/{child}/stat").read_bytes()
    start = int(text[text.rindex(b")") + 2 :].split()[19])
    assert start > 0
    assert stat(child) == (os.getpid(), start)
    assert scan()[child] == (os.getpid(), start)


def test_a_process_that_is_not_there_is_none() -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    assert stat(process.pid) is None


def test_a_scan_finds_this_process_and_its_parent() -> None:
    found = scan()
    assert found[os.getpid()][0] == os.getppid()
    assert os.getppid() in found


# -- The closure, of parents as {pid: (parent, start)} -----------------------------------


def test_roots_belong_to_their_own_tree() -> None:
    assert _closure({5: 1}, {5: (1, 100), 6: (1, 110)}) == {(5, 100): 1}


def test_descendants_are_found_whatever_their_pids() -> None:
    parents = {50: (1, 100), 7: (50, 110), 3: (7, 120), 90: (3, 130), 60: (1, 105), 61: (60, 106)}
    assert _closure({50: 1}, parents) == {(50, 100): 1, (7, 110): 1, (3, 120): 1, (90, 130): 1}


def test_a_process_in_two_trees_has_the_parts_of_both() -> None:
    parents = {5: (1, 100), 6: (5, 110), 7: (6, 120)}
    assert _closure({5: 1, 6: 2}, parents) == {(5, 100): 1, (6, 110): 3, (7, 120): 3}
    assert _closure({6: 2, 5: 1}, parents) == {(5, 100): 1, (6, 110): 3, (7, 120): 3}


def test_a_root_that_is_gone_has_no_tree() -> None:
    assert _closure({5: 1}, {6: (5, 100)}) == {}


def test_parents_in_a_circle_come_to_an_end() -> None:
    """Pids that were used again between a scan and the log can look so."""
    assert _closure({5: 1}, {5: (6, 100), 6: (5, 110)}) == {(5, 100): 1, (6, 110): 1}


PIDS = st.integers(1, 12)


@given(
    st.dictionaries(PIDS, st.integers(1, 3), max_size=3),
    st.dictionaries(PIDS, st.tuples(PIDS, st.integers(1, 1000)), max_size=12),
)
def test_means_walking_up_from_each_process(
    roots: Dict[int, int], parents: Dict[int, Tuple[int, int]]
) -> None:
    expected = {}
    for pid, (_, start) in parents.items():
        parts, at, seen = 0, pid, set()
        while at in parents and at not in seen:
            parts |= roots.get(at, 0)
            seen.add(at)
            at = parents[at][0]
        if parts:
            expected[pid, start] = parts
    assert _closure(roots, parents) == expected
