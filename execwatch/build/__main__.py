"""``python -m execwatch.build``, as root: compile the images that are shipped."""

from __future__ import annotations

import glob
import os
from typing import Dict

from execwatch import wire
from execwatch.build import images, source
from execwatch.build.compiler import compile_image
from execwatch.kernel import bpf, filtering, offsets, setup
from execwatch.kernel.image import Program, ProgramImage
from execwatch.kernel.loader import LoadedImage

#: The verifier's limit is a million; much below it an older or stricter one is done too.
STEPS_MAX = 100_000


def main() -> None:
    for path in sorted(glob.glob(os.path.join(source.FOLDER, "*.bpf.c"))):
        name = os.path.basename(path)[: -len(".bpf.c")]
        image = compile_image(source.read(name))
        steps = verify(image)
        if max(steps.values()) > STEPS_MAX:
            raise SystemExit(f"{name}: a program takes more than {STEPS_MAX} steps: {steps}")
        target = images.shipped_path(name)
        with open(target, "w", encoding="utf-8") as file:
            file.write(image.to_json())
        print(f"{target}: {image.compiler}")
        for program in image.programs:
            size = len(program.instructions) // 8
            print(f"  {program.name}: {size} instructions, {steps[program.name]} steps of the verifier")


def everything(*, typed: bool = True) -> setup.Setup:
    """Return what leaves the most in a program: all is asked for, on this kernel."""
    options = setup.Options(
        probe="tracepoint",
        buffer_size=1 << 22,
        argv_size=2 << 20,
        failed=True,
        forks=True,
        exits=True,
        capture=frozenset(wire.CAPTURE),
        env=True,
    )
    bits = sum(wire.FILTER_BITS.values())
    asked = {"include": bits, "exclude": bits, "exclude_final": 1}
    kernel_filter = filtering.KernelFilter(asked, (), {1: wire.INCLUDE})
    return setup.plan(options, kernel_filter, setup.read_clock(), typed=typed)


def verify(image: ProgramImage) -> Dict[str, int]:
    """Return the steps of each program where all is asked for: of its two ways to read the more."""
    typed, untyped = everything(), everything(typed=False)
    steps = {program.name: steps_of(image, program, untyped) for program in image.programs}
    has_group_dead = offsets.load()["exit_has_group_dead"]
    for program in image.programs:
        # An argument that this kernel's tracepoint lacks, only a verifier of types misses.
        if program.target in typed.types and (has_group_dead or "__group_dead" not in program.name):
            steps[program.name] = max(steps[program.name], steps_of(image, program, typed))
    return steps


def steps_of(image: ProgramImage, program: Program, plan: setup.Setup) -> int:
    """Return the steps that this kernel's verifier takes for a program.

    Raises:
        LoadError: It refused the program.
    """
    frozen = {"config": wire.pack(wire.CONFIG, plan.config)}
    loaded = LoadedImage(image, [program.name], {}, frozen, plan.types)
    try:
        return bpf.verifier_steps(loaded.code(program, image.license))
    finally:
        loaded.close()


if __name__ == "__main__":
    main()
