"""Rounds in which nobody waits: merges of those who are ready, beside training."""

from localsgd.decoupled.decoupled_averager import DecoupledAverager
from localsgd.decoupled.merge import Copy, Merged, Merging, directional
from localsgd.decoupled.merge_log import MergeLog, Recorded
from localsgd.decoupled.quorum import Gathering, Quorum
from localsgd.decoupled.records import Record, Shapes

__all__ = [
    "Copy",
    "DecoupledAverager",
    "Gathering",
    "MergeLog",
    "Merged",
    "Merging",
    "Quorum",
    "Record",
    "Recorded",
    "Shapes",
    "directional",
]
