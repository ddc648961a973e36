"""torch's trainings go on when workers are lost, with the bits that the core has then."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import localsgd
from localsgd import Arena, Communicator, ModelAverager, every, optim, outer, run_threads
from localsgd.torch import (
    GradientStage,
    PeriodicModelAverager,
    PostLocalSGDOptimizer,
    Survival,
    adopt,
)

COUNT, LAYOUTS = 37, ["3", "2+1", "1+1+1"]


def noise(rank: int, step: int) -> Any:
    return np.random.default_rng([rank, step]).normal(size=COUNT)


def nesterov() -> outer.OuterOptimizer:
    return outer.SGD(0.7, momentum=0.9, nesterov=True)


@pytest.mark.parametrize("hosts", LAYOUTS)
def test_rounds_have_the_bits_of_the_core(hosts: str) -> None:
    """Rank 1 is lost in its 5th step, before a round of DiLoCo's. Products are exact."""

    def steps(training: Any, me: int, step: Any) -> None:
        for number in range(1, 9):
            if (me, number) == (1, 5):
                raise KeyError
            step(noise(me, number))

    def with_arrays(comm: Communicator) -> Any:
        arena = Arena({"x": np.arange(COUNT, dtype=np.float64)}, comm)
        averager = ModelAverager(every(2), comm, outer=nesterov())
        training = localsgd.PostLocalSGDOptimizer(
            optim.SGD(arena, lr=0.125, momentum=0.5), averager
        )
        localsgd.Survival(training)

        def step(gradient: Any) -> None:
            arena.grad.flat[...] = gradient
            training.step()

        steps(training, comm.rank, step)
        return arena.flat.tobytes()

    def with_tensors(comm: Communicator) -> Any:
        param = nn.Parameter(torch.arange(COUNT, dtype=torch.float64))
        averager = ModelAverager(every(2), comm, outer=nesterov())
        inner = torch.optim.SGD([param], lr=0.125, momentum=0.5)
        training = PostLocalSGDOptimizer(inner, averager)
        survival = Survival(training)

        def step(gradient: Any) -> None:
            param.grad = torch.from_numpy(gradient)
            training.step()

        steps(training, comm.rank, step)
        assert survival.lost == 1 and training.averager.step == 8
        return param.detach().numpy().tobytes()

    wanted = run_threads(3, with_arrays, hosts=hosts, fault_tolerant=True)
    assert len(wanted) == 2
    assert run_threads(3, with_tensors, hosts=hosts, fault_tolerant=True) == wanted


def front_door(module: Any, front: str, inner: Any, **group: Any) -> Any:
    """Of the core or of torch, whose rounds are on their way for some steps."""
    if front == "delayed":
        return module.OverlappedSGD(inner, 4, 2, **group)
    return module.StreamingDiLoCo(inner, 4, 2, delay=3, **group)


@pytest.mark.parametrize("hosts", LAYOUTS)
@pytest.mark.parametrize("front", ["delayed", "streaming"])
@pytest.mark.parametrize("lost", [5, 7, 8])
def test_rounds_on_their_way_have_the_bits_of_the_core(hosts: str, front: str, lost: int) -> None:
    """Rank 1 is lost before a round arrives, or another leaves. Products are exact."""

    def steps(comm: Communicator, training: Any, survival: Any, step: Any) -> None:
        me = comm.rank
        for number in range(1, 13):
            if (me, number) == (1, lost):
                raise KeyError
            step([noise(me, 2 * number + part) for part in range(2)])
        training.flush()
        assert survival.lost == 1 and training.averager.step == 12

    def with_arrays(comm: Communicator) -> Any:
        zeros = {name: np.zeros(COUNT) for name in "xy"}
        arena = Arena(zeros, comm)
        training = front_door(localsgd, front, optim.SGD(arena, lr=0.125), comm=comm)

        def step(gradients: Any) -> None:
            for name, gradient in zip("xy", gradients, strict=True):
                arena.grad[name] += gradient
            training.step()

        steps(comm, training, localsgd.Survival(training), step)
        return [arena[name].tobytes() for name in "xy"]

    def with_tensors(comm: Communicator) -> Any:
        params = [nn.Parameter(torch.zeros(COUNT, dtype=torch.float64)) for _ in "xy"]
        inner = torch.optim.SGD(params, lr=0.125)
        training = front_door(localsgd.torch, front, inner, process_group=comm)

        def step(gradients: Any) -> None:
            for param, gradient in zip(params, gradients, strict=True):
                param.grad = torch.from_numpy(gradient)
            training.step()

        steps(comm, training, Survival(training), step)
        return [param.detach().numpy().tobytes() for param in params]

    wanted = run_threads(3, with_arrays, hosts=hosts, fault_tolerant=True)
    assert len(wanted) == 2 and wanted[0] == wanted[1]
    assert run_threads(3, with_tensors, hosts=hosts, fault_tolerant=True) == wanted


