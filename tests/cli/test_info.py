"""The command ``localsgd info``."""

from __future__ import annotations

from cli.jobs import run


def test_info_names_the_library_and_how_memory_is_shared() -> None:
    ended = run("info")
    assert ended.returncode == 0, ended.stderr
    for words in ("MPI library", "thread level", "multiple", "memfd", "fault tolerance", "numpy"):
        assert words in ended.stdout


def test_info_without_mpi_says_so() -> None:
    """A name that no library has, tried before all others, hides the installed one."""
    ended = run("info", environment={"MPI4PY_LIBMPI": "/nowhere/libmpi.so"})
    assert ended.returncode == 0, ended.stderr
    assert "none loads" in ended.stdout
    assert "numpy" in ended.stdout


def test_info_under_the_launcher_shows_the_layout_once() -> None:
    ended = run("run", "-n", "3", "--layout", "2+1", "localsgd", "info")
    assert ended.stdout.count("workers on each host") == 1
    assert "2+1" in ended.stdout
