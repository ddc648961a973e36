"""What a job is told before it starts, and which settings of the user stand."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.jobs import environment_of_a_rank
from localsgd.cli.launcher import LaunchError, Mpirun, find_mpirun


def test_blas_has_one_thread_a_rank_and_layouts_reach_the_ranks(tmp_path: Path) -> None:
    found = environment_of_a_rank(tmp_path, "--layout", "1+1")
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        assert found[name] == "1"
    assert found["LOCALSGD_HOSTS"] == "1+1"


def test_settings_of_the_user_stand(tmp_path: Path) -> None:
    own = {
        "OMP_NUM_THREADS": "2",
        "OMPI_MCA_btl_tcp_links": "3",
        "OMPI_MCA_osc": "^rdma",
        "LOCALSGD_HOSTS": "2",
    }
    found = environment_of_a_rank(tmp_path, environment=own)
    assert {name: found[name] for name in own} == own


def test_placement_of_the_user_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks do not see these variables: the launcher that they are for takes them out."""
    own = {
        "PRTE_MCA_hwloc_default_binding_policy": "core",
        "PRTE_MCA_rmaps_default_mapping_policy": "ppr:1:node",
    }
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    job = find_mpirun().job(["true"], 2)
    assert {name: job.environment[name] for name in own} == own


def test_open_mpi_4_is_told_in_its_own_words() -> None:
    """As tried with version 4.1.4; it knows neither PRTE_MCA_ variables nor --output."""
    job = Mpirun(Path("mpirun"), "Open MPI", 4).job(["true"], 2, tag_output=True)
    assert job.command == ("mpirun", "-n", "2", "--tag-output", "true")
    assert job.environment["OMPI_MCA_rmaps_base_oversubscribe"] == "1"
    assert job.environment["OMPI_MCA_hwloc_base_binding_policy"] == "none"


def test_a_job_that_is_to_survive_needs_a_library_that_can() -> None:
    job = Mpirun(Path("mpirun"), "Open MPI", 5).job(["true"], 2, fault_tolerant=True)
    assert "--with-ft ulfm --mca coll ^han" in " ".join(job.command)
    assert job.environment["LOCALSGD_FAULT_TOLERANT"] == "1"
    for other in (Mpirun(Path("mpirun"), "Open MPI", 4), Mpirun(Path("mpirun"), "MPICH", 5)):
        with pytest.raises(LaunchError, match=f"Open MPI 5 or later, got {other.library}"):
            other.job(["true"], 2, fault_tolerant=True)


def test_settings_in_the_users_files_stand(tmp_path: Path) -> None:
    """Variables come before files, so that one set by the launcher would hide the file's."""
    (tmp_path / ".openmpi").mkdir()
    (tmp_path / ".openmpi" / "mca-params.conf").write_text("# mine\nbtl_tcp_links = 2\n")
    found = environment_of_a_rank(tmp_path, environment={"HOME": str(tmp_path)})
    assert found.get("OMPI_MCA_btl_tcp_links", "2") == "2"


def test_settings_of_the_installation_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMPI_MCA_btl", raising=False)
    mpirun = Mpirun(tmp_path / "bin" / "mpirun", "Open MPI", 5)
    assert mpirun.job(["true"], 2).environment["OMPI_MCA_btl"] == "^ofi"
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "openmpi-mca-params.conf").write_text("btl = self,sm,tcp\n")
    assert "OMPI_MCA_btl" not in mpirun.job(["true"], 2).environment


def test_workers_of_named_hosts_get_the_settings(tmp_path: Path) -> None:
    """This machine by its name for itself, since no other is at hand."""
    found = environment_of_a_rank(
        tmp_path, "--hosts", "localhost:2", environment={"LOCALSGD_HOSTS": "1+1"}
    )
    assert found["OPENBLAS_NUM_THREADS"] == "1"
    assert found["LOCALSGD_HOSTS"] == "1+1"
