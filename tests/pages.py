"""What the pages promise: their programs, commands and files, as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page that bear this language."""
    return re.findall(
        rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE
    )


def program(page: Path) -> str:
    """All Python of a page, top to bottom, as one program."""
    return "\n".join(blocks(page, "python"))


def commands(page: Path) -> list[str]:
    """The lines of a page's shell blocks: comments left out, continued lines joined."""
    text = "".join(blocks(page, "bash")).replace("\\\n", " ")
    lines = (re.sub(r"(^|\s)#.*", "", line).strip() for line in text.splitlines())
    return [line for line in lines if line]


def needs_frameworks(page: Path) -> bool:
    """Whether a page's program runs only where the frameworks are, as ``tests/frameworks`` does."""
    return any(f"from localsgd.{room}" in program(page) for room in ("frameworks", "jax"))


def needs_torch(page: Path) -> bool:
    """Whether a page's program runs only where torch is: ``tests/with_torch`` runs it then."""
    return (
        re.search(r"^(import|from) (torch|localsgd\.torch)\b", program(page), re.MULTILINE)
        is not None
    )
