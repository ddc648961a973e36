"""Lightning's Trainer on the workers there are.

``test_launched_frameworks.py`` runs this on each number of ranks.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler

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
from localsgd.frameworks.lightning import LocalSGDStrategy
from localsgd.torch import LocalSGD, adopt

# Lightning gives advice on the machine, and uses what this torch deprecates.
pytestmark = pytest.mark.filterwarnings("default")

averaging = partial(LocalSGD, period=PERIOD)


@pytest.fixture(scope="module")
def comm() -> Communicator:
    torch.set_num_threads(1)
    return private_world()


class Module(LightningModule):
    def __init__(self, comm: Communicator, dropout: float = 0.0, lr: float = LR) -> None:
        super().__init__()
        self.model = model_of(comm, dropout)
        self.lr, self.validated = lr, []
        self.logged: list[float] = []

    def training_step(self, batch: Any, index: int) -> Any:
        return self.model(**batch)["loss"]

    def validation_step(self, batch: Any, index: int) -> None:
        if index == 0:
            self.validated.append(digest(self.model.state_dict()))
        self.log("val_loss", self.model(**batch)["loss"], sync_dist=True)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=self.lr)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


def trainer(comm: Communicator, folder: Path, **arguments: Any) -> Trainer:
    options: dict[str, Any] = {
        "accelerator": "cpu",
        "default_root_dir": str(folder),
        "strategy": LocalSGDStrategy(averaging),
        "max_steps": 8,
        "gradient_clip_val": CLIP,
        "accumulate_grad_batches": ACCUMULATED,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "limit_val_batches": 0,
        **arguments,
    }
    return Trainer(**options)


def loader(data: Samples | None = None, *, shuffle: bool = True) -> Any:
    return DataLoader(data or Samples(), BATCH, shuffle=shuffle)


@pytest.mark.parametrize("method", METHODS)
def test_the_trainer_equals_a_loop_with_the_same_wrapper_to_the_bit(
    comm: Communicator, method: str
) -> None:
    """8 steps of 2 batches, with rounds in between and at the end."""
    module = Module(comm)
    strategy = LocalSGDStrategy(METHODS[method](module))
    made = trainer(comm, shared_folder(comm), strategy=strategy)
    made.fit(module, loader())

    model, data = model_of(comm), Samples()
    adopt(model)
    inner = torch.optim.AdamW(model.parameters(), lr=LR)
    scheduler = torch.optim.lr_scheduler.StepLR(inner, 2, gamma=0.5)
    optimizer = METHODS[method](model)(inner)
    sampler = DistributedSampler(data, comm.size, comm.rank, seed=0)
    step = epoch = 0
    while step < 8:
        sampler.set_epoch(epoch)
        batches = list(DataLoader(data, BATCH, sampler=sampler))
        for first in range(0, len(batches), ACCUMULATED):
            if step == 8:
                break
            for batch in batches[first : first + ACCUMULATED]:
                (model(**batch)["loss"] / ACCUMULATED).backward()
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
            step += 1
        epoch += 1
    optimizer.flush()
    assert digest(model.state_dict()) == digest(module.model.state_dict())
    assert alike(comm, module)


def test_every_worker_learns_from_samples_of_its_own(comm: Communicator) -> None:
    data = Samples()
    trainer(comm, shared_folder(comm), max_steps=-1, max_epochs=1).fit(Module(comm), loader(data))
    each = -(-SAMPLES // comm.size)
    taken = comm.collect(sorted(data.taken))
    assert [len(set(mine)) for mine in taken] == [each] * comm.size
    assert set().union(*map(set, taken)) == set(range(SAMPLES))


def test_all_validate_the_same_model_and_know_the_same_loss(comm: Communicator) -> None:
    made = trainer(
        comm,
        shared_folder(comm),
        limit_val_batches=1.0,
        accumulate_grad_batches=1,
        val_check_interval=4,
        check_val_every_n_epoch=None,
    )
    module = Module(comm)
    made.fit(module, loader(), loader(shuffle=False))
    assert len(module.validated) == 2
    assert comm.collect(module.validated) == [module.validated] * comm.size
    loss = made.callback_metrics["val_loss"].item()
    assert comm.collect(loss) == [loss] * comm.size
    assert made.is_global_zero == (comm.rank == 0)
    assert made.world_size == comm.size


@pytest.mark.parametrize("saved", [4, 6, 7])
def test_going_on_from_a_checkpoint_is_never_having_stopped_to_the_bit(
    comm: Communicator, saved: int
) -> None:
    """Checkpoints in the middle of a period and at a round. Ranks write files of their own.

    Lightning deals the epoch anew in which it goes on; so each checkpoint is of an epoch's end.
    """
    folder = shared_folder(comm)

    def callback() -> ModelCheckpoint:
        return ModelCheckpoint(folder, "step-{step}", save_top_k=-1, every_n_train_steps=1)

    data = torch.utils.data.Subset(Samples(), range(2 * BATCH * comm.size))
    saving: dict[str, Any] = {
        "enable_checkpointing": True,
        "max_steps": 9,
    }
    never, again = Module(comm), Module(comm)
    trainer(comm, folder, callbacks=[callback()], **saving).fit(never, loader(data))
    found = folder / f"step-step={saved}.ckpt"
    trainer(comm, folder, **{**saving, "enable_checkpointing": False}).fit(
        again, loader(data), ckpt_path=str(found)
    )
    assert digest(again.state_dict()) == digest(never.state_dict())
    assert again.trainer.global_step == 9
    assert again.optimizers().optimizer.averager.step == 9


def test_early_stops_and_best_checkpoints_are_the_same_on_all(comm: Communicator) -> None:
    folder = shared_folder(comm)
    best = ModelCheckpoint(folder, monitor="val_loss", save_top_k=1)
    made = trainer(
        comm,
        folder,
        enable_checkpointing=True,
        callbacks=[EarlyStopping("val_loss", patience=2), best],
        limit_val_batches=1.0,
        max_steps=-1,
        max_epochs=30,
    )
    module = Module(comm, lr=3.0)
    made.fit(module, loader(), loader(shuffle=False))
    assert made.current_epoch < 29
    assert (
        comm.collect([made.global_step, best.best_model_path])
        == [[made.global_step, best.best_model_path]] * comm.size
    )
    assert len(list(folder.iterdir())) == comm.size
    made.validate(module, loader(shuffle=False), ckpt_path="best", weights_only=False)
    assert alike(comm, module)


def test_a_checkpoint_of_one_process_is_loaded_by_all(comm: Communicator) -> None:
    folder = shared_folder(comm)
    made, module = trainer(comm, folder), Module(comm)
    made.fit(module, loader())
    if comm.rank == 0:
        torch.save({"state_dict": module.state_dict()}, folder / "alone.ckpt")
    comm.barrier()
    other = Module(comm)
    loaded = made.strategy.load_checkpoint(str(folder / "alone.ckpt"), weights_only=True)
    other.load_state_dict(loaded["state_dict"])
    assert alike(comm, other)


def test_workers_with_different_numbers_of_steps_get_an_error_each(comm: Communicator) -> None:
    made = trainer(comm, shared_folder(comm), max_steps=8 + comm.rank)
    if comm.size == 1:
        made.fit(Module(comm), loader())
        return
    with pytest.raises(MismatchError, match=r"max_steps=8 on rank 0; max_steps=9 on rank 1"):
        made.fit(Module(comm), loader())


def test_what_lightning_asks_of_a_strategy_is_answered_by_all(comm: Communicator) -> None:
    strategy, mine = LocalSGDStrategy(averaging), torch.tensor([comm.rank, 1])
    total = comm.size * (comm.size - 1) // 2
    assert strategy.reduce(mine, reduce_op="sum").tolist() == [total, comm.size]
    assert strategy.reduce(mine).tolist() == [total / comm.size, 1.0]
    assert mine.tolist() == [comm.rank, 1]
    assert strategy.all_gather(mine).tolist() == [[rank, 1] for rank in range(comm.size)]
    assert strategy.broadcast({"from": comm.rank}, comm.size - 1) == {"from": comm.size - 1}
    assert strategy.reduce_boolean_decision(comm.rank == 0, all=False)
    assert strategy.reduce_boolean_decision(comm.rank == 0) == (comm.size == 1)
    with pytest.raises(ValueError, match="reduce_op must be one of"):
        strategy.reduce(mine, reduce_op="prod")


def test_synchronised_batch_normalisation_is_refused(comm: Communicator) -> None:
    made = trainer(comm, shared_folder(comm), sync_batchnorm=True)
    with pytest.raises(ValueError, match="sync_batchnorm must be False"):
        made.fit(Module(comm), loader())
