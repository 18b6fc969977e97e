"""The shipped image, and one that BCC makes here and now of the same source, are the same."""

from __future__ import annotations

import os
import pathlib
from typing import Callable

import pytest

from execwatch import ExecTracer
from execwatch.build import bcc, compiler, images, source
from execwatch.kernel import cache

from .conftest import COUNT, Reason, skip
from .test_exec import execute, mine

Programs = Callable[[str], str]


@pytest.fixture(autouse=True)
def _bcc(_privileged: None) -> None:
    if bcc.locate() is None:
        skip(Reason.BCC)


def test_a_rebuild_is_the_committed_image() -> None:
    shipped = images.load("exec")
    rebuilt = compiler.compile_image(source.read("exec"))
    assert rebuilt.source_hash == shipped.source_hash, "run nox -s images"
    assert rebuilt.maps == shipped.maps
    assert rebuilt.license == shipped.license == "Dual MIT/GPL"
    assert [program.name for program in rebuilt.programs] == [program.name for program in shipped.programs]
    if rebuilt.compiler == shipped.compiler:
        assert rebuilt == shipped


def test_without_the_shipped_image_it_is_compiled_cached_and_traces(
    programs: Programs, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    compiled = []
    compile_image = compiler.compile_image

    def count(*args: str, **options: str) -> object:
        compiled.append(args)
        return compile_image(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(images, "_shipped", lambda *_: None)
    monkeypatch.setattr(compiler, "compile_image", count)
    monkeypatch.setattr(cache, "default_directory", lambda: str(tmp_path / "cache"))
    nothing = programs("nothing").encode()
    for _ in range(2):
        with ExecTracer(mine()) as tracer:
            for number in range(COUNT):
                execute([nothing, str(number).encode()])
            events = tracer.read(timeout=0)
        assert [event.argv[1] for event in events] == [str(number) for number in range(COUNT)]
        assert {(event.ppid, event.comm, event.argv_status) for event in events} == {
            (os.getpid(), "nothing", "complete")
        }
    assert len(compiled) == 1, "the second start should find the first one's image"
