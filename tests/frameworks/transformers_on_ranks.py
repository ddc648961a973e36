"""transformers' Trainer on the workers there are.

``test_launched_frameworks.py`` runs this on each number of ranks.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler
from transformers import (
    EarlyStoppingCallback,
    GPT2Config,
    GPT2LMHeadModel,
    TrainerCallback,
    TrainingArguments,
    get_scheduler,
)

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
from localsgd.frameworks.transformers import LocalSGDTrainer
from localsgd.torch import LocalSGD, adopt

averaging = partial(LocalSGD, period=PERIOD)


@pytest.fixture(scope="module")
def comm() -> Communicator:
    torch.set_num_threads(1)
    return private_world()


def trainer(
    comm: Communicator,
    folder: Path,
    *,
    dropout: float = 0.0,
    callbacks: Any = None,
    data: Any = None,
    averaging: Any = averaging,
    model: Any = None,
    **arguments: Any,
) -> LocalSGDTrainer:
    options: dict[str, Any] = {
        "output_dir": str(folder),
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
        "optim": "adamw_torch",
        "learning_rate": LR,
        "weight_decay": 0.01,
        "warmup_steps": 2,
        "max_steps": 8,
        "max_grad_norm": CLIP,
        "per_device_train_batch_size": BATCH,
        "gradient_accumulation_steps": ACCUMULATED,
        "logging_strategy": "no",
        "save_strategy": "no",
        **arguments,
    }
    data = Samples() if data is None else data
    return LocalSGDTrainer(
        model_of(comm, dropout) if model is None else model,
        TrainingArguments(**options),
        train_dataset=data,
        eval_dataset=Samples(),
        callbacks=callbacks,
        averaging=averaging,
    )


def test_no_framework_sees_the_others(comm: Communicator, tmp_path: Path) -> None:
    made = trainer(comm, shared_folder(comm))
    made.train()
    assert made.args.world_size == 1
    assert not isinstance(made.model_wrapped, nn.parallel.DistributedDataParallel)


@pytest.mark.parametrize("method", METHODS)
def test_the_trainer_equals_a_loop_with_the_same_wrapper_to_the_bit(
    comm: Communicator, method: str
) -> None:
    """8 steps of 2 batches, with rounds in between and at the end."""
    model = model_of(comm)
    made = trainer(comm, shared_folder(comm), averaging=METHODS[method](model), model=model)
    made.train()

    model, data = model_of(comm), Samples()
    adopt(model)
    # As the Trainer groups them: biases do not decay.
    groups = [
        {"params": [p for n, p in model.named_parameters() if "bias" not in n]},
        {"params": [p for n, p in model.named_parameters() if "bias" in n], "weight_decay": 0.0},
    ]
    optimizer = METHODS[method](model)(torch.optim.AdamW(groups, lr=LR, weight_decay=0.01))
    scheduler = get_scheduler("linear", optimizer, num_warmup_steps=2, num_training_steps=8)
    sampler = DistributedSampler(data, comm.size, comm.rank, seed=made.args.seed)
    step = epoch = 0
    while step < 8:
        sampler.set_epoch(epoch)
        batches = list(DataLoader(data, BATCH, sampler=sampler))
        for first in range(0, len(batches), ACCUMULATED):
            several = batches[first : first + ACCUMULATED]
            if step == 8:
                break
            for batch in several:
                (model(**batch)["loss"] / len(several)).backward()
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            step += 1
        epoch += 1
    optimizer.flush()
    assert digest(model.state_dict()) == digest(made.model.state_dict())
    assert alike(comm, made.model)


def test_every_worker_learns_from_samples_of_its_own(comm: Communicator) -> None:
    """One epoch, dealt as equally many each, so that some come twice where it does not divide."""
    data = Samples()
    made = trainer(comm, shared_folder(comm), data=data, max_steps=-1, num_train_epochs=1)
    made.train()
    each = -(-SAMPLES // comm.size)
    taken = comm.collect(sorted(data.taken))
    assert [len(set(mine)) for mine in taken] == [each] * comm.size
    assert set().union(*map(set, taken)) == set(range(SAMPLES))


class Losses(TrainerCallback):
    """What was logged while the model trained and was evaluated."""

    def __init__(self) -> None:
        self.logs: list[dict[str, float]] = []
        self.digests: list[str] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any, **others: Any) -> None:
        self.logs.append(dict(logs))

    def on_evaluate(self, args: Any, state: Any, control: Any, model: Any, **others: Any) -> None:
        self.digests.append(digest(model.state_dict()))


def test_all_evaluate_the_same_model_and_one_logs(comm: Communicator, capfd: Any) -> None:
    """After steps 2, 4, 6, 8, of which only 6 is a round."""
    seen = Losses()
    made = trainer(
        comm,
        shared_folder(comm),
        callbacks=[seen],
        eval_strategy="steps",
        eval_steps=2,
        logging_strategy="steps",
        logging_steps=4,
    )
    made.train()
    assert len(seen.digests) == 4
    assert comm.collect(seen.digests) == [seen.digests] * comm.size
    losses = [log["eval_loss"] for log in seen.logs if "eval_loss" in log]
    assert comm.collect(losses) == [losses] * comm.size
    assert made.state.is_world_process_zero == (comm.rank == 0)


def test_one_worker_can_evaluate_and_save_by_itself(comm: Communicator) -> None:
    folder = shared_folder(comm)
    made = trainer(comm, folder)
    made.train()
    if comm.rank == 0:
        assert made.evaluate()["eval_loss"] > 0
    made.save_model(str(folder / "last"))
    comm.barrier()
    assert sorted(path.name for path in folder.iterdir()) == ["last"]


@pytest.mark.parametrize("whole", [4, 5, 6])
def test_going_on_from_a_checkpoint_is_never_having_stopped_to_the_bit(
    comm: Communicator, whole: int
) -> None:
    """Checkpoints in the middle of a period and at a round, with dropout, in the second epoch."""
    folder = shared_folder(comm)
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": whole, "dropout": 0.4}
    never = trainer(comm, folder, **saving)
    never.train()
    again = trainer(comm, folder, **saving)
    again.train(resume_from_checkpoint=str(folder / f"checkpoint-{whole}"))
    assert digest(again.model.state_dict()) == digest(never.model.state_dict())
    assert again.averaged.averager.step == 8


def test_the_last_checkpoint_is_the_last_that_all_have(comm: Communicator) -> None:
    folder = shared_folder(comm)
    trainer(comm, folder, save_strategy="steps", save_steps=2, max_steps=4).train()
    if comm.rank == comm.size - 1:
        own = folder / f"rank-{comm.rank}" if comm.rank else folder
        (own / "checkpoint-4").rename(own / "kept-4")
    comm.barrier()
    again = trainer(comm, folder, max_steps=3)
    again.train(resume_from_checkpoint=True)
    assert again.averaged.averager.step == 3
    with pytest.raises((FileNotFoundError, MismatchError)):
        again.train(resume_from_checkpoint=str(folder / "checkpoint-4"))


def test_best_models_and_early_stops_are_the_same_on_all(comm: Communicator) -> None:
    """The rate is far too high, so that evaluations soon are worse than one before."""
    folder = shared_folder(comm)
    made = trainer(
        comm,
        folder,
        callbacks=[EarlyStoppingCallback(2)],
        learning_rate=3.0,
        warmup_steps=0,
        max_steps=40,
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=2,
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        greater_is_better=False,
        save_total_limit=2,
    )
    made.train()
    assert made.state.global_step < 40
    assert comm.collect(made.state.global_step) == [made.state.global_step] * comm.size
    assert alike(comm, made.model)


def test_workers_with_different_numbers_of_steps_get_an_error_each(comm: Communicator) -> None:
    made = trainer(comm, shared_folder(comm), max_steps=8 + comm.rank)
    if comm.size == 1:
        made.train()
        return
    with pytest.raises(MismatchError, match=r"max_steps=8 on rank 0; max_steps=9 on rank 1"):
        made.train()


def test_data_without_a_length_is_not_dealt(comm: Communicator) -> None:
    class Stream(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
        def __iter__(self) -> Any:
            return iter(Samples())

    with pytest.raises(ValueError, match="got a Stream"):
        trainer(comm, shared_folder(comm), data=Stream()).train()


def test_a_model_of_transformers_is_saved_by_one_and_loaded_by_all(comm: Communicator) -> None:
    folder = shared_folder(comm)
    torch.manual_seed(comm.rank)
    config = GPT2Config(vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=2)
    words = [{"input_ids": torch.arange(i, i + 6) % 11} for i in range(24)]
    for item in words:
        item["labels"] = item["input_ids"]
    arguments = TrainingArguments(
        str(folder), use_cpu=True, report_to=[], disable_tqdm=True, max_steps=5
    )
    made = LocalSGDTrainer(
        GPT2LMHeadModel(config), arguments, train_dataset=words, averaging=averaging
    )
    made.train()
    made.save_model()
    comm.barrier()
    loaded = GPT2LMHeadModel.from_pretrained(folder)
    assert alike(comm, made.model)
    assert digest(loaded.state_dict()) == digest(made.model.state_dict())


def test_torch_distributed_is_ours_or_not_there(comm: Communicator) -> None:
    """Under torchrun messages go over the group of ``world()``; else nobody has started one."""
    import os

    assert dist.is_initialized() == ("TORCHELASTIC_RUN_ID" in os.environ)
