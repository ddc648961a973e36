"""A report on runs: one HTML page that needs nothing else, and its pictures as PNGs beside it."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from localsgd.telemetry.figures import figures
from localsgd.telemetry.reading import Run
from localsgd.telemetry.summary import (
    effective_period,
    hidden_share,
    levels_of,
    losses_of,
    seconds_of,
    steps_of,
    stragglers,
)

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1000px; margin: 2em auto;
       padding: 0 1.2em; }
h1 { font-size: 1.5em; margin-bottom: 0.2em; } h2 { font-size: 1.1em; margin-top: 2em; }
p { color: #4a5563; margin: 0.3em 0 0.8em; } img { max-width: 100%; }
table { border-collapse: collapse; font-size: 0.92em; }
div.wide { overflow-x: auto; }
th, td { padding: 0.25em 0.7em; text-align: right; border-bottom: 1px solid #e6e9ed; }
td { white-space: nowrap; }
th { font-weight: 600; vertical-align: bottom; line-height: 1.2; }
th:first-child, td:first-child { text-align: left; }
"""
_HEADINGS = {
    "loss": (
        "Loss",
        "Against steps, bytes that all ranks have moved (between hosts and in their memory), and "
        "seconds. The thick line is a running mean.",
    ),
    "rounds": (
        "What rounds cost, by level",
        "A bar is what the collectives of one rank take; where the mark stands further left, "
        "training went on meanwhile.",
    ),
    "spread": (
        "Spread between workers",
        "Before a round: the root mean square distance of the workers' parameters from their "
        "mean, and the cosine between a worker's move since the last round and that of the mean.",
    ),
    "stragglers": (
        "Who is waited for",
        "In rounds of all workers: how often each rank came last, and by how much it came after "
        "the one before it, all rounds together.",
    ),
}


def write_page(runs: Sequence[Run], out: Path) -> list[Path]:
    """Writes the page to ``out``, and pictures as ``NAME-loss.png`` beside it.

    Returns:
        What was written, the page first.

    Raises:
        ValueError: without matplotlib, or for a file that does not end in .html.
        OSError: if a file cannot be written.
    """
    if out.suffix not in (".html", ".htm"):
        raise ValueError(f"the page's name must end in .html, got {str(out)!r}")
    try:
        drawn = figures(runs)
    except ImportError:
        raise ValueError("a report needs matplotlib: pip install 'localsgd[report]'") from None
    pictures, written = {}, [out]
    for name, figure in drawn.items():
        memory = io.BytesIO()
        figure.savefig(memory, format="png", dpi=160)
        pictures[name] = memory.getvalue()
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page(runs, pictures), "utf-8")
    for name, data in pictures.items():
        written.append(out.with_name(f"{out.stem}-{name}.png"))
        written[-1].write_bytes(data)
    return written


def page(runs: Sequence[Run], pictures: dict[str, bytes]) -> str:
    """The page's text."""
    names = ", ".join(run.name for run in runs)
    parts = [f"<h1>Runs: {escape(names)}</h1>", _table(_HEAD, map(_row, runs))]
    parts += [f"<p>{escape(run.name)}: <code>{escape(run.averager)}</code></p>" for run in runs]
    for name, (title, words) in _HEADINGS.items():
        if name in pictures:
            data = base64.b64encode(pictures[name]).decode()
            parts += [f"<h2>{title}</h2>", f"<p>{words}</p>"]
            parts.append(f'<img alt="{title}" src="data:image/png;base64,{data}">')
            if name == "rounds":
                parts.append(_table(_LEVELS, (row for run in runs for row in _level_rows(run))))
            if name == "stragglers":
                parts.append(_table(_LATE, (row for run in runs for row in _late_rows(run))))
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(names)}</title><style>{_STYLE}</style></head>\n<body>\n{body}\n"
        "</body></html>\n"
    )


_HEAD = (
    *("run", "workers", "hosts", "steps", "rounds", "steps per round", "seconds"),
    *("MB between hosts", "MB in hosts", "% of time waited", "% hidden", "last loss"),
)


def _row(run: Run) -> list[str]:
    losses, seconds, period = losses_of(run), seconds_of(run), effective_period(run)
    waited = sum(line.waited_s for line in run.rounds)
    return [
        run.name,
        str(run.size),
        str(len({host for host, _ in run.hosts.values()})),
        f"{steps_of(run):,}",
        f"{sum(level.rounds for level in levels_of(run)):,}",
        "" if period is None else f"{period:.4g}",
        f"{seconds:.3g}",
        _millions(sum(line.sent for line in run.rounds)),
        _millions(sum(line.host_bytes for line in run.rounds)),
        f"{100 * waited / (seconds * len(run.hosts)):.1f}" if seconds else "",
        f"{100 * hidden_share(run):.0f}",
        f"{losses[-1].loss:.4g}" if losses else "",
    ]


_LEVELS = (
    *("run", "workers", "rounds", "ms waited", "ms averaging", "ms hidden", "ms training stood"),
    *("MB sent between hosts", "MB in hosts"),
)


def _level_rows(run: Run) -> Iterable[list[str]]:
    for level in levels_of(run):
        times = (level.waited_s, level.moving_s, level.hidden_s, level.stood_s)
        yield [
            run.name,
            str(level.workers),
            f"{level.rounds:,}",
            *(f"{seconds * 1e3:.3g}" for seconds in times),
            _millions(level.sent),
            _millions(level.host_bytes),
        ]


_LATE = ("run", "rank", "host", "came last", "s after the one before")


def _late_rows(run: Run, most: int = 4) -> Iterable[list[str]]:
    """The ranks that cost most."""
    late = stragglers(run)
    for rank in sorted(late, key=lambda rank: -late[rank].seconds)[:most]:
        host, name = run.hosts[rank]
        entry = late[rank]
        yield [run.name, str(rank), f"{host} ({name})", f"{entry.times:,}", f"{entry.seconds:.3g}"]


def _millions(nbytes: float) -> str:
    return f"{nbytes / 1e6:,.3g}" if nbytes < 1e9 else f"{nbytes / 1e6:,.0f}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    lines = "\n".join(line(cells, "td") for cells in rows)
    head_words = line(head, "th")
    return f'<div class="wide"><table>\n{head_words}\n{lines}\n</table></div>'
