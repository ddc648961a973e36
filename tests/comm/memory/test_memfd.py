"""Blocks of shared memory: zero, whole, and in huge pages without a copy."""

from __future__ import annotations

import os

import pytest

from localsgd.comm.memory.hugepages import HUGE_BYTES
from localsgd.comm.memory.memfd import create_block


@pytest.mark.parametrize("nbytes", [0, 1, 4097, HUGE_BYTES - 1, HUGE_BYTES, 3 * HUGE_BYTES + 5])
def test_a_new_block_is_zero_and_all_of_its_memory_is_taken(nbytes: int) -> None:
    block, (pid, fd) = create_block(nbytes)
    assert block.size == nbytes
    assert not block.any()
    found = os.stat(f"/proc/{pid}/fd/{fd}")
    assert found.st_blocks * 512 >= found.st_size == max(nbytes, 1)
