"""What is installed: the right packages, typed, light to import, and no ``comm`` at the top."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "mpi4py.MPI", "click", "rich", "matplotlib", "sklearn")


def run(*command: str, cwd: Path) -> str:
    ended = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from the source distribution, as PyPI's users get it."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), cwd=ROOT)
    return next(folder.glob("*.whl"))


def test_wheel_holds_every_module_and_no_top_level_comm(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {f"localsgd/{path.relative_to(ROOT)}" for path in ROOT.glob("comm/**/*.py")}
    wanted |= {
        str(path.relative_to(ROOT))
        for path in ROOT.glob("localsgd/**/*.py")
        if ROOT / "localsgd" / "comm" not in path.parents
    }
    assert wanted <= names
    assert "localsgd/py.typed" in names
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"localsgd"}


def test_installed_wheel_stands_beside_jupyters_comm(wheel: Path, tmp_path: Path) -> None:
    """Unpacked alone on the path, with the environment's other packages behind it."""
    zipfile.ZipFile(wheel).extractall(tmp_path)
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import comm, localsgd, localsgd.comm\n"
        "assert comm.create_comm and comm.__file__ != localsgd.comm.__file__\n"
        f"assert localsgd.__file__.startswith({str(tmp_path)!r})\n"
        "print(localsgd.run_threads(2, lambda group: group.collect(group.rank)))\n"
    )
    assert run(sys.executable, "-c", program, cwd=tmp_path).strip() == "[[0, 1], [0, 1]]"


def test_import_loads_nothing_heavy(tmp_path: Path) -> None:
    program = f"import sys, localsgd; print([name for name in {HEAVY} if name in sys.modules])"
    assert run(sys.executable, "-c", program, cwd=tmp_path).strip() == "[]"


def test_group_of_one_does_not_start_mpi(tmp_path: Path) -> None:
    program = (
        "import sys, localsgd\n"
        "assert localsgd.world().size == 1\n"
        "print('mpi4py.MPI' in sys.modules)"
    )
    assert run(sys.executable, "-c", program, cwd=tmp_path).strip() == "False"
