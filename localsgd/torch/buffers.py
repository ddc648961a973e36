"""A module's buffers: views of the core's, which knows what their averages are.

A batch normalisation's running variances belong to its running means, so the variance of all
workers' data together comes out. Floats otherwise are averaged, counters become the largest of
all; masks, of booleans or of infinities, and other buffers that have no average stay each worker's
own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal
from weakref import ref

import torch
from torch import Tensor, nn

from localsgd.buffers import Buffers, Rule, Variance
from localsgd.comm.arithmetic import FLOATS, INTEGERS
from localsgd.comm.base import Communicator
from localsgd.torch.forms import Form, Home, as_array
from localsgd.torch.places import bring, take, wait_for_devices


@dataclass(frozen=True)
class _Member:
    """One buffer: the module that has it, under which name, and its memory."""

    module: ref[nn.Module]
    key: str
    home: Home


class ModuleBuffers:
    """A companion of averagers: the buffers of a module, averaged along with its parameters."""

    def __init__(
        self,
        model: nn.Module,
        comm: Communicator,
        rules: Mapping[str, Rule],
        start: Literal["broadcast", "keep"],
    ) -> None:
        """Gives the buffers their places. Collective.

        Args:
            rules: as of ``localsgd.Buffers``, by the buffers' full names, where they are to be
                others than those of this module's docstring.

        Raises:
            TypeError, ValueError, MismatchError: as ``localsgd.Buffers``.
        """
        found = _averaged(model)
        forms = {name: Form.of(buffer) for name, (_, _, buffer) in found.items()}
        self._buffers = Buffers(
            {name: forms[name].array(buffer.cpu()) for name, (_, _, buffer) in found.items()},
            {**_variances(model, set(found)), **rules},
            comm,
            start=start,
        )
        self._members = []
        for name, (module, key, buffer) in found.items():
            home = Home(forms[name], self._buffers[name])
            self._members.append(_Member(ref(module), key, home))
            take(buffer, home)
            if buffer.device.type == "cpu":
                buffer.data = home.tensor

    @property
    def rules(self) -> Mapping[str, Rule]:
        """The rule of every buffer."""
        return self._buffers.rules

    @property
    def words(self) -> str:
        return self._buffers.words

    def ready(self, group: Communicator, weight: float | None) -> None:
        self._buffers.ready(group, weight)

    def join(self, group: Communicator, weight: float | None) -> None:
        """Brings every buffer to its average, in place. Collective in ``group``."""
        pairs = list(self._pairs())
        for buffer, home in pairs:
            bring(buffer, home)
        wait_for_devices(buffer for buffer, _ in pairs)
        self._buffers.join(group, weight)
        for buffer, home in pairs:
            take(buffer, home)
        wait_for_devices(buffer for buffer, _ in pairs)

    def _pairs(self) -> Iterator[tuple[Tensor, Home]]:
        """Every buffer as it is now, since modules may put another tensor there, and its home."""
        for member in self._members:
            buffer = getattr(member.module(), member.key, None)
            if isinstance(buffer, Tensor):
                yield buffer, member.home


def has_averaged_buffers(model: nn.Module) -> bool:
    """Whether there is any buffer to average."""
    return bool(_averaged(model))


def _averaged(model: nn.Module) -> dict[str, tuple[nn.Module, str, Tensor]]:
    """By full name the buffers that have an average: their module, name there, and tensor."""
    found: dict[str, tuple[nn.Module, str, Tensor]] = {}
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        for key, buffer in module.named_buffers(recurse=False):
            if id(buffer) not in seen and buffer.numel() and _has_average(buffer.dtype):
                found[f"{prefix}.{key}" if prefix else key] = (module, key, buffer)
            seen.add(id(buffer))
    return found


def _has_average(dtype: torch.dtype) -> bool:
    kind = as_array(dtype)
    return kind is not None and kind in FLOATS + INTEGERS


def _variances(model: nn.Module, names: set[str]) -> dict[str, Rule]:
    """The rules of running means and variances that stand side by side, as in normalisations."""
    rules: dict[str, Rule] = {}
    for prefix, _ in model.named_modules():
        path = f"{prefix}." if prefix else ""
        mean, variance = f"{path}running_mean", f"{path}running_var"
        if mean in names and variance in names:
            rules |= {mean: "mean", variance: Variance(mean=mean)}
    return rules
