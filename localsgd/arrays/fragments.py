"""Which parameters travel together: plans that cut a model into fragments, by name.

Source: Douillard et al., Streaming DiLoCo (arXiv 2501.18512), section 2.1, whose fragments are
strided; balanced ones as in Decoupled DiLoCo (arXiv 2604.21428).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

from localsgd.arrays.arena import Arenas, as_arenas
from localsgd.checks import checked_count

Plan: TypeAlias = "Sequence[Sequence[str]]"


def balanced(params: Arenas, count: int, *, apart: Iterable[str] = ()) -> list[list[str]]:
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
    _check_names(alone, sizes)
    rest = [name for name in sizes if name not in set(alone)]
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
    params: Arenas, count: int, *, layer: Callable[[str], str] | None = None
) -> list[list[str]]:
    """Fragment p of P has layers p, p + P, p + 2P, …, so that each spans the depth of the model.

    Args:
        params: the parameters of a model.
        count: how many fragments, at least 1.
        layer: the layer of a parameter, by its name; None takes what stands before the last dot.

    Raises:
        ValueError: if there are fewer layers than fragments.
    """
    names = list(_sizes(params))
    of = layer or (lambda name: name.rpartition(".")[0] or name)
    layers = list(dict.fromkeys(of(name) for name in names))
    _checked(count, len(layers), "layers")
    places = {name: index % count for index, name in enumerate(layers)}
    return [[name for name in names if places[of(name)] == index] for index in range(count)]


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


def _sizes(params: Arenas) -> dict[str, int]:
    """How many elements every parameter has, in order."""
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


def _check_names(names: Sequence[str], sizes: dict[str, int]) -> None:
    unknown = [name for name in names if name not in sizes]
    if unknown:
        raise ValueError(f"fragments must consist of the parameters {list(sizes)}, got {unknown}")
