"""Compiling with the BCC of this machine, and what happens when something is in its way."""

from __future__ import annotations

import enum
import glob
import json
import logging
import os
import shutil
import signal
import struct
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any, Callable, List, Tuple

import attr
import pytest
import typing_extensions

import execwatch.build
from execwatch import wire
from execwatch.build import bcc, compiler, images, source
from execwatch.build.compiler import compile_image
from execwatch.errors import BccNotFoundError, CompileError
from execwatch.kernel.image import Program, ProgramImage

ROOT = Path(execwatch.build.__file__).parents[2]

SAMPLE = """
#define BPF_LICENSE Dual MIT/GPL
#include <linux/types.h>
#include "sample.h"

BPF_RINGBUF_OUTPUT(events, 2);
BPF_HASH(tree, u32, struct value, 4096);
BPF_ARRAY(config, struct value, 1);
BPF_PERCPU_ARRAY(scratch, struct record, 1);
BPF_PERF_OUTPUT(perf);

/* BCC's older versions know no bpf_ringbuf_query; of this they make the map's descriptor. */
static long (*ringbuf_query)(void *ring, u64 flags) = (void *)134;
#define bpf_ringbuf_output(ring, data, size, flags) \\
    ((size) == 0 ? ringbuf_query(ring, flags) : bpf_ringbuf_output(ring, data, size, flags))

RAW_TRACEPOINT_PROBE(sched_process_exec)
{
    int zero = 0;
    struct value *c = config.lookup(&zero);
    struct record *r = scratch.lookup(&zero);

    if (!c || !r)
        return 0;
    r->pid = bpf_get_current_pid_tgid() >> 32;
    bpf_probe_read_kernel(r->comm, sizeof(r->comm), (void *)(ctx->args[0] + c->offset));
    if (tree.lookup(&r->pid) || (u64)events.ringbuf_output(r, 0, BPF_RB_AVAIL_DATA) > 4096)
        return 0;
    events.ringbuf_output(r, sizeof(*r), 0);
    perf.perf_submit(ctx, r, sizeof(*r));
    return 0;
}

RAW_TRACEPOINT_PROBE(sched_process_exit)
{
    u32 pid = bpf_get_current_pid_tgid() >> 32;
    tree.delete(&pid);
    return 0;
}
"""

HEADER = """
struct value { u64 offset; u32 flags; };
struct record { u32 pid; char comm[16]; };
"""

BROKEN = SAMPLE.replace("r->pid =", "r->no_such_member =", 1)


class Missing(enum.Enum):
    """Why a test can't run here."""

    ROOT = "root"
    BCC = "BCC"


def require(present: object, missing: Missing) -> None:
    if not present:
        stop = pytest.fail if os.environ.get("EXECWATCH_REQUIRE_KERNEL") == "1" else pytest.skip
        stop(f"missing: {missing.value}")


