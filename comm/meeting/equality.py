"""Whether all ranks hold the same value, and where the first difference is."""

from __future__ import annotations

import json
from collections.abc import Sequence

from ..contract import Json
from ..errors import MismatchError, name_ranks


def as_json(value: Json) -> str:
    """The value as JSON text, or TypeError if it has none."""
    try:
        return json.dumps(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"the value must be JSON, got {value!r}: {error}") from None


def require_equal(values: Sequence[Json], what: str) -> None:
    """Raises MismatchError, naming the first difference and the ranks, unless all are equal."""
    texts = [json.dumps(value, sort_keys=True) for value in values]
    if len(set(texts)) == 1:
        return
    other = next(rank for rank, text in enumerate(texts) if text != texts[0])
    path = _first_difference(values[0], values[other])
    found: dict[str, list[int]] = {}
    for rank, value in enumerate(values):
        found.setdefault(_at(value, path), []).append(rank)
    parts = [f"{name_ranks(ranks)}: {text}" for text, ranks in found.items()]
    place = "".join(f"[{key!r}]" for key in path)
    raise MismatchError(f"{what}{place} must be equal on all ranks, got {'; '.join(parts)}")


def _first_difference(one: Json, other: Json) -> list[str | int]:
    """The keys and indices that lead to the first place where two values differ."""
    keys: Sequence[str | int] = ()
    if isinstance(one, dict) and isinstance(other, dict):
        keys = [*one, *(key for key in other if key not in one)]
        if list(one) == list(other) or set(one) != set(other):
            missing = [key for key in keys if key not in one or key not in other]
            keys = missing[:1] or keys
    elif isinstance(one, list) and isinstance(other, list):
        keys = range(max(len(one), len(other)))
    for key in keys:
        mine, theirs = _get(one, key), _get(other, key)
        if json.dumps(mine, sort_keys=True) != json.dumps(theirs, sort_keys=True):
            return [key, *_first_difference(mine, theirs)]
    return []


def _get(value: Json, key: str | int) -> Json:
    """One entry, or the word ``absent``."""
    if isinstance(value, dict):
        return value.get(key, "absent")
    if isinstance(value, list) and isinstance(key, int) and key < len(value):
        return value[key]
    return "absent"


def _at(value: Json, path: Sequence[str | int]) -> str:
    for key in path:
        value = _get(value, key)
    return json.dumps(value)
