"""What a person sees who prints the objects of a training."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from localsgd import (
    Arena,
    Checkpoints,
    DiLoCo,
    LocalSGD,
    Survival,
    Traffic,
    every,
    optim,
    run_threads,
    solo,
)


def test_traffic_is_printed_in_units() -> None:
    traffic = Traffic(1_200, 19_264, 0, 2_500_000, 3_000_000, 96, 0.5, 0.125)
    assert str(traffic) == (
        "1,200 calls took 500 ms, of which 125 ms were waits for others\n"
        "within the host: 19.3 kB read, 0 written\n"
        "between hosts: 2.5 MB sent, 3 MB received, and headers of 96 B"
    )
    assert str(Traffic(calls=1)).startswith("1 call took 0, ")
    # Where two are compared, all digits count.
    assert repr(traffic).startswith("Traffic(calls=1200, host_read=19264, ")


def test_a_communicator_says_who_takes_part() -> None:
    found = run_threads(3, repr, hosts="2+1")
    assert found == [f"<Communicator: rank {rank} of 3, workers by host 2+1>" for rank in range(3)]


def test_training_says_what_it_does(tmp_path: Path) -> None:
    params = Arena({"w": np.zeros(3)}, solo())
    sgd = "SGD(lr=0.1, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False, "
    training = LocalSGD(optim.SGD(params, lr=0.1), period=4)
    assert repr(training) == f"LocalSGD({sgd}maximize=False), ModelAverager(every(4)), step=0)"
    saves = Checkpoints(tmp_path, {"params": params, "training": training}, solo(), when=every(3))
    assert repr(saves) == f"Checkpoints('{tmp_path}': params, training; when=every(3))"
    assert repr(Survival(training)) == "Survival(1 workers, lost=0, joined=False)"


def test_an_averager_names_its_outer_optimizer() -> None:
    params = Arena({"w": np.zeros(3)}, solo())
    training = DiLoCo(optim.SGD(params, lr=0.1), 4, outer_lr=0.7, outer_momentum=0.9)
    assert f"ModelAverager(every(4), outer={training.averager.outer!r})" in repr(training)
    assert "lr=0.7" in repr(training)
