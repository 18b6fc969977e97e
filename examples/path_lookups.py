"""Which failed lookups does my PATH cost? Runs a command, and counts where programs were looked for in vain.

sudo python examples/path_lookups.py -- make
"""

import argparse
import collections
import errno
import os
import sys
from typing import Counter

import execwatch
from execwatch.render import escape


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("command", nargs="+")
    args = parser.parse_args()

    recording = execwatch.run(args.command, failed=True)
    assert recording.result is not None

    misses: Counter[str] = collections.Counter()
    hits: Counter[str] = collections.Counter()
    names: Counter[str] = collections.Counter()
    for attempt in recording.failed:
        if -attempt.retval in (errno.ENOENT, errno.ENOTDIR) and attempt.filename:
            folder, name = os.path.split(attempt.filename)
            misses[folder] += 1
            names[name] += 1
    for event in recording.execs:
        hits[os.path.dirname(event.filename or "")] += 1

    print(f"{'MISSED':>7} {'FOUND':>7}  FOLDER")
    for folder, missed in misses.most_common():
        print(f"{missed:>7} {hits[folder]:>7}  {escape(folder)}")
    print(f"{sum(misses.values())} lookups in vain for {len(recording.execs)} programs that started")
    print("most often:", ", ".join(f"{escape(name)} ({count})" for name, count in names.most_common(5)))
    return recording.result.returncode


if __name__ == "__main__":
    sys.exit(main())
