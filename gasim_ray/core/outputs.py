"""The one place where logits and Q-values are brought to a common scale.

Everything that compares two networks (student loss, adversary, agreement, KL) works on *policy logits*: centred outputs
divided by `ModelConfig.output_scale`. Logits have a scale of their own, 1. The scale of Q-values is that of returns: it
says nothing about how sure the policy is, so it is measured on the teacher once, without data (`q_value_scale`), and
kept with it.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: How many nats apart the best two actions of a Q teacher are, in the median, once its outputs are scaled.
MEDIAN_GAP = 2.0


def policy_logits(outputs: Tensor, scale: float) -> Tensor:
    """Logits or Q-values (N, actions) -> centred logits (N, actions) of the policy that they stand for."""
    return (outputs - outputs.mean(-1, keepdim=True)) / scale


def log_policy(outputs: Tensor, scale: float) -> Tensor:
    """Logits or Q-values (N, actions) -> log-probabilities (N, actions)."""
    return torch.log_softmax(outputs / scale, -1)


def kl(first: Tensor, second: Tensor) -> Tensor:
    """KL (...) in nats of the first log-probabilities (..., actions) to the second."""
    return (first.exp() * (first - second)).sum(-1)


def q_value_scale(q_values: Tensor) -> float:
    """Scale that puts the median gap between best and second action at MEDIAN_GAP nats.

    q_values: (N, actions) of a teacher on observations of its working region. Falls back to 1 if all gaps are zero.
    """
    best = q_values.topk(2, dim=-1).values
    gap = float((best[:, 0] - best[:, 1]).median())
    return gap / MEDIAN_GAP if gap > 0 else 1.0
