"""The page of methods: orderings, pictures and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.methods.pictures import draw
from benchmarks.methods.results import Results, table
from benchmarks.report import Goal

_WORDS = {"digits": "Handwritten digits", "chars": "Python's source, by character"}
_FAMILIES = {
    "periods": "when to average",
    "outer": "outer steps and delays",
    "codecs": "compressed rounds",
    "gossip": "neighbours alone",
    "unlike": "workers with different digits",
}


def write(
    folder: Path,
    results: Results,
    measures: Mapping[str, Mapping[str, str]],
    goals: Sequence[Goal],
    made: str,
) -> None:
    """Writes ``README.md`` and ``pictures/`` into a folder.

    Args:
        measures: of every task, in words.
        made: command, machine and commit, in words.
    """
    short = sum(not goal.kept for goal in goals)
    lines = ["# Methods", "", *_INTRODUCTION, "", "## What papers predict", ""]
    lines += [f"{len(goals) - short} of {len(goals)} are seen here; {short} are short.", ""]
    lines += ["```", *map(str, goals), "```", ""]
    for task, found in results.items():
        lines += [f"## {_WORDS[task]}", ""]
        families = list(dict.fromkeys(result.row.family for result in found.values()))
        for family in families if task == "digits" else [""]:
            chosen = [result for result in found.values() if family in ("", result.row.family)]
            words = f"{_WORDS[task]}: {_FAMILIES[family]}" if family else _WORDS[task]
            name = f"pictures/{task}{family and '-'}{family}.png"
            draw(folder / name, words, measures[task]["loss"], chosen)
            lines += [f"![{words}]({name})", ""]
        lines += [*table(measures[task], found), ""]
    (folder / "README.md").write_text("\n".join([*lines, made, ""]))


_INTRODUCTION = (
    "What each method of the family costs and saves: loss against rounds and bytes, not seconds.",
    "Four workers; each counts as a host of its own, so that codecs act, but for `pairs 4, all 16`",
    "(two hosts of two). Numbers are the mean of three seeds and, in brackets, the least and the",
    "most. Seeds set the start and the order of samples; methods share both. Rates are in",
    "`settings.py`, which also says how they were chosen, and not tuned to the orderings.",
    "`workers apart` is how far workers were from their mean, in its length, in mid-training.",
    "",
    "What is small here is small: 1,797 digits and 960 steps; 1,920 steps of the characters. An",
    "ordering that is short is one that this setting does not show.",
    "",
    "`at one rate` is at the best rate for DiLoCo, which favours it; both comparisons are shown.",
    "Three seeds are few: differences of about a standard deviation say little either way.",
)
