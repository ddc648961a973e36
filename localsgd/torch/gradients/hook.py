"""Gradients under DistributedDataParallel: averaged over all workers at first, then by host only.

A communication hook reduces DDP's buckets where they lie, between hosts in the background while the
backward pass goes on, and in the order in which DDP issues them, which is the same on all ranks.
What is unlike torch's hook: groups are found and checked when the state is made and not in
mid-training, and the counter of the warm-up is saved.

Source: torch.distributed.algorithms.ddp_comm_hooks.post_localSGD_hook (PyTorch 2.13).
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from torch import Tensor
from torch.futures import Future

from localsgd.checks import agreed, caller_level, checked_count, checked_flag
from localsgd.comm import Communicator
from localsgd.torch.arrays import Form
from localsgd.torch.comm import ProcessGroup, communicator, has_this_rank, of_host

# DDP looks at a hook's annotations and takes no other and no string, so that this module alone is
# without postponed annotations. torch's stubs do not name the class, nor has every build of it one.
if TYPE_CHECKING:
    Bucket = Any
else:
    Bucket = getattr(dist, "GradBucket", object)


@dataclass(frozen=True)
class _Groups:
    """The workers that average gradients: in the warm-up, and after it (None: nobody)."""

    everybody: Communicator
    nearby: Communicator | None


class PostLocalSGDState:
    """What ``post_localSGD_hook`` knows; one for each model.

    Attributes:
        process_group: the workers of the warm-up, as given.
        subgroup: those after it, as given.
        start_localSGD_iter: how many synchronised backward passes the warm-up takes.
        post_local_gradient_allreduce: whether gradients are averaged at all after it.
        iter: how many such passes there were; it stays where the warm-up ends.
    """

    __slots__ = (
        "_groups",
        "iter",
        "post_local_gradient_allreduce",
        "process_group",
        "start_localSGD_iter",
        "subgroup",
    )

    def __init__(
        self,
        process_group: ProcessGroup,
        subgroup: ProcessGroup,
        start_localSGD_iter: int,  # noqa: N803  torch's name
        post_local_gradient_allreduce: bool = True,
    ) -> None:
        """Collective: finds the groups, and agrees on the rest.

        Args:
            process_group: the workers of the warm-up; None for all.
            subgroup: this rank's group after it; None for the workers of its host.
            start_localSGD_iter: at least 0.
            post_local_gradient_allreduce: with False there is no subgroup and no communication
                after the warm-up.

        Raises:
            TypeError, ValueError: for an invalid argument, or a group without this rank.
            MismatchError: on every rank, if the arguments differ between ranks.
        """
        self.process_group, self.subgroup = process_group, subgroup
        self.start_localSGD_iter = start_localSGD_iter
        self.post_local_gradient_allreduce = post_local_gradient_allreduce
        self.iter = 0
        self._groups: _Groups | None = None
        self.connect()

    def connect(self) -> None:
        """Finds the groups, unless they are known; collective. A loaded copy's first use does so.

        Raises:
            TypeError, ValueError, MismatchError: as the constructor.
        """
        if self._groups is None:
            if not has_this_rank(self.process_group):
                raise ValueError("process_group must have this rank as a member, got one without")
            everybody = communicator(self.process_group)
            agreed(everybody, "hook states", self._check, lambda _: self._lines())
            nearby = None
            if self.post_local_gradient_allreduce:
                given = self.subgroup is not None
                nearby = communicator(self.subgroup) if given else of_host(everybody)
            self._groups = _Groups(everybody, nearby)

    def maybe_increase_iter(self, bucket: Bucket) -> None:
        """Counts a backward pass of the warm-up once, at its last bucket."""
        if bucket.is_last():
            self.iter += 1

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, as JSON values."""
        return {"iter": self.iter, "start_localSGD_iter": self.start_localSGD_iter}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes over a ``state_dict``; not collective.

        Warns:
            UserWarning: if it was saved under another ``start_localSGD_iter``; this one's stays.

        Raises:
            TypeError, ValueError: if it does not fit; then nothing has changed.
        """
        for key in ("iter", "start_localSGD_iter"):
            if not isinstance(state_dict, Mapping) or key not in state_dict:
                raise ValueError(f"a hook's state dict must have {key!r}, got {state_dict!r}")
        passes = checked_count("iter", state_dict["iter"], at_least=0)
        if state_dict["start_localSGD_iter"] != self.start_localSGD_iter:
            warnings.warn(
                f"Loaded state was saved with start_localSGD_iter "
                f"{state_dict['start_localSGD_iter']}, this state goes on with "
                f"{self.start_localSGD_iter}.",
                stacklevel=caller_level(),
            )
        self.iter = passes

    def group_of(self, bucket: Bucket) -> Communicator | None:
        """The workers that average this bucket, None for nobody; counts the warm-up."""
        self.connect()
        assert self._groups is not None
        if self.iter < self.start_localSGD_iter:
            self.maybe_increase_iter(bucket)
            return self._groups.everybody
        return self._groups.nearby

    def __deepcopy__(self, memo: dict[int, Any]) -> "PostLocalSGDState":
        """A state that counts for itself, of the same workers; not collective."""
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        for name in self.__slots__:
            setattr(copied, name, getattr(self, name))
        return copied

    def __getstate__(self) -> dict[str, Any]:
        """Arguments and progress. The copy is of all workers of the job that loads it."""
        if self.process_group is not None or self.subgroup is not None:
            raise TypeError(
                "a hook's state can be pickled if its groups are None, got "
                f"{self.process_group!r} and {self.subgroup!r}: save its state_dict()"
            )
        return {
            "start_localSGD_iter": self.start_localSGD_iter,
            "post_local_gradient_allreduce": self.post_local_gradient_allreduce,
            "iter": self.iter,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.process_group = self.subgroup = self._groups = None
        for name, value in state.items():
            setattr(self, name, value)

    def _check(self) -> None:
        checked_count("start_localSGD_iter", self.start_localSGD_iter, at_least=0)
        checked_flag("post_local_gradient_allreduce", self.post_local_gradient_allreduce)
        if self.post_local_gradient_allreduce and not has_this_rank(self.subgroup):
            raise ValueError("subgroup must have this rank as a member, got one without")

    def _lines(self) -> list[str]:
        return [
            f"start_localSGD_iter {self.start_localSGD_iter}",
            f"post_local_gradient_allreduce {self.post_local_gradient_allreduce}",
            f"subgroup {'of the host' if self.subgroup is None else 'given'}",
        ]


def post_localSGD_hook(  # noqa: N802  torch's name
    state: PostLocalSGDState, bucket: Bucket
) -> Future[Tensor]:
    """Moves a bucket of gradients to its mean over the workers whose turn it is, in place.

    For ``DistributedDataParallel.register_comm_hook(state, post_localSGD_hook)``. Collective
    among the ``start_localSGD_iter`` first backward passes over ``process_group``, then over
    ``subgroup``, or not at all. A pass under ``no_sync`` has no buckets and does not count.

    Returns:
        The bucket's tensor, once it holds the mean; with the error of the reduction, if any.
    """
    buffer = bucket.buffer()
    group = state.group_of(bucket)
    if group is None:
        done: Future[Tensor] = Future()
        done.set_result(buffer)
        return done
    if buffer.device.type != "cpu":
        return _reduced_on_host(buffer, group)
    future: Future[Tensor] = Future()
    array = Form.of(buffer).array(buffer)

    def reduce(comm: Communicator) -> None:
        try:
            comm.allreduce(array, "mean", label="gradients")
        except Exception as error:
            # type: torch annotates the error as if it were the result
            future.set_exception(error)  # type: ignore[arg-type]
        else:
            future.set_result(buffer)

    if len(group.topology.hosts) == 1:
        # It would only take memory's bandwidth from the pass.
        reduce(group)
    else:
        group.start(reduce)
    return future


def _reduced_on_host(buffer: Tensor, group: Communicator) -> Future[Tensor]:
    """A bucket of another device, by way of the host, in order with that device's own work."""
    host = buffer.cpu()
    group.allreduce(Form.of(host).array(host), "mean", label="gradients")
    buffer.copy_(host)
    future: Future[Tensor] = Future(devices=[buffer.device])
    future.set_result(buffer)
    return future
