"""Can this machine and this process trace? Asked before the first event, answered with evidence.

``execwatch doctor`` prints what :func:`check` returns.
"""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from typing import Callable, List, Optional, Tuple

import attrs
from typing_extensions import Literal, TypeAlias, final

from execwatch.errors import BccNotFoundError, ExecwatchError, NotSupportedError, PrivilegeError

ProblemKind: TypeAlias = Literal["bcc", "cache", "kernel", "namespace", "platform", "privilege"]


@final
@attrs.frozen(kw_only=True)
class Feature:
    """Something that tracing uses.

    Attributes:
        name: One of ``platform``, ``privileges``, ``lockdown``, ``btf``, ``ring_buffer``,
            ``raw_tracepoint``, ``kprobe``, ``skipped_runs``, ``image``, ``bcc``, ``cache``,
            ``pid_namespace``.
        available: None: it could not be tried.
        detail: What was seen, for people.
    """

    name: str
    available: Optional[bool]
    detail: str


@final
@attrs.frozen(kw_only=True)
class Problem:
    """Something that is in the way of tracing, or of seeing all.

    Attributes:
        kind: What it is about.
        cause: What is wrong.
        evidence: What it was told from.
        remedy: The command that mends it, or what to do where there is no command.
        fatal: Whether a tracer can't start.
    """

    kind: ProblemKind
    cause: str
    evidence: str
    remedy: str
    fatal: bool = True


@final
@attrs.frozen(kw_only=True)
class Check:
    """What :func:`check` found; ``str()`` of it is for people.

    Attributes:
        features: Everything that was looked at.
        problems: What is wrong, what is fatal first.
    """

    features: Tuple[Feature, ...]
    problems: Tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        """Whether a tracer would start."""
        return not any(problem.fatal for problem in self.problems)

    def __str__(self) -> str:
        lines = [_feature_line(feature) for feature in self.features]
        for problem in self.problems:
            lines += ["", f"{'problem' if problem.fatal else 'note'}: {problem.cause}"]
            lines += [f"  seen:   {problem.evidence}", f"  remedy: {problem.remedy}"]
        lines += ["", "execwatch can trace here." if self.ok else "execwatch can't trace here."]
        return "\n".join(lines)


_MARKS = {True: "ok", False: "no", None: "?"}


def _feature_line(feature: Feature) -> str:
    return f"{_MARKS[feature.available]:<3} {feature.name.replace('_', ' '):<15} {feature.detail}"


def check() -> Check:
    """Look at all that a tracer needs, by trying it where that leaves no trace.

    Works without root and on any operating system, and raises nothing.
    """
    if not sys.platform.startswith("linux"):
        return _check_elsewhere()
    features: List[Feature] = []
    problems: List[Problem] = []
    for name, probe in _PROBES.items():
        feature, found = _run(name, probe)
        features.append(feature)
        problems += found
    # One cause, such as a missing capability, can show in several places.
    unique = dict.fromkeys(sorted(problems, key=lambda problem: not problem.fatal))
    return Check(features=tuple(features), problems=tuple(unique))


_Finding: TypeAlias = Tuple[Feature, Tuple[Problem, ...]]


def _check_elsewhere() -> Check:
    system = platform.system() or sys.platform
    return Check(
        features=(Feature(name="platform", available=False, detail=f"{system} {platform.release()}"),),
        problems=(
            Problem(
                kind="platform",
                cause="programs can be traced on Linux only",
                evidence=f"this is {system}",
                remedy="trace on Linux; replay and execwatch.testing work here",
            ),
        ),
    )


def _run(name: str, probe: Callable[[str], _Finding]) -> _Finding:
    try:
        if name in _PRIVILEGED and _unprivileged():
            return _not_tried(name), ()
        return probe(name)
    except PrivilegeError as exc:
        return _not_tried(name), _refused(exc)
    except NotSupportedError as exc:
        cause = str(NotSupportedError(exc.feature, exc.minimum_kernel))
        remedy = exc.hint or f"boot Linux {exc.minimum_kernel or '5.8'} or later, built with BPF and BTF"
        return _absent(name, cause), (_kernel_problem(cause, remedy),)
    except ExecwatchError as exc:
        cause, _, log = str(exc).partition("\n")
        remedy = "report it, with all of this and what `uname -a` says"
        return _absent(name, cause), (_kernel_problem(cause, remedy, log),)
    except Exception as exc:  # the promise is to raise nothing: what can't be told is said to be so
        return Feature(name=name, available=None, detail=f"could not be told: {exc!r}"), ()


def _unprivileged() -> bool:
    from execwatch.kernel import privileges

    return bool(privileges.missing_capabilities())


