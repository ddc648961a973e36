"""accelerate's ``Accelerator`` with workers that average parameters.

To accelerate there is no distributed training, so that nothing is wrapped and nothing sent in a
backward pass; but it is told how many processes there are and which this is, so that it deals data,
steps schedulers and prints as it does for them. What it does between processes goes by
``localsgd``'s communicator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import torch
from accelerate import Accelerator, PartialState
from accelerate.data_loader import get_sampler
from accelerate.utils import recursively_apply
from torch.optim import Optimizer

from localsgd.checks import agreed
from localsgd.frameworks.hiding import private_world
from localsgd.frameworks.tensors import gathered, reduced
from localsgd.torch import PostLocalSGDOptimizer, adopt

Averaging: TypeAlias = "Callable[[Optimizer], PostLocalSGDOptimizer]"


class LocalSGDAccelerator(Accelerator):
    """An ``Accelerator`` whose optimizers are wrapped, on the workers of ``private_world()``.

        accelerator = LocalSGDAccelerator(partial(LocalSGD, period=8))
        model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        …                          # the loop as it is
        accelerator.flush()        # average now, as before evaluating or saving

    ``prepare`` gives all workers the model of rank 0, each its own part of the data, in an order
    that rank 0 draws, and wraps the optimizer. ``save_state`` saves every worker, the others in
    ``rank-1`` and so on of the folder, so that ``load_state`` goes on to the bit.

    Attributes:
        comm: the workers.
    """

    def __init__(self, averaging: Averaging, **by_name: Any) -> None:
        """Not collective, but for the first use of the workers.

        Args:
            averaging: wraps each optimizer, as ``partial(LocalSGD, period=8)``.
            by_name: the ``Accelerator``'s own.

        Raises:
            ValueError: if accelerate has started torch.distributed before, or is to dispatch
                batches from one process.
        """
        self.comm = private_world()
        super().__init__(**by_name)
        state = PartialState()
        if state.use_distributed:
            raise ValueError(
                "LocalSGDAccelerator must come before anything else of accelerate, got process "
                f"{state.process_index} of {state.num_processes} that DDP would keep equal"
            )
        if self.dataloader_config.dispatch_batches:
            raise ValueError("dispatch_batches must be False: every worker reads its own batches")
        self.dataloader_config.dispatch_batches = False
        self._averaging = averaging
        self._tell_who_this_is(state)

    def prepare_model(self, model: Any, *others: Any, **by_name: Any) -> Any:
        """The ``Accelerator``'s, and what can be trained begins as on rank 0. Collective."""
        prepared = super().prepare_model(model, *others, **by_name)
        if any(param.requires_grad for param in prepared.parameters()):
            adopt(prepared)
        return prepared

    def prepare_optimizer(self, optimizer: Any, *others: Any, **by_name: Any) -> Any:
        """The ``Accelerator``'s, wrapped."""
        if not getattr(optimizer, "_is_accelerate_prepared", False):
            given = isinstance(optimizer, PostLocalSGDOptimizer)
            optimizer = optimizer if given else self._averaging(optimizer)
        return super().prepare_optimizer(optimizer, *others, **by_name)

    def prepare_data_loader(self, data_loader: Any, *others: Any, **by_name: Any) -> Any:
        """The ``Accelerator``'s, which deals the order that rank 0 draws. Collective."""
        if self.dataloader_config.data_seed is None:
            self.dataloader_config.data_seed = self.comm.collect(torch.initial_seed())[0]
        sampler = get_sampler(data_loader)
        if hasattr(sampler, "generator"):
            if sampler.generator is None:
                sampler.generator = torch.Generator()
                sampler.generator.manual_seed(int(torch.randint(2**62, ())))
            sampler.generator.set_state(gathered(self.comm, sampler.generator.get_state())[0])
        return super().prepare_data_loader(data_loader, *others, **by_name)

    def flush(self) -> None:
        """Averages now, as before evaluating or saving; counts no step. Collective."""
        for optimizer in self._optimizers:
            optimizer.optimizer.flush()

    def gather(self, tensor: Any) -> Any:
        """All workers' tensors, one after the other, in a nested structure of them. Collective."""

        def together(own: torch.Tensor) -> torch.Tensor:
            return torch.cat(gathered(self.comm, own if own.ndim else own[None]))

        return recursively_apply(together, tensor, error_on_other_type=True)

    def gather_for_metrics(self, input_data: Any, use_gather_object: bool = False) -> Any:
        """The ``Accelerator``'s, of tensors. Collective.

        Raises:
            NotImplementedError: for ``use_gather_object``.
            TypeError: for anything but tensors.
        """
        if use_gather_object:
            raise NotImplementedError("use_gather_object must be False: tensors alone are gathered")
        recursively_apply(lambda own: own, input_data, error_on_other_type=True)
        return super().gather_for_metrics(input_data)

    def reduce(self, tensor: Any, reduction: str = "sum", scale: float = 1.0) -> Any:
        """All workers' tensors as one, in a nested structure of them. Collective.

        Raises:
            ValueError: for another reduction.
        """
        if reduction == "none":
            return tensor
        if reduction not in ("sum", "mean", "max"):
            raise ValueError(f"reduction must be sum, mean, max or none, got {reduction!r}")
        return recursively_apply(
            lambda own: reduced(self.comm, own, reduction),  # type: ignore[arg-type]
            tensor,
            error_on_other_type=True,
        )

    def wait_for_everyone(self) -> None:
        self.comm.barrier()

    @contextmanager
    def main_process_first(self) -> Iterator[None]:
        with self._first(self.comm.rank == 0):
            yield

    @contextmanager
    def local_main_process_first(self) -> Iterator[None]:
        with self._first(self.is_local_main_process):
            yield

    def save_state(self, output_dir: Any = None, *others: Any, **by_name: Any) -> Any:
        """Everything that this worker needs to go on, in a folder of its own; not collective."""
        with self._alone():
            return super().save_state(self._own(output_dir), *others, **by_name)

    def load_state(self, input_dir: Any = None, *others: Any, **by_name: Any) -> None:
        """Goes on from what this worker has saved. Collective.

        Raises:
            FileNotFoundError: without a folder of this rank.
            MismatchError: on the others.
        """

        def prepare() -> Any:
            own = self._own(input_dir)
            if own is not None and not Path(own).is_dir():
                raise FileNotFoundError(
                    "input_dir must have a folder of every rank, got none of rank "
                    f"{self.comm.rank} at {own}"
                )
            return own

        own = agreed(self.comm, "saved states", prepare, lambda _: [])
        with self._alone():
            super().load_state(own, *others, **by_name)

    def _tell_who_this_is(self, state: Any) -> None:
        topology = self.comm.topology
        host = topology.hosts[topology.host_of[self.comm.rank]]
        state.num_processes, state.process_index = self.comm.size, self.comm.rank
        state.local_process_index = host.index(self.comm.rank)

    def _own(self, folder: Any) -> str | None:
        if self.project_configuration.automatic_checkpoint_naming:
            raise ValueError("automatic_checkpoint_naming must be False, got True: name the folder")
        return str(Path(folder) / f"rank-{self.comm.rank}" if self.comm.rank else folder)

    @contextmanager
    def _first(self, this: bool) -> Iterator[None]:
        if not this:
            self.comm.barrier()
        yield
        if this:
            self.comm.barrier()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Lets this process be to accelerate the only one."""
        state = PartialState()
        state.num_processes, state.process_index, state.local_process_index = 1, 0, 0
        try:
            yield
        finally:
            self._tell_who_this_is(state)
