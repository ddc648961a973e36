"""accelerate on the workers there are.

``test_launched_frameworks.py`` runs this on each number of ranks.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, set_seed
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, IterableDataset

from frameworks.small import (
    ACCUMULATED,
    BATCH,
    CLIP,
    LR,
    METHODS,
    PERIOD,
    SAMPLES,
    Samples,
    alike,
    digest,
    model_of,
    shared_folder,
)
from localsgd import Communicator, MismatchError
from localsgd.frameworks import private_world
from localsgd.frameworks.accelerate import LocalSGDAccelerator
from localsgd.torch import LocalSGD, adopt

averaging = partial(LocalSGD, period=PERIOD)


@pytest.fixture(scope="module")
def comm() -> Communicator:
    torch.set_num_threads(1)
    return private_world()


def accelerator(**arguments: Any) -> LocalSGDAccelerator:
    options = {"cpu": True, "gradient_accumulation_steps": ACCUMULATED, **arguments}
    return LocalSGDAccelerator(averaging, **options)


def falling(optimizer: Any) -> LambdaLR:
    return LambdaLR(optimizer, lambda step: 1 / (1 + 0.1 * step))


def prepared(
    made: Accelerator, comm: Communicator, data: Samples, dropout: float = 0.0, model: Any = None
) -> Any:
    model = model_of(comm, dropout) if model is None else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
    loader = DataLoader(data, BATCH, shuffle=True)
    return made.prepare(model, optimizer, loader, falling(optimizer))


def epochs(made: Accelerator, things: Any, count: int, first: int = 0, skip: int = 0) -> None:
    """The loop of accelerate's own examples."""
    model, optimizer, loader, scheduler = things
    for epoch in range(first, count):
        loader.set_epoch(epoch)
        batches = made.skip_first_batches(loader, skip) if epoch == first and skip else loader
        for batch in batches:
            with made.accumulate(model):
                made.backward(model(**batch)["loss"])
                if made.sync_gradients:
                    made.clip_grad_norm_(model.parameters(), CLIP)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()


