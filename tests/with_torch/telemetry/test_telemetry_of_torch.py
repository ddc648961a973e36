"""An averager of torch's names is observed as its core's is."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn

import localsgd.torch as ours
from localsgd import Communicator, Telemetry, every, run_threads


def test_rounds_of_a_module_are_written_and_their_spread(tmp_path: Path) -> None:
    """Two steps at rate 0.5 along gradients 1 and 3 move by 1 and 3: each is 1 from the mean."""

    def work(comm: Communicator) -> int:
        weight = nn.Parameter(torch.zeros(1))
        averager = ours.PeriodicModelAverager(2, 0, comm)
        training = ours.PostLocalSGDOptimizer(torch.optim.SGD([weight], lr=0.5), averager)
        with Telemetry(tmp_path, training, spread=every(1)) as telemetry:
            for _ in range(5):
                training.zero_grad()
                (weight * (1.0 + 2 * comm.rank)).sum().backward()
                training.step()
                telemetry.log(loss=weight.detach())
        return averager.averager.traffic.host_read

    for rank, read in enumerate(run_threads(2, work)):
        text = (tmp_path / f"rank-{rank}.jsonl").read_text()
        lines = [json.loads(line) for line in text.splitlines()]
        rounds = [line for line in lines if line["kind"] == "round"]
        assert [type(line["loss"]) for line in lines if line["kind"] == "step"] == [float] * 5
        assert sum(line["host_read"] for line in rounds) == read > 0
        assert {line["distance2"] for line in rounds[1:]} == {1.0}
