"""What training will cost on a network: models of time and bytes, a plan, and a simulation."""

from localsgd.simulate.candidates import Candidate
from localsgd.simulate.cluster import Cluster, Round
from localsgd.simulate.links import NETWORKS, Link, parse_network
from localsgd.simulate.machine import Level, Machine
from localsgd.simulate.measuring import measure
from localsgd.simulate.mishaps import Faults, Stragglers
from localsgd.simulate.planning import Model, Plan, Row, Workload, plan, recommend, sweep
from localsgd.simulate.rounds import Held
from localsgd.simulate.simulation import Simulated, simulate
from localsgd.simulate.utilization import compute_utilization
from localsgd.simulate.wall_clock import WallClock, wall_clock

__all__ = [
    "NETWORKS",
    "Candidate",
    "Cluster",
    "Faults",
    "Held",
    "Level",
    "Link",
    "Machine",
    "Model",
    "Plan",
    "Round",
    "Row",
    "Simulated",
    "Stragglers",
    "WallClock",
    "Workload",
    "compute_utilization",
    "measure",
    "parse_network",
    "plan",
    "recommend",
    "simulate",
    "sweep",
    "wall_clock",
]