def _present(name: str, detail: str) -> Feature:
    return Feature(name=name, available=True, detail=detail)


def _absent(name: str, detail: str) -> Feature:
    return Feature(name=name, available=False, detail=detail)


def _not_tried(name: str, detail: str = "") -> Feature:
    detail = f"{detail}; " if detail else ""
    return Feature(name=name, available=None, detail=f"{detail}not tried, for want of privileges")


def _kernel_problem(cause: str, remedy: str, log: str = "") -> Problem:
    evidence = log.strip() or f"tried on Linux {platform.release()} ({platform.machine()})"
    return Problem(kind="kernel", cause=cause, evidence=evidence, remedy=remedy)


def _refused(error: PrivilegeError) -> Tuple[Problem, ...]:
    from execwatch.kernel import privileges

    if privileges.lockdown() == "confidentiality":
        return ()  # has its own entry
    cause, _, remedy = str(error).rpartition(": ")
    return (Problem(kind="privilege", cause=cause, evidence="bpf(2) answered EPERM", remedy=remedy),)


# -- Probes: each returns what it saw and what is wrong with it ------------------------


def _platform(name: str) -> _Finding:
    return _present(name, f"Linux {platform.release()}, {platform.machine()}"), ()


def _privileges(name: str) -> _Finding:
    from execwatch.kernel import privileges

    missing = privileges.missing_capabilities()
    if not missing:
        return _present(name, f"CAP_BPF and CAP_PERFMON (uid {os.geteuid()})"), ()
    problem = Problem(
        kind="privilege",
        cause=f"this process lacks {' and '.join(missing)}",
        evidence=f"CapEff of /proc/self/status, uid {os.geteuid()}",
        remedy=_as_root(),
    )
    return _absent(name, f"without {', '.join(missing)} (uid {os.geteuid()})"), (problem,)


def _as_root() -> str:
    """The command that runs the same program as root: sudo's PATH is not the user's."""
    program = os.path.realpath(sys.argv[0]) if os.path.basename(sys.argv[0]) == "execwatch" else ""
    return f"sudo {program}" if program else f"sudo {sys.executable} -m execwatch"


def _lockdown(name: str) -> _Finding:
    from execwatch.kernel import privileges

    mode = privileges.lockdown()
    if mode != "confidentiality":
        return _present(name, f"{mode or 'none'}: kernel memory can be read"), ()
    problem = Problem(
        kind="privilege",
        cause="the kernel is locked down: BPF programs can't read its memory",
        evidence="/sys/kernel/security/lockdown says confidentiality",
        remedy="boot without lockdown=confidentiality, or with lockdown=integrity",
    )
    return _absent(name, mode), (problem,)


def _btf(name: str) -> _Finding:
    from execwatch import wire
    from execwatch.kernel import offsets

    found = offsets.load()
    absent = [member for member in wire.OFFSETS if found[f"offset_{member}"] == wire.ABSENT]
    detail = f"{len(wire.OFFSETS) - len(absent)} of {len(wire.OFFSETS)} members found"
    if absent:
        detail += f"; without {', '.join(absent)}: what needs them is None in events"
    return _present(name, detail), ()


def _ring_buffer(name: str) -> _Finding:
    from execwatch.kernel import probes

    probes.ring_buffer()
    return _present(name, "made one"), ()


def _raw_tracepoint(name: str) -> _Finding:
    from execwatch.kernel import probes

    try:
        probes.raw_tracepoint("sched_process_exec")
    except NotSupportedError as exc:
        if not _has_kprobes():
            raise
        problem = attrs.evolve(
            _kernel_problem(str(exc), "nothing has to be done: probe='auto' takes kprobes, which cost more"),
            fatal=False,
        )
        return _absent(name, "none; probe='auto' takes kprobes"), (problem,)
    return _present(name, "attached to sched_process_exec; probe='auto' takes it"), ()


def _kprobe(name: str) -> _Finding:
    if _has_kprobes():
        return _present(name, "there, for probe='kprobe'"), ()
    return _absent(name, "not here; only probe='kprobe' needs them"), ()


def _has_kprobes() -> bool:
    from execwatch.kernel import kprobe

    try:
        kprobe.check()
    except NotSupportedError:
        return False
    return True


def _skipped_runs(name: str) -> _Finding:
    from execwatch.kernel import probes

    with contextlib.suppress(NotSupportedError):  # has its own entry
        if probes.raw_tracepoint("sched_process_exec"):
            return _present(name, "the kernel counts the runs that it leaves out (recursion_misses)"), ()
    return _absent(
        name, "a run that the kernel leaves out is not counted as lost (told since Linux 5.12)"
    ), ()


