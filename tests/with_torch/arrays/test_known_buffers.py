"""Buffers that have an invariant keep it through a round; of unknown ones it is said what is done.

Tried of the kind: spectral norms (``test_spectral_norms.py``), orthogonal maps, pruning, fake
quantisation per tensor and per channel, observers that have seen nothing, histograms, codebooks by
moving averages, caches of angles and positions, masks, states of generators, buffers that grow,
modules under two names.
"""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import localsgd.torch as ours
from localsgd import MismatchError, WeightedMean, run_threads

with warnings.catch_warnings():
    # torch's own package uses what torch deprecates.
    warnings.simplefilter("ignore")
    from torch.ao.quantization import (
        FakeQuantize,
        HistogramObserver,
        MovingAverageMinMaxObserver,
        MovingAveragePerChannelMinMaxObserver,
    )

RARELY = 1_000_000


def optimizer_of(comm: Any, model: nn.Module, *, lr: float = 0.05, rules: Any = None) -> Any:
    adopted = ours.adopt(model, comm, rules=rules)
    return ours.PostLocalSGDOptimizer(
        torch.optim.SGD(model.parameters(), lr=lr),
        ours.PeriodicModelAverager(RARELY, 0, comm),
        buffers=adopted.buffers,
    )


def held(model: nn.Module) -> dict[str, list[Any]]:
    return {name: buffer.tolist() for name, buffer in model.named_buffers()}


