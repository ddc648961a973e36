"""The pages hold: programs run as they stand, commands and links lead somewhere."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from localsgd.cli.commands import localsgd
from pages import PAGES, ROOT, blocks, commands, needs_frameworks, needs_torch, program

WITH_PROGRAM = [
    page for page in PAGES if program(page) and not needs_torch(page) and not needs_frameworks(page)
]


ALONE: list[str] = []
ON_FOUR = ["-m", "localsgd.cli", "run", "-n", "4"]


@pytest.mark.parametrize(
    ("page", "launch"),
    [(page, ALONE) for page in WITH_PROGRAM]
    + [
        pytest.param(page, ON_FOUR, marks=[] if page.stem == "README" else pytest.mark.long)
        for page in WITH_PROGRAM
        if "world()" in program(page)
    ],
    ids=lambda value: value.stem if isinstance(value, Path) else "four" if value else "alone",
)
def test_program_runs(page: Path, launch: list[str], tmp_path: Path) -> None:
    """Where it takes the workers of its job, on four as well. What it draws goes nowhere."""
    script = tmp_path / "train.py"
    script.write_text(program(page))
    ended = subprocess.run(
        [sys.executable, *launch, str(script)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "MPLBACKEND": "Agg"},
    )
    assert ended.returncode == 0, ended.stderr


def test_every_shell_block_and_program_is_seen() -> None:
    """A fence with another word would not be run, and nobody would notice."""
    for page in PAGES:
        languages = re.findall(r"^```(.+)$", page.read_text("utf-8"), re.MULTILINE)
        assert set(languages) <= {"python", "bash", "text", "diff"}, page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_to_files_that_exist(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text("utf-8")):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_are_there_with_the_options_that_pages_give_them(page: Path) -> None:
    """``localsgd`` checks its own, wherever in a line it stands; ``make`` has the target."""
    makefile = (ROOT / "Makefile").read_text()
    indented = re.findall(r"^    (make .+?)(?:  .*)?$", page.read_text("utf-8"), re.MULTILINE)
    for line in (*commands(page), *indented):
        words = shlex.split(line)
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), line
        if "localsgd" in words:
            check(words[words.index("localsgd") + 1 :])


def check(arguments: list[str]) -> None:
    """Raises if ``localsgd`` would not accept the arguments; runs nothing."""
    name, *rest = arguments
    if name.startswith("-"):
        rest, command = arguments, localsgd
    else:
        command = localsgd.commands[name]
    with pytest.raises(click.exceptions.Exit) if "--help" in rest else click.Context(command):
        command.make_context(name, list(rest))


def test_no_program_of_a_page_is_left_out() -> None:
    assert {page.stem for page in WITH_PROGRAM} >= {"README"}
    assert all(blocks(page, "python") for page in WITH_PROGRAM)


def test_the_speed_of_the_readme_was_measured() -> None:
    """Every ratio of its table stands in the table that its benchmark has written."""
    tables = (ROOT / "benchmarks/README.md").read_text().split("\n## ")
    rows = re.findall(r"^\|.*\| ([\d.]+) \| `(\w+)` \|$", (ROOT / "README.md").read_text(), re.M)
    assert len(rows) >= 6
    for ratio, script in rows:
        (table,) = (table for table in tables if table.startswith(f"{script}\n"))
        assert f"| {ratio} |" in table, (script, ratio)
