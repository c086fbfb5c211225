"""Terms of the generators' objective, one pure function each. A generator minimises their weighted sum.

Shapes: logits are policy logits (N, actions), see core.outputs; observations are network inputs (N, channels, ...);
every term returns one value a sample (N,) where it can, else a scalar; weights are applied by the caller.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from gasim_ray.core.outputs import kl

Divergence = Literal["kl", "js", "l1"]

#: Discount of the returns that values foretell, as RLlib's and our own recipes for games have it.
DISCOUNT = 0.99


def one_hot(logits: Tensor) -> Tensor:
    """Cross-entropy (N,) to the teacher's own choice: low where the teacher is sure (DAFL 2019, equation 3)."""
    return F.cross_entropy(logits, logits.argmax(-1), reduction="none")


def label(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy (N,) to a wanted action (N,) int64: one_hot with the class chosen beforehand."""
    return F.cross_entropy(logits, labels, reduction="none")


def wanted_logit(logits: Tensor, labels: Tensor) -> Tensor:
    """Minus the logit (N,) of a wanted action (N,) int64: low where the teacher answers as it does to what it knows."""
    return -logits.gather(1, labels.unsqueeze(1)).squeeze(1)


def information_entropy(logits: Tensor) -> Tensor:
    """Negative entropy of the batch's mean policy, a scalar: low where actions are balanced (DAFL, equation 5)."""
    mean = torch.softmax(logits, -1).mean(0)
    return (mean * mean.clamp_min(1e-8).log()).sum()


def activation(features: Tensor) -> Tensor:
    """Minus the mean absolute activation (N,) before the last layer: real inputs excite (DAFL, equation 4)."""
    return -features.flatten(1).abs().mean(1)


def divergence(teacher: Tensor, student: Tensor, kind: Divergence, bound: float) -> Tensor:
    """How far the student's policy is from the teacher's (N,), clipped at the bound.

    `kl` is KL(teacher || student) in nats, `js` the Jensen-Shannon divergence in nats (at most ln 2), `l1` the mean
    absolute difference of the logits. The bound keeps a generator from running off to where the student is merely
    wrong without limit.
    """
    if kind == "l1":
        value = (teacher - student).abs().mean(-1)
    else:
        log_t, log_s = torch.log_softmax(teacher, -1), torch.log_softmax(student, -1)
        if kind == "kl":
            value = kl(log_t, log_s)
        else:
            log_m = torch.logaddexp(log_t, log_s) - torch.log(torch.tensor(2.0))
            value = 0.5 * (kl(log_t, log_m) + kl(log_s, log_m))
    return value.clamp(max=bound)


def adversarial(teacher: Tensor, student: Tensor, kind: Divergence, bound: float, masked: bool) -> Tensor:
    """Minus the divergence (N,): low where teacher and student disagree (ZSKT 2019; GAS 2020).

    Masked, only samples on which both choose the same action count (CMI 2021): the generator then looks for the next
    disagreement instead of dwelling on one that the student is about to learn.
    """
    reward = divergence(teacher, student, kind, bound)
    if masked:
        reward = reward * (teacher.argmax(-1) == student.argmax(-1))
    return -reward


def batch_norm_statistics(pairs: list[tuple[Tensor, Tensor, Tensor, Tensor]]) -> Tensor:
    """Distance between the batch's statistics and the stored ones, a scalar (DeepInversion 2020, equation 4).

    Each pair holds the batch's mean and variance and the running mean and variance of one layer, all (channels,).
    """
    distances = [
        (mean - stored_mean).norm() + (var - stored_var).norm() for mean, var, stored_mean, stored_var in pairs
    ]
    return torch.stack(distances).sum()


def contrastive(first: Tensor, second: Tensor, others: Tensor, temperature: float = 0.1) -> Tensor:
    """Cross-entropy (N,) of telling a sample's second view among all: low where samples differ (CMI 2021, equation 4).

    first, second: features (N, F) of two views of the same samples; others: (M, F) of earlier samples, M may be 0.
    """
    a, b, c = (F.normalize(x.flatten(1), dim=1) for x in (first, second, others))
    alike = torch.cat([a @ b.T, a @ a.T, a @ c.T], 1) / temperature
    own = torch.arange(len(a), device=a.device)
    mask = torch.zeros_like(alike, dtype=torch.bool)
    mask[own, len(a) + own] = True
    return F.cross_entropy(alike.masked_fill(mask, float("-inf")), own, reduction="none")


def value_excess(values: Tensor, bound: float) -> Tensor:
    """How far values (N, ...) of states lie beyond what rewards allow, of either sign."""
    return (values.abs() - bound).clamp_min(0)


def bellman(values: Tensor, following: Tensor) -> Tensor:
    """Squared error (N, ...) of values against those of the states a step later (Bellman's equation).

    The reward between them is not seen: it is the one of -1, 0 and 1, as games are trained on, that fits best.
    """
    surprise = values - DISCOUNT * following
    return (surprise - surprise.detach().round().clamp(-1, 1)).square()


def decided(logits: Tensor, wanted: float) -> Tensor:
    """Squared distance (N,) of a policy's entropy from the one that is wanted, in nats."""
    log_policy = torch.log_softmax(logits, -1)
    return (-(log_policy.exp() * log_policy).sum(-1) - wanted).square()


def total_variation(images: Tensor) -> Tensor:
    """Mean absolute difference (N,) between neighbouring pixels of (N, channels, height, width)."""
    vertical = (images[..., 1:, :] - images[..., :-1, :]).abs().flatten(1).mean(1)
    horizontal = (images[..., :, 1:] - images[..., :, :-1]).abs().flatten(1).mean(1)
    return vertical + horizontal
