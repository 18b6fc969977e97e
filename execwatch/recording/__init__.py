"""What was executed: record it, keep it, ask it, play it again."""

from execwatch.recording.recorder import Recorder as Recorder
from execwatch.recording.recorder import record as record
from execwatch.recording.replaying import load as load
from execwatch.recording.replaying import replay as replay
from execwatch.recording.running import run as run
from execwatch.recording.values import Recording as Recording
from execwatch.recording.values import Summary as Summary
