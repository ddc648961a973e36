"""What a rank gets from ``split`` when it joins none of the new groups."""

from __future__ import annotations

from typing import NoReturn


class NonMember:
    """Stands where a communicator would; averagers count their steps on it and do nothing else."""

    rank = -1
    size = 0
    # Nobody reads it.
    progress = memoryview(bytearray(8)).cast("q")

    def __repr__(self) -> str:
        return "NON_MEMBER"

    def __reduce__(self) -> str:
        return "NON_MEMBER"

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise ValueError(f"this rank is not a member of the group, so it must not use {name!r}")


NON_MEMBER = NonMember()
