"""Averages of parameters where they are: on devices that a group of torch.distributed connects.

    all-to-all of a buffer's parts -> shifted mean of this rank's -> all-gather of the means

A rank sends what a ring all-reduce sends, 2 (N - 1) / N of the buffer. The mean is that of
``localsgd.comm``, in its order and to its bits: torch rounds after every operation and fuses none
with the next. A mean that is not finite is taken on the host after all, where errors are told.

This is the one file of the adapter that computes with large tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from localsgd.arrays import Arena, Elsewhere
from localsgd.comm.codecs import Codec, PlacedCodec
from localsgd.comm.contract import Communicator, Update
from localsgd.comm.reduction import scaled_weights
from localsgd.comm.topology import Topology
from localsgd.torch.arrays.place import Place, bring, take, wait_for_devices
from localsgd.torch.comm import device_group

# So many elements of a buffer at a time, which need as much memory again.
_PIECE = 1 << 26


def mean_in_place(
    flat: Tensor,
    weights: Sequence[float],
    topology: Topology,
    group: dist.ProcessGroup,
    *,
    piece_length: int = _PIECE,
) -> bool:
    """Makes a buffer the mean of all ranks' buffers. Collective.

    Args:
        flat: shape ``(n,)`` with ``n`` above 0 and a multiple of the number of ranks, on a device
            that the group connects; changed in place.
        weights: those of all ranks, at least one of them above 0, as of ``scaled_weights``.
        topology: which ranks share a host, for the order of summation.
        piece_length: how many elements are on their way at a time, about.

    Returns:
        Whether the mean is finite, alike on all ranks.
    """
    size, extremes = topology.size, list[Tensor]()
    for piece in torch.split(flat, max(1, piece_length // size) * size):
        received = torch.empty_like(piece)
        group.alltoall_base(received, piece, [], []).wait()
        mean = mean_of_hosts(received.view(size, -1).unbind(), weights, topology)
        group._allgather_base(piece, mean).wait()
        # Either is NaN if any element is. Bits are equal on all ranks, and so is what is found.
        extremes += torch.aminmax(piece)
    return bool(torch.stack(extremes).isfinite().all())


def mean_of_hosts(parts: Sequence[Tensor], weights: Sequence[float], topology: Topology) -> Tensor:
    """The shifted mean at two levels: of every host's ranks, then of the hosts.

    Args:
        parts: every rank's values, shape ``(n,)``.
        weights: every rank's.
    """
    means, totals = [], []
    for host in topology.hosts:
        counted = [rank for rank in host if weights[rank] > 0]
        if counted:
            of_ranks = [weights[rank] for rank in counted]
            means.append(_shifted_mean([parts[rank] for rank in counted], of_ranks))
            totals.append(sum(of_ranks))
    return _shifted_mean(means, totals)


def _shifted_mean(parts: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """``x - sum_i w_i (x - x_i) / W`` with x the first part, rounded once to its dtype."""
    if len(parts) == 1:
        return parts[0]
    work = torch.promote_types(parts[0].dtype, torch.float32)
    first, shift = parts[0].to(work), torch.empty(0)
    for index in range(1, len(parts)):
        difference = first - parts[index]
        if weights[index] != 1.0:
            difference *= weights[index]
        shift = difference if index == 1 else shift.add_(difference)
    # By a number of the host CUDA would multiply with the reciprocal, which has other bits.
    shift /= torch.full((), sum(weights), dtype=work, device=shift.device)
    return (first - shift).to(parts[0].dtype)


class DeviceArena(Elsewhere):
    """Parameters on one device, and the arena with their places on the host."""

    def __init__(
        self, arena: Arena, tensors: Mapping[str, tuple[Tensor, Place]], *, copied: bool
    ) -> None:
        """Not collective.

        Args:
            tensors: the parameters with their places, by their names in the arena.
            copied: whether their places are to have their values after an average, too.
        """
        super().__init__(arena)
        self._tensors, self._copied, self._by_host = tensors, copied, False

    def average(
        self,
        group: Communicator,
        *,
        weight: float | None = None,
        codec: Codec | PlacedCodec | None = None,
        update: Update | None = None,
        mix: float = 0.0,
        finite: bool = False,
        label: str = "",
    ) -> None:
        """On the device if nothing but the mean is asked for and it is finite; else on the host."""
        if codec is None and update is None and not mix:
            # Of nothing: looks at the arguments, and compares them and the label between the ranks.
            nothing = np.empty(0, self.dtype)
            group.allreduce(nothing, "mean", weight=weight, finite=finite, label=label)
            given = group.collect(None if weight is None else float(weight))
            weights = scaled_weights([1.0 if entry is None else entry for entry in given])
            if self._averaged_in_place(group, weights):
                return
        self._bring()
        self._by_host = True
        group.allreduce(
            self.flat,
            "mean",
            weight=weight,
            codec=codec,
            update=update,
            mix=mix,
            finite=finite,
            label=label,
        )

    def take(self) -> None:
        """After a round: the parameters become what is in place, if they were averaged there."""
        if self._by_host:
            self._by_host = False
            for tensor, place in self._tensors.values():
                take(tensor, place.home)
            self._wait()

    def _averaged_in_place(self, group: Communicator, weights: Sequence[float]) -> bool:
        """Whether the parameters are their mean now; else they are what they were. Collective."""
        count, size = self.flat.size, group.size
        if not count:
            return True
        device, form = next((tensor.device, place.form) for tensor, place in self._tensors.values())
        padded = -(-count // size) * size
        flat = torch.empty(padded, dtype=form.dtype.to_real(), device=device)
        flat[count:].zero_()
        pairs = []
        for name, (tensor, place) in self._tensors.items():
            laid = flat[self.slice_of(name)].view(place.form.array_shape)
            pairs.append((tensor.detach(), place.form.shaped(laid)))
        for tensor, part in pairs:
            part.copy_(tensor)
        way = device_group(group, device.type)
        if not mean_in_place(flat, weights, group.topology, way):
            return False
        for tensor, part in pairs:
            tensor.copy_(part)
        if self._copied:
            self._bring()
        return True

    def _bring(self) -> None:
        for tensor, place in self._tensors.values():
            bring(tensor, place.home)
        self._wait()

    def _wait(self) -> None:
        wait_for_devices(tensor for tensor, _ in self._tensors.values())
