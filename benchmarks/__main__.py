"""``python -m benchmarks [NAME...]``, as root: what tracing costs, as ratios where a machine's speed matters.

Each figure is the median of several rounds, with the least and the greatest. What
is compared is interleaved in one run. ``--json FILE`` keeps the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile

from benchmarks import capture, decode, formats, growth, peers, startup, storm
from benchmarks.measure import Figure, Programs

SUITES = {
    "startup": startup.run,
    "decode": decode.run,
    "storm": storm.run,
    "capture": capture.run,
    "formats": formats.run,
    "growth": growth.run,
    "peers": peers.run,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(SUITES))
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("benchmarks attach real probes: run them as root", file=sys.stderr)
        return 4
    print(f"Linux {platform.release()}, Python {platform.python_version()}, {os.cpu_count()} CPUs")
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as folder:
        programs = Programs(folder)
        for name in options.names or SUITES:
            for figure in SUITES[name](programs, options.rounds):
                print(figure, flush=True)
                figures.append(figure)
    if options.json:
        with open(options.json, "w") as file:
            json.dump([figure.to_dict() for figure in figures], file, indent=1)
    missed = [figure.name for figure in figures if figure.missed]
    if missed:
        print(f"over the limit: {', '.join(missed)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
