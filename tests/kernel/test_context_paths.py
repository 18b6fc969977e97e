"""Which file an exec says it runs, and where, against what /proc says and what was made.

Each case is a shell script that makes something odd out of nothing in an empty folder,
in a mount namespace of its own, and then becomes the held program.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys
from typing import Callable, Optional

import attrs
import pytest

from execwatch import ExecTracer, Filter

from . import witness
from .conftest import PROGRAMS, Reason, skip
from .test_context import agree, place, seen

__all__ = ["place"]  # a fixture

pytestmark = pytest.mark.usefixtures("root")

Programs = Callable[[str], str]

LONGEST = "n" * 255  # a component of a path


@attrs.frozen
class Case:
    """A script, and what it has to lead to, below the folder that it runs in.

    Args:
        script: Has ``$hold``, ``$context`` and ``$odd``.
        exe: The file that runs, "" for ``$hold`` where that is; from "/" on as it is.
        cwd: The working directory, likewise. ``{pid}`` and ``{inode}`` are those of the process and file.
        flags: Those that are set of ``memfd`` and ``deleted``.
    """

    script: str
    exe: str = ""
    cwd: str = "."
    flags: str = ""


CASES = {
    "as it is": Case("exec $hold"),
    "a link": Case("ln -s $hold link; exec ./link"),
    "a linked folder": Case(
        "mkdir real; cp $hold real/program; ln -s real linked; cd linked; exec ../linked/program",
        "real/program",
        "real",
    ),
    "a relative name": Case(
        "mkdir a a/b; cp $hold a/program; cd a/b; exec ../../a/./program", "a/program", "a/b"
    ),
    "by its descriptor": Case("cp $hold program; exec $odd execveat_empty_path ./program", "program"),
    "by its open descriptor": Case("cp $hold program; exec $odd fexecve ./program", "program"),
    "at the root": Case("cd /; exec $hold", "", "/"),
    "a program with a loader": Case("exec /bin/sh -c 'printf R; read -r x'", os.path.realpath("/bin/sh")),
    "a chroot": Case("mkdir new; cp $hold new/inside; exec chroot new /inside", "new/inside", "new"),
    "a chroot, left outside": Case(
        "mkdir new; cp $hold new/inside; exec $context chroot new /inside", "new/inside", "."
    ),
    "a bind mount": Case(
        "mkdir from to; cp $hold from/program; mount --bind from to; cd to; exec ./program",
        "to/program",
        "to",
    ),
    "a bind mount of what lies below": Case(
        "mkdir -p from/a/b to; cp $hold from/a/b/program; mount --bind from/a to; cd to/b; exec ./program",
        "to/b/program",
        "to/b",
    ),
    "a folder bound onto itself": Case(
        "mkdir x; cp $hold x/program; mount --bind x x; cd x; exec ./program", "x/program", "x"
    ),
    "a bind mount of a file": Case("cp $hold from; touch to; mount --bind from to; exec ./to", "to"),
    "a tmpfs": Case("mkdir t; mount -t tmpfs t t; cd t; cp $hold program; exec ./program", "t/program", "t"),
    "mounts on one another": Case(
        "mkdir t; for name in a b c; do mount -t tmpfs $name t; done; cd t; cp $hold program; exec ./program",
        "t/program",
        "t",
    ),
    "mounts in mounts": Case(
        "for name in a b c d e; do mkdir $name; mount -t tmpfs t $name; cd $name; done; cp $hold program;"
        " exec ./program",
        "a/b/c/d/e/program",
        "a/b/c/d/e",
    ),
    "a root of its own": Case(
        "mkdir -p new/old; cp $hold new/inside; mount --bind new new; cd new; pivot_root . old;"
        " cd /old; exec /inside",
        "/inside",
        "/old",
    ),
    "an overlay, from below": Case(
        "mkdir lower upper work all; cp $hold lower/program;"
        " mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work all all; cd all; exec ./program",
        "all/program",
        "all",
    ),
    "an overlay, from above": Case(
        "mkdir lower upper work all;"
        " mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work all all; cd all; cp $hold program;"
        " exec ./program",
        "all/program",
        "all",
    ),
    "an overlay, copied up": Case(
        "mkdir lower upper work all; cp $hold lower/program;"
        " mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work all all; cd all; chmod 711 program;"
        " exec ./program",
        "all/program",
        "all",
    ),
    "removed": Case("cp $hold gone; exec $odd deleted ./gone", "gone", flags="deleted"),
    "removed, and its folder": Case(
        "mkdir -p a/b; cp $hold a/b/gone; cd a/b; exec 9<gone; rm gone; rmdir ../b;"
        " exec $odd fexecve /proc/self/fd/9",
        "a/b/gone",
        "a/b",
        "deleted",
    ),
    "one of two names removed": Case(
        "cp $hold one; ln one two; exec 9<one; rm one; exec $odd fexecve /proc/self/fd/9",
        "one",
        flags="deleted",
    ),
    "the other name removed": Case("cp $hold one; ln one two; exec 9<one; rm two; exec ./one", "one"),
    "replaced": Case(
        "cp $hold one; cp $hold two; exec 9<one; mv two one; exec $odd fexecve /proc/self/fd/9",
        "one",
        flags="deleted",
    ),
    "renamed": Case("cp $hold one; exec 9<one; mv one two; exec $odd fexecve /proc/self/fd/9", "two"),
    "called deleted": Case("cp $hold 'x (deleted)'; exec './x (deleted)'", "x (deleted)"),
    "a memfd": Case("exec $odd memfd $hold", "/memfd:secret", flags="memfd deleted"),
    "a memfd with a path for a name": Case(
        "exec $context memfd '/bin/sh (deleted)' $hold", "/memfd:/bin/sh (deleted)", flags="memfd deleted"
    ),
    "a memfd with the longest name": Case(
        f"exec $context memfd {'m' * 249} $hold", f"/memfd:{'m' * 249}", flags="memfd deleted"
    ),
    "a file called memfd": Case(
        "mkdir -p new/old; cp $hold new/memfd:secret; mount --bind new new; cd new; pivot_root . old;"
        " exec /memfd:secret",
        "/memfd:secret",
        "/",
    ),
    "a file without a name": Case("exec $context tmpfile . $hold", "#{inode}", flags="deleted"),
    "a removed working directory": Case("mkdir gone; cd gone; rmdir ../gone; exec $hold", "", "gone"),
    "a working directory called deleted": Case("mkdir 'x (deleted)'; cd x*; exec $hold", "", "x (deleted)"),
    "in proc": Case("cd /proc/self/task; exec $hold", "", "/proc/{pid}/task"),
    "in another file system's root": Case("cd /dev; exec $hold", "", "/dev"),
    "strange names": Case(
        'name=$(printf \'new\\nline \\377\\376 "q" \\033[2J\'); mkdir "$name"; cd "$name"; cp $hold "$name";'
        ' exec "./$name"',
        'new\nline \udcff\udcfe "q" \x1b[2J/new\nline \udcff\udcfe "q" \x1b[2J',
        'new\nline \udcff\udcfe "q" \x1b[2J',
    ),
    "the longest names": Case(
        f"mkdir {LONGEST}; cd {LONGEST}; cp $hold {LONGEST}; exec ./{LONGEST}",
        f"{LONGEST}/{LONGEST}",
        LONGEST,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_paths(name: str, programs: Programs, place: pathlib.Path) -> None:
    case = CASES[name]
    tools = {each: programs(each) for each in ("hold", "context", "odd")}
    command = ("unshare", "--mount", "sh", "-ec", case.script)
    with seen(*command, cwd=place, env={"PATH": witness.PATH, **tools}) as (event, pid):
        agree(event, pid)
        assert event.exe is not None
        assert leads_to(event.exe.path, case.exe.format(inode=event.exe.inode) or tools["hold"], place)
        assert leads_to(event.cwd, case.cwd.format(pid=pid), place)
        assert [flag for flag in ("memfd", "deleted") if getattr(event.exe, flag)] == case.flags.split()


def leads_to(path: Optional[str], wanted: str, place: pathlib.Path) -> bool:
    """Whether a path is the one wanted; where the tests run in a chroot, its own path lies before it."""
    wanted = os.path.normpath(place / wanted)
    return path in (wanted, outside(wanted))


def outside(path: os.PathLike[str] | str) -> str:
    """How a path here is called at the root of the mount namespace."""
    return os.path.normpath(f"{witness.root()}/{path}").replace("//", "/")


def test_an_inode_whose_time_somebody_has_looked_at(programs: Programs, place: pathlib.Path) -> None:
    """Since Linux 6.13 the kernel notes that in the time itself."""
    program = shutil.copy(programs("hold"), place / "program")
    for number in range(3):
        os.chmod(program, 0o755 - number)
        assert os.stat(program).st_ctime_ns
        with seen(program) as (event, pid):
            agree(event, pid)


def test_a_script_of_a_script(programs: Programs, place: pathlib.Path) -> None:
    """The name that was passed, the last interpreter, and the file that it is."""
    hold = programs("hold")
    (place / "link").symlink_to(hold)
    for script, interpreter in (("inner", "link"), ("outer", "inner")):
        (place / script).write_text(f"#!{place / interpreter}\n")
        (place / script).chmod(0o755)
    with seen("./outer", cwd=place) as (event, pid):
        agree(event, pid)
        assert (event.filename, event.interp) == ("./outer", str(place / "link"))
        assert event.exe is not None
        assert leads_to(event.exe.path, hold, place)


def test_a_program_of_32_bits(place: pathlib.Path) -> None:
    program = place / "hold32"
    options = ["-m32", "-O2", "-static", "-nostdlib", "-ffreestanding", "-fno-pic", "-fno-stack-protector"]
    source = PROGRAMS / "hold32.c"
    if subprocess.run(["cc", *options, "-o", program, source], stderr=subprocess.DEVNULL).returncode:
        skip(Reason.COMPILER, "for 32 bits")
    try:
        subprocess.run([program], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
    except OSError:
        skip(Reason.KERNEL, "CONFIG_IA32_EMULATION")
    with seen(program, env={"A": "b"}) as (event, pid):
        agree(event, pid)


def test_statistics_of_the_file_by_stat(programs: Programs, place: pathlib.Path) -> None:
    """Another reader of the same: a tool, by the file's own name."""
    program = shutil.copy(programs("hold"), place / "program")
    os.chown(program, 54321, 54322)
    with seen(program) as (event, _):
        told = subprocess.run(
            ["stat", "-c", "%i %d %f %s %Z %n", program], stdout=subprocess.PIPE, text=True, check=True
        ).stdout.split()
        exe = event.exe
        assert exe is not None
        assert exe.ctime_ns is not None
        assert exe.mode is not None
        found = [exe.inode, exe.device, f"{exe.mode:x}", exe.size, exe.ctime_ns // 10**9, event.filename]
        assert [str(value) for value in found] == told


# ---- As far as a path goes ---------------------------------------------------------


def below(place: pathlib.Path, depth: int, *, mounts: int) -> tuple[pathlib.Path, str]:
    """A folder that deep, counted from the root, and a script that makes it, some of it by mounts."""
    names = [f"d{number}" for number in range(depth - outside(place).count("/"))]
    mounted, rest = names[:mounts], "/".join(names[mounts:])
    script = "".join(f"mkdir {name}; mount -t tmpfs t {name}; cd {name};" for name in mounted)
    return place.joinpath(*names), f"{script} mkdir -p {rest}; cd {rest};"


@pytest.mark.parametrize("mounts", [0, 3])
@pytest.mark.parametrize("depth", [20, 48, 60])
def test_a_path_of_many_folders(depth: int, mounts: int, programs: Programs, place: pathlib.Path) -> None:
    """48 folders, the file not counted, nor a few mounts."""
    folder, script = below(place, depth, mounts=mounts)
    command = ("unshare", "--mount", "sh", "-ec", f"{script} cp $hold program; exec ./program")
    with seen(*command, cwd=place, env={"PATH": witness.PATH, "hold": programs("hold")}) as (event, pid):
        assert event.exe is not None
        assert event.exe.inode == os.stat(f"/proc/{pid}/exe").st_ino
        if depth > 48:
            assert (event.exe.path, event.cwd) == (None, None)
        else:
            agree(event, pid)
            assert leads_to(event.cwd, str(folder), place)


def test_what_lies_in_another_mount_namespace_has_no_path_here(
    programs: Programs, place: pathlib.Path
) -> None:
    """It would look like a path of this one; what it was called by is told."""
    script = f"mount -t tmpfs t {place}; cp {programs('hold')} {place}/other; echo; read line"
    command = ["unshare", "--mount", "sh", "-ec", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"\n"
        inside = f"/proc/{other.pid}/root{place}"
        with seen(f"{inside}/other", cwd=inside) as (event, _):
            assert event.filename == f"{inside}/other"
            assert event.exe is not None
            assert event.exe.inode == os.stat(f"{inside}/other").st_ino
            assert (event.exe.path, event.cwd) == (None, None)
        other.communicate(b"\n")


def test_a_mount_that_was_taken_away_has_no_path(programs: Programs, place: pathlib.Path) -> None:
    script = "mkdir t; mount -t tmpfs t t; cp $hold t/program; cd t; umount -l ../t; exec ./program"
    environment = {"PATH": witness.PATH, "hold": programs("hold")}
    with seen("unshare", "--mount", "sh", "-ec", script, cwd=place, env=environment) as (event, _):
        assert event.filename == "./program"
        assert event.exe is not None
        assert (event.exe.path, event.cwd) == (None, None)


@pytest.mark.parametrize("size", [3000, 3841, 4095, 4096, 5000])
def test_a_long_path(size: int, programs: Programs, place: pathlib.Path) -> None:
    """4,095 bytes is what the kernel itself shows."""
    folder, descriptor = long_folder(place, size)
    try:
        with seen(programs("hold"), cwd=f"/proc/self/fd/{descriptor}") as (event, pid):
            if size > 4095:
                assert event.cwd is None
            else:
                agree(event, pid)
                assert leads_to(event.cwd, folder, place)
        shutil.copy(programs("hold"), f"/proc/self/fd/{descriptor}/program")
        with seen(f"/proc/self/fd/{descriptor}/program", pass_fds=[descriptor]) as (event, pid):
            assert event.exe is not None
            assert event.exe.inode == os.stat(f"/proc/{pid}/exe").st_ino
            if size + len("/program") > 4095:
                assert event.exe.path is None
            else:
                agree(event, pid)
    finally:
        os.close(descriptor)


def long_folder(place: pathlib.Path, size: int) -> tuple[str, int]:
    """A folder whose path has that many bytes, too many for a system call to take, and it opened."""
    path, descriptor = outside(place), os.open(place, os.O_PATH)
    while len(path) < size:
        # Of what is left, a component's whole length, but not so much that a lone slash remains.
        left = size - len(path) - 1
        name = "n" * (left if left <= 255 else min(255, left - 2))
        os.mkdir(name, dir_fd=descriptor)
        inner = os.open(name, os.O_PATH, dir_fd=descriptor)
        os.close(descriptor)
        path, descriptor = f"{path}/{name}", inner
    return path, descriptor


@pytest.mark.parametrize("length", [1021, 1022, 1023, 1500])
def test_a_name_that_is_too_long_costs_the_path_and_nothing_else(
    length: int, programs: Programs, tmp_path: pathlib.Path
) -> None:
    """Any user can have such a file system: nothing must vanish by it."""
    if not os.path.exists("/dev/fuse"):
        skip(Reason.KERNEL, "FUSE (fuse(4))")
    nothing = programs("nothing")
    command = [sys.executable, str(PROGRAMS / "fuse_names.py"), str(tmp_path), str(length), nothing]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        if process.stdout.read(1) != b"R":
            assert length > 1024  # which the file system itself may refuse
            process.wait()
            return
        with ExecTracer(Filter(pids=process.pid), capture={"cwd", "exe", "container"}) as tracer:
            process.stdin.close()
            assert process.wait() == 0
            (event,) = tracer.read(timeout=0)
            stats = tracer.stats()
    assert event.argv == (nothing,)
    assert event.cwd == ("/" + length * "n" if length < 1023 else None)
    assert event.exe is not None
    assert event.exe.path == f"/old{nothing}"  # the root that was before
    assert event.cgroup_path is not None
    assert stats.lost == 0
