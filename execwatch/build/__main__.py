"""``python -m execwatch.build``, as root: compile the images that are shipped."""

from __future__ import annotations

import glob
import os

from execwatch.build import images, source
from execwatch.build.compiler import compile_image


def main() -> None:
    for path in sorted(glob.glob(os.path.join(source.FOLDER, "*.bpf.c"))):
        name = os.path.basename(path)[: -len(".bpf.c")]
        image = compile_image(source.read(name))
        target = images.shipped_path(name)
        with open(target, "w", encoding="utf-8") as file:
            file.write(image.to_json())
        sizes = ", ".join(f"{p.name} {len(p.instructions) // 8}" for p in image.programs)
        print(f"{target}: {image.compiler}; instructions: {sizes}")


if __name__ == "__main__":
    main()