class Dying(outer.SGD):
    """Plain averaging, in whose second round one rank raises when it has done its part."""

    def __init__(self, dies: bool) -> None:
        super().__init__(1.0)
        self._dies = dies

    def scalar_step(self) -> None:
        return None

    def update(self, block: outer.Block) -> None:
        super().update(block)
        if self._dies and block.round == 2:
            raise KeyError


@pytest.mark.parametrize("hosts", LAYOUTS)
def test_a_round_that_fails_has_changed_neither_state_nor_buffers(hosts: str) -> None:
    """One lost in the middle of a round is as one lost before it."""

    def result(comm: Communicator, *, in_the_round: bool) -> Any:
        me = comm.rank
        model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)).double()
        for param in model.parameters():
            nn.init.constant_(param, 0.3)
        averager = ModelAverager(every(2), comm, outer=Dying(in_the_round and me == 1))
        training = PostLocalSGDOptimizer(
            torch.optim.AdamW(model.parameters(), lr=0.1),
            averager,
            state="mean",
            buffers=adopt(model, comm).buffers,
        )
        Survival(training)
        for step in range(1, 7):
            rng = np.random.default_rng([me, step])
            training.zero_grad()
            model(torch.from_numpy(rng.normal(size=(8, 3)))).square().mean().backward()
            if (me, step) == (1, 4) and not in_the_round:
                raise KeyError
            training.step()
        tensors = [*model.state_dict().values()]
        for param in model.parameters():
            tensors += [training.state[param][key] for key in ("exp_avg", "exp_avg_sq")]
        return [tensor.numpy().tobytes() for tensor in tensors]

    found = [
        run_threads(
            3,
            lambda comm, late=late: result(comm, in_the_round=late),
            hosts=hosts,
            fault_tolerant=True,
        )
        for late in (False, True)
    ]
    assert len(found[0]) == 2 and found[0][0] == found[0][1]
    assert found[0] == found[1]


class DyingStage(GradientStage):
    """One worker of it raises when it has reduced one block of its third pass."""

    dies = False

    def _reduce(self, reductions: Any) -> Any:
        def die(_: Communicator) -> None:
            raise KeyError

        dies = self.dies and self._averager.step == 2
        return super()._reduce([*reductions[:1], die] if dies else reductions)


@pytest.mark.parametrize("hosts", LAYOUTS)
def test_gradients_are_averaged_again_when_a_worker_is_lost(hosts: str) -> None:
    """It is lost when one of two blocks of the others' gradients has become their mean."""

    def body(comm: Communicator) -> Any:
        me = comm.rank
        param = nn.Parameter(torch.zeros(COUNT, dtype=torch.float64))
        rest = nn.Parameter(torch.zeros(COUNT, dtype=torch.float64))
        model = nn.ParameterDict({"x": param, "y": rest})
        averager = PeriodicModelAverager(2, warmup_steps=8, process_group=comm)
        stage = DyingStage(model, averager, after="host", block_bytes=64)
        stage.dies = me == 1
        inner = torch.optim.SGD(model.parameters(), lr=1.0)
        training = PostLocalSGDOptimizer(inner, averager, gradients=stage)
        Survival(training)
        for step in range(1, 6):
            training.zero_grad()
            ((param + 2 * rest) * torch.from_numpy(np.round(8 * noise(me, step)))).sum().backward()
            training.step()
        return np.array([param.detach().numpy(), rest.detach().numpy() / 2])

    found = run_threads(3, body, hosts=hosts, fault_tolerant=True)
    wanted = np.zeros(COUNT)
    for step in range(1, 6):
        left = [0, 1, 2] if step < 3 else [0, 2]
        wanted -= sum(np.round(8 * noise(rank, step)) for rank in left) / len(left)
    assert len(found) == 2 and found[0].tobytes() == found[1].tobytes()
    # Thirds of numbers up to 30 are rounded five times.
    np.testing.assert_allclose(found[0], [wanted, wanted], rtol=0, atol=1e-13)


