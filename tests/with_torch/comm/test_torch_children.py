"""Children of the ranks of torchrun: what they are and how they end is no matter of the ranks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]

BODY = """
import os, subprocess, sys
import torch.utils.data
import localsgd.torch as ours

comm = ours.world()
for end in ("exit", "raise"):
    child = os.fork()
    if child == 0:
        assert ours.world().size == 1
        try:
            comm.barrier()
        except RuntimeError as error:
            assert "forked from" in str(error)
            if end == "exit":
                sys.exit(3)
        raise KeyError("of the child")
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code == {"exit": 3, "raise": 1}[end], code
line = "import localsgd.torch; assert localsgd.torch.world().size == 1; exit(4)"
assert subprocess.run([sys.executable, "-c", line]).returncode == 4
loader = torch.utils.data.DataLoader(range(8), batch_size=2, num_workers=2)
assert len(list(loader)) == 4
comm.barrier()
os.write(1, f"goes on {comm.size}\\n".encode())
"""


@pytest.mark.long
def test_ranks_of_torchrun_go_on(tmp_path: Path) -> None:
    script = tmp_path / "job.py"
    script.write_text(BODY)
    ended = subprocess.run(
        [*TORCHRUN, "2", str(script)], capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.count("goes on 2") == 2
    assert "KeyError: 'of the child'" in ended.stderr
