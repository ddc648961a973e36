"""What happens in training: lines of every rank, a timeline, and a report."""

from localsgd.telemetry.page import write_page
from localsgd.telemetry.reading import RoundLine, Run, StepLine, read_runs
from localsgd.telemetry.telemetry import Telemetry
from localsgd.telemetry.timeline import timeline
from localsgd.telemetry.unasked import FOLDER

__all__ = [
    "FOLDER",
    "RoundLine",
    "Run",
    "StepLine",
    "Telemetry",
    "read_runs",
    "timeline",
    "write_page",
]
