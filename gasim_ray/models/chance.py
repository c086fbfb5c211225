"""A policy that looks at nothing: what normalised scores count from."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Chance(nn.Module):
    """No student: random actions, as the largest of answers that are drawn from softmax(logits) whatever is read.

    At first all are alike.

    Draws follow one another from a seed of its own, from the first again whenever it is set to evaluate, with which
    episodes begin.
    """

    def __init__(self, input_shape: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(outputs))
        self.draws = 0

    def train(self, mode: bool = True) -> Chance:
        """See nn.Module."""
        self.draws = 0
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        """(N, *input_shape) -> (N, outputs): the logits with Gumbel noise."""
        self.draws += 1
        uniform = torch.rand((len(x), len(self.logits)), generator=torch.Generator().manual_seed(self.draws))
        uniform = uniform.clamp_min(1e-9).to(x.device)
        return self.logits - (-uniform.log()).log()
