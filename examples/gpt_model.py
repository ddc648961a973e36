"""A GPT as one writes it for one process; nothing in here knows that there are workers.

A decoder-only transformer with normalisation before each part and one matrix for letters in and
out. Sources: Radford et al., Language Models are Unsupervised Multitask Learners (2019), for the
shape and the first values; Dao et al., FlashAttention (arXiv 2205.14135), for the attention that
``scaled_dot_product_attention`` takes where it can.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Shape:
    """How large a GPT is.

    Attributes:
        letters: how many different ones there are.
        context: how many of them it sees at once, at most.
        width: numbers per letter between layers; a multiple of ``heads``.
        heads, layers: as in every transformer.
    """

    letters: int
    context: int = 64
    width: int = 64
    heads: int = 4
    layers: int = 2


class Layer(nn.Module):
    """Attention to what came before, then a network of its own for every place."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width, self.heads = shape.width, shape.heads
        self.before_attention = nn.LayerNorm(width, bias=False)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.attended = nn.Linear(width, width, bias=False)
        self.before_network = nn.LayerNorm(width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        count, length, width = hidden.shape
        cut = (count, length, 3, self.heads, width // self.heads)
        q, k, v = self.qkv(self.before_attention(hidden)).view(cut).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        hidden = hidden + self.attended(mixed.transpose(1, 2).reshape(hidden.shape))
        grown: Tensor = self.down(functional.gelu(self.up(self.before_network(hidden))))
        return hidden + grown


class GPT(nn.Module):
    """Predicts the next letter at every place of a window."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.letters = nn.Embedding(shape.letters, shape.width)
        self.places = nn.Embedding(shape.context, shape.width)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.width, bias=False)
        for name, param in self.named_parameters():
            if param.dim() >= 2:
                # What layers add up to is then as large as what goes into the first.
                adds = name.endswith(("attended.weight", "down.weight"))
                nn.init.normal_(param, std=0.02 / (2 * shape.layers) ** 0.5 if adds else 0.02)

    def forward(self, windows: Tensor) -> Tensor:
        """Scores of shape ``(n, length, letters)`` for windows ``(n, length)`` of numbers."""
        places = torch.arange(windows.shape[1], device=windows.device)
        hidden = self.letters(windows) + self.places(places)
        for layer in self.layers:
            hidden = layer(hidden)
        return functional.linear(self.norm(hidden), self.letters.weight)

    def loss(self, windows: Tensor) -> Tensor:
        """The mean cross-entropy, in nats, of every letter but the first of each window."""
        scores = self(windows[:, :-1])
        return functional.cross_entropy(scores.flatten(0, 1), windows[:, 1:].flatten())

    def groups(self, decay: float) -> list[dict[str, Any]]:
        """Parameters for an optimizer: matrices decay, scales of normalisations do not."""
        matrices = [param for param in self.parameters() if param.dim() >= 2]
        scales = [param for param in self.parameters() if param.dim() < 2]
        return [
            {"params": matrices, "weight_decay": decay},
            {"params": scales, "weight_decay": 0.0},
        ]

    @torch.no_grad()
    def write(self, start: list[int], count: int, seed: int = 0) -> list[int]:
        """The numbers of a start, and of ``count`` letters that the model writes after it."""
        random, written = torch.Generator().manual_seed(seed), list(start)
        for _ in range(count):
            window = torch.tensor([written[-self.shape.context :]])
            likely = torch.softmax(1.5 * self(window)[0, -1].float(), 0)
            written.append(int(torch.multinomial(likely, 1, generator=random)))
        return written