JOB = """
import os, signal, sys
import torch
import localsgd
from localsgd.torch import DiLoCo, Survival, adopt, world

comm = world()
number, victim = comm.rank, int(sys.argv[1])
nn = torch.nn
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(6, 32), nn.BatchNorm1d(32), nn.Linear(32, 1))
buffers = adopt(model).buffers
training = DiLoCo(torch.optim.AdamW(model.parameters(), lr=0.01), 4, buffers=buffers, state="mean")
sampler = localsgd.ShardSampler(600, 10, seed=0, comm=comm)
survival = Survival(training, sampler)
x = torch.randn(600, 6, generator=torch.Generator().manual_seed(1))
y = x.sum(1, keepdim=True)
first = float(nn.functional.mse_loss(model(x), y).detach())
steps = 0
for batch in sampler:
    training.zero_grad()
    loss = torch.nn.functional.mse_loss(model(x[batch]), y[batch])
    loss.backward()
    steps += 1
    if (number, steps) == (victim, 6):
        os.kill(os.getpid(), signal.SIGKILL)
    training.step()
training.flush()
same = comm.collect([float(p.double().sum()) for p in model.state_dict().values()])
assert all(entry == same[0] for entry in same), same
last = float(nn.functional.mse_loss(model(x), y).detach())
assert last < first, (last, first)
print(f"worker {number} of {comm.size}, {survival.lost} lost, {steps} steps", flush=True)
"""


@pytest.mark.faults
@pytest.mark.parametrize(("layout", "victim"), [("3", 1), ("2+1", 0), ("2+2", 3)])
def test_processes_that_are_killed_do_not_end_the_job(
    layout: str, victim: int, tmp_path: Path
) -> None:
    job, ranks = tmp_path / "job.py", sum(map(int, layout.split("+")))
    job.write_text(JOB)
    words = ["run", "--fault-tolerant", "-n", str(ranks), "--layout", layout, str(job), str(victim)]
    ended = subprocess.run(
        [sys.executable, "-m", "localsgd.cli", *words],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    said = [line for line in ended.stdout.splitlines() if line.startswith("worker")]
    assert len(said) == ranks - 1, ended.stdout + ended.stderr
    assert all(f"of {ranks - 1}, 1 lost" in line for line in said), said


def taught(comm: Communicator, size: int, gone: list[int], dtype: torch.dtype) -> Any:
    """Trains a network, all on the same samples, until all have been there again for some steps."""
    me, deadline = -1 if comm.joining else comm.rank, time.monotonic() + 60
    # Ranks may be threads, which share torch's own generator. Who joins begins elsewhere.
    numbers = torch.Generator().manual_seed(7 if me < 0 else 0)
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)).to(dtype)
    for param in model.parameters():
        param.data.copy_(torch.randn(param.shape, generator=numbers))
    averager = ModelAverager(every(2), comm, outer=nesterov())
    training = PostLocalSGDOptimizer(
        torch.optim.AdamW(model.parameters(), lr=0.125),
        averager,
        buffers=adopt(model, comm).buffers,
    )
    survival, last = Survival(training), 0
    samples = torch.randn(40, 8, 3, generator=torch.Generator().manual_seed(1)).to(dtype)
    while not last or averager.step < last:
        step = averager.step + 1
        if not last and step % 2 == 1:
            sizes = survival.hold(lambda: comm.collect(comm.size))
            last = step + 3 if step > 12 and len(sizes) == size else 0
        if me in gone and step == 6:
            raise KeyError
        training.zero_grad()
        model(samples[step % 40]).square().mean().backward()
        training.step()
        assert time.monotonic() < deadline
    state = training.optim.state_dict()["state"]
    tensors = [*model.state_dict().values(), *(t for of in state.values() for t in of.values())]
    digest = [tensor.double().numpy().tobytes() for tensor in tensors]
    return survival.joined, survival.lost, averager.step, digest


@pytest.mark.parametrize(("hosts", "gone"), [("2", [1]), ("2+1", [0]), ("2+2", [2, 3])])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_who_joins_has_what_the_others_have(hosts: str, gone: list[int], dtype: Any) -> None:
    """Parameters, running statistics and AdamW's moments; and goes on as they do."""
    size = sum(map(int, hosts.split("+")))
    found = run_threads(
        size, taught, size, gone, dtype, hosts=hosts, fault_tolerant=True, respawn=True
    )
    assert [joined for joined, *_ in found] == [False] * (size - len(gone)) + [True] * len(gone)
    for _, lost, step, digest in found:
        assert (lost, step) == (len(gone), found[0][2]) and digest == found[0][3]


def test_what_cannot_survive_is_refused() -> None:
    comm = localsgd.solo()
    param = nn.Parameter(torch.zeros(3))
    inner = torch.optim.SGD([param], lr=1.0)
    with pytest.raises(TypeError, match="must be an optimizer of localsgd.torch, got SGD"):
        Survival(inner)  # type: ignore[arg-type]
    averager = PeriodicModelAverager(2, process_group=comm)
    training = PostLocalSGDOptimizer(inner, averager)
    with pytest.raises(TypeError, match="parts must have regroup"):
        Survival(training, 3)  # type: ignore[arg-type]
    Survival(training)
    with pytest.raises(ValueError, match="must be without a Survival"), training.uneven():
        pass
