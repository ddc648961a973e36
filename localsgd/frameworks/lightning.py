"""Lightning's ``Trainer`` with workers that average parameters: a strategy of their own.

A strategy is what Lightning asks about processes: how many, who logs, how they meet. This one
answers by ``localsgd``'s communicator and leaves gradients alone. What Lightning does for DDP it
then does here as well: it deals data, syncs what is logged with ``sync_dist``, and decides alike.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor
from torch.distributed import ReduceOp
from torch.optim import Optimizer

from localsgd.checks import agreed
from localsgd.frameworks.hiding import private_world
from localsgd.frameworks.tensors import gathered, reduced
from localsgd.torch import PostLocalSGDOptimizer, adopt

Averaging: TypeAlias = "Callable[[Optimizer], PostLocalSGDOptimizer]"

# Lightning's names for them, and torch's.
_OPS: dict[Any, Literal["mean", "sum", "max", "min"]] = {
    None: "mean",
    "mean": "mean",
    "avg": "mean",
    "sum": "sum",
    "max": "max",
    "min": "min",
    ReduceOp.AVG: "mean",
    ReduceOp.SUM: "sum",
    ReduceOp.MAX: "max",
    ReduceOp.MIN: "min",
}


class LocalSGDStrategy(ParallelStrategy):
    """Local SGD, on the workers of ``private_world()``.

        strategy = LocalSGDStrategy(partial(LocalSGD, period=8))
        Trainer(max_epochs=3, strategy=strategy).fit(module, data)

    All workers begin from the values of rank 0. They average before every validation of ``fit``
    and at its end. Rank 0 logs. A checkpoint of ``fit`` has a file for every worker, that of rank 0
    where Lightning says and the others beside it, as ``last.ckpt.rank-1``, so that training goes on
    from it to the bit.

    Attributes:
        comm: the workers.
    """

    strategy_name = "local_sgd"

    def __init__(self, averaging: Averaging, **of_strategy: Any) -> None:
        """Not collective, but for the first use of the workers; before the ``Trainer``.

        Args:
            averaging: wraps each optimizer of the module, as ``partial(LocalSGD, period=8)``.
            of_strategy: what Lightning's strategies take, as ``precision_plugin``.
        """
        self.comm = private_world()
        super().__init__(**of_strategy)
        self.optimizers: list[Any] = []
        self._averaging, self._trainer = averaging, None
        rank_zero_only.rank = self.comm.rank

    @property
    def root_device(self) -> torch.device:
        """The device of this worker: of several of a host that of its number there."""
        devices: list[torch.device] = self.parallel_devices or [torch.device("cpu")]
        return devices[self.local_rank % len(devices)]

    @property
    def global_rank(self) -> int:
        return self.comm.rank

    @property
    def local_rank(self) -> int:
        """This worker's number on its host."""
        topology = self.comm.topology
        return topology.hosts[self.node_rank].index(self.comm.rank)

    @property
    def node_rank(self) -> int:
        return self.comm.topology.host_of[self.comm.rank]

    @property
    def world_size(self) -> int:
        return self.comm.size

    @property
    def is_distributed(self) -> bool:
        """Makes Lightning deal data, as ``DistributedSampler`` does."""
        return True

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        return {"num_replicas": self.comm.size, "rank": self.comm.rank}

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """Every worker's own values come after those of rank 0."""
        return True

    def setup(self, trainer: Any) -> None:
        """Collective.

        Raises:
            ValueError: for ``sync_batchnorm``, which averages in every forward pass.
            MismatchError: on every rank, if models differ.
        """
        if self._layer_sync is not None:
            raise ValueError(
                "sync_batchnorm must be False with local SGD, got True: give the averaging "
                "buffers=adopt(module).buffers, and rounds pool the statistics"
            )
        self._trainer = trainer
        super().setup(trainer)

    def model_to_device(self) -> None:
        assert self.model is not None
        self.model.to(self.root_device)
        if any(param.requires_grad for param in self.model.parameters()):
            adopt(self.model)

    def setup_optimizers(self, trainer: Any) -> None:
        super().setup_optimizers(trainer)
        self.optimizers = [
            optimizer
            if isinstance(optimizer, PostLocalSGDOptimizer)
            else self._averaging(optimizer)
            for optimizer in self.optimizers
        ]

    def flush(self) -> None:
        """Averages now, as before validating or saving; counts no step. Collective."""
        for optimizer in self.optimizers:
            optimizer.flush()

    def on_train_start(self) -> None:
        """Collective.

        Raises:
            MismatchError: on every rank, if they are to train for different numbers of steps.
        """
        trainer: Any = self._trainer
        numbers = {
            "max_steps": trainer.max_steps,
            "max_epochs": trainer.max_epochs,
            "batches": trainer.num_training_batches,
            "global_step": trainer.global_step,
            "accumulate_grad_batches": trainer.accumulate_grad_batches,
            "check_val_every_n_epoch": trainer.check_val_every_n_epoch,
            "val_check_batch": trainer.val_check_batch,
        }
        lines = [f"{name}={value}" for name, value in numbers.items()]
        agreed(self.comm, "arguments of training", lambda: lines, list)

    def on_validation_start(self) -> None:
        if not self._trainer.sanity_checking:  # type: ignore[attr-defined]
            self.flush()

    def on_train_end(self) -> None:
        self.flush()

    def reduce(self, tensor: Any, group: Any = None, reduce_op: Any = "mean") -> Any:
        """A tensor's mean, sum, maximum or minimum over all workers. Collective.

        Raises:
            ValueError: for another operation.
        """
        if not isinstance(tensor, Tensor):
            return tensor
        if reduce_op not in _OPS:
            raise ValueError(f"reduce_op must be one of {list(_OPS)}, got {reduce_op!r}")
        return reduced(self.comm, tensor, _OPS[reduce_op])

    def all_gather(self, tensor: Tensor, group: Any = None, sync_grads: bool = False) -> Tensor:
        """All workers' tensors of one shape, stacked. Collective.

        Raises:
            NotImplementedError: for ``sync_grads``.
        """
        if sync_grads:
            raise NotImplementedError("sync_grads must be False: gradients stay with their worker")
        return torch.stack(gathered(self.comm, tensor))

    def barrier(self, name: str | None = None) -> None:
        self.comm.barrier()

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        """What rank ``src`` gave, on all ranks: a path, or what JSON has. Collective.

        Raises:
            TypeError, RankFailure: on that rank, and the others, for anything else.
        """
        is_path = isinstance(obj, Path)
        own = [str(obj) if is_path else obj, is_path] if self.comm.rank == src else None
        value, is_path = self.comm.collect(own)[src]
        return Path(value) if is_path else value

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None
    ) -> None:
        self.checkpoint_io.save_checkpoint(checkpoint, self._own(filepath), storage_options)

    def remove_checkpoint(self, filepath: Any) -> None:
        self.checkpoint_io.remove_checkpoint(self._own(filepath))

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> Any:
        """This worker's own; for all that of rank 0, if it is the only one. Collective.

        Raises:
            MismatchError: on every rank, if some have one and some have not.
        """
        own = self._own(Path(checkpoint_path).resolve())
        have = self.comm.collect(Path(own).is_file())
        if not any(have[1:]):
            own = str(checkpoint_path)
        elif not all(have):
            self.comm.agree(have[self.comm.rank], f"checkpoints of ranks at {checkpoint_path}")
        return super().load_checkpoint(own, weights_only)

    def _own(self, path: Any) -> str:
        return f"{path}.rank-{self.comm.rank}" if self.comm.rank else str(path)