class Quantised(nn.Module):
    """A fake quantisation of what goes in, and of weights by channel."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 3)
        self.inputs = FakeQuantize(MovingAverageMinMaxObserver, averaging_constant=1.0)
        self.weights = FakeQuantize(
            MovingAveragePerChannelMinMaxObserver,
            quant_min=-128,
            quant_max=127,
            dtype=torch.qint8,
            qscheme=torch.per_channel_symmetric,
            averaging_constant=1.0,
        )

    def forward(self, inputs: Tensor) -> Tensor:
        return nn.functional.linear(self.inputs(inputs), self.weights(self.layer.weight))


def test_ranges_of_quantisation_are_the_widest_and_scales_follow() -> None:
    """Inputs in [-1, 2] and [-3, 1] make [-3, 2]; the widest weights are 2 of rank 1's -2, 4, 6.

    Scales: 5 / 255 for the input, and largest / 127.5 for the weights' channels.
    """

    def body(comm: Any) -> Any:
        model = Quantised()
        optimizer = optimizer_of(comm, model)
        rows = torch.tensor([[1.0, -1.0], [2.0, 2.0], [3.0, -3.0]]) * (1 + comm.rank)
        with torch.no_grad():
            model.layer.weight.copy_(rows)
        model(torch.tensor([[-1.0, 2.0]] if comm.rank == 0 else [[-3.0, 1.0]]))
        optimizer.flush()
        return held(model)

    found = run_threads(2, body)
    assert found[0] == found[1]
    inputs = "inputs.activation_post_process."
    assert (found[0][inputs + "min_val"], found[0][inputs + "max_val"]) == (-3.0, 2.0)
    assert found[0]["inputs.scale"] == [pytest.approx(5 / 255)]
    assert found[0]["inputs.zero_point"] == [153]
    assert found[0]["weights.activation_post_process.min_val"] == [-2.0, 2.0, -6.0]
    assert found[0]["weights.scale"] == pytest.approx([2 / 127.5, 4 / 127.5, 6 / 127.5])


def test_observers_that_have_seen_nothing_go_through_a_round() -> None:
    def body(comm: Any) -> Any:
        model = Quantised()
        before = held(model)
        optimizer_of(comm, model).flush()
        return held(model) == before

    assert run_threads(3, body) == [True] * 3


def test_a_histogram_stays_with_its_range() -> None:
    def body(comm: Any) -> Any:
        model = nn.Linear(2, 2)
        model.observer = HistogramObserver(bins=4)
        optimizer = optimizer_of(comm, model)
        model.observer(torch.full((3,), 1.0 + comm.rank))
        before = held(model)
        optimizer.flush()
        return held(model) == before

    assert run_threads(2, body) == [True] * 2


def test_codes_are_weighed_by_how_often_they_were_used() -> None:
    """Codes at 2 and 6, used 1 and 3 times: (1·2 + 3·6) / 4 = 5, which is sums over counts."""

    class Codebook(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(1, 1)
            self.register_buffer("embed", torch.zeros(1, 2))
            self.register_buffer("embed_avg", torch.zeros(1, 2))
            self.register_buffer("cluster_size", torch.zeros(1))
            self.register_buffer("initted", torch.tensor(0.0))

    def body(comm: Any) -> Any:
        model = Codebook()
        optimizer = optimizer_of(comm, model)
        code, count = (2.0, 1.0) if comm.rank == 0 else (6.0, 3.0)
        model.embed.fill_(code)
        model.embed_avg.fill_(code * count)
        model.cluster_size.fill_(count)
        model.initted.fill_(comm.rank)
        optimizer.flush()
        assert torch.equal(model.embed, model.embed_avg / model.cluster_size)
        return model.embed.tolist(), model.initted.item()

    assert run_threads(2, body) == [([[5.0, 5.0]], 1.0)] * 2


def pruned(rank: int) -> nn.Module:
    layer = nn.Linear(4, 4)
    prune.custom_from_mask(layer, "weight", torch.arange(16).reshape(4, 4) % 2 == 0)
    return layer


def orthogonal(rank: int) -> nn.Module:
    return parametrizations.orthogonal(nn.Linear(4, 4))


def cached(rank: int) -> nn.Module:
    layer = nn.Linear(4, 4)
    layer.register_buffer("angles", torch.arange(4.0), persistent=False)
    layer.register_buffer("positions", torch.arange(4), persistent=False)
    layer.register_buffer("mask", torch.ones(4, 4).tril().bool())
    return layer


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (pruned, ["weight_mask"]),
        (orthogonal, ["parametrizations.weight.0.base"]),
        (cached, ["angles", "positions", "mask"]),
    ],
)
def test_what_must_be_equal_is_and_a_difference_is_named(make: Any, names: list[str]) -> None:
    def body(comm: Any) -> None:
        model = make(comm.rank)
        optimizer = optimizer_of(comm, model)
        before = {name: buffer.clone() for name, buffer in model.named_buffers()}
        optimizer.flush()
        assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
        for name in names:
            buffer, weight = model.get_buffer(name), next(model.parameters()).clone()
            if comm.rank == 1:
                first = (0,) * buffer.dim()
                buffer[first] = 1 - before[name][first].int()
            with pytest.raises(MismatchError, match=rf"'{name}' .* on rank 0; .* on rank 1"):
                optimizer.flush()
            assert torch.equal(next(model.parameters()), weight)
            buffer.copy_(before[name])
        optimizer.flush()

    run_threads(2, body)


def test_the_state_of_a_generator_stays_each_workers_own() -> None:
    def body(comm: Any) -> bool:
        model = nn.Linear(1, 1)
        model.register_buffer("random", torch.Generator().manual_seed(0).get_state())
        optimizer = optimizer_of(comm, model)
        own = torch.Generator().manual_seed(comm.rank).get_state()
        model.random.copy_(own)
        optimizer.flush()
        return torch.equal(model.random, own)

    assert run_threads(2, body) == [True, True]


def test_of_floats_that_nobody_knows_it_is_said_once_what_is_done(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def body(comm: Any) -> float:
        model = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
        for name in ("speed", "told"):
            model[0].register_buffer(name, torch.tensor([0.0]))
        optimizer = optimizer_of(comm, model, rules={"*.told": "keep"})
        model[0].speed.fill_(2.0 * comm.rank)
        optimizer.flush()
        return model[0].speed.item()

    assert run_threads(3, body) == [2.0] * 3
    [told] = capsys.readouterr().err.splitlines()
    assert "buffers of Linear are averaged" in told
    assert "adopt(model, rules={'0.speed': 'mean'})" in told and "told'" not in told


def test_buffers_that_grow_are_averaged_in_their_new_shape() -> None:
    """Rank 0 begins with one element; a shape that differs between ranks is named."""

    def body(comm: Any) -> Any:
        model = nn.Linear(1, 1)
        model.register_buffer("seen", torch.zeros(1))
        optimizer = optimizer_of(comm, model, rules={"seen": "mean"})
        found = []
        for count in (1, 3, 1):
            model.seen.resize_(count).fill_(2.0 * comm.rank)
            optimizer.flush()
            found.append(model.seen.tolist())
        model.seen.resize_(2 + comm.rank)
        with pytest.raises(MismatchError, match=r"'seen' float32\[2\].*'seen' float32\[3\]"):
            optimizer.flush()
        return found

    assert run_threads(2, body) == [[[1.0], [1.0] * 3, [1.0]]] * 2


class Twice(nn.Module):
    """One module under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.register_buffer("count", torch.tensor(0))
        self.one = nn.BatchNorm1d(2)
        self.other = self.one


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"speed": "mean"}, r"buffers that there are, \['count', 'one.running_mean'.*got 'speed'"),
        (
            {"one.running_mean": "keep", "other.running_mean": "mean"},
            "one rule, got two for 'other",
        ),
        (
            {"*mean": "keep", "one*n": "mean"},
            r"one rule, got for 'one.running_mean' '\*mean': keep",
        ),
        ({"count": "mean"}, "got 'count' of int64, for which there are 'max', 'min'"),
        ({"count": WeightedMean("one.running_mean")}, "floats, got 'count' of int64"),
    ],
)
def test_wrong_rules_are_an_error_on_every_rank_that_lists_the_names(
    rules: Any, message: str
) -> None:
    def body(comm: Any) -> None:
        model = Twice()
        with torch.no_grad():
            model.layer.weight.fill_(comm.rank)
        with pytest.raises(ValueError, match=message if comm.rank else "rules must be valid"):
            ours.adopt(model, comm, rules=rules if comm.rank else None)
        assert model.layer.weight.item() == comm.rank

    run_threads(2, body)


def test_a_rule_may_use_either_name_of_a_module() -> None:
    def body(comm: Any) -> Any:
        model = Twice()
        return ours.adopt(model, comm, rules={"other.*": "keep"}).buffers.rules

    kept = dict.fromkeys(("one.running_mean", "one.running_var", "one.num_batches_tracked"), "keep")
    assert run_threads(1, body) == [{"count": "max", **kept}]
