"""A module's buffers: averaged by the core, which knows what their averages are.

A batch normalisation's running variances belong to its running means, so the variance of all
workers' data together comes out. Other buffers of known modules have the rules that keep what
they stand for (``known_buffers``); the rest are averaged, counted or compared by their dtype.
Buffers stay where they are, since modules resize them and put others in their place; a round works
on a copy.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from weakref import ref

import torch
from torch import Tensor, nn

from localsgd.arrays import (
    Buffers,
    Rule,
    Variance,
    WeightedMean,
    checked_rules,
    matched_rules,
    require_equal,
)
from localsgd.checks import agreed, digest_of
from localsgd.comm import solo
from localsgd.comm.contract import Array, Communicator
from localsgd.torch.arrays.forms import Form, as_array, once
from localsgd.torch.arrays.known_buffers import known_rules
from localsgd.torch.arrays.place import wait_for_devices
from localsgd.torch.arrays.sharded import check_memory


@dataclass(frozen=True)
class _Member:
    """One buffer: the module that has it, under which name, and whether it is saved."""

    module: ref[nn.Module]
    key: str
    persistent: bool

    def tensor(self) -> Tensor | None:
        """The buffer as it is now, since modules may put another tensor there."""
        found = getattr(self.module(), self.key, None)
        return found if isinstance(found, Tensor) else None


class ModuleBuffers:
    """A companion of averagers: the buffers of a module, averaged along with its parameters."""

    def __init__(
        self, model: nn.Module, comm: Communicator, rules: Mapping[str, Rule] | None = None
    ) -> None:
        """Settles every buffer's rule. Collective.

        Args:
            model: not used afterwards but for its buffers.
            rules: as of ``localsgd.Buffers``, by the buffers' full names or patterns of them, where
                they are to be others than those of this module's docstring.

        Raises:
            TypeError, ValueError, MismatchError: as ``localsgd.Buffers``.
        """
        self._members = members_of(model)

        def prepare() -> dict[str, Rule]:
            return settled_rules(model, rules)

        def lines(made: Mapping[str, Rule]) -> list[str]:
            tensors = state_of(self._members)
            return [f"buffer {n!r} {Form.of(tensors[n])}, rule {rule}" for n, rule in made.items()]

        self._rules = agreed(comm, "buffers", prepare, lines)
        self._forms = {n: Form.of(tensor) for n, tensor in self._joined()}
        values = {name: self._forms[name].array(copied(tensor)) for name, tensor in self._joined()}
        # Memory that all reduce in one pass; where a buffer has changed its shape, this rank's own.
        self._memory = Buffers(values, self._rules_of(values), comm, start="keep")
        self._digests: dict[str, tuple[object, str]] = {}
        unknown = self._undecided(model, rules)
        if unknown and comm.rank == 0:
            print(_telling(unknown, self._members), file=sys.stderr)

    @property
    def rules(self) -> Mapping[str, Rule]:
        """The rule of every buffer."""
        return self._rules

    @property
    def words(self) -> str:
        """Names the buffers that have changed their form, which ranks must have alike."""
        forms = self._forms
        changed = [
            f"{name!r} {Form.of(tensor)}"
            for name, tensor in self._joined()
            if not forms[name].fits(tensor)
        ]
        return ", ".join(["buffers", *changed])

    def ready(self, group: Communicator, weight: float | None) -> None:
        """Compares the buffers that must be equal."""
        same = [name for name, rule in self._rules.items() if rule == "equal"]
        if same:
            lines = [f"buffer {name!r} {self._digest(name)}" for name in same]
            require_equal(group, lines)

    def join(self, group: Communicator, weight: float | None) -> None:
        """Brings every buffer to its average, in place. Collective in ``group``."""
        tensors = dict(self._joined())
        if all(self._forms[name].fits(tensor) for name, tensor in tensors.items()):
            forms, memory = self._forms, self._memory
        else:
            forms = {name: Form.of(tensor) for name, tensor in tensors.items()}
            values = {name: forms[name].array(copied(tensor)) for name, tensor in tensors.items()}
            memory = Buffers(values, self._rules_of(values), solo(), start="keep")
        for name, tensor in tensors.items():
            memory[name] = forms[name].array(copied(tensor))
        memory.join(group, weight)
        for name, tensor in tensors.items():
            target, found = once(tensor.detach()), forms[name].tensor(memory[name])
            # What is one element in memory was one on every rank, and has one average.
            found = found[tuple(slice(extent) for extent in target.shape)]
            target.copy_(found, non_blocking=True)
        wait_for_devices(tensors.values())

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of the buffers that a round changes."""
        return {name: copied(tensor) for name, tensor in self._joined()}

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Takes over what ``state_dict`` gave of the same buffers, in place."""
        for name, tensor in self._joined():
            tensor.detach().copy_(state_dict[name])

    def _joined(self) -> Iterator[tuple[str, Tensor]]:
        """Every buffer that a round changes, as it is now."""
        for name, member in self._members.items():
            tensor = member.tensor()
            if self._rules[name] not in ("equal", "keep") and tensor is not None:
                yield name, tensor

    def _rules_of(self, values: Mapping[str, Array]) -> dict[str, Rule]:
        return {name: self._rules[name] for name in values}

    def _digest(self, name: str) -> str:
        """A digest of a buffer's values, taken anew only where torch has counted a change."""
        tensor = self._members[name].tensor()
        if tensor is None:
            return "of no tensor"
        version = None if tensor.is_inference() else tensor._version
        state = (id(tensor), tensor.data_ptr(), version)
        known = self._digests.get(name)
        if known is None or known[0] != state or version is None:
            digest = digest_of(array_of(tensor))[:16]
            known = self._digests[name] = (state, f"{Form.of(tensor)} with digest {digest}")
        return known[1]

    def _undecided(self, model: nn.Module, rules: Mapping[str, Rule] | None) -> list[str]:
        """The buffers of floats that are averaged though nobody has said so."""
        first = names_of(model)
        decided = {first[name] for name in known_rules(model)}
        decided |= {first[name] for name in matched_rules(list(first), rules or {})}
        return [
            name
            for name, tensor in self._joined()
            if tensor.is_floating_point() and tensor.numel() and name not in decided
        ]


