"""Who must agree: what may be given as the group, wherever one is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from localsgd import (
    Arena,
    Buffers,
    GradientStage,
    HierarchicalModelAverager,
    LocalSGD,
    ModelAverager,
    PeriodicModelAverager,
    RandomStreams,
    ShardSampler,
    average_parameters,
    every,
    optim,
    solo,
)
from optimizers import model


class Intracomm:
    """As mpi4py's: has ranks, and none of our verbs."""

    rank, size = 0, 1


@pytest.mark.parametrize(
    "make",
    [
        lambda comm: Arena({"x": np.zeros(1)}, comm),
        lambda comm: Buffers({"mean": np.zeros(1)}, comm=comm),
        lambda comm: GradientStage("none", comm),
        lambda comm: ModelAverager(every(2), comm),
        lambda comm: PeriodicModelAverager(2, 0, comm),
        lambda comm: HierarchicalModelAverager({2: "world"}, 0, comm),
        lambda comm: LocalSGD(optim.SGD(model(), lr=0.1), 2, comm=comm),
        lambda comm: ShardSampler(9, 1, seed=0, comm=comm),
        lambda comm: RandomStreams(0, comm),
        lambda comm: average_parameters(model(), comm),
    ],
)
def test_a_group_of_another_kind_is_refused_by_name(make: Callable[[Any], Any]) -> None:
    make(solo())
    for comm in (Intracomm(), "world"):
        with pytest.raises(TypeError, match=r"comm must be a communicator of localsgd, .* got"):
            make(comm)
