"""Which programs start most? Counts them by name until it is interrupted, or as many as asked for.

sudo python examples/iterator.py --count 100
"""

import argparse
import contextlib
from collections import Counter

from execwatch import ExecTracer


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, help="end after so many programs")
    args = parser.parse_args()

    counts: Counter[str] = Counter()
    with ExecTracer() as tracer:
        print("counting", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            for event in tracer.events(count=args.count):
                counts[event.comm] += 1
    for comm, number in counts.most_common(10):
        print(f"{number:6} {comm!r}")


if __name__ == "__main__":
    main()