def members_of(model: nn.Module) -> dict[str, _Member]:
    """The buffers by their first full name; each once, whatever else it is called."""
    found: dict[str, _Member] = {}
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        for key, buffer in module.named_buffers(recurse=False):
            if id(buffer) not in seen:
                name = f"{prefix}.{key}" if prefix else key
                persistent = key not in module._non_persistent_buffers_set
                found[name] = _Member(ref(module), key, persistent)
            seen.add(id(buffer))
    return found


def names_of(model: nn.Module) -> dict[str, str]:
    """Every name that a buffer has, and the first one of the same buffer."""
    first: dict[int, str] = {}
    named = model.named_buffers(remove_duplicate=False)
    return {name: first.setdefault(id(buffer), name) for name, buffer in named}


def state_of(members: Mapping[str, _Member]) -> dict[str, Tensor]:
    """The buffers as they are now."""
    tensors = {name: member.tensor() for name, member in members.items()}
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def settled_rules(model: nn.Module, rules: Mapping[str, Rule] | None) -> dict[str, Rule]:
    """The rule of every buffer: the user's, or what is known of it, or by its dtype.

    Raises:
        TypeError, ValueError: as ``checked_rules``, and for two rules for one buffer that has two
            names, or a buffer without memory.
    """
    given = {} if rules is None else rules
    if not isinstance(given, Mapping):
        raise TypeError(f"rules must be a mapping by name, got {rules!r}")
    members, first = members_of(model), names_of(model)
    chosen: dict[str, Rule] = {}
    for name, wanted in matched_rules(list(first), given).items():
        if chosen.setdefault(first[name], wanted) != wanted:
            raise ValueError(
                f"a buffer must have one rule, got two for {name!r}, which is {first[name]!r}: "
                f"{chosen[first[name]]} and {wanted}"
            )
    tensors = state_of(members)
    for name, tensor in tensors.items():
        check_memory("buffer", name, tensor)
    values = {name: array_of(tensor) for name, tensor in tensors.items()}
    known = {first[name]: _renamed(rule, first) for name, rule in known_rules(model).items()}
    chosen = {name: _renamed(rule, first) for name, rule in chosen.items()}
    usual: dict[str, Rule] = {}
    for name, tensor in tensors.items():
        rule = _usual_rule(tensor, members[name])
        if rule is not None:
            usual[name] = rule
    settled = checked_rules(values, {**usual, **known, **chosen})
    for name, found in settled.items():
        if not _has_numbers(tensors[name]) and found not in ("equal", "keep"):
            raise ValueError(
                f"the rule of buffer {name!r} of {tensors[name].dtype} must be 'equal' or 'keep', "
                f"got {found!r}"
            )
    return settled


def _renamed(rule: Rule, first: Mapping[str, str]) -> Rule:
    """The rule, with another buffer in it called by its first name."""
    if isinstance(rule, Variance):
        return Variance(mean=first.get(rule.mean, rule.mean))
    if isinstance(rule, WeightedMean):
        return WeightedMean(by=first.get(rule.by, rule.by))
    return rule


def array_of(tensor: Tensor) -> Array:
    """A copy of a tensor's values; of its bytes where numpy has no such dtype."""
    values = copied(tensor)
    if _has_numbers(tensor):
        return Form.of(values).array(values)
    array: Array = values.contiguous().reshape(-1).view(torch.uint8).numpy()
    return array


def copied(tensor: Tensor) -> Tensor:
    """A copy on the host. An array on a buffer's own memory would keep it from being resized."""
    return tensor.detach().cpu().clone()


def _has_numbers(tensor: Tensor) -> bool:
    """Whether numpy has numbers of this dtype, or booleans."""
    return tensor.dtype == torch.bool or as_array(tensor.dtype) is not None


def _usual_rule(tensor: Tensor, member: _Member) -> Rule | None:
    """The rule where nothing is known but the tensor; None for that of its dtype."""
    if not _has_numbers(tensor):
        return "keep"
    if tensor.numel() < 2:
        return None
    if tensor.dtype == torch.uint8:
        return "keep"  # packed bits or the state of a generator, and no counter
    return None if member.persistent else "equal"  # a cache, as of angles or positions


def _telling(names: Sequence[str], members: Mapping[str, _Member]) -> str:
    kinds = sorted({type(members[name].module()).__name__ for name in names})
    line = ", ".join(f"{name!r}: 'mean'" for name in names)
    return (
        f"localsgd: buffers of {', '.join(kinds)} are averaged, since nothing else is known of "
        f"them; adopt(model, rules={{{line}}}) says that this is right, 'keep' leaves each worker "
        "its own, 'equal' compares, 'max' and 'min' take the largest and smallest"
    )
