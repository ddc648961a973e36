"""Optimizers of bitsandbytes: those of 8 bits are refused at once, those of 32 are not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from localsgd.torch import LocalSGD


def test_state_of_eight_bits_is_refused_by_name() -> None:
    from bitsandbytes.optim import AdamW8bit

    optim = AdamW8bit(nn.Linear(3, 2).parameters())
    with pytest.raises(TypeError, match=r"got bitsandbytes\.optim\.adamw\.AdamW8bit, whose state"):
        LocalSGD(optim, period=2)


def test_state_of_32_bits_is_not() -> None:
    from bitsandbytes.optim import AdamW32bit

    model = nn.Linear(3, 2)
    optimizer = LocalSGD(AdamW32bit(model.parameters()), period=2)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert optimizer.averager.step == 1
