"""Parts of the state of torch's optimizers on schedules of their own (DES-LOC)."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

import localsgd
import localsgd.torch as ours
from localsgd import Arena, Communicator, ModelAverager, every, optim, run_threads
from torch_ranks import run_ranks
from workers import LAYOUTS

SLOW = {"exp_avg": every(6), "exp_avg_sq": every(12)}
SHAPES: dict[str, tuple[int, ...]] = {"a": (3, 2), "b": (5,)}


def slope(rank: int, step: int, at: Any) -> Any:
    place = np.arange(at.size, dtype=np.float64).reshape(at.shape)
    pull = (rank + 1) * (at.astype(np.float64) - np.cos(place + rank)) + np.sin(step + rank)
    return pull.astype(at.dtype)


def made(dtype: torch.dtype = torch.float64) -> dict[str, Parameter]:
    return {name: Parameter(torch.ones(shape, dtype=dtype)) for name, shape in SHAPES.items()}


def give_gradients(params: dict[str, Parameter], rank: int, step: int) -> None:
    for param in params.values():
        param.grad = torch.from_numpy(slope(rank, step, param.detach().numpy()))


def bits(tensors: Any) -> bytes:
    return b"".join(tensor.detach().numpy().tobytes() for tensor in tensors)


def moments(inner: Any, key: str) -> list[Tensor]:
    return [inner.state[param][key] for group in inner.param_groups for param in group["params"]]


@pytest.mark.parametrize(("size", "hosts"), LAYOUTS)
@pytest.mark.parametrize("steps", [7, 13])
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_each_part_follows_its_own_schedule(kind: Any, steps: int, size: int, hosts: str) -> None:
    """Against every worker's optimizer alone, with parameters averaged each 2nd step by hand,

    first moments each 6th and second ones each 12th. Means differ by rounding.
    """
    workers = [made() for _ in range(size)]
    inners = [kind(params.values(), lr=0.05) for params in workers]
    for step in range(steps):
        for rank, (params, inner) in enumerate(zip(workers, inners, strict=True)):
            give_gradients(params, rank, step)
            inner.step()
        averaged = {
            2: [[param.detach() for param in params.values()] for params in workers],
            6: [moments(inner, "exp_avg") for inner in inners],
            12: [moments(inner, "exp_avg_sq") for inner in inners],
        }
        for period, of_workers in averaged.items():
            if (step + 1) % period == 0:
                for tensors in zip(*of_workers, strict=True):
                    mean = torch.stack(tensors).mean(0)
                    for tensor in tensors:
                        tensor.copy_(mean)

    def work(comm: Communicator) -> None:
        params = made()
        inner = kind(params.values(), lr=0.05)
        averager = ModelAverager(every(2), comm)
        training = ours.PostLocalSGDOptimizer(inner, averager, state=SLOW)
        for step in range(steps):
            give_gradients(params, comm.rank, step)
            training.step()
        mine, alone = inners[comm.rank], workers[comm.rank]
        pairs = [
            *zip(params.values(), alone.values(), strict=True),
            *zip(moments(inner, "exp_avg"), moments(mine, "exp_avg"), strict=True),
            *zip(moments(inner, "exp_avg_sq"), moments(mine, "exp_avg_sq"), strict=True),
        ]
        for one, other in pairs:
            torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)

    run_threads(size, work, hosts=hosts)


def on_numpy(comm: Communicator, steps: int, samples: bool) -> list[bytes]:
    """Parameters and momentum after each step."""
    arena = Arena({name: np.ones(shape, np.float32) for name, shape in SHAPES.items()}, comm)
    inner = optim.SGD(arena, lr=0.125, momentum=0.9)
    training = localsgd.LocalSGD(inner, 2, state={"momentum_buffer": every(4)})
    found = []
    for step in range(steps):
        for name, view in arena.items():
            arena.grad[name] = slope(comm.rank, step, view)
        if samples:
            training.record_samples(comm.rank + step)
        training.step()
        momentum = [inner.state[name]["momentum_buffer"].tobytes() for name in SHAPES]
        found.append(b"".join([arena.flat.tobytes(), *momentum]))
    return found


def on_torch(group: Any, rank: int, steps: int, samples: bool) -> list[bytes]:
    params = made(torch.float32)
    # By a power of two a product is exact, which torch's kernels round with the difference.
    inner = torch.optim.SGD(params.values(), lr=0.125, momentum=0.9)
    state = {"momentum_buffer": every(4)}
    training = ours.LocalSGD(inner, 2, process_group=group, state=state)
    found = []
    for step in range(steps):
        give_gradients(params, rank, step)
        if samples:
            training.record_samples(rank + step)
        training.step()
        found.append(bits([*params.values(), *moments(inner, "momentum_buffer")]))
    return found


@pytest.mark.parametrize("samples", [False, True])
@pytest.mark.parametrize(("size", "hosts"), LAYOUTS)
def test_momentum_has_the_bits_of_numpy(size: int, hosts: str, samples: bool) -> None:
    def work(comm: Communicator) -> None:
        assert on_torch(comm, comm.rank, 9, samples) == on_numpy(comm, 9, samples)

    run_threads(size, work, hosts=hosts)


def test_on_groups_of_torch_too() -> None:
    found = run_ranks(3, lambda rank: on_torch(None, rank, 9, True))
    assert found == run_threads(3, on_numpy, 9, True)


KINDS: list[Any] = [
    lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
    lambda params: torch.optim.Adam(params, lr=0.1, amsgrad=True, fused=True),
    lambda params: torch.optim.AdamW(params, lr=0.1),
    lambda params: torch.optim.RAdam(params, lr=0.1),
    lambda params: torch.optim.Adamax(params, lr=0.1),
    lambda params: torch.optim.Adagrad(params, lr=0.1, initial_accumulator_value=0.5),
    lambda params: torch.optim.Adadelta(params, lr=0.1),
    lambda params: torch.optim.RMSprop(params, lr=0.1, momentum=0.9, centered=True),
]


@pytest.mark.parametrize("make", KINDS)
def test_all_on_the_schedule_of_rounds_is_the_mean_of_the_state_to_the_bit(make: Any) -> None:
    def work(comm: Communicator) -> None:
        first = made()
        probe = make(first.values())
        give_gradients(first, comm.rank, 0)
        probe.step()
        keys = {key for key, tensor in probe.state[first["a"]].items() if tensor.dim()}
        found = []
        for state in ("mean", {key: every(2) for key in keys}):
            params = made()
            inner = make(params.values())
            training = ours.LocalSGD(inner, 2, process_group=comm, state=state)
            for step in range(7):
                give_gradients(params, comm.rank, step)
                training.step()
            kept = [moment for key in sorted(keys) for moment in moments(inner, key)]
            found.append(bits([*params.values(), *kept]))
        assert found[0] == found[1]

    run_threads(3, work)


def test_streaming_keeps_them_too_and_a_flush_takes_all() -> None:
    """A fragment leaves in every step, and the schedule says in which first moments are averaged.

    In the third step, in which they are not, no worker has another's.
    """

    def work(comm: Communicator) -> list[str]:
        params = made()
        inner = torch.optim.AdamW(params.items(), lr=0.05)
        training = ours.StreamingDiLoCo(
            inner, 2, 2, process_group=comm, state={"exp_avg": every(4), "exp_avg_sq": every(7)}
        )
        found = []
        for step in range(5):
            give_gradients(params, comm.rank, step)
            training.step()
            found.append(bits(moments(inner, "exp_avg")).hex())
        training.flush()
        both = [*moments(inner, "exp_avg"), *moments(inner, "exp_avg_sq")]
        return [*found, bits(both).hex()]

    rows = zip(*run_threads(3, work), strict=True)
    assert [len(set(row)) == 1 for row in rows] == [False, False, False, True, False, True]


@pytest.mark.parametrize("stop", range(1, 13))
def test_resuming_at_any_step_is_never_having_stopped(stop: int) -> None:
    """In two periods of the first moments, and one of the second."""

    def work(comm: Communicator) -> None:
        pairs = []
        for _ in range(2):
            params = made()
            inner = torch.optim.AdamW(params.values(), lr=0.05)
            training = ours.DiLoCo(inner, 2, process_group=comm, state=SLOW)
            pairs.append((params, inner, training))
        (params, _, whole), (others, _, later) = pairs
        for step in range(stop):
            give_gradients(params, comm.rank, step)
            whole.step()
        file = io.BytesIO()
        torch.save(whole.state_dict(), file)
        file.seek(0)
        for name, param in params.items():
            others[name].detach().copy_(param.detach())
        later.load_state_dict(torch.load(file, weights_only=True))
        found = []
        for mine, inner, training in pairs:
            for step in range(stop, 14):
                give_gradients(mine, comm.rank, step)
                training.step()
            kept = [moment for key in SLOW for moment in moments(inner, key)]
            found.append(bits([*mine.values(), *kept]))
        assert found[0] == found[1]

    run_threads(3, work, hosts="2+1")


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.RMSprop, torch.optim.SGD])
def test_a_worker_without_state_takes_over_what_is_averaged_and_goes_on(kind: Any) -> None:
    """Rank 0, of weight 0, has never taken a step; what is not averaged begins with zeros."""
    key = {"Adam": "exp_avg_sq", "RMSprop": "square_avg", "SGD": "momentum_buffer"}[kind.__name__]
    options = {} if kind is torch.optim.Adam else {"momentum": 0.5}

    def work(comm: Communicator) -> list[Any]:
        param = Parameter(torch.zeros(2))
        inner = kind([param], lr=0.1, **options)
        averager = ModelAverager(every(1), comm)
        training = ours.PostLocalSGDOptimizer(inner, averager, state={key: every(1)})
        averager.record_samples(comm.rank)
        param.grad = torch.full((2,), 3.0) if comm.rank else None
        training.step()
        state = inner.state[param]
        found = [param.tolist(), state[key].tolist(), float(state.get("step", 1))]
        param.grad = torch.ones(2)
        averager.record_samples(1)
        training.step()
        return [*found, param.isfinite().all().item()]

    first, second = run_threads(2, work)
    assert first == second and first[1] != [0.0, 0.0] and first[3]


def test_where_nobody_has_state_none_is_made() -> None:
    """At a first round without gradients, and then in another."""

    def work(comm: Communicator) -> None:
        param = Parameter(torch.ones(2))
        inner = torch.optim.AdamW([param], lr=0.5)
        averager = ModelAverager(every(1), comm)
        training = ours.PostLocalSGDOptimizer(inner, averager, state=SLOW)
        training.step()
        training.flush()
        assert not inner.state[param]
        param.grad = torch.full((2,), 1.0 + comm.rank)
        training.step()
        training.flush()
        # (1 - 0.9) of gradients 1 and 2.
        assert inner.state[param]["exp_avg"].tolist() == pytest.approx([0.15, 0.15])

    run_threads(2, work)
