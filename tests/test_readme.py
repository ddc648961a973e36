"""The README's program runs as it stands, alone and on four workers."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert blocks
    path = tmp_path_factory.mktemp("readme") / "train.py"
    path.write_text("\n".join(blocks))
    return path


@pytest.mark.parametrize("launch", [[], ["-m", "localsgd.cli", "run", "-n", "4"]])
def test_program_runs(program: Path, launch: list[str]) -> None:
    ended = subprocess.run(
        [sys.executable, *launch, str(program)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr


def test_commands_are_targets_of_make() -> None:
    makefile = (README.parent / "Makefile").read_text()
    for target in re.findall(r"^    make ([a-z-]+)", README.read_text(), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
