"""What a user's object or function is called, alike on every rank: never by its address.

Such words are compared between ranks, and addresses differ from process to process.
"""

from __future__ import annotations

from functools import partial


def words_of(value: object) -> str:
    """Its ``repr``; the name of its class, if that has none of its own."""
    kind = type(value)
    return kind.__qualname__ if kind.__repr__ is object.__repr__ else repr(value)


def name_of(function: object) -> str:
    """The name of a function; for any other that can be called, ``words_of`` it.

    >>> from functools import partial
    >>> name_of(partial(round, ndigits=2))
    'partial(round)'
    """
    if isinstance(function, partial):
        return f"partial({name_of(function.func)})"
    name: str = getattr(function, "__qualname__", "")
    return name or words_of(function)
