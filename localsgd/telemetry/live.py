"""How training goes, on rank 0's terminal: a bar, the loss, rounds, bytes, and who is waited for.

Who is waited for comes from the other ranks' files, where this host has them: nothing is sent.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

_SHOWN_S, _READ_S = 0.1, 1.0


class Waits:
    """How long every rank has waited for others so far, as the files of a folder say."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[Path, int] = {}
        self._waited_s: dict[int, float] = defaultdict(float)

    def slowest(self) -> int | None:
        """The rank that has waited least, for which the others wait; None if there is one alone."""
        for path in self._folder.glob("rank-*.jsonl"):
            rank = int(path.stem.removeprefix("rank-"))
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                whole, newline, _ = file.read().rpartition(b"\n")
            self._read[path] = self._read.get(path, 0) + len(whole) + len(newline)
            for line in whole.splitlines():
                self._waited_s[rank] += json.loads(line).get("waited_s", 0.0)
        if len(self._waited_s) < 2:
            return None
        return min(self._waited_s, key=lambda rank: self._waited_s[rank])


class Progress:
    """The bar."""

    def __init__(self, folder: Path, bar: Bar, total_steps: int | None) -> None:
        self._bar, self._waits = bar, Waits(folder)
        self._task = bar.add_task("training", total=total_steps, words="")
        self._shown_at = self._read_at = time.monotonic()
        self._slowest: int | None = None
        bar.start()

    @classmethod
    def on_terminal(
        cls, folder: Path, total_steps: int | None, wanted: bool | None
    ) -> Progress | None:
        """A bar if one is wanted: by default, where the standard error is a terminal."""
        if wanted is False:
            return None
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        console = Console(stderr=True)
        if wanted is None and not console.is_terminal:
            return None
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[words]}"))
        return cls(folder, Bar(*columns, TimeElapsedColumn(), console=console), total_steps)

    def show(self, step: int, rounds: int, nbytes: int, loss: Any) -> None:
        """Takes note of where training is; draws ten times a second at most."""
        now = time.monotonic()
        if now - self._shown_at < _SHOWN_S:
            return
        self._shown_at = now
        if now - self._read_at > _READ_S:
            self._slowest, self._read_at = self._waits.slowest(), now
        words = [f"{rounds} rounds", f"{nbytes / 1e6:,.1f} MB"]
        if isinstance(loss, (int, float)):
            words.insert(0, f"loss {loss:.4g}")
        if self._slowest is not None:
            words.append(f"slowest: rank {self._slowest}")
        self._bar.update(self._task, completed=step, words=", ".join(words))

    def close(self) -> None:
        self._bar.stop()