def _image(name: str) -> _Finding:
    shipped = _shipped_image_fits()
    origin = "shipped with execwatch" if shipped else "compiled here by BCC"
    if _unprivileged():
        return _not_tried(name, origin), _need_bcc(shipped)
    try:
        _load_and_attach()
    except BccNotFoundError:
        return _absent(name, "none is shipped for this source"), _need_bcc(shipped)
    return _present(name, f"{origin}; loaded and attached"), ()


def _shipped_image_fits() -> bool:
    from execwatch.build import images, source
    from execwatch.kernel.image import ProgramImage

    try:
        with open(images.shipped_path("exec"), encoding="utf-8") as file:
            image = ProgramImage.from_json(file.read())
    except (OSError, ValueError):
        return False
    return image.source_hash == source.digest(source.read("exec"))


def _load_and_attach() -> None:
    from execwatch.build import images
    from execwatch.kernel import setup, source

    options = setup.Options(probe="auto", buffer_size=setup.ring_size(1), argv_size=1)
    source.open_source(
        lambda defines: images.load("exec", defines=defines), None, options, lost=False
    ).close()


def _need_bcc(shipped: bool) -> Tuple[Problem, ...]:
    """The problem, where BCC has to compile and can't be found."""
    from execwatch.build import bcc

    if shipped:
        return ()
    try:
        bcc.require()
    except BccNotFoundError as exc:
        remedy = bcc.install_command() or "install your distribution's BCC (python3-bcc)"
        cause = "no shipped image fits the source, and there is no BCC to compile it"
        return (Problem(kind="bcc", cause=cause, evidence=str(exc), remedy=remedy),)
    return ()


_BCC_USE = "only needed where no shipped image fits: a changed source"


def _bcc(name: str) -> _Finding:
    from execwatch.build import bcc

    try:
        folder = bcc.locate()
    except BccNotFoundError as exc:
        return _absent(name, f"refused; {_BCC_USE}"), (_bad_bcc_path(exc),)
    if folder is not None:
        return _present(name, f"{bcc.version(folder) or 'unknown version'} in {folder}; {_BCC_USE}"), ()
    command = bcc.install_command()
    return _absent(name, f"not found; {_BCC_USE}{f'. To install it: {command}' if command else ''}"), ()


def _bad_bcc_path(error: BccNotFoundError) -> Problem:
    from execwatch.build import bcc

    return Problem(
        kind="bcc",
        cause=f"{bcc.PATH_VARIABLE} names a folder that BCC may not be taken from",
        evidence=str(error),
        remedy=f"unset {bcc.PATH_VARIABLE}",
        fatal=False,
    )


def _cache(name: str) -> _Finding:
    from execwatch.kernel import cache

    directory = cache.default_directory()
    if directory is None:
        return _absent(name, "this user has no home directory; tracers start more slowly"), ()
    if cache.write("check", b""):
        os.unlink(os.path.join(directory, "check"))
        return _present(name, directory), ()
    problem = Problem(
        kind="cache",
        cause="nothing can be remembered between runs, so each start takes longer",
        evidence=_why_no_cache(directory),
        remedy=f"sudo install -d -o {os.geteuid()} -m 700 {directory}",
        fatal=False,
    )
    return _absent(name, f"{directory} can't be used"), (problem,)


def _why_no_cache(directory: str) -> str:
    from execwatch.kernel import cache

    try:
        reason = cache.why_untrusted(directory)
    except OSError as exc:
        return str(exc)
    return reason or f"{directory} can't be written by uid {os.geteuid()}"


def _pid_namespace(name: str) -> _Finding:
    from execwatch.kernel import probes

    if not probes.pid_namespace():
        return _present(name, "the machine's: every program is seen"), ()
    problem = Problem(
        kind="namespace",
        cause="inside a pid namespace (a container) only the programs in it are seen",
        evidence=f"/proc/self/ns/pid is {os.readlink('/proc/self/ns/pid')}",
        remedy="start the container with the machine's: docker run --pid=host",
        fatal=False,
    )
    return _present(name, "a nested one"), (problem,)


_PROBES = {
    "platform": _platform,
    "privileges": _privileges,
    "lockdown": _lockdown,
    "btf": _btf,
    "ring_buffer": _ring_buffer,
    "raw_tracepoint": _raw_tracepoint,
    "kprobe": _kprobe,
    "skipped_runs": _skipped_runs,
    "image": _image,
    "bcc": _bcc,
    "cache": _cache,
    "pid_namespace": _pid_namespace,
}

#: What can't be tried without privileges.
_PRIVILEGED = ("ring_buffer", "raw_tracepoint", "skipped_runs")
