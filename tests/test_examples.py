"""The examples: gradients against finite differences, and short runs as they are started."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import chars
import digits
import numpy as np
import pytest
from numpy.typing import NDArray

from localsgd import Arena, solo

Array = NDArray[Any]
EXAMPLES = Path(__file__).parents[1] / "examples"


def check_gradient(
    params: Arena, loss: Callable[[Mapping[str, Array]], float], add_gradient: Callable[[], None]
) -> None:
    """Compares the slope of the loss along a random direction of every parameter.

        slope = (loss(params + h·d) - loss(params - h·d)) / 2h  =  Σ gradient · d

    In float64 with h = 1e-6 the difference is wrong by about 1e-16 / h + h² = 1e-10.
    """
    add_gradient()
    random, h = np.random.default_rng(3), 1e-6
    for name in params:
        direction = random.normal(size=params[name].shape)
        losses = []
        for sign in (1, -1):
            moved = {other: array.copy() for other, array in params.items()}
            moved[name] += sign * h * direction
            losses.append(loss(moved))
        slope = (losses[0] - losses[1]) / (2 * h)
        found = float((params.grad[name] * direction).sum())
        np.testing.assert_allclose(found, slope, rtol=1e-6, atol=1e-8, err_msg=name)


def test_the_gradient_of_chars_is_the_slope_of_its_loss() -> None:
    """The loss that is shown is in bits, the gradient's in nats."""
    windows = chars.windows_of(chars.read_modules("heapq"))[::400][:40]
    params = Arena(chars.start_values(0, np.float64), solo())
    check_gradient(
        params,
        lambda moved: chars.bits(moved, windows) / len(windows) * np.log(2),
        lambda: chars.add_gradient(params, params.grad, windows),
    )


def test_the_gradient_of_digits_is_the_slope_of_its_loss() -> None:
    learn, _ = digits.read_digits()
    batch = digits.Digits(learn.images[:40].astype(np.float64), learn.labels[:40])
    values = {name: array.astype(np.float64) for name, array in digits.start_values(0).items()}
    params = Arena(values, solo())

    def loss(moved: Mapping[str, Array]) -> float:
        _, probabilities = digits.forward(dict(moved), batch.images)
        return -float(np.log(probabilities[np.arange(40), batch.labels]).mean())

    check_gradient(params, loss, lambda: digits.add_gradient(params, batch))


def test_a_text_is_numbers_of_the_alphabet(tmp_path: Path) -> None:
    """Tab, delete and what is not ASCII have the last number."""
    (tmp_path / "a.py").write_text("~ \n", "utf-8")
    (tmp_path / "b.py").write_text("\t\x7fé😀", "utf-8")
    assert chars.read_modules("a b", tmp_path).tolist() == [95, 1, 0, 96, 96, 96, 96]


def run(*arguments: str) -> str:
    ended = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=100, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


BRIEF = ("--steps", "64", "--held-out", "500")
LAUNCHER = ("-m", "localsgd.cli", "run", "-n", "2")


@pytest.mark.parametrize(
    "words",
    [
        (str(EXAMPLES / "digits.py"), "--threads", "2", "--epochs", "1"),
        pytest.param(
            (str(EXAMPLES / "chars.py"), "--threads", "2", *BRIEF), marks=pytest.mark.long
        ),
        pytest.param((*LAUNCHER, str(EXAMPLES / "chars.py"), *BRIEF), marks=pytest.mark.long),
    ],
    ids=["digits-threads", "chars-threads", "chars-mpirun"],
)
def test_a_short_run_shows_a_table_and_draws_a_picture(
    words: tuple[str, ...], tmp_path: Path
) -> None:
    """The runs themselves check that the bytes counted equal the closed form."""
    picture = tmp_path / "made" / "curves.png"
    output = run(*words, "--seeds", "1", "--picture", str(picture))
    assert output.count("The bytes moved equal the closed form.") == 1
    for way in ("synchronous", "period 16", "period 64"):
        assert way in output
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.long
def test_chars_learns_alone_and_writes() -> None:
    """97 symbols that are equally likely take log₂ 97 = 6.6 bits each."""
    params = chars.start_values(0)
    windows = chars.windows_of(chars.read_modules(chars.HELD_OUT))[:4096]
    assert 6.5 < chars.bits_per_character(params, windows, solo()) < 8.5
    _, params = chars.train(
        chars.periods(solo(), ())["synchronous"], 0, lambda: None, steps=256, held_out_samples=500
    )
    assert chars.bits_per_character(params, windows, solo()) < 4.0
    text = chars.written(params, 40, seed=0)
    assert text.startswith("class Communicator:") and len(text) <= 40 + 31