@pytest.mark.parametrize("method", METHODS)
def test_accelerate_equals_a_loop_with_the_same_wrapper_to_the_bit(
    comm: Communicator, method: str
) -> None:
    """Schedulers move as many steps as there are processes, as accelerate's do."""
    data, whole = Samples(), model_of(comm)
    made = LocalSGDAccelerator(
        METHODS[method](whole), cpu=True, gradient_accumulation_steps=ACCUMULATED
    )
    things = prepared(made, comm, data, model=whole)
    epochs(made, things, 2)
    made.flush()
    batches = [data.taken[i : i + BATCH] for i in range(0, len(data.taken), BATCH)]

    model = model_of(comm)
    adopt(model)
    inner = torch.optim.AdamW(model.parameters(), lr=LR)
    optimizer, scheduler = METHODS[method](model)(inner), falling(inner)
    each = len(batches) // 2
    for index, numbers in enumerate(batches):
        inputs, labels = data.inputs[numbers], data.labels[numbers]
        (model(inputs, labels)["loss"] / ACCUMULATED).backward()
        if (index % each + 1) % ACCUMULATED == 0 or index % each + 1 == each:
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            optimizer.zero_grad()
            for _ in range(comm.size):
                scheduler.step()
    optimizer.flush()
    assert digest(things[0].state_dict()) == digest(model.state_dict())
    assert alike(comm, things[0])
    assert things[1].optimizer.averager.step == 2 * -(-each // ACCUMULATED)


def test_every_worker_learns_from_samples_of_its_own(comm: Communicator) -> None:
    """Also where ranks have seeds of their own. Batches are dealt round, the last ones filled."""
    torch.manual_seed(comm.rank)
    data = Samples()
    made = accelerator()
    loader = made.prepare(DataLoader(data, BATCH, shuffle=True))
    orders = []
    for _ in range(2):
        data.taken.clear()
        assert len(list(loader)) == -(-SAMPLES // (BATCH * comm.size))
        taken = comm.collect(list(data.taken))
        orders.append(taken)
        assert set().union(*map(set, taken)) == set(range(SAMPLES))
        assert all(len(mine) == len(taken[0]) for mine in taken)
        assert len(set().union(*map(set, taken))) >= sum(map(len, taken)) - BATCH * comm.size
    assert orders[0] != orders[1]


def test_a_stream_is_dealt_too(comm: Communicator) -> None:
    class Stream(IterableDataset):  # type: ignore[type-arg]
        def __iter__(self) -> Any:
            return iter(range(4 * comm.size))

    loader = accelerator().prepare(DataLoader(Stream(), 2))
    mine = torch.cat(list(loader)).tolist()
    dealt = [number for theirs in comm.collect(mine) for number in theirs]
    assert sorted(dealt) == list(range(4 * comm.size))


@pytest.mark.parametrize("steps", [4, 6])
def test_going_on_from_a_saved_state_is_never_having_stopped_to_the_bit(
    comm: Communicator, steps: int
) -> None:
    """Saved in the middle of a period and at a round, with dropout; an epoch is one step."""
    folder = shared_folder(comm)
    seedable = DataLoaderConfiguration(use_seedable_sampler=True, data_seed=5)
    data = torch.utils.data.Subset(Samples(), range(BATCH * comm.size * ACCUMULATED))

    def begin() -> Any:
        set_seed(3)
        made = accelerator(dataloader_config=seedable)
        things = prepared(made, comm, data, dropout=0.4)  # type: ignore[arg-type]
        return made, things

    made, things = begin()
    epochs(made, things, steps)
    made.save_state(str(folder))
    epochs(made, things, 8, steps)
    again, others = begin()
    again.load_state(str(folder))
    epochs(again, others, 8, steps)
    assert digest(others[0].state_dict()) == digest(things[0].state_dict())
    assert others[1].optimizer.averager.step == 8


def test_a_rank_without_a_saved_state_is_an_error_on_every_rank(comm: Communicator) -> None:
    made = accelerator()
    prepared(made, comm, Samples())
    with pytest.raises((FileNotFoundError, MismatchError), match=r"got .*rank"):
        made.load_state(str(shared_folder(comm) / "nothing"))


def test_one_process_prints_and_all_answer(comm: Communicator, capfd: Any) -> None:
    made = accelerator()
    made.print("once")
    made.wait_for_everyone()
    assert capfd.readouterr().out.count("once") == (comm.rank == 0)
    assert (made.num_processes, made.process_index) == (comm.size, comm.rank)
    assert made.is_last_process == (comm.rank == comm.size - 1)
    mine = torch.tensor([comm.rank, 1])
    total = comm.size * (comm.size - 1) // 2
    assert made.gather(mine).tolist() == [n for rank in range(comm.size) for n in (rank, 1)]
    assert made.gather({"loss": torch.tensor(0.5)})["loss"].tolist() == [0.5] * comm.size
    assert made.reduce(mine).tolist() == [total, comm.size]
    assert made.reduce(mine.bfloat16(), "mean").tolist() == [total / comm.size, 1.0]
    with made.main_process_first():
        order = comm.rank
    assert order == comm.rank
    with pytest.raises(ValueError, match="reduction must be"):
        made.reduce(mine, "prod")


def test_metrics_are_of_every_sample_once(comm: Communicator) -> None:
    """What was dealt twice to fill the last batches is left out, as accelerate does."""
    made = accelerator()
    loader = made.prepare(DataLoader(range(SAMPLES), BATCH))
    seen = torch.cat([made.gather_for_metrics(batch) for batch in loader])
    assert seen.tolist() == list(range(SAMPLES))


def test_batches_that_one_process_reads_for_all_are_refused(comm: Communicator) -> None:
    with pytest.raises(ValueError, match="dispatch_batches must be False"):
        accelerator(dataloader_config=DataLoaderConfiguration(dispatch_batches=True))
