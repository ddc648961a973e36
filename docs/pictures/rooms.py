"""Draws rooms.svg: the rooms of the code and which imports which, as the imports themselves say.

python docs/pictures/rooms.py
"""

from __future__ import annotations

import ast
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# The files at the top of comm are four rooms: what compiles loops, what all others go by, the
# group, and the way to it.
TOP_OF_COMM = {
    "contract": "contract",
    "changes": "contract",
    "varying": "contract",
    "errors": "contract",
    "topology": "contract",
    "nonmember": "contract",
    "dtypes": "contract",
    "in_words": "contract",
    "compiled": "compiled",
    "group": "group",
    "members": "group",
    "homes": "group",
    "bootstrap": "group",
    "start": "start",
}

WIDTH, ROW, LINE, LETTER = 1000, 88, 12, 5.6
COLORS = {"comm": "#2a6fb0", "localsgd": "#d9731a", "torch": "#3b8a4f", "cli": "#66788a"}
# Where the middle of a room is, as a part of the width, if it does not stand alone.
PLACES = {
    "checks": 0.22,
    "resizing": 0.36,
    "schedules": 0.085,
    "outer": 0.27,
    "lr": 0.45,
    "data": 0.53,
    "jax": 0.7,
    "arrays": 0.295,
    "averagers": 0.16,
    "optim": 0.4,
    "gossip": 0.14,
    "gradients": 0.308,
    "decoupled": 0.432,
    "training": 0.22,
    "methods": 0.22,
    "localsgd": 0.4,
    "simulate": 0.71,
    "telemetry": 0.6,
    "cli": 0.63,
    "checkpoint": 0.12,
    "elastic": 0.5,
    "torch.elastic": 0.66,
    "frameworks": 0.85,
}
# How many letters wide a room is that stands close to others, or has many files.
LETTERS = {"schedules": 24, "averagers": 52, "cli": 52, "telemetry": 34, "decoupled": 26}
COMM_AT, TORCH_AT = 0.4, 0.85


def sources() -> list[Path]:
    found = [*ROOT.glob("comm/**/*.py")]
    link = ROOT / "localsgd" / "comm"
    found += [path for path in ROOT.glob("localsgd/**/*.py") if link not in path.parents]
    return sorted(found)


