"""Jobs that Slurm tells to stop: they save, end, are put back in the queue, and end as if nothing
had been."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pages import ROOT, blocks
from slurm.cluster import PLUGINS, TRAINING, Batch, submit
from slurm.training import ALIVE, SAVED_BEFORE, SAVED_ONCE_TOLD
from testbed.launch import Library
from testbed.slurm import GRACE_S, KILL_WAIT_S, Slurm

_, SCRIPT = [x for x in blocks(ROOT / "docs/cluster.md", "bash") if x.startswith("#!")]
REQUEUES = "if [ $code -eq 75 ]; then scontrol requeue $SLURM_JOB_ID; fi\n"
# A job's shortest time is a minute. Slurm looks every half minute whether a signal is due in the
# next one, so that the ranks have 20 seconds until they stand.
SOON = {"--time=01:00:00": "--time=1", "USR1@300": "USR1@10"}
Happens = Callable[[Batch], None]


def standing(
    slurm: Slurm, folder: Path, library: Library, how: str = "stands", **other: str
) -> Batch:
    """The page's job once all its ranks stand and wait for a signal."""
    program = f"{TRAINING} {folder / 'saves'} {how}"
    script = SCRIPT
    for old, new in {"train.py": program, "pmix": PLUGINS[library], **other}.items():
        assert old in script
        script = script.replace(old, new)
    batch = submit(slurm, folder, script, library)
    batch.wait_for(r"rank \d stands", times=4)
    return batch


def command(batch: Batch, *words: str) -> None:
    ended = batch.slurm.run([*words, str(batch.number)], timeout_s=30)
    assert ended.returncode == 0, ended.stderr


def time_goes_by(_batch: Batch) -> None:
    """Until it is nearly up."""


def signalled(batch: Batch) -> None:
    command(batch, "scancel", "--signal=USR1")


def requeued(batch: Batch) -> None:
    command(batch, "scontrol", "requeue")


def driven_out(batch: Batch) -> None:
    """By a job of a higher partition, which gets the nodes before the grace time is over."""
    urgent = ["srun", "--quiet", "--partition=urgent", "--nodes=2", "--ntasks=4", "hostname"]
    ended = batch.slurm.run(urgent, timeout_s=GRACE_S)
    assert sorted(ended.stdout.split()) == ["h0", "h0", "h1", "h1"], ended.stderr


@pytest.mark.parametrize(
    ("library", "happens", "signal", "other"),
    [
        ("openmpi", time_goes_by, "SIGUSR1", SOON),
        ("mpich", signalled, "SIGUSR1", {}),
        ("openmpi", requeued, "SIGTERM", {}),
        ("mpich", requeued, "SIGTERM", {}),
        ("openmpi", driven_out, "SIGTERM", {}),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_job_that_is_told_to_stop_goes_on_to_the_same_bits(
    slurm: Slurm,
    tmp_path: Path,
    library: Library,
    happens: Happens,
    signal: str,
    other: dict[str, str],
    digest: str,
) -> None:
    batch = standing(slurm, tmp_path, library, **other)
    happens(batch)
    batch.wait_for("begin after", times=2)
    end = batch.ends()
    output = batch.output()
    assert end["JobState"] == "COMPLETED" and end["Restarts"] == "1", output
    told = ", ".join(f"rank {rank} by {signal}" for rank in range(4))
    assert f"localsgd: told to stop ({told}): saving" in output
    assert f"begin after step {SAVED_ONCE_TOLD}\n" in output
    assert output.endswith(f"ends with {digest}\n")


def test_slurm_itself_does_not_requeue_a_job_that_saves_within_the_grace_time(
    slurm: Slurm, tmp_path: Path
) -> None:
    batch = standing(slurm, tmp_path, "openmpi", **{REQUEUES: ""})
    driven_out(batch)
    end = batch.ends()
    assert end["JobState"] == "FAILED" and end["Restarts"] == "0", batch.output()
    assert end["ExitCode"] == "75:0"


def test_a_job_that_does_not_save_in_time_goes_on_from_the_checkpoint_before(
    slurm: Slurm, tmp_path: Path, digest: str
) -> None:
    """Its ranks live for ``KillWait`` after they were told."""
    batch = standing(slurm, tmp_path, "mpich", "hangs")
    requeued(batch)
    batch.wait_for("begin after", times=2)
    assert batch.ends()["JobState"] == "COMPLETED", batch.output()
    assert f"begin after step {SAVED_BEFORE}\n" in batch.output()
    assert batch.output().endswith(f"ends with {digest}\n")
    lives = [float(path.read_text()) for path in (tmp_path / "saves").glob(f"{ALIVE}-*")]
    assert len(lives) == 4 and min(lives) > KILL_WAIT_S - 1


def test_a_signal_to_the_shell_reaches_no_rank(slurm: Slurm, tmp_path: Path) -> None:
    """As with ``--signal=B:``. It dies of it, ranks are sent SIGTERM and save; nobody requeues."""
    batch = standing(slurm, tmp_path, "openmpi")
    command(batch, "scancel", "--batch", "--signal=USR1")
    end = batch.ends()
    assert end["JobState"] == "FAILED" and end["Restarts"] == "0", batch.output()
    assert "SIGUSR1" not in batch.output()
    batch.wait_for(r"told to stop \(.*by SIGTERM.*\): saving")
