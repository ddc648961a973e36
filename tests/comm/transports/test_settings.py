"""What is set before MPI starts, where a launcher knows nothing of this library."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from localsgd.cli.launcher import find_mpirun
from localsgd.comm import solo, world
from localsgd.comm.transports.settings import OPEN_MPI, names_in_files

LIMIT_S = 60
PROGRAM = """
import json, os, localsgd
world = localsgd.world()
if world.rank == 0:
    print(json.dumps({name: os.environ.get(name) for name in %r}))
"""


def settings_of_a_rank(home: Path, own: dict[str, str]) -> dict[str, str | None]:
    """What rank 0 of a plain mpirun has, once MPI runs there."""
    job = find_mpirun().job([sys.executable, "-c", PROGRAM % list(OPEN_MPI)], 2)
    environment = {k: v for k, v in job.environment.items() if k not in OPEN_MPI}
    ended = subprocess.run(
        job.command,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
        env={**environment, "HOME": str(home), **own},
    )
    assert ended.returncode == 0, ended.stderr
    found: dict[str, str | None] = json.loads(ended.stdout)
    return found


def test_plain_mpirun_gets_them_too(tmp_path: Path) -> None:
    assert settings_of_a_rank(tmp_path, {}) == OPEN_MPI


def test_a_variable_of_the_user_stands(tmp_path: Path) -> None:
    own = {"OMPI_MCA_btl_tcp_links": "3"}
    assert settings_of_a_rank(tmp_path, own) == {**OPEN_MPI, **own}


def test_a_file_may_be_in_any_encoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".openmpi").mkdir()
    file = tmp_path / ".openmpi" / "mca-params.conf"
    file.write_bytes("# für uns\nbtl = self,sm,tcp\n".encode("latin-1"))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "OMPI_MCA_btl" in names_in_files(tmp_path / "bin" / "mpirun")


def test_a_deadline_that_is_no_number_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALSGD_DEADLINE_S", "a minute")
    with pytest.raises(ValueError, match="LOCALSGD_DEADLINE_S must be seconds, got 'a minute'"):
        solo()


def test_empty_variables_are_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALSGD_DEADLINE_S", "")
    monkeypatch.setenv("LOCALSGD_HOSTS", "")
    assert world().size == 1


def test_a_file_of_the_user_stands(tmp_path: Path) -> None:
    """Where no mpirun has told the ranks of it, as under srun."""
    (tmp_path / ".openmpi").mkdir()
    (tmp_path / ".openmpi" / "mca-params.conf").write_text("# mine\nbtl = self,sm,tcp\n")
    program = "import json, os, localsgd.comm.transports.mpi; print(json.dumps(dict(os.environ)))"
    ended = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=True,
        # A process of its own leaves its segment behind, whoever starts it.
        env={"HOME": str(tmp_path), "OMPI_MCA_btl_sm_backing_directory": str(tmp_path)},
    )
    found: dict[str, str] = json.loads(ended.stdout)
    assert "OMPI_MCA_btl" not in found
    assert found["OMPI_MCA_btl_tcp_links"] == OPEN_MPI["OMPI_MCA_btl_tcp_links"]
