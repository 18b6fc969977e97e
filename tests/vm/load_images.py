"""Load every program of compiled images into the running kernel, as root: is its verifier content?

python tests/vm/load_images.py IMAGE.json...
"""

from __future__ import annotations

import pathlib
import platform
import sys

from execwatch.build.__main__ import verify
from execwatch.kernel.image import ProgramImage


def main(paths: list[str]) -> None:
    for path in paths:
        image = ProgramImage.from_json(pathlib.Path(path).read_text(encoding="utf-8"))
        steps = verify(image)
        loaded = f"{len(steps)} programs, up to {max(steps.values())} steps of the verifier"
        print(f"Linux {platform.release()}: {image.compiler}: {loaded}")


if __name__ == "__main__":
    main(sys.argv[1:])
