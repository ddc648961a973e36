"""Which parameters travel together: plans that cut a model into fragments, by name.

Source: Douillard et al., Streaming DiLoCo (arXiv 2501.18512), section 2.1, whose fragments are
strided; balanced ones as in Decoupled DiLoCo (arXiv 2604.21428).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import prod
from typing import Protocol, TypeAlias

from localsgd.arrays.arena import Arenas, as_arenas
from localsgd.checks import checked_count

Plan: TypeAlias = "Sequence[Sequence[str]]"


class Shaped(Protocol):
    """An array or a tensor, as far as its size is asked for."""

    @property
    def shape(self) -> Sequence[int]: ...


# The parameters of a model: arenas, or by name, as ``dict(model.named_parameters())`` in torch.
Model: TypeAlias = "Arenas | Mapping[str, Shaped]"


def balanced(params: Model, count: int, *, apart: Iterable[str] = ()) -> list[list[str]]:
    """Fragments of nearly equal numbers of elements.

    The largest parameter first, each goes to the fragment that has the fewest elements; ties by
    name.

    Args:
        params: the parameters of a model.
        count: how many fragments, at least 1.
        apart: names, as of embeddings, that make one more fragment, the last.

    Raises:
        ValueError: if there are fewer parameters than fragments, or names that are no parameters.
    """
    sizes, alone = _sizes(params), list(apart)
    rest = _without(alone, sizes)
    found: list[list[str]] = [[] for _ in range(_checked(count, len(rest), "parameters"))]
    filled = [0] * count
    for name in sorted(rest, key=lambda name: (-sizes[name], name)):
        index = filled.index(min(filled))
        found[index].append(name)
        filled[index] += sizes[name]
    order = {name: place for place, name in enumerate(sizes)}
    kept = [sorted(names, key=order.__getitem__) for names in found]
    return [*kept, alone] if alone else kept


def strided(
    params: Model,
    count: int,
    *,
    layer: Callable[[str], str] | None = None,
    apart: Iterable[str] = (),
) -> list[list[str]]:
    """Fragment p of P has layers p, p + P, p + 2P, …, so that each spans the depth of the model.

    Layers go by their numbers, ``blocks.10`` after ``blocks.9`` however the parameters are sorted,
    and otherwise in the order in which they come.

    >>> import numpy as np
    >>> strided({f"h.{i}.{n}": np.zeros(2) for i in (0, 1, 10, 2) for n in "wb"}, 2)
    [['h.0.w', 'h.0.b', 'h.2.w', 'h.2.b'], ['h.1.w', 'h.1.b', 'h.10.w', 'h.10.b']]

    Args:
        params: the parameters of a model.
        count: how many fragments, at least 1.
        layer: the layer of a parameter, by its name; None takes the name up to its first number
            between dots, and where there is none, what stands before the last dot.
        apart: names, as of embeddings, that make one more fragment, the last.

    Raises:
        ValueError: if there are fewer layers than fragments, or names that are no parameters.
    """
    sizes, alone = _sizes(params), list(apart)
    names = _without(alone, sizes)
    of = {name: (layer or _layer_of)(name) for name in names}
    layers = _by_number(dict.fromkeys(of.values()))
    _checked(count, len(layers), "layers")
    places = {name: index % count for index, name in enumerate(layers)}
    found = [[name for name in names if places[of[name]] == index] for index in range(count)]
    return [*found, alone] if alone else found


def checked_plan(params: Arenas, plan: int | Plan) -> list[list[str]]:
    """A plan in which every parameter stands once; a number is one of so many balanced fragments.

    Raises:
        TypeError: for anything else.
        ValueError: if a parameter stands nowhere or twice, a name is none, or a fragment is empty.
    """
    fragments_of(plan)
    if isinstance(plan, int):
        return balanced(params, plan)
    sizes, found = _sizes(params), [list(names) for names in plan]
    given = [name for names in found for name in names]
    _check_names(given, sizes)
    if any(not names for names in found):
        raise ValueError(f"every fragment must have a parameter, got {found}")
    missing = [name for name in sizes if name not in set(given)]
    if missing or len(set(given)) < len(given):
        twice = sorted({name for name in given if given.count(name) > 1})
        raise ValueError(
            f"every parameter must be in one fragment, got {missing} in none, {twice} in several"
        )
    return found


def fragments_of(plan: int | Plan) -> int:
    """How many fragments a plan has.

    Raises:
        TypeError: for what is no plan.
        ValueError: unless it has one.
    """
    if isinstance(plan, int):
        return checked_count("fragments", plan, at_least=1)
    if not isinstance(plan, Sequence) or any(isinstance(names, str) for names in plan):
        raise TypeError(f"fragments must be a number or lists of names, got {plan!r}")
    return checked_count("fragments", len(plan), at_least=1)


def _layer_of(name: str) -> str:
    parts = name.split(".")
    numbers = [place for place, part in enumerate(parts) if part.isdecimal()]
    return ".".join(parts[: numbers[0] + 1] if numbers else parts[:-1]) or name


def _by_number(layers: Iterable[str]) -> list[str]:
    """Those that differ in their last number alone stand together, by that number."""
    first: dict[str, int] = {}

    def key(layer: str) -> tuple[int, int]:
        stem, _, last = layer.rpartition(".")
        if not last.isdecimal():
            stem, last = layer, "0"
        return first.setdefault(stem, len(first)), int(last)

    keys = {layer: key(layer) for layer in layers}
    return sorted(keys, key=keys.__getitem__)


def _without(apart: Sequence[str], sizes: Mapping[str, int]) -> list[str]:
    """The names that do not stand apart."""
    _check_names(apart, sizes)
    return [name for name in sizes if name not in set(apart)]


def _sizes(params: Model) -> dict[str, int]:
    """How many elements every parameter has, in order."""
    if isinstance(params, Mapping):
        return {name: prod(array.shape) for name, array in params.items()}
    sizes: dict[str, int] = {}
    for arena in as_arenas(params):
        for name, view in arena.items():
            if name in sizes:
                raise ValueError(f"parameters of fragments must have different names, got {name!r}")
            sizes[name] = view.size
    return sizes


def _checked(count: int, most: int, of: str) -> int:
    if checked_count("fragments", count, at_least=1) > most:
        raise ValueError(f"fragments must be at most the {most} {of}, got {count}")
    return count


def _check_names(names: Sequence[str], sizes: Mapping[str, int]) -> None:
    unknown = [name for name in names if name not in sizes]
    if unknown:
        raise ValueError(f"fragments must consist of the parameters {list(sizes)}, got {unknown}")
