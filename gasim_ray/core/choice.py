"""The choice among a prior's samples: what the teacher answers decidedly, or what teacher and student dispute."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, prod

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from gasim_ray.core.model import Model
from gasim_ray.core.objectives import divergence
from gasim_ray.core.outputs import policy_logits
from gasim_ray.core.prior import Prior
from gasim_ray.core.prune import layers_of, with_layer_inputs
from gasim_ray.errors import UserError

#: Share of the candidates, the most decided for an action, among which clusters are sought.
MOST_DECIDED = 0.1
#: Numbers that candidates take up at once, a gigabyte.
MOST_NUMBERS = 2**28
#: Times that clusters' centres are moved.
ITERATIONS = 8


@dataclass(frozen=True)
class Answered:
    """What a teacher makes of N observations."""

    #: Policy logits (N, actions), relative to the excitement of the first layer.
    decided: Tensor
    #: The same, with the alignment (N, actions): the higher, the better for an action.
    score: Tensor
    #: Directions of what the last hidden dense layer reads (N, features); (N, 0) where no clusters are asked for.
    features: Tensor


class Chosen(Prior):
    """Of another prior's observations those that the teacher answers most decidedly, as many for each action.

    A classifier's outputs are farthest apart on what it was trained on (the measure of Hendrycks et al. 2022 for what
    it has not seen). A picture of more contrast excites everything, so outputs are taken relative to the excitement of
    the first layer: that tells which of several priors resembles the data. Observation i of a sample has, among
    `candidates` times as many, one of the greatest outputs for action i modulo the number of actions.

    With `alignment` what also counts, to that power, is the gain of the last dense layer but one (the last,
    where there is no other): the squared norm of what it answers, without bias, over that of what it reads. Own: its
    weights have grown along what it was trained on, which so excites it more than anything else of the same strength.

    With `clusters` as many are taken of each of so many clusters (k-means) of the directions of what that layer reads,
    among the most decided tenth for an action. Own: where an action has many kinds of observations, the most decided
    or aligned are of a few of them alone.

    Raises UserError if there is alignment or a number of clusters, and the teacher has no dense layer.
    """

    def __init__(
        self, prior: Prior, teacher: Model, candidates: int, alignment: float = 0.0, clusters: int = 0
    ) -> None:
        super().__init__(teacher, prior.device)
        self.prior, self.teacher, self.knowledge = prior, teacher.to(prior.device), prior.knowledge
        self.candidates, self.alignment, self.clusters = candidates, alignment, clusters
        for name, asked in (("alignment", alignment), ("clusters", clusters)):
            if asked and not any(isinstance(layer, nn.Linear) for layer in layers_of(teacher)):
                raise UserError(f"generator.{name}: {asked}, but the teacher has no dense layer; set it to 0")

    @torch.no_grad()
    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """See Prior."""
        actions = self.teacher.config.actions
        part = actions * max(1, MOST_NUMBERS // (actions * self.candidates * prod(self.spec.shape)))
        return torch.cat([self._choose(min(part, count - done), generator) for done in range(0, count, part)])

    def _choose(self, count: int, generator: torch.Generator) -> Tensor:
        drawn = self.prior.sample(count * self.candidates, generator)
        answered = self.answered(drawn)
        actions = answered.score.shape[1]
        each = ceil(count / actions)
        if self.clusters:
            best = torch.stack([self._of_each_cluster(answered, a, each, generator) for a in range(actions)], dim=1)
        else:
            best = answered.score.topk(each, dim=0).indices
        return drawn[best.flatten()[:count]]

    def answered(self, observations: Tensor) -> Answered:
        """What the teacher makes of observations (N, *spec.shape)."""
        # What all layers read is let go of part by part: together it would fill gigabytes.
        parts = [self._look_at(part) for part in torch.split(observations, 1024)]
        outputs, excitement, gain, features = (torch.cat(figures) for figures in zip(*parts, strict=True))
        decided: Tensor = policy_logits(outputs, 1.0) / (excitement + 0.1 * excitement.median()).clamp_min(1e-6)
        return Answered(decided, torch.where(decided > 0, decided * gain, decided / gain), features)

    def _look_at(self, observations: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Outputs (N, actions), excitement of the first layer (N, 1), the gain to its power (N, 1), and features."""
        outputs, read = with_layer_inputs(self.teacher, observations)
        excitement = list(read.values())[:2][-1].flatten(1).norm(dim=1).unsqueeze(1)
        gain, features = torch.ones_like(excitement), excitement[:, :0]
        if self.alignment:
            gain = hidden_gain(read).unsqueeze(1).clamp_min(1e-6) ** self.alignment
        if self.clusters:
            features = F.normalize(read[last_hidden(read)].float().flatten(1), dim=1)
        return outputs, excitement, gain, features

    def _of_each_cluster(self, answered: Answered, action: int, count: int, rng: torch.Generator) -> Tensor:
        """Places (count,) of those to take for an action: the best of each cluster, the next best of each, and on."""
        decided, score = answered.decided[:, action], answered.score[:, action]
        pool = decided.topk(max(count, int(MOST_DECIDED * len(decided)))).indices
        pool = pool[score[pool].argsort(descending=True)]
        member = F.one_hot(k_means(answered.features[pool], self.clusters, rng))
        rank = (member.cumsum(0) * member).sum(1)
        return pool[rank.argsort(stable=True)[:count]]


def last_hidden(read: dict[nn.Module, Tensor]) -> nn.Linear:
    """The last dense layer but one, or the only one, of layers in the order in which they read something."""
    return [layer for layer in read if isinstance(layer, nn.Linear)][-2:][0]


def hidden_gain(read: dict[nn.Module, Tensor]) -> Tensor:
    """See Chosen: (N,), from what each layer read, in the order in which they did."""
    hidden = last_hidden(read)
    inputs = read[hidden].float()
    answered = inputs @ hidden.weight.float().T
    return answered.flatten(1).square().sum(1) / inputs.flatten(1).square().sum(1).clamp_min(1e-12)


def k_means(points: Tensor, clusters: int, rng: torch.Generator) -> Tensor:
    """The cluster (N,) of each of N points (N, D), by Lloyd's rule from centres drawn among them; some may be empty."""
    centres = points[torch.randperm(len(points), generator=rng, device=points.device)[:clusters]]
    for _ in range(ITERATIONS):
        member = F.one_hot(torch.cdist(points, centres).argmin(1), len(centres)).to(points)
        sizes = member.sum(0).unsqueeze(1)
        centres = torch.where(sizes > 0, member.T @ points / sizes.clamp_min(1), centres)
    return torch.cdist(points, centres).argmin(1)


class Disputed(Prior):
    """Of another prior's observations those on which teacher and student differ most, by Jensen-Shannon divergence.

    It is bounded (ln 2), so that an observation counts for the disagreement and not for how sure of it both are. The
    student is the one that it holds at the time, whose weights its owner keeps up to date.
    """

    def __init__(self, prior: Prior, teacher: Model, student: Model, candidates: int) -> None:
        super().__init__(teacher, prior.device)
        self.prior, self.candidates = prior, candidates
        self.models = (teacher, student)
        self.knowledge = prior.knowledge

    @torch.no_grad()
    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """See Prior."""
        drawn = self.prior.sample(count * self.candidates, generator)
        parts = torch.split(drawn, 1024)
        teacher, student = (
            torch.cat([policy_logits(model(part), model.config.output_scale) for part in parts])
            for model in self.models
        )
        return drawn[divergence(teacher, student, "js", 1.0).topk(count).indices]