@pytest.fixture(autouse=True)
def compile_allowed() -> None:
    require(os.geteuid() == 0, Missing.ROOT)
    require(bcc.locate(), Missing.BCC)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A source with its header, as in the package."""
    folder = tmp_path / "source"
    folder.joinpath("shipped").mkdir(parents=True)
    folder.joinpath("sample.bpf.c").write_text(SAMPLE)
    folder.joinpath("sample.h").write_text(HEADER)
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> str:
    return str(tmp_path / "cache")


@pytest.fixture
def compiles(monkeypatch: pytest.MonkeyPatch) -> List[str]:
    """Grows by one with each compilation."""
    texts: List[str] = []

    def count(text: str, **options: Any) -> ProgramImage:
        texts.append(text)
        return compile_image(text, **options)

    monkeypatch.setattr(compiler, "compile_image", count)
    return texts


def compile_sample(folder: Path) -> ProgramImage:
    return compile_image(SAMPLE, include_dir=str(folder))


class TestImage:
    def test_has_the_programs_and_maps_of_the_source(self, folder: Path) -> None:
        image = compile_sample(folder)
        assert [p.name for p in image.programs] == [
            "raw_tracepoint__sched_process_exec",
            "raw_tracepoint__sched_process_exit",
        ]
        maps = {m.name: attr.astuple(m)[1:] for m in image.maps}
        assert maps == {  # type, key, value, entries, flags
            "config": (2, 4, 16, 1, 0),
            "events": (27, 0, 0, 2 * 65536, 0),
            "perf": (4, 4, 4, 0, 0),  # as many as there are CPUs where it is loaded
            "scratch": (6, 4, 20, 1, 0),
            "tree": (1, 4, 16, 4096, 0),
        }
        assert image.license == "Dual MIT/GPL"
        assert image.source_hash == source.digest(SAMPLE, folder=str(folder))
        assert image.compiler.startswith("BCC ")
        assert "unknown" not in image.compiler

    def test_what_is_left_out_by_a_macro_is_not_in_it(self) -> None:
        text = source.read("exec")
        defines = ("NESTED=0", "KPROBE=0", "PROCESSES=0", "FAILED=0")
        image = compile_image(text, defines=defines)
        assert [program.name for program in image.programs] == ["raw_tracepoint__sched_process_exec"]
        assert image.options[-4:] == tuple(f"-D{define}" for define in defines)

    def test_relocations_stand_where_maps_are_used(self, folder: Path) -> None:
        on_exec, on_exit = compile_sample(folder).programs
        used = [name for _, name in on_exec.relocations]
        assert sorted(used) == ["config", "events", "events", "perf", "scratch", "tree"]
        assert [name for _, name in on_exit.relocations] == ["tree"]
        for index, _ in on_exec.relocations:
            load = on_exec.instructions[index * 8 : index * 8 + 16]
            assert load[0] == 0x18
            assert load[1] >> 4 == 1
            assert not any(load[4:])

    def test_a_mark_becomes_the_address_of_the_configuration(self, folder: Path) -> None:
        mark = f'asm("%0 = {wire.CONFIG_MARK:#x} ll" : "=r"(c))'
        near = f'asm volatile("%0 = {wire.CONFIG_MARK + 1:#x} ll" : "=r"(other))'
        text = SAMPLE.replace("c = config.lookup(&zero);", f"c; u64 other; {mark}; {near};", 1)
        plain, _ = compile_sample(folder).programs
        marked, _ = compile_image(text, include_dir=str(folder)).programs

        def kinds(program: Program) -> List[Tuple[int, str]]:
            found = []
            for index, name in program.relocations:
                _, registers, *number = struct.unpack_from("<BB2xI4xI", program.instructions, index * 8)
                assert number == [0, 0]
                found.append((registers >> 4, name))
            return sorted(found)

        others = [(1, name) for name in ("events", "events", "perf", "scratch", "tree")]
        assert kinds(plain) == sorted([(1, "config"), *others])
        assert kinds(marked) == sorted([(2, "config"), *others])
        # The other number is still there, in both halves of a load.
        low, high = (wire.CONFIG_MARK + 1) & 0xFFFFFFFF, wire.CONFIG_MARK >> 32
        loads = [
            struct.unpack_from("<BB2xI4xI", marked.instructions, at)
            for at in range(0, len(marked.instructions) - 8, 8)
        ]
        assert [
            (opcode, registers >> 4) for opcode, registers, *number in loads if number == [low, high]
        ] == [(0x18, 0)]

    def test_the_ring_can_be_asked_for_its_fill(self, folder: Path) -> None:
        program = compile_sample(folder).programs[0]
        calls = [
            int.from_bytes(program.instructions[at + 4 : at + 8], "little")
            for at in range(0, len(program.instructions), 8)
            if program.instructions[at] == 0x85
        ]
        assert 134 in calls
        assert 130 in calls

    def test_is_the_same_each_time_and_wherever_it_is_made(self, folder: Path, tmp_path: Path) -> None:
        first = compile_sample(folder).to_json()
        elsewhere = shutil.copytree(folder, tmp_path / "another place")
        assert compile_sample(folder).to_json() == first
        assert compile_sample(elsewhere).to_json() == first
        assert str(tmp_path) not in first

    def test_threads_can_compile_at_once(self, folder: Path) -> None:
        found: List[ProgramImage] = []
        threads = [threading.Thread(target=lambda: found.append(compile_sample(folder))) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 3
        assert len(set(found)) == 1

    def test_leaves_process_as_it_was(self, folder: Path) -> None:
        def state() -> object:
            return (
                os.getcwd(),
                sorted(os.listdir("/proc/self/fd")),
                dict(os.environ),
                threading.active_count(),
            )

        before = state()
        compile_sample(folder)
        with pytest.raises(CompileError):
            compile_image(BROKEN, include_dir=str(folder))
        assert state() == before
        assert "bcc" not in sys.modules


class TestFailure:
    def test_what_bcc_says_is_in_the_error_and_nowhere_else(
        self, folder: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(CompileError) as caught:
            compile_image(BROKEN, include_dir=str(folder))
        assert "no member named 'no_such_member'" in caught.value.log
        assert "no_such_member" in str(caught.value)
        assert capfd.readouterr() == ("", "")

    def test_a_call_of_an_unknown_function(self) -> None:
        with pytest.raises(CompileError) as caught:
            compile_image("int raw_tracepoint__x(void *ctx) { return gone(); }")
        assert "function 'gone'" in caught.value.log

    def test_a_crash_of_bcc(self) -> None:
        # BCC 0.26 asks what 0 points at; the assertion ends the process.
        text = """
        BPF_RINGBUF_OUTPUT(ring, 1);
        int raw_tracepoint__x(void *ctx) { return ring.ringbuf_output(0, 8, 0); }
        """
        try:
            compile_image(text)
        except CompileError as error:
            assert error.log  # noqa: PT017  other versions compile it

    def test_a_map_that_the_source_does_not_define(self) -> None:
        text = """
        static long (*query)(void *ring, u64 flags) = (void *)134;
        int raw_tracepoint__x(void *ctx) { return query((void *)bpf_pseudo_fd(1, 999), 0); }
        """
        with pytest.raises(CompileError, match="refers to no map"):
            compile_image(text)

    def test_it_is_bounded_in_time(self) -> None:
        with pytest.raises(CompileError, match=r"more than 0\.01 seconds"):
            compile_image(SAMPLE, timeout=0.01)

    def test_without_the_stub_headers_bcc_is_not_even_started(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(compiler, "FOLDER", str(tmp_path))
        with pytest.raises(CompileError, match="header files are missing"):
            compile_image(SAMPLE)

    def test_without_privileges(self, folder: Path) -> None:
        # Capabilities that leave the bounding set are gone in the child.
        script = """
        import ctypes
        from execwatch.build.compiler import compile_image
        from execwatch.errors import PrivilegeError
        prctl = ctypes.CDLL(None).prctl
        for capability in range(64):
            prctl(24, capability, 0, 0, 0)
        try:
            compile_image(open(folder + "/sample.bpf.c").read(), include_dir=folder)
        except PrivilegeError as error:
            print(error)
        """
        assert "CAP_BPF" in run_python(sys.executable, script, folder)

    def test_where_children_are_not_waited_for(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        try:
            assert compile_sample(folder).programs
            with pytest.raises(CompileError) as caught:
                compile_image(BROKEN, include_dir=str(folder))
        finally:
            signal.signal(signal.SIGCHLD, before)
        assert "no_such_member" in caught.value.log


def run_python(python: str, script: str, folder: Path, **options: object) -> str:
    text = f"folder = {str(folder)!r}\n" + textwrap.dedent(script)
    environment = {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONDONTWRITEBYTECODE": "1", **os.environ}
    environment.update(options.pop("env", {}))  # type: ignore[call-overload]
    run = subprocess.run(
        [python, "-W", "error", "-c", text],
        stdout=subprocess.PIPE,
        env=environment,
        check=True,
        text=True,
        **options,
    )  # type: ignore[call-overload]
    return str(run.stdout)


TO_JSON = """
from execwatch.build.compiler import compile_image
print(compile_image(open(folder + "/sample.bpf.c").read(), include_dir=folder).to_json(), end="")
"""


class TestEnvironment:
    def test_changes_nothing(self, folder: Path, tmp_path: Path) -> None:
        evil = tmp_path / "evil"
        marker = tmp_path / "marker"
        for name in ("modprobe", "tar", "rm", "python3"):
            tool = evil / name
            evil.mkdir(exist_ok=True)
            tool.write_text(f"#!/bin/sh\ntouch {marker}\n")
            tool.chmod(0o755)
        package = evil / "bcc"
        package.mkdir()
        for name in ("__init__.py", "libbcc.py"):
            package.joinpath(name).write_text(f"open({str(marker)!r}, 'w')\nclass BPF: pass\n")
        headers = evil / "include" / "linux"
        headers.mkdir(parents=True)
        headers.joinpath("kconfig.h").write_text("#error evil\n")
        headers.joinpath("types.h").write_text("#error evil\n")
        evil.joinpath("sample.h").write_text("#error evil\n")
        environment = {
            "ARCH": "mips",
            "BCC_KERNEL_SOURCE": str(evil),
            "BCC_KERNEL_MODULES_SUFFIX": str(evil),
            "BCC_LINUX_VERSION_CODE": "1",
            "CPATH": str(evil),
            "C_INCLUDE_PATH": str(evil),
            "PATH": str(evil),
            "PYTHONPATH": os.pathsep.join([str(evil), *sys.path]),
            "TMPDIR": str(evil),
        }
        found = run_python(sys.executable, TO_JSON, folder, env=environment, cwd=str(evil))
        assert found == compile_sample(folder).to_json()
        assert not marker.exists()

    def test_a_chosen_bcc_of_someone_else_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        package = tmp_path / "bcc"
        package.mkdir()
        for name in ("__init__.py", "libbcc.py"):
            package.joinpath(name).touch()
        monkeypatch.setenv(bcc.PATH_VARIABLE, str(tmp_path))
        assert bcc.locate() == str(tmp_path)
        for path in (package / "__init__.py", package, tmp_path):
            os.chown(path, 54321, -1)
            with pytest.raises(BccNotFoundError, match="belongs to user 54321"):
                compile_image(SAMPLE)
            os.chown(path, 0, -1)


class TestShippedImage:
    def test_is_used_where_it_fits(
        self, folder: Path, cache: str, compiles: List[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        image = compile_sample(folder)
        Path(images.shipped_path("sample", folder=str(folder))).write_text(image.to_json())
        monkeypatch.setattr(bcc, "locate", lambda: None)  # no BCC is needed
        assert images.load("sample", folder=str(folder), cache_directory=cache) == image
        assert not compiles
        assert not os.path.exists(cache)

    @pytest.mark.parametrize("changed", ["sample.bpf.c", "sample.h"])
    def test_is_not_used_for_a_changed_source(
        self,
        folder: Path,
        cache: str,
        compiles: List[str],
        caplog: pytest.LogCaptureFixture,
        changed: str,
    ) -> None:
        old = compile_sample(folder)
        Path(images.shipped_path("sample", folder=str(folder))).write_text(old.to_json())
        text = folder.joinpath(changed).read_text()
        folder.joinpath(changed).write_text(text.replace("16", "15").replace("4096", "2048"))
        assert images.load("sample", folder=str(folder), cache_directory=cache) != old
        assert len(compiles) == 1
        assert "not of the source beside it" in caplog.text

    @pytest.mark.parametrize("keep", [0, 100, -100])
    def test_is_not_used_if_damaged(
        self, folder: Path, cache: str, compiles: List[str], caplog: pytest.LogCaptureFixture, keep: int
    ) -> None:
        image = compile_sample(folder)
        Path(images.shipped_path("sample", folder=str(folder))).write_text(image.to_json()[:keep])
        assert images.load("sample", folder=str(folder), cache_directory=cache) == image
        assert len(compiles) == 1
        assert "ignoring the shipped image" in caplog.text

    def test_the_programs_of_the_package_compile(self) -> None:
        names = [os.path.basename(path) for path in glob.glob(os.path.join(source.FOLDER, "*.bpf.c"))]
        assert names
        for name in names:
            assert compile_image(source.read(name[: -len(".bpf.c")])).programs


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"AAAA", b"AAAB", 1))


def link(path: Path) -> None:
    path.rename(path.with_suffix(".target"))
    path.symlink_to(path.with_suffix(".target"))


SPOILT = {
    "truncated": truncate,
    "damaged": damage,
    "garbage": lambda path: path.write_bytes(b"\xff" * 99),
    "owner": lambda path: os.chown(path, 54321, -1),
    "mode": lambda path: path.chmod(0o660),
    "link": link,
    "directory's owner": lambda path: os.chown(path.parent, 54321, -1),
    "directory's mode": lambda path: path.parent.chmod(0o770),
}


class TestCachedImage:
    def test_is_compiled_once(self, folder: Path, cache: str, compiles: List[str]) -> None:
        first = images.load("sample", folder=str(folder), cache_directory=cache)
        again = images.load("sample", folder=str(folder), cache_directory=cache)
        assert first == again == compile_sample(folder)
        assert len(compiles) == 1

    @pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
    def test_is_compiled_again_if_spoilt(
        self,
        folder: Path,
        cache: str,
        compiles: List[str],
        caplog: pytest.LogCaptureFixture,
        spoil: Callable[[Path], object],
    ) -> None:
        image = images.load("sample", folder=str(folder), cache_directory=cache)
        (name,) = os.listdir(cache)
        spoil(Path(cache, name))
        caplog.clear()
        assert images.load("sample", folder=str(folder), cache_directory=cache) == image
        assert len(compiles) == 2
        assert any(r.levelno == logging.WARNING and name in r.getMessage() for r in caplog.records)

    def test_of_another_image_under_its_name_is_not_used(
        self, folder: Path, cache: str, compiles: List[str], caplog: pytest.LogCaptureFixture
    ) -> None:
        from execwatch.kernel import cache as store

        image = images.load("sample", folder=str(folder), cache_directory=cache)
        (name,) = os.listdir(cache)
        other = json.loads(image.to_json())
        other["source_hash"] = "0" * 8
        for content in (json.dumps(other), "{}"):
            store.write(name, content.encode(), directory=cache)
            assert images.load("sample", folder=str(folder), cache_directory=cache) == image
        assert len(compiles) == 3
        assert caplog.text.count("ignoring the cached image") == 2

    def test_is_of_the_bcc_that_is_there(
        self, folder: Path, cache: str, compiles: List[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        images.load("sample", folder=str(folder), cache_directory=cache)
        monkeypatch.setattr(bcc, "version", lambda folder: "another")
        images.load("sample", folder=str(folder), cache_directory=cache)
        assert len(compiles) == 2

    def test_is_not_needed(self, folder: Path, tmp_path: Path, compiles: List[str]) -> None:
        tmp_path.joinpath("file").touch()
        unwritable = str(tmp_path / "file" / "cache")
        first = images.load("sample", folder=str(folder), cache_directory=unwritable)
        assert images.load("sample", folder=str(folder), cache_directory=unwritable) == first
        assert len(compiles) == 2


def pythons() -> List[str]:
    found = []
    for name in (f"python3.{minor}" for minor in range(9, 14)):
        found += glob.glob(os.path.expanduser(f"~/.pyenv/versions/*/bin/{name}"))
        found += glob.glob(f"/usr/bin/{name}")
    return found


@pytest.mark.parametrize("python", pythons())
@pytest.mark.parametrize("crystals", [False, True], ids=["", "with PyPI's bcc"])
def test_works_in_a_virtual_environment_of(python: str, crystals: bool, folder: Path, tmp_path: Path) -> None:
    environment = tmp_path / "venv"
    subprocess.run([python, "-m", "venv", "--without-pip", str(environment)], check=True)
    (site,) = environment.glob("lib/python3*/site-packages")
    for package in ("attr", "attrs"):
        shutil.copytree(Path(attr.__file__).parent.with_name(package), site / package)
    shutil.copy(typing_extensions.__file__, site)
    site.joinpath("execwatch.pth").write_text(f"{ROOT}\n")
    if crystals:
        site.joinpath("bcc").mkdir()
        site.joinpath("bcc", "__init__.py").write_text("raise SystemExit('the wrong package')\n")

    script = """
    import sys
    from execwatch.build import bcc
    from execwatch.build.compiler import compile_image
    path = list(sys.path)
    image = compile_image(open(folder + "/sample.bpf.c").read(), include_dir=folder)
    assert "bcc" not in sys.modules
    assert bcc.find().BPF and sys.path == path
    print(image.to_json(), end="")
    """
    found = run_python(str(environment / "bin" / "python"), script, folder, env={"PYTHONPATH": ""})
    assert found == compile_sample(folder).to_json()
