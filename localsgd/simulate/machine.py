"""What was measured of a machine or a cluster, as a file that a plan is made from."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from localsgd.simulate.cluster import Cluster, counts_of
from localsgd.simulate.links import Link


@dataclass(frozen=True)
class Level:
    """All-reduces at one level.

    Attributes:
        name: "host" or "between".
        ends: workers, or hosts, that took part.
        payload_bytes: of every all-reduce measured, rising.
        seconds: that each took, its slowest rank's, the median of many.
    """

    name: str
    ends: int
    payload_bytes: tuple[int, ...]
    seconds: tuple[float, ...]

    @property
    def link(self) -> Link:
        """The link that explains the measured times.

            seconds = latency + 2 payload (1 - 1/ends) / bandwidth

        by least squares of relative errors. Where that gives no line, since a latency would be
        below 0 or disturbed short all-reduces took longer than long ones, the latency is 0.
        """
        bits = 16 * np.array(self.payload_bytes, np.float64) * (1 - 1 / self.ends)
        seconds = np.array(self.seconds)
        columns = np.stack([1 / seconds, bits / seconds], axis=1)
        latency_s, s_per_bit = np.linalg.lstsq(columns, np.ones(len(bits)), rcond=None)[0]
        if latency_s < 0 or s_per_bit <= 0:
            latency_s = 0.0
            s_per_bit = columns[:, 1].sum() / np.square(columns[:, 1]).sum()
        return Link(self.name, float(1 / s_per_bit), float(latency_s))


@dataclass(frozen=True)
class Machine:
    """Hosts and workers as they were measured.

    Attributes:
        workers: of each host.
        levels: those with more than one end, "host" and "between".
        payload_bytes: of an all-reduce of all workers.
        seconds: that it took.
        free_bytes: memory that was free on the host that has the least.
    """

    workers: tuple[int, ...]
    levels: tuple[Level, ...]
    payload_bytes: int
    seconds: float
    free_bytes: int

    @property
    def network(self) -> tuple[Link, ...]:
        """The fitted link of every level."""
        return tuple(level.link for level in self.levels)

    @property
    def predicted_s(self) -> float:
        """Seconds that the levels' links give for the all-reduce of all workers.

        Of uneven hosts the largest counts.
        """
        ends = {"host": max(self.workers), "between": len(self.workers)}
        return sum(
            link.allreduce_s(8 * self.payload_bytes, ends[link.name]) for link in self.network
        )

    def cluster(self, hosts: str | None = None) -> Cluster:
        """The cluster that was measured, or another of the same links.

        Args:
            hosts: hosts times workers, as in ``"4x8"``; None takes those that were measured.

        Raises:
            ValueError: if the hosts measured are uneven, or a level is needed that was not
                measured.
        """
        if hosts is None:
            if len(set(self.workers)) != 1:
                raise ValueError(
                    "hosts must be given where those measured are uneven, got "
                    f"{'+'.join(map(str, self.workers))}"
                )
            hosts = f"{len(self.workers)}x{self.workers[0]}"
        links = {link.name: link for link in self.network}
        count, workers = counts_of(hosts)
        return Cluster(count, workers, links.get("host"), links.get("between"))

    def save(self, path: Path) -> None:
        """Writes it as JSON, with the fitted links beside what they were fitted to."""
        written = asdict(self)
        for level, link in zip(written["levels"], self.network, strict=True):
            level["bandwidth_bit_s"], level["latency_s"] = link.bandwidth_bit_s, link.latency_s
        path.write_text(json.dumps(written, indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> Machine:
        """What ``save`` wrote.

        Raises:
            ValueError: if the file holds something else.
        """
        try:
            read = json.loads(path.read_text("utf-8"))
            levels = tuple(_level(level) for level in read["levels"])
            machine = cls(
                tuple(int(workers) for workers in read["workers"]),
                levels,
                int(read["payload_bytes"]),
                float(read["seconds"]),
                int(read["free_bytes"]),
            )
            machine.predicted_s  # noqa: B018  # Raises if the numbers are none of a machine.
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} must be what localsgd bench writes, got {type(error).__name__}: {error}"
            ) from None
        return machine


def _level(read: dict[str, Any]) -> Level:
    name = str(read["name"])
    if name not in ("host", "between"):
        raise ValueError(f"a level must be host or between, got {name!r}")
    return Level(
        name,
        int(read["ends"]),
        tuple(int(size) for size in read["payload_bytes"]),
        tuple(float(seconds) for seconds in read["seconds"]),
    )
