"""What training will cost on a network: models of time and bytes, and a plan made of them."""

from localsgd.simulate.candidates import Candidate
from localsgd.simulate.cluster import Cluster, Round
from localsgd.simulate.links import NETWORKS, Link, parse_network
from localsgd.simulate.machine import Level, Machine
from localsgd.simulate.measuring import measure
from localsgd.simulate.planning import Model, Plan, Row, Workload, plan, recommend, sweep
from localsgd.simulate.utilization import compute_utilization
from localsgd.simulate.wall_clock import WallClock, wall_clock

__all__ = [
    "NETWORKS",
    "Candidate",
    "Cluster",
    "Level",
    "Link",
    "Machine",
    "Model",
    "Plan",
    "Round",
    "Row",
    "WallClock",
    "Workload",
    "compute_utilization",
    "measure",
    "parse_network",
    "plan",
    "recommend",
    "sweep",
    "wall_clock",
]
