"""The command ``localsgd plan``: its table, its line, its picture, and mistakes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import localsgd
from cli.jobs import LIMIT_S, run
from localsgd import Arena, optim
from localsgd.cli.commands import localsgd as command
from localsgd.simulate import Level, Machine

JOB = ("plan", "--parameters", "124e6", "--step-time", "0.35")
NETWORK = ("--network", "host=50GB/s,1us; wan=100Mbit/s,50ms")


def said(*arguments: str) -> str:
    ended = CliRunner().invoke(command, [*JOB, *arguments])
    assert ended.exit_code == 0, ended.output
    return ended.output


def test_a_plan_has_a_row_for_every_method_and_recommends_one() -> None:
    """Synchronous steps send 2 · 496 MB · 3/4 / 8 = 93 MB a worker and step, 9.3 TB in all.

    A round takes 2 · 3.968 Gbit · 3/4 / 0.1 Gbit/s = 59.5 s on the wan: 69 days for 100,000.
    """
    text = said("--workers", "32", "--hosts", "4x8", *NETWORK)
    lines = text.splitlines()
    assert "124,000,000 float32 parameters, 32 workers on 4x8, 100,000 steps of 350 ms" in text
    synchronous = next(line for line in lines if "synchronous" in line)
    assert synchronous.split()[-6:] == ["69.4", "days", "86.8", "TB", "9.3", "TB"]
    for method in ("hierarchical", "local SGD", "overlapped", "DiLoCo", "streaming", "4 bits"):
        assert any(method in line for line in lines), method
    taken = [line for line in lines if line.strip().startswith(">")]
    assert len(taken) == 1 and "streaming" in taken[0] and "0.981" in taken[0]
    assert "reaches 0.9" in text and "Model wall-clock" in text and "2503.09799" in text


def test_the_line_to_paste_trains() -> None:
    text = said("--hosts", "4x8", *NETWORK)
    names = {
        "localsgd": localsgd,
        "optim": optim,
        "params": Arena({name: np.zeros(8, np.float32) for name in "abcd"}, localsgd.solo()),
    }
    exec(text.splitlines()[-1].strip(), names)
    names["training"].step()


def test_model_and_target_are_options() -> None:
    text = said("--hosts", "4x8", *NETWORK, "--model", "per-layer", "--target", "0.7")
    assert "Model per-layer" in text and "2501.18512" in text
    taken = next(line for line in text.splitlines() if line.strip().startswith(">"))
    assert "DiLoCo" in taken and "period 500" in taken
    assert "no method" in said("--hosts", "4x8", "--network", "a=1MB/s,1s; b=1kB/s,1s")


def test_a_machine_that_was_measured_gives_the_network(tmp_path: Path) -> None:
    level = Level("between", 2, (1_000_000, 2_000_000), (0.08, 0.16))
    Machine((1, 1), (level,), 2_000_000, 0.16, 1).save(tmp_path / "machine.json")
    text = said("--machine", str(tmp_path / "machine.json"))
    assert "2 workers on 2x1" in text and "bytes, between" in text
    assert "8 workers on 8x1" in said("--machine", str(tmp_path / "machine.json"), "--hosts", "8x1")


@pytest.mark.parametrize("model", ["wall-clock", "per-layer"])
def test_a_picture_is_drawn(tmp_path: Path, model: str) -> None:
    path = tmp_path / "plan.png"
    said("--hosts", "4x8", *NETWORK, "--model", model, "--picture", str(path))
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_picture_without_matplotlib_says_what_to_install(tmp_path: Path) -> None:
    program = "import sys; sys.modules['matplotlib'] = None\nfrom localsgd.cli import main\nmain()"
    path = str(tmp_path / "plan.png")
    ended = subprocess.run(
        [sys.executable, "-c", program, *JOB, "--hosts", "4x8", *NETWORK, "--picture", path],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stderr == ("Error: --picture needs matplotlib: pip install 'localsgd[examples]'\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--hosts", "4x8"), "there must be --network or --machine, got neither"),
        (NETWORK, "there must be --hosts or --workers, got neither"),
        (("--hosts", "4x8", "--workers", "31", *NETWORK), "must be the 32 of hosts 4x8, got 31"),
        (("--workers", "4", "--network", "x=1GB,1s"), "the bandwidth of x must be a number with"),
        (("--hosts", "4x8", "--network", "x=1GB/s,1s"), "must have two levels for hosts 4x8"),
        (("--hosts", "4x8", *NETWORK, "--dtype", "int8"), "dtype must be one of float16"),
        (("--hosts", "4x8", *NETWORK, "--target", "2"), "target must be at most 1, got 2"),
        (("--hosts", "4x8", *NETWORK, "--parameters", "1.5"), "a whole number, got 1.5"),
        (("--hosts", "4x8", *NETWORK, "--parameters", "inf"), "a whole number, got inf"),
        (
            ("--hosts", "4x8", *NETWORK, "--picture", "/no/such/plan.png"),
            "No such file or directory: '/no/such/plan.png'",
        ),
        (("--hosts", "1x1", *NETWORK, "--picture", "x.png"), "at least 2 workers to draw, got 1"),
        (("--hosts", "4x8", *NETWORK, "--picture", "x.foo"), "Format 'foo' is not supported"),
    ],
)
def test_mistakes_are_one_line(arguments: tuple[str, ...], message: str) -> None:
    ended = CliRunner().invoke(command, [*JOB, *arguments])
    assert ended.exit_code == 1 and isinstance(ended.exception, SystemExit)
    assert message in ended.output and ended.output.count("\n") == 1


def test_the_command_is_there() -> None:
    ended = run(*JOB, "--hosts", "4x8", *NETWORK)
    assert ended.returncode == 0 and ended.stdout == said("--hosts", "4x8", *NETWORK)
