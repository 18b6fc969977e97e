import os, subprocess, time, sys
from execwatch import *
import execwatch

print(execwatch.__file__, os.uname().release)
for probe in ("tracepoint", "kprobe"):
    for buf in ("ring", "perf"):
        with ExecTracer(
            Filter(descendants_of=os.getpid()),
            failed=True,
            forks=True,
            exits=True,
            lost=True,
            buffer=buf,
            probe=probe,
        ) as t:
            try:
                subprocess.run(["/nonexistent_xyz", "a b"])
            except FileNotFoundError:
                pass
            subprocess.run(["/bin/sh", "-c", "exit 3"])
            for e in t.read(timeout=0):
                print(
                    probe,
                    buf,
                    e.kind,
                    e.pid,
                    e.ppid,
                    e.comm,
                    getattr(e, "argv", None),
                    getattr(e, "filename", None),
                    getattr(e, "interp", None),
                    getattr(e, "argc", None),
                    getattr(e, "error", None),
                    [getattr(e, k, None) for k in ("exit_code", "signal", "runtime_ns")],
                )
            s = t.stats()
            print([(k.seen, k.delivered, k.lost, k.pending) for k in (s.exec, s.failed, s.fork, s.exit)])
