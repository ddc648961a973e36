"""Where the tensors of a model are: all in arenas, alike on every rank of a group."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from localsgd.arrays import Arena
from localsgd.checks import agreed_beside
from localsgd.comm.contract import Communicator, address_of
from localsgd.torch.arrays.allocation import keep_freed_memory
from localsgd.torch.arrays.forms import Form, Home
from localsgd.torch.arrays.on_device import DeviceArena
from localsgd.torch.arrays.pinned import pin
from localsgd.torch.arrays.place import Place, bring, place_of, remember, take, wait_for_devices
from localsgd.torch.arrays.sharded import check_tensor, shard_owner
from localsgd.torch.comm import carried


def on_host(tensor: Tensor) -> Tensor:
    """The values of a tensor on the host: those of its place, which a round makes new first."""
    place = place_of(tensor)
    return tensor.detach().cpu() if place is None else place.home.tensor


class Placed:
    """Some tensors of one model, and the arenas that hold them and nothing else.

    Attributes:
        arenas: the arenas, or sections of them, in an order that is equal on all ranks.
        lines: the tensors in words, equal on all ranks.
        whereabouts: their places in words.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes tensors that all have their place."""
        self._pairs = [
            (tensor, place)
            for tensor in tensors.values()
            if (place := place_of(tensor)) is not None
        ]
        places = [place for _, place in self._pairs]
        self.arenas = _arenas_of(places)
        self.lines, self.whereabouts = _lines(tensors), _whereabouts(tensors)
        self._elsewhere = [tensor for tensor, _ in self._pairs if tensor.device.type != "cpu"]

    def holds(self, tensors: Sequence[Tensor]) -> bool:
        """Whether these are the same tensors in the same order, all still in place."""
        return len(tensors) == len(self._pairs) and all(
            tensor is mine and place_of(tensor) is place
            for tensor, (mine, place) in zip(tensors, self._pairs, strict=True)
        )

    def hold_all_of(self, tensors: Collection[Tensor]) -> bool:
        """Whether these are the tensors and all lie here, so that no two of them are tied."""
        return len(tensors) == len(self._pairs) and all(
            tensor is mine and place.home.holds(tensor) and place.form.fits(tensor)
            for tensor, (mine, place) in zip(tensors, self._pairs, strict=True)
        )

    @property
    def whole_arenas(self) -> tuple[Arena, ...]:
        """The arenas themselves, whatever else they hold."""
        return tuple({id(place.arena): place.arena for _, place in self._pairs}.values())

    def __iter__(self) -> Iterator[tuple[Tensor, Place]]:
        """Every tensor with its place."""
        return iter(self._pairs)

    def on_devices(self, group: Communicator, *, copied: bool) -> Sequence[DeviceArena] | None:
        """The arenas for a round of a group where the tensors are; None if that is on the host.

        Collective if the group carries averages between any devices.

        Args:
            copied: as of ``DeviceArena``.
        """
        kinds = carried(group)
        if not kinds:
            return None
        # What has no elements may have the address of its neighbour.
        pairs = [(tensor, place) for tensor, place in self._pairs if tensor.numel()]
        at = {address_of(place.arena[place.name]): (t, place) for t, place in pairs}
        found, ready = [], True
        for arena in self.arenas:
            tensors = {name: at[address_of(arena[name])] for name in arena if arena[name].size}
            devices = {tensor.device for tensor, _ in tensors.values()}
            ready = ready and len(devices) <= 1 and all(one.type in kinds for one in devices)
            found.append(DeviceArena(arena, tensors, copied=copied))
        return found if all(group.collect(ready)) else None

    def bring(self) -> None:
        """Before a round: everything that torch has elsewhere comes to its place."""
        for tensor, place in self._pairs:
            bring(tensor, place.home)
        wait_for_devices(self._elsewhere)

    def take(self) -> None:
        """After a round: what torch has on other devices becomes what is in place."""
        if self._elsewhere:
            for tensor, place in self._pairs:
                take(tensor, place.home)
            wait_for_devices(self._elsewhere)


def placed(
    select: Callable[[], Mapping[str, Tensor]],
    comm: Communicator,
    known: Placed | None = None,
    *,
    among: Communicator | None = None,
) -> Placed:
    """The arenas of some tensors; those without a place get one, keeping their values.

    Collective. Ranks must give tensors of the same names, forms and order. If they have places
    that are not alike, as after an average of some of the workers, all get new ones.

    Args:
        select: gives the tensors by name, or raises.
        comm: the workers whose memory it becomes.
        known: what this returned last; spares the work if nothing has changed.
        among: the workers that agree, if nothing has; else all of ``comm`` must. So a group that
            meets more often than all do does not wait for the others.

    Raises:
        TypeError, ValueError: if this rank's tensors cannot be placed (``check_tensor``).
        MismatchError: on every rank, if the ranks' tensors differ, with the first difference.
        MemoryError: on every rank, if the memory of a host does not suffice.
    """

    def prepare() -> _Choice:
        tensors = select()
        if known is not None and known.hold_all_of(tensors.values()):
            each = {name: [tensor] for name, tensor in tensors.items()}
            return _Choice(each, known.lines, known.whereabouts, known)
        for name, tensor in tensors.items():
            check_tensor(name, tensor)
        tied = _tied(tensors)
        if not tied:
            raise ValueError("params must hold at least one parameter to average, got none")
        first = {name: same[0] for name, same in tied.items()}
        if known is not None and known.holds(list(first.values())):
            return _Choice(tied, known.lines, known.whereabouts, known)
        return _Choice(tied, _lines(first), _whereabouts(first), None)

    def agree(group: Communicator, prepare: Callable[[], _Choice]) -> tuple[_Choice, bool]:
        return agreed_beside(
            group, "parameters", prepare, lambda made: made.lines, lambda made: made.whereabouts
        )

    choice, alike = agree(among or comm, prepare)
    if alike and choice.known is not None:
        return choice.known
    if among not in (None, comm):
        _, alike = agree(comm, lambda: choice)
    _give_places(choice.tied, comm, anew=not alike)
    return Placed({name: same[0] for name, same in choice.tied.items()})


@dataclass(frozen=True)
class _Choice:
    tied: Mapping[str, Sequence[Tensor]]
    lines: Sequence[str]
    whereabouts: Sequence[str]
    known: Placed | None


def _tied(tensors: Mapping[str, Tensor]) -> dict[str, list[Tensor]]:
    """The tensors by the first name of each; several where they are one memory."""
    names: dict[object, str] = {}
    tied: dict[str, list[Tensor]] = {}
    for name, tensor in tensors.items():
        tied.setdefault(names.setdefault(_memory(tensor), name), []).append(tensor)
    return tied


def _memory(tensor: Tensor) -> object:
    """What two tensors with the same elements in the same memory have in common."""
    if shard_owner(tensor) or tensor.layout is not torch.strided or is_lazy(tensor):
        return id(tensor)
    if tensor.device.type == "meta" or not tensor.numel():
        return id(tensor)
    return (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride(), tensor.device)


def _lines(tensors: Mapping[str, Tensor]) -> list[str]:
    lines = []
    for name, tensor in tensors.items():
        place = place_of(tensor)
        lines.append(f"parameter {name!r} {Form.of(tensor) if place is None else place.form}")
    return lines


def _whereabouts(tensors: Mapping[str, Tensor]) -> list[str]:
    arenas: dict[int, int] = {}
    found = []
    for tensor in tensors.values():
        place = place_of(tensor)
        if place is None:
            found.append("nowhere")
        else:
            number = arenas.setdefault(id(place.arena), len(arenas))
            found.append(f"at {place.arena.slice_of(place.name).start} in arena {number}")
    return found


def _give_places(
    tied: Mapping[str, Sequence[Tensor]], comm: Communicator, *, anew: bool = False
) -> None:
    by_dtype: dict[Any, dict[str, Form]] = {}
    for name, tensors in tied.items():
        if anew or place_of(tensors[0]) is None:
            form = Form.of(tensors[0])
            by_dtype.setdefault(form.array_dtype, {})[name] = form
            if tensors[0].device.type == "cpu":
                keep_freed_memory()
    for forms in by_dtype.values():
        values = {name: form.array(tied[name][0].cpu()) for name, form in forms.items()}
        arena = Arena(values, comm, start="keep", grad=False)
        if any(tied[name][0].device.type != "cpu" for name in forms):
            pin(arena.flat)
        for name, form in forms.items():
            place = Place(arena, name, form, Home(form, arena[name]))
            for tensor in tied[name]:
                remember(tensor, place)
                if tensor.device.type == "cpu":
                    tensor.data = place.home.tensor


def _arenas_of(places: Iterable[Place]) -> tuple[Arena, ...]:
    """The arenas that the places fill, and sections of those that they fill in part."""
    wanted: dict[int, tuple[Arena, set[str]]] = {}
    for place in places:
        wanted.setdefault(id(place.arena), (place.arena, set()))[1].add(place.name)
    arenas: list[Arena] = []
    for arena, names in wanted.values():
        if len(names) == len(arena):
            arenas.append(arena)
        else:
            arenas.extend(arena.section(run) for run in _runs(arena.names, names))
    return tuple(arenas)


def _runs(order: Sequence[str], names: set[str]) -> list[list[str]]:
    """The names in the order given, cut where others lie between."""
    runs: list[list[str]] = [[]]
    for name in order:
        if name in names:
            runs[-1].append(name)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]
