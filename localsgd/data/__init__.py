"""Who learns from which sample, and draws which random numbers."""

from localsgd.data.shards import ShardSampler
from localsgd.data.streams import RandomStreams

__all__ = [
    "RandomStreams",
    "ShardSampler",
]
