"""A policy that looks at nothing: what normalised scores count from."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Chance(nn.Module):
    """The largest of its answers is a draw from softmax(logits), the same whatever it reads; at first uniform."""

    def __init__(self, input_shape: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(N, *input_shape) -> (N, outputs): the logits with Gumbel noise."""
        uniform = torch.rand((len(x), len(self.logits)), device=x.device).clamp_min(1e-9)
        return self.logits - (-uniform.log()).log()
