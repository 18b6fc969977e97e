"""Which processes there are, and who started whom: events in, table out.

Pure: it reads nothing but what it is given, so it is the same for live events and
for recorded ones.
"""

from execwatch.processes.table import ProcessTable as ProcessTable
from execwatch.processes.values import Process as Process
from execwatch.processes.values import ProcessTree as ProcessTree
