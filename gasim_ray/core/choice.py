"""The choice among a prior's samples: what the teacher answers decidedly, or what teacher and student dispute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from gasim_ray.core.answers import some_of
from gasim_ray.core.model import Model, check_finite
from gasim_ray.core.objectives import divergence
from gasim_ray.core.outputs import policy_logits
from gasim_ray.core.prior import Prior
from gasim_ray.core.prune import with_layer_inputs
from gasim_ray.errors import UserError

#: Share of the candidates, the most decided for an action, among which clusters are sought; an even share, if less.
MOST_DECIDED = 0.1
#: Numbers that candidates take up at once, a gigabyte.
MOST_NUMBERS = 2**28
#: Times that clusters' centres are moved.
ITERATIONS = 8
#: Observations of which each must be one row of what a layer reads.
TRIED = 7


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

    With `alignment` what also counts, to that power, is the gain of the last hidden dense layer (the last,
    where there is no other): the squared norm of what it answers, without bias, over that of what it reads. Own: its
    weights have grown along what it was trained on, which so excites it more than anything else of the same strength.

    With `clusters` as many are taken of each of so many clusters (k-means; no more than there are observations to take)
    of the directions of what that layer reads, among the most decided tenth for an action. Own: where an action has
    many kinds of observations, the most decided or aligned are of a few of them alone.

    Raises UserError if the teacher has no layer that tells this, of which only convolutions and dense ones count that
    read one thing for each observation.
    """

    def __init__(
        self, prior: Prior, teacher: Model, candidates: int, alignment: float = 0.0, clusters: int = 0
    ) -> None:
        super().__init__(teacher, prior.device)
        self.prior, self.teacher, self.knowledge = prior, teacher.to(prior.device), prior.knowledge
        self.candidates, self.alignment, self.clusters = candidates, alignment, clusters
        reading = readers(self.teacher, prior.device)
        dense = [layer for layer in reading if isinstance(layer, nn.Linear)]
        for name, asked, kind, found in (
            ("candidates", candidates, "layer", reading),
            ("alignment", alignment, "dense layer", dense),
            ("clusters", clusters, "dense layer", dense),
        ):
            if asked and not found:
                raise UserError(
                    f"generator.{name}: {asked}, but the teacher has no {kind} that reads each observation; set it to 0"
                )
        #: What reads the first layer's answers, and the last hidden dense layer.
        self.second, self.hidden = reading[:2][-1], last_hidden(dense, teacher)

    @torch.no_grad()
    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """See Prior; fewer observations than actions are for some of them, drawn at random."""
        actions = self.teacher.config.actions
        taken = torch.arange(actions)
        if count < actions:
            taken = torch.randperm(actions, generator=generator, device=generator.device)[:count]
        part = actions * max(1, MOST_NUMBERS // (actions * self.candidates * prod(self.spec.shape)))
        parts = [min(part, count - done) for done in range(0, count, part)]
        return torch.cat([self._choose(number, taken.tolist(), generator) for number in parts])

    def _choose(self, count: int, actions: Sequence[int], generator: torch.Generator) -> Tensor:
        drawn = self.prior.sample(count * self.candidates, generator)
        answered = self.answered(drawn)
        each = ceil(count / len(actions))
        if self.clusters:
            best = torch.stack([self._of_each_cluster(answered, a, each, generator) for a in actions], dim=1)
        else:
            best = answered.score[:, list(actions)].topk(each, dim=0).indices
        return drawn[best.flatten()[:count]]

    def answered(self, observations: Tensor) -> Answered:
        """What the teacher makes of observations (N, *spec.shape)."""
        # What layers read is let go of part by part: together it would fill gigabytes.
        parts = [self._look_at(part) for part in torch.split(observations, 1024)]
        outputs, excitement, gain, features = (torch.cat(figures) for figures in zip(*parts, strict=True))
        decided: Tensor = policy_logits(outputs, 1.0) / (excitement + 0.1 * excitement.median()).clamp_min(1e-6)
        check_finite(decided, "teacher")
        return Answered(decided, torch.where(decided > 0, decided * gain, decided / gain), features)

    def _look_at(self, observations: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Outputs (N, actions), excitement of the first layer (N, 1), the gain to its power (N, 1), and features."""
        hidden = [self.hidden] if self.hidden and (self.alignment or self.clusters) else []
        outputs, read = with_layer_inputs(self.teacher, observations, list({self.second, *hidden}))
        excitement = read[self.second].flatten(1).norm(dim=1).unsqueeze(1)
        gain, features = torch.ones_like(excitement), excitement[:, :0]
        for layer in hidden:
            if self.alignment:
                gain = gain_of(layer, read[layer]).unsqueeze(1).clamp_min(1e-6) ** self.alignment
            if self.clusters:
                features = F.normalize(some_of(read[layer]), dim=1)
        return outputs, excitement, gain, features

    def _of_each_cluster(self, answered: Answered, action: int, count: int, rng: torch.Generator) -> Tensor:
        """Places (count,) of those to take for an action: the best of each cluster, the next best of each, and on."""
        decided, score = answered.decided[:, action], answered.score[:, action]
        share = min(MOST_DECIDED, 1 / answered.score.shape[1])
        pool = decided.topk(max(count, int(share * len(decided)))).indices
        pool = pool[score[pool].argsort(descending=True)]
        member = F.one_hot(k_means(answered.features[pool], min(self.clusters, count), rng))
        rank = (member.cumsum(0) * member).sum(1)
        return pool[rank.argsort(stable=True)[:count]]


@torch.no_grad()
def readers(model: Model, device: torch.device) -> list[nn.Module]:
    """The convolutions and dense layers that read one thing for each observation, in the order in which they do."""
    spec = model.config.observation
    tried = torch.zeros((TRIED, *spec.shape), dtype=spec.torch_dtype, device=device)
    read = with_layer_inputs(model, tried)[1]
    return [layer for layer, inputs in read.items() if len(inputs) == TRIED]


def last_hidden(dense: Sequence[nn.Linear], model: Model) -> nn.Linear | None:
    """Of dense layers in the order in which they read the one before that which answers, or this if there is no other;
    None of none.
    """
    outputs = model.config.actions + model.config.value
    answering = [place for place, layer in enumerate(dense) if layer.out_features == outputs]
    return dense[max(0, [len(dense) - 1, *answering][-1] - 1)] if dense else None


def gain_of(layer: nn.Linear, read: Tensor) -> Tensor:
    """See Chosen: (N,), of what a layer read (N, ..., inputs)."""
    answered = read.float() @ layer.weight.float().T
    return answered.flatten(1).square().sum(1) / read.float().flatten(1).square().sum(1).clamp_min(1e-12)


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
