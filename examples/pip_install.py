"""What does `pip install` run? Installs into a folder that is thrown away, and shows what was executed.

sudo python examples/pip_install.py --no-deps some-package
"""

import pathlib
import sys
import tempfile

import execwatch
from execwatch.render import quote


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install"]
        recording = execwatch.run([*pip, "--quiet", "--target", folder, *sys.argv[1:]])
    assert recording.result is not None

    print(recording.tree())
    # pip itself is Python; the rest is what setup scripts and build backends wanted.
    others = {
        process.exe or process.filename or "?"
        for process in recording.processes
        if not pathlib.Path(process.exe or "").name.startswith("python")
    }
    print(f"\n{len(recording.processes)} processes; programs other than Python: {len(others)}")
    for path in sorted(others):
        print("  " + quote(path))
    return recording.result.returncode


if __name__ == "__main__":
    sys.exit(main())
