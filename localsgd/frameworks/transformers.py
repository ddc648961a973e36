"""transformers' ``Trainer`` with workers that average parameters.

To the ``Trainer`` every worker is one process by itself, so that it neither wraps the model in DDP
nor talks to others. What it does for its processes is done here by the methods that it has for
subclasses: dealing data, one that logs, and a checkpoint for every worker.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from accelerate import PartialState
from torch.optim import Optimizer
from torch.utils.data import DistributedSampler
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from localsgd.checks import agreed
from localsgd.frameworks.hiding import private_world
from localsgd.torch import PostLocalSGDOptimizer, adopt

Averaging: TypeAlias = "Callable[[Optimizer], PostLocalSGDOptimizer]"


class LocalSGDTrainer(Trainer):
    """A ``Trainer`` whose optimizer is wrapped, on the workers of ``private_world()``.

        comm = private_world()                        # before TrainingArguments
        args = TrainingArguments("run", max_steps=100)
        averaging = partial(LocalSGD, period=8)
        LocalSGDTrainer(model, args, train_dataset=data, averaging=averaging).train()

    Stands before another subclass as well: ``class Mine(LocalSGDTrainer, SFTTrainer)``.

    All workers begin from the values of rank 0 and get different samples, equally many. They
    average before an evaluation in training and at its end, so that all evaluate the same model and
    end with it; each evaluates all of ``eval_dataset``. Rank 0 logs, what it has itself seen, and
    saves where ``output_dir`` says; in training every worker saves all that it needs to go on to
    the bit, the others in ``output_dir/rank-1`` and so on.

    Attributes:
        comm: the workers.
        averaged: the wrapped optimizer; None before training.
    """

    def __init__(
        self, *of_trainer: Any, averaging: Averaging, deal: bool = True, **by_name: Any
    ) -> None:
        """Not collective.

        Args:
            of_trainer, by_name: the ``Trainer``'s own.
            averaging: wraps the optimizer, as ``partial(LocalSGD, period=8)``.
            deal: whether every worker gets samples of its own; with False the ``train_dataset`` is
                this worker's already, as a stream must be, which has no length.

        Raises:
            ValueError: if the framework has started torch.distributed: ``private_world()`` comes
                before ``TrainingArguments``.
        """
        self.comm = private_world()
        state = PartialState()
        if state.use_distributed:
            raise ValueError(
                "private_world() must come before TrainingArguments, got arguments of process "
                f"{state.process_index} of {state.num_processes}, whose gradients DDP would average"
            )
        # Each is the first of its host and the only one, so that it may save, but not the first.
        state.process_index = self.comm.rank
        self._averaging, self._deals = averaging, deal
        self.averaged: PostLocalSGDOptimizer | None = None
        super().__init__(*of_trainer, **by_name)
        self.add_callback(_Ends(self))

    def train(
        self, resume_from_checkpoint: str | bool | None = None, *others: Any, **by_name: Any
    ) -> Any:
        """As the ``Trainer``'s; collective.

        Args:
            resume_from_checkpoint: of rank 0, where every other finds its own; True for the last
                that all workers have.
            others, by_name: the ``Trainer``'s own.

        Raises:
            FileNotFoundError: without a checkpoint of this rank.
            MismatchError: on every rank, if models, checkpoints or numbers of steps differ.
        """
        if self.model is not None:
            adopt(self.model)
        found = self._own_checkpoint(resume_from_checkpoint)
        return super().train(found, *others, **by_name)

    def create_optimizer(self, *model: Any) -> Any:
        """The ``Trainer``'s own optimizer, or that which it was given, wrapped."""
        made = super().create_optimizer(*model)
        if self.averaged is None:
            given = isinstance(made, PostLocalSGDOptimizer)
            self.averaged = made if given else self._averaging(made)
            self.optimizer = self.averaged
        return self.optimizer

    def get_train_dataloader(self) -> Any:
        """The ``Trainer``'s, of this worker's samples.

        Raises:
            ValueError: for data that cannot be dealt.
        """
        strategy = self.args.train_sampling_strategy
        can_be_dealt = hasattr(self.train_dataset, "__len__")
        if self._deals and not (can_be_dealt and strategy in ("random", "sequential")):
            raise ValueError(
                "train_dataset must have a length, to be dealt in random or sequential order, got "
                f"a {type(self.train_dataset).__name__} and train_sampling_strategy={strategy!r}: "
                "give every worker its own part and deal=False"
            )
        return super().get_train_dataloader()

    def flush(self) -> None:
        """Averages now, as before validating or saving; counts no step. Collective."""
        if self.averaged is not None:
            self.averaged.flush()

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if not self._deals:
            return super()._get_train_sampler(train_dataset)
        dataset = self.train_dataset if train_dataset is None else train_dataset
        shuffle = self.args.train_sampling_strategy == "random"
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return DistributedSampler(
            dataset, self.comm.size, self.comm.rank, shuffle=shuffle, seed=seed
        )

    def _evaluate(self, *of_trainer: Any, **by_name: Any) -> Any:
        self.flush()
        return super()._evaluate(*of_trainer, **by_name)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._own(Path(super()._get_output_dir(trial))))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        with _every_worker_saves(self.args):
            super()._save_checkpoint(model, trial)

    def _own(self, folder: Path) -> Path:
        return folder / f"rank-{self.comm.rank}" if self.comm.rank else folder

    def _own_checkpoint(self, given: str | bool | None) -> str | None:
        """Where this rank goes on from, of one step on all ranks."""
        if given is True:
            steps = self.comm.collect(_steps_in(self._own(Path(self.args.output_dir))))
            common = set.intersection(*map(set, steps))
            last = f"{PREFIX_CHECKPOINT_DIR}-{max(common, default=0)}"
            given = str(Path(self.args.output_dir) / last)

        def prepare() -> str | None:
            if not given:
                return None
            path = self._own(Path(str(given)).parent) / Path(str(given)).name
            if not path.is_dir():
                raise FileNotFoundError(
                    "resume_from_checkpoint must lead to a checkpoint of every rank, got none of "
                    f"rank {self.comm.rank} at {path}"
                )
            return str(path)

        return agreed(
            self.comm, "checkpoints", prepare, lambda path: [str(path and Path(path).name)]
        )


class _Ends(TrainerCallback):
    """What all workers do together where training begins and ends."""

    def __init__(self, trainer: LocalSGDTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        numbers = {
            "max_steps": state.max_steps,
            "global_step": state.global_step,
            "eval_strategy": f"{args.eval_strategy} {state.eval_steps}",
            "save_strategy": f"{args.save_strategy} {state.save_steps}",
            "gradient_accumulation_steps": args.gradient_accumulation_steps,
        }
        lines = [f"{name}={value}" for name, value in numbers.items()]
        agreed(self._trainer.comm, "arguments of training", lambda: lines, list)

    def on_train_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self._trainer.flush()


@contextmanager
def _every_worker_saves(args: Any) -> Iterator[None]:
    before, args.save_on_each_node = args.save_on_each_node, True
    try:
        yield
    finally:
        args.save_on_each_node = before


def _steps_in(folder: Path) -> list[int]:
    """Of which steps a folder has a checkpoint."""
    names = [entry.name for entry in os.scandir(folder)] if folder.is_dir() else []
    numbers = [name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-") for name in names]
    return [int(number) for number in numbers if number.isdigit()]