def module_of(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[0] == "comm":
        parts.insert(0, "localsgd")
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@lru_cache
def modules() -> Mapping[str, Path]:
    """The file of every module, by the module's full name."""
    return {module_of(path): path for path in sources()}


def is_face(module: str) -> bool:
    """Whether it is the ``__init__`` of a package."""
    return modules()[module].name == "__init__.py"


def room_of(module: str) -> str:
    """The room of a module: a folder, ``localsgd`` for its top, or a part of the top of comm."""
    _, *parts = module.split(".")
    if not parts:
        return "localsgd"
    if parts[0] in ("comm", "torch") and len(parts) > 1:
        inside = TOP_OF_COMM.get(parts[1], parts[1]) if parts[0] == "comm" else parts[1]
        return f"{parts[0]}.{inside}"
    return parts[0]


@lru_cache
def exported(module: str) -> frozenset[str]:
    """What a face lists in ``__all__``."""
    for node in ast.parse(modules()[module].read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return frozenset(ast.literal_eval(node.value))
    return frozenset()


@lru_cache
def imported(module: str) -> tuple[str, ...]:
    """The modules of ours that a module imports from, in functions as well."""
    return tuple(_imported(module))


def _imported(module: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(modules()[module].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules())
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.split(".")[: None if is_face(module) else -1]
                base = ".".join([*package[: len(package) + 1 - node.level], *filter(None, [base])])
            for alias in node.names:
                below = f"{base}.{alias.name}"
                # A face may hand a file of its room on; the face of all hands rooms on.
                by_face = base in modules() and base != module and alias.name in exported(base)
                if below in modules() and (base == "localsgd" or not by_face):
                    yield below
                elif base in modules():
                    yield base


def rooms() -> Mapping[str, Iterable[str]]:
    """The files of every room, without their endings."""
    found: dict[str, list[str]] = defaultdict(list)
    for module in modules():
        names = found[room_of(module)]
        if not is_face(module):
            names.append(module.rpartition(".")[2])
    return found


def arrows() -> dict[str, set[str]]:
    """The rooms that each room imports from."""
    found: dict[str, set[str]] = {room: set() for room in rooms()}
    for module in modules():
        own = room_of(module)
        found[own] |= {room_of(name) for name in imported(module)} - {own}
    return found


def heights(below: Mapping[str, set[str]]) -> dict[str, int]:
    """How many rooms lie under each one, on the longest way down.

    Raises:
        ValueError: if there is a circle.
    """
    found: dict[str, int] = {}

    def height(room: str, way: tuple[str, ...] = ()) -> int:
        if room in way:
            raise ValueError(f"rooms must not import in a circle, got {' -> '.join([*way, room])}")
        if room not in found:
            found[room] = max((height(r, (*way, room)) + 1 for r in below[room]), default=0)
        return found[room]

    for room in below:
        height(room)
    return found


def direct(below: Mapping[str, set[str]]) -> Iterator[tuple[str, str]]:
    """The arrows that no longer way stands for."""

    def reach(room: str) -> set[str]:
        return below[room].union(*(reach(r) for r in below[room]))

    for room in below:
        for target in sorted(below[room]):
            if not any(target in reach(other) for other in below[room] - {target}):
                yield room, target


@dataclass(frozen=True)
class Box:
    """A room's place in the picture: the middle of its upper edge, and its size."""

    x: float
    y: int
    width: float
    height: int

    @classmethod
    def of(cls, room: str, words: Sequence[str], row: int) -> Box:
        area = room.split(".")[0]
        place = PLACES.get(room) or {"comm": COMM_AT, "torch": TORCH_AT}[area]
        width = LETTER * max([1.3 * len(room), *map(len, words)]) + 16
        height = 24 + LINE * len(words)
        return cls(WIDTH * place, row + (ROW - height) // 2, width, height)

    @property
    def bottom(self) -> int:
        return self.y + self.height


@lru_cache
def drawing() -> str:
    """The picture, as the text of an SVG file."""
    below = arrows()
    height = heights(below)
    top = max(height.values())
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {(top + 1) * ROW}" '
        'font-family="sans-serif">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" fill="#8292a3"/></marker></defs>',
        '<rect width="100%" height="100%" fill="white"/>',
    ]

    words = {
        room: textwrap.wrap(", ".join(sorted(files)), LETTERS.get(room, 42))
        for room, files in rooms().items()
    }
    boxes = {room: Box.of(room, words[room], (top - height[room]) * ROW) for room in below}
    for room, target in direct(below):
        x, y, x2, y2 = boxes[room].x, boxes[room].bottom, boxes[target].x, boxes[target].y
        bend = max(18, (y2 - y) * 0.4)
        lines.append(
            f'<path d="M{x:.0f} {y}C{x:.0f} {y + bend:.0f} {x2:.0f} {y2 - bend:.0f} '
            f'{x2:.0f} {y2 - 1}" fill="none" stroke="#8292a3" marker-end="url(#tip)"/>'
        )
    for room, box in boxes.items():
        color = COLORS.get(room.split(".")[0], COLORS["localsgd"])
        lines.append(
            f'<rect x="{box.x - box.width / 2:.0f}" y="{box.y}" width="{box.width:.0f}" '
            f'height="{box.height}" rx="6" fill="white" stroke="{color}"/>'
        )
        for number, line in enumerate([room, *words[room]]):
            size, ink = (9.5, "#222222") if number else (12, color)
            lines.append(
                f'<text x="{box.x:.0f}" y="{box.y + 16 + LINE * number}" font-size="{size}" '
                f'text-anchor="middle" fill="{ink}">{escape(line)}</text>'
            )
    return "\n".join([*lines, "</svg>", ""])


if __name__ == "__main__":
    Path(__file__).with_suffix(".svg").write_text(drawing())
