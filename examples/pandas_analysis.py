"""Where did the time of a recorded build go? A recording as a data frame.

sudo execwatch run -o build.parquet -- make -j2
python examples/pandas_analysis.py build.parquet
"""

import sys

import pandas as pd

import execwatch


def main(path: str) -> None:
    recording = execwatch.load(path)
    frame = recording.to_pandas()
    execs, exits = frame[frame.kind == "exec"], frame[frame.kind == "exit"]

    # A process's last program, and how it ended.
    columns = ["process_key", "comm", "time", "exe_path"]
    last = execs.groupby("process_key").tail(1)[columns]
    runs = last.merge(exits[["process_key", "time", "exit_code"]], on="process_key", suffixes=("", "_end"))
    runs["seconds"] = (runs.time_end - runs.time).dt.total_seconds()

    programs = runs.groupby("comm").seconds.agg(["count", "sum", "median", "max"])
    print(programs.sort_values("sum", ascending=False).head(10).round(3).to_string())

    # How many ran at once: one more at each start, one less at each end.
    steps = pd.concat([pd.Series(1, runs.time), pd.Series(-1, runs.time_end)]).sort_index().cumsum()
    print(f"\nat most {steps.max()} at once; {(runs.exit_code != 0).sum()} of {len(runs)} failed")
    if not recording.complete or recording.lost:
        print(f"not all was recorded: {recording.lost} events lost, complete: {recording.complete}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
