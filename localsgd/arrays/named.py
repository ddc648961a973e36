"""What happens to values that are set under a name: they are copied into memory that stays.

Names, shapes and dtypes are fixed, so a view taken once shows whatever is set later.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NoReturn

import numpy as np
from numpy.typing import ArrayLike

from localsgd.comm.contract import Array


class NamedViews(Mapping[str, Array]):
    """Named arrays, each a view that stays; ``arrays["w"] = values`` copies into it.

    Equal to itself alone, as it stands for its memory.
    """

    def __init__(self, views: Mapping[str, Array]) -> None:
        self._views = views

    def __getitem__(self, name: str) -> Array:
        return self._views[name]

    def __setitem__(self, name: str, values: ArrayLike) -> None:
        view = self._views[name]
        given = np.asarray(values)
        if given is view:
            return
        self._check_fits(name, given)
        view[...] = given

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def __reduce__(self) -> NoReturn:
        # Each array would be copied by itself, and be no view of what is averaged any more.
        raise TypeError(
            f"{type(self).__name__} must stay with its memory and cannot be copied or pickled; "
            "copy the values instead: {name: array.copy() for name, array in arrays.items()}"
        )

    def _check_fits(self, name: str, given: Array) -> None:
        """Raises unless the values can be copied into the view of this name.

        Raises:
            ValueError: if their shape is another.
            TypeError: unless they are numbers of the view's kind: complex, real, integers or
                booleans.
        """
        view, words = self._views[name], self._called(name)
        if given.shape != view.shape:
            raise ValueError(f"{words} must have shape {view.shape}, got {given.shape}")
        kind = view.dtype.kind
        if kind in "biu":
            fits = given.dtype.kind in ("b" if kind == "b" else "iu")
        else:
            fits = np.can_cast(given.dtype, complex if kind == "c" else float, "same_kind")
        if not fits:
            numbers = {"b": "booleans", "i": "integers", "u": "integers", "c": "numbers"}
            wanted = numbers.get(kind, "real numbers")
            raise TypeError(f"{words} must be given {wanted}, got {given.dtype}")

    def _called(self, name: str) -> str:
        """What messages call the array of this name."""
        return repr(name)
