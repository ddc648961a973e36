"""Workers that mix with neighbours: graphs, and the averagers on them."""

from localsgd.gossip.choco import ChocoAverager
from localsgd.gossip.d_psgd import Gossip, GossipAverager
from localsgd.gossip.graphs import (
    Graph,
    check_stochastic,
    exponential,
    matrix,
    one_peer_exponential,
    random_pairs,
    ring,
    spectral_gap,
    torus,
)
from localsgd.gossip.noloco import NoLoCoAverager
from localsgd.gossip.push_sum import PushSumAverager

__all__ = [
    "ChocoAverager",
    "Gossip",
    "GossipAverager",
    "Graph",
    "NoLoCoAverager",
    "PushSumAverager",
    "check_stochastic",
    "exponential",
    "matrix",
    "one_peer_exponential",
    "random_pairs",
    "ring",
    "spectral_gap",
    "torus",
]
