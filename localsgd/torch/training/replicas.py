"""Whether DDP keeps the workers equal, so that averaging their parameters changes nothing.

DDP tells neither its parameters nor an optimizer of itself, so it is looked for once, among all
objects of the process, where torch.distributed has more than one rank.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from localsgd.checks import caller_level
from localsgd.comm import Communicator


def warn_of_ddp(param_groups: Sequence[Mapping[str, Any]], comm: Communicator) -> None:
    """Warns, on rank 0, if DDP averages the gradients of these among all ranks of ``comm``.

    To be called at a step: inside ``no_sync()`` DDP averages nothing, and one with a hook is left
    to whoever registered it.
    """
    if comm.rank or comm.size == 1 or not dist.is_available() or not dist.is_initialized():
        return
    ours = {id(tensor) for group in param_groups for tensor in group["params"]}
    for module in gc.get_objects():
        # Of the type alone: objects may make up their class.
        if not issubclass(type(module), DistributedDataParallel):
            continue
        averages = module.require_backward_grad_sync and not module._comm_hooks
        if averages and dist.get_world_size(module.process_group) >= comm.size:
            count = sum(id(param) in ours for param in module.parameters())
            if count:
                warnings.warn(
                    f"DistributedDataParallel averages the gradients of {count} parameters among "
                    f"all {comm.size} workers in every step, which keeps them equal, so that "
                    "averaging parameters changes nothing: train the module without DDP, or "
                    "register_comm_hook(PostLocalSGDState(...), post_localSGD_hook)",
                    stacklevel=caller_level(),
                )
                return
